"""One lookup over all servers: which to ask next, and what an answer means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from elemta.dns.answers import (
    NULL_MX,
    AnyType,
    DNSAnswer,
    DnsQuestion,
    LookupFailure,
    MailExchanger,
    NoData,
    OtherType,
    Record,
    RecordType,
    Result,
)
from elemta.dns.names import host_name, to_dns
from elemta.dns.servers import Nameserver, Nameservers
from elemta.dns.transport import PAYLOAD, DNSTransport, NoAnswer, ServerFailed
from elemta.runtime import Runtime

# Seconds for an answer: in the first round over the servers, the second, and all that follow.
ANSWER_SECONDS = (1.5, 3.0, 6.0)
# How often another name is asked for because an answer ended in an alias.
_MOST_ALIASES = 8
_MOST_RECORDS = 256
_NO_EDNS = frozenset({dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS})
_USABLE = frozenset({dns.rcode.NOERROR, dns.rcode.NXDOMAIN})


class Lookup:
    """Asks the servers in turn, until one has an answer or the time is over."""

    def __init__(self, servers: Nameservers, exchange: DNSTransport, runtime: Runtime) -> None:
        self._servers = servers
        self._exchange = exchange
        self._seconds = runtime.monotonic
        self._randomness = runtime.randomness

    async def look_up(self, question: DnsQuestion, until: Callable[[], float]) -> Result:
        """What DNS says, aliases followed; can be cancelled, and raises nothing that a server could provoke.

        ``until`` is the time until which a caller waits; it may grow meanwhile.
        """
        name = to_dns(question.name)
        ttl = float("inf")
        for _ in range(_MOST_ALIASES):
            answer = await self._ask_in_turn(name, question.kind, until)
            if isinstance(answer, LookupFailure):
                return answer
            read = read_answer(answer, question.kind)
            if isinstance(read, Alias):
                name, ttl = read.name, min(ttl, read.ttl)
                continue
            return _not_longer(read, ttl)
        return LookupFailure("a chain of too many aliases")

    async def _ask_in_turn(
        self, name: dns.name.Name, kind: AnyType, until: Callable[[], float]
    ) -> dns.message.QueryMessage | LookupFailure:
        failures: dict[Nameserver, str] = {}
        servers = list(self._servers.in_order())
        for turn in range(100):
            wait = ANSWER_SECONDS[min(turn, len(ANSWER_SECONDS) - 1)]
            for server in tuple(servers):
                now = self._seconds()
                end = until()
                if now >= end:
                    return _no_answer(failures)
                try:
                    # What drops questions with EDNS may answer one without.
                    answer = await self._ask(server, name, kind, min(now + wait, end), edns=turn == 0)
                except NoAnswer:
                    self._servers.was_silent(server)
                    failures.setdefault(server, "no answer in time")
                except ServerFailed as failure:
                    self._servers.was_silent(server)
                    failures[server] = str(failure)
                    servers.remove(server)
                else:
                    self._servers.answered(server)
                    fault = _fault(answer)
                    if not fault:
                        return answer
                    failures[server] = fault
                    servers.remove(server)
            if not servers:
                break
        return _no_answer(failures)

    async def _ask(
        self,
        server: Nameserver,
        name: dns.name.Name,
        kind: AnyType,
        until: float,
        *,
        edns: bool,
    ) -> dns.message.QueryMessage:
        answer = await self._exchange.ask(server, self._query(name, kind, edns=edns), until)
        if edns and answer.rcode() in _NO_EDNS:
            # RFC 6891 §6.2.2
            return await self._exchange.ask(server, self._query(name, kind, edns=False), until)
        return answer

    def _query(self, name: dns.name.Name, kind: AnyType, *, edns: bool) -> dns.message.QueryMessage:
        if edns:
            query = dns.message.make_query(name, kind.value, use_edns=0, payload=PAYLOAD)
        else:
            query = dns.message.make_query(name, kind.value, use_edns=False)
        # RFC 5452 §9.2
        query.id = self._randomness.getrandbits(16)
        return query


@dataclass(frozen=True, slots=True)
class Alias:
    """The answer ends in another ``name``, about which it says nothing; good for ``ttl`` seconds."""

    name: dns.name.Name
    ttl: float


def read_answer(answer: dns.message.QueryMessage, kind: AnyType) -> Result | Alias:
    """What a usable answer says about the records of its question."""
    try:
        chain = answer.resolve_chaining()
    except dns.exception.DNSException:
        return LookupFailure("an answer with a loop of aliases, or one that contradicts itself")
    if chain.answer is not None:
        return DNSAnswer(_records(chain.answer, kind), float(chain.minimum_ttl))
    # RFC 2308 §2.1, §2.2
    denied = _has(answer, dns.rdatatype.SOA)
    if answer.rcode() == dns.rcode.NXDOMAIN:
        return NoData(name_exists=False, ttl=float(chain.minimum_ttl) if denied else None)
    if chain.cnames and not denied:
        return Alias(chain.canonical_name, float(min(rrset.ttl for rrset in chain.cnames)))
    return NoData(name_exists=True, ttl=float(chain.minimum_ttl) if denied else None)


def _fault(answer: dns.message.QueryMessage) -> str:
    """Why this answer is of no use; empty where it is of use."""
    rcode = answer.rcode()
    if rcode not in _USABLE:
        return dns.rcode.to_text(rcode)
    is_empty = not answer.answer and rcode == dns.rcode.NOERROR
    if is_empty and _has(answer, dns.rdatatype.NS) and not _has(answer, dns.rdatatype.SOA):
        # RFC 2308 §2.2: a referral looks like "no such record" at first sight.
        return "does not resolve for others"
    return ""


def _has(answer: dns.message.QueryMessage, rdtype: dns.rdatatype.RdataType) -> bool:
    return any(rrset.rdtype == rdtype for rrset in answer.authority)


def _not_longer(result: Result, ttl: float) -> Result:
    if isinstance(result, DNSAnswer):
        return DNSAnswer(result.records, min(result.ttl, ttl))
    if isinstance(result, NoData) and result.ttl is not None:
        return NoData(result.name_exists, min(result.ttl, ttl))
    return result


def _no_answer(failures: Mapping[Nameserver, str]) -> LookupFailure:
    # A server also fails for a zone that is broken. Which it is shows when other zones are answered for.
    text = "; ".join(f"{server}: {text}" for server, text in failures.items()) or "no time to ask"
    return LookupFailure(text, local=True)


def _records(rrset: Any, kind: AnyType) -> tuple[Record, ...]:
    if kind is RecordType.MX:
        return _exchangers(rrset)
    if isinstance(kind, OtherType):
        return tuple(dict.fromkeys(rdata.to_text() for rdata in rrset))[:_MOST_RECORDS]
    return tuple(dict.fromkeys(_READERS[kind](rrset)))[:_MOST_RECORDS]


def _exchangers(rrset: Any) -> tuple[MailExchanger, ...]:
    # RFC 7505 §3: the root is no host, and where it is all that there is, no mail is taken.
    if all(rdata.exchange == dns.name.root for rdata in rrset):
        return (NULL_MX,)
    named = ((rdata.preference, host_name(rdata.exchange)) for rdata in rrset)
    found = {MailExchanger(preference, host) for preference, host in named if host is not None}
    return tuple(sorted(found))[:_MOST_RECORDS]


_READERS: Mapping[RecordType, Callable[[Any], list[Record]]] = {
    RecordType.A: lambda rrset: [IPv4Address(rdata.address) for rdata in rrset],
    RecordType.AAAA: lambda rrset: [IPv6Address(rdata.address) for rdata in rrset],
    # RFC 7208 §3.3: the strings of one record are one text.
    RecordType.TXT: lambda rrset: [b"".join(rdata.strings).decode("utf-8", "replace") for rdata in rrset],
    RecordType.PTR: lambda rrset: [host for rdata in rrset if (host := host_name(rdata.target)) is not None],
}
