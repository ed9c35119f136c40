"""Signs each message of ours that leaves, and seals what is forwarded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from zope.interface import implementer

from elemta.policies.dkim_sign.options import DkimSignOptions
from elemta.policies.dkim_sign.signature import (
    Chain,
    Header,
    KeyFileFault,
    SigningKey,
    arc_set,
    dkim_signature,
    load_key,
)
from elemta.policies.mail_auth.body_hash import BodyHashKind, hash_body
from elemta.policies.mail_auth.dmarc import ascii_domain, only_author_domain
from elemta.policies.mail_auth.field import authserv_id_of, own_results
from elemta.policies.mail_auth.message_reader import read_header
from elemta.policies.option_checks import domain_faults
from elemta.policy import ConfigError, Envelope, Fault, ISigner, OutgoingMessage, Services

NOTICES = "bounce"
"""The listener that the envelope of our own notices names."""
_RELAXED = BodyHashKind(relaxed=True, limit=None)
_ARC = (b"arc-seal", b"arc-message-signature", b"arc-authentication-results")
_INSTANCE = re.compile(rb"(?:^|[;\s])i\s*=\s*([0-9]{1,2})\s*(?:;|$)")


_STATUS = re.compile(rb"(?:^|[;\s])arc\s*=\s*(none|pass|fail)")
# A sender or a HELO name, in the client's own words, and comments.
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"|\([^()]*\)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Read:
    header: Header
    digest: bytes


@implementer(ISigner)
class DkimSignPolicy:
    """Reads each message once, in a thread, and signs it there."""

    def __init__(self, options: DkimSignOptions, services: Services) -> None:
        self._services = services
        self._sign_for = frozenset(options.sign_for)
        self._arc = options.arc
        self._keys = _load(options)
        self._signed = services.metrics.counter(
            "signed_total", "Fields added, by kind: dkim, arc.", ("kind",)
        )

    async def sign(self, envelope: Envelope, message: OutgoingMessage) -> None:
        is_ours = self._is_ours(envelope)
        if not is_ours and not self._is_forwarded(envelope):
            return
        now = int(self._services.wall())
        notice = envelope.client.listener == NOTICES
        fields = await self._services.threads(self._make, message.open(), now, notice, is_ours)
        for name, value in reversed(fields):
            message.add_header(name.decode("ascii"), value.decode("utf-8", "replace"))
            self._signed.labels("dkim" if name == b"DKIM-Signature" else "arc").inc()

    def _is_ours(self, envelope: Envelope) -> bool:
        client = envelope.client
        if client.listener == NOTICES:
            return "notices" in self._sign_for
        if client.user is not None:
            return "submission" in self._sign_for
        return "relay_from" in self._sign_for and self._services.domains.may_relay(client.ip)

    def _is_forwarded(self, envelope: Envelope) -> bool:
        """Whether a message from outside leaves again."""
        client, domains = envelope.client, self._services.domains
        if not self._arc or client.listener == NOTICES or client.user is not None:
            return False
        return any(not domains.is_local(one.address.domain) for one in envelope.recipients)

    def _make(self, file: BinaryIO, now: int, notice: bool, is_ours: bool) -> Header:
        """The fields to add, the topmost first. Blocks: it is called in a thread."""
        with file:
            header = read_header(file)
            if header is None:
                return []  # no verifier reads as much
            digest = hash_body(file, [_RELAXED])[_RELAXED].digest
        read = _Read(header, digest)
        return self._signatures(read, now, notice=notice) if is_ours else self._seal(read, now)

    def _signatures(self, read: _Read, now: int, *, notice: bool) -> Header:
        if notice:
            keys = self._keys_of_host()
        else:
            author = only_author_domain([value for name, value in read.header if name.lower() == b"from"])
            keys = [key for key in self._keys if key.domain == author]
        return [(b"DKIM-Signature", dkim_signature(read.header, read.digest, key, now)) for key in keys]

    def _keys_of_host(self) -> Sequence[SigningKey]:
        """The keys of this host's name, or of its nearest parent that has some."""
        domain = ascii_domain(self._services.hostname)
        while domain:
            if keys := [key for key in self._keys if key.domain == domain]:
                return keys
            domain = domain.partition(".")[2]
        return ()

    def _seal(self, read: _Read, now: int) -> Header:
        results = _own_results(read.header, self._services.hostname)
        keys = self._keys_of_host() or self._keys
        status = _STATUS.search(_QUOTED.sub(b"", results.lower()))
        chain = _chain(read.header, status[1].decode("ascii") if status else "")
        if not results or not keys or chain is None:
            return []
        made = arc_set(read.header, read.digest, chain, results, keys[0], now=now)
        return made.fields() if made is not None else []


def _own_results(header: Header, hostname: str) -> bytes:
    """What our policies wrote of the message, under the name that mail-auth gives itself.

    That stands above the Received field that this host put on top (RFC 8601 §5). What is below it was there
    when the message came, and may be forged.
    """
    ours: list[bytes] = []
    for name, value in header:
        if name.lower() == b"received":
            break
        if name.lower() == b"authentication-results":
            ours.append(value)
    else:
        return own_results(ours, hostname)
    results = own_results(ours, hostname)
    # mail-auth may have a name of its own there, and it is asked before the policies that add to its results.
    return results or own_results(ours, authserv_id_of(ours[-1]) if ours else "")


def _chain(header: Header, status: str) -> Chain | None:
    """The sets that the message has; None where our results do not say what they are worth."""
    sets: dict[int, Header] = {}
    for name, value in header:
        if name.lower() in _ARC:
            instance = _INSTANCE.search(value)
            sets.setdefault(int(instance[1]) if instance else 0, []).append((name, value))
    known = bool(sets) == (status in ("pass", "fail"))
    if not status or not known:
        return None
    return Chain([sets[number] for number in sorted(sets)], status)


def _load(options: DkimSignOptions) -> Sequence[SigningKey]:
    keys: list[SigningKey] = []
    faults: list[Fault] = []
    for number, key in enumerate(options.key, start=1):
        domain = ascii_domain(key.domain)
        try:
            keys.append(load_key(domain, key.selector, key.file))
        except KeyFileFault as error:
            faults.append(Fault("", f"key[{number}].file", str(error)))
        if not domain or domain_faults("", domain):
            faults.append(Fault("", f"key[{number}].domain", f'found "{key.domain}": must be a domain'))
        if key.selector.endswith(".") or domain_faults("", key.selector):
            # RFC 6376 §3.1
            problem = f'found "{key.selector}": must be a label of a domain such as "s2026", or several'
            faults.append(Fault("", f"key[{number}].selector", problem))
    if faults:
        raise ConfigError(faults)
    return keys
