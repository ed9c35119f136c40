"""SPF (RFC 7208), by pyspf."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

import spf

from elemta.policies.mail_auth.dns_facts import DnsFacts, FactType

_HOST = re.compile(r"[^\s\[\]:@]+\.[^\s\[\]:@]+")
MAX_VOID_LOOKUPS = 2  # RFC 7208 §4.6.4
MAX_RESULT_TEXT = 250
MAX_RECORD = 8 * 1024  # characters; RFC 7208 §3.4 wants 450, and each evaluation reads all records again


@dataclass(frozen=True, slots=True)
class SPFQuestion:
    """What is asked: the client's address, its HELO name, and the sender, "" for the null sender."""

    client_ip: str
    helo: str
    sender: str
    receiver: str


@dataclass(frozen=True, slots=True)
class SPFAnswer:
    """The result in RFC 7208's words, and for people why."""

    result: str
    text: str


class _SpfQuery(spf.query):  # type: ignore[misc]
    """pyspf's evaluation over a table of answers."""

    def __init__(self, question: SPFQuestion, facts: DnsFacts) -> None:
        self._facts = facts
        super().__init__(
            i=question.client_ip,
            s=question.sender,
            h=question.helo,
            receiver=question.receiver,
            strict=True,
        )

    def dns(
        self,
        name: str,
        qtype: str,
        cnames: object = None,  # noqa: ARG002
        ignore_void: bool = False,
    ) -> list[Any]:
        """The records as pyspf wants them. Aliases are followed by the resolver."""
        name = str(name).rstrip(".")
        if not name or any(not 0 < len(label) < 64 for label in name.split(".")) or len(name) > 253:
            return []
        fact = self._facts.get(name, FactType(qtype))
        if fact.trouble is not None:
            raise spf.TempError("DNS " + fact.trouble)
        if not fact.values and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > MAX_VOID_LOOKUPS:
                raise spf.PermError(f"Void lookup limit of {MAX_VOID_LOOKUPS} exceeded")
        if qtype == "TXT" and any(_is_too_long(value) for value in fact.values):
            raise spf.PermError("an SPF record is too long")
        return [_as_pyspf(value, qtype) for value in fact.values]


def _is_too_long(text: Any) -> bool:
    return len(text) > MAX_RECORD and text[:6].lower() == "v=spf1"


def _as_pyspf(value: Any, qtype: str) -> object:
    if qtype == "AAAA":
        return IPv6Address(value).packed
    if qtype == "TXT":
        return (value.encode("utf-8", "surrogateescape"),)
    return value


def has_spf(domain: str) -> bool:
    """Whether a name can have a record: an address literal and a single label have none (RFC 7208 §4.3)."""
    return _HOST.fullmatch(domain) is not None


def check_spf(question: SPFQuestion, facts: DnsFacts) -> SPFAnswer:
    """Evaluate SPF of the sender, or of the HELO name where the sender is null (RFC 7208 §2.4)."""
    if not has_spf(question.sender.rpartition("@")[2] if question.sender else question.helo):
        return SPFAnswer("none", "")
    query = _SpfQuery(question, facts)
    result, _code, text = query.check()
    return SPFAnswer(result, text[:MAX_RESULT_TEXT])
