"""What a server offers and then refuses, and how many recipients it takes: the client against servers that
answer each command by a rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import Address
from elemta.envelope import BodyType, MailParameters, Notify, Recipient, Return
from elemta.outcome import Outcome, Status
from elemta.route_tls import RouteTLS
from elemta.smtp.client import ClientSession, ClientSettings
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_results import (
    ContentWanted,
    Hangup,
    OfferRefused,
    RecipientsLimited,
    TransactionDone,
)
from elemta.smtp.events import Event, StartTLS
from elemta.smtp.session_info import TLSInfo

D, F, OK = Status.DEFERRED, Status.FAILED, Status.DELIVERED
EVERYTHING = ["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING"]
NO_CHUNKS = [each for each in EVERYTHING if each != "CHUNKING"]
PARAMETERS = MailParameters(body=BodyType.EIGHT_BIT, smtputf8=True, ret=Return.HEADERS, envid="e1")


def people(number: int) -> tuple[Recipient, ...]:
    return tuple(Recipient(Address(f"r{i}", "example.com"), notify=Notify.NEVER) for i in range(number))


SETTINGS = ClientSettings("client.example")
MESSAGE = ClientTransaction(Address("a", "example.org"), people(3), PARAMETERS, 7)
Rule = Callable[[str], str]


@dataclass
class Server:
    """Reads commands and answers by the first rule that matches; by default all is well.

    ``delivered`` are the envelopes that got the message.
    """

    rules: list[tuple[str, str | Rule]] = field(default_factory=list)
    offers: list[str] = field(default_factory=lambda: list(NO_CHUNKS))
    lmtp: bool = False
    most_replies: int = 1000
    lines: list[str] = field(default_factory=list)
    delivered: list[list[str]] = field(default_factory=list)
    envelope: list[str] | None = None
    in_data: bool = False
    buffer: bytes = b""

    def answer(self, data: bytes) -> bytes:
        self.buffer += data
        out = b""
        while b"\r\n" in self.buffer:
            if self.in_data:
                end = re.search(rb"(?:\A|\r\n)\.\r\n", self.buffer)
                if end is None:
                    break
                self.buffer = self.buffer[end.end() :]
                self.in_data = False
                out += self.take(".")
                continue
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            out += self.command(line.decode())
        return out

    def command(self, line: str) -> bytes:
        self.lines.append(line)
        verb = line.partition(" ")[0].upper()
        if verb == "BDAT":
            size = int(line.split(" ")[1])
            assert len(self.buffer) >= size
            self.buffer = self.buffer[size:]
            return self.take(line) if "LAST" in line else self.say(line, "250 ok")
        if verb in ("EHLO", "LHLO"):
            return "".join(f"250-{each}\r\n" for each in ["hop", *self.offers]).encode() + b"250 HELP\r\n"
        if verb == "MAIL":
            reply = self.say(line, "250 ok")
            self.envelope = [] if reply[:1] == b"2" else None
            return reply
        if verb == "RCPT":
            if self.envelope is None:
                return b"503 5.5.1 MAIL first\r\n"
            reply = self.say(line, "250 ok")
            if reply[:1] == b"2":
                self.envelope.append(line.partition("<")[2].partition(">")[0])
            return reply
        if verb == "DATA":
            reply = self.say(line, "354 go" if self.envelope else "503 5.5.1 RCPT first")
            self.in_data = reply[:1] == b"3"
            return reply
        if verb == "RSET":
            self.envelope = None
        return self.say(line, "250 ok")

    def take(self, line: str) -> bytes:
        recipients, self.envelope = self.envelope or [], None
        replies = [self.say(f"{line} {each}", "250 taken") for each in recipients if self.lmtp]
        replies = replies or [self.say(line, "250 taken")]
        if self.lmtp:
            recipients = [each for each, reply in zip(recipients, replies, strict=True) if reply[:1] == b"2"]
        elif replies[0][:1] != b"2":
            recipients = []
        if recipients:
            self.delivered.append(recipients)
        return b"".join(replies[: self.most_replies])

    def say(self, line: str, default: str) -> bytes:
        for pattern, reply in self.rules:
            if re.match(pattern, line):
                said = reply(line) if callable(reply) else reply
                return f"{said or default}\r\n".encode()
        return f"{default}\r\n".encode()

    @property
    def all_delivered(self) -> list[str]:
        return [recipient for envelope in self.delivered for recipient in envelope]

    def commands(self, verb: str) -> list[str]:
        return [line for line in self.lines if line.startswith(verb)]


@dataclass
class Talk:
    """One session with a server, until nothing is left to say."""

    server: Server
    transaction: ClientTransaction = MESSAGE
    settings: ClientSettings = SETTINGS
    done: list[tuple[Outcome, ...]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = ClientSession(replace(self.settings, lmtp=self.server.lmtp))
        self.act(self.session.start(self.transaction))
        self.act(self.session.receive(b"220 hi\r\n"))
        self.run()

    def run(self) -> None:
        while not self.session.closed and (output := self.session.take_output()):
            self.act(self.session.receive(self.server.answer(output)))

    def another(self) -> Talk:
        self.act(self.session.start(self.transaction))
        self.run()
        return self

    def act(self, events: list[Event]) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, ContentWanted):
                self.session.content(b"A: b\r\n\r\n")
                self.session.end_content()
            elif isinstance(event, TransactionDone):
                self.done.append(self.session.outcomes)

    @property
    def statuses(self) -> list[Status]:
        return [result.status for result in self.done[-1]]

    @property
    def refused(self) -> list[str]:
        return [event.keyword for event in self.events if isinstance(event, OfferRefused)]

    @property
    def limits(self) -> list[int]:
        return [event.number for event in self.events if isinstance(event, RecipientsLimited)]


# Parameters


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("code", ["500", "501 5.5.4", "504 5.5.4", "555 5.5.4", "555-no\r\n555"])
@pytest.mark.parametrize("says_which", [True, False])
@pytest.mark.parametrize(
    ("keyword", "parameter"),
    [("SIZE", "SIZE="), ("8BITMIME", "BODY="), ("SMTPUTF8", "SMTPUTF8"), ("DSN", "RET="), ("DSN", "ENVID=")],
)
def test_a_parameter_of_mail_that_is_offered_and_refused_is_left_out(
    keyword: str, parameter: str, code: str, says_which: bool, pipelining: bool
) -> None:
    what = parameter.strip("=") if says_which else "that"
    server = Server(
        [(f"MAIL .* {parameter}", f"{code} do not know {what}")],
        [each for each in NO_CHUNKS if pipelining or each != "PIPELINING"],
    )
    talk = Talk(server)
    assert talk.statuses == [OK, OK, OK]
    assert server.delivered == [["r0@example.com", "r1@example.com", "r2@example.com"]]
    assert talk.refused == [keyword]
    if says_which:
        assert not talk.done[-1][0].dsn_passed_on or keyword != "DSN"
    # The next message of this connection does not try it again.
    asked = len(server.commands("MAIL"))
    talk.another()
    assert len(server.commands("MAIL")) == asked + 1
    assert len(server.delivered) == 2


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("code", ["501", "504 5.5.4", "555 5.5.4"])
def test_dsn_parameters_of_rcpt_that_are_offered_and_refused_are_left_out(
    code: str, pipelining: bool
) -> None:
    server = Server(
        [("RCPT .* NOTIFY=", f"{code} no such parameter")],
        [each for each in NO_CHUNKS if pipelining or each != "PIPELINING"],
    )
    talk = Talk(server)
    assert talk.statuses == [OK, OK, OK]
    assert talk.refused == ["DSN"]
    assert server.all_delivered == ["r0@example.com", "r1@example.com", "r2@example.com"]
    assert not any(result.dsn_passed_on for result in talk.done[-1])
    asked = len(server.commands("RCPT"))
    talk.another()
    assert len(server.commands("RCPT")) == asked + 3


def test_where_only_one_recipient_is_refused_with_its_parameters_the_others_go_first() -> None:
    server = Server([("RCPT TO:<r1@.* NOTIFY=", "555 no")])
    assert Talk(server).statuses == [OK, OK, OK]
    assert server.delivered == [["r0@example.com", "r2@example.com"], ["r1@example.com"]]


@pytest.mark.parametrize(
    ("rules", "statuses"),
    [
        ([("MAIL", "501 5.1.7 bad sender")], [F, F, F]),
        ([("MAIL", "555 no")], [F, F, F]),
        ([("MAIL", "451 later")], [D, D, D]),
        ([("RCPT TO:<r1@", "501 5.1.3 bad address")], [OK, F, OK]),
        ([("RCPT TO:<r1@", "501 what")], [OK, F, OK]),
        ([("RCPT TO:<r1@", "571 no")], [OK, F, OK]),
    ],
)
def test_what_is_refused_without_parameters_too_is_refused_and_nothing_is_learnt(
    rules: list[tuple[str, str | Rule]], statuses: list[Status]
) -> None:
    talk = Talk(Server(rules))
    assert talk.statuses == statuses
    assert talk.refused == []
    assert "DSN" in talk.session.features
    assert not talk.session.closed


def test_a_message_is_not_sent_without_what_it_needs() -> None:
    server = Server([("MAIL .* SMTPUTF8", "555 SMTPUTF8 no")])
    needy = replace(MESSAGE, sender=Address("jösé", "example.org"))
    assert Talk(server, needy).statuses == [F, F, F]
    assert not server.delivered
    jose = Recipient(Address("jösé", "example.com"))
    server = Server([("MAIL .* SMTPUTF8", "555 no")])
    talk = Talk(server, replace(MESSAGE, recipients=(jose, *people(1))))
    assert (talk.statuses, talk.done[-1][0].enhanced) == ([F, OK], "5.6.7")
    assert server.delivered == [["r0@example.com"]]


def test_two_parameters_that_are_refused_are_both_learnt_and_no_other() -> None:
    server = Server([("MAIL .* (?:BODY|SIZE)=", "501 no")])
    talk = Talk(server)
    assert talk.statuses == [OK, OK, OK]
    talk.another()
    assert talk.statuses == [OK, OK, OK]
    assert sorted(talk.refused) == ["8BITMIME", "SIZE"]
    asked = len(server.commands("MAIL"))
    talk.another()
    assert server.commands("MAIL")[asked:] == ["MAIL FROM:<a@example.org> SMTPUTF8 RET=HDRS ENVID=e1"]
    assert len(server.delivered) == 3


# SMTPUTF8


@pytest.mark.parametrize("lmtp", [True, False])
def test_with_addresses_in_ascii_a_message_with_a_utf8_header_goes_as_8bitmime(lmtp: bool) -> None:
    message = replace(MESSAGE, utf8_header=True, parameters=MailParameters(smtputf8=True))
    server = Server(offers=["8BITMIME"], lmtp=lmtp)
    assert Talk(server, message).statuses == [OK, OK, OK]
    assert server.commands("MAIL") == ["MAIL FROM:<a@example.org> BODY=8BITMIME"]
    refused = Talk(Server(offers=["SIZE"], lmtp=lmtp), message)
    assert (refused.statuses, refused.done[0][0].enhanced) == ([F, F, F], "5.6.7")


# BDAT


@pytest.mark.parametrize("code", ["500", "502 5.5.1", "503 5.5.1"])
@pytest.mark.parametrize("lmtp", [True, False])
def test_bdat_that_is_offered_and_not_known_leaves_the_message_for_a_new_connection(
    code: str, lmtp: bool
) -> None:
    server = Server([("BDAT", f"{code} what")], EVERYTHING, lmtp=lmtp)
    talk = Talk(server)
    assert (talk.statuses, talk.session.again) == ([D, D, D], (0, 1, 2))
    assert talk.refused == ["CHUNKING"]
    # Its octets were read as commands: nothing more is said on this connection.
    assert talk.session.closed
    assert not server.delivered


def test_over_lmtp_who_has_the_message_by_bdat_does_not_get_it_again() -> None:
    server = Server([("BDAT .* r1@", "503 5.5.1 what")], EVERYTHING, lmtp=True)
    talk = Talk(server)
    assert (talk.statuses, talk.session.again) == ([OK, D, OK], (1,))
    assert talk.session.closed


@pytest.mark.parametrize("reply", ["550 5.7.1 no", "552 5.3.4 big", "451 later", "421 bye"])
def test_another_answer_to_bdat_is_one_for_the_message(reply: str) -> None:
    talk = Talk(Server([("BDAT", reply)], EVERYTHING))
    assert talk.statuses == [F if reply[0] == "5" else D] * 3
    assert talk.session.again == ()
    assert talk.refused == []


def test_what_is_not_to_be_believed_is_not_used() -> None:
    server = Server(offers=EVERYTHING)
    settings = ClientSettings("client.example", ignored=frozenset({"CHUNKING", "DSN", "SIZE"}))
    assert Talk(server, settings=settings).statuses == [OK, OK, OK]
    assert server.commands("MAIL") == ["MAIL FROM:<a@example.org> BODY=8BITMIME SMTPUTF8"]
    assert server.commands("DATA") == ["DATA"]


# RFC 2033 §4.2: over LMTP each recipient has its own reply, also where an earlier one is 421.
@pytest.mark.parametrize("offers", [EVERYTHING, NO_CHUNKS, []])
@pytest.mark.parametrize("closing", [0, 1, 2])
def test_over_lmtp_a_closing_server_is_heard_to_its_last_reply(offers: list[str], closing: int) -> None:
    server = Server([(rf"(\.|BDAT .*LAST) r{closing}@", "421 4.3.2 closing")], offers, lmtp=True)
    talk = Talk(server)
    expected = [D if place == closing else OK for place in range(3)]
    assert (talk.statuses, len(talk.done)) == (expected, 1)
    assert talk.done[0][closing].code == 421
    assert talk.session.closed


def test_over_lmtp_those_without_a_reply_are_deferred_when_the_connection_ends() -> None:
    talk = Talk(Server([(r"\.", "421 4.3.2 closing")], lmtp=True, most_replies=1))
    talk.act(talk.session.lost("closed"))
    assert talk.statuses == [D, D, D]
    assert [outcome.code for outcome in talk.done[0]] == [421, 0, 0]


# Many recipients


def at_most(number: int, reply: str) -> list[tuple[str, str | Rule]]:
    """A server that takes so many recipients of one envelope."""
    taken = [0]

    def mail(_: str) -> str:
        taken[0] = 0
        return ""

    def rcpt(_: str) -> str:
        taken[0] += 1
        return "" if taken[0] <= number else reply

    return [("MAIL", mail), ("RCPT", rcpt)]


@pytest.mark.parametrize("lmtp", [True, False])
@pytest.mark.parametrize("offers", [EVERYTHING, NO_CHUNKS, ["SIZE"]])
@pytest.mark.parametrize(
    "reply",
    [
        "452 4.5.3 no more",
        "452 Too many recipients",
        "452-4.5.3 Your message has too many recipients.\r\n452 4.5.3 Try them later",
        "452 no",
        "552 5.5.3 no",
        "552 too many recipients",
        "451 4.7.1 Too many recipients in this transaction",
        "550 5.5.3 no",
        "451 too many rcpts",
    ],
)
def test_those_that_are_too_many_go_with_the_next_envelope_at_once(
    reply: str, offers: list[str], lmtp: bool
) -> None:
    server = Server(at_most(10, reply), offers, lmtp=lmtp)
    talk = Talk(server, replace(MESSAGE, recipients=people(100)))
    assert talk.statuses == [OK] * 100
    assert [len(each) for each in server.delivered] == [10] * 10
    assert len(set(server.all_delivered)) == 100
    assert talk.limits == [10]
    # What was learnt holds: of a hundred only the first envelope asked too much.
    asked = len(server.commands("RCPT"))
    talk.another()
    assert len(server.commands("RCPT")) == asked + 100


def test_a_number_that_is_known_is_kept_from_the_first_envelope() -> None:
    server = Server(at_most(7, "452 4.5.3 no"))
    settings = ClientSettings("client.example", most_recipients=7)
    talk = Talk(server, replace(MESSAGE, recipients=people(20)), settings)
    assert [len(each) for each in server.delivered] == [7, 7, 6]
    assert len(server.commands("RCPT")) == 20
    assert talk.limits == []


def test_a_server_that_takes_nobody_more_has_its_say() -> None:
    taken: list[str] = []

    def once(line: str) -> str:
        taken.append(line)
        return "" if len(taken) <= 5 else "452 4.5.3 too many recipients this hour"

    server = Server([("RCPT", once)])
    talk = Talk(server, replace(MESSAGE, recipients=people(12)))
    assert talk.statuses == [OK] * 5 + [D] * 7
    assert {result.code for result in talk.done[0]} == {250, 452}
    assert talk.limits == []
    assert len(server.commands("MAIL")) == 2


@pytest.mark.parametrize("reply", ["452 4.3.1 storage", "452 4.2.2 quota", "452 disk full"])
def test_full_disks_and_mailboxes_are_no_limit(reply: str) -> None:
    server = Server([("RCPT TO:<r1@", reply)])
    talk = Talk(server)
    assert talk.statuses == [OK, D, OK]
    assert len(server.commands("MAIL")) == 1


def test_a_message_that_is_refused_in_one_envelope_is_offered_in_the_next() -> None:
    # A filter may refuse it for some and not for others.
    server = Server([*at_most(2, "452 4.5.3 no")])
    refused: list[str] = []

    def dot(_: str) -> str:
        refused.append("")
        return "550 5.7.1 spam" if len(refused) == 1 else ""

    server.rules.append((r"\.", dot))
    talk = Talk(server, replace(MESSAGE, recipients=people(4)))
    assert talk.statuses == [F, F, OK, OK]


def test_a_connection_that_is_lost_between_envelopes_defers_the_rest() -> None:
    session = ClientSession(ClientSettings("client.example", most_recipients=1))
    session.start(MESSAGE)
    events: list[Event] = []
    for wire in (b"220 hi\r\n", b"250 hop\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        events += session.receive(wire)
    session.end_content()
    events += session.receive(b"250 taken\r\n") + session.lost("reset")
    assert sum(isinstance(event, TransactionDone) for event in events) == 1
    assert [result.status for result in session.outcomes] == [OK, D, D]


# STARTTLS and TLS from the first byte


@pytest.mark.parametrize("end", ["lost", "timed_out", "421 4.7.0 bye\r\n", "999 x\r\n", "\x00\r\n"])
def test_a_server_that_says_no_word_at_starttls_refused_it(end: str) -> None:
    session = ClientSession(ClientSettings("client.example", tls=RouteTLS.MAY))
    session.start(MESSAGE)
    for wire in (b"220 hi\r\n", b"250-hop\r\n250 STARTTLS\r\n"):
        session.receive(wire)
    assert not session.starttls_refused
    if end == "lost":
        session.lost("reset")
    elif end == "timed_out":
        session.timed_out()
    else:
        session.receive(end.encode())
    assert session.closed
    assert session.starttls_refused


def test_a_server_that_ends_elsewhere_did_not_refuse_starttls() -> None:
    session = ClientSession(ClientSettings("client.example", tls=RouteTLS.MAY))
    session.start(MESSAGE)
    session.receive(b"220 hi\r\n")
    session.receive(b"250-hop\r\n250 STARTTLS\r\n")
    session.receive(b"220 go\r\n")
    session.lost("reset")
    assert not session.starttls_refused


def test_with_implicit_tls_nothing_is_said_or_heard_before_the_handshake() -> None:
    settings = ClientSettings("client.example", tls=RouteTLS.IMPLICIT)
    session = ClientSession(settings)
    session.start(MESSAGE)
    assert session.take_output() == b""
    assert session.deadline == settings.deadlines.handshake
    session.tls_started(TLSInfo("TLSv1.3", "X"))
    assert session.take_output() == b""
    assert session.deadline == settings.deadlines.greeting
    session.receive(b"220 hi\r\n")
    assert session.take_output() == b"EHLO client.example\r\n"
    # STARTTLS under TLS is no offer (RFC 8314 §3.3).
    events = session.receive(b"250-hop\r\n250 STARTTLS\r\n")
    assert not any(isinstance(event, StartTLS) for event in events)
    assert session.take_output().startswith(b"MAIL")


def test_with_implicit_tls_a_greeting_in_the_clear_is_the_end() -> None:
    session = ClientSession(ClientSettings("client.example", tls=RouteTLS.IMPLICIT))
    session.start(MESSAGE)
    events = session.receive(b"220 hi\r\n")
    assert session.take_output() == b""
    assert isinstance(events[-1], Hangup)
    assert sum(isinstance(event, TransactionDone) for event in events) == 1
    assert {result.enhanced for result in session.outcomes} == {"4.7.0"}


# Any server

_REPLIES = st.sampled_from(
    ["", "", "", "250 ok", "452 4.5.3 no", "452 no", "552 no", "501 no", "555 no", "571 no", "451 later"]
)
_ENDS = st.sampled_from(["", "", "500 what", "503 what", "550 no", "451 later", "421 closing"])


@given(
    st.lists(_REPLIES, min_size=1, max_size=9),
    st.lists(_REPLIES, min_size=1, max_size=5),
    st.lists(_ENDS, min_size=1, max_size=4),
    st.booleans(),
    st.sets(st.sampled_from(EVERYTHING)),
    st.integers(1, 6),
)
def test_whatever_a_server_refuses_nobody_gets_two_copies_and_each_result_is_true(
    rcpts: list[str], mails: list[str], ends: list[str], lmtp: bool, offers: set[str], number: int
) -> None:
    def cycle(replies: list[str]) -> Rule:
        said = [0]

        def say(_: str) -> str:
            said[0] += 1
            return replies[said[0] % len(replies)]

        return say

    rules: list[tuple[str, str | Rule]] = [
        ("MAIL", cycle(mails)),
        ("RCPT", cycle(rcpts)),
        (r"\.|BDAT .*LAST", cycle(ends)),
    ]
    server = Server(rules, sorted(offers), lmtp=lmtp)
    talk = Talk(server, replace(MESSAGE, recipients=people(number)))
    assert len(talk.done) == 1
    taken = server.all_delivered
    assert len(taken) == len(set(taken))
    for place, result in enumerate(talk.done[0]):
        assert (result.status is OK) == (str(result.recipient) in taken)
        assert place not in talk.session.again or result.status is D
