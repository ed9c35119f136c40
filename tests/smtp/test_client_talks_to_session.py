"""The two cores of Elemta talk in memory: what one sends the other takes for the same message."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import Address
from elemta.config import RouteTLS
from elemta.envelope import BodyType, MailParameters, Notify, Recipient, Return
from elemta.outcome import Outcome, Status
from elemta.smtp.client import ClientSession, ClientSettings
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_results import ContentWanted, TransactionDone
from elemta.smtp.events import (
    Authenticated,
    CredentialsQuestion,
    MessageData,
    MessageQuestion,
    Proceed,
    Question,
    Queued,
    RcptQuestion,
    Refuse,
    StartTLS,
)
from elemta.smtp.replies import AUTH_FAILED
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import Credentials
from elemta.smtp.session import ServerSession
from elemta.smtp.session_info import SessionInfo, TLSInfo, TransactionInfo
from elemta.smtp.settings import SessionSettings

TLS = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
REFUSED = Recipient(Address("nobody", "example.com"))


class Server:
    """A server session whose every question is answered at once; it refuses one recipient."""

    def __init__(self, *, tls: bool = False) -> None:
        settings = SessionSettings(
            hostname="mx.example",
            max_message_size=1_000_000,
            max_recipients=100,
            normalize_newlines=False,
            starttls=tls,
            auth=tls,
            auth_needs_tls=True,
            require_auth=False,
            postmaster_domain="example.com",
        )
        self.session = ServerSession(settings, SessionInfo("S", IPv4Address("192.0.2.1"), 1, "mx"))
        self.messages: list[bytes] = []
        self.transactions: list[TransactionInfo] = []
        self._data = b""
        self.handshake = False

    def act(self, events: list) -> bytes:  # type: ignore[type-arg]
        pending = list(events)
        while pending:
            event = pending.pop(0)
            if isinstance(event, MessageData):
                self._data += event.data
            elif isinstance(event, MessageQuestion):
                self.messages.append(self._data)
                self.transactions.append(event.transaction)
                self._data = b""
                pending += self.session.answer(Queued("Q1"))
            elif isinstance(event, CredentialsQuestion):
                good = (event.username, event.password) == ("me", b"sesame")
                assert self.session.facts.tls
                pending += self.session.answer(Authenticated("me") if good else Refuse(AUTH_FAILED))
            elif isinstance(event, StartTLS):
                self.handshake = True
            elif isinstance(event, RcptQuestion) and event.recipient.address == REFUSED.address:
                pending += self.session.answer(Refuse(Reply.of(550, "5.1.1", "no such user")))
            elif isinstance(event, Question):
                pending += self.session.answer(Proceed())
        return self.session.take_output()


def converse(
    transaction: ClientTransaction,
    chunks: list[bytes],
    step: int,
    *,
    chunking: bool = True,
    settings: ClientSettings | None = None,
) -> tuple[Server, tuple[Outcome, ...]]:
    """Let the two talk, the client's bytes cut every ``step``."""
    client = ClientSession(settings or ClientSettings("client.example"))
    server = Server(tls=settings is not None)
    client.start(transaction)
    wire = server.act(server.session.open())
    for _ in range(50):
        if not chunking:
            wire = wire.replace(b"CHUNKING", b"X-HIDDEN")
        for event in client.receive(wire):
            if isinstance(event, TransactionDone):
                return server, client.outcomes
            if isinstance(event, ContentWanted):
                for chunk in chunks:
                    client.content(chunk)
                client.end_content()
        sent = client.take_output()
        wire = b""
        for start in range(0, len(sent), step):
            wire += server.act(server.session.receive(sent[start : start + step]))
        if server.handshake:
            server.handshake = False
            client.receive(wire)
            wire = server.act(server.session.tls_started(TLS))
            client.tls_started(TLS)
            wire += server.act(server.session.receive(client.take_output()))
    raise AssertionError("they never came to an end")


def transaction_of(size: int) -> ClientTransaction:
    return ClientTransaction(
        Address("a b", "example.org"),
        (Recipient(Address("bob", "example.com"), Notify.SUCCESS, "rfc822;b+o=b@example.com"), REFUSED),
        MailParameters(body=BodyType.EIGHT_BIT, ret=Return.HEADERS, envid="x y+z"),
        size,
    )


pieces = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a" * 70, b"\xff", b"\r\n.\r\nRSET\r\n"]), max_size=30
).map(b"".join)


@given(message=pieces, cut=st.integers(1, 50), step=st.integers(1, 200), chunking=st.booleans())
def test_the_server_gets_one_message_in_canonical_form(
    message: bytes, cut: int, step: int, chunking: bool
) -> None:
    chunks = [message[i : i + cut] for i in range(0, len(message), cut)]
    server, settled = converse(transaction_of(len(message)), chunks, step, chunking=chunking)
    text = message.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    canonical = text if not text or text.endswith(b"\r\n") else text + b"\r\n"
    assert server.messages == [canonical]
    assert [result.status for result in settled] == [Status.DELIVERED, Status.FAILED]


def test_the_envelope_arrives_as_it_was_meant() -> None:
    server, settled = converse(transaction_of(3), [b"x\r\n"], 1000)
    (transaction,) = server.transactions
    assert transaction.sender == Address("a b", "example.org")
    assert transaction.recipients == [
        Recipient(Address("bob", "example.com"), Notify.SUCCESS, "rfc822;b+o=b@example.com")
    ]
    parameters = transaction.parameters
    assert (parameters.body, parameters.ret, parameters.envid, parameters.size) == (
        BodyType.EIGHT_BIT,
        Return.HEADERS,
        "x y+z",
        3,
    )
    assert settled[0].text == "Message accepted for delivery; queued as Q1"


@pytest.mark.parametrize(("password", "status"), [(b"sesame", Status.DELIVERED), (b"wrong", Status.DEFERRED)])
def test_the_client_logs_in_under_tls_before_it_hands_anything_on(password: bytes, status: Status) -> None:
    settings = ClientSettings("client.example", tls=RouteTLS.REQUIRE, credentials=Credentials("me", password))
    server, settled = converse(transaction_of(3), [b"x\r\n"], 1000, settings=settings)
    assert settled[0].status is status
    assert len(server.messages) == (status is Status.DELIVERED)
    assert server.session.facts.user == ("me" if status is Status.DELIVERED else None)
