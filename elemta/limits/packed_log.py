"""Few charges, packed into octets: all that most identities ever have.

A counter is several objects, which Python's garbage collector looks at each time; octets it never
looks at. Here are the charges themselves, ascending, as they were made: nothing in them depends on a limit's
bounds, and a counter can be made of them at any time (:class:`UnpackedCounter`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from elemta.limits.window import Bound, WindowCounter

MOST = 8
"""So many charges are kept packed; more than that are better in a counter."""

_CHARGE = struct.Struct("<qI")
_SIZE = _CHARGE.size
_FULL = MOST * _SIZE
_LARGEST = 2**32 - 1
_LAST = 2**63 - 1


def packed(at: int, amount: int) -> bytes | None:
    """One charge; None where it is too large to be packed."""
    return _CHARGE.pack(at, amount) if 0 <= amount <= _LARGEST and -_LAST <= at <= _LAST else None


def charged(log: bytes, at: int, amount: int, bounds: Sequence[Bound]) -> bytes | None:
    """With one more; None where that is too much to be packed."""
    one = packed(at, amount)
    if one is None:
        return None
    if len(log) >= _FULL:
        log = pruned(log, at, bounds)
        if len(log) >= _FULL:
            return None
    if log and at < last(log):
        charges = sorted([*_CHARGE.iter_unpack(log), (at, amount)])
        return b"".join([_CHARGE.pack(*charge) for charge in charges])
    return log + one


def refunded(log: bytes, at: int, amount: int) -> bytes:
    """Without one charge that was made then; the same when there is none."""
    one = packed(at, amount)
    for start in range(0, len(log), _SIZE):
        if log[start : start + _SIZE] == one:
            return log[:start] + log[start + _SIZE :]
    return log


def total(log: bytes) -> int:
    """What all of them amount to, those included that count no more."""
    if len(log) == _SIZE:
        return int(_CHARGE.unpack(log)[1])
    return sum([amount for _, amount in _CHARGE.iter_unpack(log)])


def last(log: bytes) -> int:
    """When the last of them was made."""
    return int(_CHARGE.unpack_from(log, len(log) - _SIZE)[0])


def pruned(log: bytes, now: int, bounds: Sequence[Bound]) -> bytes:
    """Without those that count for no bound any more."""
    horizon = now - lifetime(bounds)
    start = 0
    while start < len(log) and _CHARGE.unpack_from(log, start)[0] <= horizon:
        start += _SIZE
    return log[start:] if start else log


def lifetime(bounds: Sequence[Bound]) -> int:
    """The time after which no charge counts any more, whatever its place on a grid."""
    return max([bound.window + bound.grain - 1 for bound in bounds], default=0)


def fullness(log: bytes, now: int, bounds: Sequence[Bound]) -> float:
    """The fullest bound's share at ``now``, like that of a counter."""
    fullest = 0.0
    charges = list(_CHARGE.iter_unpack(log))
    for bound in bounds:
        used = sum([amount for at, amount in charges if bound.slot(at) + bound.window > now])
        fullest = max(fullest, used / bound.limit if bound.limit else 1.0)
    return fullest


class UnpackedCounter(WindowCounter):
    """The counter that would be there, had every one of these charges been made in one.

    They can be refunded from it. What counts no more at the time of the last is still in it until a caller
    asks, because a clock may have been set back.
    """

    __slots__ = ()

    def __init__(self, log: bytes, bounds: tuple[Bound, ...]) -> None:
        super().__init__(bounds)
        for at, amount in _CHARGE.iter_unpack(log):
            for series in self._series:
                series.add(at, amount)
