"""Tells a milter of each session, and does what it decides."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Sequence
from typing import BinaryIO, cast

from twisted.internet.defer import ensureDeferred
from zope.interface import implementer

from elemta.policies.backend_text import printable
from elemta.policies.milter.conversation import MilterConversation, negotiate
from elemta.policies.milter.options import MilterOptions
from elemta.policies.milter.protocol import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    MilterAnswer,
    MilterDecision,
    MilterHold,
    MilterStage,
    Modification,
    ReplaceBody,
    connect_data,
    header_packets,
    text,
)
from elemta.policy import (
    CONTINUE,
    BackendError,
    Defer,
    Discard,
    Disconnect,
    IConnectPolicy,
    IDataPolicy,
    IHeloPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IRcptPolicy,
    Message,
    Quarantine,
    Recipient,
    Reject,
    Services,
    Session,
    Transaction,
    Verdict,
)

BLOCK = 256 * 1024
MAX_HEADER = 1024 * 1024
"""Octets of a header. A longer one is refused."""
IN_MEMORY = 1024 * 1024
MAX_REPLY_LINES = 32  # as smfi_setmlreply has it
MAX_REPLY_LINE = 400  # characters
_DISCARDED = "discarded"
_ENHANCED = r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?=\s|$)"
_REPLY = re.compile(rf"([45][0-9][0-9])(?:[ -]|$)({_ENHANCED})?")
_REPLY_LINE = re.compile(rf"^[45][0-9][0-9](?:[ -]|$)(?:{_ENHANCED}\s*)?")
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
TOO_LONG = Reject("The header of the message is too long", code=552, enhanced="5.3.4")


class HeaderTooLong(Exception):
    """The header has more octets than are read for a milter."""


@implementer(
    IConnectPolicy, IHeloPolicy, IMailPolicy, IRcptPolicy, IDataPolicy, IMessagePolicy, IOutcomeObserver
)
class MilterPolicy:
    """Has one connection to the milter for each session."""

    def __init__(self, options: MilterOptions, services: Services) -> None:
        self._endpoint = options.endpoint
        self._services = services
        self._answers = services.metrics.counter(
            "answers_total", "Decisions of the milter, by stage.", ("stage", "answer")
        )

    async def connected(self, session: Session) -> Verdict:
        conversation = await self._open(session)
        ip = session.client_ip
        data = connect_data(
            session.reverse_name or f"[{ip}]", str(ip), session.client_port, is_ipv6=ip.version == 6
        )
        macros = {"j": self._services.hostname, "{daemon_name}": session.listener, "v": "Elemta"}
        return self._verdict(MilterStage.CONNECT, await conversation.tell(MilterStage.CONNECT, data, macros))

    async def helo(self, session: Session) -> Verdict:
        conversation = await self._of(session)
        conversation.abort()
        macros = {}
        if session.tls is not None:
            macros = {"{tls_version}": session.tls.version, "{cipher}": session.tls.cipher}
        return self._verdict(
            MilterStage.HELO, await conversation.tell(MilterStage.HELO, text(session.helo), macros)
        )

    async def mail(self, session: Session, transaction: Transaction) -> Verdict:
        conversation = await self._of(session)
        conversation.abort()
        sender = str(transaction.sender)
        macros = {"i": transaction.queue_id or "", "{mail_addr}": sender}
        if session.user is not None:
            macros |= {"{auth_authen}": session.user, "{auth_type}": "PLAIN"}
        decision = await conversation.tell(MilterStage.MAIL, text(f"<{sender}>"), macros)
        return self._verdict(MilterStage.MAIL, decision)

    async def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:
        conversation = await self._of(session)
        address = str(recipient.address)
        decision = await conversation.tell(MilterStage.RCPT, text(f"<{address}>"), {"{rcpt_addr}": address})
        verdict = self._verdict(MilterStage.RCPT, decision)
        if isinstance(verdict, Discard):
            # A milter drops the whole message by it, and Discard at RCPT the one recipient only.
            transaction.notes[_DISCARDED] = True
            return CONTINUE
        return verdict

    async def data(self, session: Session, transaction: Transaction) -> Verdict:
        conversation = await self._of(session)
        if transaction.notes.get(_DISCARDED):
            return Discard("milter")
        macros = {"i": transaction.queue_id or ""}
        return self._verdict(MilterStage.DATA, await conversation.tell(MilterStage.DATA, b"", macros))

    async def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:
        conversation = await self._of(session)
        try:
            with message.open() as file:
                decision = await self._send(conversation, file)
        except HeaderTooLong:
            conversation.abort()
            return TOO_LONG
        if decision.answer not in (MilterAnswer.CONTINUE, MilterAnswer.SKIP):
            conversation.abort()
            return self._verdict(MilterStage.BODY, decision)
        decision, changes = await conversation.end_message({"i": transaction.queue_id or ""})
        conversation.settled = False
        verdict = self._verdict(MilterStage.END_OF_MESSAGE, decision)
        if verdict is not CONTINUE:
            return verdict
        return await self._change(transaction, message, changes)

    def committed(self, session: Session, transaction: Transaction, queue_id: str) -> None:
        """Nothing to do."""

    def refused(self, session: Session, transaction: Transaction) -> None:
        """Nothing to do."""

    def disconnected(self, session: Session) -> None:
        conversation = session.notes.pop("conversation", None)
        if conversation is not None:
            ensureDeferred(conversation.quit()).addErrback(lambda _: None)

    async def _open(self, session: Session) -> MilterConversation:
        stream = await self._services.connect(self._endpoint)
        conversation: MilterConversation | None = None
        try:
            conversation = await negotiate(stream)
        finally:
            if conversation is None:  # also where the client did not wait
                await stream.close()
        session.notes["conversation"] = conversation
        return conversation

    async def _of(self, session: Session) -> MilterConversation:
        """The session's connection; where it was lost the milter has missed what was before."""
        conversation: MilterConversation | None = session.notes.get("conversation")
        if conversation is None or conversation.stream.closed:
            raise BackendError("the milter's connection was lost")
        return conversation

    async def _send(self, conversation: MilterConversation, file: BinaryIO) -> MilterDecision:
        fields = await self._services.threads(read_fields, file)
        if not conversation.wants(MilterStage.HEADER):
            decision = await conversation.tell(MilterStage.END_OF_HEADERS, b"")
        elif conversation.answers_headers:
            decision = await conversation.send_headers(fields)
        else:
            # In one piece: a header may have very many fields, and nothing waits between them.
            packets = await self._services.threads(header_packets, fields, conversation.agreed.steps)
            decision = await conversation.send_packets(packets)
        while decision.answer is MilterAnswer.CONTINUE:
            block = await self._services.threads(file.read, BLOCK)
            if not block:
                break
            decision = await conversation.send_body(block)
        return decision

    def _verdict(self, stage: MilterStage, decision: MilterDecision) -> Verdict:
        self._answers.labels(stage.name.lower(), decision.answer.name.lower()).inc()
        answer = decision.answer
        if answer is MilterAnswer.REJECT:
            return Reject("The mail was refused", code=550, enhanced="5.7.1")
        if answer in (MilterAnswer.DEFER, MilterAnswer.CONNECTION_FAILED):
            return Defer("Try again later", code=451, enhanced="4.7.1")
        if answer is MilterAnswer.DISCARD:
            return Discard("milter")
        if answer is MilterAnswer.REPLY:
            return reply_verdict(decision.reply)
        return CONTINUE

    async def _change(
        self, transaction: Transaction, message: Message, changes: Sequence[Modification]
    ) -> Verdict:
        verdict: Verdict = CONTINUE
        pieces = [change.piece for change in changes if isinstance(change, ReplaceBody)]
        for change in changes:
            if isinstance(change, ReplaceBody):
                continue
            if isinstance(change, MilterHold):
                verdict = Quarantine(change.reason[:200] or "milter")
            else:
                self._apply(transaction, message, change)
        if pieces:
            message.replace_body(await self._services.threads(_new_body, pieces))
        return verdict if _change_recipients(transaction, changes) else Discard("milter")

    def _apply(self, transaction: Transaction, message: Message, change: Modification) -> None:
        match change:
            case AddHeader(name, value):
                message.add_header(name, value, at="bottom")
            case InsertHeader(index, name, value):
                message.add_header(name, value, at="top" if index <= 1 else "bottom")
            case ChangeHeader(index, name, value):
                _change_header(message, name, max(index, 1) - 1, value)
            case ChangeSender(address):
                transaction.sender = address


def _new_body(pieces: Sequence[bytes]) -> BinaryIO:
    """A body in a file. Blocks: call it in a thread."""
    file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the message takes it
    for piece in pieces:
        file.write(piece)
    file.seek(0)
    return cast(BinaryIO, file)


def _change_header(message: Message, name: str, index: int, value: str) -> None:
    if not value.strip():
        message.remove_header(name, index=index)
    elif not message.replace_header(name, value, index=index):
        message.add_header(name, value, at="bottom")


def _change_recipients(transaction: Transaction, changes: Sequence[Modification]) -> bool:
    """Add and remove recipients as all changes together say; False where none is left.

    A milter that redirects a message removes its recipients before it adds another. The message always keeps
    one of them until it has the other.
    """
    known = {str(each.address): each for each in transaction.recipients}
    left, added = _changed_addresses(known, changes)
    removed = [each for address, each in known.items() if address not in left]
    if removed and not left and not added:
        return False
    last = removed.pop() if removed and not left else None
    for recipient in removed:
        transaction.remove_recipient(recipient)
    for address in added:
        transaction.add_recipient(address)
    if last is not None:
        transaction.remove_recipient(last)
    return True


def _changed_addresses(
    known: Collection[str], changes: Sequence[Modification]
) -> tuple[Collection[str], Collection[str]]:
    """Of the known addresses those that are left, and those that are added, each in order."""
    left, added = dict.fromkeys(known), dict[str, None]()
    for change in changes:
        if isinstance(change, AddRecipient):
            there = _found(known, change.address)
            (added if there is None else left)[there or change.address] = None
        elif isinstance(change, DeleteRecipient):
            for addresses in (left, added):
                if (there := _found(addresses, change.address)) is not None:
                    del addresses[there]
                    break
    return left, added


def _found(addresses: Collection[str], wanted: str) -> str | None:
    """The address in its own spelling, else in another case."""
    if wanted in addresses:
        return wanted
    return next((each for each in addresses if each.lower() == wanted.lower()), None)


def reply_verdict(reply: str) -> Verdict:
    """The verdict of a reply in a milter's words, such as "550 5.7.1 text", with its lines."""
    match = _REPLY.match(reply)
    if match is None:
        raise BackendError(f"the milter's reply can't be used: {reply[:80]!r}")
    # RFC 5321 §4.2.1: the second digit is 0 to 5; a client takes others for the first digit alone.
    code, enhanced = int(match[1] if match[1][1] <= "5" else f"{match[1][0]}50"), match[2]
    # smfi_setreply: a percent sign is written twice.
    lines = [_REPLY_LINE.sub("", line).replace("%%", "%") for line in re.split(r"\r?\n", reply) if line]
    words = "\n".join(printable(line).strip()[:MAX_REPLY_LINE] for line in lines[:MAX_REPLY_LINES]).strip()
    if enhanced is None or enhanced[0] != str(code)[0]:
        enhanced = f"{str(code)[0]}.7.1"
    if code == 421:
        return Disconnect(words or "Try again later", code=421, enhanced=enhanced)
    if code < 500:
        return Defer(words or "Try again later", code=code, enhanced=enhanced)
    return Reject(words or "The mail was refused", code=code, enhanced=enhanced)


def read_fields(file: BinaryIO) -> list[tuple[bytes, bytes]]:
    """The fields of a header as they are, the file left at the body. Blocks: call it in a thread.

    A line that is no field is a part of the field above it, as in what policies edit. Raises
    :class:`HeaderTooLong`.
    """
    fields: list[tuple[bytes, list[bytes]]] = []
    lines: list[bytes] = []
    size = 0
    while (line := file.readline(MAX_HEADER)) not in (b"\r\n", b""):
        size += len(line)
        if size > MAX_HEADER:
            raise HeaderTooLong
        if fields and not _FIELD.match(line):
            lines.append(line)
            continue
        name, _, value = line.partition(b":")
        lines = [value]
        fields.append((name.rstrip(), lines))
    return [(name, b"".join(lines)) for name, lines in fields]
