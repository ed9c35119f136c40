"""A large message that is not taken leaves nothing on the disk, however its session goes on or ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred

from elemta.policy import Defer, Reject
from tests.net.conftest import BLOCK, Client, Place, reply_of
from tests.support.waiting import until

LARGE = BLOCK * 300
End = Callable[[Place, Client], Awaitable[None]]


def refused_with(verdict: object) -> End:
    async def end(place: Place, client: Client) -> None:
        place.policy.answers["message"] = verdict
        (reply,) = client.send(LARGE + b".\r\n") or await reply_of(client)
        assert reply[0] in "45"

    return end


async def a_mail_loop(place: Place, client: Client) -> None:
    sent = b"Received: from a by b\r\n" * 200 + b"\r\n" + LARGE + b".\r\n"
    (reply,) = client.send(sent) or await reply_of(client)
    assert reply.startswith("5")


async def the_client_leaves_in_the_middle(place: Place, client: Client) -> None:
    client.send(LARGE)
    client.lose()


async def the_client_leaves_while_a_policy_thinks(place: Place, client: Client) -> None:
    from twisted.internet.defer import Deferred

    place.policy.answers["message"] = Deferred
    client.send(LARGE + b".\r\n")
    await until(lambda: "message" in place.policy.asked)
    client.lose()


async def the_time_is_up(place: Place, client: Client) -> None:
    client.send(LARGE)
    place.pass_time(700)
    assert client.said()[0].startswith("421")


async def the_size_limit_in_the_middle(place: Place, client: Client) -> None:
    (reply,) = client.send(BLOCK * 1100 + b"\r\n.\r\n") or await reply_of(client)
    assert reply.startswith("552")


def chunks_and(word: bytes) -> End:
    async def end(place: Place, client: Client) -> None:
        other = place.connect()
        other.said()
        other.send(b"EHLO client.test\r\n")
        other.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\n")
        other.send(b"BDAT %d\r\n" % len(LARGE) + LARGE)
        other.said()
        if word:
            other.send(word)
        else:
            other.lose()

    return end


ENDS: dict[str, End] = {
    "rejected by a policy": refused_with(Reject("no")),
    "deferred by a policy": refused_with(Defer("later")),
    "a policy raises": refused_with(lambda: 1 / 0),
    "a mail loop": a_mail_loop,
    "the client leaves in the middle": the_client_leaves_in_the_middle,
    "the client leaves while a policy thinks": the_client_leaves_while_a_policy_thinks,
    "the time is up": the_time_is_up,
    "the size limit": the_size_limit_in_the_middle,
    "RSET between chunks": chunks_and(b"RSET\r\n"),
    "EHLO between chunks": chunks_and(b"EHLO client.test\r\n"),
    "QUIT between chunks": chunks_and(b"QUIT\r\n"),
    "leaves between chunks": chunks_and(b""),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@ensureDeferred
async def test_a_large_message_that_is_not_taken_leaves_no_file(place, tmp_path: Path, end: End) -> None:
    bodies = tmp_path / "spool" / "p0" / "bodies"
    factory = place.factory
    factory.context = replace(
        factory.context, session=replace(factory.context.session, max_message_size=1 << 20)
    )
    client = place.connect(factory=factory)
    client.envelope()
    await end(place, client)
    await until(lambda: not list(bodies.iterdir()))
