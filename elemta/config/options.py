"""The options of a policy in words: each key of its table, with the keys of tables within it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from elemta.config.dumper import literal
from elemta.config.setting import SettingField, settings_of
from elemta.config.types import table_of, type_of


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One key. A key of a table within the table is ``zone[].name`` or ``tls.ca``.

    ``default`` is as TOML writes it; "" where the key is needed.
    """

    key: str
    type: str
    default: str
    words: str


def describe_options(shape: type[Any], prefix: str = "") -> Iterator[OptionInfo]:
    """The keys of a dataclass of options, in its order. TypeError where it can't be read."""
    for field in settings_of(shape):
        key, nested = prefix + field.key, table_of(field)
        if nested is None:
            kind = type_of(field)
            default = "" if field.required else _default(field, kind.written)
            yield OptionInfo(key, kind.label, default, field.about.words)
            continue
        inner, many = nested
        # A table has no default in one line: its keys have theirs. One that must be there has keys that must.
        default = "[]" if many and not field.required else "" if field.required else "{}"
        yield OptionInfo(key, "list of tables" if many else "table", default, field.about.words)
        yield from describe_options(inner, f"{key}[]." if many else f"{key}.")


def _default(field: SettingField, written: Any) -> str:
    if field.about.default_words:
        return field.about.default_words
    return "" if field.default is None else literal(written(field.default))
