"""The picture of the traffic: its geometry, and the words that say the same."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from elemta.console.traffic_chart import HEIGHT, KINDS, traffic_chart


def series(**numbers: tuple[int, ...]) -> dict[str, Any]:
    slots = max(map(len, numbers.values()))
    given_ = {kind: numbers.get(kind, (0,) * slots) for kind in KINDS}
    return {"seconds": 60.0, "measured": 60.0 * slots, **given_}


def test_an_idle_node_has_an_empty_picture_and_says_so() -> None:
    chart = traffic_chart("Last hour", series(accepted=(0,) * 60))
    assert chart.paths == {}
    assert chart.columns == []
    assert chart.summary == "Last hour: 0 accepted, 0 deferred, 0 refused."


def test_the_words_have_the_sums_and_the_most() -> None:
    chart = traffic_chart("Last hour", series(accepted=(0, 40, 1), refused=(0, 2, 0)))
    assert chart.totals == {"accepted": 41, "deferred": 0, "refused": 2}
    assert chart.summary == ("Last hour: 41 accepted, 0 deferred, 2 refused. The most in 1m were 42, 1m ago.")
    assert [each.words for each in chart.columns] == [
        "1m ago: 40 accepted, 0 deferred, 2 refused",
        "now: 1 accepted, 0 deferred, 0 refused",
    ]
    assert sorted(chart.paths) == ["accepted", "refused"]


def test_the_words_say_since_when_a_young_node_counts() -> None:
    young = series(accepted=(0, 0, 3)) | {"measured": 30.0}
    assert traffic_chart("Last hour", young).summary.endswith("The daemon counts since 30s.")


counts = st.integers(0, 10**9)


@given(st.lists(st.tuples(counts, counts, counts), min_size=1, max_size=96))
def test_no_bar_leaves_the_box_by_more_than_the_least_height(slots: list[tuple[int, int, int]]) -> None:
    numbers = dict(zip(KINDS, zip(*slots, strict=True), strict=True))
    chart = traffic_chart("Last hour", series(**numbers))
    for kind, path in chart.paths.items():
        bars = re.findall(r"M(\d+) ([\d.]+)h8v-([\d.]+)h-8z", path)
        assert "".join(f"M{x} {y}h8v-{h}h-8z" for x, y, h in bars) == path
        assert len(bars) == sum(bool(number) for number in numbers[kind])
        for x, bottom, height in bars:
            assert 0 < int(x) < chart.width
            assert -0.2 <= float(bottom) <= HEIGHT
            assert float(bottom) - float(height) >= -2.2
