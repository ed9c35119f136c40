"""Reading large answers in threads: bounded, cancelled without a trace, ended at the stop."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import CancelledError

from elemta.dns.large_answers import MOST, LargeAnswers
from elemta.runtime import Runtime

reactor: Any = real_reactor


@ensureDeferred
async def test_what_is_read_in_a_thread_comes_back_and_so_does_what_it_raises() -> None:
    answers = LargeAnswers(Runtime.of(reactor).threads)
    here = threading.get_ident()
    read = answers.run(threading.get_ident)
    broken = answers.run(lambda: 1 / 0)
    assert read is not None
    assert broken is not None
    assert await read != here
    with pytest.raises(ZeroDivisionError):
        await broken
    await answers.stop()


@ensureDeferred
async def test_what_waits_to_be_read_is_bounded_and_can_be_cancelled() -> None:
    answers = LargeAnswers(Runtime.of(reactor).threads)
    gate = threading.Event()
    waiting = [answers.run(lambda: gate.wait(30)) for _ in range(MOST)]
    assert answers.run(lambda: True) is None
    for each in waiting:
        assert each is not None
        each.cancel()
        with pytest.raises(CancelledError):
            await each
    gate.set()
    await answers.stop()
    again = answers.run(lambda: True)
    assert again is not None
    assert await again
    await answers.stop()
