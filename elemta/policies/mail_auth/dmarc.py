"""DMARC (RFC 7489): whether the author's domain stands behind a message, and what it asks for if not."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email import policy
from email.errors import MessageError
from enum import Enum
from pathlib import Path

import idna
from publicsuffix2 import PublicSuffixList

from elemta.policies.mail_auth.dns_facts import DnsFacts, FactType, Question

# Debian keeps the list up to date here; the library brings an older one.
SYSTEM_SUFFIXES = Path("/usr/share/publicsuffix/public_suffix_list.dat")
MAX_AUTHORS = 5
MAX_FROM = 8 * 1024  # octets of all From fields; the parser takes the square of it


class Disposition(Enum):
    """What a domain asks receivers to do with mail that fails."""

    NONE = "none"
    QUARANTINE = "quarantine"
    REJECT = "reject"


_SEVERITY = list(Disposition)
# RFC 7489 §6.4: the name of a tag is written in any case, the version is not.
_VERSION = re.compile(r"[vV]\s*=\s*DMARC1\s*(;|$)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")


@dataclass(frozen=True, slots=True)
class DmarcCheck:
    """The result in the words of RFC 7489 §11.2, and the disposition that holds for this message."""

    result: str
    text: str
    domain: str = ""
    policy: str = ""
    disposition: Disposition = Disposition.NONE


@dataclass(frozen=True, slots=True)
class VouchedDomains:
    """The domains that SPF and DKIM vouch for, and those for which an answer of theirs is missing."""

    spf: str = ""
    dkim: tuple[str, ...] = ()
    unsure_spf: str = ""
    unsure_dkim: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Record:
    policy: Disposition
    subdomains: Disposition
    strict_dkim: bool
    strict_spf: bool
    percent: int


class Suffixes:
    """The public suffix list."""

    def __init__(self, path: Path = SYSTEM_SUFFIXES) -> None:
        self._list = PublicSuffixList(str(path) if path.exists() else None)

    def organizational(self, domain: str) -> str:
        """The organizational domain: one label more than the public suffix (RFC 7489 §3.2)."""
        known: str | None = self._list.get_sld(domain, strict=True)
        # Below a top-level domain that the list does not know the library says that domain itself. The list's
        # own rule for it is "*": one label is the suffix.
        return known or ".".join(domain.rsplit(".", 2)[-2:])


_DOT_BEHIND = re.compile(r"(?<=\w)\.(?=\s*(?:[>,;(]|$))")


def ascii_domain(domain: str) -> str:
    """The domain in lower case and in ASCII, "" where it is none."""
    domain = domain.rstrip(".").lower()
    if not domain or domain.startswith("["):
        return ""
    try:
        return domain if domain.isascii() else idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        return ""


def author_domains(fields: Sequence[bytes]) -> tuple[str, ...] | None:
    """The domains of the mailboxes in the From fields, each once; None where these are too long to be read.

    A mailbox without a domain is left out: it must not hide the others.
    """
    if sum(map(len, fields)) > MAX_FROM:
        return None
    return tuple(dict.fromkeys(domain for value in fields for domain in _domains_of(value) if domain))


def only_author_domain(fields: Sequence[bytes]) -> str:
    """The domain at which every mailbox in the From fields is; "" where there is no such domain."""
    if sum(map(len, fields)) > MAX_FROM:
        return ""
    domains = dict.fromkeys(domain for value in fields for domain in _domains_of(value))
    return next(iter(domains)) if len(domains) == 1 else ""


def _domains_of(value: bytes) -> list[str]:
    words = re.sub(r"\r\n(?=[ \t])", "", value.decode("utf-8", "replace")).strip()
    # A dot behind a domain is no part of RFC 5322, but readers show the address, and mean the same domain.
    words = _DOT_BEHIND.sub("", words)
    try:
        # The parser of the standard library raises what it pleases on hostile octets.
        addresses = policy.SMTPUTF8.header_factory("From", words).addresses
        return [ascii_domain(address.domain or "") for address in addresses]
    except (MessageError, ValueError, IndexError, AttributeError, TypeError, KeyError, RecursionError):
        return [""]


def wanted_records(authors: Sequence[str] | None, suffixes: Suffixes) -> list[Question]:
    """Where DNS has the records of these authors' domains."""
    if authors is None or len(authors) > MAX_AUTHORS:
        return []
    names = (name for domain in authors for name in (domain, suffixes.organizational(domain)))
    return [(f"_dmarc.{name}", FactType.TXT) for name in dict.fromkeys(names)]


def check_dmarc(
    authors: Sequence[str] | None,
    seen: VouchedDomains,
    suffixes: Suffixes,
    sample: bytes,
    facts: DnsFacts,
) -> DmarcCheck:
    """Check every author's domain; the most severe result counts (RFC 7489 §6.6.1).

    Authors that are too many to be checked, or None, ask for nothing themselves. They are to be rejected all
    the same: otherwise a long From field would carry a forged author past every policy. ``sample`` names the
    message: of those that a policy with pct= does not reach it always tells the same.
    """
    if authors is None:
        return DmarcCheck("permerror", "the From field is too long", disposition=Disposition.REJECT)
    if not authors:
        return DmarcCheck("permerror", "the author can't be read from the From field")
    if len(authors) > MAX_AUTHORS:
        text = f"more than {MAX_AUTHORS} domains in the From field"
        return DmarcCheck("permerror", text, disposition=Disposition.REJECT)
    checks = [_check_author(domain, seen, suffixes, sample, facts) for domain in authors]
    order = ("fail", "temperror", "permerror", "none", "pass")
    return min(checks, key=lambda check: (order.index(check.result), -_SEVERITY.index(check.disposition)))


def _check_author(
    domain: str, seen: VouchedDomains, suffixes: Suffixes, sample: bytes, facts: DnsFacts
) -> DmarcCheck:
    organizational = suffixes.organizational(domain)
    record, inherited = None, False
    for name in dict.fromkeys((domain, organizational)):  # RFC 7489 §6.6.3
        fact = facts.get(f"_dmarc.{name}", FactType.TXT)
        if fact.trouble is not None:
            return DmarcCheck("temperror", fact.trouble, domain)
        records = [str(text) for text in fact.values if _VERSION.match(str(text))]
        if len(records) == 1:
            record, inherited = _parse(records[0]), name != domain
            break
        if len(records) > 1:
            break  # RFC 7489 §6.6.3, 5: several records are as none
    if record is None:
        return DmarcCheck("none", "", domain)
    return _judge(domain, record, inherited=inherited, seen=seen, suffixes=suffixes, sample=sample)


def _judge(
    domain: str, record: _Record, *, inherited: bool, seen: VouchedDomains, suffixes: Suffixes, sample: bytes
) -> DmarcCheck:
    asked = record.subdomains if inherited else record.policy
    by_spf = bool(seen.spf) and _aligned(seen.spf, domain, record.strict_spf, suffixes)
    by_dkim = any(_aligned(signer, domain, record.strict_dkim, suffixes) for signer in seen.dkim)
    if by_spf or by_dkim:
        return DmarcCheck("pass", "", domain, asked.value)
    if _may_be_aligned(domain, record, seen, suffixes):
        return DmarcCheck("temperror", "SPF or DKIM could not be checked", domain, asked.value)
    return DmarcCheck("fail", "", domain, asked.value, _sampled(asked, record.percent, sample))


def _may_be_aligned(domain: str, record: _Record, seen: VouchedDomains, suffixes: Suffixes) -> bool:
    """Whether a missing answer could let the message pass. Any other one is of no account: it may be the
    sender's own dead zone."""
    if seen.unsure_spf and _aligned(seen.unsure_spf, domain, record.strict_spf, suffixes):
        return True
    return any(_aligned(each, domain, record.strict_dkim, suffixes) for each in seen.unsure_dkim)


def _sampled(asked: Disposition, percent: int, sample: bytes) -> Disposition:
    """RFC 7489 §6.6.4: the rest gets the next milder treatment."""
    if zlib.crc32(sample) % 100 < percent:
        return asked
    return _SEVERITY[max(0, _SEVERITY.index(asked) - 1)]


def _aligned(domain: str, author: str, strict: bool, suffixes: Suffixes) -> bool:
    # RFC 7489 §3.1
    domain = ascii_domain(domain)
    if domain == author:
        return True
    return bool(domain) and not strict and suffixes.organizational(domain) == suffixes.organizational(author)


def _parse(text: str) -> _Record | None:
    """RFC 7489 §6.3; None where the record asks for nothing that can be understood."""
    tags: dict[str, str] = {}
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        if equals:
            tags.setdefault(key.strip().lower(), value.strip())
    asked = _disposition(tags.get("p", ""))
    subdomains = _disposition(tags["sp"]) if "sp" in tags else asked
    if asked is None or subdomains is None:
        # RFC 7489 §6.6.3, 6: what is no policy asks for nothing, where there is an address for reports.
        if not any(_URI.fullmatch(uri.strip()) for uri in tags.get("rua", "").split(",")):
            return None
        asked = subdomains = Disposition.NONE
    percent = tags.get("pct", "100")
    return _Record(
        policy=asked,
        subdomains=subdomains,
        strict_dkim=tags.get("adkim", "r").lower() == "s",
        strict_spf=tags.get("aspf", "r").lower() == "s",
        percent=int(percent) if re.fullmatch(r"[0-9]{1,3}", percent) and int(percent) <= 100 else 100,
    )


def _disposition(word: str) -> Disposition | None:
    return next((one for one in Disposition if one.value == word.lower()), None)


def names_of(domains: Iterable[str]) -> tuple[str, ...]:
    """Domains in ASCII, those that are none left out."""
    return tuple(name for name in map(ascii_domain, domains) if name)
