"""The effective configuration as TOML, without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import toml

from elemta.config.config import Config
from elemta.config.layout import SECTIONS
from elemta.config.redaction import redacted_checker, redacted_table, redacted_url
from elemta.config.setting import settings_of
from elemta.config.types import type_of

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def dump(config: Config) -> str:
    """The effective configuration, every key of it, as TOML that loads as the same configuration.

    Passwords in URLs, in descriptions of checkers and in policies' keys that are named like secrets
    are replaced by ``***``.
    """
    document: dict[str, Any] = {}
    for section in SECTIONS:
        value = getattr(config, section.attribute)
        document[section.table] = [_table(each) for each in value] if section.many else _table(value)
    document["resources"]["valkey_url"] = redacted_url(config.resources.valkey_url)
    document["auth"]["checkers"] = [redacted_checker(each) for each in config.auth.checkers]
    if config.policy:
        document["policy"] = _wrapped({name: redacted_table(each) for name, each in config.policy.items()})
    return toml.dumps(document, _encoder())


def literal(value: object) -> str:
    """One value of TOML, as it stands to the right of an equals sign."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML does not take as it is.
        return _CONTROL.sub(lambda char: f"\\u{ord(char[0]):04x}", json.dumps(value, ensure_ascii=False))
    if isinstance(value, list):
        return f"[{', '.join(literal(each) for each in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(str(name))} = {literal(each)}" for name, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return str(value)


def _table(section: object) -> dict[str, object]:
    return {
        field.key: type_of(field).written(getattr(section, field.name))
        for field in settings_of(type(section))
    }


class _Inline:
    """A value that is written on one line."""

    def __init__(self, value: object) -> None:
        self.value = value


def _encoder() -> Any:
    """The encoder of ``toml`` with strings of our own: its strings do not always load as the same text."""
    encoder = toml.TomlEncoder()
    encoder.dump_funcs[str] = literal
    encoder.dump_funcs[_Inline] = lambda inline: literal(inline.value)
    return encoder


def _wrapped(table: Mapping[str, object]) -> object:
    """A table of any shape, with what ``toml`` would write wrongly on one line: odd keys, tables in lists."""
    if not all(_BARE_KEY.fullmatch(name) for name in table):
        return _Inline(table)
    wrapped: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            wrapped[name] = _wrapped(value)
        else:
            wrapped[name] = _Inline(value) if isinstance(value, list) else value
    return wrapped


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else literal(name)
