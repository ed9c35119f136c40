"""SPF of a session's sender, for the policies that ask."""

from __future__ import annotations

from elemta.policies.mail_auth.dns_facts import DnsFacts, FactType, evaluate
from elemta.policies.mail_auth.spf import SPFAnswer, SPFQuestion, check_spf
from elemta.policy import Resolver, Services, Session, Transaction


class ResolverLookups:
    """A policy's resolver, asked by type."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def lookup(self, name: str, kind: FactType) -> tuple[object, ...]:
        if kind is FactType.TXT:
            return await self._resolver.text(name)
        records = await self._resolver.records(name, kind.value)
        if kind is FactType.MX:
            pairs = (record.split(None, 1) for record in records)
            return tuple((int(preference), host.rstrip(".")) for preference, host in pairs)
        if kind is FactType.PTR:
            return tuple(record.rstrip(".") for record in records)
        return tuple(records)


def spf_domain(session: Session, transaction: Transaction) -> str:
    """The domain whose record is evaluated, in lower case (RFC 7208 §2.4)."""
    sender = str(transaction.sender)
    return (sender.rpartition("@")[2] if sender else session.helo).lower()


class SPFLookup:
    """Checks SPF with a policy's services: the sender, or the HELO name where the sender is null."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lookups = ResolverLookups(services.resolver)

    async def check(
        self, session: Session, transaction: Transaction, facts: DnsFacts | None = None
    ) -> SPFAnswer:
        """RFC 7208 §2.4. ``facts`` are known already."""
        question = SPFQuestion(
            str(session.client_ip), session.helo, str(transaction.sender), self._services.hostname
        )
        return await evaluate(
            lambda known: check_spf(question, known), self._lookups, self._services.threads, facts
        )
