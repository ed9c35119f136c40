"""Writes the sample file and the page about every setting from the schema."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from elemta.config.dumping import literal
from elemta.config.environment import ALIASES
from elemta.config.kinds import Kind, kind_of
from elemta.config.layout import SECTIONS, Section
from elemta.config.prose import PAGE_HEAD, SAMPLE_HEAD
from elemta.config.sections import PolicyCommon
from elemta.config.setting import SettingField, settings_of

_WIDTH: Final = 100

_POLICY = Section("policy.relay", "policy", PolicyCommon)
_POLICY_WORDS = "every policy has these four, beside its own options."


@dataclass(frozen=True, slots=True)
class Entry:
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
    entries: tuple[Entry, ...]


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
    kind = kind_of(field)
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
        kind = kind_of(field)
        entries.append(Entry(field.key, _value_cell(kind), _default_cell(field, kind), field.about.words))
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


def _value_cell(kind: Kind) -> str:
    words = kind.words.removeprefix("a ").replace('"', "`")
    return f"list, each {words}" if kind.is_list else words


def _default_cell(field: SettingField, kind: Kind) -> str:
    if field.required:
        return f"required, such as `{literal(kind.written(field.about.example))}`"
    return f"default {field.about.default_words or f'`{literal(kind.written(field.default))}`'}"
