"""A mail as programs write it to ``sendmail``: completed, with CRLF, and its envelope read from it."""

from __future__ import annotations

import email.utils
import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final

from elemta.config import SubmissionConfig
from elemta.ctl.mail_options import SendmailOptions
from elemta.errors import ElemtaError
from elemta.smtp.path import parse_address


class MailFault(Exception):
    """A mail that can't be sent, and why."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address: as it was written, and as a command takes it; empty for no address."""

    text: str

    @property
    def wire(self) -> str:
        return f"<{self.text}>"


@dataclass(frozen=True, slots=True)
class Draft:
    """What is sent: envelope and content, lines ending in CRLF, dots not yet stuffed."""

    host: str
    sender: Mailbox
    recipients: tuple[Mailbox, ...]
    content: bytes

    @property
    def eight_bit(self) -> bool:
        return not self.content.isascii()

    @property
    def international(self) -> bool:
        """Whether an address needs SMTPUTF8."""
        return not all(mailbox.text.isascii() for mailbox in (self.sender, *self.recipients))


_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:(.*(?:\r\n[ \t].*)*)\r\n")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_QUOTED_IN_PAIRS: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^"])*')
_PART: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+')
_DISPLAYED: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^"<>])*<([^<>]*)>')
_DEFAULTS: Final = SubmissionConfig()
_RECIPIENT_FIELDS: Final = (b"to", b"cc", b"bcc")


@dataclass(frozen=True, slots=True)
class _Field:
    name: bytes
    value: bytes
    whole: bytes


def read_draft(
    options: SendmailOptions,
    stdin: BinaryIO,
    *,
    host: str,
    now: float,
    settings: SubmissionConfig = _DEFAULTS,
) -> Draft:
    """Read a mail to its end; ``now`` dates it. Raises MailFault when it has no usable recipient."""
    fields, body = _divided(_LINE_END.sub(b"\r\n", _read(stdin, dots=options.dots)))
    resent = any(field.name.startswith(b"resent-") for field in fields)
    written = [address for word in options.recipients for address in _listed(word)]
    if options.from_header:
        prefix = b"resent-" if resent else b""
        wanted = [prefix + name for name in _RECIPIENT_FIELDS]
        written += _addresses(field.value for field in fields if field.name in wanted)
    # RFC 5322 §3.6.3: recipients must not see blind copies.
    if settings.remove_bcc:
        fields = [field for field in fields if field.name not in (b"bcc", b"resent-bcc")]
    recipients = tuple(dict.fromkeys(_mailbox(address, host) for address in written))
    if not recipients:
        raise MailFault("the message names no recipient in To, Cc or Bcc")
    caller = _caller()
    sender = _sender(options, caller, host)
    added = []
    if settings.add_missing:
        names = {field.name for field in fields}
        # RFC 6409 §8: a submission may add what a mail must have
        if b"date" not in names:
            added.append(f"Date: {email.utils.formatdate(now, localtime=True)}")
        if b"from" not in names:
            added.append(f"From: {_author(options, caller, sender, host)}")
        if b"message-id" not in names:
            added.append(f"Message-ID: {email.utils.make_msgid(domain=host)}")
    head = "".join(f"{line}\r\n" for line in added).encode() + b"".join(field.whole for field in fields)
    return Draft(host, sender, recipients, head + b"\r\n" + body)


def _read(stdin: BinaryIO, *, dots: bool) -> bytes:
    if not dots:
        return stdin.read()
    lines = []
    for line in stdin:
        if line in (b".\n", b".\r\n", b"."):
            break
        lines.append(line)
    return b"".join(lines)


def _divided(text: bytes) -> tuple[list[_Field], bytes]:
    """The header's fields and the body; a text that does not begin with a field is all body."""
    if text and not text.endswith(b"\r\n"):
        text += b"\r\n"
    fields = []
    position = 0
    if text.startswith(b"From "):
        # The line that separates mails in a mailbox file.
        position = text.index(b"\r\n") + 2
    while found := _FIELD.match(text, position):
        fields.append(_Field(found[1].lower(), found[2], found[0]))
        position = found.end()
    if text.startswith(b"\r\n", position):
        position += 2
    return fields, text[position:]


def _addresses(values: Iterable[bytes]) -> list[str]:
    addresses: list[str] = []
    for text in (_LINE_END.sub(b"", value).decode("utf-8", "replace") for value in values):
        try:
            found = [address for _, address in email.utils.getaddresses([text]) if address]
        except RecursionError as error:
            problem = "the recipients in the header can't be read: comments are nested too deep"
            raise MailFault(problem) from error
        if not found and "@" in text:
            # Newer versions of Python give nothing at all for what they do not understand.
            raise MailFault(f"the recipients in the header can't be read: {text.strip()}")
        addresses += found
    return addresses


def _listed(word: str) -> list[str]:
    """The addresses in one word of the command line: cron gives all of its MAILTO in one, with commas.

    What is no list is given back as it is.
    """
    if not _QUOTED_IN_PAIRS.fullmatch(word):
        return [word]
    parts = [part.strip() for part in _PART.findall(word) if part.strip()]
    named = [_DISPLAYED.fullmatch(part) for part in parts]
    return [found[1] if found else part for found, part in zip(named, parts, strict=True)] or [word]


def _mailbox(address: str, host: str) -> Mailbox:
    bare = address.strip()
    if bare.startswith("<") and bare.endswith(">"):
        bare = bare[1:-1]
    if "@" not in bare:
        bare = f"{bare}@{host}"
    try:
        parse_address(bare, [])
    except (ElemtaError, ValueError) as error:
        raise MailFault(f"{address}: {error}") from error
    return Mailbox(bare)


def _caller() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None


def _sender(options: SendmailOptions, caller: pwd.struct_passwd | None, host: str) -> Mailbox:
    if options.sender is not None:
        if options.sender in ("", "<>"):
            return Mailbox("")
        written = _listed(options.sender)
        return _mailbox(written[0] if len(written) == 1 else options.sender, host)
    return _mailbox(caller.pw_name if caller else f"uid-{os.getuid()}", host)


def _author(options: SendmailOptions, caller: pwd.struct_passwd | None, sender: Mailbox, host: str) -> str:
    full = options.full_name or (caller.pw_gecos.partition(",")[0] if caller else "")
    address = sender.text or f"MAILER-DAEMON@{host}"
    # formataddr does not take addresses beyond ASCII.
    return email.utils.formataddr((" ".join(full.split()), address)) if address.isascii() else address
