"""The channel between the supervisor and one worker: questions, answers and notices over a stream socket.

Both ends are the same class::

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = Channel(reactor, "worker 1")
    channel.handle("limits", answer)             # bytes -> bytes, or a Deferred of them
    channel.handle_notice("state", take)         # bytes -> anything
    channel.on_close(gone)                       # called once, with the reason as a text
    open_channel(reactor, channel, ours)         # takes the socket; the caller must not use it any more

    answer = await channel.ask("limits", body, seconds=0.05)
    channel.tell("state", body)

Bodies are octets; what they mean is agreed by the two handlers of a name. Handlers are given before the
channel is opened, or in the same turn of the reactor. What is sent before it is open waits for that, within
the same bounds. Nothing is authenticated: the socket has no name, and only the two processes have it. All the
same, an end that breaks the rules costs the channel and not the process: the channel closes, with a log
record.

Bounds: a frame has :data:`~elemta.workers.frames.MAX_FRAME` octets, :data:`MOST_UNDER_WAY` questions may be
unanswered, those whose time is up included, and :data:`MOST_UNSENT` octets may wait for an end that does not
read. Beyond that a question fails with :class:`~elemta.errors.ChannelBusy` at once. An answer or a notice
that finds no space closes the channel: to lose one of them alone would leave the two ends apart in what they
know.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorSocket, IReactorTime
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.deferred_value import MaybeDeferred, handled
from elemta.errors import ChannelBusy, ChannelClosed, ChannelRefused, ChannelTimeout
from elemta.workers.frames import Frame, FrameError, FrameKind, FrameReader

_log = Logger()

MOST_UNDER_WAY = 20_000
"""Questions of one end that may be unanswered at a time."""

MOST_UNSENT = 16 * 1024 * 1024
"""Octets that may wait here for an end that does not read."""

UNKNOWN = "unknown"
"""The code of a refusal: the other end has no handler of this name."""

INTERNAL = "internal"
"""The code of a refusal: the handler failed, which the other end has logged."""

QuestionHandler: TypeAlias = Callable[[bytes], MaybeDeferred[bytes]]
NoticeHandler: TypeAlias = Callable[[bytes], object]

_LAST_NUMBER = 2**32 - 1


class _Question:
    """One that is not answered. It stays after its time is up, or its caller has gone: an answer may come."""

    __slots__ = ("_answer", "awaited", "timer")

    def __init__(self) -> None:
        self.awaited: Deferred[bytes] = Deferred(self._cancelled)
        self._answer: Deferred[bytes] | None = self.awaited
        self.timer: IDelayedCall | None = None

    def _cancelled(self, _answer: Deferred[bytes]) -> None:
        self.leave()

    def leave(self) -> Deferred[bytes] | None:
        """The caller's Deferred, once; from then on nothing is waited for."""
        answer, self._answer = self._answer, None
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()
        return answer


@implementer(IPushProducer)
class Channel(Protocol):
    """One end. See the module's words. ``name`` is what the log calls the other end."""

    def __init__(self, clock: IReactorTime, name: str) -> None:
        self.name = name
        self._clock = clock
        self._reader = FrameReader()
        self._questions: dict[int, _Question] = {}
        self._answering: set[int] = set()
        self._number = 0
        self._handlers: dict[str, QuestionHandler] = {}
        self._notice_handlers: dict[str, NoticeHandler] = {}
        self._close_callbacks: list[Callable[[str], object]] = []
        self._unsent: list[bytes] = []
        self._unsent_octets = 0
        self._writes = False  # the transport takes more now
        self._reason: str | None = None

    # For the two sides

    @property
    def is_open(self) -> bool:
        """Whether it is not closed. It counts as open before it is."""
        return self._reason is None

    @property
    def under_way(self) -> int:
        """Questions of this end that have no answer yet, those whose time is up included."""
        return len(self._questions)

    @property
    def unsent(self) -> int:
        """Octets that wait here for the other end to read."""
        return self._unsent_octets

    def handle(self, name: str, handler: QuestionHandler) -> None:
        """Answer the questions of this name. A handler that raises ChannelRefused refuses with its code.

        One that raises :class:`~elemta.workers.frames.FrameError` at once says that the other end broke the
        rules: the channel closes.
        """
        self._handlers[name] = handler

    def handle_notice(self, name: str, handler: NoticeHandler) -> None:
        """Take the notices of this name. What it raises, or fails with, is logged."""
        self._notice_handlers[name] = handler

    def on_close(self, callback: Callable[[str], object]) -> None:
        """Have it called once, when the channel is closed, with the reason; at once where it is."""
        if self._reason is None:
            self._close_callbacks.append(callback)
        else:
            callback(self._reason)

    def ask(self, name: str, body: bytes, seconds: float) -> Deferred[bytes]:
        """Ask the other end. Fails with a :class:`~elemta.errors.ChannelError`, in so many seconds at most.

        To cancel the Deferred stops the wait; the other end is not told.
        """
        if self._reason is not None:
            return fail(ChannelClosed(self._reason))
        if len(self._questions) >= MOST_UNDER_WAY or self._unsent_octets + len(body) > MOST_UNSENT:
            return fail(ChannelBusy(f"too much is under way to {self.name}"))
        number = self._next_number()
        try:
            data = Frame(FrameKind.QUESTION, number, name, body).encode()
        except FrameError as error:
            return fail(ChannelBusy(str(error)))
        question = self._questions[number] = _Question()
        question.timer = self._clock.callLater(seconds, self._late, question, seconds)
        answer = question.awaited
        self._write(data)
        return answer

    def tell(self, name: str, body: bytes = b"") -> None:
        """Send a notice; nothing where the channel is closed. Raises FrameError for one that is too long."""
        if self._reason is None:
            self._write(Frame(FrameKind.NOTICE, 0, name, body).encode())

    def close(self, reason: str = "it was closed here") -> None:
        """Close it; questions that wait fail with ChannelClosed. Again: nothing."""
        if self._reason is not None:
            return
        self._reason = reason
        self._leave_transport()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            answer = question.leave()
            if answer is not None:
                answer.errback(ChannelClosed(reason))
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            try:
                callback(reason)
            except Exception:
                # Each of the others has to hear of it, too.
                _log.failure("the end of a channel was not dealt with", event="channel.internal_error")

    def _leave_transport(self) -> None:
        """End the connection, after what the transport has taken if the other end reads."""
        transport: Any = self.transport
        if transport is not None and self._writes:
            transport.unregisterProducer()
            transport.loseConnection()
        elif transport is not None:
            transport.abortConnection()
        self._writes = False
        self._unsent, self._unsent_octets = [], 0

    # The transport

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if self._reason is not None:
            transport.abortConnection()
            return
        transport.registerProducer(self, True)
        self.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        try:
            for frame in self._reader.receive(data):
                if self._reason is not None:
                    return
                self._take(frame)
        except FrameError as error:
            self.break_off(str(error))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.close(f"the other end is gone: {reason.getErrorMessage()}")

    def pauseProducing(self) -> None:
        """The other end does not read at the moment."""
        self._writes = False

    def resumeProducing(self) -> None:
        """It reads again."""
        self._writes = True
        unsent, self._unsent, self._unsent_octets = self._unsent, [], 0
        if unsent:
            transport: Any = self.transport
            transport.write(b"".join(unsent))

    def stopProducing(self) -> None:
        """The connection is lost; connectionLost follows."""

    # Frames

    def _write(self, data: bytes) -> None:
        if self._writes:
            transport: Any = self.transport
            transport.write(data)
            return
        self._unsent.append(data)
        self._unsent_octets += len(data)
        if self._unsent_octets > MOST_UNSENT:
            self.break_off(f"the other end leaves more than {MOST_UNSENT} octets unread")

    def _next_number(self) -> int:
        number = self._number
        while True:
            number = number + 1 if number < _LAST_NUMBER else 1
            if number not in self._questions:
                self._number = number
                return number

    def _late(self, question: _Question, seconds: float) -> None:
        answer = question.leave()
        if answer is not None:
            answer.errback(ChannelTimeout(f"{self.name} did not answer within {seconds:g} s"))

    def _take(self, frame: Frame) -> None:
        if frame.kind is FrameKind.QUESTION:
            self._take_question(frame)
        elif frame.kind is FrameKind.NOTICE:
            self._take_notice(frame)
        else:
            self._take_answer(frame)

    def _take_answer(self, frame: Frame) -> None:
        question = self._questions.pop(frame.number, None)
        if question is None:
            raise FrameError("an answer to no question")
        answer = question.leave()
        if answer is None:
            return
        if frame.kind is FrameKind.ANSWER:
            answer.callback(frame.body)
        else:
            answer.errback(ChannelRefused(frame.name, frame.body.decode("utf-8", "replace")))

    def _take_question(self, frame: Frame) -> None:
        number = frame.number
        if number in self._answering:
            raise FrameError(f"the question {number} was asked twice")
        if len(self._answering) >= MOST_UNDER_WAY:
            raise FrameError(f"more than {MOST_UNDER_WAY} questions at a time")
        handler = self._handlers.get(frame.name)
        if handler is None:
            self._send(Frame(FrameKind.REFUSAL, number, UNKNOWN, b"nothing here answers this"))
            return
        self._answering.add(number)
        try:
            handled(handler(frame.body), self._answer, self._refuse, number, frame.name)
        except FrameError:
            raise
        except Exception:
            # It fails one question, as a Deferred of the handler would; what it is goes into the log.
            self._refuse(Failure(), number, frame.name)

    def _answer(self, body: bytes, number: int, _name: str) -> None:
        self._answering.discard(number)
        self._send(Frame(FrameKind.ANSWER, number, "", body))

    def _refuse(self, failure: Failure, number: int, name: str) -> None:
        self._answering.discard(number)
        error = failure.value
        code = error.code if isinstance(error, ChannelRefused) else INTERNAL
        text = str(error) if isinstance(error, ChannelRefused) else "an internal error, see the log"
        if code == INTERNAL:
            _log.failure(
                "a question failed", failure, event="channel.question_failed", peer=self.name, about=name
            )
        self._send(Frame(FrameKind.REFUSAL, number, code, text.encode()[:1000]))

    def _send(self, frame: Frame) -> None:
        if self._reason is not None:
            return
        try:
            data = frame.encode()
        except FrameError as error:
            data = Frame(FrameKind.REFUSAL, frame.number, INTERNAL, str(error).encode()).encode()
        self._write(data)

    def _take_notice(self, frame: Frame) -> None:
        handler = self._notice_handlers.get(frame.name)
        if handler is None:
            _log.warn(
                "a notice has no taker", event="channel.notice_unknown", peer=self.name, about=frame.name
            )
            return
        try:
            handled(handler(frame.body), _taken, self._notice_failed, frame.name)
        except FrameError:
            raise
        except Exception:
            # As above: logged, and the channel goes on.
            self._notice_failed(Failure(), frame.name)

    def _notice_failed(self, failure: Failure, name: str) -> None:
        _log.failure("a notice failed", failure, event="channel.notice_failed", peer=self.name, about=name)

    def break_off(self, reason: str) -> None:
        """The other end broke the rules: close, with a record. For handlers that see it later."""
        if self._reason is not None:
            return
        _log.error(
            "a channel is closed, because of what came over it",
            event="channel.broken",
            peer=self.name,
            reason=reason,
        )
        self.close(reason)


def _taken(_result: object, _name: str) -> None:
    """A notice has no answer."""


def open_channel(reactor: IReactorSocket, channel: Channel, end: socket.socket | int) -> None:
    """Let the channel speak over one end of a socket pair, or its file descriptor, which it takes over.

    Raises OSError where it is no stream socket of the Unix domain.
    """
    mine = end if isinstance(end, socket.socket) else socket.socket(fileno=end)
    try:
        mine.setblocking(False)
        # The reactor duplicates the descriptor.
        reactor.adoptStreamConnection(mine.fileno(), socket.AF_UNIX, _ChannelFactory(channel))
    finally:
        mine.close()


class _ChannelFactory(ServerFactory):
    noisy = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: object) -> Channel:  # noqa: ARG002
        return self._channel
