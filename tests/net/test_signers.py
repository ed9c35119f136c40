"""Signing: last of all, over exactly what is stored, for accepted mail and for our own notices."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from zope.interface import implementer

from elemta.address import Address
from elemta.config import OnError, PolicyCommon
from elemta.daemon.delivery_factory import DeliveryFactory
from elemta.delivery.bounces import submit
from elemta.envelope import Client as Sender
from elemta.envelope import Envelope, MailParameters, Recipient
from elemta.errors import NotSigned
from elemta.message.notice import Notice, NoticeKind, NoticeSettings
from elemta.outcome import Outcome, Status
from elemta.policy import ISigner, LoadedPolicy, PolicyChain
from tests.net.conftest import MESSAGE, Place, reply_of
from tests.net.test_edited_messages import BODY, HEADER, Editing


@implementer(ISigner)
class Digest:
    """Signs with the digest of the whole message as it sees it."""

    def __init__(self, name: str = "X-Digest", answer: Any = None) -> None:
        self.name, self.answer = name, answer
        self.envelopes: list[Any] = []
        self.kept: Any = None

    def sign(self, envelope: Any, message: Any) -> Any:
        self.envelopes.append(envelope)
        self.kept = message
        if callable(self.answer):
            return self.answer(message)
        with message.open() as file:
            octets = file.read()
        assert len(octets) == message.size >= envelope.size
        message.add_header(self.name, hashlib.sha256(octets).hexdigest())
        return self.answer


def signer_of(
    place: Place, *policies: Any, on_error: OnError = OnError.DEFER, listeners: Any = ()
) -> PolicyChain:
    """Let these policies sign what the spool takes in, as the daemon does."""
    loaded = [
        LoadedPolicy(f"s{number}", policy, PolicyCommon(timeout=5.0, on_error=on_error, listeners=listeners))
        for number, policy in enumerate(policies)
    ]
    chain = PolicyChain(loaded, place.clock)
    factory: Any = object.__new__(DeliveryFactory)
    factory._components = type("C", (), {"chain": chain})()
    place.spool.signer = factory
    return chain


async def send(place: Place, message: bytes = HEADER + BODY) -> str:
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(message + b".\r\n")
    (reply,) = await reply_of(client)
    return reply


async def stored(place: Place, reply: str) -> bytes:
    with await place.spool.open_content(reply.rsplit(maxsplit=1)[-1]) as content:
        return content.read()


@pytest.mark.parametrize("size", [0, 400_000], ids=["small", "in a file"])
@pytest.mark.parametrize("edited", [False, True])
@ensureDeferred
async def test_the_last_octets_that_are_stored_are_those_that_were_signed(
    place: Place, size: int, edited: bool
) -> None:
    edits = (
        [lambda m: m.remove_header("X-Spam"), lambda m: m.add_header("A", "1", "bottom")] if edited else []
    )
    place.policy = Editing(*edits)
    first, second = Digest("X-First"), Digest("X-Second")
    signer_of(place, first, second)
    reply = await send(place, HEADER + BODY + b"0123456789abcde\r\n" * (size // 17))
    content = await stored(place, reply)
    for name in (b"X-Second", b"X-First"):
        line, _, content = content.partition(b"\r\n")
        assert line == name + b": " + hashlib.sha256(content).hexdigest().encode()
    assert content.startswith(b"Received: ")
    (envelope,) = first.envelopes
    assert envelope.queue_id == reply.split()[-1]
    assert envelope.client.listener == "mx"
    with pytest.raises(RuntimeError):
        first.kept.open()


@pytest.mark.parametrize(
    ("answer", "took"),
    [
        (lambda _: 1 // 0, 0),
        (lambda _: "signed", 0),
        (lambda message: message.add_header("X", "a\r\nb"), 0),
        (lambda _: Deferred(), 5),
    ],
)
@pytest.mark.parametrize(
    ("on_error", "expected"), [(OnError.DEFER, "451"), (OnError.REJECT, "554"), (OnError.ACCEPT, "250")]
)
@ensureDeferred
async def test_a_signer_that_fails_costs_what_the_operator_chose(
    place: Place, answer: Any, took: int, on_error: OnError, expected: str
) -> None:
    place.policy = Editing()
    signer_of(place, Digest(answer=answer), on_error=on_error)
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(HEADER + BODY + b".\r\n")
    if took:
        place.pass_time(took)
    (reply,) = await reply_of(client)
    assert reply.startswith(expected)
    assert (await place.spool.stats()).total == (on_error is OnError.ACCEPT)


@pytest.mark.parametrize("how", ["async", "deferred"])
@ensureDeferred
async def test_a_signer_may_take_its_time(place: Place, how: str) -> None:
    place.policy = Editing()
    ready: Deferred[None] = Deferred()

    async def later(message: Any) -> None:
        await ready
        message.add_header("X-Signed", how)

    def deferred(message: Any) -> Any:
        return ready.addCallback(lambda _: message.add_header("X-Signed", how))

    signer_of(place, Digest(answer=later if how == "async" else deferred))
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(MESSAGE)
    assert client.said() == []
    ready.callback(None)
    (reply,) = await reply_of(client)
    assert (await stored(place, reply)).startswith(b"X-Signed: " + how.encode())


@ensureDeferred
async def test_a_signer_of_other_listeners_is_not_asked(place: Place) -> None:
    place.policy = Editing()
    signer = Digest()
    signer_of(place, signer, listeners=("submission",))
    assert (await send(place)).startswith("250")
    assert signer.envelopes == []


def notice() -> Notice:
    sender = Address("anna", "example.org")
    recipient = Recipient(Address("x", "y.test"))
    about = Envelope("2CmXq07DRb3", sender, (recipient,), 1.0, 10, MailParameters(), Sender())
    outcome = Outcome("2CmXq07DRb3", recipient.address, Status.FAILED, "no", "mx:", "y.test", 2.0, code=550)
    return Notice(NoticeKind.FAILURE, about, (recipient,), (outcome,), 2.0)


@ensureDeferred
async def test_our_notices_are_signed_too(place: Place) -> None:
    signer = Digest()
    signer_of(place, signer)
    envelope = await submit(place.spool, notice(), NoticeSettings("mx.test"), None)
    with await place.spool.open_content(envelope.queue_id) as file:
        content = file.read()
    line, _, rest = content.partition(b"\r\n")
    assert line == b"X-Digest: " + hashlib.sha256(rest).hexdigest().encode()
    (seen,) = signer.envelopes
    assert (seen.client.listener, bool(seen.sender)) == ("bounce", False)


@ensureDeferred
async def test_a_notice_that_is_not_signed_is_not_lost_but_made_again(place: Place) -> None:
    signer_of(place, Digest(answer=lambda _: 1 // 0))
    with pytest.raises(NotSigned):
        await submit(place.spool, notice(), NoticeSettings("mx.test"), None)
    assert (await place.spool.stats()).total == 0
    signer_of(place, Digest())
    await submit(place.spool, notice(), NoticeSettings("mx.test"), None)
    assert (await place.spool.stats()).total == 1
