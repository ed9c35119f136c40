"""A process that takes in mail until it is killed: ``python -m tests.spool.acceptor DIR [RECOVERIES]``.

Prints ``+ID`` after a commit was confirmed, ``-ID`` before it asks to settle a message as delivered, ``!ID``
for one that was refused. With RECOVERIES, ends by itself after the disk failed and came back that often.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react

from elemta.errors import SpoolError
from elemta.outcome import Status
from elemta.runtime import Runtime
from elemta.spool import Spool, SpoolSettings
from tests.spool.mail import body_for, outcome, submission


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def take_in(spool: Spool) -> None:
    writer = spool.begin()
    body = body_for(writer.queue_id)
    for start in range(0, len(body), 30_000):
        writer.write(body[start : start + 30_000])
    try:
        envelope = await spool.commit(writer, submission())
    except SpoolError:
        say("!" + writer.queue_id)
        await deferLater(reactor, 0.01)
        return
    say("+" + envelope.queue_id)
    if envelope.queue_id[-1] in "02468":
        say("-" + envelope.queue_id)
        said = [outcome(envelope.queue_id, "bob", Status.DELIVERED)]
        spool.settle(envelope.queue_id, said, retry_at=None, hold_reason=None).addErrback(lambda _: None)


async def main(reactor: Any, directory: str, recoveries: str = "0") -> None:
    spool = await Spool.open(SpoolSettings(Path(directory), minimum_free=0), runtime=Runtime.of(reactor))
    say("open")
    left = int(recoveries)
    was_healthy = True
    while True:
        await gatherResults([Deferred.fromCoroutine(take_in(spool)) for _ in range(8)])
        if spool.healthy and not was_healthy:
            left -= 1
            if not left:
                break
        was_healthy = spool.healthy
    for _ in range(5):
        await gatherResults([Deferred.fromCoroutine(take_in(spool)) for _ in range(8)])
    await spool.close()
    say("closed")


if __name__ == "__main__":
    react(main, sys.argv[1:])
