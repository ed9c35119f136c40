"""Discard, and recipients that policies replace, from the client's commands to the spool."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.policy import CONTINUE, Accept, Discard, Quarantine, Reject
from tests.net.conftest import MESSAGE, Place, Scripted, reply_of

TRAP = "trap"
BOTH = ["first@example.test", "second@example.test"]


async def say(client: Any, text: bytes) -> list[str]:
    client.protocol.dataReceived(text)
    return await reply_of(client)


async def spooled(place: Place) -> int:
    return (await place.spool.stats()).total


@pytest.mark.parametrize("stage", ["connect", "helo", "mail", "data", "message"])
@ensureDeferred
async def test_a_discarded_message_gets_250_and_is_stored_nowhere(
    place: Place, stage: str, events: Any
) -> None:
    place.policy.answers[stage] = Discard("spamtrap")
    client = place.connect()
    client.envelope()
    (reply,) = await say(client, MESSAGE)
    assert reply.startswith("250 2.0.0 Message accepted for delivery; queued as ")
    assert await spooled(place) == 0
    (record,) = [event for event in events if event.get("event") == "message.discarded"]
    assert (record["policy"], record["reason"]) == ("scripted", "spamtrap")
    assert record["queue_id"] == reply.split()[-1]
    assert place.policy.told == ["committed"]


@pytest.mark.parametrize("later", ["rcpt", "data", "message"])
@ensureDeferred
async def test_a_refusal_at_a_later_stage_is_still_one(place: Place, later: str) -> None:
    place.policy.answers["mail"] = Discard("spamtrap")
    place.policy.answers[later] = Reject("no")
    client = place.connect()
    client.protocol.dataReceived(b"EHLO a\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<x@example.test>\r\nDATA\r\n")
    client.protocol.dataReceived(MESSAGE)
    replies = await reply_of(client)
    assert any(reply.startswith("550 5.7.1 no") for reply in replies), replies
    assert await spooled(place) == 0


class Changing(Scripted):
    """At RCPT it does what the local part of the recipient says."""

    def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        self.asked.append(str(recipient))
        name = recipient.local
        if name == TRAP:
            return Discard("spamtrap")
        if name == "one":
            transaction.replace_recipient(recipient, ["first@example.test"])
        if name == "many":
            transaction.replace_recipient(recipient, ["first@example.test", "second@example.test"])
        if name == "held":
            transaction.replace_recipient(recipient, ["first@example.test"])
            return Quarantine("odd")
        if name == "refused":
            transaction.replace_recipient(recipient, ["first@example.test"])
            return Reject("no")
        return CONTINUE

    def message(self, session: Any, transaction: Any, message: Any) -> Any:
        self.asked.append([str(each) for each in transaction.recipients])
        return CONTINUE


@pytest.mark.parametrize(
    ("names", "codes", "expected"),
    [
        ([TRAP], ["250"], []),
        ([TRAP, TRAP], ["250", "250"], []),
        ([TRAP, "plain"], ["250", "250"], ["plain@example.test"]),
        (["plain", TRAP], ["250", "250"], ["plain@example.test"]),
        (["one"], ["250"], ["first@example.test"]),
        (
            ["many", "plain"],
            ["250", "250"],
            [*BOTH, "plain@example.test"],
        ),
        (["one", "many"], ["250", "250"], BOTH),
        (["refused", "plain"], ["550", "250"], ["plain@example.test"]),
        (["held"], ["250"], ["first@example.test"]),
        ([TRAP, "one"], ["250", "250"], ["first@example.test"]),
    ],
)
@ensureDeferred
async def test_what_becomes_of_recipients(
    place: Place, names: list[str], codes: list[str], expected: list[str]
) -> None:
    place.policy = policy = Changing()
    client = place.connect()
    client.protocol.dataReceived(b"EHLO a\r\nMAIL FROM:<a@b.test>\r\n")
    await reply_of(client)
    for name, code in zip(names, codes, strict=True):
        (reply,) = await say(client, b"RCPT TO:<%s@example.test>\r\n" % name.encode())
        assert reply.startswith(code)
    (reply,) = await say(client, b"DATA\r\n")
    assert reply.startswith("354")
    (reply,) = await say(client, MESSAGE)
    assert reply.startswith("250 2.0.0 Message accepted")
    assert sorted(set(policy.asked[-1])) == sorted(expected)
    assert await spooled(place) == bool(expected)
    if expected:
        shown = await place.spool.show(reply.split()[-1])
        assert sorted(str(each.recipient) for each in shown.recipients) == sorted(expected)


@ensureDeferred
async def test_a_refused_transaction_with_dropped_recipients_leaves_nothing(place: Place) -> None:
    place.policy = Changing()
    client = place.connect()
    client.protocol.dataReceived(
        b"EHLO a\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<trap@example.test>\r\nRSET\r\nDATA\r\n"
    )
    replies = await reply_of(client)
    assert replies[-1].startswith("503")


@pytest.mark.parametrize("verdict", [Discard("spamtrap"), Accept(), Quarantine("odd")])
@ensureDeferred
async def test_no_verdict_of_a_policy_that_may_not_grant_it_lets_a_stranger_relay(
    place: Place, verdict: Any
) -> None:
    place.policy.answers["rcpt"] = verdict
    client = place.connect()
    client.protocol.dataReceived(b"EHLO a\r\nMAIL FROM:<a@b.test>\r\n")
    await reply_of(client)
    (reply,) = await say(client, b"RCPT TO:<x@foreign.test>\r\n")
    assert reply == "554 5.7.1 Relay access denied"
