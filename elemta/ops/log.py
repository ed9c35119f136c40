"""The structured log: one record a line, as JSON or for people.

A record is made by ``Logger().info("message queued", event="message.queued", queue_id=…)``: a constant
sentence, a dotted machine name, and keywords. ``docs/logging.md`` describes the fields. What clients sent is
escaped, so one record is one line whatever is in it, and no value is longer than :data:`MAX_VALUE`.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any

from twisted.logger import ILogObserver, LogEvent, formatEvent
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

from elemta.fast_enum import FastEnum
from elemta.json_text import json_text
from elemta.ops.log_writer import LogWriter, TextStream
from elemta.runtime.fast_logger import FastLogger
from elemta.smtp.session_info import EXPLAINED

#: Characters of one value; a traceback may have four times as many.
MAX_VALUE = 4096
_MAX_ELEMENTS = 100
_MAX_DEPTH = 4

_RANKS: Mapping[str, int] = {"debug": 0, "info": 1, "warn": 2, "error": 3, "critical": 4}
# syslog(3) priorities, which journald takes from the front of a line.
_PRIORITIES: Mapping[str, str] = {
    "debug": "<7>",
    "info": "<6>",
    "warn": "<4>",
    "error": "<3>",
    "critical": "<2>",
}

# Keys that twisted.python.log puts into events, or that stand for the record's own fields.
_NOT_FIELDS = frozenset(
    [
        "message",
        "time",
        "level",
        "node_id",
        "event",
        "system",
        "isError",
        "format",
        "why",
        "failure",
        "logLevel",
        "debugInfo",
        # Those of every event of twisted.logger.
        "log_logger",
        "log_level",
        "log_namespace",
        "log_source",
        "log_format",
        "log_time",
    ]
)
_OF_POLICIES = "elemta.policy."
_NEVER_LOGGED = frozenset(["password", "passwd", "secret", "credentials", "authorization", "token"])
# Keys of policies may be any number, and are not all kept.
_MOST_KEYS = 1000


class _Shown(FastEnum):
    """How a record has what an event has under a key."""

    AS_IT_IS = "as it is"
    HIDDEN = "without its value"
    NOT = "not"


class _ShownKeys(dict[str, _Shown]):
    """The same for each key, looked at once."""

    def __missing__(self, key: str) -> _Shown:
        shown = _Shown.AS_IT_IS
        if key in _NOT_FIELDS or key.startswith("log_"):
            shown = _Shown.NOT
        elif key in _NEVER_LOGGED:
            shown = _Shown.HIDDEN
        if len(self) < _MOST_KEYS:
            self[key] = shown
        return shown


_SHOWN = _ShownKeys()
_NOISE = (
    "Starting factory ",
    "Stopping factory ",
    "reactor class: ",
    "Main loop terminated.",
    "Timing out client: ",
)
_STARTING_ON = re.compile(r"\S+ starting on \S+$")

Record = dict[str, Any]
Format = Callable[[Record], str]


def observer(
    format: str,  # noqa: A002 - the name of the setting
    level: str,
    node_id: str,
    stream: TextStream,
    environ: Mapping[str, str] = os.environ,
    *,
    wall: Callable[[], float],
) -> LogObserver:
    """The observer that writes records of at least ``level`` (debug to critical) to ``stream``.

    ``format`` is ``json`` or ``text``. Where ``JOURNAL_STREAM`` in ``environ`` says that ``stream`` goes to
    journald, each line starts with its priority (``<6>``) and text has no time of its own. ``wall`` gives the
    time of what has none.
    """
    journald = is_journal(stream, environ)
    return LogObserver(format, level, node_id=node_id, stream=stream, journald=journald, wall=wall)


@implementer(ILogObserver)
class LogObserver:
    """Turns events into lines. Never raises, whatever is in an event.

    ``journald``: each line begins with its priority. ``worker`` is the number of this process among those of
    its node, where it is one of several.
    """

    def __init__(
        self,
        format: str,  # noqa: A002 - the name of the setting
        level: str,
        *,
        node_id: str,
        stream: TextStream,
        journald: bool,
        wall: Callable[[], float],
        worker: int | None = None,
    ) -> None:
        self._wall = wall
        self._node_id = node_id
        self._worker = worker
        self.journald = journald
        self.configure(format, level)
        self._lines = LogWriter(stream, self._lost_notice)
        self._second = -1
        self._second_text = ""

    def configure(self, format: str, level: str) -> None:  # noqa: A002 - the name of the setting
        """Write what comes from now on as ``format``, from ``level`` on; as at a reload."""
        in_text = render_for_journald if self.journald else render_text
        self._render: Format = render_json if str(format) == "json" else in_text
        self._least = _RANKS[str(level)]
        FastLogger.wants_debug = self._least == 0

    def reopen(self) -> None:
        """Go on in the file of the same name, after a rotation; OSError: in the old one."""
        self._lines.reopen()

    def pass_on(self, lines: str) -> None:
        """Write whole lines of another process, which are rendered already."""
        self._lines.write(lines)

    def __call__(self, event: LogEvent) -> None:
        level = _level(event)
        if _RANKS[level] >= self._least and not _is_explained(event):
            self._lines.write(self._line(event, level))

    def _line(self, event: LogEvent, level: str) -> str:
        try:
            line = self._render(self._record(event, level))
        except Exception as error:  # an event may hold any object, and a log must survive it
            line = self._render(self._plain_record("error", "log.unrenderable", type(error).__name__))
        return _PRIORITIES[level] + line if self.journald else line

    def _record(self, event: LogEvent, level: str) -> Record:
        name = event.get("event")
        if type(name) is str and len(name) <= MAX_VALUE:
            shown: Any = name
        else:
            shown = _plain(name) if name is not None else _event_name(event)
        record: Record = {
            "time": self._timestamp(event.get("log_time")),
            "level": level,
            "event": shown,
            "node_id": self._node_id,
            "message": _message(event),
        }
        if self._worker is not None:
            record["worker"] = self._worker
        # A policy's record has all that it was given, whether or not it has a name.
        ours = name is not None or str(event.get("log_namespace")).startswith(_OF_POLICIES)
        for key, value in event.items():
            kind = type(value)
            if _SHOWN[key] is not _Shown.AS_IT_IS:
                if _SHOWN[key] is _Shown.HIDDEN:
                    record[key] = "[not logged]"
            elif (
                value is None
                or kind is int
                or (kind is str and len(value) <= MAX_VALUE)
                or (kind is float and value - value == 0.0)  # no infinity, and no NaN
            ):
                # Nearly every value, as it is: `_plain` would come to the same in ten times as long.
                record[key] = value
            elif kind is list and ours:
                record[key] = [
                    each if type(each) is str and len(each) <= MAX_VALUE else _plain(each, 1)
                    for each in value[:_MAX_ELEMENTS]
                ]
            elif ours or isinstance(value, str | int | float):
                record[key] = _plain(value)
        failure = event.get("log_failure")
        if failure is not None:
            _describe(failure, record)
        return record

    def _timestamp(self, at: float | None) -> str:
        # RFC 3339 §5.6
        at = self._wall() if at is None else at
        second = int(at)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((at - second) * 1000):03d}Z"

    def _plain_record(self, level: str, name: str, message: str) -> Record:
        return {
            "time": self._timestamp(None),
            "level": level,
            "event": name,
            "node_id": self._node_id,
            "message": message,
        }

    def _lost_notice(self, count: int) -> str:
        record = self._plain_record("warn", "log.lines_lost", "the log's reader did not take these lines")
        record["count"] = count
        return (_PRIORITIES["warn"] if self.journald else "") + self._render(record)


def _is_explained(event: LogEvent) -> bool:
    """Whether it is about a conversation that was never held."""
    session_id = event.get("session_id")
    return type(session_id) is str and session_id.startswith(EXPLAINED)


class _EncodedKeys(dict[str, str]):
    """The keys of records as JSON has them; those of policies may be any number, and are not all kept."""

    def __missing__(self, key: str) -> str:
        encoded = f"{encode_basestring_ascii(key)}:"
        if len(self) < _MOST_KEYS:
            self[key] = encoded
        return encoded


_KEYS = _EncodedKeys()


def render_json(record: Record) -> str:
    """The record as one JSON object on one line."""
    # Nearly every value is a text, an integer or nothing: a third of the time of one call for the whole.
    line = ""
    for key, value in record.items():
        kind = type(value)
        if kind is str:
            value = encode_basestring_ascii(value)  # noqa: PLW2901
        elif kind is not int:
            value = "null" if value is None else json_text(value)  # noqa: PLW2901
        line += f",{_KEYS[key]}{value}"
    return f"{{{line[1:]}}}\n"


def render_text(record: Record) -> str:
    """The record for human eyes: time, level, event, sentence, ``key=value``; a traceback below."""
    return f"{record['time']} {record['level']:<5} {_text_fields(record)}"


def render_for_journald(record: Record) -> str:
    """As text, without what journald knows itself; what would be a second line is on the first."""
    return f"{_text_fields(record, one_line=True)}"


def is_journal(stream: TextStream, environ: Mapping[str, str]) -> bool:
    """Whether ``stream`` is the one that systemd connected to journald (``JOURNAL_STREAM``: device:inode)."""
    fileno = getattr(stream, "fileno", None)
    if fileno is None or "JOURNAL_STREAM" not in environ:
        return False
    try:
        status = os.fstat(fileno())
    except (OSError, ValueError):
        return False
    return environ["JOURNAL_STREAM"] == f"{status.st_dev}:{status.st_ino}"


def _text_fields(record: Record, one_line: bool = False) -> str:
    words = [_printable(record["event"]), _printable(record["message"])]
    traceback = ""
    for key, value in record.items():
        if key == "traceback" and not one_line:
            traceback = "".join(f"    {_printable(line)}\n" for line in value.splitlines())
        elif value is not None and key not in ("time", "level", "event", "node_id", "message"):
            words.append(f"{_printable(key)}={_word(value)}")
    return " ".join(words) + "\n" + traceback


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json_text(value)
    if not text.isprintable():
        return json_text(text)
    if isinstance(value, str) and (not text or any(char in text for char in ' "=\\')):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _printable(text: str) -> str:
    return text if text.isprintable() else json_text(text)[1:-1]


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    name: str = level.name if level is not None else "info"
    if name == "info" and "event" not in event and _is_noise(event):
        return "debug"
    return name


def _is_noise(event: LogEvent) -> bool:
    """Whether this is Twisted saying what Elemta says better: factories and ports that come and go."""
    if "eventType" in event:
        return True
    text = event.get("log_text") or event.get("log_format") or ""
    return text.startswith(_NOISE) or text.endswith(" Closed)") or _STARTING_ON.match(text) is not None


def _event_name(event: LogEvent) -> str:
    namespace = event.get("log_namespace") or "log_legacy"
    return "twisted" if namespace.startswith(("log_legacy", "twisted.")) else _text(namespace)


def _message(event: LogEvent) -> str:
    template = event.get("log_format")
    if isinstance(template, str) and "{" not in template:
        return template
    return _cut(formatEvent(event).strip(), MAX_VALUE) or _cut(safe_str(event.get("why") or ""), MAX_VALUE)


def _describe(failure: Failure, record: Record) -> None:
    record["error"] = _cut(f"{type(failure.value).__name__}: {safe_str(failure.value)}", MAX_VALUE)
    traceback = failure.getTraceback()
    record["traceback"] = traceback[-4 * MAX_VALUE :]  # its end is what went wrong


def _plain(value: Any, depth: int = 0) -> Any:
    """``value`` as something JSON can hold, bounded."""
    if isinstance(value, (str, bytes, bytearray)) or depth == _MAX_DEPTH:
        return value if type(value) is str and len(value) <= MAX_VALUE else _text(value)
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth + 1)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {_text(key): _plain(value[key], depth + 1) for key in list(value)[:_MAX_ELEMENTS]}
    if isinstance(value, Collection):
        return [_plain(element, depth + 1) for element in list(value)[:_MAX_ELEMENTS]]
    # JSON has no infinity and no NaN.
    return value if isinstance(value, float) and abs(value) < float("inf") else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _cut(str(value), MAX_VALUE)
    if isinstance(value, bytes | bytearray):
        return _cut(bytes(value[: MAX_VALUE + 1]).decode("utf-8", "backslashreplace"), MAX_VALUE)
    return _cut(safe_str(value), MAX_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"
