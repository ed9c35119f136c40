"""TLS towards next hops over real sockets: which host is proved to be there, and what if none is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.logger import LogEvent, globalLogPublisher

from elemta.config import RouteTLS
from elemta.delivery.connections import Connections
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.settings import DeliverySettings
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Outcome, ReachedStage, Status
from elemta.smtp.client import ClientTimeouts
from elemta.smtp.sasl import Credentials
from elemta.smtp.session_info import TLSInfo
from tests.support.certificates import CertificateFiles, make_certificate
from tests.support.hops import (
    CLOSE,
    CONTENT,
    Harbour,
    Secured,
    SecureHop,
    SecureSession,
    message,
    open_content,
    reactor,
    read,
)
from tests.support.metrics import record
from tests.support.waiting import until

SETTINGS = DeliverySettings("me.example", connect_timeout=5.0)
NAME = "mx.example.test"


class Quay(Harbour):
    """Connections, and where they lead: 127.0.0.1, whatever the name."""

    def __init__(self, files: CertificateFiles) -> None:
        super().__init__()
        self.files = files
        metrics = DeliveryMetrics()
        self.handshakes = record(metrics, "tls")
        self.connections = Connections(reactor, SETTINGS, read, metrics, authorities=str(files.certificate))

    async def send(
        self,
        port: int,
        tls: RouteTLS,
        *,
        host: str = NAME,
        credentials: Credentials | None = None,
    ) -> tuple[Outcome, ...]:
        candidate = Candidate(host, port, (ip_address("127.0.0.1"),))
        hop = NextHop(host, (candidate,), tls=tls, credentials=credentials, route="r")
        return await self.connections.send(hop, message(), open_content)

    @property
    def tls(self) -> TLSInfo | None:
        """What protects the connection that was used last."""
        return list(self.connections.pool._open)[-1].connection.tls


@pytest_twisted.async_yield_fixture
async def quay(tmp_path: Path) -> AsyncIterator[Quay]:
    quay = Quay(make_certificate(tmp_path, NAME))
    yield quay
    await quay.connections.stop()
    await quay.close()


@contextmanager
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(events.append)


@pytest.mark.parametrize("tls", [RouteTLS.MAY, RouteTLS.REQUIRE])
@ensureDeferred
async def test_a_message_goes_over_tls_where_it_is_offered_and_the_log_says_how(
    quay: Quay, tls: RouteTLS
) -> None:
    hop = SecureHop(Secured(quay.files))
    with logged() as events:
        sent = await quay.send(await quay.listen(hop), tls)
    assert sent[0].status is Status.DELIVERED
    assert quay.tls is not None
    assert quay.tls.version.startswith("TLSv1.")
    assert hop.messages == [b"Subject: x\r\n\r\n..hello\r\n"]
    assert list(zip(hop.verbs, hop.secure, strict=True))[:4] == [
        (b"EHLO", False), (b"STARTTLS", False), (b"EHLO", True), (b"MAIL", True),
    ]  # fmt: skip
    (started,) = [event for event in events if event.get("event") == "delivery.tls_started"]
    assert (started["version"], started["cipher"]) == (quay.tls.version, quay.tls.cipher)
    assert quay.handshakes == [quay.tls.version]


@ensureDeferred
async def test_the_server_is_told_whom_it_was_called(quay: Quay) -> None:
    names = []
    context = Secured(quay.files)
    context.context.set_tlsext_servername_callback(lambda each: names.append(each.get_servername()))
    port = await quay.listen(SecureHop(context))
    await quay.send(port, RouteTLS.MAY)
    await quay.send(port, RouteTLS.MAY, host="127.0.0.1")
    assert names == [NAME.encode(), None]


@ensureDeferred
async def test_under_may_any_certificate_is_better_than_none(quay: Quay, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    hop = SecureHop(Secured(make_certificate(tmp_path / "other", "other.example.test")))
    sent = await quay.send(await quay.listen(hop), RouteTLS.MAY)
    assert sent[0].status is Status.DELIVERED
    assert quay.tls is not None


@ensureDeferred
async def test_under_require_a_certificate_of_another_name_is_refused_before_a_word_is_said(
    quay: Quay,
) -> None:
    hop = SecureHop(Secured(quay.files))
    sent = await quay.send(await quay.listen(hop), RouteTLS.REQUIRE, host="another.example.test")
    (result,) = sent
    assert (result.status, result.enhanced, result.reached) == (
        Status.DEFERRED,
        "4.7.5",
        ReachedStage.NOWHERE,
    )
    assert "certificate is not one of another.example.test" in result.text
    assert hop.verbs == [b"EHLO", b"STARTTLS"]
    assert quay.handshakes == ["failed"]


@ensureDeferred
async def test_under_require_a_certificate_that_nobody_vouches_for_is_refused(
    quay: Quay, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    hop = SecureHop(Secured(make_certificate(tmp_path / "other", NAME)))
    sent = await quay.send(await quay.listen(hop), RouteTLS.REQUIRE)
    (result,) = sent
    assert (result.status, result.enhanced) == (Status.DEFERRED, "4.7.5")
    assert "certificate can't be trusted: it is self-signed" in result.text
    assert hop.verbs == [b"EHLO", b"STARTTLS"]


@ensureDeferred
async def test_under_require_an_address_is_not_proved_by_a_certificate_of_a_name(quay: Quay) -> None:
    hop = SecureHop(Secured(quay.files))
    sent = await quay.send(await quay.listen(hop), RouteTLS.REQUIRE, host="127.0.0.1")
    assert "certificate is not one of 127.0.0.1" in sent[0].text
    assert not hop.messages


@ensureDeferred
async def test_under_require_a_next_hop_without_tls_gets_nothing(quay: Quay) -> None:
    hop = SecureHop()
    sent = await quay.send(await quay.listen(hop), RouteTLS.REQUIRE)
    assert (sent[0].status, sent[0].enhanced) == (Status.DEFERRED, "4.7.4")
    await until(lambda: hop.verbs == [b"EHLO", b"QUIT"])


@ensureDeferred
async def test_under_may_a_broken_tls_is_gone_around_and_remembered_for_a_while(quay: Quay) -> None:
    hop = SecureHop(Secured(None))
    port = await quay.listen(hop)
    sent = await quay.send(port, RouteTLS.MAY)
    assert sent[0].status is Status.DELIVERED
    assert quay.tls is None
    assert hop.connections == 2
    quay.connections.pool.drain()
    sent = await quay.send(port, RouteTLS.MAY)
    assert sent[0].status is Status.DELIVERED
    assert hop.connections == 3
    assert hop.verbs.count(b"STARTTLS") == 1
    assert quay.handshakes == ["failed"]


@ensureDeferred
async def test_under_may_a_server_that_hangs_up_on_tls_is_gone_around(quay: Quay) -> None:
    hop = SecureHop(Secured(quay.files), replies={b"EHLO": [b"250-a\r\n250 STARTTLS\r\n", CLOSE]})
    sent = await quay.send(await quay.listen(hop), RouteTLS.MAY)
    assert sent[0].status is Status.DELIVERED
    assert quay.tls is None
    assert hop.secure[:3] == [False, False, True]


@ensureDeferred
async def test_what_was_remembered_of_a_host_does_not_count_where_tls_is_required(quay: Quay) -> None:
    hop = SecureHop(Secured(None))
    port = await quay.listen(hop)
    await quay.send(port, RouteTLS.MAY)
    sent = await quay.send(port, RouteTLS.REQUIRE)
    assert sent[0].enhanced == "4.7.5"
    assert len(hop.messages) == 1


class DeafSession(SecureSession):
    """Says 220 to STARTTLS and nothing more on that connection."""

    def command(self, line: bytes) -> None:
        super().command(line)
        self.is_secure = self.is_secure or line == b"STARTTLS"

    def dataReceived(self, data: bytes) -> None:
        if not self.is_secure:
            super().dataReceived(data)


class DeafHop(SecureHop):
    def buildProtocol(self, addr: object) -> SecureSession:
        return DeafSession(self)


@ensureDeferred
async def test_a_server_that_never_answers_the_handshake_is_given_up_and_gone_around(quay: Quay) -> None:
    quay.connections.reconfigure(replace(SETTINGS, deadlines=ClientTimeouts(handshake=0.3)))
    hop = DeafHop(offers=(b"STARTTLS",), replies={b"STARTTLS": b"220 go\r\n"})
    sent = await quay.send(await quay.listen(hop), RouteTLS.MAY)
    assert sent[0].status is Status.DELIVERED
    assert quay.tls is None


@ensureDeferred
async def test_credentials_go_over_tls_and_neither_into_the_log_nor_into_the_clear(quay: Quay) -> None:
    secret = Credentials("me", b"open-sesame")
    hop = SecureHop(Secured(quay.files), offers=(b"AUTH PLAIN LOGIN",))
    with logged() as events:
        sent = await quay.send(await quay.listen(hop), RouteTLS.REQUIRE, credentials=secret)
        assert sent[0].status is Status.DELIVERED
        assert hop.secure[hop.verbs.index(b"AUTH")]
        hop.replies[b"AUTH"] = b"535 5.7.8 bad AG1lAG9wZW4tc2VzYW1l\r\n"
        quay.connections.reconfigure(SETTINGS)
        await until(lambda: not quay.connections.open)
        sent = await quay.send(await quay.listen(hop), RouteTLS.REQUIRE, credentials=secret)
    (result,) = sent
    assert (result.status, result.enhanced) == (Status.DEFERRED, "4.7.8")
    assert "did not take the credentials" in result.text
    assert [event for event in events if event.get("event") == "delivery.login_refused"]
    told = " ".join(str(event) for event in events if "event" in event) + str(sent)
    assert "open-sesame" not in told
    assert "AG1lAG9wZW4tc2VzYW1l" not in told


@ensureDeferred
async def test_with_credentials_a_broken_tls_is_not_gone_around(quay: Quay) -> None:
    hop = SecureHop(Secured(None), offers=(b"AUTH PLAIN",))
    sent = await quay.send(
        await quay.listen(hop), RouteTLS.MAY, credentials=Credentials("me", b"open-sesame")
    )
    assert sent[0].enhanced == "4.7.5"
    assert b"AUTH" not in hop.verbs
    assert hop.connections == 1


@ensureDeferred
async def test_what_is_injected_behind_the_reply_to_starttls_defers(quay: Quay) -> None:
    hop = SecureHop(Secured(quay.files), replies={b"STARTTLS": b"220 go\r\n250 injected\r\n"})
    sent = await quay.send(await quay.listen(hop), RouteTLS.MAY)
    assert (sent[0].status, sent[0].enhanced) == (Status.DEFERRED, "4.7.0")
    assert not hop.messages
    assert CONTENT not in b"".join(hop.heard)
