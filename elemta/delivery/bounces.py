"""Which notices a sender gets about which recipients, and how their DSNs get into the queue.

The decision is a function of values and the time; what it needs to remember comes in and goes out.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from elemta.address import NULL, Address
from elemta.config import Config
from elemta.domains import Domains
from elemta.envelope import BodyType, Client, Envelope, MailParameters, Notify, Recipient, Return
from elemta.errors import SpoolError, SpoolFull
from elemta.message.dsn import Dsn, build_dsn, examine
from elemta.message.notice import DsnAction, Notice, NoticeKind, RecipientReport
from elemta.outcome import Outcome, Status
from elemta.spool.bodies import MessageWriter
from elemta.spool.records import OwedNotice, QueuedMessage, Submission

__all__ = ["BounceSpool", "Notice", "NoticeSettings", "Notices", "decide", "submit"]

_log = Logger()

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST_REASON = 500
# RFC 3463 §2
_STATUS_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_EXPIRED = "5.4.7"


def _itself(address: Address) -> tuple[Address, ...]:
    return (address,)


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """``hostname`` is the reporting host. Durations are seconds from the receipt of a message.

    After ``warn_after`` a sender gets a notice that the message waits (0: never), after ``expire`` that it
    was given up. A failed message goes back whole only up to ``whole_limit`` octets, whatever the sender
    asked for: the sender may be forged, and then another mailbox gets it. ``expand`` gives the addresses
    that mail for an address goes to: a sender may be an alias of this host.
    """

    hostname: str
    warn_after: float = 14400.0
    expire: float = 432000.0
    whole_limit: int = 50 * 1024
    expand: Callable[[Address], tuple[Address, ...]] = field(default=_itself, repr=False, compare=False)

    @classmethod
    def from_config(cls, config: Config, domains: Domains) -> NoticeSettings:
        """What the configuration says about it."""
        spool = config.spool
        return cls(
            config.server.hostname, spool.warn_after, spool.expire, spool.bounce_size_limit, domains.expand
        )


@dataclass(frozen=True, slots=True)
class Notices:
    """What follows from an attempt for the message's sender.

    ``to_send`` has at most one notice of each kind. ``warned`` are the recipients whose delay it tells, to
    be remembered. ``held`` are recipients that failed and whose sender is the null reverse-path, which
    gets no notice: they stay with the message, which goes on hold for the reason ``hold`` (None: no such
    recipient).
    """

    to_send: tuple[Notice, ...] = ()
    hold: str | None = None
    held: tuple[Address, ...] = ()
    warned: tuple[Address, ...] = ()


def decide(
    message: QueuedMessage,
    outcomes: Sequence[Outcome],
    *,
    now: float,
    settings: NoticeSettings,
    warned: Collection[Address] = (),
) -> Notices:
    """The notices that follow from an attempt that came to ``outcomes`` at ``now``.

    A deferred recipient counts as failed once the message is as old as ``settings.expire``. ``warned``
    are the recipients whose delay was reported before.
    """
    if all(outcome.status is Status.DELIVERED for outcome in outcomes) and not any(
        recipient.notify for recipient in message.pending
    ):
        return Notices()
    age = now - message.envelope.received_at
    expired = age >= settings.expire
    late = 0 < settings.warn_after <= age
    reports: dict[NoticeKind, list[RecipientReport]] = {kind: [] for kind in NoticeKind}
    held: list[Outcome] = []
    notified_late: list[Address] = []
    for recipient, outcome in _paired(message, outcomes):
        kind = _kind(outcome, expired=expired, late=late and recipient.address not in warned)
        if kind is None:
            continue
        if not message.envelope.sender:
            # RFC 5321 §4.5.5, RFC 3464 §2: no notice about a notice. What failed is kept for the operator.
            held += [outcome] if kind is NoticeKind.FAILURE else []
        elif _wants(recipient.notify, kind):
            reports[kind].append(_report(kind, recipient, outcome, expired=expired))
            notified_late += [recipient.address] if kind is NoticeKind.DELAY else []
    return Notices(
        tuple(_notice(kind, message, found, now, settings) for kind, found in reports.items() if found),
        _hold_reason(held),
        tuple(dict.fromkeys(outcome.recipient for outcome in held)),
        tuple(dict.fromkeys(notified_late)),
    )


def _paired(message: QueuedMessage, outcomes: Sequence[Outcome]) -> Iterator[tuple[Recipient, Outcome]]:
    """Each outcome with its recipient; an address that was named twice has its outcomes in order."""
    waiting: defaultdict[Address, deque[Recipient]] = defaultdict(deque)
    for recipient in message.pending:
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


def _report(kind: NoticeKind, recipient: Recipient, outcome: Outcome, *, expired: bool) -> RecipientReport:
    given_up = kind is NoticeKind.FAILURE and expired and outcome.status is Status.DEFERRED
    status = _EXPIRED if given_up else _status(kind, outcome)
    return RecipientReport(outcome, _action(kind, outcome), status, recipient.orcpt, given_up)


def _action(kind: NoticeKind, outcome: Outcome) -> DsnAction:
    if kind is NoticeKind.SUCCESS:
        # RFC 3461 §5.2.2, §5.2.3
        return DsnAction.DELIVERED if outcome.final else DsnAction.RELAYED
    return DsnAction.FAILED if kind is NoticeKind.FAILURE else DsnAction.DELAYED


_CLASSES = {NoticeKind.FAILURE: "5", NoticeKind.DELAY: "4", NoticeKind.SUCCESS: "2"}


def _status(kind: NoticeKind, outcome: Outcome) -> str:
    """The outcome's enhanced code where it is one and says what the notice says."""
    number = _CLASSES[kind]
    fits = _STATUS_CODE.fullmatch(outcome.enhanced) and outcome.enhanced.startswith(number)
    # RFC 3464 §2.3.4: the field is required; nothing more is known.
    return outcome.enhanced if fits else f"{number}.0.0"


def _notice(
    kind: NoticeKind,
    message: QueuedMessage,
    reports: Sequence[RecipientReport],
    now: float,
    settings: NoticeSettings,
) -> Notice:
    envelope = message.envelope
    return Notice(
        kind,
        settings.hostname,
        envelope,
        tuple(reports),
        now,
        envelope.received_at + settings.expire,
        kind is NoticeKind.FAILURE and _goes_back_whole(envelope, settings.whole_limit),
        settings.expand(envelope.sender),
    )


def _goes_back_whole(envelope: Envelope, limit: int) -> bool:
    # RFC 3461 §4.3: FULL asks for the whole message, but "may" is all that it gets; HDRS forbids it.
    return envelope.size <= limit and envelope.parameters.ret is not Return.HEADERS


def _hold_reason(held: Sequence[Outcome]) -> str | None:
    if not held:
        return None
    what = "; ".join(
        " ".join(
            word for word in (str(each.recipient), str(each.code or ""), each.enhanced, each.text) if word
        )
        for each in held
    )
    return f"undeliverable, and the sender <> gets no notice: {what}"[:_LONGEST_REASON]


class BounceSpool(Protocol):
    """What a notice needs of the spool; :class:`elemta.spool.Spool` has it."""

    def begin(self) -> MessageWriter:
        """A writer for a new message."""

    def commit(
        self, writer: MessageWriter, submission: Submission, *, pays: OwedNotice | None = None
    ) -> Deferred[Envelope]:
        """Take responsibility for it."""

    def token(self, octets: int) -> str:
        """So many octets that no client can guess, in hexadecimal."""

    def in_disk_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Do blocking work on a message's content."""


def submit(
    spool: BounceSpool,
    notice: Notice,
    original_content: BinaryIO | None,
    *,
    pays: OwedNotice | None = None,
) -> Deferred[Envelope]:
    """Put the DSN for a notice into the queue; fires with its envelope when it is on stable storage.

    ``original_content`` is the message that it is about, as the spool opens it, and is closed in any case;
    None leaves it out of the DSN, and so does a message that can't be in a DSN: then the notice is built
    from the envelope alone. Fails with SpoolFull or SpoolError; then nothing is queued. With
    ``pays`` those deliveries are not reported again.
    """
    return Deferred.fromCoroutine(_submit(spool, notice, original_content, pays))


async def _submit(
    spool: BounceSpool, notice: Notice, content: BinaryIO | None, pays: OwedNotice | None
) -> Envelope:
    try:
        writer, dsn = await _written(spool, notice, content)
    except SpoolFull:
        raise
    except Exception as error:
        if content is None:
            raise
        # What is wrong with a message must not keep its sender from hearing what became of it.
        log_left_out(notice.envelope.queue_id, error)
        writer, dsn = await _written(spool, notice, None)
    try:
        envelope = await spool.commit(writer, _submission(notice, dsn), pays=pays)
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
        recipients=[str(report.outcome.recipient) for report in notice.recipients[:10]],
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


async def _written(spool: BounceSpool, notice: Notice, content: BinaryIO | None) -> tuple[MessageWriter, Dsn]:
    """The DSN of a notice in a writer of the spool's; closes the content."""
    writer = spool.begin()
    try:
        original = None
        if content is not None:
            original = await spool.in_disk_thread(examine, content, whole=notice.whole)
        # RFC 2046 §5.1.1: what is in the message must not be able to end a part.
        boundary = spool.token(16)
        dsn = build_dsn(notice, original, queue_id=writer.queue_id, boundary=boundary)
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


def _submission(notice: Notice, dsn: Dsn) -> Submission:
    return Submission(
        # RFC 3461 §6.1: from <>, and no notice is sent about it.
        sender=NULL,
        recipients=tuple(Recipient(each, Notify.NEVER) for each in notice.to or (notice.envelope.sender,)),
        parameters=MailParameters(body=BodyType.EIGHT_BIT if dsn.eight_bit else None, smtputf8=dsn.smtputf8),
        client=Client(listener="bounce"),
        header_block=dsn.header,
        received_at=notice.at,
    )
