"""The questions that DNS answers here."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred

from elemta.dns.answers import (
    DNSAnswer,
    DnsQuestion,
    LookupFailure,
    MailExchanger,
    NoData,
    OtherType,
    RecordType,
    Result,
)
from elemta.dns.names import canonical_name, reverse_name
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.ip import IPAddress, unmapped

Ask = Callable[[DnsQuestion, "float | None"], Deferred[Result]]


class Questions:
    """The questions of one user of the resolver.

    Every method ends within the resolver's deadline, and within ``timeout`` seconds where that is less. It
    raises

    - :class:`~elemta.errors.NoSuchDomain` when the name does not exist or can't be a name;
    - :class:`~elemta.errors.ResolverTrouble` when no server gave a usable answer in time, when too many
      lookups are under way, and when the resolver does not run.

    That a name exists but has no such record is no error: the answer is empty. Names are taken in any
    spelling, also with U-labels, and are always whole: there is no search list, and /etc/hosts isn't read.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def mail_exchangers(
        self, domain: str, *, timeout: float | None = None
    ) -> tuple[MailExchanger, ...]:
        """The MX records of a domain, the most preferred first and equal ones by name.

        Empty where there is none, and the domain's own addresses serve (RFC 5321 §5.1); ``(NULL_MX,)`` where
        the domain takes no mail (RFC 7505 §3). Records that name no possible host are left out; a domain with
        no other raises NoSuchDomain.
        """
        question = DnsQuestion(canonical_name(domain), RecordType.MX)
        result = await self._ask(question, timeout)
        if isinstance(result, DNSAnswer) and not result.records:
            # Not the same as none: then it would be its own exchanger.
            raise NoSuchDomain(f"the MX records of {question.name} name no possible host")
        return _records(question, result)

    async def addresses(self, host: str, *, timeout: float | None = None) -> tuple[IPAddress, ...]:
        """The addresses of a host, IPv6 first; each kind in the order of the answer.

        Where only one kind could be looked up, and it has some, those.
        """
        name = canonical_name(host)
        questions = (DnsQuestion(name, RecordType.AAAA), DnsQuestion(name, RecordType.A))
        lookups = [self._ask(question, timeout) for question in questions]
        results = []
        try:
            for lookup in lookups:
                results.append(await lookup)
        finally:
            for lookup in lookups:
                if not lookup.called:
                    lookup.addErrback(lambda _: None)
                    lookup.cancel()
        found: list[Any] = [
            record for result in results if isinstance(result, DNSAnswer) for record in result.records
        ]
        if not found:
            for question, result in zip(questions, results, strict=True):
                # Where one kind is only empty, the name exists, whatever is said about the other.
                if isinstance(result, LookupFailure) or all(_denies_name(each) for each in results):
                    _records(question, result)
        return tuple(found)

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The TXT records of a name, the strings of each put together."""
        question = DnsQuestion(canonical_name(name), RecordType.TXT)
        return _records(question, await self._ask(question, timeout))

    async def reverse(self, ip: str | IPAddress, *, timeout: float | None = None) -> tuple[str, ...]:
        """The names that the owner of an address gives it (PTR), unconfirmed: an owner may claim any name.

        An IPv4 address in IPv6 clothes is asked for as IPv4. Raises ValueError for what is no IP address.
        """
        address = unmapped(ip_address(ip) if isinstance(ip, str) else ip)
        question = DnsQuestion(reverse_name(address), RecordType.PTR)
        return _records(question, await self._ask(question, timeout))

    async def records(self, name: str, kind: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The records of any type, each as text in the form of zone files (RFC 1035 §5.1).

        ``kind`` is the type's name, as ``"TLSA"``. ValueError where no record can have it.
        """
        question = DnsQuestion(canonical_name(name), OtherType.of(kind))
        return _records(question, await self._ask(question, timeout))


def _records(question: DnsQuestion, result: Result) -> tuple[Any, ...]:
    """The records of a result, which are of the question's type, or what it says instead as an error."""
    if isinstance(result, DNSAnswer):
        return result.records
    if isinstance(result, LookupFailure):
        raise ResolverTrouble(f"looking up {question}: {result.text}", local=result.local)
    if not result.name_exists:
        raise NoSuchDomain(f"{question.name} does not exist")
    return ()


def _denies_name(result: Result) -> bool:
    return isinstance(result, NoData) and not result.name_exists
