"""Runs twistd with traffic of a day already in the rings, as no test runs for a day.

python tests/console/sampled_twistd.py TWISTD ARGUMENTS…
"""

from __future__ import annotations

import math
import random
import sys
from typing import Any

from twisted.scripts.twistd import run

from elemta.ops.traffic import DAY, HOUR, TrafficHistory, TrafficRing


def filled(ring: TrafficRing, slots: int, seconds: float, *, busiest: float) -> None:
    """A day as an office has it: what comes follows the hour, and one burst is refused."""
    dice = random.Random(7)
    for place, slot in enumerate(ring._slots):
        hours = 14.5 - (slots - place) * seconds / 3600
        daily = 0.15 + max(0.0, math.sin((hours - 6) / 14 * math.pi)) ** 2
        slot[0] = int(busiest * daily * dice.uniform(0.75, 1.25))
        slot[1] = int(slot[0] * dice.uniform(0.02, 0.08))
        slot[2] = int(slot[0] * dice.uniform(0.01, 0.05))
    for place in range(slots * 2 // 3, slots * 2 // 3 + 3):
        ring._slots[place][2] += int(busiest * 0.5)
    ring._began -= slots * seconds
    ring._number += slots


class SampledHistory(TrafficHistory):
    """Begins with such a day."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        filled(self._hour, *HOUR, busiest=90)
        filled(self._day, *DAY, busiest=1400)


def main() -> None:
    """Be twistd."""
    import elemta.daemon.components as components

    components.TrafficHistory = SampledHistory  # type: ignore[misc]
    sys.argv = sys.argv[1:]
    run()


if __name__ == "__main__":
    main()
