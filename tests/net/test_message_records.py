"""What the log says of a message: its names and its envelope, and the queue id in each record about it."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.policy import Quarantine, Reject
from tests.net.conftest import Place, reply_of


async def say(client: Any, text: bytes) -> list[str]:
    client.protocol.dataReceived(text)
    return await reply_of(client)


def named(events: Any, name: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("event") == name]


@ensureDeferred
async def test_an_accepted_message_is_logged_with_its_names_and_first_recipients(
    place: Place, events: Any
) -> None:
    recipients = [f"user{number}@example.test" for number in range(12)]
    client = place.connect()
    client.said()
    commands = ["EHLO client.test", "MAIL FROM:<a@client.test>"]
    commands += [f"RCPT TO:<{each}>" for each in recipients]
    for command in (*commands, "DATA"):
        client.send(command.encode() + b"\r\n")
    text = b"Message-ID:\r\n <one@client.test>\r\nSubject: secret\r\n\r\nMessage-ID: <not@this>\r\n.\r\n"
    (reply,) = await say(client, text)
    (record,) = named(events, "message.accepted")
    assert record["queue_id"] == reply.split()[-1]
    assert record["message_id"] == "<one@client.test>"
    assert record["recipients"] == recipients[:10]
    assert record["recipient_count"] == 12
    assert record["size"] > len(text)
    # The subject is a part of what people write to each other.
    assert "secret" not in str(record)


@ensureDeferred
async def test_a_message_without_an_id_is_logged_without_one(place: Place, events: Any) -> None:
    client = place.connect()
    client.envelope()
    await say(client, b"Subject: x\r\n\r\nx\r\n.\r\n")
    (record,) = named(events, "message.accepted")
    assert record["message_id"] is None


@pytest.mark.parametrize("verdict", [Reject("no"), Quarantine("odd")])
@ensureDeferred
async def test_the_verdict_on_a_message_is_logged_with_its_queue_id(
    place: Place, verdict: Reject | Quarantine, events: Any
) -> None:
    place.policy.answers["message"] = verdict
    client = place.connect()
    client.envelope()
    await say(client, b"Subject: x\r\n\r\nx\r\n.\r\n")
    (record,) = named(events, "policy.verdict")
    assert len(record["queue_id"]) == 18
    refused = [each for each in named(events, "command.refused") if each["verb"] == "."]
    assert [each["queue_id"] for each in refused] == [record["queue_id"]] * isinstance(verdict, Reject)


@ensureDeferred
async def test_what_is_refused_before_a_message_is_logged_without_one(place: Place, events: Any) -> None:
    client = place.connect()
    client.envelope()
    await say(client, b"Subject: x\r\n\r\nx\r\n.\r\n")
    place.policy.answers["rcpt"] = Reject("no")
    for command in (b"MAIL FROM:<a@client.test>\r\n", b"RCPT TO:<b@example.test>\r\n"):
        await say(client, command)
    assert [each["queue_id"] for each in named(events, "command.refused")] == [None]
    assert "queue_id" not in named(events, "policy.verdict")[0]
