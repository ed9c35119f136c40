"""The checks that every test gets do see what they are for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"

LEAKS = """
from pytest_twisted import ensureDeferred
from twisted.internet import defer, endpoints, protocol, reactor


def listen():
    return endpoints.TCP4ServerEndpoint(reactor, 0).listen(protocol.Factory.forProtocol(protocol.Protocol))


def test_a_timer_stays():
    reactor.callLater(100, print)


@ensureDeferred
async def test_a_port_stays():
    await listen()


def test_a_failure_is_nobodys():
    defer.fail(ValueError("nobody"))


def test_a_failure_in_a_cycle_is_nobodys():
    deferred = defer.fail(ValueError("cycle"))
    deferred.me = deferred


@ensureDeferred
async def test_a_timer_raises():
    reactor.callLater(0, lambda: 1 / 0)
    later = defer.Deferred()
    reactor.callLater(0.01, later.callback, None)
    await later


@ensureDeferred
async def test_all_is_tidy():
    port = await listen()
    reactor.callLater(0.01, int)
    await port.stopListening()


def test_an_expected_error(unhandled_errors):
    defer.fail(ValueError("expected"))
    unhandled_errors.clear()
"""


def test_a_test_that_leaves_something_behind_fails_and_a_tidy_one_does_not(tmp_path: Path) -> None:
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rE", "--no-header", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    failed = {
        line.split("::")[1].split(" ")[0] for line in run.stdout.splitlines() if line.startswith("ERROR")
    }
    assert failed == {
        "test_a_timer_stays",
        "test_a_port_stays",
        "test_a_failure_is_nobodys",
        "test_a_failure_in_a_cycle_is_nobodys",
        "test_a_timer_raises",
    }, run.stdout
    assert "7 passed, 5 errors" in run.stdout
