"""Milters, scripted packet by packet."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError

from elemta.policies.milter import MilterPlugin
from elemta.policies.milter.protocol import MilterError, packet, read_answer, read_options
from elemta.policy import (
    CONTINUE,
    Address,
    BackendError,
    Defer,
    Discard,
    Disconnect,
    Quarantine,
    Recipient,
    Reject,
    Stage,
)
from elemta.policy.testing import PolicyTester, make_message

ENDPOINT = "unix:/run/opendkim/opendkim.sock"
MESSAGE = b"Subject:  two blanks\r\nX-A: 1\r\n folded\r\nX-A: 2\r\n\r\nbody\r\n" + b"line\r\n" * 20_000
RECIPIENT = Recipient(Address("b", "example.com"))
ALL = 0xFF


class Milter:
    """Answers each command as the test says; keeps what it was sent."""

    def __init__(self, steps: int = 0, actions: int = ALL, version: int = 6, **answers: bytes | None) -> None:
        self.options = struct.pack("!III", version, actions, steps)
        self.steps, self.answers = steps, answers
        self.heard: list[tuple[bytes, bytes]] = []
        self.unanswered = b""
        self._rest = b""

    def __call__(self, data: bytes) -> bytes | None:
        self._rest += data
        answer = b""
        while len(self._rest) >= 4:
            (size,) = struct.unpack("!I", self._rest[:4])
            if len(self._rest) < 4 + size:
                break
            command, content = self._rest[4:5], self._rest[5 : 4 + size]
            self._rest = self._rest[4 + size :]
            self.heard.append((command, content))
            said = self._answer(command)
            if said is None:
                return None
            answer += said
        return answer

    def _answer(self, command: bytes) -> bytes | None:
        if command == self.unanswered:
            return b""
        if command == b"O":
            return packet(b"O", self.options)
        if command in b"DAQ":
            return b""
        silent = {b"C": 0x1000, b"H": 0x2000, b"M": 0x4000, b"R": 0x8000, b"T": 0x10000, b"L": 0x80}
        silent |= {b"N": 0x40000, b"B": 0x80000}
        if self.steps & silent.get(command, 0):
            return b""
        return self.answers.get(command.decode(), packet(b"c"))

    def commands(self) -> str:
        return "".join(command.decode() for command, _ in self.heard)

    def data(self, command: bytes) -> list[bytes]:
        return [content for name, content in self.heard if name == command]


def policy(milter: Callable[[bytes], bytes | None] | Exception, **how) -> PolicyTester:
    return PolicyTester(MilterPlugin(), connections={ENDPOINT: milter}, **how)


def conversation(asked: PolicyTester, message: bytes = MESSAGE) -> object:
    """The first verdict that is not CONTINUE."""
    steps = [
        asked.connected,
        asked.helo,
        lambda: asked.mail("a@example.org"),
        lambda: asked.rcpt("b@example.com"),
        asked.data,
        lambda: asked.message(message),
    ]
    for step in steps:
        verdict = step()
        if verdict != CONTINUE:
            return verdict
    return CONTINUE


def test_a_milter_hears_the_whole_conversation_in_order():
    milter = Milter()
    asked = policy(milter)
    assert conversation(asked) == CONTINUE
    asked.disconnected()
    order = milter.commands().replace("D", "")
    assert order.startswith("OCHMRTLLLNB")
    assert order.rstrip("B").endswith("EQ") or order.endswith("EQ")
    assert milter.data(b"C") == [b"[192.0.2.1]\x004" + struct.pack("!H", 54321) + b"192.0.2.1\0"]
    assert milter.data(b"M") == [b"<a@example.org>\0"]
    assert milter.data(b"R") == [b"<b@example.com>\0"]
    assert milter.data(b"L")[1] == b"X-A\x001\n folded\0"
    assert b"".join(milter.data(b"B")) == MESSAGE.partition(b"\r\n\r\n")[2]
    assert max(map(len, milter.data(b"B"))) <= 65535
    assert asked.connections.open == 0


def test_a_field_keeps_its_blanks_where_the_milter_asks_for_them():
    plain, exact = Milter(), Milter(steps=0x100000)
    conversation(policy(plain))
    conversation(policy(exact))
    assert plain.data(b"L")[0] == b"Subject\0 two blanks\0"
    assert exact.data(b"L")[0] == b"Subject\0  two blanks\0"


@pytest.mark.parametrize(
    ("step", "missing"),
    [(0x01, "C"), (0x02, "H"), (0x04, "M"), (0x08, "R"), (0x10, "B"), (0x20, "L"), (0x40, "N"), (0x200, "T")],
)
def test_what_the_milter_does_not_want_is_not_sent(step, missing):
    milter = Milter(steps=step)
    assert conversation(policy(milter)) == CONTINUE
    assert missing not in milter.commands()
    assert "E" in milter.commands()


def test_what_the_milter_does_not_answer_is_not_waited_for():
    milter = Milter(steps=0xFF080)
    assert conversation(policy(milter)) == CONTINUE


@pytest.mark.parametrize("stage", ["C", "H", "M", "R", "T", "L", "N", "B", "E"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (packet(b"r"), Reject),
        (packet(b"t"), Defer),
        (packet(b"d"), Discard),
        (packet(b"y", b"550 5.7.9 not you\0"), Reject),
        (packet(b"y", b"451-4.7.1 one\r\n451 4.7.1 two\0"), Defer),
        (packet(b"y", b"421 4.3.2 later\0"), Disconnect),
        (packet(b"f"), Defer),
    ],
)
def test_a_decision_is_a_verdict_at_every_stage(stage, answer, kind):
    verdict = conversation(policy(Milter(**{stage: answer})))
    assert isinstance(verdict, kind)


def test_a_reply_of_the_milter_s_is_given_to_the_client():
    verdict = conversation(policy(Milter(R=packet(b"y", b"550 5.7.9 not you\0"))))
    assert verdict == Reject("not you", code=550, enhanced="5.7.9")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (b"550", Reject("The mail was refused", code=550, enhanced="5.7.1")),
        (b"550 5.1.1", Reject("The mail was refused", code=550, enhanced="5.1.1")),
        (b"554 5.7.1 100%% spam", Reject("100% spam", code=554, enhanced="5.7.1")),
        (b"599 5.7.1 odd", Reject("odd", code=550, enhanced="5.7.1")),
        (b"450 5.7.1 two classes", Defer("two classes", code=450, enhanced="4.7.1")),
        (b"550-5.7.1 a\r\n550-5.7.1 b\r\n550 5.7.1 c", Reject("a\nb\nc", code=550, enhanced="5.7.1")),
        (b"550-a\r\n" * 40 + b"550 b", Reject("\n".join("a" * 32), code=550, enhanced="5.7.1")),
        (b"550 " + b"a" * 1000, Reject("a" * 400, code=550, enhanced="5.7.1")),
        (b"550-no code\r\n550 5.7.1", Reject("no code", code=550, enhanced="5.7.1")),
        (b"550 5.7.100.5 text", Reject("5.7.100.5 text", code=550, enhanced="5.7.1")),
        (b"451 \x01\x02", Defer("??", code=451, enhanced="4.7.1")),
    ],
)
def test_any_form_of_a_reply_is_one_that_a_client_can_read(reply, verdict):
    assert conversation(policy(Milter(R=packet(b"y", reply + b"\0")))) == verdict


@pytest.mark.parametrize("steps", [0, 0x80])
def test_a_field_is_cut_to_what_a_packet_may_have(steps):
    milter = Milter(steps=steps)
    message = b"To: " + b"a@example.com,\r\n " * 8000 + b"b@example.com\r\nX: y\r\n\r\ntext\r\n"
    assert conversation(policy(milter), message) == CONTINUE
    to, other = milter.data(b"L")
    assert len(to) == 65535
    assert to.startswith(b"To\0a@example.com,\n a@")
    assert to.endswith(b"\0")
    assert other == b"X\0y\0"


def test_a_line_that_is_no_field_belongs_to_the_one_above():
    milter = Milter()
    assert conversation(policy(milter), b"A : 1\r\nno field\r\n b\r\nB: 2\r\n\r\ntext\r\n") == CONTINUE
    assert milter.data(b"L") == [b"A\x001\nno field\n b\0", b"B\x002\0"]
    assert b"".join(milter.data(b"B")) == b"text\r\n"


@pytest.mark.parametrize("line", [b"X: y\r\n", b"X: " + b"y" * 70_000 + b"\r\n"])
def test_a_header_beyond_all_measure_is_refused_and_not_sent_in_part(line):
    milter = Milter()
    header = line * (1024 * 1024 // len(line) + 1)
    verdict = conversation(policy(milter), header + b"\r\ntext\r\n")
    assert verdict == Reject("The header of the message is too long", code=552, enhanced="5.3.4")
    assert not milter.data(b"B")
    assert milter.commands().endswith("A")


@pytest.mark.parametrize("stage", ["C", "H"])
def test_a_session_that_is_accepted_is_told_no_more(stage):
    milter = Milter(**{stage: packet(b"a")})
    assert conversation(policy(milter)) == CONTINUE
    assert "M" not in milter.commands()


def test_a_message_that_is_accepted_is_told_no_more_and_the_next_one_is():
    milter = Milter(R=packet(b"a"))
    asked = policy(milter)
    assert conversation(asked) == CONTINUE
    assert "E" not in milter.commands()
    asked.mail("c@example.org")
    assert milter.data(b"M") == [b"<a@example.org>\0", b"<c@example.org>\0"]


def test_a_body_that_is_skipped_is_not_sent_on():
    milter = Milter(steps=0x400, B=packet(b"s"))
    assert conversation(policy(milter)) == CONTINUE
    assert len(milter.data(b"B")) == 1
    assert "E" in milter.commands()


def header_with(index: int, name: bytes, value: bytes) -> bytes:
    return struct.pack("!I", index) + name + b"\0" + value + b"\0"


def edited(*changes: bytes) -> tuple[PolicyTester, bytes, bytes]:
    asked = policy(Milter(E=b"".join(changes) + packet(b"c")))
    assert conversation(asked) == CONTINUE
    header, _, body = asked.edited_message.partition(b"\r\n\r\n")
    return asked, header, body


def test_fields_are_added_inserted_changed_and_removed():
    _, header, _ = edited(
        packet(b"h", b"X-New\0at the end\n\tfolded\0"),
        packet(b"i", header_with(0, b"X-Top", b"first")),
        packet(b"m", header_with(2, b"X-A", b"changed")),
        packet(b"m", header_with(1, b"X-A", b"")),
        packet(b"m", header_with(1, b"X-Other", b"new")),
    )
    lines = header.split(b"\r\n")
    assert lines[0] == b"X-Top: first"
    assert b"X-New: at the end\r\n\tfolded" in header
    assert b"X-Other: new" in header
    assert header.count(b"X-A:") == 1


def test_what_is_not_changed_keeps_its_octets():
    _, header, body = edited(packet(b"i", header_with(0, b"X-Top", b"first")))
    assert header + b"\r\n\r\n" + body == b"X-Top: first\r\n" + MESSAGE


def test_the_body_is_replaced_by_all_pieces():
    asked, _, body = edited(packet(b"b", b"one\r\n"), packet(b"p"), packet(b"b", b"two\r\n"))
    assert body == b"one\r\ntwo\r\n"
    asked._message.content.close()


def test_sender_and_recipients_are_changed():
    asked, _, _ = edited(
        packet(b"e", b"<new@example.org>\0SIZE=1\0"),
        packet(b"+", b"<c@example.com>\0"),
        packet(b"2", b"<d@example.com>\0NOTIFY=NEVER\0"),
        packet(b"-", b"<B@example.com>\0"),
    )
    transaction = asked.transaction
    assert str(transaction.sender) == "new@example.org"
    assert [str(one.address) for one in transaction.recipients] == ["c@example.com", "d@example.com"]


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        # As spamass-milter redirects a message.
        ("-b@example.com +c@example.com", "d@example.com c@example.com"),
        ("-b@example.com -d@example.com +c@example.com", "c@example.com"),
        ("+c@example.com -b@example.com -D@example.com", "c@example.com"),
        ("-b@example.com", "d@example.com"),
        ("-b@example.com +b@example.com", "b@example.com d@example.com"),
        ("+c@example.com -c@example.com", "b@example.com d@example.com"),
        ("+B@example.com -x@example.com", "b@example.com d@example.com"),
        ("-b@example.com -d@example.com", None),
        ("-b@example.com +c@example.com -d@example.com -c@example.com", None),
    ],
)
def test_recipients_are_those_that_all_changes_together_leave(changes, left):
    packets = [packet(each[:1].encode(), f"<{each[1:]}>".encode() + b"\0") for each in changes.split()]
    asked = policy(Milter(E=b"".join(packets) + packet(b"c")))
    asked.connected()
    asked.helo()
    asked.mail("a@example.org")
    asked.rcpt("b@example.com")
    asked.rcpt("d@example.com")
    verdict = asked.message(MESSAGE)
    if left is None:
        assert verdict == Discard("milter")
    else:
        assert verdict == CONTINUE
        assert " ".join(str(one.address) for one in asked.transaction.recipients) == left


def test_a_message_to_as_many_recipients_as_may_be_is_redirected():
    packets = [packet(b"-", b"<%d@example.com>\0" % number) for number in range(1000)]
    asked = policy(
        Milter(steps=0x8008, E=b"".join(packets) + packet(b"+", b"<c@example.com>\0") + packet(b"c"))
    )
    asked.connected()
    asked.mail("a@example.org")
    asked.transaction_facts.max_recipients = 1000
    for number in range(1000):
        asked.rcpt(f"{number}@example.com")
    assert asked.message(MESSAGE) == CONTINUE
    assert [str(one.address) for one in asked.transaction.recipients] == ["c@example.com"]


@pytest.mark.parametrize("stage", ["M", "R", "T"])
def test_a_message_that_is_discarded_is_told_no_more(stage):
    milter = Milter(**{stage: packet(b"d")})
    asked = policy(milter)
    asked.connected()
    asked.helo()
    verdicts = [asked.mail("a@example.org"), asked.rcpt("b@example.com"), asked.rcpt("c@example.com")]
    verdicts.append(asked.data())
    # All of the message is dropped, not one recipient.
    assert verdicts.index(Discard("milter")) == (0 if stage == "M" else 3)
    assert milter.commands().replace("D", "").endswith(stage)
    asked.refused()
    assert asked.mail("a@example.org") == (Discard("milter") if stage == "M" else CONTINUE)


def test_quarantine_marks_the_message():
    asked = policy(Milter(E=packet(b"q", b"looks odd\0") + packet(b"c")))
    assert conversation(asked) == Quarantine("looks odd")


def test_a_change_that_was_not_announced_is_a_failure():
    with pytest.raises(BackendError, match="did not announce"):
        conversation(policy(Milter(actions=0, E=packet(b"h", b"X\0y\0") + packet(b"c"))))


@pytest.mark.parametrize("stage", ["C", "H", "M", "R", "T", "L", "N", "B", "E"])
@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"\0\0\0\0",
        b"\xff\xff\xff\xffx",
        packet(b"?"),
        packet(b"y", b"no end"),
        packet(b"y", b"250 fine\0"),
        packet(b"h", b"X-A\0y\0"),
    ],
)
def test_a_milter_that_dies_or_breaks_the_protocol_is_a_failure_of_the_policy(stage, answer):
    if stage == "E" and answer == packet(b"h", b"X-A\0y\0"):
        answer = packet(b"h", b"X A\0y\0")
    with pytest.raises(BackendError):
        conversation(policy(Milter(**{stage: answer})))


def test_a_milter_that_is_at_work_for_ever_is_a_failure():
    with pytest.raises(BackendError, match="still at work"):
        conversation(policy(Milter(E=packet(b"p") * 20_000 + packet(b"c"))))


def test_very_many_fields_that_are_not_answered_go_out_in_one_piece():
    milter = Milter(steps=0x80)
    message = b"".join(b"X-%d: y\r\n" % number for number in range(5000)) + b"\r\ntext\r\n"
    asked = policy(milter)
    assert conversation(asked, message) == CONTINUE
    assert len(milter.data(b"L")) == 5000
    assert len(asked.connections.written[0]) < 50


@pytest.mark.parametrize(
    "milter", [Milter(version=1), Milter(steps=0x800), BackendError("nothing listens"), lambda _: None]
)
def test_a_milter_that_does_not_negotiate_is_a_failure(milter):
    with pytest.raises(BackendError):
        policy(milter).connected()


@pytest.mark.parametrize("stage", ["O", "C", "H", "M", "R", "T", "L", "N", "B", "E"])
@pytest.mark.parametrize("gives_up", [False, True])
def test_a_late_answer_is_never_taken_for_that_to_another_question(stage, gives_up):
    steps = {"C": Stage.CONNECT, "H": Stage.HELO, "M": Stage.MAIL, "R": Stage.RCPT, "T": Stage.DATA}
    asked_at = steps.get(stage, Stage.CONNECT if stage == "O" else Stage.MESSAGE)
    milter = Milter()
    milter.unanswered = stage.encode()
    asked = policy(milter)
    for at in (Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.MESSAGE):
        about = {Stage.RCPT: RECIPIENT, Stage.MESSAGE: make_message(MESSAGE)}.get(at)
        answer = asked.ask(at, about)
        if at is asked_at:
            break
        assert answer.result == CONTINUE
    assert not answer.called
    if gives_up:
        answer.cancel()
    else:
        asked.clock.advance(5)
    assert asked.connections.open == 0
    assert answer.result.check(BackendError, CancelledError)
    answer.addErrback(lambda _: None)
    with pytest.raises(BackendError, match="was lost"):
        asked.rcpt("c@example.com")


def test_a_message_that_is_given_up_is_aborted_and_the_connection_stays():
    milter = Milter()
    asked = policy(milter)
    asked.connected()
    asked.helo()
    asked.mail("a@example.org")
    asked.refused()
    asked.mail("c@example.org")
    assert milter.commands().replace("D", "") == "OCHMAM"


@given(st.sampled_from(b"acrtdysfphimbe+2-qx?"), st.binary(max_size=60))
def test_any_packet_is_an_answer_or_an_error(command, data):
    with contextlib.suppress(MilterError):
        read_answer(bytes([command]), data)


@given(st.binary(max_size=40))
def test_any_options_are_agreed_on_or_refused(data):
    with contextlib.suppress(MilterError):
        read_options(b"O", data)
