"""A picture of the traffic as SVG that the server draws: stacked bars, one for each slot of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elemta.ctl.text import age

KINDS = ("accepted", "deferred", "refused")
"""The parts of a bar from the bottom up."""

HEIGHT = 100
_STEP = 10
_BAR = 8


@dataclass(frozen=True, slots=True)
class ChartColumn:
    """What one slot says to a pointer: its left edge, and its numbers in words."""

    x: int
    words: str


@dataclass(frozen=True, slots=True)
class TrafficChart:
    """A picture in a box of ``width`` by :data:`HEIGHT`: for each kind one path with all of its parts.

    ``summary`` says the same in a sentence. ``most`` is the height of the box in numbers.
    """

    title: str
    width: int
    paths: Mapping[str, str]
    columns: Sequence[ChartColumn]
    totals: Mapping[str, int]
    most: int
    begin: str
    slot: str
    summary: str


def traffic_chart(title: str, series: Mapping[str, Any]) -> TrafficChart:
    """The picture of a ``TrafficSeries`` as the API has it."""
    numbers = {kind: series[kind] for kind in KINDS}
    slots = list(zip(*numbers.values(), strict=True))
    sums = [sum(slot) for slot in slots]
    most = max(sums, default=0)
    paths: dict[str, list[str]] = {kind: [] for kind in KINDS}
    columns = []
    for place, slot in enumerate(slots):
        if not sums[place]:
            continue
        x = place * _STEP
        below = 0
        for kind, number in zip(KINDS, slot, strict=True):
            if number:
                paths[kind].append(_part(x, below, number, most))
            below += number
        back = (len(slots) - 1 - place) * series["seconds"]
        when = f"{age(back)} ago" if back else "now"
        columns.append(ChartColumn(x, f"{when}: {_words(dict(zip(KINDS, slot, strict=True)))}"))
    totals = {kind: sum(numbers[kind]) for kind in KINDS}
    begin = f"{age(len(slots) * series['seconds'])} ago"
    slot_words = age(series["seconds"])
    summary = f"{title}: {_words(totals)}."
    if most:
        at = (len(slots) - 1 - sums.index(most)) * series["seconds"]
        summary += f" The most in {slot_words} were {most}, {f'{age(at)} ago' if at else 'just now'}."
    if series["measured"] < len(slots) * series["seconds"]:
        summary += f" The daemon counts since {age(series['measured'])}."
    return TrafficChart(
        title=title,
        width=max(1, len(slots)) * _STEP,
        paths={kind: "".join(parts) for kind, parts in paths.items() if parts},
        columns=columns,
        totals=totals,
        most=most,
        begin=begin,
        slot=slot_words,
        summary=summary,
    )


def _part(x: int, below: int, number: int, most: int) -> str:
    bottom = HEIGHT - HEIGHT * below / most
    # What is there can be seen.
    height = max(1.0, HEIGHT * number / most)
    return f"M{x + 1} {bottom:.1f}h{_BAR}v-{height:.1f}h-{_BAR}z"


def _words(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in numbers.items())
