"""An envelope takes bounded memory, all of them together too, and each gives back what it took."""

from __future__ import annotations

import gc
import tracemalloc
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elemta.smtp import replies
from elemta.smtp.events import MessageQuestion, Proceed, Queued, RcptQuestion, Refuse, Response
from elemta.smtp.memory import LEAST_BUDGET, SMALL_ENVELOPE, MemoryBudget
from elemta.smtp.session import ServerSession
from elemta.smtp.session_info import SessionInfo
from elemta.smtp.settings import LEAST_ENVELOPE, ORDINARY_RECIPIENT
from tests.smtp import transcript
from tests.smtp.transcript import Conversation

KIB = 1024
FULL = "452 4.5.3 Too many octets of recipients"
ALL_FULL = "452 4.3.1 Insufficient memory, try again later"
MAIL, RCPT = b"MAIL FROM:<a@client.test>\r\n", b"RCPT TO:<b%d@home.test>\r\n"


def begin(envelopes: MemoryBudget | None = None, **changes: Any) -> Conversation:
    values: dict[str, Any] = {"max_recipients": 5000, "max_idle_commands": 10**6, "max_message_size": 10**6}
    facts = SessionInfo("S1", ip_address("192.0.2.1"), 40000, "mx")
    session = ServerSession(transcript.settings(**(values | changes)), facts, envelopes)
    conversation = Conversation(session)
    conversation.take(session.open())
    conversation.settle()
    conversation.send(b"EHLO client.test\r\n")
    conversation.said()
    return conversation


def say(conversation: Conversation, line: bytes) -> str:
    conversation.send(line)
    conversation.events.clear()
    return conversation.said().strip()


def held(conversation: Conversation) -> int:
    transaction = conversation.session.transaction
    return 0 if transaction is None else transaction.memory.held


LOCAL, DOMAIN = b"l" * 58, b".".join([b"d" * 60] * 3)
TABLE = {
    "ordinary recipients": (MAIL, RCPT),
    "long addresses": (MAIL, b"RCPT TO:<" + LOCAL + b"%d@" + DOMAIN + b">\r\n"),
    "a long ORCPT": (MAIL, b"RCPT TO:<b%d@home.test> ORCPT=rfc822;" + b"x" * 490 + b"@e.t\r\n"),
    "wide characters in ORCPT": (
        MAIL,
        b"RCPT TO:<b%d@home.test> ORCPT=utf-8;" + rb"\x{1F4E7}" * 40 + "ü@e.t\r\n".encode(),
    ),
    "international addresses": (
        b"MAIL FROM:<a@client.test> SMTPUTF8\r\n",
        "RCPT TO:<\U00020000\U00020001%d@bücher.test>\r\n".encode(),
    ),
    "ENVID and AUTH": (b"MAIL FROM:<a@client.test> ENVID=" + b"e" * 100 + b" RET=HDRS\r\n", RCPT),
}


@pytest.mark.parametrize("case", TABLE)
def test_an_envelope_takes_no_more_than_its_budget_as_python_takes_it(case: str) -> None:
    mail, rcpt = (line.replace(b"%d", b"{}") for line in TABLE[case])
    # What is made once, such as the tables of an encoding, is no part of an envelope.
    say(conversation := begin(), mail)
    say(conversation, rcpt.replace(b"{}", b"0"))
    conversation = begin()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert say(conversation, mail).startswith("250")
    said, number = "", 0
    while said != FULL:
        said = say(conversation, rcpt.replace(b"{}", b"%d" % number))
        number += said.startswith("250")
        assert said == FULL or said.startswith("250"), said
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken <= held(conversation) * 1.25
    assert LEAST_ENVELOPE - 4 * KIB < held(conversation) <= LEAST_ENVELOPE
    # RFC 5321 §4.5.3.1: a hundred must be taken.
    assert number > 100
    # The message goes to those that were taken, and the rest come with the next.
    conversation.send(b"DATA\r\n")
    assert conversation.said().startswith("354")
    conversation.send(b"x\r\n.\r\n")
    assert conversation.said().startswith("250")
    assert held(conversation) == 0
    assert say(conversation, mail).startswith("250")
    assert say(conversation, rcpt.replace(b"{}", b"1")).startswith("250")


def test_max_recipients_of_ordinary_length_have_room() -> None:
    most = 3000
    conversation = begin(max_recipients=most, max_envelope=most * ORDINARY_RECIPIENT)
    say(conversation, MAIL)
    for number in range(most):
        assert say(conversation, b"RCPT TO:<someone-%05d@example.com>\r\n" % number).startswith("250")
    assert say(conversation, RCPT % 1) == "452 4.5.3 Too many recipients"


def test_max_recipients_beyond_the_budget_of_all_have_room_too() -> None:
    budget = MemoryBudget()
    budget.admit(2**20)
    assert budget.limit == LEAST_BUDGET
    budget.admit(2**30)
    assert budget.has_space_for(0, 2**30)
    budget.admit(0)
    assert budget.limit == LEAST_BUDGET


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(20, 200))
def test_all_envelopes_keep_to_their_budget_and_leave_room_for_the_next_small_one(
    sessions: int, kibibytes: int
) -> None:
    budget = MemoryBudget(kibibytes * KIB)
    greedy = [begin(budget) for _ in range(sessions)]
    refused: set[int] = set()
    while len(refused) < sessions:
        for number, conversation in enumerate(greedy):
            if number in refused:
                continue
            line = RCPT % number if conversation.session.transaction else MAIL
            if say(conversation, line) in (FULL, ALL_FULL):
                refused.add(number)
            assert budget.taken <= budget.limit + sessions * SMALL_ENVELOPE
    assert budget.taken == sum(held(conversation) for conversation in greedy)
    most = max(held(conversation) for conversation in greedy)
    # A session that wants all gets no more than what is left free.
    free = max(0, budget.limit - budget.taken)
    assert most <= max(SMALL_ENVELOPE, free + ORDINARY_RECIPIENT * sessions)
    take_a_small_one(budget)


def take_a_small_one(budget: MemoryBudget) -> None:
    small = begin(budget)
    assert say(small, MAIL).startswith("250")
    for number in range(20):
        assert say(small, RCPT % number).startswith("250")
    small.session.lost()


@pytest.mark.parametrize("kibibytes", [300, 2000])
def test_the_next_small_one_fits_when_sessions_took_all_they_can_get_one_after_the_other(
    kibibytes: int,
) -> None:
    """Each halves what is left free: so a few sessions less than 300 took all of 64 MiB."""
    budget = MemoryBudget(kibibytes * KIB)
    for number in range(1, 31):
        conversation = begin(budget)
        assert say(conversation, MAIL).startswith("250")
        while say(conversation, RCPT % number) not in (FULL, ALL_FULL):
            pass
        assert budget.taken <= budget.limit + number * SMALL_ENVELOPE
    take_a_small_one(budget)


@pytest.mark.parametrize("address", [LOCAL + b"@" + DOMAIN, "\U00020000\u00fc".encode() * 10 + b"@" + DOMAIN])
def test_the_longest_mail_always_has_room(address: bytes) -> None:
    budget = MemoryBudget(64 * KIB)
    budget.taken = budget.limit
    conversation = begin(budget, auth=True)
    more = b" SMTPUTF8 RET=HDRS ENVID=" + b"e" * 100
    more += b" AUTH=" + b"".join(b"%c" % octet if octet < 128 else b"+%02X" % octet for octet in address)
    assert say(conversation, b"MAIL FROM:<" + address + b">" + more + b"\r\n").startswith("250")
    assert held(conversation) <= SMALL_ENVELOPE // 2


def test_without_memory_rcpt_is_deferred_and_it_is_no_error_of_the_client() -> None:
    budget = MemoryBudget(2 * KIB)
    conversation = begin(budget)
    say(conversation, MAIL)
    while say(conversation, RCPT % 1) != ALL_FULL:
        pass
    for _ in range(100):
        assert say(conversation, RCPT % 2) == ALL_FULL
    assert SMALL_ENVELOPE - KIB < held(conversation) <= SMALL_ENVELOPE
    budget.limit = 32 * KIB
    assert say(conversation, RCPT % 2).startswith("250")


STEPS = st.sampled_from(
    [
        MAIL,
        b"MAIL FROM:<a@client.test> ENVID=x AUTH=<> SIZE=10\r\n",
        RCPT % 1,
        RCPT % 2,
        b"RCPT TO:<refused@home.test>\r\n",
        b"RCPT TO:<closed@home.test>\r\n",
        b"RCPT TO:<hangs@home.test>\r\n",
        b"DATA\r\n",
        b"x\r\n.\r\n",
        b"BDAT 3 LAST\r\nx\r\n",
        b"BDAT 3\r\nx\r\n",
        b"BDAT ?\r\n",
        b"RSET\r\n",
        b"EHLO client.test\r\n",
        b"STARTTLS\r\n",
        b"NONSENSE\r\n",
        b"QUIT\r\n",
        b"lost",
        b"shut",
        b"tls",
    ]
)


class Answers:
    """What the shell says; ``hangs`` is never answered."""

    def __call__(self, question: object) -> Response | None:
        if isinstance(question, MessageQuestion):
            return Queued("Q1")
        if not isinstance(question, RcptQuestion):
            return Proceed()
        return {
            "refused": Refuse(replies.NO_MAILBOX),
            "closed": Refuse(replies.NO_MAILBOX, close=True),
            "hangs": None,
        }.get(question.recipient.local, Proceed())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), STEPS), max_size=60), st.sampled_from([3, 6, 1000]))
def test_after_any_history_nothing_is_taken(steps: list[tuple[int, bytes]], kibibytes: int) -> None:
    budget = MemoryBudget(kibibytes * KIB)
    answers = Answers()
    sessions = [begin(budget).session for _ in range(3)]
    for number, step in steps:
        session = sessions[number]
        if step == b"lost":
            session.lost()
        elif step == b"shut":
            session.shut(replies.TIMEOUT, "timeout")
        elif step == b"tls":
            session.tls_started(transcript.TLS)
        else:
            session.receive(step)
        while session.question is not None:
            answer = answers(session.question)
            if answer is None:
                break
            session.answer(answer)
        session.take_output()
        open_now = [each.transaction.memory.held for each in sessions if each.transaction is not None]
        assert budget.taken == sum(open_now)
        assert 0 <= budget.taken <= budget.limit + len(sessions) * SMALL_ENVELOPE
    for session in sessions:
        session.lost()
    assert budget.taken == 0
