"""The stream of events: to readers that keep up, bounded for those that do not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from elemta.console.events import LOOK_SECONDS, MOST_STREAMS, STALLED_SECONDS
from elemta.ops.admin_calls import CallTable
from tests.support.console import HOST, TOKENS, Console, ReadersTransport

REQUEST = (
    f"GET /v1/events HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {TOKENS['viewer']}\r\n\r\n".encode()
)


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path, CallTable())


def listen(console: Console) -> ReadersTransport:
    transport = console.connect(REQUEST)
    for _ in range(5):
        console.clock.advance(0)
    return transport


def events(transport: ReadersTransport) -> int:
    return transport.value().count(b"event: state\ndata: {")


def test_a_reader_gets_the_state_each_second(console: Console) -> None:
    transport = listen(console)
    assert b"content-type: text/event-stream" in transport.value().lower()
    before = events(transport)
    for _ in range(5):
        console.clock.advance(1)
    assert events(transport) == before + 5


def test_the_stream_is_refused_as_any_call_is(console: Console) -> None:
    reply = console.ask("POST", "/v1/events", token=TOKENS["viewer"])
    assert (reply.status, reply.headers["allow"]) == (405, "GET")
    assert reply.json == {"error": "only GET is for this path", "hint": "GET"}


def test_what_a_reader_does_not_read_is_dropped(console: Console) -> None:
    transport = listen(console)
    assert transport.bufferSize < 8192
    transport.producer.pauseProducing()
    held = len(transport.value())
    for _ in range(30):
        console.clock.advance(1)
    assert len(transport.value()) == held
    transport.producer.resumeProducing()
    before = events(transport)
    console.clock.advance(1)
    assert events(transport) == before + 1


def test_a_reader_that_stands_still_is_disconnected(console: Console) -> None:
    transport = listen(console)
    transport.producer.pauseProducing()
    for _ in range(int(STALLED_SECONDS) + 3):
        console.clock.advance(1)
    assert transport.aborted


def test_readers_are_bounded_and_the_look_ends_with_them(console: Console) -> None:
    looks: list[float] = []

    async def look() -> Any:
        looks.append(console.clock.seconds())
        return {"state": "serving"}

    console.site.open(console.calls, console.access, console.runtime.wall, look)
    readers = [listen(console) for _ in range(MOST_STREAMS)]
    assert console.ask("GET", "/v1/events", token=TOKENS["viewer"]).status == 503
    seen = len(looks)
    console.clock.advance(1)
    assert len(looks) == seen + 1
    for transport in readers:
        transport.protocol.connectionLost(Failure(ConnectionDone()))
    console.clock.advance(1)
    console.clock.advance(1)
    seen = len(looks)
    console.clock.advance(10)
    assert len(looks) == seen
    assert console.connect(REQUEST)


def test_a_stream_ends_with_the_token_of_its_reader(console: Console) -> None:
    transport = listen(console)
    console.path.write_text("")
    for _ in range(15):
        console.clock.advance(1)
    assert transport.value().endswith(b"0\r\n\r\n")


def test_a_stream_ends_with_the_token_of_a_reader_that_reads_nothing(console: Console) -> None:
    transport = listen(console)
    transport.producer.pauseProducing()
    console.path.write_text("")
    for _ in range(15):
        console.clock.advance(1)
    assert transport.aborted


def test_a_stream_ends_with_its_token_also_where_the_state_is_not_there(console: Console) -> None:
    async def look() -> Any:
        return await Deferred()

    console.site.open(console.calls, console.access, console.runtime.wall, look)
    reader = listen(console)
    console.path.write_text("")
    for _ in range(15):
        console.clock.advance(1)
    assert reader.value().endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("answer", [Deferred, partial(fail, OSError())], ids=["late", "failed"])
def test_a_state_that_cannot_be_read_leaves_the_streams_going(console: Console, answer: Any) -> None:
    async def look() -> Any:
        return await answer() if broken else {"state": "serving"}

    broken = True
    console.site.open(console.calls, console.access, console.runtime.wall, look)
    reader, stalled = listen(console), listen(console)
    stalled.producer.pauseProducing()
    for _ in range(int(STALLED_SECONDS + 3 * LOOK_SECONDS)):
        console.clock.advance(1)
    assert stalled.aborted
    assert events(reader) == 0
    assert b": the state could not be read\n\n" in reader.value()
    broken = False
    for _ in range(int(LOOK_SECONDS) + 2):
        console.clock.advance(1)
    assert events(reader) > 0
