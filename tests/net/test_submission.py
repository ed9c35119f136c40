"""Submitted mail: whose senders are whose, what a header gets and loses, and what is refused."""

from __future__ import annotations

import email
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred

from elemta.address import NULL, Address
from elemta.aliases import AliasLine
from elemta.auth.senders import SenderAddresses, read_sender_map
from elemta.config import Role, Senders, SubmissionConfig
from elemta.domains import Domains
from elemta.errors import ConfigError
from elemta.net.submission import MAX_AUTHORS, SubmissionRules
from elemta.policy import CONTINUE
from elemta.smtp import replies
from elemta.smtp.path import parse_address
from elemta.smtp.session_info import SessionInfo
from tests.net.conftest import Place, Scripted, reply_of

LOCAL = frozenset({"example.com", "bücher.example"})
ALIASES = (
    AliasLine(1, "sales@example.com", (Address("anna", "example.com"), Address("bob", "example.com"))),
    AliasLine(2, "chief", (Address("sales", "example.com"),)),
    AliasLine(3, "@shop.example", (Address("anna", "example.com"),)),
)
DOMAINS = Domains(
    LOCAL | {"shop.example"}, None, (ip_network("192.0.2.0/24"),), delimiter="+", alias_lines=ALIASES
)
FURTHER = {
    "anna": frozenset({"press@corp.example", "@anna.example"}),
    "ci": frozenset({"robot+build@example.com"}),
}
SENDERS = SenderAddresses(DOMAINS, FURTHER)
NOW = 1_763_862_000.0


def rules(**settings: object) -> SubmissionRules:
    return SubmissionRules(SubmissionConfig(**settings), SENDERS, "smtp.example.com", lambda: NOW)  # type: ignore[arg-type]


def client(user: str | None = "anna", ip: str = "198.51.100.7") -> SessionInfo:
    return SessionInfo("s", ip_address(ip), 1, "submission", user=user)


@pytest.mark.parametrize(
    ("user", "address", "own"),
    [
        ("anna", "anna@example.com", True),
        ("anna", "ANNA@Example.COM", True),
        ("anna", "anna+shop@example.com", True),
        ("anna", "anna@xn--bcher-kva.example", True),
        ("anna", "anna@bücher.example", True),
        ("anna", '"anna"@example.com', True),
        ("anna", "bob@example.com", False),
        ("anna", "anna@example.org", False),
        ("anna", "anna@sub.example.com", False),
        ("anna", "annab@example.com", False),
        ("anna", "bob+anna@example.com", False),
        ("anna", "+anna@example.com", False),
        ("anna", "sales@example.com", True),
        ("bob", "sales@example.com", True),
        ("carol", "sales@example.com", False),
        ("anna", "sales+eu@example.com", True),
        ("bob", "chief@bücher.example", True),
        ("anna", "anyone@shop.example", True),
        ("bob", "anyone@shop.example", False),
        ("anna", "press@corp.example", True),
        ("anna", "Press+x@corp.example", True),
        ("anna", "other@corp.example", False),
        ("anna", "x@anna.example", True),
        ("anna", "x@sub.anna.example", False),
        ("ANNA", "press@corp.example", True),
        ("bob", "press@corp.example", False),
        ("ci", "robot+build@example.com", True),
        ("ci", "robot@example.com", False),
        ("ci", "robot+deploy@example.com", False),
        ("anna@example.com", "anna@example.com", True),
        ("anna@example.com", "anna+x@example.com", True),
        ("anna@example.com", "anna@bücher.example", False),
        ("anna@example.com", "sales@example.com", True),
        ("anna@elsewhere.example", "Anna@elsewhere.example", True),
        ("anna@elsewhere.example", "anna+x@elsewhere.example", True),
        ("anna@elsewhere.example", "anna@example.com", False),
        ("anna", "anna@[192.0.2.1]", False),
    ],
)
def test_what_is_whose_own(user: str, address: str, own: bool) -> None:
    assert SENDERS.owns(user, parse_address(address)) is own


@pytest.mark.parametrize(
    ("user", "address", "own"),
    [
        ("anna-maria", "anna-maria@example.com", True),
        ("anna-maria", "Anna-Maria@example.com", True),
        ("anna-maria", "anna@example.com", False),
        ("anna-maria", "anna-shop@example.com", False),
        ("anna-maria", "sales@example.com", True),
        ("anna-maria", "chief@example.com", False),
        ("anna-maria", "anna-maria@example.org", False),
        ("anna-maria@example.com", "anna-maria@example.com", True),
        ("anna-maria@example.com", "anna@example.com", False),
        ("anna", "anna@example.com", True),
        ("anna", "anna-shop@example.com", True),
        ("anna", "anna-maria@example.com", False),
        ("anna", "chief@example.com", True),
        ("anna", "sales@example.com", False),
    ],
)
def test_a_user_whose_mailbox_has_the_delimiter_in_its_name_is_no_other_user(
    user: str, address: str, own: bool
) -> None:
    aliases = (
        AliasLine(1, "sales", (Address("anna-maria", "example.com"),)),
        AliasLine(2, "chief", (Address("anna", "example.com"),)),
    )
    listed = frozenset({"anna@example.com", "anna-maria@example.com"})
    domains = Domains(frozenset({"example.com"}), listed, delimiter="-", alias_lines=aliases)
    assert SenderAddresses(domains).owns(user, parse_address(address)) is own


def test_the_null_sender_is_everybodys() -> None:
    assert SENDERS.owns("anna", NULL)


def test_a_sender_map_is_read_with_comments_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "senders"
    path.write_text(
        "# names\nAnna   press@Corp.example, @anna.example  # both\n\n"
        'anna "a b"@x.example\nci r+b@x.example\n'
    )
    assert read_sender_map(str(path)) == {
        "anna": frozenset({"press@corp.example", "@anna.example", "a b@x.example"}),
        "ci": frozenset({"r+b@x.example"}),
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("anna", 'found "anna": must be a user, a blank, and addresses with commas between'),
        ("anna a@x.example b@x.example", "must be a user, a blank, and addresses with commas between"),
        ("anna a@x.example,", "must be a user, a blank, and addresses with commas between"),
        ("anna example.com", 'found "example.com": must be an address or @domain'),
        ("anna a@x.example, b@", 'found "b@": must be an address or @domain'),
        ("anna: a@x.example", "colon"),
    ],
)
def test_a_fault_of_a_sender_map_has_its_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "senders"
    path.write_text(f"bob b@x.example\n{line}\n")
    with pytest.raises(ConfigError) as raised:
        read_sender_map(str(path))
    (fault,) = raised.value.faults
    assert (fault.place, fault.key) == (str(path), "line 2")
    assert problem in fault.problem


def test_without_the_file_that_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read_sender_map(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("sender", "user", "ip", "settings", "refused"),
    [
        ("anna@example.com", "anna", "198.51.100.7", {}, False),
        ("bob@example.com", "anna", "198.51.100.7", {}, True),
        ("", "anna", "198.51.100.7", {}, False),
        ("bob@example.com", "anna", "198.51.100.7", {"senders": Senders.ANY}, False),
        ("bob@example.com", None, "192.0.2.7", {}, False),
        ("bob@example.com", "anna", "192.0.2.7", {}, False),
    ],
)
def test_the_sender_of_a_user_is_the_users_own(
    sender: str, user: str | None, ip: str, settings: dict[str, object], refused: bool
) -> None:
    answer = rules(**settings).refuse_sender(client(user, ip), parse_address(sender) if sender else NULL)
    assert (answer is not None) is refused
    if answer is not None:
        assert str(answer.reply) == "553 5.7.1 You may not send as this address"


def test_whose_mail_is_submitted() -> None:
    made = rules()
    assert made.concern(client(None), Role.SUBMISSION)
    assert made.concern(client("anna"), Role.MX)
    assert made.concern(client(None, "192.0.2.7"), Role.MX)
    assert not made.concern(client(None), Role.MX)


# The header


def submitted(
    message: bytes, *, user: str | None = "anna", sender: str = "anna@example.com", **settings: object
):  # type: ignore[no-untyped-def]
    """What is stored of a message, and the reply where it is refused."""
    header = rules(**settings).message(client(user), parse_address(sender) if sender else NULL, "Q1")
    stored = b"".join(header.reader.feed(message[at : at + 7]) for at in range(0, len(message), 7))
    return stored + header.reader.finish(), header.refusal and header.refusal.reply


DATE = b"Date: Sun, 23 Nov 2025 01:40:00 +0000\r\n"
FROM = b"From: anna@example.com\r\n"
ID = b"Message-ID: <Q1@smtp.example.com>\r\n"


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        (b"Subject: x\r\n\r\nbody\r\n", b"Subject: x\r\n" + DATE + FROM + ID + b"\r\nbody\r\n"),
        (b"body\r\n", DATE + FROM + ID + b"\r\nbody\r\n"),
        (b"", DATE + FROM + ID),
        (b"\r\n", DATE + FROM + ID + b"\r\n"),
        (b"DATE :\r\n x\r\n\r\n", b"DATE:\r\n x\r\n" + FROM + ID + b"\r\n"),
        (b"From: anna@example.com\r\n\r\n", FROM + DATE + ID + b"\r\n"),
        (
            b"message-id: <a@b>\r\n\r\nDate: x\r\n",
            b"message-id: <a@b>\r\n" + DATE + FROM + b"\r\nDate: x\r\n",
        ),
        (DATE + FROM + ID + b"\r\nx\r\n", DATE + FROM + ID + b"\r\nx\r\n"),
        (
            b"Bcc: a@b.c\r\n\t, d@e.f\r\nTo: x@y.z\r\nRESENT-bcc :q\r\nbcc:\r\n\r\nBcc: body\r\n",
            b"To: x@y.z\r\n" + DATE + FROM + ID + b"\r\nBcc: body\r\n",
        ),
        (b"Bcc: a@b.c\r\n\tno header\r\n", DATE + FROM + ID),
        (
            b"To: x@y.z\r\nwords\r\nBcc: body\r\n",
            b"To: x@y.z\r\n" + DATE + FROM + ID + b"\r\nwords\r\nBcc: body\r\n",
        ),
        (b"From x y\r\nTo: z\r\n", b"X-Mailbox-Line: From x y\r\nTo: z\r\n" + DATE + FROM + ID),
    ],
)
def test_what_is_missing_is_added_and_blind_copies_stay_blind(message: bytes, stored: bytes) -> None:
    assert submitted(message) == (stored, None)
    assert submitted(message, user=None) == (stored, None)


def test_from_is_the_sender_of_the_envelope_and_none_where_that_is_null() -> None:
    stored, _ = submitted(b"\r\n", sender='"a b+x"@example.com', user=None)
    assert b'\r\nFrom: "a b+x"@example.com\r\n' in stored
    assert b"From" not in submitted(b"\r\n", sender="")[0]


def test_with_both_off_nothing_is_changed() -> None:
    message = b"Bcc: x\r\nwords\r\nFrom : y\r\n\r\nbody\r\n"
    off = {"add_missing": False, "remove_bcc": False}
    assert submitted(message, user=None, **off) == (message, None)
    assert submitted(message, senders=Senders.ANY, **off) == (message, None)
    kept, _ = submitted(message, user=None, add_missing=False)
    assert kept == b"\r\n" + message.partition(b"\r\n")[2]


NOT_OWN, UNREADABLE = replies.AUTHOR_NOT_OWN, replies.AUTHOR_UNREADABLE


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        (b"From: anna@example.com\r\n", None),
        (b"From: Anna <Anna+x@EXAMPLE.com>\r\nSender: sales@example.com\r\n", None),
        (b"From: anna@example.com, sales@example.com\r\n", None),
        (b"From: Us: anna@example.com, press@corp.example;\r\n", None),
        (b"From: =?utf-8?q?boss=40corp.example?= <anna@example.com>\r\n", None),
        (b"From: anna@xn--bcher-kva.example\r\n", None),
        ("From: Änne <anna@bücher.example>\r\n".encode(), None),
        (b"from\t:\r\n (x)\r\n\tanna (y) @ example . com\r\n", None),
        (b"Reply-To: boss@corp.example\r\nTo: boss@corp.example\r\nFrom: anna@example.com\r\n", None),
        (b"X-From: boss@corp.example\r\nFromage: boss@corp.example\r\n", None),
        (b"\r\nFrom: boss@corp.example\r\n", None),
        (b"words\r\nFrom: boss@corp.example\r\n", None),
        (b"From: anna@example.com\r\nwords\r\nFrom: boss@corp.example\r\n", None),
        (b"From: boss@corp.example\r\n", NOT_OWN),
        (b"fRoM:boss@corp.example\r\n", NOT_OWN),
        (b"From : boss@corp.example\r\n", NOT_OWN),
        (b"From \t :\r\n boss@corp.example\r\n", NOT_OWN),
        (b"From: anna@example.com\r\nFrom: boss@corp.example\r\n", NOT_OWN),
        (b"From: anna@example.com\r\nFROM : boss@corp.example\r\n", NOT_OWN),
        (b"From: anna@example.com,\r\n boss@corp.example\r\n", NOT_OWN),
        (b"From: Us: anna@example.com, boss@corp.example;\r\n", NOT_OWN),
        (b"From: anna@example.com <boss@corp.example>\r\n", NOT_OWN),
        (b"From: boss@corp.example <anna@example.com>\r\n", NOT_OWN),
        (b'From: "anna@example.com" <boss@corp.example>\r\n', NOT_OWN),
        (b"From: (anna@example.com) boss@corp.example\r\n", NOT_OWN),
        (b"From: boss(anna@example.com)@corp.example\r\n", NOT_OWN),
        (b"From: <@example.com:boss@corp.example>\r\n", NOT_OWN),
        (b'From: "anna@example.com"@corp.example\r\n', NOT_OWN),
        (b"From: boss@[192.0.2.1]\r\n", NOT_OWN),
        ("From: anna@b\u00fcch\u0435r.example\r\n".encode(), NOT_OWN),  # with a Cyrillic letter
        (b"From: anna@example.com\r\nSender: boss@corp.example\r\n", NOT_OWN),
        (b"Sender:boss@corp.example\r\nFrom: anna@example.com\r\n", NOT_OWN),
        (b"From:\r\n", UNREADABLE),
        (b"From: anna\r\n", UNREADABLE),
        (b"From: undisclosed-recipients:;\r\n", UNREADABLE),
        (b"From: =?utf-8?q?anna=40example.com?=\r\n", UNREADABLE),
        (b"From: anna@example.com boss@corp.example\r\n", UNREADABLE),
        (b"From: <anna@example.com> <boss@corp.example>\r\n", UNREADABLE),
        (b"From: anna@example.com, <boss@corp.example\r\n", UNREADABLE),
        (b"From: (anna@example.com\r\n", UNREADABLE),
        (b"From: anna@example.com\x1b\r\n", UNREADABLE),
        (b"From: anna@example.com," + b" " * 20_000 + b"boss@corp.example\r\n", UNREADABLE),
        (b"From: anna@example.com\r\nSender:\r\n", UNREADABLE),
        (b"From: anna@example.com\r\nSender: x\r\n", UNREADABLE),
    ],
)
def test_the_author_of_a_user_is_the_users_own_in_every_spelling(
    fields: bytes, refused: replies.Reply | None
) -> None:
    message = fields + b"\r\nbody\r\n"
    assert submitted(message)[1] is refused
    assert submitted(message, add_missing=False, remove_bcc=False)[1] is refused
    assert submitted(message, user=None)[1] is None
    assert submitted(message, senders=Senders.ANY)[1] is None


def test_only_so_many_authors_are_looked_up() -> None:
    def header(count: int) -> bytes:
        return b"".join(b"From: anna+%d@example.com\r\n" % number for number in range(count)) + b"\r\n"

    assert submitted(header(MAX_AUTHORS))[1] is None
    assert submitted(header(MAX_AUTHORS + 1))[1] is UNREADABLE
    same = b"From: anna@example.com\r\n"
    assert submitted(same * 500 + b"\r\n")[1] is None
    assert submitted(same * 1000 + b"\r\n")[1] is UNREADABLE


FIELDS = st.lists(
    st.sampled_from(
        [
            *(
                b"From: anna@example.com\r\n",
                b"From : boss@corp.example\r\n",
                b"from:\r\n boss@corp.example\r\n",
            ),
            *(b"Sender: anna@example.com\r\n", b"SENDER\t:boss@corp.example\r\n", b" boss@corp.example\r\n"),
            *(
                b"\r\n",
                b"words\r\n",
                b"From boss@corp.example\r\n",
                b">From boss\r\n",
                b"Bcc: x\r\n",
                b"X: y\r\n",
            ),
            b"Return-Path: x\r\n",
        ]
    ),
    max_size=6,
).map(b"".join)


@given(FIELDS)
def test_what_is_taken_shows_no_reader_another_author(message: bytes) -> None:
    stored, refused = submitted(message)
    if refused is None:
        for parsed in (
            email.message_from_bytes(stored),
            email.message_from_bytes(b"Received: from a\r\n" + stored),
        ):
            assert parsed.get_all("From")
            for name in ("From", "Sender"):
                assert "boss" not in "".join(parsed.get_all(name) or ())
            assert not parsed.get_all("Bcc")
        # Nor one that goes by the empty line alone, or takes any line with a colon for a field.
        header = stored.partition(b"\r\n\r\n")[0] if not stored.startswith(b"\r\n") else b""
        for line in header.replace(b"\r\n ", b" ").split(b"\r\n"):
            if line.lower().startswith((b"from", b"sender")):
                assert b"boss" not in line


# A session


class Witness(Scripted):
    """Replaces the sender, and notes what it is shown of the message."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.content = b""

    def mail(self, session: Any, transaction: Any) -> Any:
        transaction.sender = Address("rewritten", "srs.example")
        return CONTINUE

    def message(self, session: Any, transaction: Any, message: Any) -> Any:
        self.names = [name for name, _ in message.headers.items()]
        with message.open() as content:
            self.content = content.read()
        return CONTINUE


@pytest.mark.parametrize("size", [10, 200_000])
@ensureDeferred
async def test_policies_see_a_submitted_message_as_it_will_be_sent(place: Place, size: int) -> None:
    place.policy = witness = Witness()
    place.submission = rules()
    sent = place.connect("192.0.2.7")
    sent.envelope()
    body = b"x" * 70 + b"\r\n"
    sent.send(b"Bcc: secret@example.com\r\nSubject: x\r\n\r\n" + body * (size // 72 + 1) + b".\r\n")
    (reply,) = await reply_of(sent)
    assert reply.startswith("250 "), reply
    assert witness.names == ["Subject", "Date", "From", "Message-ID"]
    with await place.spool.open_content(reply.split()[-1]) as content:
        stored = content.read()
    assert stored.endswith(b"\r\n" + witness.content)
    assert b"secret" not in stored
    # From is the sender that the client named, whatever a policy made of it.
    assert b"rewritten" not in witness.content


@ensureDeferred
async def test_submitted_mail_that_goes_round_is_a_loop_too(place: Place) -> None:
    place.submission = rules()
    hop = b"Received: from a.test by smtp.example.com; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    for hops, reply in ((2, "250 "), (3, "554 5.4.6 ")):
        sent = place.connect("192.0.2.7")
        sent.envelope()
        said = sent.send(hop * hops + b"\r\nx\r\n.\r\n") or await reply_of(sent)
        assert said[0].startswith(reply)
