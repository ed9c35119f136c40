"""Writes docs/logging.md: the fields of a record, and every event that the code in elemta/ logs.

python docs/generate_logging.py           writes docs/logging.md
python docs/generate_logging.py --check   fails when it is stale
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from generated_file import write_or_check

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "logging.md"

LEVELS = {"debug": 0, "info": 1, "warn": 2, "error": 3, "critical": 4, "failure": 4}

HEAD = """# The log

`make generate` writes this page and takes the events from the code.

Elemta logs one record a line to standard output, or to twistd's `--logfile`. `[logging] format` is `json`
or `text`, and `level` is the lowest level that is written: `debug`, `info`, `warn`, `error`, `critical`.

```json
{"time":"2026-01-31T12:00:00.123Z","level":"info","event":"message.accepted","node_id":"mx1",…}
```

| field | what it is |
|---|---|
| `time` | RFC 3339, UTC, milliseconds |
| `level` | `debug`, `info`, `warn`, `error` or `critical` |
| `event` | the name of the event, from the list below; `twisted` for what Twisted itself logs |
| `node_id` | `[server] node_id` |
| `message` | the same for people, a constant text for one event |
| `worker` | the number of the [worker](workers.md), on records of one |
| `session_id` | one connection; on every record about it |
| `queue_id` | one message, as in the 250 reply, the Received field and the queue listing |
| `client_ip` | the client's address, behind a load balancer too |
| `error`, `traceback` | an exception, where there was one |

The other fields depend on the event. A value that a client sent is escaped and cut at 4,096 characters. A
record is one line whatever is in it. Elemta logs no password, AUTH exchange or message body.

In `text` a record is `time level event message key=value …`. A traceback follows on lines that begin with
four blanks. Keys without a value and `node_id` are left out.

A reload (SIGHUP, `elemtactl reload`) applies another `format` and `level`, and opens the file of `--logfile`
again. To rotate the log, move the file away and reload. A file that is truncated in place goes on at its
new end.

Under systemd (`JOURNAL_STREAM`) each line starts with its priority, which journald removes, and text has no
time, because journald adds it. When the reader of the log stops reading, the daemon does not wait. It keeps
1 MiB of lines, and logs afterwards (`log.lines_lost`) how many were lost.

## Events

Each event has its level, its message and its fields.

"""


@dataclass(frozen=True, order=True)
class Logged:
    """One place that logs."""

    event: str
    rank: int
    level: str
    sentence: str
    fields: tuple[str, ...]


def logged(path: Path) -> Iterator[Logged]:
    """The events that one module logs, as far as their names are written there."""
    tree = ast.parse(path.read_bytes())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _logged_by(function, _levels_of_methods(tree))


def _levels_of_methods(tree: ast.Module) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The functions of a module that log the ``**facts`` that they get: the level, and fields of their own."""
    found = {}
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.args.kwarg is None:
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                handed_on = [ast.unparse(each.value) for each in call.keywords if each.arg is None]
                if call.func.attr in LEVELS and function.args.kwarg.arg in handed_on:
                    own = tuple(each.arg for each in call.keywords if each.arg)
                    found[function.name] = call.func.attr, own
    return found


def _logged_by(
    function: ast.FunctionDef | ast.AsyncFunctionDef, methods: dict[str, tuple[str, tuple[str, ...]]]
) -> Iterator[Logged]:
    dicts, choices = _dicts_of(function), _choices_of(function)
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        keywords = {each.arg: each.value for each in node.keywords if each.arg}
        fields: tuple[str, ...] = tuple(each for each in keywords if each != "event")
        event = keywords.get("event")
        for each in node.keywords:
            if each.arg is None and isinstance(each.value, ast.Name) and each.value.id in dicts:
                event, more = dicts[each.value.id]
                fields = (*more, *fields)
        level = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if isinstance(node.func, ast.Name):
            level = choices.get(node.func.id)
        if level in methods and isinstance(event, ast.Constant):
            level, more = methods[level]
            fields = (*more, *fields)
        if level not in LEVELS or not isinstance(event, ast.Constant):
            continue
        sentence = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
        shown = "critical" if level == "failure" else level
        fields += ("error", "traceback") if level == "failure" else ()
        yield Logged(str(event.value), LEVELS[level], shown, str(sentence), tuple(dict.fromkeys(fields)))


def _dicts_of(function: ast.AST) -> dict[str, tuple[ast.expr, tuple[str, ...]]]:
    """The dictionaries of fields that a function makes: the event, and the names that it puts there."""
    found: dict[str, tuple[ast.expr, tuple[str, ...]]] = {}
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Dict):
            pairs = {
                key.value: value
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            if "event" in pairs:
                found[target.id] = pairs.pop("event"), tuple(map(str, pairs))
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            event, names = found.get(target.value.id, (None, ()))
            if event is not None and isinstance(target.slice, ast.Constant):
                found[target.value.id] = event, (*names, str(target.slice.value))
    return found


def _choices_of(function: ast.AST) -> dict[str, str]:
    """The names that stand for one of two levels; the higher one."""
    return {
        node.targets[0].id: max(levels, key=LEVELS.__getitem__)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.IfExp)
        and len(
            levels := [
                each.attr
                for each in (node.value.body, node.value.orelse)
                if isinstance(each, ast.Attribute) and each.attr in LEVELS
            ]
        )
        == 2
    }


def render() -> str:
    """The text of docs/logging.md."""
    found = {each for path in sorted((ROOT / "elemta").rglob("*.py")) for each in logged(path)}
    return HEAD + "".join(entry(each) for each in sorted(found))


def entry(each: Logged) -> str:
    """One event as an item of the list."""
    fields = ", ".join(f"`{name}`" for name in each.fields)
    text = f"`{each.event}`, {each.level}: {each.sentence}." + (f" {fields}" if fields else "")
    return (
        textwrap.fill(
            text,
            100,
            initial_indent="- ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        + "\n"
    )


def main(arguments: list[str]) -> int:
    return write_or_check({TARGET: render()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
