"""``elemtactl limits override`` and ``limits overrides``, against a real admin API."""

from __future__ import annotations

import re

import pytest
from pytest_twisted import ensureDeferred

from tests.ctl.test_main import Daemon, daemon

__all__ = ["daemon"]


@ensureDeferred
async def test_an_override_is_made_shown_and_removed(daemon: Daemon) -> None:
    assert await daemon.ctl("limits", "overrides") == (0, "no override\n", "")
    made = ("limits", "override", "ip", "::ffff:192.0.2.1", "--rates", "5/1m", "50/1h", "--for", "1h")
    code, out, _ = await daemon.ctl(*made, "--note", "a migration")
    assert (code, out) == (0, "ip: 192.0.2.1 5/1m 50/1h for 1h\n")
    daemon.overseen.connect("192.0.2.1", 9)
    _, out, _ = await daemon.ctl("limits", "top", "ip")
    assert "5/5 in 1m, 5/50 in 1h (override)" in out
    _, out, _ = await daemon.ctl("limits", "show", "ip:192.0.2.1")
    assert "5/5 in 1m, 5/50 in 1h (override)" in out
    _, out, _ = await daemon.ctl("limits", "overrides")
    assert re.search(r"^ip +192\.0\.2\.1 +5/1m 50/1h +1h +\S+ +a migration$", out, re.MULTILINE)
    code, out, _ = await daemon.ctl("limits", "override", "ip", "192.0.2.1", "--remove")
    assert (code, out) == (0, "ip: 192.0.2.1 has the limit's own rates again\n")
    assert (await daemon.json("limits", "overrides"))["overrides"] == []
    code, _, err = await daemon.ctl("limits", "override", "ip", "192.0.2.1", "--remove")
    assert code == 1
    assert "there is no override of ip for 192.0.2.1" in err


@ensureDeferred
async def test_no_identity_is_cut_however_narrow_the_terminal(daemon: Daemon, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    network, note = "10.20.30.0/24", "a note that is longer than the terminal is wide"
    made = ("limits", "override", "ip", network, "--rates", "5/1m", "50/1h", "--for", "1h")
    assert (await daemon.ctl(*made, "--note", note))[0] == 0
    _, out, _ = await daemon.ctl("limits", "overrides", terminal=True)
    assert "…" not in out
    for text in (network, "5/1m 50/1h", note, "by uid:"):
        assert text in out


@pytest.mark.parametrize(
    "rates",
    [("--rates", "5/1m", "50/1h"), ("--rates", "5/1m", "--rates", "50/1h"), ("--rates", "5/1m,50/1h")],
)
@ensureDeferred
async def test_all_rates_that_are_given_hold(daemon: Daemon, rates: tuple[str, ...]) -> None:
    code, out, _ = await daemon.ctl("limits", "override", "ip", "192.0.2.1", *rates, "--for", "1h")
    assert (code, out) == (0, "ip: 192.0.2.1 5/1m 50/1h for 1h\n")


@ensureDeferred
async def test_an_exempt_network_is_shown_as_such_for_each_of_its_addresses(daemon: Daemon) -> None:
    daemon.overseen.connect("10.1.2.3", 2)
    code, out, _ = await daemon.ctl("limits", "override", "ip", "10.0.0.0/8", "--exempt", "--for", "90m")
    assert (code, out) == (0, "ip: 10.0.0.0/8 exempt for 1h 30m\n")
    daemon.overseen.connect("10.1.2.3", 9)
    _, out, _ = await daemon.ctl("limits", "show", "ip:10.1.2.3")
    assert re.search(r"ip +10\.1\.2\.3 +2/3 in 1m \(exempt\) +now", out)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("ip", "192.0.2.1", "--for", "1h"), "either --exempt or --rates"),
        (("ip", "192.0.2.1", "--for", "1h", "--exempt", "--rates", "1/1m"), "either --exempt or --rates"),
        (("ip", "192.0.2.1", "--exempt"), "--for DURATION"),
        (("ip", "192.0.2.1", "--exempt", "--for", "soon"), "for 'soon' is no duration"),
        (("ip", "192.0.2.1", "--exempt", "--for", "0"), "for must be more than 0"),
        (("ip", "192.0.2.1", "--exempt", "--for", "9999d"), "at most 366d"),
        (("ip", "192.0.2.1", "--rates", "5", "--for", "1h"), "must have a window"),
        (("connections-per-ip", "192.0.2.1", "--rates", "5/1m", "--for", "1h"), "must be a plain number"),
        (("ip", "192.0.2.1/24", "--exempt", "--for", "1h"), 'did you mean "192.0.2.0/24"'),
        (("ip", "anna@example.com", "--exempt", "--for", "1h"), "identity:"),
        (("nothing", "192.0.2.1", "--exempt", "--for", "1h"), "there is no limit 'nothing'"),
        (("ip", "192.0.2.1", "--remove", "--exempt"), "--remove goes with no other option"),
    ],
)
@ensureDeferred
async def test_what_can_be_no_override_is_refused_with_what_would_be_right(
    daemon: Daemon, words: tuple[str, ...], problem: str
) -> None:
    code, _, err = await daemon.ctl("limits", "override", *words)
    assert code in (1, 2)
    assert problem in err
    assert (await daemon.json("limits", "overrides"))["overrides"] == []
