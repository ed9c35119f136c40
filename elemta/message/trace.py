"""Fields that a mail server writes at the top of a message: Received, Return-Path, and what policies add."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from elemta.address import Address
from elemta.envelope import Client

# RFC 5322 §2.1.1: a line should be at most 78 characters and must be at most 998, without its CRLF.
_SOFT_LIMIT = 78
_HARD_LIMIT = 998
_LONGEST_NAME = 76
_LONGEST_CLIENT_TEXT = 255

# What may stand in a HELO name in the Received field: enough for names and address literals.
_UNSAFE_IN_NAME = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_UNSAFE_IN_UTF8_NAME = re.compile(r"[^\w.:\[\]-]")
_UNSAFE_IN_COMMENT = re.compile(r"[^A-Za-z0-9._:/, =+-]")
_UNSAFE_IN_ATOM = re.compile(r"[^A-Za-z0-9._+-]")

# RFC 5322 §3.6.8: a field name is printable ASCII without the colon.
_FIELD_NAME = re.compile(r"[!-9;-~]+\Z")
_FORBIDDEN_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FOLDABLE = re.compile(r"[ \t]*[^ \t]+")


def protocol_name(*, esmtp: bool, tls: bool, auth: bool, smtputf8: bool, lmtp: bool = False) -> str:
    """The word after ``with`` in a Received field.

    ``smtputf8`` is whether the transaction used SMTPUTF8.
    """
    if not esmtp and not lmtp:
        return "SMTP"
    # RFC 3848 §1; RFC 6531 §4.3
    base = ("UTF8LMTP" if lmtp else "UTF8SMTP") if smtputf8 else ("LMTP" if lmtp else "ESMTP")
    return base + ("S" if tls else "") + ("A" if auth else "")


def received_field(
    *,
    hostname: str,
    client: Client,
    protocol: str,
    queue_id: str,
    at: float,
    only_recipient: str | None,
    hide_client: bool = False,
) -> bytes:
    """The Received field for a message that was just received (RFC 5321 §4.4), folded, ending in CRLF.

    ``protocol`` is from :func:`protocol_name`, ``at`` seconds since the epoch, ``only_recipient`` the
    address as it stands between ``<`` and ``>`` when the message has one recipient (None otherwise:
    RFC 5321 §7.2, blind copies). What the client chose is reduced to a safe alphabet and bounded.
    The name of an authenticated user is not written, and with ``hide_client`` nothing of the client.
    """
    way = _way(None if hide_client else (client.helo, client.ip, client.tls), hostname, protocol)
    recipient = ""
    if only_recipient and _may_be_shown(only_recipient, protocol.startswith("UTF8")):
        recipient = f"\r\n\tfor <{only_recipient}>"
    queue_id = _UNSAFE_IN_ATOM.sub("", queue_id)
    return f"{way}{queue_id}{recipient};\r\n\t{date_time(at)}\r\n".encode()


@lru_cache(maxsize=256)
def _way(client: tuple[str, str, str | None] | None, hostname: str, protocol: str) -> str:
    """The beginning of a Received field up to the queue id: the same for all messages of a session.

    ``client`` is its HELO name, its address, and the version of TLS; None where it is hidden.
    """
    own = f"by {hostname} (Elemta) with {protocol} id "
    if client is None:
        return f"Received: {own}"
    helo, ip, tls = client
    lines = [f"Received: from {_client_name(helo, protocol.startswith('UTF8'))} ({_literal(ip)})"]
    if tls:
        lines.append(f"\t({_UNSAFE_IN_COMMENT.sub('', tls)[:_LONGEST_CLIENT_TEXT]})")
    lines.append(f"\t{own}")
    return "\r\n".join(lines)


def return_path_field(sender: Address) -> bytes:
    """The Return-Path field that final delivery adds (RFC 5321 §4.4), ending in CRLF."""
    return f"Return-Path: <{_FORBIDDEN_IN_VALUE.sub('?', str(sender))}>\r\n".encode("utf-8", "replace")


def date_time(at: float) -> str:
    """A moment in seconds since the epoch as a message's fields write it, in UTC."""
    return _date_of(int(at))


@lru_cache(maxsize=4)
def _date_of(second: int) -> str:
    # RFC 5322 §3.3; RFC 5321 §4.4 allows UTC
    return format_datetime(datetime.fromtimestamp(second, tz=UTC))


def added_field(name: str, value: str) -> bytes:
    """A field on top of a message, folded where it is long, ending in CRLF.

    White space at both ends of ``value`` goes. Text beyond ASCII is written as encoded words
    (RFC 2047), so that no next hop needs SMTPUTF8 because of it. Raises :class:`ValueError` where the
    name is not a field name, the value has a control character (CR, LF and NUL among them), or a word
    of it is too long for a line.
    """
    if not _FIELD_NAME.match(name) or len(name) > _LONGEST_NAME:
        raise ValueError(f"not a header field name: {name[:_LONGEST_NAME]!r}")
    if _FORBIDDEN_IN_VALUE.search(value):
        raise ValueError(f"the value of the field {name} has a control character in it")
    value = value.strip(" \t")
    if not value.isascii():
        value = _encoded_words(value)
    lines = [f"{name}:"]
    for part in _FOLDABLE.findall(f" {value}" if value else ""):
        # RFC 5322 §2.2.3: a fold stands before white space, which stays.
        if len(lines[-1]) + len(part) <= _SOFT_LIMIT:
            lines[-1] += part
        elif len(part) > _HARD_LIMIT:
            raise ValueError(f"the value of the field {name} has a word too long for a line")
        else:
            lines.append(part)
    return ("\r\n".join(lines) + "\r\n").encode("ascii")


def _client_name(helo: str, utf8: bool) -> str:
    unsafe = _UNSAFE_IN_UTF8_NAME if utf8 else _UNSAFE_IN_NAME
    return unsafe.sub("?", helo[:_LONGEST_CLIENT_TEXT]) or "unknown"


def _literal(ip: str) -> str:
    # RFC 5321 §4.1.3
    if not ip:
        return "[unknown]"
    return f"[IPv6:{ip}]" if ":" in ip else f"[{_UNSAFE_IN_NAME.sub('?', ip)}]"


def _may_be_shown(recipient: str, utf8: bool) -> bool:
    return len(recipient) <= 320 and recipient.isprintable() and (utf8 or recipient.isascii())


def _encoded_words(text: str) -> str:
    # RFC 2047 §2: an encoded word is at most 75 characters; §5 (3): characters are not split between words.
    words = []
    piece = b""
    for char in text.encode("utf-8", "replace").decode("utf-8"):
        octets = char.encode("utf-8")
        if len(piece) + len(octets) > 45:
            words.append(piece)
            piece = b""
        piece += octets
    words.append(piece)
    return " ".join(f"=?utf-8?b?{base64.b64encode(word).decode('ascii')}?=" for word in words)
