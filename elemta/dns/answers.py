"""The answers of DNS, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import dns.rdatatype

from elemta.ip import IPAddress


class RecordType(enum.Enum):
    """The types of records that mail needs."""

    MX = dns.rdatatype.MX
    A = dns.rdatatype.A
    AAAA = dns.rdatatype.AAAA
    TXT = dns.rdatatype.TXT
    PTR = dns.rdatatype.PTR


@dataclass(frozen=True, slots=True)
class OtherType:
    """Any type of record, whose records are read as text in the form of zone files (RFC 1035 §5.1)."""

    name: str
    value: dns.rdatatype.RdataType

    @classmethod
    def of(cls, name: str) -> OtherType:
        """The type by its name, as ``"TLSA"`` or ``"TYPE65280"``. ValueError where no record has it."""
        try:
            value = dns.rdatatype.from_text(name)
        except (dns.rdatatype.UnknownRdatatype, ValueError) as error:
            raise ValueError(f"no type of DNS record: {name!r}") from error
        if dns.rdatatype.is_metatype(value):
            raise ValueError(f"no record has the type {name!r}")
        return cls(dns.rdatatype.to_text(value), value)


AnyType = RecordType | OtherType


@dataclass(frozen=True, slots=True, order=True)
class MailExchanger:
    """An MX record: the lowest ``preference`` comes first; ``host`` is lower case, without a trailing dot."""

    preference: int
    host: str


#: The only exchanger of a domain that takes no mail (RFC 7505 §3).
NULL_MX = MailExchanger(0, "")

Record = MailExchanger | IPAddress | str


@dataclass(frozen=True, slots=True)
class DnsQuestion:
    """A question: ``name`` in A-labels and lower case, without a trailing dot."""

    name: str
    kind: AnyType

    def __str__(self) -> str:
        return f"{self.kind.name} of {self.name}"


@dataclass(frozen=True, slots=True)
class DNSAnswer:
    """The records, in the order of the answer; they are good for ``ttl`` seconds."""

    records: tuple[Record, ...]
    ttl: float


@dataclass(frozen=True, slots=True)
class NoData:
    """There is no such record; without ``name_exists`` there is no such name (NXDOMAIN).

    ``ttl`` is how many seconds that holds, None where the answer does not say.
    """

    name_exists: bool
    ttl: float | None


@dataclass(frozen=True, slots=True)
class LookupFailure:
    """No server gave a usable answer; ``text`` has each server and its failure.

    ``local``: it may be for something on this side, such as the name servers or the way to them.
    """

    text: str
    local: bool = False


Result = DNSAnswer | NoData | LookupFailure
