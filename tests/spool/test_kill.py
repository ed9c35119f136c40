"""Confirmed means there, whatever happened to the process or the disk right after."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred

from tests.spool.mail import HEADER, body_for, read

ROUNDS = 20
ROOT = Path(__file__).parents[2]


def _start(directory: Path, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    command = [*before, sys.executable, "-m", "tests.spool.acceptor", str(directory), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


class Ledger:
    """What a process printed about its messages."""

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.given_away: set[str] = set()
        self.refused: set[str] = set()

    def enter(self, printed: bytes) -> None:
        kinds = {"+": self.confirmed, "-": self.given_away, "!": self.refused}
        # A line that the kill cut short was not said.
        for line in printed.decode().split("\n")[:-1]:
            if line[0] in kinds:
                kinds[line[0]].add(line[1:])

    async def check(self, spool) -> None:
        queued = {line.queue_id for line in await spool.list(limit=1_000_000)}
        owed = self.confirmed - self.given_away
        print(
            f"confirmed {len(self.confirmed)}, given away {len(self.given_away)}, owed {len(owed)},"
            f" queued {len(queued)}, lost {len(owed - queued)}, refused {len(self.refused)}"
        )
        assert owed - queued == set()
        for queue_id in queued:
            assert await read(spool, queue_id) == HEADER + body_for(queue_id)


@pytest.mark.timeout(300)
@ensureDeferred
async def test_kill_9_at_any_moment_loses_nothing_that_was_confirmed(open_spool, tmp_path):
    directory = tmp_path / "spool"
    ledger = Ledger()
    rounds = 0
    # A slow disk may confirm nothing before some of the kills.
    while rounds < ROUNDS or (len(ledger.confirmed) <= ROUNDS and rounds < 10 * ROUNDS):
        rounds += 1
        process = _start(directory)
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            process.wait(random.uniform(0.0, 0.12))
        except subprocess.TimeoutExpired:
            process.kill()
        ledger.enter(process.communicate()[0])
        assert process.returncode == -9
    assert len(ledger.confirmed) > ROUNDS
    spool = await open_spool(directory)
    await ledger.check(spool)
    # Small and large ones both were among them, and no body is left that no message needs.
    large = {path.name for path in (directory / "p0" / "bodies").iterdir()}
    assert large
    assert {name for name in large if not (await spool.show(name)).in_file} == set()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["15", "25..27", "60..63"])
@ensureDeferred
async def test_syncs_that_really_fail_are_refused_and_lose_nothing(open_spool, tmp_path, moment):
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-qq", "-o", os.devnull, "true"], check=False).returncode:
        pytest.skip("strace is not installed or not permitted")
    directory = tmp_path / "spool"
    inject = f"inject=fdatasync,fsync:error=EIO:when={moment}"
    traced = (strace, "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync,fsync", "-e", inject)
    process = _start(directory, "1", before=traced)
    ledger = Ledger()
    ledger.enter(process.communicate(timeout=100)[0])
    assert process.returncode == 0
    assert ledger.refused
    spool = await open_spool(directory)
    await ledger.check(spool)
    # What was refused is not kept: its client sends it again.
    assert not ledger.refused & {line.queue_id for line in await spool.list(limit=1_000_000)}
