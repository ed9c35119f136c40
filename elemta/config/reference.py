"""Writes the sample file and the page about every setting, each from the schema, with the text around it."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from elemta.config.dumper import literal
from elemta.config.environment import ALIASES
from elemta.config.layout import SECTIONS, Section
from elemta.config.schema import PolicyCommon
from elemta.config.setting import SettingField, settings_of
from elemta.config.types import SettingType, type_of

SAMPLE_HEAD: Final = """\
# The configuration of Elemta.
#
# This file has every setting with its default, behind a "#"; remove the "#" to set it. Tables in double
# brackets are examples; a configuration has any number of them. Sizes are written "50MiB", durations
# "5m"; plain numbers are bytes and seconds. Check a change before you reload:
#
#   twistd elemta --config /etc/elemta.toml --check
#
# This file is generated from the schema, as is docs/configuration.md, which says more.
"""

PAGE_HEAD: Final = r"""# Configuration

<!-- Generated from the schema by `python -m elemta.config write`; edit the schema. -->

Elemta reads one [TOML](https://toml.io) file, by default `/etc/elemta.toml`. The sample
`etc/elemta.toml` has every setting with a comment and its default. A setting that the file leaves out
has its default, so an empty file works too. It has one listener, `tcp:2525:interface=127.0.0.1`, and no
`[[limit]]` and no `[[route]]`.

`twistd elemta --config FILE --check` reads the file, prints every fault in it and opens nothing. A fault
has the file, the key, what was found, what is allowed and the nearest known key:

```
/etc/elemta.toml: server.max_recipient: unknown key (did you mean "max_recipients"? known here: hostname, …)
/etc/elemta.toml: limit[2].mode: found "watch": must be "enforce" or "observe"
```

Tables in double brackets are counted from 1, as are the elements of lists: `limit[2].rates[1]` is the
first rate of the second `[[limit]]`.

Elemta logs at the start which settings have no effect: tables `[policy.NAME]` that the chain does not
name, for example, and routes behind a route that matches before them. It also warns of settings that are
allowed but dangerous, such as all networks in `relay_from`.

## Values

| value | written | examples |
|---|---|---|
| size | a number of bytes, or with a unit | `"50MiB"`, `"1.5GiB"`, `1000` |
| duration | a number of seconds, or with `ms`, `s`, `m`, `h`, `d`, `w` | `"5m"`, `"1h30m"`, `"50ms"`, `60` |
| network | in CIDR notation, or an address | `"192.0.2.0/24"`, `"2001:db8::/32"`, `"127.0.0.1"` |
| rate | how many in which rolling window | `"100/1m"`, `"50MiB/1h"`, `"20"` |
| endpoint | as in Twisted | `"tcp:25"`, `'tcp6:25:interface=2001\:db8\:\:1'`, `"unix:/run/smtp.sock"` |

- The units of a size are `B`, `KiB`, `MiB`, `GiB`, `TiB` (1024) and `kB`, `MB`, `GB`, `TB` (1000).
- A rate of bytes is a size. The limit of open connections has no window.
- In an endpoint the colons of an IPv6 address are escaped, above in a literal string.

## Environment

`ELEMTA_<TABLE>_<KEY>` overrides a key that is no list, in a table with single brackets and a fixed name:
`ELEMTA_SERVER_HOSTNAME=mx1.example.org`, `ELEMTA_SPOOL_EXPIRE=3d`, `ELEMTA_AUTH_REQUIRE_TLS=true`. An
empty value is the empty string. Elemta also reads these names, where they are not empty and the long
name is not set:

ALIASES

A variable `ELEMTA_…` that names a table but no key of it, or is nearly the name of a setting, is a fault.
Any other has no effect, and neither have those that Kubernetes makes for a service named `elemta` or
`elemta-…` (`ELEMTA_SERVICE_HOST`, `ELEMTA_METRICS_PORT_8080_TCP`).
"""


_WIDTH: Final = 100

_POLICY = Section("policy.relay", "policy", PolicyCommon)
_POLICY_WORDS = "every policy has these four, beside its own options."


@dataclass(frozen=True, slots=True)
class SettingEntry:
    """A setting for a page of documentation; code is in backquotes."""

    key: str
    value: str
    default: str
    words: str


@dataclass(frozen=True, slots=True)
class Described:
    """A table for a page of documentation: its header as it is written, its sentences, its settings."""

    header: str
    words: str
    more: str
    entries: tuple[SettingEntry, ...]


def described() -> Iterator[Described]:
    """Every table of a configuration, in the order of the sample file."""
    for section in SECTIONS:
        yield _described(section, f"[[{section.table}]]" if section.many else f"[{section.table}]")
        if section.table == "policies":
            yield _described(_POLICY, "[policy.NAME]")


def render_sample() -> str:
    """The text of ``etc/elemta.toml``: every setting with its sentence, and its default commented out."""
    lines = SAMPLE_HEAD.splitlines()
    for section in SECTIONS:
        lines += _sample_section(section, _words_of(section))
        if section.table == "policies":
            lines += _sample_section(_POLICY, _POLICY_WORDS)
    return "\n".join(lines) + "\n"


def render_markdown() -> str:
    """The text of ``docs/configuration.md``."""
    aliases = "\n".join(f"- `{alias}` for `{name}`" for alias, name in ALIASES.items())
    parts = [PAGE_HEAD.replace("ALIASES", aliases)]
    for section in described():
        parts += _page_section(section)
    return "\n".join(parts)


def _words_of(section: Section) -> str:
    """The first sentence of the docstring, without the name of the table."""
    first = (section.shape.__doc__ or "").split("\n\n")[0]
    return " ".join(first.split()).partition(": ")[2].replace("``", "")


def _more_of(section: Section) -> str:
    """The rest of the docstring."""
    rest = (section.shape.__doc__ or "").split("\n\n")[1:]
    return " ".join(" ".join(rest).split()).replace("``", "`")


def _sample_section(section: Section, words: str) -> Iterator[str]:
    example = section.many or section is _POLICY
    header = f"[[{section.table}]]" if section.many else f"[{section.table}]"
    yield ""
    yield ""
    yield from _comment(words[:1].upper() + words[1:])
    yield from _comment(_more_of(section).replace("`", ""))
    yield f"#{header}" if example else header
    for field in settings_of(section.shape):
        yield ""
        yield from _comment(field.about.words)
        yield _sample_value(field)


def _comment(words: str) -> list[str]:
    return textwrap.wrap(
        words,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sample_value(field: SettingField) -> str:
    kind = type_of(field)
    line = f"#{field.key} = {literal(kind.written(_shown_value(field)))}"
    remark = " | ".join(_choices(field)) if not kind.is_list else ""
    if field.about.default_words:
        remark = f"default: {field.about.default_words}"
    return f"{line:<36}# {remark}" if remark else line


def _shown_value(field: SettingField) -> Any:
    """The default, or the example of a setting whose default is none or is computed."""
    return field.about.example if field.required or field.about.default_words else field.default


def _choices(field: SettingField) -> list[str]:
    if isinstance(field.type, type) and issubclass(field.type, enum.Enum):
        return [str(member.value) for member in field.type]
    return [str(choice) for choice in field.about.choices]


def _described(section: Section, header: str) -> Described:
    words = _words_of(section) if section.attribute != "policy" else _POLICY_WORDS
    entries = []
    for field in settings_of(section.shape):
        kind = type_of(field)
        entries.append(
            SettingEntry(field.key, _value_cell(kind), _default_cell(field, kind), field.about.words)
        )
    return Described(header, words[:1].upper() + words[1:], _more_of(section), tuple(entries))


def _page_section(section: Described) -> Iterator[str]:
    yield f"## `{section.header}`"
    yield ""
    yield "\n\n".join(_wrap(text) for text in (section.words, section.more) if text)
    yield ""
    for entry in section.entries:
        yield _wrap(f"- **`{entry.key}`**: {entry.words}", "  ")
        yield _wrap(f"  {entry.value[:1].upper()}{entry.value[1:]}; {entry.default}.", "  ")
    yield ""


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _value_cell(kind: SettingType) -> str:
    words = kind.words.removeprefix("a ").replace('"', "`")
    return f"list, each {words}" if kind.is_list else words


def _default_cell(field: SettingField, kind: SettingType) -> str:
    if field.required:
        return f"required, such as `{literal(kind.written(field.about.example))}`"
    return f"default {field.about.default_words or f'`{literal(kind.written(field.default))}`'}"
