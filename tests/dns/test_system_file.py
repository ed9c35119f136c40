"""A file of the system is parsed once for each change, and counts as empty while it can't be read."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elemta.dns.system_file import LOOK_AGAIN, SystemFile


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["write", "remove", "replace by a folder", "look"]), max_size=12))
def test_the_contents_are_those_of_the_file_and_parsed_once_for_each_change(
    tmp_path: Path, steps: list[str]
) -> None:
    clock, path = Clock(), tmp_path / "hosts"
    clear(path)
    parsed: list[tuple[str, ...]] = []

    def parse(lines: tuple[str, ...]) -> tuple[str, ...]:
        parsed.append(lines)
        return lines

    file = SystemFile(str(path), parse, clock.seconds)
    expected: tuple[str, ...] = ()
    changes = 1
    for number, step in enumerate(steps):
        before = expected
        if step != "look":
            clear(path)
            expected = ()
        if step == "write":
            path.write_text(f"line {number}\n")
            os.utime(path, ns=(number, number))
            expected = (f"line {number}",)
        elif step == "replace by a folder":
            path.mkdir()
        changes += expected != before
        clock.advance(LOOK_AGAIN)
        assert file.contents() == expected
        assert file.contents() is file.contents()
    assert len(parsed) == changes


def clear(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def test_a_change_is_looked_for_every_few_seconds_only(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "hosts"
    file = SystemFile(str(path), lambda lines: lines, clock.seconds)
    assert file.contents() == ()
    path.write_text("a\n")
    assert file.contents() == ()
    clock.advance(LOOK_AGAIN)
    assert file.contents() == ("a",)
