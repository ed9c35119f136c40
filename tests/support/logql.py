"""What Loki would make of a query: as much of LogQL as the documents use, for records in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

_TEXT = r'"(?:[^"\\]|\\.)*"|`[^`]*`'
_STREAM = re.compile(rf"\{{\s*\w+\s*=~?\s*(?:{_TEXT})\s*\}}")
_STAGE = re.compile(rf"\s*(?:\|\s*json\b|(\|=|!=|\|~|!~)\s*({_TEXT})|\|\s*(\w+)\s*(=~|!~|!=|=)\s*({_TEXT}))")
_COUNTED = re.compile(
    r"sum by \(\s*(\w+(?:\s*,\s*\w+)*)\s*\) \(\s*count_over_time\(\s*(.*?)\s*\[\d+[smhdw]\]\s*\)\s*\)",
    re.DOTALL,
)
_TOP = re.compile(r"topk\(\d+, (.*)\)", re.DOTALL)

_COMPARED: dict[str, Callable[[str, str], bool]] = {
    "=": lambda value, given: value == given,
    "!=": lambda value, given: value != given,
    # Loki anchors what a label is compared with.
    "=~": lambda value, given: re.fullmatch(given, value) is not None,
    "!~": lambda value, given: re.fullmatch(given, value) is None,
}
_FILTERED: dict[str, Callable[[str, str], bool]] = {
    "|=": lambda line, given: given in line,
    "!=": lambda line, given: given not in line,
    "|~": lambda line, given: re.search(given, line) is not None,
    "!~": lambda line, given: re.search(given, line) is None,
}


class NotLogQL(ValueError):
    """A query that is none, or one that this module does not know."""


def selected(query: str, lines: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The lines that a query selects, and the labels that it counts by."""
    query = query.strip()
    if found := _TOP.fullmatch(query):
        query = found[1].strip()
    counted = _COUNTED.fullmatch(query)
    if counted:
        query = counted[2]
    labels = tuple(each.strip() for each in counted[1].split(",")) if counted else ()
    stream = _STREAM.match(query)
    if stream is None:
        raise NotLogQL(f"no stream selector: {query}")
    kept, at, parsed = list(lines), stream.end(), False
    while at < len(query.rstrip()):
        stage = _STAGE.match(query, at)
        if stage is None:
            raise NotLogQL(f"no stage: {query[at:]}")
        at = stage.end()
        filtered, text, label, operator, value = stage.groups()
        if filtered:
            kept = [line for line in kept if _FILTERED[filtered](line, _text(text))]
        elif label is None:
            parsed = True
        elif not parsed:
            raise NotLogQL(f"a label before json: {label}")
        else:
            kept = [line for line in kept if _COMPARED[operator](_label(line, label), _text(value))]
    return kept, labels


def _text(quoted: str) -> str:
    return quoted[1:-1] if quoted[0] == "`" else str(json.loads(quoted))


def _label(line: str, name: str) -> str:
    """A field as a label. Loki leaves lists out, and what is null."""
    value: Any = json.loads(line).get(name)
    return "" if value is None or isinstance(value, list) else str(value)
