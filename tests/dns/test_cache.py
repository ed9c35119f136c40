"""The cache: for how long which result holds, and how much it may hold."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elemta.dns.answers import (
    DNSAnswer,
    DnsQuestion,
    LookupFailure,
    MailExchanger,
    NoData,
    Record,
    RecordType,
    Result,
)
from elemta.dns.cache import Cache
from elemta.dns.settings import ResolverSettings

_SETTINGS = ResolverSettings(
    min_ttl=5, max_ttl=3600, max_negative_ttl=900, unknown_ttl=30, trouble_ttl=4, cache_bytes=100_000
)
_QUESTION = DnsQuestion("host.test", RecordType.TXT)


@pytest.mark.parametrize(
    ("result", "seconds"),
    [
        (DNSAnswer(("x",), 60), 60),
        (DNSAnswer(("x",), 0), 5),
        (DNSAnswer(("x",), 10**9), 3600),
        (NoData(name_exists=False, ttl=120), 120),
        (NoData(name_exists=True, ttl=120), 120),
        (NoData(name_exists=True, ttl=1), 5),
        (NoData(name_exists=False, ttl=86400), 900),
        (NoData(name_exists=False, ttl=None), 30),
        (LookupFailure("SERVFAIL"), 4),
    ],
)
def test_a_result_holds_for_its_ttl_within_bounds(result: Result, seconds: float) -> None:
    """RFC 2308 §5 and RFC 2308 §7."""
    clock = Clock()
    cache = Cache(_SETTINGS, clock.seconds)
    cache.put(_QUESTION, result)
    clock.advance(seconds - 0.001)
    assert cache.get(_QUESTION) is result
    clock.advance(0.001)
    assert cache.get(_QUESTION) is None
    assert len(cache) == cache.size == 0


def test_a_question_of_another_kind_is_another_question() -> None:
    cache = Cache(_SETTINGS, Clock().seconds)
    cache.put(_QUESTION, NoData(name_exists=False, ttl=60))
    assert cache.get(DnsQuestion("host.test", RecordType.MX)) is None


def test_a_clock_that_is_put_back_makes_nothing_last_longer() -> None:
    clock = Clock()
    clock.advance(10_000)
    cache = Cache(_SETTINGS, clock.seconds)
    cache.put(_QUESTION, DNSAnswer(("x",), 60))
    clock.rightNow = 50
    assert cache.get(_QUESTION) is None


def test_what_was_used_last_stays_when_room_is_needed() -> None:
    cache = Cache(_SETTINGS, Clock().seconds)
    cache.put(_QUESTION, DNSAnswer(("x",), 60))
    for number in range(1000):
        cache.put(DnsQuestion(f"{number}.test", RecordType.TXT), DNSAnswer(("y" * 100,), 60))
        assert cache.get(_QUESTION) is not None
        assert cache.size <= 100_000
    assert 20 < len(cache) < 200


def test_a_result_too_large_for_the_cache_is_not_kept() -> None:
    cache = Cache(_SETTINGS, Clock().seconds)
    cache.put(_QUESTION, DNSAnswer(("x" * 100_000,), 60))
    assert len(cache) == cache.size == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 30_000), st.integers(0, 200), st.integers(0, 100)),
        max_size=60,
    )
)
def test_the_size_is_that_of_what_is_kept_whatever_happens(steps: list[tuple[int, int, int, int]]) -> None:
    clock = Clock()
    cache = Cache(_SETTINGS, clock.seconds)
    for name, length, ttl, passing in steps:
        cache.put(DnsQuestion(f"{name}.test", RecordType.TXT), DNSAnswer(("x" * length,), ttl))
        clock.advance(passing)
        cache.get(DnsQuestion(f"{passing % 10}.test", RecordType.TXT))
        assert 0 <= cache.size <= 100_000
        assert cache.size == sum(entry.size for entry in cache._entries.values())


LONG = ".".join(["y" * 60] * 3) + ".attacker.test"
RECORDS: dict[str, Callable[[int], Record]] = {
    "exchangers": lambda number: MailExchanger(1000 + number, f"h{number}.{LONG}"),
    "texts": lambda number: f"{number} " + "x" * 200,
    "wide texts": lambda number: f"{number} " + "\U00020000" * 60,
}


@pytest.mark.parametrize("kind", RECORDS)
def test_the_cache_takes_no_more_memory_than_it_counts(kind: str) -> None:
    """What any zone answers, as Python takes it: long names of exchangers took twice as much."""
    cache = Cache(ResolverSettings(cache_bytes=2**20), Clock().seconds)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100):
            records = tuple(RECORDS[kind](each) for each in range(200))
            cache.put(DnsQuestion(f"d{number}.{LONG}", RecordType.MX), DNSAnswer(records, 300))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 2**18 < taken <= 2**20
