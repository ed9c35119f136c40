"""Puts messages into a spool, as a node that dies then: ``-m tests.adoption.fill DIR PART NODE HOLD``."""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from elemta.address import Address
from elemta.envelope import Client, MailParameters, Recipient
from elemta.runtime import Runtime
from elemta.spool import Spool, SpoolSettings, Submission
from tests.durability.ledger import Message

TRACE = b"Received: from client.test by mx; now\r\n"


async def _fill(reactor: Any, directory: str, part: str, node: str, hold: str) -> None:
    messages: list[Message] = pickle.load(sys.stdin.buffer)
    spool = await Spool.open(
        SpoolSettings(Path(directory), int(part), node=node, minimum_free=0), runtime=Runtime.of(reactor)
    )
    taken = []
    for message in messages:
        writer = spool.begin()
        writer.write(message.content)
        submission = Submission(
            Address("sender", "example.test"),
            tuple(Recipient(Address(*name.rpartition("@")[::2])) for name in message.recipients),
            MailParameters(),
            Client("192.0.2.1", "client.test", "mx", "SESSION"),
            TRACE,
            time.time(),
            hold or None,
        )
        taken.append(spool.commit(writer, submission))
    envelopes = await gatherResults(taken)
    await spool.close()
    print(json.dumps([envelope.queue_id for envelope in envelopes]))


def main(reactor: Any, *arguments: str) -> Deferred[None]:
    return Deferred.fromCoroutine(_fill(reactor, *arguments))


if __name__ == "__main__":
    react(main, sys.argv[1:])
