"""The Python functions of Elemta that run for a message: a figure that no busy machine changes.

docs/performance.md has the figures of a whole daemon.
"""

from __future__ import annotations

from pytest_twisted import ensureDeferred

from tests.support.calls import calls

from .conftest import Client, Place, reply_of

MOST = {
    b"MAIL FROM:<a@client.test>\r\n": 41,
    b"RCPT TO:<b@example.test>\r\n": 49,
    b"DATA\r\n": 38,
    b"Subject: x\r\n\r\nx\r\n.\r\n": 78,
}
"""The most functions for what a client sends, without any policy."""


async def connected(place: Place) -> Client:
    """A client that has sent a message already: what is made once is there."""
    place.chain_is_empty = True
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(b"Subject: x\r\n\r\nx\r\n.\r\n")
    await reply_of(client)
    return client


@ensureDeferred
async def test_a_message_takes_few_calls(place: Place) -> None:
    client = await connected(place)
    taken = {}
    for sent in MOST:
        taken[sent] = calls(lambda sent=sent: client.protocol.dataReceived(sent))
        (reply,) = await reply_of(client)
        assert reply[:3] in ("250", "354")
    assert {sent: count for sent, count in taken.items() if count > MOST[sent]} == {}, taken
