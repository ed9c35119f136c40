"""Sizes, durations, networks and rates."""

from __future__ import annotations

import contextlib
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.config import (
    Rate,
    Unacceptable,
    format_duration,
    format_size,
    parse_duration,
    parse_network,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("50MiB", 50 * 1024**2),
        ("50mib", 50 * 1024**2),
        ("1.5GiB", 3 * 512 * 1024**2),
        ("1 KiB", 1024),
        ("1kB", 1000),
        ("2TB", 2 * 1000**4),
        ("17B", 17),
        ("17", 17),
        (" 17 ", 17),
        (17, 17),
        (0, 0),
        ("0.5KiB", 512),
    ],
)
def test_a_size_is_read(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("50M", 'did you mean "50MiB"?'),
        ("1g", 'did you mean "1GiB"?'),
        ("50MBs", 'did you mean "50MB"?'),
        ("fifty", ""),
        ("", ""),
        ("-1MiB", ""),
        ("1e3", ""),
        ("1_000", ""),
        ("٣MiB", ""),
        ("0.3B", ""),
        (-1, ""),
        (1.5, ""),
        (True, ""),
        (None, ""),
        ([1], ""),
        ("1" * 10_000, ""),
    ],
)
def test_what_is_no_size_is_refused(written: object, hint: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        parse_size(written)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5m", 300.0),
        ("50ms", 0.05),
        ("5d", 432_000.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("2w", 1_209_600.0),
        ("90", 90.0),
        (90, 90.0),
        (0.05, 0.05),
        (0, 0.0),
    ],
)
def test_a_duration_is_read(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("5min", 'did you mean "5m"?'),
        ("5 minutes", 'did you mean "5m"?'),
        ("2 Hours", 'did you mean "2h"?'),
        ("3 d", 'did you mean "3d"?'),
        ("5 fortnights", ""),
        ("m", ""),
        ("", ""),
        ("-5m", ""),
        (-5, ""),
        (float("inf"), ""),
        (float("nan"), ""),
        (10**400, ""),
        (True, ""),
        ({}, ""),
    ],
)
def test_what_is_no_duration_is_refused(written: object, hint: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        parse_duration(written)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("size", "written"), [(50 * 1024**2, "50MiB"), (1536, "1536B"), (0, "0B"), (1024**4, "1TiB")]
)
def test_a_size_is_written_in_the_largest_unit_that_is_exact(size: int, written: str) -> None:
    assert format_size(size) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(300, "5m"), (90, "90s"), (0.05, "50ms"), (432_000, "5d"), (0, "0s"), (1e-7, "0.0000001s")],
)
def test_a_duration_is_written_in_the_largest_unit_that_is_exact(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@given(st.integers(min_value=0, max_value=2**60))
def test_a_size_reads_back_as_it_was(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.floats(min_value=0, max_value=1e12) | st.integers(min_value=0, max_value=10**12).map(float))
def test_a_duration_reads_back_as_it_was(seconds: float) -> None:
    if seconds == 0 or seconds >= 1e-20:
        assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(1, 10**15), st.none() | st.floats(0.001, 366 * 86400))
def test_a_rate_reads_back_as_it_was(limit: int, seconds: float | None) -> None:
    rate = Rate(limit, seconds)
    assert parse_rate(str(rate)) == rate


@given(st.text(max_size=40))
def test_no_text_makes_a_reader_fail_in_another_way(text: str) -> None:
    for reader in (parse_size, parse_duration, parse_network, parse_rate):
        with contextlib.suppress(Unacceptable):
            reader(text)


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        ("100/1m", Rate(100, 60.0)),
        ("1000/1h", Rate(1000, 3600.0)),
        ("5/30", Rate(5, 30.0)),
        ("100/m", Rate(100, 60.0)),
        ("50MiB/1h", Rate(50 * 1024**2, 3600.0)),
        ("20", Rate(20)),
        (20, Rate(20)),
    ],
)
def test_a_rate_is_read(written: object, rate: Rate) -> None:
    assert parse_rate(written) == rate


@pytest.mark.parametrize(
    "written",
    ["", "/", "100/", "/1m", "0/1m", "-1/1m", "100/0", "1.5/1m", "100/1m/1h", "1/1000d", 0, True, 1.5],
)
def test_what_is_no_rate_is_refused(written: object) -> None:
    with pytest.raises(Unacceptable) as caught:
        parse_rate(written)
    # What was wrong is never what was meant.
    assert caught.value.hint != f'did you mean "{written}"?'


@pytest.mark.parametrize(
    ("written", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
    ],
)
def test_a_network_is_read(written: str, network: str) -> None:
    assert parse_network(written) == ip_network(network)


def test_a_network_with_bits_of_a_host_is_refused_with_the_network_that_it_may_mean() -> None:
    with pytest.raises(Unacceptable) as caught:
        parse_network("192.0.2.7/24")
    assert caught.value.problem == 'must be a network such as "192.0.2.0/24" or an address'
    assert caught.value.hint == 'did you mean "192.0.2.0/24"?'


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("100/minute", "100/1m"),
        ("100 per hour", "100/1h"),
        ("10/15min", "10/15m"),
        ("5 a day", "5/1d"),
        ("20 per 30 seconds", "20/30s"),
        ("50 MiB per Hour", "50MiB/1h"),
        ("many/1h", ""),
        ("0/1m", ""),
        ("00 per hour", ""),
        ("5/0m", ""),
    ],
)
def test_a_rate_in_words_is_answered_with_the_rate(written: str, meant: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        parse_rate(written)
    assert caught.value.hint == (f'did you mean "{meant}"?' if meant else "")
