"""Few charges, packed into octets: all that most identities ever have.

A counter is several objects, which Python's garbage collector looks at each time; octets it never
looks at. Here are the charges themselves, ascending, as they were made: nothing in them depends on a limit's
bounds, and a counter can be made of them at any time (:class:`Grown`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from elemta.limits.window import Bound, Counter

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


def charged(few: bytes, at: int, amount: int, bounds: Sequence[Bound]) -> bytes | None:
    """With one more; None where that is too much to be packed."""
    one = packed(at, amount)
    if one is None:
        return None
    if len(few) >= _FULL:
        few = pruned(few, at, bounds)
        if len(few) >= _FULL:
            return None
    if few and at < last(few):
        charges = sorted([*_CHARGE.iter_unpack(few), (at, amount)])
        return b"".join([_CHARGE.pack(*charge) for charge in charges])
    return few + one


def refunded(few: bytes, at: int, amount: int) -> bytes:
    """Without one charge that was made then; the same when there is none."""
    one = packed(at, amount)
    for start in range(0, len(few), _SIZE):
        if few[start : start + _SIZE] == one:
            return few[:start] + few[start + _SIZE :]
    return few


def total(few: bytes) -> int:
    """What all of them amount to, those included that count no more."""
    if len(few) == _SIZE:
        return int(_CHARGE.unpack(few)[1])
    return sum([amount for _, amount in _CHARGE.iter_unpack(few)])


def last(few: bytes) -> int:
    """When the last of them was made."""
    return int(_CHARGE.unpack_from(few, len(few) - _SIZE)[0])


def pruned(few: bytes, now: int, bounds: Sequence[Bound]) -> bytes:
    """Without those that count for no bound any more."""
    horizon = now - lifetime(bounds)
    start = 0
    while start < len(few) and _CHARGE.unpack_from(few, start)[0] <= horizon:
        start += _SIZE
    return few[start:] if start else few


def lifetime(bounds: Sequence[Bound]) -> int:
    """The time after which no charge counts any more, whatever its place on a grid."""
    return max([bound.window + bound.grain - 1 for bound in bounds], default=0)


def fullness(few: bytes, now: int, bounds: Sequence[Bound]) -> float:
    """The fullest bound's share at ``now``, like that of a counter."""
    fullest = 0.0
    charges = list(_CHARGE.iter_unpack(few))
    for bound in bounds:
        used = sum([amount for at, amount in charges if bound.slot(at) + bound.window > now])
        fullest = max(fullest, used / bound.limit if bound.limit else 1.0)
    return fullest


class Grown(Counter):
    """The counter that would be there, had every one of these charges been made in one.

    They can be refunded from it. What counts no more at the time of the last is still in it until a caller
    asks, because a clock may have been set back.
    """

    __slots__ = ()

    def __init__(self, few: bytes, bounds: tuple[Bound, ...]) -> None:
        super().__init__(bounds)
        for at, amount in _CHARGE.iter_unpack(few):
            for series in self._series:
                series.add(at, amount)
