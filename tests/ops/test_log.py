"""Log records: one event, one line, whatever is in it."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from elemta.address import Address
from elemta.config import LogFormat
from elemta.ops import log as module
from elemta.ops.log import MAX_VALUE
from elemta.ops.log_writer import LogWriter
from elemta.outcome import Status
from elemta.runtime.fast_logger import FastLogger

observer = partial(module.observer, wall=time.time)


class Book:
    """A log on paper: what was logged through ``logger``, as text and as records."""

    def __init__(
        self, form: str = "json", level: str = "info", environ: dict[str, str] | None = None
    ) -> None:
        self.stream = io.StringIO()
        self.observer = observer(
            format=form, level=level, node_id="mx1", stream=self.stream, environ=environ or {}
        )
        self.logger = Logger(namespace="elemta.test", observer=self.observer)

    @property
    def lines(self) -> list[str]:
        text = self.stream.getvalue()
        assert text == "" or text.endswith("\n")
        return text.split("\n")[:-1]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def test_a_record_has_its_fields_in_order_and_the_keywords_after_them() -> None:
    book = Book()
    book.logger.info("message queued", event="message.queued", session_id="s1", queue_id="q1", size=12)
    (line,) = book.lines
    assert list(json.loads(line)) == [
        "time",
        "level",
        "event",
        "node_id",
        "message",
        "session_id",
        "queue_id",
        "size",
    ]
    (record,) = book.records
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record == {
        "level": "info",
        "event": "message.queued",
        "node_id": "mx1",
        "message": "message queued",
        "session_id": "s1",
        "queue_id": "q1",
        "size": 12,
    }


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1700000000.9996, "2023-11-14T22:13:20.999Z"),
        (1700000001.25, "2023-11-14T22:13:21.250Z"),
    ],
)
def test_the_time_is_utc_with_milliseconds_that_never_round_into_the_next_second(
    at: float, text: str
) -> None:
    book = Book()
    book.observer({"log_time": at, "log_level": LogLevel.info, "log_format": "x", "event": "x"})
    assert book.records[0]["time"] == text


def test_values_of_every_kind_become_json() -> None:
    book = Book()
    book.logger.info(
        "values",
        event="values",
        address=Address("jos\u00e9", "example.com"),
        status=Status.DELIVERED,
        raw=b"\xff\x00ok",
        none=None,
        flag=True,
        ratio=float("nan"),
        many=[Address("a", "b.example"), 1, b"x"],
        mapping={"k": {"deep": 1}},
    )
    (record,) = book.records
    assert record["address"] == "jos\u00e9@example.com"
    assert record["status"] == "delivered"
    assert record["raw"] == "\\xff\x00ok"
    assert record["none"] is None
    assert record["flag"] is True
    assert record["ratio"] == "nan"
    assert record["many"] == ["a@b.example", 1, "x"]
    assert record["mapping"] == {"k": {"deep": 1}}


@given(st.one_of(st.text(), st.binary()), st.text())
def test_whatever_a_client_sends_a_record_is_one_line_of_ascii_and_reads_back(sent: Any, more: str) -> None:
    book = Book()
    book.logger.info("told", event="told", sent=sent, more=more)
    (line,) = book.lines
    assert line.isascii()
    assert all(char >= " " for char in line)
    assert json.loads(line)["more"] == more


@given(st.one_of(st.text(), st.binary()))
def test_in_text_format_too_a_record_is_one_printable_line(sent: Any) -> None:
    book = Book("text")
    book.logger.info("told", event="told", sent=sent)
    (line,) = book.lines
    assert line.isprintable()


def test_text_is_for_human_eyes() -> None:
    book = Book("text")
    book.logger.warn(
        "policy failed", event="policy.failed", queue_id="q1", why_not='a "b"', empty="", count=3
    )
    (line,) = book.lines
    stamp, rest = line.split(" ", 1)
    assert stamp.endswith("Z")
    assert rest == 'warn  policy.failed policy failed queue_id=q1 why_not="a \\"b\\"" empty="" count=3'


def test_a_client_can_not_forge_a_keyword_in_text() -> None:
    book = Book("text")
    book.logger.info("told", event="told", helo="x queue_id=forged")
    assert book.lines[0].endswith('helo="x queue_id=forged"')


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_record_below_the_level_is_not_written(form: str) -> None:
    book = Book(form, level="warn")
    book.logger.debug("a", event="a")
    book.logger.info("b", event="b")
    book.logger.warn("c", event="c")
    book.logger.error("d", event="d")
    book.logger.critical("e", event="e")
    assert len(book.lines) == 3


def test_level_and_format_can_be_changed_while_it_runs() -> None:
    stream = io.StringIO()
    log = observer("json", "error", "mx1", stream)
    logger = Logger(observer=log)
    logger.info("before", event="a.b")
    log.configure("text", "debug")
    logger.debug("after", event="a.b")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(" debug a.b after")


def test_records_of_connections_follow_the_level_while_it_runs() -> None:
    """A record that takes time to make is made only where the log takes it, from the next one on."""
    log = observer("json", "info", "mx1", io.StringIO())
    logger = FastLogger(observer=log)
    wanted = [logger.wants_debug]
    for level in ("debug", "warn", "debug"):
        log.configure("json", level)
        wanted.append(logger.wants_debug)
    assert wanted == [False, True, False, True]


def test_an_exception_is_one_field_with_its_traceback() -> None:
    book = Book()
    try:
        int("bad\nthing")
    except ValueError:
        book.logger.failure("it broke", event="it.broke", queue_id="q1")
    (record,) = book.records
    assert record["level"] == "critical"
    assert record["event"] == "it.broke"
    assert record["message"] == "it broke"
    assert record["error"] == "ValueError: invalid literal for int() with base 10: 'bad\\nthing'"
    assert "test_an_exception_is_one_field" in record["traceback"]
    assert record["queue_id"] == "q1"


def test_a_traceback_in_text_is_indented_so_that_it_can_not_pass_for_a_record() -> None:
    book = Book("text")
    try:
        {}["x"].__getitem__("y")
    except KeyError:
        book.logger.failure("it broke", event="it.broke")
    first, *others = book.lines
    assert " critical it.broke it broke error=" in first
    assert others
    assert all(line.startswith("    ") for line in others)


def test_a_value_is_bounded() -> None:
    book = Book()
    book.logger.info("long", event="long", text="x" * 100_000, raw=b"y" * 100_000, many=list(range(100_000)))
    (record,) = book.records
    assert len(record["text"]) == MAX_VALUE + 1
    assert len(record["raw"]) == MAX_VALUE + 1
    assert len(record["many"]) == 100


def test_a_secret_that_is_passed_by_mistake_is_not_written() -> None:
    book = Book()
    book.logger.info("login", event="login", user="u", password=b"hunter2", secret="hunter2")
    assert "hunter2" not in book.lines[0]
    assert book.records[0]["password"] == "[not logged]"


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Bottomless(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no end")


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize(
    "value", [Hostile(), Bottomless(), 10**5000, {Hostile(): 1}], ids=["words", "end", "digits", "key"]
)
def test_no_object_in_an_event_can_break_the_log(form: str, value: object) -> None:
    book = Book(form)
    book.logger.info("odd", event="odd", value=value)
    book.logger.info("odd {value}", value=value)
    book.observer({})
    assert len(book.lines) == 3


def test_a_list_that_holds_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    book = Book()
    book.logger.info("loop", event="loop", loop=loop)
    assert book.records[0]["event"] == "loop"


def test_twisteds_factories_and_ports_are_debug_and_its_errors_are_not() -> None:
    quiet, loud = Book(), Book(level="debug")
    for book in (quiet, loud):
        Logger(observer=book.observer).info("Starting factory {factory!r}", factory=Factory())
        publisher = legacy.LogPublisher(publishPublisher=LogPublisher(book.observer))
        publisher.msg("Site (TLS) is here", eventSource=book, eventType="start", protocol="Site")
        publisher.msg("Site starting on 8080")
        publisher.msg("(TCP Port 8080 Closed)")
        publisher.msg("Received SIGTERM, shutting down.")
    assert [record["message"] for record in quiet.records] == ["Received SIGTERM, shutting down."]
    assert [record["level"] for record in loud.records] == ["debug", "debug", "debug", "debug", "info"]
    assert quiet.records[0]["event"] == "twisted"
    assert set(quiet.records[0]) == {"time", "level", "event", "node_id", "message"}


def test_a_legacy_error_is_a_record_with_its_traceback() -> None:
    book = Book()
    publisher = legacy.LogPublisher(publishPublisher=LogPublisher(book.observer))
    publisher.msg(failure=Failure(ValueError("old")), why="it was old", isError=1)
    (record,) = book.records
    assert record["level"] == "critical"
    assert "it was old" in record["message"]


def test_formatted_messages_of_others_are_formatted() -> None:
    book = Book()
    book.logger.info("found {count} of {kind}", count=3, kind="x\ny", obj=object())
    (record,) = book.records
    assert record["message"] == "found 3 of x\ny"
    assert record["event"] == "elemta.test"
    assert record["count"] == 3
    assert "obj" not in record


def test_it_takes_the_values_of_the_configuration_and_is_an_observer() -> None:
    made = observer(format=LogFormat.TEXT, level="debug", node_id="n", stream=io.StringIO(), environ={})
    assert verifyObject(ILogObserver, made)


@pytest.fixture
def pipe() -> Iterator[tuple[Any, int]]:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        yield stream, read
    os.close(read)


def test_for_journald_a_line_starts_with_its_priority_and_text_has_no_time(pipe: tuple[Any, int]) -> None:
    stream, read = pipe
    status = os.fstat(stream.fileno())
    environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    text = observer("text", "debug", "mx1", stream, environ)
    record = {"log_time": 0.0, "log_format": "m", "event": "e"}
    text({**record, "log_level": LogLevel.info})
    text({**record, "log_level": LogLevel.critical, "log_failure": Failure(ValueError("x"))})
    observer("json", "debug", "mx1", stream, environ)({**record, "log_level": LogLevel.warn})
    first, second, third = os.read(read, 100_000).decode().splitlines()
    assert first == "<6>e m"
    assert second.startswith('<2>e m error="ValueError: x" traceback=')
    assert third.startswith('<4>{"time":')


def test_lines_of_a_worker_name_it_and_are_passed_on_as_they_are(pipe: tuple[Any, int]) -> None:
    stream, read = pipe
    lines = io.StringIO()
    worker = module.LogObserver(
        "json", "info", node_id="mx1", stream=lines, journald=True, wall=lambda: 0.0, worker=3
    )
    worker({"log_time": 0.0, "log_format": "m", "event": "e", "log_level": LogLevel.info})
    assert lines.getvalue().startswith("<6>{")
    assert json.loads(lines.getvalue().removeprefix("<6>"))["worker"] == 3
    observer("json", "info", "mx1", stream, {}).pass_on(lines.getvalue())
    assert os.read(read, 1000).decode() == lines.getvalue()


def test_another_stream_than_journalds_gets_no_priorities(pipe: tuple[Any, int]) -> None:
    stream, read = pipe
    out = observer("text", "info", "mx1", stream, {"JOURNAL_STREAM": "1:1"})
    out({"log_time": 0.0, "log_format": "m", "event": "e", "log_level": LogLevel.info})
    assert os.read(read, 1000).startswith(b"1970-01-01T00:00:00.000Z info  e m\n")


def test_a_reader_that_stops_reading_stops_nobody_and_is_told_what_it_missed(pipe: tuple[Any, int]) -> None:
    stream, read = pipe
    lines = LogWriter(stream, lambda count: f"lost {count}\n", limit=10_000)
    for number in range(2000):  # 200 KB into a pipe that takes 64
        lines.write(f"{number:099d}\n")
    assert 0 < lines.held <= 10_000
    got = b""
    while lines.held or b"lost" not in got:
        got += os.read(read, 100_000)
        lines.write("after\n")
    seen = got.decode().splitlines()
    (lost,) = [int(line.split()[1]) for line in seen if line.startswith("lost")]
    numbers = [int(line) for line in seen if line.isdecimal()]
    assert numbers == list(range(len(numbers)))  # whole lines, in order, none torn
    assert len(numbers) + lost >= 2000


def test_after_a_rotation_the_log_goes_on_in_the_file_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "elemta.log"
    with path.open("a", encoding="utf-8") as stream:
        log = observer("text", "info", "mx1", stream)
        logger = Logger(observer=log)
        logger.info("before", event="a.b")
        path.chmod(0o640)
        rotated = path.rename(tmp_path / "elemta.log.1")
        logger.info("between", event="a.b")
        log.reopen()
        logger.info("after", event="a.b")
    assert [line.split()[-1] for line in rotated.read_text().splitlines()] == ["before", "between"]
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["after"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_was_cut_short_by_its_rotation_has_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "elemta.log"
    with path.open("a", encoding="utf-8") as stream:
        logger = Logger(observer=observer("text", "info", "mx1", stream))
        logger.info("before", event="a.b")
        os.truncate(path, 0)
        logger.info("after", event="a.b")
    assert path.read_bytes().endswith(b" info  a.b after\n")
    assert b"\0" not in path.read_bytes()


def test_a_log_file_that_can_not_be_opened_again_goes_on_in_the_old_one(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    with (directory / "elemta.log").open("a", encoding="utf-8") as stream:
        log = observer("text", "info", "mx1", stream)
        moved = directory.rename(tmp_path / "moved")
        with pytest.raises(OSError, match="No such file"):
            log.reopen()
        Logger(observer=log).info("after", event="a.b")
    assert "after" in (moved / "elemta.log").read_text()


def test_a_standard_stream_is_not_opened_again_though_it_goes_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out"
    with path.open("ab") as binary:
        stream = io.TextIOWrapper(binary)
        binary.raw.name = "<stdout>"  # type: ignore[misc]
        assert stream.name == "<stdout>"
        log = observer("text", "info", "mx1", stream)
        log.reopen()
        Logger(observer=log).info("after", event="a.b")
        assert "after" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_stream_that_is_no_file_is_not_opened_again(pipe: tuple[Any, int]) -> None:
    stream, reader = pipe
    log = observer("text", "info", "mx1", stream)
    log.reopen()
    Logger(observer=log).info("after", event="a.b")
    assert b"after" in os.read(reader, 4096)


def test_a_reader_that_went_away_costs_lines_and_raises_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        out = observer("json", "info", "mx1", stream, {})
        for _ in range(3):
            out({"log_format": "m", "event": "e", "log_level": LogLevel.info})


def test_a_closed_stream_raises_nothing() -> None:
    book = Book()
    book.stream.close()
    book.logger.info("m", event="e")
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    out = observer("json", "info", "mx1", stream, {})
    stream.close()
    os.close(read)
    out({"log_format": "m", "event": "e", "log_level": LogLevel.info})


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("w") as stream:
        lines = LogWriter(stream, str)
        lines.write("é" * 20_000 + "\n")
        got = b""
        while not got.endswith(b"\n"):
            got += theirs.recv(100_000)
        assert got.decode() == "é" * 20_000 + "\n"


def test_logging_from_within_a_write_keeps_lines_whole(
    pipe: tuple[Any, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, read = pipe
    lines = LogWriter(stream, str)
    write, nested = os.write, []

    def write_and_log(fd: int, data: bytes) -> int:
        if not nested:
            nested.append(True)
            lines.write("from a destructor\n")
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_and_log)
    lines.write("first\n")
    assert os.read(read, 1000) == b"first\nfrom a destructor\n"


@pytest.mark.parametrize("named", [True, False])
def test_a_policys_record_has_every_keyword_that_it_was_given(named: bool) -> None:
    from ipaddress import ip_address

    book = Book()
    logger = Logger(namespace="elemta.policy.my-list", observer=book.observer)
    given: dict[str, Any] = {
        "zones": ["a.test", "b.test"],
        "scores": {"a.test": 1.5, "none": None},
        "nothing": None,
        "client_ip": ip_address("192.0.2.1"),
        "flag": False,
        "number": 3,
    }
    logger.info("listed", **given, **({"event": "my-list.listed"} if named else {}))
    (record,) = book.records
    assert {key: record[key] for key in given} == {**given, "client_ip": "192.0.2.1"}
    assert record["message"] == "listed"
