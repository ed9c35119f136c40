"""Mail that goes round: counted by its Received fields."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from elemta.net.backend import MAX_HOPS, MAX_HOPS_HERE
from tests.net.conftest import Place, reply_of

FIELD = b"rEcEiVeD: from a.test by b.test; Mon, 1 Jan 2024 00:00:00 +0000\r\n"


@ensureDeferred
@pytest.mark.parametrize("first", [b"", b"Subject: x\r\n", b"X: y\r\n\tReceived: folded, not a field\r\n"])
async def test_a_message_with_a_hundred_hops_is_taken_and_with_one_more_it_is_a_loop(
    place: Place, first: bytes
) -> None:
    client = place.connect()
    client.envelope()
    client.send(first + FIELD * MAX_HOPS + b"\r\nx\r\n.\r\n")
    assert "queued as" in (await reply_of(client))[0]
    client.envelope()
    said = client.send(first + FIELD * (MAX_HOPS + 1) + b"\r\nx\r\n.\r\n")
    assert said == ["554 5.4.6 Too many hops, mail loop suspected"]
    assert place.policy.told == ["committed", "refused"]


@ensureDeferred
async def test_the_whole_header_is_counted_however_large(place: Place) -> None:
    client = place.connect()
    client.envelope()
    large = b"X-Filter: " + b"y" * 3000 + b"\r\n"
    for _ in range(MAX_HOPS + 1):
        client.send(FIELD + large)
    said = client.send(b"\r\nx\r\n.\r\n")
    assert said == ["554 5.4.6 Too many hops, mail loop suspected"]


@ensureDeferred
async def test_what_a_body_says_about_hops_does_not_count(place: Place) -> None:
    client = place.connect()
    client.envelope()
    client.send(b"Subject: bounce\r\n\r\n" + FIELD * (2 * MAX_HOPS) + b".\r\n")
    assert "queued as" in (await reply_of(client))[0]


@ensureDeferred
@pytest.mark.parametrize(
    "field",
    [
        b"Received: from a.test by {host} (Elemta) with ESMTP id 1; date\r\n",
        b"received: from a.test\r\n\tby {host}; date\r\n",
        b"Received: from a.test BY\t{HOST} with SMTP; date\r\n",
    ],
)
async def test_a_message_that_this_host_sent_three_times_is_a_loop(place: Place, field: bytes) -> None:
    host = b"mx.test"
    own = field.replace(b"{host}", host).replace(b"{HOST}", host.upper())
    client = place.connect()
    client.envelope()
    client.send(own * MAX_HOPS_HERE + FIELD * 5 + b"\r\nx\r\n.\r\n")
    assert "queued as" in (await reply_of(client))[0]
    client.envelope()
    said = client.send(own * (MAX_HOPS_HERE + 1) + b"\r\nx\r\n.\r\n")
    assert said == ["554 5.4.6 Too many hops, mail loop suspected"]


@ensureDeferred
@pytest.mark.parametrize(
    "field",
    [
        b"Received: from {host} by b.test; date\r\n",
        b"Received: from a.test by not.{host}; date\r\n",
        b"Received: from a.test by {host}.other.test; date\r\n",
        b"X-Received: from a.test by {host}; date\r\n",
    ],
)
async def test_a_field_that_another_host_wrote_is_no_sign_of_a_loop(place: Place, field: bytes) -> None:
    client = place.connect()
    client.envelope()
    client.send(field.replace(b"{host}", b"mx.test") * 9 + b"\r\nx\r\n.\r\n")
    assert "queued as" in (await reply_of(client))[0]
