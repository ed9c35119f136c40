"""Answers of DNS, while they hold: bounded in memory, the least recently used are dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from sys import getsizeof

from elemta.dns.answers import DNSAnswer, DnsQuestion, MailExchanger, NoData, Record, Result
from elemta.dns.settings import ResolverSettings

_ENTRY_BYTES = 512
_RECORD_BYTES = 128


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    result: Result
    stored: float
    expires: float
    size: int


class Cache:
    """Results by question. ``seconds`` may be the time of day: what it stored in the future is forgotten."""

    def __init__(self, settings: ResolverSettings, seconds: Callable[[], float]) -> None:
        self._settings = settings
        self._seconds = seconds
        self._entries: OrderedDict[DnsQuestion, _CacheEntry] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, question: DnsQuestion) -> Result | None:
        """What is known and still holds."""
        entry = self._entries.get(question)
        if entry is None:
            return None
        if not entry.stored <= self._seconds() < entry.expires:
            self._drop(question)
            return None
        self._entries.move_to_end(question)
        return entry.result

    def put(self, question: DnsQuestion, result: Result) -> None:
        """Keep a result for as long as it holds; the least recently used results are dropped first."""
        now = self._seconds()
        entry = _CacheEntry(result, now, now + self._lifetime(result), _size(question, result))
        self._drop(question)
        self._entries[question] = entry
        self.size += entry.size
        while self.size > self._settings.cache_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self.size = 0

    def _drop(self, question: DnsQuestion) -> None:
        entry = self._entries.pop(question, None)
        if entry is not None:
            self.size -= entry.size

    def _lifetime(self, result: Result) -> float:
        settings = self._settings
        if isinstance(result, DNSAnswer):
            return max(settings.min_ttl, min(result.ttl, settings.max_ttl))
        if isinstance(result, NoData):
            # RFC 2308 §5
            ttl = settings.unknown_ttl if result.ttl is None else result.ttl
            return max(settings.min_ttl, min(ttl, settings.max_negative_ttl))
        # RFC 2308 §7
        return settings.trouble_ttl


def _size(question: DnsQuestion, result: Result) -> int:
    """About how many bytes of memory an entry takes."""
    records = result.records if isinstance(result, DNSAnswer) else ()
    texts = sum(map(_size_of_text, records))
    return _ENTRY_BYTES + len(question.name) + _RECORD_BYTES * len(records) + texts


def _size_of_text(record: Record) -> int:
    text = record.host if isinstance(record, MailExchanger) else record
    return getsizeof(text) if isinstance(text, str) else 0
