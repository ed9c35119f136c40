"""Delivery status notifications: a multipart/report for people and programs (RFC 3464, RFC 6522, RFC 6533).

Whatever comes from clients and next hops is reduced to printable text of bounded length before it
gets here or on its way through; nothing of it can begin a line.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.foreign_text import printable
from elemta.message.dsn_text import WIDTH, explanation, mta_name, plain, shown
from elemta.message.header_reader import header_size
from elemta.message.headers import MAX_HEADER, Headers, read_headers
from elemta.message.notice import DsnAction, Notice, NoticeKind, NoticeSettings
from elemta.message.trace import date_time
from elemta.outcome import Outcome

_CHUNK = 64 * 1024
_LINE_END = re.compile(rb"\r\n|\r|\n")
# RFC 5322 §2.1.1: 998 octets a line; a fold takes one of them.
_LONG_LINE = re.compile(rb"([^\r\n]{997})(?=[^\r\n])")
_LONGEST_FIELD = 900
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,40}")
_SUBJECTS = {
    NoticeKind.FAILURE: "Undelivered mail: your message could not be delivered",
    NoticeKind.DELAY: "Delayed mail: your message is still waiting",
    NoticeKind.SUCCESS: "Delivered mail: your message has arrived",
}
_RELAYED = "Relayed mail: your message was handed on"
_RETURNED = {
    NoticeKind.FAILURE: "Undelivered message",
    NoticeKind.DELAY: "Delayed message",
    NoticeKind.SUCCESS: "Delivered message",
}


@dataclass(frozen=True, slots=True)
class Original:
    """The message that a notice is about, as far as its DSN needs it.

    ``content`` gives its octets from the start and must be seekable. ``header`` are its fields in
    canonical lines (the first 64 KiB of them); ``eight_bit`` whether what goes back of it has
    octets beyond ASCII.
    """

    content: BinaryIO
    header: bytes
    eight_bit: bool

    @property
    def utf8_header(self) -> bool:
        """Whether the header is an internationalised one (RFC 6532 §3): beyond ASCII, and in UTF-8."""
        try:
            return not self.header.isascii() and bool(self.header.decode("utf-8"))
        except UnicodeDecodeError:
            return False


def examine(content: BinaryIO, *, whole: bool) -> Original:
    """Read what a DSN must know of a message before it begins; ``whole``: it is to go back whole.

    Reads the whole message for that, in pieces: a thread's work. Raises what reading raises.
    """
    content.seek(0)
    head = content.read(MAX_HEADER)
    header = _header_of(head)
    if not whole:
        return Original(content, header, not header.isascii())
    chunk, ascii_only = head, True
    while chunk and ascii_only:
        ascii_only = chunk.isascii()
        chunk = content.read(_CHUNK)
    return Original(content, header, not ascii_only)


def _header_of(head: bytes) -> bytes:
    """The fields at the start of a message; each line ends in CRLF and is short enough to be sent."""
    size = header_size(head)
    if size is not None:
        head = head[:size]
    elif len(head) >= MAX_HEADER:
        # There is more; half a line must not pass for a field.
        head = head[: head.rfind(b"\n") + 1]
    head = _LINE_END.sub(b"\r\n", head.replace(b"\0", b"?"))
    if head and not head.endswith(b"\r\n"):
        head += b"\r\n"
    return _LONG_LINE.sub(rb"\1\r\n ", head)


@dataclass(frozen=True, slots=True)
class Dsn:
    """A finished DSN: ``header`` are its own fields, :meth:`chunks` the rest, from the empty line on.

    ``eight_bit`` and ``smtputf8`` say what it needs on its way (BODY=8BITMIME, SMTPUTF8).
    """

    header: bytes
    eight_bit: bool
    smtputf8: bool
    _before: bytes
    _after: bytes
    _content: BinaryIO | None = None

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces of at most some 64 KiB for what is returned. Reads the message: blocks."""
        yield self._before
        if self._content is not None:
            self._content.seek(0)
            while chunk := self._content.read(_CHUNK):
                yield chunk
        yield self._after


@dataclass(frozen=True, slots=True)
class _DsnPart:
    """One part of the multipart: its type, what mail readers call it, whether it is 8-bit, its octets."""

    kind: str
    description: str
    eight_bit: bool
    body: bytes

    @property
    def head(self) -> bytes:
        lines = (
            f"Content-Type: {self.kind}",
            f"Content-Description: {self.description}",
            f"Content-Transfer-Encoding: {'8bit' if self.eight_bit else '7bit'}",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def build_dsn(
    notice: Notice, settings: NoticeSettings, original: Original | None, *, queue_id: str, boundary: str
) -> Dsn:
    """The DSN that carries a notice.

    ``original`` is the examined message; None gives a DSN without it, for one that can't be read any
    more. ``queue_id`` is the DSN's own. ``boundary`` parts the parts: it must be in none of them, so it
    is random.
    """
    fields = read_headers(original.header) if original else Headers()
    may_utf8 = notice.envelope.smtputf8 or notice.envelope.sender.needs_smtputf8
    parts = [
        _text_part(notice, settings, fields.get("Subject")),
        _status_part(notice, settings, utf8=may_utf8),
    ]
    whole = settings.returns_whole(notice)
    if original is not None:
        parts.append(_returned_part(notice, original, whole=whole, utf8=may_utf8))
    eight_bit = any(part.eight_bit for part in parts)
    header = _header(
        notice, settings.hostname, fields, queue_id=queue_id, boundary=boundary, eight_bit=eight_bit
    )
    # RFC 2046 §5.1.1: the line end before a delimiter belongs to the delimiter.
    delimiter = f"\r\n--=_{boundary}\r\n".encode("ascii")
    before = b"".join(delimiter + part.head + part.body for part in parts)
    return Dsn(
        header,
        eight_bit or not header.isascii(),
        not header.isascii() or any(part.kind.startswith("message/global") for part in parts),
        before,
        f"\r\n--=_{boundary}--\r\n".encode("ascii"),
        original.content if original and whole else None,
    )


def _header(
    notice: Notice, hostname: str, original: Headers, *, queue_id: str, boundary: str, eight_bit: bool
) -> bytes:
    lines = [
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>",
        f"To: {_to(notice.envelope.sender)}",
        f"Subject: {_subject(notice)}",
        f"Date: {date_time(notice.at)}",
        f"Message-ID: <{queue_id}@{hostname}>",
    ]
    answered = original.get("Message-ID")
    if answered and original.count("Message-ID") == 1 and _MESSAGE_ID.fullmatch(answered):
        # RFC 5322 §3.6.4; not folded: a message identifier has no place for it.
        lines += [f"In-Reply-To: {answered}", f"References: {answered}"]
    lines += [
        # RFC 3834 §5.1
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        # RFC 6522 §3
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="=_{boundary}"',
        # RFC 2045 §6.4: a multipart is 8bit where any of its parts is.
        f"Content-Transfer-Encoding: {'8bit' if eight_bit else '7bit'}",
    ]
    return ("\r\n".join(lines) + "\r\n").encode("utf-8")


def _subject(notice: Notice) -> str:
    if notice.kind is NoticeKind.SUCCESS and any(
        notice.action(outcome) is not DsnAction.DELIVERED for outcome in notice.outcomes
    ):
        return _RELAYED
    return _SUBJECTS[notice.kind]


def _to(sender: Address) -> str:
    text = printable(str(sender))
    return f"<{text}>" if len(text.encode()) <= _LONGEST_FIELD else "undisclosed-recipients:;"


def _text_part(notice: Notice, settings: NoticeSettings, subject: str | None) -> _DsnPart:
    text = explanation(notice, settings, subject).replace("\n", "\r\n")
    charset = "us-ascii" if text.isascii() else "utf-8"
    return _DsnPart(f"text/plain; charset={charset}", "Notice", not text.isascii(), text.encode())


def _status_part(notice: Notice, settings: NoticeSettings, *, utf8: bool) -> _DsnPart:
    """The part for programs; ``utf8``: it may be in UTF-8, and is where that says more."""
    blocks = [
        _message_block(notice, settings.hostname),
        *(
            _recipient_block(recipient, outcome, notice, settings, utf8)
            for recipient, outcome in zip(notice.recipients, notice.outcomes, strict=True)
        ),
    ]
    text = "\r\n".join(blocks)
    if text.isascii():
        # RFC 6533 §4.4: what ASCII can say goes by the traditional type.
        return _DsnPart("message/delivery-status", "Delivery report", False, text.encode("ascii"))
    # RFC 6533 §4.1
    return _DsnPart("message/global-delivery-status", "Delivery report", True, text.encode())


def _message_block(notice: Notice, hostname: str) -> str:
    """The fields about the message as a whole (RFC 3464 §2.2)."""
    envelope = notice.envelope
    fields = []
    if envelope.parameters.envid:
        # RFC 3461 §6.3: as it was before it became xtext; its case and blanks are the client's.
        fields.append(f"Original-Envelope-Id: {_ascii(envelope.parameters.envid)[:_LONGEST_FIELD]}")
    fields += [
        f"Reporting-MTA: dns; {hostname}",
        f"Arrival-Date: {date_time(envelope.received_at)}",
        f"X-Elemta-Queue-Id: {plain(envelope.queue_id)}",
    ]
    return "\r\n".join(fields) + "\r\n"


def _recipient_block(
    recipient: Recipient, outcome: Outcome, notice: Notice, settings: NoticeSettings, utf8: bool
) -> str:
    """The fields about one recipient (RFC 3464 §2.3)."""
    action = notice.action(outcome)
    fields = [
        _address_field("Original-Recipient", *_original_recipient(recipient.orcpt), utf8=utf8),
        _address_field("Final-Recipient", "rfc822", str(outcome.recipient), utf8=utf8)
        or f"Final-Recipient: rfc822; {_ascii(shown(outcome.recipient))}",
        f"Action: {action.value}",
        # RFC 3464 §2.3.4
        f"Status: {notice.status(outcome)}",
    ]
    if outcome.code and (host := mta_name(outcome.next_hop)):
        # RFC 3464 §2.3.5: only a server that did report something.
        fields.append(f"Remote-MTA: dns; {host}")
    fields += _diagnostic(outcome, utf8)
    fields.append(f"Last-Attempt-Date: {date_time(outcome.at)}")
    if action is DsnAction.DELAYED:
        # RFC 3464 §2.3.9: of no other action.
        fields.append(f"Will-Retry-Until: {date_time(settings.retry_until(notice))}")
    return "".join(f"{field}\r\n" for field in fields if field)


def _diagnostic(outcome: Outcome, utf8: bool) -> list[str]:
    """The Diagnostic-Code field (RFC 3464 §2.3.6), folded: the type smtp is for what a server said."""
    said = plain(f"{outcome.code} {outcome.enhanced} {outcome.text}" if outcome.code else outcome.text)
    if not said:
        return []
    text = f"Diagnostic-Code: {'smtp' if outcome.code else 'x-elemta'}; {said if utf8 else _ascii(said)}"
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)
    return ["\r\n".join(lines)]


def _original_recipient(orcpt: str | None) -> tuple[str, str]:
    kind, _, address = (orcpt or "").partition(";")
    return (kind, address) if _ADDRESS_TYPE.fullmatch(kind) else ("", "")


def _address_field(name: str, kind: str, address: str, *, utf8: bool) -> str:
    """A field with an address, never folded, for a fold would change it; "" where there is none that fits."""
    if not address:
        return ""
    text = printable(address)
    if kind.lower() == "utf-8" or not text.isascii():
        # RFC 6533 §3: as it is where the part may be in UTF-8, else in its form for ASCII.
        kind, text = "utf-8", text if utf8 and not text.isascii() else _unitext(text)
    field = f"{name}: {kind}; {text}"
    return field if len(field.encode()) <= _LONGEST_FIELD else ""


def _returned_part(notice: Notice, original: Original, *, whole: bool, utf8: bool) -> _DsnPart:
    """The third part; its octets where it is only the header, else they follow its head."""
    utf8_header = utf8 and original.utf8_header
    if whole:
        # RFC 6533 §4.2
        kind, body = "message/global" if utf8_header else "message/rfc822", b""
    else:
        # RFC 6522 §4, RFC 6533 §4.3
        kind, body = "message/global-headers" if utf8_header else "text/rfc822-headers", original.header
    return _DsnPart(kind, _RETURNED[notice.kind], original.eight_bit, body)


def _unitext(text: str) -> str:
    # RFC 6533 §3: utf-8-addr-xtext
    return "".join(
        char if "!" <= char <= "~" and char not in "+=\\" else f"\\x{{{ord(char):02X}}}" for char in text
    )


def _ascii(text: str) -> str:
    return printable(text).encode("ascii", "replace").decode("ascii")
