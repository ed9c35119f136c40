"""The client session against scripted servers, in memory: every reply class at every command."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from elemta.address import NULL, Address
from elemta.envelope import BodyType, MailParameters, Notify, Recipient, Return
from elemta.outcome import Outcome, Status
from elemta.smtp.client import ClientSession, ClientSettings, ClientTimeouts
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_results import ContentWanted, Hangup, TransactionDone
from elemta.smtp.events import Event

SENDER = Address("a", "example.org")
BOB, EVE, TOM = (Recipient(Address(name, "example.com")) for name in ("bob", "eve", "tom"))
PLAIN = ClientTransaction(SENDER, (BOB,), MailParameters(), 7)
THREE = replace(PLAIN, recipients=(BOB, EVE, TOM))
CONTENT = b"A: b\r\n\r\n.hi"

D, F, OK = Status.DEFERRED, Status.FAILED, Status.DELIVERED


@dataclass
class Talk:
    """A session with a server that is a list: what the client sends, and what it is answered."""

    transaction: ClientTransaction = PLAIN
    lmtp: bool = False
    content: bytes = CONTENT
    sent: list[bytes] = field(default_factory=list)
    results: tuple[Outcome, ...] = ()
    hangup: str = ""

    def __post_init__(self) -> None:
        self.session = ClientSession(ClientSettings("client.example", lmtp=self.lmtp))
        self._act(self.session.start(self.transaction))

    def _act(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ContentWanted):
                self.session.content(self.content)
                self.session.end_content()
            elif isinstance(event, TransactionDone):
                assert not self.results, "settled twice"
                self.results = self.session.outcomes
            elif isinstance(event, Hangup):
                self.hangup = event.reason
        if output := self.session.take_output():
            self.sent.append(output)

    def hear(self, *wires: bytes) -> Talk:
        for wire in wires:
            self._act(self.session.receive(wire))
        return self

    def lose(self) -> Talk:
        self._act(self.session.lost("connection reset"))
        return self

    @property
    def statuses(self) -> list[Status]:
        return [result.status for result in self.results]


HELLO = b"250 server.example\r\n"
FULL = b"250-server.example\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 DSN\r\n"
PIPE = b"250-server.example\r\n250 pipelining\r\n"


def test_a_message_is_sent_command_by_command() -> None:
    talk = Talk().hear(
        b"220 hi\r\n", HELLO, b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 2.0.0 as 17\r\n"
    )
    assert talk.sent == [
        b"EHLO client.example\r\n",
        b"MAIL FROM:<a@example.org>\r\n",
        b"RCPT TO:<bob@example.com>\r\n",
        b"DATA\r\n",
        b"A: b\r\n\r\n..hi\r\n.\r\n",
    ]
    text = "as 17"
    assert talk.results == (
        Outcome("", BOB.address, OK, text, "", "", 0.0, code=250, enhanced="2.0.0", command="the message"),
    )
    talk._act(talk.session.quit())
    assert talk.sent[-1] == b"QUIT\r\n"
    assert talk.hear(b"221 bye\r\n").hangup == "ended by QUIT: 221"
    assert talk.session.closed


def test_a_server_with_pipelining_gets_the_envelope_in_one_go() -> None:
    talk = Talk(THREE).hear(b"220 hi\r\n", PIPE)
    assert talk.sent[-1] == (
        b"MAIL FROM:<a@example.org>\r\nRCPT TO:<bob@example.com>\r\n"
        b"RCPT TO:<eve@example.com>\r\nRCPT TO:<tom@example.com>\r\nDATA\r\n"
    )
    talk.hear(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n450 4.2.1 later\r\n354 go\r\n", b"250 ok\r\n")
    assert talk.statuses == [OK, F, D]
    assert (talk.results[1].code, talk.results[1].enhanced, talk.results[1].text) == (
        550, "5.1.1", "no",
    )  # fmt: skip


def test_many_recipients_are_pipelined_in_windows() -> None:
    many = replace(PLAIN, recipients=tuple(Recipient(Address(f"u{i}", "example.com")) for i in range(120)))
    talk = Talk(many).hear(b"220 hi\r\n", PIPE)
    assert talk.sent[-1].count(b"\r\n") == 50
    talk.hear(b"250 ok\r\n" * 50)
    talk.hear(b"250 ok\r\n" * 50)
    assert talk.sent[-1].endswith(b"DATA\r\n")
    talk.hear(b"250 ok\r\n" * 21 + b"354 go\r\n", b"250 ok\r\n")
    assert talk.statuses == [OK] * 120


def test_parameters_are_sent_only_where_they_are_offered() -> None:
    rich = ClientTransaction(
        SENDER,
        (
            Recipient(BOB.address, Notify.SUCCESS | Notify.FAILURE, "rfc822;b+c=d@example.com"),
            replace(EVE, notify=Notify.NEVER),
        ),
        MailParameters(body=BodyType.EIGHT_BIT, ret=Return.HEADERS, envid="id 1+2", smtputf8=True),
        7,
    )
    assert Talk(rich).hear(b"220 hi\r\n", FULL).sent[-1].split(b"\r\n")[:3] == [
        b"MAIL FROM:<a@example.org> SIZE=7 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=id+201+2B2",
        b"RCPT TO:<bob@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b+2Bc+3Dd@example.com",
        b"RCPT TO:<eve@example.com> NOTIFY=NEVER",
    ]
    assert Talk(rich).hear(b"220 hi\r\n", HELLO).sent[-1] == b"MAIL FROM:<a@example.org>\r\n"


def test_an_internationalised_original_recipient_is_written_in_ascii() -> None:
    rich = replace(PLAIN, recipients=(replace(BOB, orcpt="utf-8;jösé+x@example.com"),))
    assert Talk(rich).hear(b"220 hi\r\n", FULL).sent[-1].split(b"\r\n")[1] == (
        rb"RCPT TO:<bob@example.com> ORCPT=utf-8;j\x{F6}s\x{E9}\x{2B}x@example.com"
    )


def test_the_null_sender_is_sent_as_such() -> None:
    assert Talk(replace(PLAIN, sender=NULL)).hear(b"220 hi\r\n", HELLO).sent[-1] == b"MAIL FROM:<>\r\n"


def test_a_server_that_does_not_know_ehlo_is_greeted_by_helo() -> None:
    talk = Talk().hear(b"220 hi\r\n", b"502 what\r\n")
    assert talk.sent[-1] == b"HELO client.example\r\n"
    talk.hear(b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 ok\r\n")
    assert talk.statuses == [OK]


def test_a_message_over_the_declared_size_is_not_tried() -> None:
    at_the_limit = Talk(replace(PLAIN, size=1000)).hear(b"220 hi\r\n", FULL)
    assert b"SIZE=1000" in at_the_limit.sent[-1]
    over = Talk(replace(PLAIN, size=1001)).hear(b"220 hi\r\n", FULL)
    assert over.sent == [b"EHLO client.example\r\n"]
    assert (over.statuses, over.results[0].enhanced) == ([F], "5.3.4")
    assert not Talk(replace(PLAIN, size=10**9)).hear(b"220 hi\r\n", b"250-x\r\n250 SIZE 0\r\n").results


def test_a_message_that_needs_smtputf8_fails_where_it_is_not_offered() -> None:
    for needy in (replace(PLAIN, utf8_header=True), replace(PLAIN, sender=Address("jösé", "example.org"))):
        talk = Talk(needy).hear(b"220 hi\r\n", HELLO)
        assert (talk.statuses, talk.results[0].enhanced, talk.results[0].code) == ([F], "5.6.7", 0)
        assert b" SMTPUTF8" in Talk(needy).hear(b"220 hi\r\n", FULL).sent[-1].split(b"\r\n")[0]


def test_one_internationalised_recipient_does_not_fail_the_others() -> None:
    jose = Recipient(Address("jösé", "example.com"))
    talk = Talk(replace(PLAIN, recipients=(jose, BOB))).hear(b"220 hi\r\n", HELLO)
    talk.hear(b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 ok\r\n")
    assert talk.statuses == [F, OK]
    assert "jösé".encode() not in b"".join(talk.sent)


def test_declared_smtputf8_that_nothing_needs_goes_out_without() -> None:
    talk = Talk(replace(PLAIN, parameters=MailParameters(smtputf8=True))).hear(b"220 hi\r\n", HELLO)
    assert talk.sent[-1] == b"MAIL FROM:<a@example.org>\r\n"


@pytest.mark.parametrize("bad", ["a\r\nRCPT TO:<target", "a\nb", "a\x00", "a\x7f"])
def test_no_address_can_break_out_of_its_command(bad: str) -> None:
    talk = Talk(replace(PLAIN, recipients=(Recipient(Address(bad, "example.com")), BOB))).hear(
        b"220 hi\r\n", PIPE
    )
    assert talk.sent[-1] == b"MAIL FROM:<a@example.org>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n"
    talk = Talk(replace(PLAIN, sender=Address(bad, "example.com"))).hear(b"220 hi\r\n", PIPE)
    assert (talk.statuses, talk.results[0].enhanced) == ([F], "5.1.7")
    assert talk.sent == [b"EHLO client.example\r\n"]


GOOD = [b"220 hi\r\n", HELLO, b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 ok\r\n"]
STEPS = ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "end"]
# (reply, status when given at each step); EHLO's 5xx leads to HELO, which is refused by the same reply.
CLASSES = [
    (b"421 4.3.2 going\r\n", [D, D, D, D, D, D]),
    (b"450 4.2.0 later\r\n", [D, D, D, D, D, D]),
    (b"451 later\r\n", [D, D, D, D, D, D]),
    (b"500 what\r\n", [D, D, F, F, F, F]),
    (b"521 5.3.2 never\r\n", [F, F, F, F, F, F]),
    (b"550 5.7.1 no\r\n", [D, D, F, F, F, F]),
    (b"552 5.2.2 full\r\n", [D, D, F, F, F, F]),
    (b"552 too many\r\n", [D, D, F, D, F, F]),
    (b"354 go\r\n", [D, D, D, D, None, D]),
    (b"334 what\r\n", [D, D, D, D, None, D]),
    (b"250 ok\r\n", [None, None, None, None, D, OK]),
    # RFC 5321 §4.3.2: the first digit decides about codes that no RFC names, whatever stands behind them.
    (b"571 5.7.1 no\r\n", [D, D, F, F, F, F]),
    (b"591\r\n", [D, D, F, F, F, F]),
    (b"499 later\r\n", [D, D, D, D, D, D]),
    (b"550\t5.1.1 no\r\n", [D, D, F, F, F, F]),
    (b"550: no\r\n", [D, D, F, F, F, F]),
    (b"\r\n550 no\r\n", [D, D, F, F, F, F]),
    (b"550-5.7.1 no\r\n554 5.7.1 never\r\n", [D, D, F, F, F, F]),
    (b"550-no\r\nsee https://example.org/\r\n550 never\r\n", [D, D, F, F, F, F]),
    (b"550 " + b"x" * 5000 + b"\n", [D, D, F, F, F, F]),
    (b"999 what\r\n", [D, D, D, D, D, D]),
    (b"250-ok\r\n450 no\r\n", [D, D, D, D, D, D]),
    (b"garbage\r\n", [D, D, D, D, D, D]),
    (b"\x00\xff\n", [D, D, D, D, D, D]),
    (b"250-" + b"x" * 70_000, [D, D, D, D, D, D]),
    (b"250-x\r\n" * 1000, [D, D, D, D, D, D]),
]


@pytest.mark.parametrize("pipelining", [False, True])
@pytest.mark.parametrize(
    ("wire", "step", "expected"),
    [
        pytest.param(wire, i, status, id=f"{wire[:12]!r}-at-{STEPS[i]}")
        for wire, statuses in CLASSES
        for i, status in enumerate(statuses)
        if status is not None
    ],
)
def test_every_reply_class_at_every_command(
    wire: bytes, step: int, expected: Status, pipelining: bool
) -> None:
    talk = Talk()
    talk.hear(*[PIPE if pipelining and good is HELLO else good for good in GOOD[:step]])
    assert not talk.results
    talk.hear(wire)
    if not talk.results and step == 1:
        talk.hear(wire)  # HELO
    if not talk.results:
        # What was pipelined behind a refusal is answered too.
        talk.hear(b"503 no\r\n" * len(talk.session._state.sent))
    assert talk.statuses == [expected]
    assert talk.results[0].text.isprintable()
    assert len(talk.results[0].text) < 600


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize(
    "said", ["554 5.7.1 no", "450 4.2.0 later", "552 5.5.3 many", "550 4.1.1 odd", "450 5.1.1 odd"]
)
def test_no_word_of_a_refusal_is_lost_whatever_it_counts_as(step: int, said: str) -> None:
    # RFC 3464 §2.3.6: a notice shows what the server said, also where a 5xx defers.
    talk = Talk().hear(*GOOD[:step], f"{said}\r\n".encode())
    if not talk.results:
        talk.hear(f"{said}\r\n".encode())  # HELO
    result = talk.results[0]
    assert " ".join(word for word in (str(result.code), result.enhanced, result.text) if word) == said


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("fault", ["lost", "timed_out"])
def test_a_connection_that_is_lost_or_stalls_at_any_point_defers(step: int, fault: str) -> None:
    talk = Talk()
    talk.hear(*GOOD[:step])
    talk._act(talk.session.lost("reset") if fault == "lost" else talk.session.timed_out())
    assert talk.statuses == [D]
    assert talk.results[0].code == 0
    assert ("may have been delivered" in talk.results[0].text) == (step == 5)
    assert talk.hangup
    assert talk.hear(b"250 ok\r\n").statuses == [D]


def test_a_recipient_that_was_refused_keeps_its_answer_when_the_connection_is_lost() -> None:
    talk = Talk(THREE).hear(b"220 hi\r\n", HELLO, b"250 ok\r\n", b"250 ok\r\n", b"550 5.1.1 no\r\n").lose()
    assert talk.statuses == [D, F, D]


def test_a_421_at_the_second_recipient_defers_those_that_have_no_answer_of_their_own() -> None:
    talk = Talk(THREE).hear(b"220 hi\r\n", HELLO, b"250 ok\r\n", b"550 no\r\n", b"421 4.3.2 bye\r\n")
    assert talk.statuses == [F, D, D]
    assert talk.results[1].code == 421


def test_no_data_is_sent_when_every_recipient_was_refused() -> None:
    talk = Talk(THREE).hear(b"220 hi\r\n", HELLO, b"250 ok\r\n", b"550 no\r\n", b"450 no\r\n", b"550 no\r\n")
    assert talk.statuses == [F, D, F]
    assert not any(b"DATA" in sent for sent in talk.sent)
    assert not talk.session.closed


def test_a_pipelined_data_that_is_accepted_for_nobody_is_ended_by_a_lone_dot() -> None:
    talk = Talk(THREE).hear(b"220 hi\r\n", PIPE, b"250 ok\r\n" + b"550 no\r\n" * 3 + b"354 go\r\n")
    assert talk.sent[-1] == b".\r\n"
    assert talk.hear(b"250 thanks for nothing\r\n").statuses == [F, F, F]


def test_over_lmtp_a_message_for_nobody_closes_the_connection() -> None:
    talk = Talk(THREE, lmtp=True).hear(b"220 hi\r\n", PIPE, b"250 ok\r\n" + b"550 no\r\n" * 3 + b"354 go\r\n")
    assert talk.statuses == [F, F, F]
    assert talk.hangup


def test_lmtp_gives_one_reply_for_each_accepted_recipient() -> None:
    talk = Talk(THREE, lmtp=True).hear(b"220 hi\r\n", PIPE)
    assert talk.sent[0] == b"LHLO client.example\r\n"
    talk.hear(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 ok\r\n354 go\r\n")
    talk.hear(b"250 2.0.0 stored\r\n")
    assert not talk.results
    talk.hear(b"452 4.2.2 quota\r\n")
    assert talk.statuses == [OK, F, D]


def test_lmtp_recipients_that_were_answered_keep_it_when_the_connection_is_lost() -> None:
    talk = (
        Talk(THREE, lmtp=True)
        .hear(b"220 hi\r\n", PIPE, b"250 ok\r\n" * 4 + b"354 go\r\n", b"250 stored\r\n")
        .lose()
    )
    assert talk.statuses == [OK, D, D]
    assert "may have been delivered" in talk.results[1].text


def test_an_lmtp_server_that_refuses_lhlo_is_not_spoken_to_in_smtp() -> None:
    talk = Talk(lmtp=True).hear(b"220 hi\r\n", b"500 what\r\n")
    assert talk.statuses == [D]
    assert talk.sent[-1] == b"QUIT\r\n"


@pytest.mark.parametrize(
    "wires",
    [
        [b"220 hi\r\n250 early\r\n"],
        [b"220 hi\r\n", b"250-x\r\n250 y\r\n250 early\r\n"],
        [b"220 hi\r\n", HELLO, b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n250 early\r\n"],
        [b"220 hi\r\n", HELLO, b"250 ok\r\n250 early\r\n"],
    ],
)
def test_an_answer_to_what_was_not_asked_yet_is_never_taken_for_one(wires: list[bytes]) -> None:
    talk = Talk().hear(*wires)
    assert talk.statuses == [D]
    assert "nothing asked for" in talk.results[0].text


def test_a_reply_while_the_message_is_being_sent_ends_it_without_an_end() -> None:
    session = ClientSession(ClientSettings("client.example"))
    session.start(PLAIN)
    for wire in GOOD[:5]:
        session.receive(wire)
    session.content(b"half of it\r\n")
    events = session.receive(b"552 5.3.4 too much\r\n")
    assert [type(event) for event in events] == [TransactionDone, Hangup]
    session.content(b"rest\r\n")
    session.end_content()
    assert not session.take_output().endswith(b"\r\n.\r\n")


def test_content_that_cannot_be_read_is_never_ended() -> None:
    session = ClientSession(ClientSettings("client.example"))
    session.start(PLAIN)
    for wire in GOOD[:5]:
        session.receive(wire)
    session.content(b"half of it\r\n")
    settled, _ = session.abandon("the message could not be read")
    assert isinstance(settled, TransactionDone)
    (outcome,) = session.outcomes
    assert (outcome.status, outcome.text) == (D, "the message could not be read")
    session.end_content()
    assert not session.take_output().endswith(b"\r\n.\r\n")


def test_more_replies_than_recipients_after_the_message_change_nothing() -> None:
    talk = Talk().hear(*GOOD[:5], b"250 ok\r\n550 no\r\n")
    assert talk.statuses == [OK]
    assert talk.hangup


def test_each_phase_has_the_deadline_of_the_rfc() -> None:
    session = ClientSession(ClientSettings("client.example"))
    session.start(PLAIN)
    deadlines = ClientTimeouts()
    seen = [session.deadline]
    for wire in GOOD[:5]:
        session.receive(wire)
        seen.append(session.deadline)
    session.end_content()
    seen.append(session.deadline)
    session.receive(GOOD[5])
    assert seen == [300.0, 300.0, 300.0, 300.0, 120.0, 180.0, 600.0]
    assert session.deadline is None
    session.quit()
    assert session.deadline == deadlines.quit


def test_half_a_reply_is_no_progress() -> None:
    session = ClientSession(ClientSettings("client.example"))
    before = session.progress
    session.receive(b"220-still\r\n220-not")
    assert session.progress == before
    session.receive(b" ready\r\n220 now\r\n")
    assert session.progress == before + 1


def test_a_session_takes_one_transaction_after_the_other() -> None:
    session = ClientSession(ClientSettings("client.example"))
    session.start(PLAIN)
    with pytest.raises(RuntimeError):
        session.start(PLAIN)
    for wire in GOOD[:5]:
        session.receive(wire)
    session.end_content()
    assert isinstance(session.receive(GOOD[5])[0], TransactionDone)
    session.take_output()
    session.start(THREE)
    assert session.take_output() == b"MAIL FROM:<a@example.org>\r\n"
