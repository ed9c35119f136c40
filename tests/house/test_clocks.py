"""Where the tree may look at a clock by itself; everywhere else it is given one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import elemta

ROOT = Path(elemta.__file__).parent

# The time of day. Intervals that are taken from it end early or late when the clock is set.
WALL = {
    "elemta/clock.py": "the daemon's clocks are chosen there",
    "elemta/ops/log.py": "a record has the date of its writing",
    "elemta/ctl/queue.py": "a command that is run once shows ages",
    "elemta/ctl/sendmail.py": "a command that is run once writes the Date field",
}
_WALL_NAMES = {
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "runtime.seconds",
}
# These do so where they are given no date.
_WITHOUT_A_DATE = {"ctime", "localtime", "gmtime", "asctime", "formatdate"}
_FROM = {"time": {"time", "time_ns"}}


def looks(path: Path) -> Iterator[str]:
    """Where a module asks for the time of day, whether it calls or passes on what does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if f"{name}.{node.attr}" in _WALL_NAMES:
                yield f"{path.name}:{node.lineno}: {name}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in _WITHOUT_A_DATE and not node.args:
                yield f"{path.name}:{node.lineno}: {called}()"
        elif isinstance(node, ast.ImportFrom) and node.module in _FROM:
            for alias in node.names:
                if alias.name in _FROM[node.module]:
                    yield f"{path.name}:{node.lineno}: from {node.module} import {alias.name}"


def test_the_time_of_day_is_asked_only_where_a_date_is_made() -> None:
    found = {
        str(path.relative_to(ROOT.parent)): looked
        for path in sorted(ROOT.rglob("*.py"))
        if (looked := list(looks(path)))
    }
    assert {name: looked for name, looked in found.items() if name not in WALL} == {}
    assert sorted(found) == sorted(WALL), "the table names a module that does not look any more"


def test_the_check_sees_each_way_to_look(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import time, datetime\nfrom time import time as now\nx = time.time\n"
        "y = datetime.datetime.now()\nz = time.localtime()\nok = time.gmtime(3) + time.monotonic()\n"
    )
    assert len(list(looks(module))) == 4


def test_delivery_and_the_spool_take_no_date_from_the_reactor() -> None:
    """It is monotonic there, and nearly all that these two ask for is a date."""
    asked = [
        f"{path.name}:{number}"
        for package in ("delivery", "spool")
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "reactor.seconds()" in line and path.name != "dialer.py"  # how long hosts were slow
    ]
    assert asked == []
