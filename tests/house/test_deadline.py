"""A test that hangs is ended by its deadline, whatever it hangs in, and the tests behind it run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Each hangs in another way; between them are tests that don't.
SUITE = """
import time

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater


async def nothing():
    await Deferred()


@pytest_twisted.async_fixture
async def hangs_in_setup():
    await nothing()


@pytest_twisted.async_yield_fixture
async def hangs_in_teardown():
    yield
    await nothing()


@ensureDeferred
async def test_hangs_at_a_deferred():
    await nothing()


@ensureDeferred
async def test_good_1():
    await deferLater(reactor, 0.01)


@ensureDeferred
async def test_hangs_in_setup(hangs_in_setup):
    pass


@ensureDeferred
async def test_hangs_in_teardown(hangs_in_teardown):
    pass


@ensureDeferred
async def test_hangs_in_teardown_after_it_failed(hangs_in_teardown):
    raise ValueError("the test's own failure")


@ensureDeferred
async def test_hangs_in_a_coroutine_that_spins():
    while True:
        pass


@ensureDeferred
async def test_hangs_beside_a_callback_that_spins():
    def spin():
        while True:
            pass

    reactor.callLater(0, spin)
    await nothing()


def test_hangs_in_a_sleep():
    time.sleep(3600)


def test_hangs_in_blockon():
    pytest_twisted.blockon(Deferred())


@ensureDeferred
async def test_good_2():
    await deferLater(reactor, 0.01)
"""


@pytest.mark.parametrize("options", [["-p", "no:xdist"], ["-n", "2"]], ids=["plain", "two processes"])
def test_whatever_a_test_hangs_in_it_fails_at_its_deadline(tmp_path: Path, options: list[str]) -> None:
    suite = tmp_path / "test_hanging.py"
    suite.write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "tests.conftest", "-c", "/dev/null"]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "--timeout=1", *options, str(suite)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", said, re.MULTILINE))
    passed = set(re.findall(r"^PASSED \S+::(\w+)", said, re.MULTILINE))
    hanging = set(re.findall(r"def (test_hangs\w+)", SUITE))
    assert failed == hanging, said
    assert passed >= {"test_good_1", "test_good_2"}, said
    assert "did not end within 1 s" in said
    assert re.search(rf"waiting at {re.escape(str(suite))}:\d+", said), said
