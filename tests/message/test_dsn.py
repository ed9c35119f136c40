"""DSNs as others read them: Python's email package parses each, and nothing hostile gets out of its place."""

from __future__ import annotations

import email
import email.message
import email.policy
import email.utils
import io
import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elemta.address import Address
from elemta.envelope import Envelope, MailParameters, Recipient
from elemta.message.dsn import Dsn, build_dsn, examine
from elemta.message.dsn_text import mta_name, span
from elemta.message.header_reader import HeaderReader
from elemta.message.notice import Notice, NoticeKind, NoticeSettings
from elemta.outcome import Outcome, Status

AT = 1_763_862_000.0
DAY = 86400.0
ALICE = Address("alice", "example.org")
BOB = Address("bob", "example.com")
MESSAGE = (
    b"Received: from client.example by mx.example.org; now\r\n"
    b"Message-ID: <1@example.org>\r\n"
    b"Subject: lunch\r\n"
    b"\r\n"
    b"At one?\r\n"
)

SETTINGS = NoticeSettings("mx.example.org")
REFUSED = Outcome(
    "4A7BC",
    BOB,
    Status.FAILED,
    "no such user",
    "mx:",
    "mail.example.com[192.0.2.9]:25",
    AT + 2,
    code=550,
    enhanced="5.1.1",
)
WAITING = replace(REFUSED, status=Status.DEFERRED, code=452, enhanced="4.2.2", text="full")
TAKEN = replace(REFUSED, status=Status.DELIVERED, code=250, enhanced="2.0.0", text="ok")


def envelope(sender: Address = ALICE, **parameters: Any) -> Envelope:
    return Envelope("4A7BC", sender, (Recipient(BOB),), AT, len(MESSAGE), MailParameters(**parameters))


def notice(
    *outcomes: Outcome, kind: NoticeKind = NoticeKind.FAILURE, orcpts: Sequence[str | None] = (), **of: Any
) -> Notice:
    """A notice of these outcomes; ``orcpts`` are the original recipients."""
    outcomes = outcomes or (REFUSED,)
    recipients = tuple(
        Recipient(outcome.recipient, None, orcpt) for outcome, orcpt in zip_longest(outcomes, orcpts)
    )
    return Notice(kind, envelope(**of), recipients, outcomes, AT + 60)


def built(about: Notice, message: bytes | None = MESSAGE, *, whole: bool = False) -> Dsn:
    settings = replace(SETTINGS, whole_limit=len(MESSAGE) if whole else -1)
    original = None if message is None else examine(io.BytesIO(message), whole=whole)
    return build_dsn(about, settings, original, queue_id="5ZZ", boundary=token_hex(16))


def octets(dsn: Dsn) -> bytes:
    return dsn.header + b"".join(dsn.chunks())


def parsed(dsn: Dsn) -> Any:
    message = email.message_from_bytes(octets(dsn), policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    assert all(not part.defects for part in message.walk())
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    return message


def parts(dsn: Dsn) -> list[Any]:
    return list(parsed(dsn).iter_parts())


def blocks(dsn: Dsn) -> list[Any]:
    """The blocks of fields of the second part: first the message's, then one for each recipient."""
    part = parts(dsn)[1]
    if part.get_content_type() == "message/delivery-status":
        return [block for block in part.get_payload() if len(block)]
    raw = octets(dsn).split(b"message/global-delivery-status")[1].partition(b"\r\n\r\n")[2]
    raw = raw.partition(b"\r\n--=_")[0]
    policy = email.policy.default.clone(utf8=True)
    return [email.message_from_bytes(block, policy=policy) for block in raw.strip().split(b"\r\n\r\n")]


def human(dsn: Dsn) -> str:
    text = parts(dsn)[0]
    assert text.get_content_type() == "text/plain"
    return str(text.get_content()).replace("\r\n", "\n")


# The fields of the DSN itself


def test_it_comes_from_the_mail_system_and_goes_to_the_sender() -> None:
    message = parsed(built(notice()))
    assert message["From"].addresses[0].addr_spec == "MAILER-DAEMON@mx.example.org"
    assert message["To"].addresses[0].addr_spec == "alice@example.org"
    assert message["Date"].datetime.timestamp() == AT + 60
    assert message["Message-ID"] == "<5ZZ@mx.example.org>"
    assert message["MIME-Version"] == "1.0"


def test_no_automatic_answer_may_come_back() -> None:
    # RFC 3834 §5.1
    assert parsed(built(notice()))["Auto-Submitted"] == "auto-replied"


def test_it_belongs_to_the_thread_of_the_message() -> None:
    message = parsed(built(notice()))
    assert message["In-Reply-To"] == message["References"] == "<1@example.org>"


@pytest.mark.parametrize(
    "field",
    [b"", b"Message-ID: none\r\n", b"Message-ID: <a b>\r\n", b"Message-ID: <1@a>\r\nMessage-ID: <2@a>\r\n"],
)
def test_an_identifier_that_is_none_is_not_answered_to(field: bytes) -> None:
    message = parsed(built(notice(), field + b"Subject: x\r\n\r\n"))
    assert "In-Reply-To" not in message
    assert "References" not in message


@pytest.mark.parametrize(
    ("kind", "outcome", "subject"),
    [
        (NoticeKind.FAILURE, REFUSED, "Undelivered mail"),
        (NoticeKind.DELAY, WAITING, "Delayed mail"),
        (NoticeKind.SUCCESS, replace(TAKEN, final=True), "Delivered mail"),
        (NoticeKind.SUCCESS, TAKEN, "Relayed mail"),
    ],
)
def test_the_subject_says_what_happened(kind: NoticeKind, outcome: Outcome, subject: str) -> None:
    assert parsed(built(notice(outcome, kind=kind)))["Subject"].startswith(subject + ":")


# For people


def test_the_first_sentence_says_what_happened_to_whom() -> None:
    assert human(built(notice())).startswith("Your message to bob@example.com could not be delivered")
    waiting = human(built(notice(WAITING, kind=NoticeKind.DELAY)))
    assert waiting.startswith(
        "Your message to bob@example.com could not be delivered yet. You need not\nsend it again"
    )
    assert "until Fri, 28 Nov 2025 01:40:00 UTC." in " ".join(waiting.split())
    delivered = replace(TAKEN, final=True)
    assert human(built(notice(delivered, kind=NoticeKind.SUCCESS))).startswith(
        "Your message to bob@example.com was delivered."
    )


def test_a_failure_is_in_plain_words_with_the_answer_and_what_to_do() -> None:
    text = human(built(notice()))
    for words in (
        "There is no such mailbox there.",
        "The answer of mail.example.com:\n        550 5.1.1 no such user",
        "What you can do: Check the address for mistakes",
        "Subject: lunch",
        "Queue id: 4A7BC",
    ):
        assert words in text


def test_what_expired_says_how_long_it_was_tried_and_what_the_last_trouble_was() -> None:
    expired = replace(WAITING, enhanced="4.4.1", code=0, text="Connection refused")
    text = " ".join(human(built(replace(notice(expired), at=AT + 5 * DAY + 9))).split())
    assert "It was tried for 5 days. The last time: the recipient's mail system does not answer." in text
    assert "What happened: Connection refused" in text


def test_a_delay_asks_for_nothing() -> None:
    assert "What you can do" not in human(built(notice(WAITING, kind=NoticeKind.DELAY)))


def test_the_address_that_the_sender_wrote_to_is_named_where_it_is_another() -> None:
    assert "you wrote to" not in human(built(notice(orcpts=["rfc822;Bob@example.com"])))
    assert "(you wrote to team@example.net)" in human(built(notice(orcpts=["rfc822;team@example.net"])))


def test_an_encoded_subject_is_read_and_a_broken_one_is_shown() -> None:
    assert "Subject: Füße" in human(built(notice(), b"Subject: =?utf-8?q?F=C3=BC=C3=9Fe?=\r\n\r\n"))
    for broken in (b"=?utf-8?b?x?=", b"=?no-such?q?x?=", b"=?utf-8?b?////?="):
        assert "Subject: " in human(built(notice(), b"Subject: " + broken + b"\r\n\r\n"))


# For programs


def test_the_message_block_says_what_message_and_who_reports() -> None:
    block = blocks(built(notice(envid="QQ 314+1")))[0]
    assert block["Original-Envelope-Id"] == "QQ 314+1"
    assert block["Reporting-MTA"] == "dns; mx.example.org"
    assert block["X-Elemta-Queue-Id"] == "4A7BC"
    assert email.utils.parsedate_to_datetime(block["Arrival-Date"]).timestamp() == AT


def test_each_recipient_has_a_block_with_the_required_fields_and_what_is_known() -> None:
    carol = replace(REFUSED, recipient=Address("carol", "example.com"))
    found = blocks(built(notice(REFUSED, carol, orcpts=[None, "rfc822;c@example.net"])))
    assert len(found) == 3
    assert dict(found[1].items()) == {
        "Final-Recipient": "rfc822; bob@example.com",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mail.example.com",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
        "Last-Attempt-Date": "Sun, 23 Nov 2025 01:40:02 +0000",
    }
    assert found[2]["Original-Recipient"] == "rfc822; c@example.net"
    assert found[2]["Final-Recipient"] == "rfc822; carol@example.com"


def test_only_a_delay_says_until_when_it_is_tried() -> None:
    # RFC 3464 §2.3.9
    delayed = blocks(built(notice(WAITING, kind=NoticeKind.DELAY)))[1]
    assert delayed["Action"] == "delayed"
    assert email.utils.parsedate_to_datetime(delayed["Will-Retry-Until"]).timestamp() == AT + 5 * DAY
    assert "Will-Retry-Until" not in blocks(built(notice()))[1]


def test_without_an_answer_no_host_is_quoted() -> None:
    local = replace(REFUSED, code=0, text="no connection to mail.example.com:25", enhanced="4.4.1")
    block = blocks(built(notice(local)))[1]
    assert block["Diagnostic-Code"] == "x-elemta; no connection to mail.example.com:25"
    assert "Remote-MTA" not in block


@pytest.mark.parametrize(
    ("next_hop", "name"),
    [
        ("mail.example.com[192.0.2.9]:25", "mail.example.com"),
        ("mail.example.com:25", "mail.example.com"),
        ("mail.example.com", "mail.example.com"),
        ("mail.example.com[2001:db8::1]:25", "mail.example.com"),
        ("192.0.2.9:25", "[192.0.2.9]"),
        ("[192.0.2.9]:25", "[192.0.2.9]"),
        ("[2001:db8::1]:24", "[IPv6:2001:db8::1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("[fe80::1%eth0]:25", "[IPv6:fe80::1]"),
        ("[fe80::1%x\r\nX-Evil: 1]:25", "[IPv6:fe80::1]"),
        ("/run/dovecot/lmtp", ""),
        ("/var/mail/example.com/bob", ""),
        ("", ""),
        ("a\r\nX-Evil: 1", ""),
        ("a b", ""),
    ],
)
def test_the_remote_host_is_named_as_the_internet_knows_it(next_hop: str, name: str) -> None:
    assert mta_name(next_hop) == name


# What goes back


def test_the_whole_message_goes_back_octet_for_octet() -> None:
    message = MESSAGE + b".dots\r\n--=_x\r\n\r\nlast line without an end"
    returned = parts(built(notice(), message, whole=True))[2]
    assert returned.get_content_type() == "message/rfc822"
    raw = octets(built(notice(), message, whole=True))
    assert raw.count(message) == 1
    assert returned.get_content()["Subject"] == "lunch"


def test_only_the_header_goes_back_where_that_is_wanted() -> None:
    dsn = built(notice())
    returned = parts(dsn)[2]
    assert returned.get_content_type() == "text/rfc822-headers"
    assert returned.get_content().encode() == MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n"
    assert b"At one?" not in octets(dsn)


@given(
    st.lists(
        st.sampled_from(
            [b"\r\n", b" x\r\n", b"From a\r\n", b"Return-Path: x\r\n", b"A: b\r\n", b"words\r\n"]
        ),
        max_size=6,
    )
)
def test_the_header_that_goes_back_is_ours_and_then_what_the_client_sent_of_it(lines: list[bytes]) -> None:
    reader = HeaderReader()
    stored = reader.feed(b"".join(lines)) + reader.finish()
    ours = b"Received: from a by b; now\r\n"
    returned = octets(built(notice(), ours + stored)).rpartition(b"text/rfc822-headers")[2]
    header = returned.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--=_")[0]
    assert header == ours + stored[: reader.size]


def test_a_message_that_can_not_be_read_any_more_is_left_out() -> None:
    assert len(parts(built(notice(), None))) == 2


@pytest.mark.parametrize(
    ("message", "header"),
    [
        (b"A: 1\r\nB: 2\r\n\r\nbody", b"A: 1\r\nB: 2\r\n"),
        (b"A: 1\nB: 2\n\nbody", b"A: 1\r\nB: 2\r\n"),
        (b"A: 1", b"A: 1\r\n"),
        (b"\r\nbody", b""),
        (b"", b""),
        (b"A: \0\r\n\r\n", b"A: ?\r\n"),
        (
            b"A: " + b"x" * 2000 + b"\r\n\r\n",
            b"A: " + b"x" * 994 + b"\r\n " + b"x" * 997 + b"\r\n " + b"x" * 9 + b"\r\n",
        ),
        (b"A: 1\r\n" + b"B" * 70_000, b"A: 1\r\n"),
    ],
)
def test_the_header_is_found_and_put_into_lines_that_can_be_sent(message: bytes, header: bytes) -> None:
    assert examine(io.BytesIO(message), whole=False).header == header


@pytest.mark.parametrize("whole", [False, True])
def test_eight_bit_octets_are_declared_where_they_are(whole: bool) -> None:
    body = MESSAGE + b"x" * 200_000 + b"\r\ngr\xfc\xdfe\r\n"
    dsn = built(notice(), body, whole=whole)
    assert dsn.eight_bit is whole
    assert parsed(dsn)["Content-Transfer-Encoding"] == ("8bit" if whole else "7bit")
    assert parts(dsn)[2]["Content-Transfer-Encoding"] == ("8bit" if whole else "7bit")
    if not whole:
        assert octets(dsn).isascii()


def test_an_eight_bit_header_is_declared_too() -> None:
    dsn = built(notice(), b"Subject: gr\xfc\xdfe\r\n\r\n")
    assert dsn.eight_bit
    assert not dsn.smtputf8
    assert parts(dsn)[2].get_content_type() == "text/rfc822-headers"


def test_a_large_message_is_never_held_in_memory() -> None:
    class Large(io.RawIOBase):
        size = 50 * 1024 * 1024

        def __init__(self) -> None:
            self.at = 0

        def seek(self, offset: int, whence: int = 0) -> int:
            self.at = offset
            return offset

        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= 64 * 1024
            piece = b"x" * min(size, self.size - self.at)
            self.at += len(piece)
            return piece

    about = notice()
    tracemalloc.start()
    original = examine(Large(), whole=True)  # type: ignore[arg-type]
    dsn = build_dsn(about, SETTINGS, original, queue_id="5ZZ", boundary="b")
    total = sum(len(chunk) for chunk in dsn.chunks())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > Large.size
    assert peak < 1024 * 1024


def test_what_parts_the_parts_can_not_be_foreseen() -> None:
    first, second = (parsed(built(notice())).get_boundary() for _ in range(2))
    assert first != second
    assert len(first) > 32


# Beyond ASCII

JOSE = Address("josé", "exámple.com")
UTF8_MESSAGE = "From: josé@exámple.com\r\nSubject: größe\r\n\r\nx\r\n".encode()


def test_a_utf8_message_is_reported_in_utf8() -> None:
    refused = replace(REFUSED, recipient=JOSE)
    about = notice(refused, orcpts=["utf-8;josé+1@exámple.com"], sender=JOSE, smtputf8=True)
    dsn = built(about, UTF8_MESSAGE)
    assert dsn.smtputf8
    assert dsn.eight_bit
    assert [part.get_content_type() for part in parts(dsn)] == [
        "text/plain",
        "message/global-delivery-status",
        "message/global-headers",
    ]
    block = blocks(dsn)[1]
    # RFC 6533 §4.1
    assert block["Final-Recipient"] == "utf-8; josé@exámple.com"
    assert block["Original-Recipient"] == "utf-8; josé+1@exámple.com"
    assert "To: <josé@exámple.com>\r\n".encode() in dsn.header
    assert parts(built(about, UTF8_MESSAGE, whole=True))[2].get_content_type() == "message/global"


def test_towards_a_sender_without_utf8_addresses_are_spelled_in_ascii() -> None:
    dsn = built(notice(replace(REFUSED, recipient=JOSE), orcpts=["utf-8;josé+1@exámple.com"]))
    assert not dsn.smtputf8
    block = blocks(dsn)[1]
    # RFC 6533 §3
    assert block["Final-Recipient"] == r"utf-8; jos\x{E9}@ex\x{E1}mple.com"
    assert block["Original-Recipient"] == r"utf-8; jos\x{E9}\x{2B}1@ex\x{E1}mple.com"
    assert parts(dsn)[1]["Content-Transfer-Encoding"] == "7bit"
    assert "josé@exámple.com" in human(dsn)


def test_a_utf8_message_about_which_all_is_ascii_needs_nothing_special() -> None:
    dsn = built(notice(smtputf8=True))
    assert not dsn.smtputf8
    assert not dsn.eight_bit
    assert [part.get_content_type() for part in parts(dsn)][1:] == [
        "message/delivery-status",
        "text/rfc822-headers",
    ]


def test_a_header_that_is_no_utf8_is_not_called_so() -> None:
    dsn = built(notice(smtputf8=True), b"Subject: gr\xfc\xdfe\r\n\r\n")
    assert parts(dsn)[2].get_content_type() == "text/rfc822-headers"
    assert dsn.eight_bit


# Hostile

HOSTILE = st.one_of(
    st.text(max_size=400),
    st.text(alphabet='\r\n\t :;<>"\\a\x00\x85\u2028\u202e\ud800é', max_size=200),
    st.sampled_from(
        [
            "x\r\nX-Evil: 1",
            "x\r\n\r\n--=_",
            "\r\n.\r\nMAIL FROM:<>",
            "a" * 5000,
            "é" * 5000,
            "x\n\nAction: delivered",
            " " * 2000,
            "((((" * 500,
        ]
    ),
)
FIELDS = {
    "Original-Envelope-Id",
    "Reporting-MTA",
    "Arrival-Date",
    "X-Elemta-Queue-Id",
    "Original-Recipient",
    "Final-Recipient",
    "Action",
    "Status",
    "Remote-MTA",
    "Diagnostic-Code",
    "Last-Attempt-Date",
}


@settings(max_examples=300, deadline=None)
@given(
    orcpt=HOSTILE,
    envid=HOSTILE,
    reply=HOSTILE,
    hop=HOSTILE,
    local=HOSTILE,
    domain=HOSTILE,
    subject=HOSTILE,
    code=st.sampled_from([0, 550]),
    smtputf8=st.booleans(),
    kind=st.sampled_from(["rfc822;", "utf-8;", "x\r\n;", ""]),
)
def test_nothing_hostile_gets_out_of_its_field(
    orcpt: str,
    envid: str,
    reply: str,
    hop: str,
    local: str,
    domain: str,
    subject: str,
    code: int,
    smtputf8: bool,
    kind: str,
) -> None:
    address = Address(local, domain)
    said = replace(REFUSED, recipient=address, text=reply, code=code, next_hop=hop, enhanced="")
    about = notice(said, orcpts=[kind + orcpt], sender=address, envid=envid, smtputf8=smtputf8)
    message = b"Subject: " + subject.encode("utf-8", "surrogatepass") + b"\r\n\r\n"
    dsn = built(about, message)
    raw = octets(dsn)
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    # Of what is ours, every line end is a whole one and no control character is in it.
    ours = raw.rpartition(b"\r\n--=_")[0].rpartition(b"Content-Type:")[0]
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", ours)
    ours.decode("utf-8")
    assert dsn.header.isascii() or dsn.smtputf8
    assert dsn.eight_bit or raw.isascii()
    assert {line.partition(b":")[0].decode() for line in re.split(rb"\r\n(?![ \t])", dsn.header)[:-1]} <= {
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "Auto-Submitted",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
    }
    found = list(email.message_from_bytes(raw, policy=email.policy.compat32).get_payload())
    assert len(found) == 3
    fields = blocks_of(raw)
    assert len(fields) == 2
    for block in fields:
        assert set(block.keys()) <= FIELDS
        assert len(set(block.keys())) == len(block.keys())
    assert {"Final-Recipient", "Action", "Status"} <= set(fields[1].keys())
    assert fields[1]["Action"] == "failed"


def blocks_of(raw: bytes) -> list[Any]:
    """The blocks by hand, for what the parser's stricter policy does not take."""
    part = re.split(rb"message/(?:global-)?delivery-status\r\n", raw)[1].partition(b"\r\n\r\n")[2]
    return [
        email.message_from_bytes(block, policy=email.policy.compat32)
        for block in part.partition(b"\r\n--=_")[0].rstrip(b"\r\n").split(b"\r\n\r\n")
    ]


@settings(max_examples=100, deadline=None)
@given(message=st.binary(max_size=600), whole=st.booleans(), smtputf8=st.booleans())
def test_any_message_can_be_returned(message: bytes, whole: bool, smtputf8: bool) -> None:
    dsn = built(notice(smtputf8=smtputf8), message, whole=whole)
    found = email.message_from_bytes(octets(dsn), policy=email.policy.compat32).get_payload()
    assert [part.get_content_maintype() for part in found][:2] == ["text", "message"]
    assert len(found) == 3
    if whole:
        assert message in octets(dsn)
    assert dsn.eight_bit or octets(dsn).isascii()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 seconds"),
        (50, "50 seconds"),
        (61, "1 minute"),
        (3600, "1 hour"),
        (5 * DAY, "5 days"),
        (5 * DAY + 40, "5 days"),
        (90 * 60, "90 minutes"),
    ],
)
def test_a_span_of_time_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert span(seconds) == words
