"""The client session from one transaction to the next: chunks, resets, and how far each came."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import Address
from elemta.envelope import MailParameters, Recipient
from elemta.outcome import Outcome, ReachedStage, Status, furthest
from elemta.smtp.client import ClientSession, ClientSettings
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_content import ChunkEncoder
from elemta.smtp.client_results import ContentWanted, Hangup, TransactionDone
from elemta.smtp.events import Event

BOB, EVE = (Recipient(Address(name, "example.com")) for name in ("bob", "eve"))
MESSAGE = ClientTransaction(Address("a", "example.org"), (BOB, EVE), MailParameters(), 7)
GREETING = b"220 hi\r\n"
CHUNKS = b"250-hop\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
PIPE = b"250-hop\r\n250 PIPELINING\r\n"
OK = b"250 ok\r\n"

D, F, GOOD = Status.DEFERRED, Status.FAILED, Status.DELIVERED


class Talk:
    """A session whose server is a list of what it says."""

    def __init__(self, content: list[bytes] | None = None, *, lmtp: bool = False) -> None:
        self.session = ClientSession(ClientSettings("client.example", lmtp=lmtp))
        self.content = content or [b".hi\r\n"]
        self.sent: list[bytes] = []
        self.settled: list[tuple[Outcome, ...]] = []
        self.hangup = ""
        self.start()

    def start(self, transaction: ClientTransaction = MESSAGE) -> Talk:
        self.act(self.session.start(transaction))
        return self

    def act(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ContentWanted):
                for chunk in self.content:
                    assert not self.session.congested
                    self.session.content(chunk)
                self.session.end_content()
            elif isinstance(event, TransactionDone):
                self.settled.append(self.session.outcomes)
            elif isinstance(event, Hangup):
                self.hangup = event.reason
        if output := self.session.take_output():
            self.sent.append(output)

    def hear(self, *wires: bytes) -> Talk:
        for wire in wires:
            self.act(self.session.receive(wire))
        return self

    @property
    def reached(self) -> ReachedStage:
        return furthest(self.settled[-1])

    @property
    def statuses(self) -> list[Status]:
        return [result.status for result in self.settled[-1]]


# CHUNKING


def test_where_chunking_is_offered_the_message_goes_as_counted_octets() -> None:
    talk = Talk().hear(GREETING, CHUNKS)
    assert b"DATA" not in talk.sent[-1]
    talk.hear(OK * 3)
    assert talk.sent[-1] == b"BDAT 5 LAST\r\n.hi\r\n"
    talk.hear(b"250 2.0.0 as 17\r\n")
    assert talk.statuses == [GOOD, GOOD]


def test_an_empty_message_is_an_empty_last_chunk() -> None:
    assert Talk([b""]).hear(GREETING, CHUNKS, OK * 3).sent[-1] == b"BDAT 0 LAST\r\n"


def test_no_chunk_is_sent_when_everybody_was_refused() -> None:
    talk = Talk().hear(GREETING, CHUNKS, b"250 ok\r\n550 no\r\n450 no\r\n")
    assert talk.statuses == [F, D]
    assert not any(b"BDAT" in sent for sent in talk.sent)
    assert talk.session.idle


def test_over_lmtp_the_last_chunk_has_a_reply_for_each_recipient() -> None:
    talk = Talk(lmtp=True).hear(GREETING, CHUNKS, OK * 3, b"250 stored\r\n452 4.2.2 quota\r\n")
    assert talk.statuses == [GOOD, D]


@pytest.mark.parametrize(
    ("reply", "status"), [(b"552 5.3.4 too big\r\n", F), (b"451 later\r\n", D), (b"354 what\r\n", D)]
)
def test_a_refused_chunk_is_the_answer_for_the_message_and_ends_the_connection(
    reply: bytes, status: Status
) -> None:
    talk = Talk([b"x" * 300_000, b"y" * 300_000, b"z"]).hear(GREETING, CHUNKS, OK * 3)
    talk.hear(reply)
    assert talk.statuses == [status, status]
    assert talk.hangup


def test_so_many_chunks_are_out_at_one_time() -> None:
    session = ClientSession(ClientSettings("client.example"))
    session.start(MESSAGE)
    for wire in (GREETING, CHUNKS, OK * 3):
        session.receive(wire)
    chunks = 0
    while not session.congested:
        session.content(b"x" * 300_000)
        chunks += 1
        assert chunks < 10
    assert session.take_output().count(b"BDAT ") == 4
    session.receive(OK)
    assert not session.congested


def test_a_server_without_pipelining_gets_one_chunk_at_a_time() -> None:
    session = ClientSession(ClientSettings("client.example"))
    session.start(replace(MESSAGE, recipients=(BOB,)))
    for wire in (GREETING, b"250-hop\r\n250 CHUNKING\r\n", OK, OK):
        session.receive(wire)
    session.content(b"x" * 300_000)
    assert not session.congested
    session.content(b"x" * 300_000)
    assert session.congested


pieces = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a" * 7, b"\xff", b"\r\n.\r\n"]), max_size=40
).map(b"".join)


@given(message=pieces, cut=st.integers(1, 20), size=st.integers(1, 30))
def test_chunks_are_counted_right_and_hold_the_message_in_canonical_form(
    message: bytes, cut: int, size: int
) -> None:
    encoder = ChunkEncoder(size)
    wire = b"".join(encoder.encode(message[i : i + cut]) for i in range(0, len(message), cut))
    wire += encoder.finish()
    received, lasts, sizes = b"", 0, []
    while wire:
        command = re.match(rb"BDAT (\d+)( LAST)?\r\n", wire)
        assert command is not None
        assert not lasts
        end = command.end() + int(command[1])
        assert len(wire) >= end
        received += wire[command.end() : end]
        wire = wire[end:]
        lasts += bool(command[2])
        sizes.append(int(command[1]))
    assert lasts == 1
    assert all(each >= size for each in sizes[:-1])
    text = message.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert received == (text if not text or text.endswith(b"\r\n") else text + b"\r\n")


# From one to the next


def test_an_envelope_that_came_to_no_end_is_reset_before_the_next() -> None:
    talk = Talk().hear(GREETING, PIPE, b"250 ok\r\n550 no\r\n550 no\r\n554 nobody\r\n")
    assert talk.statuses == [F, F]
    talk.start()
    assert talk.sent[-1].startswith(b"RSET\r\nMAIL FROM:")
    talk.hear(b"250 flushed\r\n" + OK * 3 + b"354 go\r\n", OK)
    assert talk.statuses == [GOOD, GOOD]
    talk.start()
    assert talk.sent[-1].startswith(b"MAIL FROM:")


def test_a_mail_that_was_refused_leaves_nothing_to_reset() -> None:
    talk = Talk().hear(GREETING, b"250 hop\r\n", b"550 no\r\n")
    assert talk.statuses == [F, F]
    assert talk.start().sent[-1].startswith(b"MAIL FROM:")


def test_a_server_that_refuses_rset_is_left() -> None:
    talk = Talk().hear(GREETING, b"250 hop\r\n", OK, b"550 no\r\n", b"550 no\r\n").start()
    assert talk.sent[-1] == b"RSET\r\n"
    talk.hear(b"500 what\r\n")
    assert talk.statuses == [D, D]
    assert talk.reached is ReachedStage.NOWHERE


@pytest.mark.parametrize(
    ("wires", "reached"),
    [
        ([b"554 no\r\n"], ReachedStage.NOWHERE),
        ([b"421 busy\r\n"], ReachedStage.NOWHERE),
        ([GREETING, b"421 busy\r\n"], ReachedStage.NOWHERE),
        ([GREETING, PIPE, b"421 busy\r\n"], ReachedStage.NOWHERE),
        ([GREETING, PIPE, b"450 no\r\n" + b"503 no\r\n" * 3], ReachedStage.ANSWERED),
        ([GREETING, PIPE, b"250 ok\r\n421 busy\r\n"], ReachedStage.ANSWERED),
        ([GREETING, PIPE, b"999 what\r\n"], ReachedStage.ANSWERED),
        ([GREETING, PIPE, b"354 what\r\n"], ReachedStage.ANSWERED),
        ([GREETING, b"999 what\r\n"], ReachedStage.NOWHERE),
        ([GREETING, b"250-hop\r\n250 SIZE 1\r\n"], ReachedStage.ANSWERED),
    ],
)
def test_it_is_told_how_far_a_transaction_came(wires: list[bytes], reached: ReachedStage) -> None:
    assert Talk().hear(*wires).reached is reached


def test_a_lost_connection_is_told_apart_by_whether_the_server_had_answered() -> None:
    talk = Talk().hear(GREETING, PIPE)
    talk.act(talk.session.lost("reset"))
    assert talk.reached is ReachedStage.NOWHERE
    talk = Talk().hear(GREETING, PIPE, OK)
    talk.act(talk.session.lost("reset"))
    assert talk.reached is ReachedStage.ANSWERED


def test_the_result_says_whether_the_server_reports_from_here_on() -> None:
    talk = Talk().hear(GREETING, b"250-hop\r\n250-PIPELINING\r\n250 DSN\r\n")
    talk.hear(b"250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n", OK)
    assert [result.dsn_passed_on for result in talk.settled[-1]] == [True, False]
    talk = Talk().hear(GREETING, PIPE, OK * 3 + b"354 go\r\n", OK)
    assert [result.dsn_passed_on for result in talk.settled[-1]] == [False, False]
