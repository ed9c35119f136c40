"""The values that a setting can have beyond TOML's own: sizes, durations, networks and rates.

Each has a reader that takes what TOML (or an environment variable) holds and raises
:class:`Unacceptable` with words for the operator, and a writer whose text reads back as the same value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from ipaddress import ip_address, ip_network

from elemta.ip import IPAddress, IPNetwork, unmapped, unmapped_network

SIZE_WORDS = 'a size such as "50MiB" or a number of bytes'
DURATION_WORDS = 'a duration such as "5m" or a number of seconds'
ADDRESS_WORDS = 'an IP address such as "192.0.2.7"'
NETWORK_WORDS = 'a network such as "192.0.2.0/24" or an address'
RATE_WORDS = 'a rate such as "100/1m", or a plain number such as "20"'
_RATE_IN_WORDS = re.compile(
    r"([0-9]{1,20}(?: ?[kmg]i?b)?) ?(?:/|per|an?|each|every) ?"
    r"([0-9]{0,9}) ?([smhd])(?:ec|econd|in|inute|our|r|ay)?s?",
    re.IGNORECASE,
)

_SIZE_UNITS = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_SIZE_UNITS_BY_LOWER = {unit.lower(): factor for unit, factor in _SIZE_UNITS.items()}
_SHORT_SIZE_UNITS = {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB"}
_DURATION_UNITS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
    "w": Decimal(604800),
}
_LONG_DURATION_UNITS = {
    "msec": "ms",
    "sec": "s",
    "second": "s",
    "min": "m",
    "minute": "m",
    "hr": "h",
    "hour": "h",
    "day": "d",
    "week": "w",
}

# Digits are bounded so that no text in a configuration can cost more than it is long.
_NUMBER = r"[0-9]{1,30}(?:\.[0-9]{1,60})?"
_SIZE = re.compile(rf"({_NUMBER}) ?([A-Za-z]*)")
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|[smhdw])")
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|[smhdw])){{1,6}}")
_PLAIN = re.compile(_NUMBER)
_LONG_DURATION = re.compile(rf"({_NUMBER}) ?([A-Za-z]+?)s?")


class Unacceptable(ValueError):
    """A value that a setting can't have.

    ``problem`` goes on after "found …": what is allowed, or what is wrong with it; ``hint`` is a
    remedy or the nearest allowed value.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``limit`` in any ``seconds``; ``seconds`` is None for a number that may be open at once.

    ``is_size`` tells that the number was written as a size, which is only right for bytes.
    """

    limit: int
    seconds: float | None = None
    is_size: bool = field(default=False, compare=False, repr=False)

    def __str__(self) -> str:
        """The rate as it is written in a configuration, such as ``100/1m``."""
        return str(self.limit) if self.seconds is None else f"{self.limit}/{format_duration(self.seconds)}"


def parse_size(found: object) -> int:
    """Bytes of a size such as ``"50MiB"`` (1024), ``"50MB"`` (1000), ``"1.5GiB"`` or a whole number."""
    if isinstance(found, int) and not isinstance(found, bool):
        return _not_negative(found, SIZE_WORDS)
    match = _SIZE.fullmatch(found.strip()) if isinstance(found, str) else None
    if match is None:
        raise Unacceptable(f"must be {SIZE_WORDS}")
    number, unit = match.groups()
    factor = _SIZE_UNITS_BY_LOWER.get(unit.lower() or "b")
    if factor is None:
        raise Unacceptable(
            f"must be {SIZE_WORDS}; units are {', '.join(_SIZE_UNITS)}", _size_hint(number, unit)
        )
    size = Decimal(number) * factor
    if size != size.to_integral_value():
        raise Unacceptable("must come to whole bytes")
    return int(size)


def format_size(size: int) -> str:
    """The shortest exact text of a number of bytes, in powers of 1024: ``50MiB``, ``1000B``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def parse_duration(found: object) -> float:
    """Seconds of a duration such as ``"5m"``, ``"1h30m"``, ``"50ms"``, ``"5d"`` or a number."""
    if isinstance(found, int | float) and not isinstance(found, bool):
        return _finite(found, DURATION_WORDS)
    text = found.strip() if isinstance(found, str) else ""
    if _PLAIN.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise Unacceptable(f"must be {DURATION_WORDS}; units are ms, s, m, h, d, w", _duration_hint(text))
    return float(
        sum(Decimal(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))
    )


def format_duration(seconds: float) -> str:
    """The shortest exact text of a number of seconds: ``5m``, ``90s``, ``50ms``, ``5d``."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % float(_DURATION_UNITS[unit]) == 0:
            return f"{int(seconds) // int(_DURATION_UNITS[unit])}{unit}"
    if seconds == int(seconds):
        return f"{int(seconds)}s"
    milliseconds = round(seconds * 1000)
    if milliseconds / 1000 == seconds:
        return f"{milliseconds}ms"
    return f"{Decimal(repr(float(seconds))):f}s"


def parse_network(found: object) -> IPNetwork:
    """A network of ``"192.0.2.0/24"``, ``"2001:db8::/32"`` or a single address.

    IPv4-mapped IPv6 networks become the IPv4 network that they mean, as clients do.
    """
    if not isinstance(found, str):
        raise Unacceptable(f"must be {NETWORK_WORDS}")
    try:
        network = ip_network(found.strip())
    except ValueError:
        raise Unacceptable(f"must be {NETWORK_WORDS}", _network_hint(found)) from None
    return unmapped_network(network)


def parse_address(found: object) -> IPAddress:
    """An address such as ``"192.0.2.7"`` or ``"2001:db8::7"``."""
    try:
        address = ip_address(found.strip()) if isinstance(found, str) else None
    except ValueError:
        address = None
    if address is None:
        raise Unacceptable(f"must be {ADDRESS_WORDS}")
    return unmapped(address)


def parse_rate(found: object) -> Rate:
    """A rate of ``"100/1m"``, ``"50MiB/1h"`` (for bytes), or of a plain number (``"20"`` or ``20``)."""
    if isinstance(found, int) and not isinstance(found, bool):
        return Rate(_at_least_one(found))
    if not isinstance(found, str):
        raise Unacceptable(f"must be {RATE_WORDS}")
    number, slash, window = found.strip().partition("/")
    try:
        size = parse_size(number)
        # "100/m" is what people say.
        seconds = parse_duration(f"1{window}" if window in _DURATION_UNITS else window) if slash else None
    except Unacceptable as error:
        raise Unacceptable(f"must be {RATE_WORDS}", _rate_hint(found) or error.hint) from None
    if seconds is not None and not 0.001 <= seconds <= 366 * 86400:
        raise Unacceptable('must have a window from "1ms" to "366d"')
    limit = _at_least_one(size)
    return Rate(limit, seconds, is_size=not number.strip().isdecimal())


def _rate_hint(found: str) -> str:
    """For a rate in words, such as "100/minute" or "10 per hour"."""
    words = _RATE_IN_WORDS.fullmatch(found.strip())
    if words is None:
        return ""
    number, count, unit = words.groups()
    if not number.strip("0") or not (count or "1").strip("0"):
        # "0 per hour" is in words, too, and no other way to write it would do.
        return ""
    return f'did you mean "{number.replace(" ", "")}/{count or 1}{unit.lower()}"?'


def check_optional_rate(text: str) -> None:
    """Accept a rate with a window, or nothing."""
    if not text:
        return
    rate = parse_rate(text)
    if rate.is_size:
        raise Unacceptable("must be a number of times, not a size")
    if rate.seconds is None:
        raise Unacceptable('must be a rate with a window, such as "10/15m"', f'did you mean "{rate}/15m"?')


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that ``name`` was most likely meant to be, or None; ``cutoff`` 1 is only itself."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    # One letter of two is half of a name and still one slip.
    cutoff = min(cutoff, 0.5) if len(name) < 3 else cutoff
    matches = get_close_matches(name.lower()[:100], by_lower, n=1, cutoff=cutoff)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name; empty when none is near."""
    match = nearest(name, known)
    return f'did you mean "{match}"?' if match is not None else ""


def _size_hint(number: str, unit: str) -> str:
    full = _SHORT_SIZE_UNITS.get(unit.lower()) or nearest(unit, _SIZE_UNITS)
    return f'did you mean "{number}{full}"?' if full else ""


def _duration_hint(text: str) -> str:
    match = _LONG_DURATION.fullmatch(text)
    unit = (
        _LONG_DURATION_UNITS.get(match[2].lower()) or _DURATION_UNITS.get(match[2].lower()) if match else None
    )
    if match is None or unit is None:
        return ""
    return f'did you mean "{match[1]}{unit if isinstance(unit, str) else match[2].lower()}"?'


def _network_hint(text: str) -> str:
    try:
        return f'did you mean "{ip_network(text.strip(), strict=False)}"?'
    except ValueError:
        return ""


def _not_negative(number: int, words: str) -> int:
    if number < 0:
        raise Unacceptable(f"must be {words}, not negative")
    return number


def _finite(number: float, words: str) -> float:
    try:
        seconds = float(number)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0:
        raise Unacceptable(f"must be {words}, not negative and not infinite")
    return seconds


def _at_least_one(limit: int) -> int:
    if limit < 1:
        raise Unacceptable("must allow at least 1")
    return limit
