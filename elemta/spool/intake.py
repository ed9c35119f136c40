"""Taking responsibility for new messages: from the writer of a body to the transaction that has its rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, Protocol, cast

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, value_of
from elemta.envelope import Envelope, Recipient
from elemta.errors import SpoolError
from elemta.message.notice import Notice
from elemta.outcome import Outcome
from elemta.spool.bodies import Bodies, MessageWriter
from elemta.spool.content import RecentContents
from elemta.spool.group_commit import PendingOperation
from elemta.spool.operations import Batch, NewMessage, Operation, Payment
from elemta.spool.queue_id import QueueIds, known_key
from elemta.spool.queue_listeners import QueueListeners
from elemta.spool.records import MessageState, QueuedMessage, Submission
from elemta.spool.rows import encode_envelope

_PIECE = 64 * 1024
_LINE_END = re.compile(rb"\r\n|\r|\n")


class CrlfLines:
    """Makes every line end CRLF, and leaves out NUL, in whatever pieces the octets come."""

    def __init__(self) -> None:
        self._ends_in_cr = False

    def feed(self, data: bytes) -> bytes:
        """Take the next octets; give those that can be stored now."""
        if b"\0" in data:
            data = data.replace(b"\0", b"")
        if self._ends_in_cr:
            data = b"\r" + data
        self._ends_in_cr = data.endswith(b"\r")
        if self._ends_in_cr:
            data = data[:-1]
        return _LINE_END.sub(b"\r\n", data)

    def finish(self) -> bytes:
        """The end has come."""
        return b"\r\n" if self._ends_in_cr else b""


class Intake:
    """The part of a spool that gives writers for new messages, and commits what they took.

    ``submit`` puts an operation in a batch. A small body goes with its rows. A large one is synced in its
    file first.
    """

    def __init__(
        self,
        ids: QueueIds,
        bodies: Bodies,
        submit: Callable[[Operation, object], Deferred[Any]],
        listeners: QueueListeners,
        recent: RecentContents,
    ) -> None:
        #: What signs each message before it is stored.
        self.signer: MessageSigner | None = None
        #: What hears of the end of deliveries.
        self.observer: EndObserver | None = None
        self._ids = ids
        self._bodies = bodies
        self._submit = submit
        self._listeners = listeners
        self._recent = recent
        self._writers: dict[NewMessage, MessageWriter] = {}
        self._syncing = 0
        self._synced: list[Deferred[None]] = []

    def begin(self) -> MessageWriter:
        """A writer for a new message, which has its queue id at once."""
        return MessageWriter(self._ids.next(), self._bodies)

    async def rewrite(self, writer: MessageWriter, header: bytes, body: BinaryIO) -> MessageWriter:
        """A writer with another content under the same queue id: ``header``, then the rest of ``body``.

        A bare CR or LF in it becomes CRLF, and NUL goes. ``body`` is closed. SpoolError: ``body`` can't be
        read.
        """
        rewritten = MessageWriter(writer.queue_id, self._bodies)
        try:
            await writer.give_way()
            lines = CrlfLines()
            rewritten.write(header)
            while piece := await self._bodies.threads.call(body.read, _PIECE):
                rewritten.write(lines.feed(piece))
                if rewritten.congested:
                    await rewritten.when_drained()
            rewritten.write(lines.finish())
        except (OSError, ValueError) as error:
            rewritten.discard()
            raise SpoolError(f"the changed message can't be read: {error}") from error
        finally:
            body.close()
        return rewritten

    def commit(
        self,
        writer: MessageWriter,
        submission: Submission,
        *,
        pays: Notice | None = None,
        signed: bool = False,
    ) -> Deferred[Envelope]:
        """Take responsibility for a message; fires when it is on stable storage.

        A notice ``pays`` for the deliveries that it tells of, in the same transaction; where those are not
        owed any more it is not taken in: UnknownMessage. ``signed``: the policies that sign were asked.

        SpoolFull: there is no space (452). SpoolError: local trouble (451). The writer is used up either way.
        """
        signer = self.signer
        if signer is not None and signer.signs and not signed:
            return Deferred.fromCoroutine(self._commit_signed(writer, submission, pays, signer))
        refused = self._refusal() or _problem_with(writer, submission)
        if refused is not None:
            writer.discard()
            return fail(refused)
        envelope = envelope_of(writer, submission)
        operation = NewMessage(
            key=known_key(writer.queue_id),
            queue_id=writer.queue_id,
            state=MessageState.ACTIVE if submission.hold_reason is None else MessageState.HOLD,
            received_at=submission.received_at,
            size=envelope.size,
            pending=len(submission.recipients),
            hold_reason=submission.hold_reason,
            envelope=encode_envelope(submission),
            header=submission.header_block,
            content=None if writer.in_file else writer.take(),
            parts=self._listeners.planned(submission),
            hold=submission.hold,
            pays=None if pays is None else payment(pays),
            submission=submission,
        )
        self._writers[operation] = writer
        if operation.content is not None:
            return self._submit(operation, envelope)
        done: Deferred[Envelope] = Deferred()
        self._syncing += 1
        writer.finish().addCallbacks(
            self._commit_large,
            self._body_failed,
            callbackArgs=(operation, envelope, done),
            errbackArgs=(operation, done),
        )
        return done

    async def _commit_signed(
        self, writer: MessageWriter, submission: Submission, pays: Notice | None, signer: MessageSigner
    ) -> Envelope:
        """Commit a message with the fields that policies put on top of it, last of all."""
        try:
            await writer.when_drained()
            if writer.failure is None and not writer.ended:
                fields = await value_of(signer.sign(envelope_of(writer, submission), writer, submission))
                submission = replace(submission, header_block=fields + submission.header_block)
            return await self.commit(writer, submission, pays=pays, signed=True)
        except BaseException:
            writer.discard()
            raise

    def _conclude_intake(self, entries: Iterable[PendingOperation], batch: Batch) -> None:
        """Let go of the writers of a batch, and tell of the active messages that are on stable storage."""
        for entry in entries:
            operation = entry.operation
            if not isinstance(operation, NewMessage):
                continue
            writer = self._writers.pop(operation, None)
            if writer is None:
                continue  # it was dealt with before something broke
            writer.release()
            if operation.state is MessageState.ACTIVE and operation not in batch.errors:
                if operation.content is not None and self._listeners.committed:
                    self._recent.add(operation.queue_id, operation.header, operation.content)
                self._listeners.notify_committed(operation, cast(Envelope, entry.value))

    def _refusal(self) -> SpoolError | None:
        """Why nothing new is taken now."""
        raise NotImplementedError

    async def _close_intake(self) -> None:
        """Let bodies that sync get their place in a batch, and give up those that are still written."""
        while self._syncing:
            synced: Deferred[None] = Deferred()
            self._synced.append(synced)
            await synced
        for writer in tuple(self._bodies.writers):
            writer.discard()

    def _commit_large(
        self, _: None, operation: NewMessage, envelope: Envelope, done: Deferred[Envelope]
    ) -> None:
        self._submit(operation, envelope).addCallbacks(done.callback, done.errback)
        self._notify_synced()

    def _body_failed(self, failure: Failure, operation: NewMessage, done: Deferred[Envelope]) -> None:
        self._writers.pop(operation).release()
        done.errback(failure)
        self._notify_synced()

    def _notify_synced(self) -> None:
        self._syncing -= 1
        synced, self._synced = self._synced, []
        for done in synced:
            done.callback(None)


def payment(owed: Notice) -> Payment:
    """What a notice of deliveries pays for."""
    queue_id = owed.envelope.queue_id
    return Payment(known_key(queue_id), queue_id, frozenset(outcome.recipient for outcome in owed.outcomes))


def envelope_of(writer: MessageWriter, submission: Submission) -> Envelope:
    """The envelope of a message that is about to be stored."""
    return Envelope(
        queue_id=writer.queue_id,
        sender=submission.sender,
        recipients=submission.recipients,
        received_at=submission.received_at,
        size=len(submission.header_block) + writer.size,
        parameters=submission.parameters,
        client=submission.client,
    )


class EndObserver(Protocol):
    """What hears that nothing more is tried for a recipient."""

    @property
    def tells_end(self) -> bool:
        """Whether anything listens now."""

    def ended(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> None:
        """This came of a recipient, and is recorded."""

    @property
    def keeps(self) -> bool:
        """Whether anything keeps what came of recipients before that is recorded."""

    def recording(
        self, envelope: Envelope, recipient: Recipient, outcome: Outcome
    ) -> Sequence[Deferred[None]]:
        """This came of a recipient and is recorded as soon as these fire, which never fail."""

    def deleted(self, message: QueuedMessage) -> None:
        """An operator removed a message."""


class MessageSigner(Protocol):
    """What signs messages before they are stored."""

    @property
    def signs(self) -> bool:
        """Whether anything signs now."""

    def sign(self, envelope: Envelope, writer: MessageWriter, submission: Submission) -> MaybeDeferred[bytes]:
        """The fields to put on top of a message. Fails with SpoolError where it must not be stored."""


def _problem_with(writer: MessageWriter, submission: Submission) -> SpoolError | None:
    if writer.ended:
        return SpoolError("the message is already committed or discarded")
    if not submission.recipients:
        return SpoolError("a message needs a recipient")
    return writer.failure
