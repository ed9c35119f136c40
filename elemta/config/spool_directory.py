"""Where the spool is, by a configuration that may be broken: all that ``elemtactl`` needs of it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from elemta.config.environment import read_environment
from elemta.config.faults import Faults
from elemta.config.schema import SpoolConfig

_HEAD = re.compile(r"\s*\[\s*(?P<table>[^\]#]*?)\s*\]")
_STRINGS = (r'"""[^"\n]+"""', r"'''[^'\n]+'''", r'"(?:[^"\\\n]|\\.)*"', r"'[^'\n]*'")
_VALUE = rf"\s*=\s*(?P<value>{'|'.join(_STRINGS)})"
_DIRECTORY = re.compile(r"""\s*(?P<quote>["']?)directory(?P=quote)""" + _VALUE)
# The same in a table above all others: ``spool.directory = "…"``, ``spool = { directory = "…" }``.
_DOTTED = re.compile(
    r"""\s*spool\s*(?:\.\s*|=\s*\{(?:[^#\n]*,)?\s*)(?P<quote>["']?)directory(?P=quote)""" + _VALUE
)


def spool_directory(path: str | None, environ: Mapping[str, str]) -> str:
    """The spool directory by a configuration file (None: there is none) and an environment.

    Whatever else is wrong with the file is no fault here. Raises OSError where it can't be read.
    """
    for override in read_environment(environ, Faults("")):
        if (override.table, override.key) == ("spool", "directory") and isinstance(override.value, str):
            return override.value
    found = None if path is None else _in_file(Path(path).read_bytes().decode("utf-8-sig", "replace"))
    return found or SpoolConfig().directory


def _in_file(text: str) -> str | None:
    try:
        table = tomllib.loads(text).get("spool")
    except (ValueError, RecursionError):
        return _in_lines(text)
    found = table.get("directory") if isinstance(table, dict) else None
    return found if isinstance(found, str) else None


def _in_lines(text: str) -> str | None:
    """The setting in a file that is no TOML: the fault is somewhere else in it, as a rule."""
    table = ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head is not None:
            table = head["table"].strip("\"'")
        pattern = {"": _DOTTED, "spool": _DIRECTORY}.get(table)
        setting = pattern.match(line) if pattern is not None else None
        if setting is not None:
            try:
                return str(tomllib.loads(f"directory = {setting['value']}")["directory"])
            except ValueError:
                continue
    return None
