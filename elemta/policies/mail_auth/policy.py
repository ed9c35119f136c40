"""The policy ``mail-auth``: the domains that stand behind a message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar

from zope.interface import implementer

from elemta.policies.mail_auth import field as results_field
from elemta.policies.mail_auth.body_hash import BodyHash, BodyHashKind, hash_body
from elemta.policies.mail_auth.dmarc import (
    Disposition,
    DmarcCheck,
    Suffixes,
    VouchedDomains,
    ascii_domain,
    author_domains,
    check_dmarc,
    wanted_records,
)
from elemta.policies.mail_auth.dns_facts import DnsFacts, FactType, Question, evaluate, fetch
from elemta.policies.mail_auth.message_reader import fields_of, from_values, read_raw_header
from elemta.policies.mail_auth.options import Enforcement, MailAuthOptions
from elemta.policies.mail_auth.signatures import (
    ChainCheck,
    Header,
    SignatureCheck,
    check_arc,
    check_dkim,
    wanted_body_hashes,
    wanted_keys,
)
from elemta.policies.mail_auth.spf import SPFAnswer, has_spf
from elemta.policies.mail_auth.spf_lookup import ResolverLookups, SPFLookup, spf_domain
from elemta.policies.own_clients import is_exempt
from elemta.policy import (
    CONTINUE,
    ARCResult,
    DKIMResult,
    DKIMSignature,
    DMARCResult,
    IMessagePolicy,
    Message,
    Quarantine,
    Reject,
    Services,
    Session,
    SPFResult,
    Transaction,
    Verdict,
)

# What was not read can't be checked, and it may hold an Authentication-Results field that claims to be ours.
TOO_LONG = Reject("The header of the message is too long", code=552, enhanced="5.3.4")
SPF_FAIL = Reject("SPF: the sender's domain does not allow this client", code=550, enhanced="5.7.23")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """What is kept of a message: its header's fields, the hashes of its body, the names of its keys, and the
    domains of its authors."""

    header: Header
    bodies: dict[BodyHashKind, BodyHash]
    keys: Sequence[Question]
    authors: tuple[str, ...] | None


def read_message(stream: BinaryIO) -> ReadMessage | None:
    """Read a message once, in blocks; None where its header is too long. Blocks: call it in a thread."""
    with stream:
        raw = read_raw_header(stream)
        if raw is None:
            return None
        header = fields_of(raw)
        bodies = hash_body(stream, wanted_body_hashes(header))
    return ReadMessage(header, bodies, wanted_keys(header), author_domains(from_values(raw)))


@implementer(IMessagePolicy)
class MailAuthPolicy:
    """Checks SPF, DKIM, ARC and DMARC of each message once it is whole."""

    def __init__(self, options: MailAuthOptions, services: Services) -> None:
        self._options = options
        self._services = services
        self._id = options.authserv_id or services.hostname
        self._lookups = ResolverLookups(services.resolver)
        self._spf_lookup = SPFLookup(services)
        self._suffixes = Suffixes()
        self._trusted = {ascii_domain(domain) for domain in options.trusted_arc}
        self._results = services.metrics.counter(
            "results_total", "Results of checks, by method.", ("method", "result")
        )

    async def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:
        try:
            message.remove_header(
                results_field.NAME, where=lambda value: results_field.claims(value, self._id)
            )
        except ValueError:  # the header is too long to be changed
            return TOO_LONG
        if is_exempt(session, self._services.domains, self._options.exempt):
            return CONTINUE
        read = await self._services.threads(read_message, message.open())
        if read is None:
            return TOO_LONG
        domain = spf_domain(session, transaction)
        record: list[Question] = [(domain.rstrip("."), FactType.TXT)] if has_spf(domain) else []
        facts = DnsFacts()
        wanted = (*record, *wanted_records(read.authors, self._suffixes), *read.keys)
        await fetch(self._lookups, facts, wanted)
        # The number of its questions is bounded on its own.
        spf_facts = DnsFacts({question: facts.known[question] for question in record})
        spf = await self._spf_lookup.check(session, transaction, spf_facts)
        signatures = await self._evaluate(partial(check_dkim, read.header, read.bodies), facts)
        chain = await self._evaluate(partial(check_arc, read.header, read.bodies), facts)
        seen = VouchedDomains(
            spf=domain if spf.result == "pass" else "",
            dkim=tuple(one.domain for one in signatures if one.result == "pass"),
            unsure_spf=domain if spf.result == "temperror" else "",
            unsure_dkim=tuple(one.domain for one in signatures if one.result == "temperror"),
        )
        sample = (transaction.queue_id or session.id).encode()
        dmarc = await self._evaluate(partial(check_dmarc, read.authors, seen, self._suffixes, sample), facts)
        checks = results_field.Checks(spf, _spf_property(session, transaction), signatures, chain, dmarc)
        message.add_header(results_field.NAME, results_field.field_value(self._id, checks))
        self._publish(transaction, domain, checks)
        return self._verdict(spf, chain, dmarc)

    async def _evaluate(self, step: Callable[[DnsFacts], Result], facts: DnsFacts) -> Result:
        return await evaluate(step, self._lookups, self._services.threads, facts)

    def _publish(self, transaction: Transaction, domain: str, checks: results_field.Checks) -> None:
        results = transaction.results
        if checks.spf is not None:
            results.publish(SPFResult(checks.spf.result, domain, checks.spf.text))
            self._count("spf", checks.spf.result)
        results.publish(DKIMResult(tuple(map(_published, checks.dkim))))
        for one in checks.dkim:
            self._count("dkim", one.result)
        results.publish(ARCResult(checks.arc.result, checks.arc.sealers, checks.arc.text))
        self._count("arc", checks.arc.result)
        results.publish(
            DMARCResult(
                checks.dmarc.result, checks.dmarc.domain, checks.dmarc.disposition.value, checks.dmarc.text
            )
        )
        self._count("dmarc", checks.dmarc.result)

    def _count(self, method: str, result: str) -> None:
        self._results.labels(method, result).inc()

    def _verdict(self, spf: SPFAnswer, chain: ChainCheck, dmarc: DmarcCheck) -> Verdict:
        if self._options.spf_reject and spf.result == "fail":
            return SPF_FAIL
        if self._options.dmarc is not Enforcement.ENFORCE or self._trusts(chain):
            return CONTINUE
        if dmarc.disposition is Disposition.REJECT:
            problem = "does not stand behind this message"
            words = f"{dmarc.domain} {problem}" if dmarc.domain else "the From field names too many authors"
            return Reject(f"DMARC: {words}", code=550, enhanced="5.7.26")
        if dmarc.disposition is Disposition.QUARANTINE:
            return Quarantine(f"DMARC: {dmarc.domain} asks to quarantine what fails")
        return CONTINUE

    def _trusts(self, chain: ChainCheck) -> bool:
        """Whether the newest sealer is a trusted forwarder (RFC 8617 §7.2.1)."""
        if chain.result != "pass" or not chain.sealers or ascii_domain(chain.sealers[0]) not in self._trusted:
            return False
        return "dmarc=fail" not in "".join(chain.newest_results.lower().split())


def _spf_property(session: Session, transaction: Transaction) -> str:
    sender = str(transaction.sender)
    if sender:
        return results_field.property_of("smtp.mailfrom", sender)
    return results_field.property_of("smtp.helo", session.helo)


def _published(one: SignatureCheck) -> DKIMSignature:
    return DKIMSignature(one.result, one.domain, one.selector, one.identity, one.algorithm, one.text)
