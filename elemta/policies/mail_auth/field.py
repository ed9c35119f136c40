"""The header field Authentication-Results (RFC 8601)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from elemta.policies.mail_auth.dmarc import DmarcCheck
from elemta.policies.mail_auth.signatures import ChainCheck, SignatureCheck
from elemta.policies.mail_auth.spf import SPFAnswer

NAME = "Authentication-Results"
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~@/-]+")
_NOT_IN_COMMENT = re.compile(r"[^ !#-'*-\[\]-~]")


@dataclass(frozen=True, slots=True)
class Checks:
    """All that was checked of one message; None where a thing was not."""

    spf: SPFAnswer | None
    spf_property: str  # "smtp.mailfrom=…" or "smtp.helo=…", see :func:`property_of`
    dkim: tuple[SignatureCheck, ...]
    arc: ChainCheck
    dmarc: DmarcCheck


def property_of(name: str, value: str) -> str:
    """``name=value``, quoted where the value is no token (RFC 8601 §2.2). Control characters go."""
    value = "".join(ch for ch in value if ch.isprintable())
    if name == "smtp.helo":
        # A HELO name may be beyond ASCII in any session; the field must not make the message need SMTPUTF8.
        value = value.encode("ascii", "replace").decode("ascii")
    if _TOKEN.fullmatch(value):
        return f"{name}={value}"
    return f'{name}="{value.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'


def _comment(text: str) -> str:
    text = _NOT_IN_COMMENT.sub("", text)[:120].strip()
    return f" ({text})" if text else ""


def field_value(authserv_id: str, checks: Checks) -> str:
    """The value of the field, folded: one method a line."""
    return f"{authserv_id};\r\n\t" + ";\r\n\t".join(_methods(checks))


def _methods(checks: Checks) -> Iterable[str]:
    if checks.spf is not None:
        yield f"spf={checks.spf.result}{_spf_comment(checks.spf)} {checks.spf_property}"
    if not checks.dkim:
        yield "dkim=none"
    for one in checks.dkim:
        yield _dkim_method(one)
    yield f"arc={checks.arc.result}{_comment(checks.arc.text)}"
    yield _dmarc_method(checks.dmarc)


def _spf_comment(answer: SPFAnswer) -> str:
    return "" if answer.result in ("pass", "none") else _comment(answer.text)


def _dkim_method(one: SignatureCheck) -> str:
    properties = [
        property_of(name, value)
        for name, value in (
            ("header.d", one.domain),
            ("header.s", one.selector),
            ("header.i", one.identity),
            ("header.a", one.algorithm),
            ("header.b", one.beginning),
        )
        if value
    ]
    return " ".join([f"dkim={one.result}{_comment(one.text)}", *properties])


def _dmarc_method(check: DmarcCheck) -> str:
    asked = f" (p={check.policy} dis={check.disposition.value})" if check.policy else _comment(check.text)
    author = " " + property_of("header.from", check.domain) if check.domain else ""
    return f"dmarc={check.result}{asked}{author}"


def claims(value: str, authserv_id: str) -> bool:
    """Whether a field that a client made claims to be ours, or can't be read: both go (RFC 8601 §5)."""
    found = _authserv_id(value)
    return found is None or found == _folded(authserv_id)


def own_results(fields: Iterable[bytes], authserv_id: str) -> bytes:
    """What all our fields say together, as one value (RFC 8617 §4.1.1); b"" where there is none."""
    parts = [
        content.strip()
        for value in fields
        if _authserv_id(value.decode("utf-8", "replace")) == _folded(authserv_id)
        for content in [value.partition(b";")[2]]
    ]
    return b";\r\n\t".join([authserv_id.encode("ascii"), *parts]) if parts else b""


def authserv_id_of(value: bytes) -> str:
    """The name that a field of ours is written under; "" where it can't be read."""
    return _authserv_id(value.decode("utf-8", "replace")) or ""


def _folded(name: str) -> str:
    return name.rstrip(".").casefold()


def _authserv_id(text: str) -> str | None:
    text = text.replace("\r\n", "")
    name = _NAME.match(text, _behind_comments(text))
    if name is None:
        return None
    return _folded(name[2] if name[1] is None else re.sub(r"\\(.)", r"\1", name[1]))


_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s;("]+)')


def _behind_comments(text: str) -> int:
    """The place of the first character that is neither a blank nor in a comment; comments nest (RFC 5322
    §3.2.2). Looks at each character once: a client writes the text."""
    depth = at = 0
    while at < len(text):
        char = text[at]
        if char == "(":
            depth += 1
        elif depth and char == ")":
            depth -= 1
        elif depth and char == "\\":
            at += 1
        elif not depth and not char.isspace():
            return at
        at += 1
    return len(text)
