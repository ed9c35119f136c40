"""The ESMTP parameters of MAIL and RCPT, and the two encodings that their values travel in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from elemta.envelope import NO_PARAMETERS, BodyType, MailParameters, Notify, Return
from elemta.errors import AddressSyntaxError
from elemta.smtp import replies
from elemta.smtp.leniency import BINDING_PARAMETERS, Kinds, Leniency, forgive
from elemta.smtp.path import parse_address
from elemta.smtp.reply import Reply

# RFC 5321 §4.1.2 esmtp-keyword and esmtp-value; RFC 6531 §3.3 adds UTF8-non-ascii to the value
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\u0080-\U0010ffff]+))?")
# What is forgiven: a value of any printable characters
_LOOSE_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)=(.*)")
# RFC 3461 §4: xtext is printable ASCII but "+" and "=", and "+" with two upper case hex digits
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")
# RFC 6533 §3: utf-8-addr-xtext, and utf-8-addr-unitext which may hold UTF8-non-ascii
_UTF8_ADDRESS = re.compile(r"(?:[!-*,-<>-\[\]-~\u0080-\U0010ffff]|\\x\{[0-9A-F]{2,6}\})+")
_EMBEDDED_CODE_POINT = re.compile(r"\\x\{([0-9A-F]{2,6})\}")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_SIZE = re.compile(r"[0-9]{1,20}")
_PRINTABLE_ASCII = re.compile(r"[ -~]*")

# RFC 3461 §4.2
_MAX_ORCPT = 500
# RFC 3461 §4.4
_MAX_ENVID = 100


def decode_xtext(text: str) -> str | None:
    """The octets that ``text`` stands for, as Latin-1 text (RFC 3461 §4); None when it is no xtext."""
    if _XTEXT.fullmatch(text) is None:
        return None
    return _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text)


def decode_utf8_address(text: str) -> str | None:
    """The address that a ``utf-8`` ORCPT value stands for (RFC 6533 §3); None when it is malformed."""
    if _UTF8_ADDRESS.fullmatch(text) is None:
        return None
    try:
        decoded = _EMBEDDED_CODE_POINT.sub(lambda match: chr(int(match[1], 16)), text)
    except ValueError:
        return None
    return decoded if decoded.isprintable() else None


def parse_mail_parameters(
    text: str, *, auth: bool, kinds: Kinds | None = None, unknown: re.Pattern[str] | None = None
) -> MailParameters | Reply:
    """What follows the path of MAIL, or the reply that refuses it; ``auth``: whether AUTH= is known.

    With ``kinds`` what can't be used is forgiven and noted there: malformed parameters that are for notices
    only, and unknown ones that match ``unknown``.
    """
    if not text:
        return NO_PARAMETERS
    known = _MAIL if auth else _MAIL_WITHOUT_AUTH
    values = _parse(text, known, kinds, unknown)
    return values if isinstance(values, Reply) else MailParameters(**values)


def parse_rcpt_parameters(
    text: str, *, kinds: Kinds | None = None, unknown: re.Pattern[str] | None = None
) -> dict[str, Any] | Reply:
    """What follows the path of RCPT as keywords of :class:`Recipient`, or the reply that refuses it."""
    return _parse(text, _RCPT, kinds, unknown) if text else {}


class _Malformed(Exception):
    """A value that its keyword does not allow; never leaves this module."""


def _parse(
    text: str,
    known: Mapping[str, Callable[[str | None], Any]],
    kinds: Kinds | None = None,
    unknown: re.Pattern[str] | None = None,
) -> dict[str, Any] | Reply:
    values: dict[str, Any] = {}
    ignored: set[str] = set()
    for word in text.split():
        match = _PARAMETER.fullmatch(word) or (None if kinds is None else _loose(word))
        if match is None:
            return replies.BAD_PARAMETER
        keyword = match[1].lower()
        # RFC 5321 §4.1.1.11 leaves a repeated parameter without meaning: there is no right one to pick
        if keyword in values or keyword in ignored:
            return replies.BAD_PARAMETER
        read = known.get(keyword)
        if read is None:
            if unknown is None or unknown.fullmatch(word) is None or keyword in BINDING_PARAMETERS:
                return replies.UNKNOWN_PARAMETER
            forgive(kinds, Leniency.UNKNOWN_PARAMETER)
            ignored.add(keyword)
            continue
        try:
            values[keyword] = read(match[2])
        except (_Malformed, AddressSyntaxError):
            kind = _ONLY_FOR_NOTICES.get(keyword)
            if kind is None or not forgive(kinds, kind):
                return replies.BAD_PARAMETER
            ignored.add(keyword)
    return values


def _loose(word: str) -> re.Match[str] | None:
    return _LOOSE_PARAMETER.fullmatch(word) if word.isprintable() else None


def _size(value: str | None) -> int:
    # RFC 1870 §3: 1*20DIGIT
    if value is None or _SIZE.fullmatch(value) is None:
        raise _Malformed
    return int(value)


def _body(value: str | None) -> BodyType:
    # RFC 6152 §2
    try:
        return BodyType((value or "").upper())
    except ValueError:
        raise _Malformed from None


def _smtputf8(value: str | None) -> bool:
    # RFC 6531 §3.1: no value
    if value is not None:
        raise _Malformed
    return True


def _ret(value: str | None) -> Return:
    # RFC 3461 §4.3
    try:
        return Return((value or "").upper())
    except ValueError:
        raise _Malformed from None


def _envid(value: str | None) -> str:
    # RFC 3461 §4.4: xtext of printable ASCII
    decoded = decode_xtext(value or "")
    if not decoded or len(decoded) > _MAX_ENVID or _PRINTABLE_ASCII.fullmatch(decoded) is None:
        raise _Malformed
    return decoded


def _auth(value: str | None) -> str:
    # RFC 4954 §5: an xtext-encoded mailbox, or "<>"
    decoded = decode_xtext(value or "")
    if not decoded:
        raise _Malformed
    if decoded == "<>":
        return ""
    try:
        # RFC 6531 §3.1 keeps xtext's octets: they are UTF-8
        return str(parse_address(decoded.encode("latin-1").decode("utf-8")))
    except UnicodeDecodeError:
        raise _Malformed from None


def _notify(value: str | None) -> Notify:
    # RFC 3461 §4.1: NEVER alone, or a list of the others
    words = (value or "").upper().split(",")
    if words == ["NEVER"]:
        return Notify.NEVER
    chosen = Notify.NEVER
    for word in words:
        flag = _NOTIFY.get(word)
        if flag is None:
            raise _Malformed
        chosen |= flag
    return chosen


def _orcpt(value: str | None) -> str:
    # RFC 3461 §4.2: addr-type ";" xtext
    kind, semicolon, encoded = (value or "").partition(";")
    if not semicolon or len(encoded) > _MAX_ORCPT or _ADDRESS_TYPE.fullmatch(kind) is None:
        raise _Malformed
    kind = kind.lower()
    # RFC 6533 §3: the type utf-8 has an encoding of its own
    decoded = decode_utf8_address(encoded) if kind == "utf-8" else decode_xtext(encoded)
    if not decoded:
        raise _Malformed
    if kind != "utf-8" and _PRINTABLE_ASCII.fullmatch(decoded) is None:
        kind, decoded = "utf-8", _internationalised(kind, decoded)
    return f"{kind};{decoded}"


def _internationalised(kind: str, octets: str) -> str:
    # Postfix writes rfc822 and the xtext of UTF-8 where RFC 6533 §3 has the type utf-8: its mail is good.
    if kind != "rfc822":
        raise _Malformed
    try:
        address = octets.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise _Malformed from None
    if not address.isprintable():
        raise _Malformed
    return address


_ONLY_FOR_NOTICES = {"envid": Leniency.ENVID, "orcpt": Leniency.ORCPT, "auth": Leniency.AUTH}
_NOTIFY = {"SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}

_MAIL_WITHOUT_AUTH: Mapping[str, Callable[[str | None], Any]] = {
    "size": _size,
    "body": _body,
    "smtputf8": _smtputf8,
    "ret": _ret,
    "envid": _envid,
}
_MAIL: Mapping[str, Callable[[str | None], Any]] = {**_MAIL_WITHOUT_AUTH, "auth": _auth}
_RCPT: Mapping[str, Callable[[str | None], Any]] = {"notify": _notify, "orcpt": _orcpt}
