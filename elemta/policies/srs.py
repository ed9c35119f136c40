"""The policy ``srs``: the Sender Rewriting Scheme, so that SPF holds for mail that is forwarded elsewhere.

A forwarded message leaves with a sender in a domain of ours that names the original one:
``SRS0=hash=day=domain=local@ours``. A bounce to that address goes back to the original sender. A message that
was rewritten by another forwarder before gets ``SRS1=hash=forwarder==…`` instead, so addresses do not grow.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.option_checks import domain_faults, refuse
from elemta.policies.own_clients import is_exempt
from elemta.policies.secret_file import read_secrets
from elemta.policy import (
    CONTINUE,
    REQUIRED,
    Address,
    AddressSyntaxError,
    IDataPolicy,
    IPolicyPlugin,
    IRcptPolicy,
    Recipient,
    Reject,
    Services,
    Session,
    Transaction,
    Verdict,
    setting,
)

HASH_LENGTH = 4
VALID_DAYS = 21
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_DAYS = 1024
_SRS0 = re.compile(r"SRS0[=+-]([^=]{4,})=([A-Z2-7]{2})=([^=]+)=(.*)", re.IGNORECASE | re.DOTALL)
_SRS1 = re.compile(r"SRS1[=+-]([^=]{4,})=([^=]+)=([=+-].*)", re.IGNORECASE | re.DOTALL)
# Those of other forwarders, which have hashes and days of their own forms.
_FOREIGN_SRS0 = re.compile(r"SRS0([=+-].+)", re.IGNORECASE | re.DOTALL)
_FOREIGN_SRS1 = re.compile(r"SRS1[=+-][^=]+=([^=]+)=([=+-].*)", re.IGNORECASE | re.DOTALL)

NOT_OURS = Reject("This address was not made here, or is too old", code=550, enhanced="5.1.1")


class SrsError(Exception):
    """An address that looks rewritten, but not by us, or too long ago."""


@dataclass(frozen=True, slots=True)
class SrsOptions:
    """The keys of [policy.srs]."""

    domain: str = setting(REQUIRED, "Domain of rewritten senders. It has to lead here.", not_empty=True)
    secret_file: Path = setting(
        REQUIRED,
        "File with secrets, one a line: the first makes addresses, each is accepted. The same on every node.",
    )


class Rewriter:
    """Makes rewritten addresses and reads them. ``day`` gives the days since 1970."""

    def __init__(self, domain: str, secrets: Sequence[bytes], day: Callable[[], int]) -> None:
        self.domain = domain
        self._secrets = secrets
        self._day = day

    def forward(self, sender: Address) -> Address:
        """The sender to forward with. The null sender and one that is ours already stay."""
        local, domain = sender.local, sender.domain
        if not domain or domain.lower() == self.domain.lower():
            return sender
        if (again := _FOREIGN_SRS1.fullmatch(local)) is not None:
            first, rest = again.groups()
        elif (once := _FOREIGN_SRS0.fullmatch(local)) is not None:
            first, rest = domain, once[1]
        else:
            day = self._day() % _DAYS
            stamp = _BASE32[day >> 5] + _BASE32[day & 31]
            made = f"SRS0={self._hash(stamp, domain, local)}={stamp}={domain}={local}"
            return Address(made, self.domain)
        return Address(f"SRS1={self._hash(first, rest)}={first}={rest}", self.domain)

    def reverse(self, local: str) -> Address:
        """The address that a rewritten local part stands for. Raises :class:`SrsError`."""
        if (once := _SRS0.fullmatch(local)) is not None:
            given, stamp, domain, original = once.groups()
            self._check(given, stamp, domain, original)
            if not self._is_recent(stamp):
                raise SrsError("the address is too old")
            return Address(original, _domain(domain))
        if (twice := _SRS1.fullmatch(local)) is not None:
            given, first, rest = twice.groups()
            self._check(given, first, rest)
            return Address(f"SRS0{rest}", _domain(first))
        raise SrsError("the address was not made by us")

    def _is_recent(self, stamp: str) -> bool:
        high, low = (_BASE32.index(char) for char in stamp.upper())
        return (self._day() - ((high << 5) | low)) % _DAYS <= VALID_DAYS

    def _hash(self, *parts: str) -> str:
        return _digest(self._secrets[0], parts)[:HASH_LENGTH]

    def _check(self, given: str, *parts: str) -> None:
        # Systems on the way may change the case of a local part.
        for secret in self._secrets:
            expected = _digest(secret, parts)[: len(given)]
            if hmac.compare_digest(expected.lower().encode(), given.lower().encode("utf-8", "replace")):
                return
        raise SrsError("the address is forged")


def _domain(text: str) -> str:
    """A domain whose case a system on the way may have changed."""
    domain = text.lower()
    return f"[IPv6:{domain[6:]}" if domain.startswith("[ipv6:") else domain


def _digest(secret: bytes, parts: Sequence[str]) -> str:
    text = "".join(part.lower() for part in parts).encode("utf-8")
    return base64.b64encode(hmac.digest(secret, text, "sha1")).decode("ascii")


def is_rewritten(local: str) -> bool:
    """Whether a local part claims to be rewritten."""
    return re.match(r"SRS[01][=+-]", local, re.IGNORECASE) is not None


@implementer(IRcptPolicy, IDataPolicy)
class SrsPolicy:
    """Sends bounces back at RCPT, and rewrites the sender before the message comes."""

    def __init__(self, options: SrsOptions, services: Services) -> None:
        secrets = read_secrets("secret_file", options.secret_file)
        self._domains = services.domains
        self._log = services.log
        self._rewriter = Rewriter(
            options.domain.rstrip(".").lower(), secrets, lambda: int(services.wall() // 86400)
        )

    def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:  # noqa: ARG002
        address = recipient.address
        if address.domain.lower() != self._rewriter.domain.lower() or not is_rewritten(address.local):
            return CONTINUE
        try:
            original = self._rewriter.reverse(address.local)
        except SrsError:
            return NOT_OURS
        transaction.replace_recipient(recipient, [original])
        return CONTINUE

    def data(self, session: Session, transaction: Transaction) -> Verdict:
        """Mail of our users keeps its sender."""
        sender = transaction.sender
        if is_exempt(session, self._domains) or not sender:
            return CONTINUE
        if self._domains.is_local(sender.domain):
            return CONTINUE
        if any(self._leaves(one.address) for one in transaction.recipients):
            try:
                transaction.sender = self._rewriter.forward(sender)
            except AddressSyntaxError:
                # It is too long for an address then: SPF fails, but no other node could rewrite it, either.
                self._log.info(
                    "a sender is too long to be rewritten", session_id=session.id, sender=str(sender)
                )
        return CONTINUE

    def _leaves(self, recipient: Address) -> bool:
        """Whether mail for the recipient leaves this host, by itself or by an alias."""
        domains = self._domains
        return any(not domains.is_local(target.domain) for target in domains.expand(recipient))


@implementer(IPlugin, IPolicyPlugin)
class SrsPlugin:
    """Rewrites the sender of what is forwarded elsewhere, and back."""

    name = "srs"
    contract = "2"
    options = SrsOptions

    def build(self, options: SrsOptions, services: Services) -> SrsPolicy:
        """Raises ConfigError where the domain is none, or there is no secret."""
        refuse(domain_faults("domain", options.domain))
        return SrsPolicy(options, services)
