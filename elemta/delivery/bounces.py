"""Which notices a sender gets about which recipients, and how their DSNs get into the queue.

The decision is a function of values and the time.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import BinaryIO, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from elemta.address import NULL, Address
from elemta.envelope import BodyType, Client, Envelope, MailParameters, Notify, Recipient
from elemta.errors import SpoolError, SpoolFull
from elemta.message.dsn import Dsn, build_dsn, examine
from elemta.message.notice import Notice, NoticeKind, NoticeSettings
from elemta.outcome import Outcome, Status
from elemta.spool.bodies import MessageWriter
from elemta.spool.records import Submission

_log = Logger()

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST_REASON = 500


def notices_for(
    envelope: Envelope,
    recipients: Sequence[Recipient],
    outcomes: Sequence[Outcome],
    *,
    now: float,
    settings: NoticeSettings,
    warned: Collection[Address] = (),
) -> tuple[Notice, ...]:
    """The notices that follow from an attempt that came to ``outcomes`` at ``now``: one of each kind at most.

    A deferred recipient counts as failed once the message is as old as ``settings.expire``. ``warned``
    are the recipients whose delay was reported before.
    """
    if not envelope.sender:
        # RFC 5321 §4.5.5, RFC 3464 §2: no notice about a notice.
        return ()
    if not any(recipient.notify for recipient in recipients) and all(
        outcome.status is Status.DELIVERED for outcome in outcomes
    ):
        return ()
    age = now - envelope.received_at
    expired = age >= settings.expire
    late = 0 < settings.warn_after <= age
    found: dict[NoticeKind, list[tuple[Recipient, Outcome]]] = {kind: [] for kind in NoticeKind}
    for recipient, outcome in paired(recipients, outcomes):
        kind = _kind(outcome, expired=expired, late=late and recipient.address not in warned)
        if kind is not None and _wants(recipient.notify, kind):
            found[kind].append((recipient, outcome))
    return tuple(
        Notice(kind, envelope, tuple(who for who, _ in about), tuple(what for _, what in about), now)
        for kind, about in found.items()
        if about
    )


def undeliverable_reason(
    envelope: Envelope, recipients: Sequence[Recipient], outcomes: Sequence[Outcome], *, expired: bool
) -> str | None:
    """Why a message from ``<>`` goes on hold: recipients that failed. There is no notice of them.

    They stay with the message for the operator. None where there are none.
    """
    if envelope.sender:
        return None
    failed = [
        outcome
        for _, outcome in paired(recipients, outcomes)
        if _kind(outcome, expired=expired, late=False) is NoticeKind.FAILURE
    ]
    if not failed:
        return None
    what = "; ".join(
        " ".join(
            word for word in (str(each.recipient), str(each.code or ""), each.enhanced, each.text) if word
        )
        for each in failed
    )
    return f"undeliverable, and the sender <> gets no notice: {what}"[:_LONGEST_REASON]


def paired(
    recipients: Sequence[Recipient], outcomes: Sequence[Outcome]
) -> Iterator[tuple[Recipient, Outcome]]:
    """Each outcome with its recipient; an address that was named twice has its outcomes in order."""
    waiting: defaultdict[Address, deque[Recipient]] = defaultdict(deque)
    for recipient in recipients:
        waiting[recipient.address].append(recipient)
    for outcome in outcomes:
        if found := waiting[outcome.recipient]:
            yield found.popleft(), outcome


def _kind(outcome: Outcome, *, expired: bool, late: bool) -> NoticeKind | None:
    """The notice that an outcome calls for, if the sender wants it."""
    if outcome.status is Status.DELIVERED:
        # RFC 3461 §5.2.1: the host that took over the request for a notice answers it.
        return None if outcome.dsn_passed_on else NoticeKind.SUCCESS
    if outcome.status is Status.FAILED or expired:
        return NoticeKind.FAILURE
    return NoticeKind.DELAY if late else None


_FLAGS = {
    NoticeKind.FAILURE: Notify.FAILURE,
    NoticeKind.DELAY: Notify.DELAY,
    NoticeKind.SUCCESS: Notify.SUCCESS,
}


def _wants(notify: Notify | None, kind: NoticeKind) -> bool:
    # RFC 3461 §4.1: without the parameter failures are reported, and delays may be.
    return kind is not NoticeKind.SUCCESS if notify is None else _FLAGS[kind] in notify


class BounceSpool(Protocol):
    """What a notice needs of the spool; :class:`elemta.spool.Spool` has it."""

    def begin(self) -> MessageWriter:
        """A writer for a new message."""

    def commit(
        self, writer: MessageWriter, submission: Submission, *, pays: Notice | None = None
    ) -> Deferred[Envelope]:
        """Take responsibility for it."""

    def token(self, octets: int) -> str:
        """So many octets that no client can guess, in hexadecimal."""

    def in_disk_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Do blocking work on a message's content."""


def submit(
    spool: BounceSpool,
    notice: Notice,
    settings: NoticeSettings,
    original_content: BinaryIO | None,
    *,
    pays: Notice | None = None,
) -> Deferred[Envelope]:
    """Put the DSN for a notice into the queue; fires with its envelope when it is on stable storage.

    ``original_content`` is the message that it is about, as the spool opens it, and is closed in any case;
    None leaves it out of the DSN, and so does a message that can't be in a DSN: then the notice is built
    from the envelope alone. Fails with SpoolFull or SpoolError; then nothing is queued. With
    ``pays`` those deliveries are not reported again.
    """
    return Deferred.fromCoroutine(_submit(spool, notice, settings, original_content, pays))


async def _submit(
    spool: BounceSpool,
    notice: Notice,
    settings: NoticeSettings,
    content: BinaryIO | None,
    pays: Notice | None,
) -> Envelope:
    try:
        writer, dsn = await _written(spool, notice, settings, content)
    except SpoolFull:
        raise
    except Exception as error:
        if content is None:
            raise
        # What is wrong with a message must not keep its sender from hearing what became of it.
        log_left_out(notice.envelope.queue_id, error)
        writer, dsn = await _written(spool, notice, settings, None)
    try:
        envelope = await spool.commit(writer, _submission(notice, settings, dsn), pays=pays)
    except BaseException:
        writer.discard()
        raise
    _log.info(
        "notice to a sender queued",
        event="bounce.queued",
        queue_id=envelope.queue_id,
        about=notice.envelope.queue_id,
        kind=notice.kind.value,
        sender=str(notice.envelope.sender),
        recipients=[str(recipient) for recipient in notice.recipients[:10]],
        count=len(notice.recipients),
    )
    return envelope


def log_left_out(queue_id: str, error: Exception) -> None:
    """Log that a message can't be a part of the notice about it."""
    _log.error(
        "a notice is built from the envelope alone: the message can't be read",
        event="bounce.message_left_out",
        queue_id=queue_id,
        reason=str(error) if isinstance(error, SpoolError | OSError) else repr(error),
    )


async def _written(
    spool: BounceSpool, notice: Notice, settings: NoticeSettings, content: BinaryIO | None
) -> tuple[MessageWriter, Dsn]:
    """The DSN of a notice in a writer of the spool's; closes the content."""
    writer = spool.begin()
    try:
        original = None
        if content is not None:
            original = await spool.in_disk_thread(examine, content, whole=settings.returns_whole(notice))
        # RFC 2046 §5.1.1: what is in the message must not be able to end a part.
        boundary = spool.token(16)
        dsn = build_dsn(notice, settings, original, queue_id=writer.queue_id, boundary=boundary)
        await _write(spool, writer, dsn)
        if writer.failure is not None:
            raise writer.failure  # noqa: TRY301 - there is one way out for what went wrong
    except BaseException:
        writer.discard()
        raise
    finally:
        if content is not None:
            content.close()
    return writer, dsn


async def _write(spool: BounceSpool, writer: MessageWriter, dsn: Dsn) -> None:
    chunks = dsn.chunks()
    while chunk := await spool.in_disk_thread(_next, chunks):
        writer.write(chunk)
        if writer.congested:
            await writer.when_drained()


def _next(chunks: Iterator[bytes]) -> bytes:
    return next(chunks, b"")


def _submission(notice: Notice, settings: NoticeSettings, dsn: Dsn) -> Submission:
    sender = notice.envelope.sender
    return Submission(
        # RFC 3461 §6.1: from <>, and no notice is sent about it.
        sender=NULL,
        recipients=tuple(Recipient(each, Notify.NEVER) for each in settings.expand(sender) or (sender,)),
        parameters=MailParameters(body=BodyType.EIGHT_BIT if dsn.eight_bit else None, smtputf8=dsn.smtputf8),
        client=Client(listener="bounce"),
        header_block=dsn.header,
        received_at=notice.at,
    )
