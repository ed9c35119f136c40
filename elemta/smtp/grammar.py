"""What the arguments of the commands mean; no state, no opinion beyond the grammar."""

from __future__ import annotations

import re

from elemta.address import Address
from elemta.envelope import NO_PARAMETERS, MailParameters, Recipient
from elemta.errors import AddressSyntaxError
from elemta.smtp import replies
from elemta.smtp.parameters import parse_mail_parameters, parse_rcpt_parameters
from elemta.smtp.path import MAX_DOMAIN, parse_forward_path, parse_reverse_path
from elemta.smtp.reply import Reply
from elemta.smtp.settings import SessionSettings
from elemta.value_type import value_type

# A path in angle brackets, which may stand in a quoted local-part, then parameters. RFC 5321 §4.1.1.2 has no
# space before the path; so many clients send one that it is let pass: it changes nothing of what is meant.
_PATH = re.compile(r' *<([^<>"]*(?:"(?:[^"\\]|\\.)*"[^<>"]*)*)>(?: +(.*))?')
# RFC 5321 §4.1.1.1 wants a domain or an address literal. Names that are neither, such as those of Windows
# hosts, are common and harmless, so the alphabet is kept and the rest is left to policies.
_HELO_NAME = re.compile(r"[A-Za-z0-9._:%\[\]-]+")
_CHUNK = re.compile(r"([0-9]{1,20})(?: +([A-Za-z]+))?")


@value_type
class MailCommand:
    sender: Address
    parameters: MailParameters


@value_type
class BdatCommand:
    """``size`` is None where the command is malformed, and the end of its chunk is unknown."""

    size: int | None
    last: bool


def no_argument(argument: str, _settings: SessionSettings) -> Reply | None:
    return replies.NO_ARGUMENT_ALLOWED if argument else None


def some_argument(argument: str, _settings: SessionSettings) -> str | Reply:
    return argument or replies.BAD_ARGUMENT


def any_argument(argument: str, _settings: SessionSettings) -> str:
    return argument


def parse_helo_name(argument: str) -> str | None:
    """The name as the client wrote it; None when it is none."""
    # RFC 5321 §4.5.3.1.2
    if len(argument) > MAX_DOMAIN or _HELO_NAME.fullmatch(argument) is None:
        return None
    return argument


def parse_mail(argument: str, settings: SessionSettings) -> MailCommand | Reply:
    # RFC 5321 §4.1.1.2
    if argument[:5].upper() != "FROM:":
        return replies.MAIL_SYNTAX
    match = _PATH.fullmatch(argument, 5)
    if match is None:
        return replies.BAD_SENDER
    try:
        sender = parse_reverse_path(match[1])
    except AddressSyntaxError:
        return replies.BAD_SENDER
    parameters = NO_PARAMETERS
    if match[2]:
        found = parse_mail_parameters(match[2], auth=settings.auth)
        if isinstance(found, Reply):
            return found
        parameters = found
    # RFC 6531 §3.5
    if not (argument.isascii() or parameters.smtputf8) and sender.needs_smtputf8:
        return replies.NEEDS_SMTPUTF8
    return MailCommand(sender, parameters)


def parse_rcpt(argument: str, settings: SessionSettings) -> Recipient | Reply:
    # RFC 5321 §4.1.1.3
    if argument[:3].upper() != "TO:":
        return replies.RCPT_SYNTAX
    match = _PATH.fullmatch(argument, 3)
    if match is None:
        return replies.BAD_RECIPIENT
    try:
        address = parse_forward_path(match[1], settings.postmaster_domain)
    except AddressSyntaxError:
        return replies.BAD_RECIPIENT
    if not match[2]:
        return Recipient(address)
    parameters = parse_rcpt_parameters(match[2])
    if isinstance(parameters, Reply):
        return parameters
    return Recipient(address, **parameters)


def parse_bdat(argument: str, _settings: SessionSettings) -> BdatCommand:
    # RFC 3030 §2
    match = _CHUNK.fullmatch(argument)
    if match is None or (match[2] and match[2].upper() != "LAST"):
        return BdatCommand(None, last=False)
    return BdatCommand(int(match[1]), last=match[2] is not None)
