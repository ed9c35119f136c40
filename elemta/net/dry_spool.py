"""A spool for an explanation: what is given to it is checked as always, and stored nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

from elemta.deferred_value import MaybeDeferred, value_of
from elemta.envelope import Envelope
from elemta.errors import SpoolError
from elemta.message.notice import Notice
from elemta.net.context import MessageStore
from elemta.spool import MessageWriter, Submission
from elemta.spool.intake import envelope_of

P = ParamSpec("P")
R = TypeVar("R")

Sign = Callable[[Envelope, MessageWriter, Submission], MaybeDeferred[bytes]]
"""What signs a message, last of all. Fails with SpoolError where it must not be stored."""


class DrySpool:
    """Takes messages as ``real`` does, and commits none. ``sign`` is None where nothing signs.

    ``submitted`` is what would be stored of each message, and of each notice about it.
    """

    def __init__(self, real: MessageStore, sign: Sign | None) -> None:
        self._real = real
        self._sign = sign
        self.submitted: list[Submission] = []

    @property
    def healthy(self) -> bool:
        return self._real.healthy

    def keep_discarded(self, queue_id: str, size: int, submission: Submission) -> None:
        """Nothing is accepted."""

    def has_space(self, size: int = 0) -> bool:
        return self._real.has_space(size)

    def begin(self) -> MessageWriter:
        return self._real.begin()

    async def rewrite(self, writer: MessageWriter, header: bytes, body: BinaryIO) -> MessageWriter:
        return await self._real.rewrite(writer, header, body)

    def commit(
        self,
        writer: MessageWriter,
        submission: Submission,
        *,
        pays: Notice | None = None,  # noqa: ARG002
    ) -> Deferred[Envelope]:
        return Deferred.fromCoroutine(self._commit(writer, submission))

    async def _commit(self, writer: MessageWriter, submission: Submission) -> Envelope:
        try:
            await writer.when_drained()
            if writer.failure is not None:
                raise writer.failure
            if not self.healthy:
                raise SpoolError("the spool's disk failed and is not yet trusted again")
            envelope = envelope_of(writer, submission)
            if self._sign is not None:
                await value_of(self._sign(envelope, writer, submission))
            self.submitted.append(submission)
            return envelope
        finally:
            writer.discard()

    def token(self, octets: int) -> str:
        return self._real.token(octets)

    def in_disk_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        return self._real.in_disk_thread(work, *args, **kwargs)
