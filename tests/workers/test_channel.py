"""The channel of a worker: questions, answers and notices; its bounds; what a hostile end brings about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from elemta.errors import ChannelBusy, ChannelClosed, ChannelRefused, ChannelTimeout
from elemta.workers import channel as channel_module
from elemta.workers.channel import INTERNAL, UNKNOWN, Channel
from elemta.workers.frames import MAX_FRAME, Frame, FrameError, FrameKind, FrameReader
from tests.support.channels import ChannelPair, End, socket_channels


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def named(events: list[LogEvent]) -> list[str]:
    return [event["event"] for event in events if str(event.get("event", "")).startswith("channel.")]


@pytest.fixture
def pair() -> ChannelPair:
    return ChannelPair(Clock()).open()


def failure_of(answer: Deferred[Any]) -> BaseException:
    failed: list[BaseException] = []
    answer.addErrback(lambda failure: failed.append(failure.value))
    assert failed, "it has not failed"
    return failed[0]


def echo(body: bytes) -> bytes:
    return body


# Questions


@pytest.mark.parametrize("piece", [0, 1, 7])
def test_both_ends_ask_and_answer(pair: ChannelPair, piece: int) -> None:
    pair.supervisor.handle("echo", echo)
    pair.worker.handle("size", lambda body: b"%d" % len(body))
    answers: list[bytes] = []
    for number in range(3):
        pair.worker.ask("echo", b"%d" % number * number, 1).addCallback(answers.append)
        pair.supervisor.ask("size", b"x" * number, 1).addCallback(answers.append)
    pair.carry(piece)
    assert sorted(answers) == [b"", b"0", b"1", b"1", b"2", b"22"]
    assert pair.worker.under_way == pair.supervisor.under_way == 0


def test_answers_come_in_any_order(pair: ChannelPair) -> None:
    waiting: list[Deferred[bytes]] = []

    def later(_: bytes) -> Deferred[bytes]:
        waiting.append(Deferred())
        return waiting[-1]

    pair.supervisor.handle("later", later)
    answers: list[tuple[str, bytes]] = []
    for name in ("first", "second"):
        pair.worker.ask("later", b"", 1).addCallback(lambda body, name: answers.append((name, body)), name)
    pair.carry()
    for number in (1, 0):
        waiting[number].callback(b"%d" % number)
    pair.carry()
    assert answers == [("second", b"1"), ("first", b"0")]


def test_a_refusal_has_its_code_and_text(pair: ChannelPair) -> None:
    def refuse(_: bytes) -> bytes:
        raise ChannelRefused("full", "there is no space")

    pair.supervisor.handle("refuse", refuse)
    asked = pair.worker.ask("refuse", b"", 1)
    unknown = pair.worker.ask("nothing", b"", 1)
    pair.carry()
    error = failure_of(asked)
    assert isinstance(error, ChannelRefused)
    assert (error.code, str(error)) == ("full", "there is no space")
    error = failure_of(unknown)
    assert isinstance(error, ChannelRefused)
    assert error.code == UNKNOWN


@pytest.mark.parametrize("at_once", [True, False])
def test_a_handler_that_fails_costs_its_answer_and_no_more(
    pair: ChannelPair, logged: list[LogEvent], at_once: bool
) -> None:
    waiting: Deferred[bytes] = Deferred()

    def fail(_: bytes) -> Deferred[bytes]:
        if at_once:
            raise RuntimeError("secret")
        return waiting

    pair.supervisor.handle("fail", fail)
    pair.supervisor.handle("echo", echo)
    asked = pair.worker.ask("fail", b"", 1)
    pair.carry()
    if not at_once:
        waiting.errback(RuntimeError("secret"))
        pair.carry()
    error = failure_of(asked)
    assert isinstance(error, ChannelRefused)
    assert error.code == INTERNAL
    assert "secret" not in str(error)
    assert named(logged) == ["channel.question_failed"]
    answers: list[bytes] = []
    pair.worker.ask("echo", b"on", 1).addCallback(answers.append)
    pair.carry()
    assert answers == [b"on"]


def test_no_answer_in_time_fails_and_a_late_one_is_dropped() -> None:
    clock = Clock()
    pair = ChannelPair(clock).open()
    waiting: list[Deferred[bytes]] = []
    pair.supervisor.handle("later", lambda _: waiting.append(Deferred()) or waiting[-1])
    asked = pair.worker.ask("later", b"", 0.05)
    pair.carry()
    clock.advance(0.06)
    assert isinstance(failure_of(asked), ChannelTimeout)
    # It counts against the bound until the answer is there.
    assert pair.worker.under_way == 1
    waiting[0].callback(b"late")
    pair.carry()
    assert pair.worker.under_way == 0
    assert pair.worker.is_open
    assert not clock.getDelayedCalls()


def test_a_wait_can_be_cancelled(pair: ChannelPair) -> None:
    pair.supervisor.handle("echo", echo)
    asked = pair.worker.ask("echo", b"", 1)
    asked.cancel()
    assert isinstance(failure_of(asked), CancelledError)
    pair.carry()
    assert pair.worker.is_open
    assert pair.worker.under_way == 0


# Notices


def test_notices_arrive_in_order_and_a_failed_one_stops_none(
    pair: ChannelPair, logged: list[LogEvent]
) -> None:
    taken: list[bytes] = []

    def take(body: bytes) -> None:
        taken.append(body)
        if body == b"2":
            raise RuntimeError

    pair.worker.handle_notice("number", take)
    for number in range(4):
        pair.supervisor.tell("number", b"%d" % number)
    pair.supervisor.tell("nothing")
    pair.carry(3)
    assert taken == [b"0", b"1", b"2", b"3"]
    assert named(logged) == ["channel.notice_failed", "channel.notice_unknown"]


# The end


def test_the_end_of_one_side_fails_what_the_other_waits_for(pair: ChannelPair) -> None:
    closed: list[str] = []
    pair.supervisor.handle("later", lambda _: Deferred())
    pair.worker.on_close(closed.append)
    asked = pair.worker.ask("later", b"", 1)
    pair.carry()
    pair.supervisor.close()
    pair.carry()
    assert isinstance(failure_of(asked), ChannelClosed)
    assert len(closed) == 1
    assert not pair.worker.is_open
    assert isinstance(failure_of(pair.worker.ask("later", b"", 1)), ChannelClosed)
    pair.worker.tell("nothing")
    pair.worker.on_close(closed.append)
    pair.worker.close()
    assert len(closed) == 2


# Bounds


def test_a_question_above_the_number_under_way_fails_at_once(
    pair: ChannelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MOST_UNDER_WAY", 3)
    pair.supervisor.handle("later", lambda _: Deferred())
    asked = [pair.worker.ask("later", b"", 1) for _ in range(4)]
    assert isinstance(failure_of(asked[3]), ChannelBusy)
    pair.carry()
    assert pair.worker.is_open
    pair.worker.close()
    assert all(isinstance(failure_of(each), ChannelClosed) for each in asked[:3])


def test_an_end_that_does_not_read_costs_a_bounded_memory(
    pair: ChannelPair, monkeypatch: pytest.MonkeyPatch, logged: list[LogEvent]
) -> None:
    monkeypatch.setattr(channel_module, "MOST_UNSENT", 1000)
    pair.supervisor.handle("echo", echo)
    pair.worker.pauseProducing()
    asked = [pair.worker.ask("echo", b"x" * 400, 1) for _ in range(3)]
    assert isinstance(failure_of(asked[2]), ChannelBusy)
    pair.worker.resumeProducing()
    pair.carry()
    assert all(each.called for each in asked)
    pair.worker.pauseProducing()
    for _ in range(3):
        pair.worker.tell("state", b"x" * 400)
    assert not pair.worker.is_open
    assert named(logged) == ["channel.broken"]


def test_what_is_too_long_for_a_frame_is_not_sent(pair: ChannelPair) -> None:
    pair.supervisor.handle("long", lambda _: b"x" * (MAX_FRAME + 1))
    assert isinstance(failure_of(pair.worker.ask("long", b"x" * MAX_FRAME, 1)), ChannelBusy)
    with pytest.raises(FrameError):
        pair.worker.tell("long", b"x" * MAX_FRAME)
    asked = pair.worker.ask("long", b"", 1)
    pair.carry()
    assert isinstance(failure_of(asked), ChannelRefused)
    assert pair.worker.is_open


# Hostile and garbled frames

_QUESTION = Frame(FrameKind.QUESTION, 7, "later", b"").encode()
_GARBLED = {
    "a length above the bound": b"\xff\xff\xff\xff",
    "a length below a frame's": b"\0\0\0\x01\x01",
    "an unknown kind": b"\0\0\0\x07\x09\0\0\0\x01\x01a",
    "a name longer than its frame": b"\0\0\0\x07\x01\0\0\0\x01\x09a",
    "a question without a name": b"\0\0\0\x06\x01\0\0\0\x01\0",
    "a question without a number": b"\0\0\0\x07\x01\0\0\0\0\x01a",
    "a notice with a number": b"\0\0\0\x07\x02\0\0\0\x01\x01a",
    "an answer with a name": b"\0\0\0\x07\x03\0\0\0\x01\x01a",
    "a name with a space": b"\0\0\0\x07\x01\0\0\0\x01\x01 ",
    "a name that is no ASCII": b"\0\0\0\x07\x01\0\0\0\x01\x01\xff",
    "an answer to no question": Frame(FrameKind.ANSWER, 99, "", b"").encode(),
    "a question that is asked twice": _QUESTION + _QUESTION,
    "another protocol": b"EHLO mx.example.org\r\n",
}


@pytest.mark.parametrize("data", _GARBLED.values(), ids=_GARBLED)
def test_a_garbled_frame_closes_the_channel_with_a_record(
    pair: ChannelPair, logged: list[LogEvent], data: bytes
) -> None:
    pair.supervisor.handle("later", lambda _: Deferred())
    closed: list[str] = []
    pair.supervisor.on_close(closed.append)
    asked = pair.supervisor.ask("later", b"", 1)
    pair.supervisor.dataReceived(data)
    pair.supervisor.dataReceived(_QUESTION)
    assert len(closed) == 1
    assert named(logged) == ["channel.broken"]
    assert pair.ends[0].ended
    assert isinstance(failure_of(asked), ChannelClosed)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_no_octets_make_the_channel_raise_or_grow(pieces: list[bytes]) -> None:
    channel = Channel(Clock(), "a hostile worker")
    channel.handle("a", echo)
    channel.makeConnection(End())
    for piece in pieces:
        channel.dataReceived(piece)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(FrameKind), st.integers(1, 2**32 - 1), st.binary(max_size=30)), max_size=6
    ),
    st.integers(1, 50),
)
def test_frames_are_read_as_they_were_written(
    contents: list[tuple[FrameKind, int, bytes]], piece: int
) -> None:
    frames = [
        Frame(
            kind,
            0 if kind is FrameKind.NOTICE else number,
            "" if kind is FrameKind.ANSWER else "a-name.2",
            body,
        )
        for kind, number, body in contents
    ]
    data = b"".join(frame.encode() for frame in frames)
    reader, read = FrameReader(), []
    for start in range(0, len(data), piece):
        read += reader.receive(data[start : start + piece])
    assert read == frames
    assert reader.kept == 0


# A real socket pair


@ensureDeferred
async def test_over_a_real_socket_pair() -> None:
    from twisted.internet import reactor

    supervisor, worker = socket_channels(reactor)
    supervisor.handle("echo", echo)
    gone: Deferred[str] = Deferred()
    worker.on_close(gone.callback)
    bodies = [b"x" * (number * 50_000) for number in range(20)]
    # What is asked before the connection is made waits for it.
    answers = await gatherResults([worker.ask("echo", body, 30) for body in bodies])
    assert answers == bodies
    notices: Deferred[bytes] = Deferred()
    worker.handle_notice("last", notices.callback)
    supervisor.tell("last", b"words")
    supervisor.close()
    # What was written before the end arrives.
    assert await notices == b"words"
    assert "gone" in await gone
