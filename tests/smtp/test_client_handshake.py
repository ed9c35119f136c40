"""The client session before its first transaction: STARTTLS and AUTH, and what a server may try there."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import Address
from elemta.config import RouteTLS
from elemta.envelope import MailParameters, Recipient
from elemta.outcome import Outcome, ReachedStage, Status
from elemta.smtp.client import ClientSession, ClientSettings
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_results import ContentWanted, CredentialsRefused, Hangup, TransactionDone
from elemta.smtp.events import Event, StartTLS
from elemta.smtp.sasl import Credentials
from elemta.smtp.session_info import TLSInfo

BOB = Recipient(Address("bob", "example.com"))
MESSAGE = ClientTransaction(Address("a", "example.org"), (BOB,), MailParameters(), 7)
TLS = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
MAY = ClientSettings("client.example", tls=RouteTLS.MAY)
REQUIRE = replace(MAY, tls=RouteTLS.REQUIRE)
SECRET = Credentials("mé@example.org", b"op:en sesame")
LOGIN = ClientSettings("client.example", credentials=SECRET, plaintext_login=True)

GREETING = b"220 hi\r\n"
PLAIN_HELLO = b"250-hop\r\n250 SIZE 1000\r\n"
TLS_HELLO = b"250-hop\r\n250-STARTTLS\r\n250 SIZE 5\r\n"
AUTH_HELLO = b"250-hop\r\n250 AUTH LOGIN PLAIN\r\n"


@dataclass
class Talk:
    """A session and what it said, split at what it did."""

    settings: ClientSettings
    secure: bool = True
    sent: list[bytes] = field(default_factory=list)
    settled: list[tuple[Outcome, ...]] = field(default_factory=list)
    handshakes: int = 0
    refused: list[CredentialsRefused] = field(default_factory=list)
    hangup: str = ""

    def __post_init__(self) -> None:
        self.session = ClientSession(self.settings)
        self.act(self.session.start(MESSAGE))

    def act(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ContentWanted):
                self.session.content(b"A: b\r\n\r\n")
                self.session.end_content()
            elif isinstance(event, TransactionDone):
                self.settled.append(self.session.outcomes)
            elif isinstance(event, Hangup):
                self.hangup = event.reason
            elif isinstance(event, CredentialsRefused):
                self.refused.append(event)
        if output := self.session.take_output():
            self.sent.append(output)
        if any(isinstance(event, StartTLS) for event in events):
            self.handshakes += 1
            self.act(self.session.tls_started(TLS) if self.secure else self.session.tls_failed("no cipher"))

    def hear(self, *wires: bytes) -> Talk:
        for wire in wires:
            self.act(self.session.receive(wire))
        return self

    @property
    def result(self) -> tuple[Status, str, str]:
        ((only,),) = self.settled
        return only.status, only.enhanced, only.text


# STARTTLS


@pytest.mark.parametrize("settings", [MAY, REQUIRE])
def test_tls_is_started_where_it_is_offered_and_the_server_is_greeted_again(settings: ClientSettings) -> None:
    talk = Talk(settings).hear(GREETING, TLS_HELLO, b"220 go\r\n")
    assert talk.sent == [b"EHLO client.example\r\n", b"STARTTLS\r\n", b"EHLO client.example\r\n"]
    assert talk.session.tls == TLS
    talk.hear(PLAIN_HELLO)
    assert talk.sent[-1] == b"MAIL FROM:<a@example.org> SIZE=7\r\n"


def test_what_a_server_offered_in_the_clear_is_forgotten_under_tls() -> None:
    # No party said a size of 5 octets.
    talk = Talk(MAY).hear(GREETING, TLS_HELLO, b"220 go\r\n", b"250 hop\r\n")
    assert not talk.settled
    assert talk.sent[-1] == b"MAIL FROM:<a@example.org>\r\n"


@pytest.mark.parametrize("settings", [MAY, REQUIRE])
@pytest.mark.parametrize(
    "wire", [b"220 go\r\n250 injected\r\n", b"220 go\r\n250-half", b"220 go\r\n2", b"220 go\r\n\r\n"]
)
def test_anything_in_the_clear_behind_the_reply_to_starttls_ends_the_connection(
    settings: ClientSettings, wire: bytes
) -> None:
    talk = Talk(settings).hear(GREETING, TLS_HELLO, wire)
    assert talk.handshakes == 0
    assert talk.result[:2] == (Status.DEFERRED, "4.7.0")
    assert talk.sent[-1] == b"STARTTLS\r\n"
    assert talk.hangup


def test_the_reply_to_starttls_that_comes_by_octets_is_no_injection() -> None:
    talk = Talk(REQUIRE).hear(GREETING, TLS_HELLO)
    talk.hear(*[bytes([octet]) for octet in b"220-well\r\n220 go\r\n"])
    assert talk.handshakes == 1


def test_under_may_a_server_without_starttls_or_that_refuses_it_gets_the_message_in_the_clear() -> None:
    assert Talk(MAY).hear(GREETING, PLAIN_HELLO).sent[-1].startswith(b"MAIL")
    for refusal in (b"454 4.7.0 not now\r\n", b"501 what\r\n", b"250 what\r\n"):
        talk = Talk(MAY).hear(GREETING, b"250-hop\r\n250 STARTTLS\r\n", refusal)
        assert talk.sent[-1] == b"MAIL FROM:<a@example.org>\r\n"
        assert talk.session.tls is None


@pytest.mark.parametrize(
    "wires",
    [
        [GREETING, PLAIN_HELLO],
        [GREETING, b"502 no EHLO\r\n", b"250 hop\r\n"],
        [GREETING, TLS_HELLO, b"454 4.7.0 not now\r\n"],
        [GREETING, TLS_HELLO, b"554 5.7.0 never\r\n"],
    ],
)
def test_under_require_nothing_is_sent_in_the_clear(wires: list[bytes]) -> None:
    talk = Talk(REQUIRE).hear(*wires)
    assert talk.result[:2] == (Status.DEFERRED, "4.7.4")
    assert 'tls = "require"' in talk.result[2]
    assert talk.sent[-1] == b"QUIT\r\n"
    assert not any(b"MAIL" in sent for sent in talk.sent)
    assert talk.settled[0][0].reached is ReachedStage.NOWHERE


@pytest.mark.parametrize("settings", [MAY, REQUIRE])
def test_a_handshake_that_fails_ends_the_connection(settings: ClientSettings) -> None:
    talk = Talk(settings, secure=False).hear(GREETING, TLS_HELLO, b"220 go\r\n")
    assert talk.result == (Status.DEFERRED, "4.7.5", "TLS with the next hop failed: no cipher")
    assert not any(b"MAIL" in sent for sent in talk.sent)
    assert talk.hangup


def test_a_handshake_has_a_deadline_of_its_own() -> None:
    session = ClientSession(MAY)
    session.start(MESSAGE)
    for wire in (GREETING, TLS_HELLO, b"220 go\r\n"):
        events = session.receive(wire)
    assert isinstance(events[-1], StartTLS)
    assert session.deadline == 60.0
    session.timed_out()
    assert "TLS handshake" in session.outcomes[0].text


@given(rest=st.binary(min_size=1, max_size=40))
def test_no_octets_behind_the_reply_to_starttls_are_ever_taken_for_an_answer(rest: bytes) -> None:
    talk = Talk(MAY).hear(GREETING, TLS_HELLO, b"220 go\r\n" + rest)
    assert talk.handshakes == 0
    assert talk.session.closed


# AUTH


def test_credentials_are_given_by_plain_in_one_go() -> None:
    talk = Talk(LOGIN).hear(GREETING, AUTH_HELLO)
    response = base64.b64encode("\0mé@example.org\0op:en sesame".encode())
    assert talk.sent[-1] == b"AUTH PLAIN " + response + b"\r\n"
    talk.hear(b"235 2.7.0 welcome\r\n")
    assert talk.sent[-1] == b"MAIL FROM:<a@example.org>\r\n"


def test_credentials_are_given_by_login_where_there_is_no_plain() -> None:
    talk = Talk(LOGIN).hear(GREETING, b"250-hop\r\n250 auth cram-md5 login\r\n")
    talk.hear(b"334 VXNlcm5hbWU6\r\n", b"334 UGFzc3dvcmQ6\r\n", b"235 ok\r\n")
    assert talk.sent[1:4] == [
        b"AUTH LOGIN\r\n",
        base64.b64encode("mé@example.org".encode()) + b"\r\n",
        base64.b64encode(b"op:en sesame") + b"\r\n",
    ]
    assert talk.sent[-1].startswith(b"MAIL")


@pytest.mark.parametrize(
    "lines",
    [
        [b"AUTH CRAM-MD5", b"AUTH PLAIN"],
        [b"AUTH PLAIN", b"AUTH=LOGIN PLAIN"],
        [b"AUTH=LOGIN PLAIN"],
        [b"auth=plain"],
        [b"AUTH", b"AUTH= PLAIN", b"AUTH GSSAPI"],
    ],
)
def test_mechanisms_may_stand_in_several_lines_and_in_the_form_of_before_the_rfc(lines: list[bytes]) -> None:
    hello = b"".join(b"250-%s\r\n" % line for line in lines)
    talk = Talk(LOGIN).hear(GREETING, b"250-hop\r\n" + hello + b"250 HELP\r\n")
    assert talk.sent[-1].startswith(b"AUTH PLAIN ")


def test_a_long_password_waits_for_the_challenge() -> None:
    long = replace(LOGIN, credentials=Credentials("me", b"x" * 600))
    talk = Talk(long).hear(GREETING, AUTH_HELLO)
    assert talk.sent[-1] == b"AUTH PLAIN\r\n"
    talk.hear(b"334 \r\n")
    assert talk.sent[-1] == base64.b64encode(b"\0me\0" + b"x" * 600) + b"\r\n"


def test_credentials_wait_for_tls_and_what_is_offered_there() -> None:
    talk = Talk(replace(REQUIRE, credentials=SECRET)).hear(
        GREETING, b"250-hop\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n", b"220 go\r\n"
    )
    assert not any(b"AUTH" in sent for sent in talk.sent)
    assert talk.hear(AUTH_HELLO).sent[-1].startswith(b"AUTH PLAIN ")


@pytest.mark.parametrize("tls", list(RouteTLS))
@pytest.mark.parametrize("wires", [[GREETING, AUTH_HELLO], [GREETING, TLS_HELLO, b"454 not now\r\n"]])
def test_credentials_are_never_given_in_the_clear(tls: RouteTLS, wires: list[bytes]) -> None:
    talk = Talk(replace(LOGIN, tls=tls, plaintext_login=False)).hear(*wires)
    assert talk.settled[0][0].status is Status.DEFERRED
    assert not any(b"AUTH" in sent or b"MAIL" in sent for sent in talk.sent)


def test_a_server_that_offers_no_way_to_log_in_gets_no_message() -> None:
    talk = Talk(LOGIN).hear(GREETING, b"250-hop\r\n250 AUTH GSSAPI\r\n")
    assert talk.result[:2] == (Status.DEFERRED, "4.7.4")
    assert not any(b"MAIL" in sent for sent in talk.sent)


@pytest.mark.parametrize("reply", [b"535 5.7.8 bad\r\n", b"454 4.7.0 later\r\n"])
def test_credentials_that_are_not_taken_defer_and_are_told_to_the_operator(reply: bytes) -> None:
    talk = Talk(LOGIN).hear(GREETING, AUTH_HELLO, reply)
    assert talk.result[:2] == (Status.DEFERRED, "4.7.8")
    assert "credentials" in talk.result[2]
    assert talk.refused[0].reply.code == int(reply[:3])
    assert talk.sent[-1] == b"QUIT\r\n"
    assert talk.settled[0][0].reached is ReachedStage.NOWHERE


def test_a_server_that_does_not_know_plain_after_all_is_asked_by_login_once() -> None:
    for answer, wanted in ((b"235 ok\r\n", b"MAIL"), (b"535 5.7.8 bad\r\n", b"QUIT")):
        talk = Talk(LOGIN).hear(GREETING, AUTH_HELLO, b"504 5.5.4 no such mechanism\r\n")
        assert talk.sent[-1] == b"AUTH LOGIN\r\n"
        assert not talk.refused
        talk.hear(b"334 VXNlcm5hbWU6\r\n", b"334 UGFzc3dvcmQ6\r\n", answer)
        assert talk.sent[-1].startswith(wanted)
    talk = Talk(LOGIN).hear(GREETING, AUTH_HELLO, b"504 no\r\n", b"504 no\r\n")
    assert talk.result[:2] == (Status.DEFERRED, "4.7.8")


@pytest.mark.parametrize("reply", [b"250 ok\r\n", b"200 ok\r\n", b"334 more\r\n"])
def test_only_235_says_that_credentials_were_taken(reply: bytes) -> None:
    talk = Talk(LOGIN).hear(GREETING, AUTH_HELLO, reply)
    assert talk.result[0] is Status.DEFERRED
    assert not any(sent.startswith(b"MAIL") for sent in talk.sent)


@pytest.mark.parametrize(
    "wire",
    [
        b"500 what is AUTH PLAIN %s\r\n",
        b"535-5.7.8 no\r\n535 5.7.8 %s\r\n",
        b"421 4.7.0 %s\r\n",
        b"AUTH PLAIN %s\r\n",
        b"354 %s\r\n",
        b"334 %s\r\n",
    ],
)
def test_a_server_that_repeats_the_credentials_does_not_get_them_into_a_log(wire: bytes) -> None:
    response = base64.b64encode("\0mé@example.org\0op:en sesame".encode())
    for repeated in (response, b"op:en sesame"):
        talk = Talk(LOGIN).hear(GREETING, b"250-hop\r\n250 AUTH PLAIN\r\n", wire % repeated)
        told = f"{talk.result} {talk.hangup} {talk.refused} {talk.session.__dict__}"
        assert repeated.decode() not in told
        assert talk.result[0] is Status.DEFERRED


def test_a_server_that_asks_on_and_on_is_given_nothing_more() -> None:
    talk = Talk(LOGIN).hear(GREETING, AUTH_HELLO, b"334 more\r\n")
    assert talk.result[0] is Status.DEFERRED
    assert talk.hangup


def test_credentials_do_not_show() -> None:
    assert "sesame" not in f"{LOGIN!r} {SECRET!r} {SECRET}"


def test_over_lmtp_too_tls_comes_before_the_message() -> None:
    talk = Talk(replace(MAY, lmtp=True)).hear(GREETING, TLS_HELLO, b"220 go\r\n")
    assert talk.sent[-1] == b"LHLO client.example\r\n"
