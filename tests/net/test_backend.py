"""What becomes of a message between its last octet and the answer: fields, hops, policies, the disk."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.net import message_commit
from elemta.net.recipients import FinalRecipients
from elemta.policy import CONTINUE, Defer, Disconnect, Reject, Verdict
from tests.net.conftest import MESSAGE, Place, Scripted, reply_of, spooled

FORGERY = b"\t; dkim=pass header.d=bank.example\r\n"
HOPS = b"Received: from a by b; now\r\n" * 101


class Judge(Scripted):
    """Adds what a policy may add, and notes which fields it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []

    def message(self, session: Any, transaction: Any, message: Any) -> Any:
        transaction.add_header("Authentication-Results", "mx.test; dkim=none")
        self.shown = [name for name, _ in message.headers.items()]
        return CONTINUE


@pytest.mark.parametrize(
    ("message", "between", "shown"),
    [
        (FORGERY + b"Subject: x\r\n\r\nbody\r\n", b"\r\n", []),
        (b" \r\nSubject: x\r\n\r\nbody\r\n", b"\r\n", []),
        (b"no header\r\n\r\nbody\r\n", b"\r\n", []),
        (b"From : x\r\n" + FORGERY, b"", ["From"]),
        (
            b"From a@b.test now\r\nSubject: x\r\n\r\nbody\r\n",
            b"X-Mailbox-Line: ",
            ["X-Mailbox-Line", "Subject"],
        ),
        (b"Subject: x\r\n\r\nbody\r\n", b"", ["Subject"]),
        (b"\r\nbody\r\n", b"", []),
        (b"", b"", []),
        (FORGERY + b"x" * 70_000 + b"\r\n", b"\r\n", []),
    ],
)
@ensureDeferred
async def test_no_octet_of_a_client_continues_a_field_of_a_policy(
    place: Place, message: bytes, between: bytes, shown: list[str]
) -> None:
    place.policy = judge = Judge()
    ours, field, rest = (await spooled(place, message)).partition(
        b"\r\nAuthentication-Results: mx.test; dkim=none\r\n"
    )
    assert ours.startswith(b"Received: ")
    assert field
    assert rest == between + message
    assert judge.shown == shown


@ensureDeferred
async def test_the_policies_see_the_header_as_it_is_stored(place: Place) -> None:
    place.policy = judge = Judge()
    message = b">From a@b.test now\r\nReturn-Path: <x>\r\n" + FORGERY + b"To: x\r\nReturn-path :y\r\n\r\n"
    stored = await spooled(place, message + b"Return-Path: z\r\n")
    assert stored.endswith(b"\r\nX-Mailbox-Line: >From a@b.test now\r\nTo: x\r\n\r\nReturn-Path: z\r\n")
    assert judge.shown == ["X-Mailbox-Line", "To"]


class Listening(Scripted):
    """Notes the replies that refuse."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__()
        self.answers["connect"] = verdict
        self.refusals: list[tuple[str, str]] = []

    def refused_at(self, session: Any, stage: Any, reply: Any, transaction: Any, recipient: Any) -> None:
        self.refusals.append((stage.value, str(reply)))


@pytest.mark.parametrize(
    "verdict",
    [
        Reject("no"),
        Reject("no", code=521, enhanced="5.3.2"),
        Reject("no", code=554, enhanced="5.7.1"),
        Defer("later"),
        Disconnect("later"),
        Disconnect("no", code=554, enhanced="5.7.1"),
    ],
)
def test_an_observer_of_refusals_gets_the_reply_that_a_client_reads_in_place_of_the_greeting(
    place: Place, verdict: Verdict
) -> None:
    place.policy = policy = Listening(verdict)
    (line,) = place.connect().said()
    assert policy.refusals == [("connect", line)]


@pytest.mark.parametrize("first", [b" \r\n", b"\r\n", b"words\r\n"])
@ensureDeferred
async def test_what_is_body_to_every_reader_is_no_hop(place: Place, first: bytes) -> None:
    assert (await spooled(place, first + HOPS)).endswith(first + HOPS)


@pytest.mark.parametrize(("final", "code"), [(None, "452 "), (FinalRecipients(()), "451 ")])
@pytest.mark.parametrize("stage", ["none", "message"])
@ensureDeferred
async def test_a_message_that_is_refused_at_its_commit_is_discarded(
    place: Place, monkeypatch: pytest.MonkeyPatch, final: FinalRecipients | None, code: str, stage: str
) -> None:
    """Whether policies are asked about the message or not."""
    place.chain_is_empty = stage == "none"
    monkeypatch.setattr(message_commit, "final_recipients", lambda *_: final)
    writers = []
    begin = place.spool.begin
    monkeypatch.setattr(place.spool, "begin", lambda: writers.append(begin()) or writers[-1])
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(MESSAGE)
    (reply,) = await reply_of(client)
    assert reply.startswith(code)
    assert [writer.ended for writer in writers] == [True]
    assert (await place.spool.stats()).total == 0
