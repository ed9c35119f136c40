"""What was refused lately, and which sessions are open: for people, bounded, and without secrets."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.daemon.session_operations import SessionOperations
from elemta.net.recent_refusals import MOST_REFUSALS
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal
from elemta.policy import Defer, Disconnect, Reject
from elemta.smtp import replies
from tests.net.conftest import Client, Place


async def ask(place: Place, path: str) -> Any:
    return await CallTable(SessionOperations(place.registry, "mx1")).answer("GET", path)


def in_transaction(client: Client) -> Client:
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    return client


@ensureDeferred
async def test_what_was_refused_is_kept_with_the_reply_and_found_by_policy_limit_and_client(
    place: Place,
) -> None:
    place.policy.answers["rcpt"] = Reject("No (really)", code=553)
    in_transaction(place.connect("192.0.2.1")).send(
        b"RCPT TO:<b@example.test>\r\nRCPT TO:<c@else.example>\r\n"
    )
    place.policy.answers["mail"] = Defer(
        "Too many messages (limit per-ip, 3 per minute), try again in 9 seconds"
    )
    in_transaction(place.connect("2001:db8::7"))
    place.connect("192.0.2.9").send(b"GET / HTTP/1.1\r\n")
    place.policy.answers["connect"] = Disconnect("Go away")
    place.connect("192.0.2.200")
    found = (await ask(place, "/v1/refused"))["refused"]
    assert [(each["client_ip"], each["verb"], each["policy"], each["limit"]) for each in found] == [
        ("192.0.2.200", "", "scripted", ""),
        ("192.0.2.9", "?", "", ""),
        ("2001:db8::7", "MAIL", "scripted", "per-ip"),
        ("192.0.2.1", "RCPT", "scripted", ""),
        ("192.0.2.1", "RCPT", "scripted", ""),
    ]
    first = found[-1]
    assert (first["sender"], first["recipient"], first["helo"]) == (
        "a@client.test", "b@example.test", "client.test",
    )  # fmt: skip
    assert first["reply"] == "553 5.7.1 No (really)"
    assert [each["client_ip"] for each in (await ask(place, "/v1/refused?limit=per-ip"))["refused"]] == [
        "2001:db8::7"
    ]
    assert len((await ask(place, "/v1/refused?client=192.0.2.0/26"))["refused"]) == 3
    for mapped in ("::ffff:192.0.2.0/122", "::FFFF:c000:200/122", "%20192.0.2.0/26%20"):
        assert len((await ask(place, f"/v1/refused?client={mapped}"))["refused"]) == 3
    assert len((await ask(place, "/v1/refused?client=2001:db8::/32&policy=scripted"))["refused"]) == 1
    assert len((await ask(place, "/v1/refused?count=2"))["refused"]) == 2
    with pytest.raises(AdminRefusal, match="no IP address"):
        await ask(place, "/v1/refused?client=192.0.2")


@ensureDeferred
async def test_refusals_are_bounded_in_number_and_length_and_those_without_a_session_are_there(
    place: Place,
) -> None:
    place.policy.answers["rcpt"] = Reject("x" * 900)
    client = in_transaction(place.connect())
    client.send(b"RCPT TO:<" + b"b" * 60 + b"@example.test>\r\n")
    (found,) = (await ask(place, "/v1/refused"))["refused"]
    assert len(found["reply"]) == 512
    for _ in range(MOST_REFUSALS + 5):
        place.registry.refusals.no_session("192.0.2.1", "mx", replies.STARTING, "closed")
    answer = await ask(place, f"/v1/refused?count={MOST_REFUSALS}")
    assert (len(answer["refused"]), answer["total"]) == (MOST_REFUSALS, MOST_REFUSALS + 6)
    place.registry.max_connections = 0
    place.connect("192.0.2.77")
    refusals = place.registry.refusals.latest(client=ip_network("192.0.2.77"))
    assert [(each.reason, each.reply) for each in refusals] == [
        ("max_connections", str(replies.TOO_MANY_CONNECTIONS))
    ]


@ensureDeferred
async def test_open_sessions_are_listed_with_what_they_do(place: Place) -> None:
    in_transaction(place.connect("192.0.2.1")).send(b"RCPT TO:<b@example.test>\r\n")
    place.pass_time(7)
    place.connect("2001:db8::1")
    answer = await ask(place, "/v1/sessions")
    assert answer["total"] == 2
    one, two = answer["sessions"]
    assert (one["client_ip"], one["helo"], one["state"]) == (
        "192.0.2.1", "client.test", "a sender and recipients",
    )  # fmt: skip
    assert (one["sender"], one["recipients"], one["seconds"]) == ("a@client.test", 1, 7.0)
    assert (two["state"], two["sender"], two["tls"]) == ("before HELO or EHLO", None, "")
    assert [
        each["client_ip"] for each in (await ask(place, "/v1/sessions?client=2001:db8::/64"))["sessions"]
    ] == ["2001:db8::1"]
    shown = await ask(place, "/v1/sessions?limit=1")
    assert (len(shown["sessions"]), shown["total"]) == (1, 2)
