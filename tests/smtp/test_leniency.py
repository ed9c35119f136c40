"""What is forgiven and what is not, for users' and relays' clients and for any others.

RFC 5321 §4.1.1, RFC 5321 §4.1.1.1, RFC 5321 §4.1.1.2, RFC 5321 §4.1.1.11, RFC 5321 §4.1.2, RFC 5321 §2.3.8,
RFC 5321 §4.5.3.1.1, RFC 3461 §4.2, RFC 3461 §4.4, RFC 3461 §5.2.1, RFC 4954 §5, RFC 8689 §4.2.
"""

from __future__ import annotations

import email.utils
import itertools
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.errors import AddressSyntaxError
from elemta.smtp import grammar, lenient_grammar
from elemta.smtp.events import Forgave, HeloQuestion, MailQuestion, RcptQuestion
from elemta.smtp.framing import first_letters
from elemta.smtp.leniency import FORGIVEN, Kinds, Leniency
from elemta.smtp.lenient_grammar import Reading
from elemta.smtp.path import parse_address
from elemta.smtp.reply import Reply
from tests.smtp.transcript import DATA, ENVELOPE, HELLO, QUEUED, TLS, Conversation, converse, settings

LONG = "v" * 70
LOCAL = "home.test"


def relays(ip: object) -> bool:
    return True


def conversation(*, relayer: bool, strict: bool = False) -> Conversation:
    return Conversation.begin(
        tls=TLS, strict=strict, **({"may_relay": relays} if relayer else {}), max_errors=1000
    )


def ask(line: bytes, *, relayer: bool = False, strict: bool = False, end: bytes = b"\r\n") -> Conversation:
    """A session that has got this line, where it belongs."""
    told = conversation(relayer=relayer, strict=strict)
    verb = line.strip()[:4].upper()
    if verb not in (b"HELO", b"EHLO"):
        told.send(b"EHLO x\r\n")
    if verb == b"RCPT":
        told.send(b"MAIL FROM:<> SMTPUTF8\r\n")
    told.events.clear()
    told.said()
    told.send(line + end)
    return told


def kinds_of(told: Conversation) -> list[Leniency]:
    return [kind for event in told.events if isinstance(event, Forgave) for kind in event.kinds]


def sender_of(told: Conversation) -> Address:
    (asked,) = [event for event in told.events if isinstance(event, MailQuestion)]
    return asked.transaction.sender


B, D, U, P = Leniency.BLANKS, Leniency.DOTS, Leniency.UNDERSCORE, Leniency.UNKNOWN_PARAMETER
N, R, L = Leniency.NO_DOMAIN, Leniency.NO_BRACKETS, Leniency.LONG_LOCAL_PART
A_B = Address("a", "b.test")
ROOT = Address("root", LOCAL)

SENDERS: list[tuple[str, Address, set[Leniency]]] = [
    ("MAIL FROM:a@b.test", A_B, {R}),
    ("MAIL FROM: a@b.test", A_B, {R}),
    ("MAIL FROM:\ta@b.test SIZE=10", A_B, {R, B}),
    ("mail from:a@[192.0.2.1]", Address("a", "[192.0.2.1]"), {R}),
    ("MAIL FROM:a@[IPv6:2001:db8::1] BODY=8BITMIME", Address("a", "[IPv6:2001:db8::1]"), {R}),
    ("MAIL  FROM:<a@b.test>", A_B, {B}),
    ("MAIL FROM :<a@b.test>", A_B, {B}),
    ("MAIL FROM : <a@b.test>", A_B, {B}),
    ("MAIL\tFROM:<a@b.test>", A_B, {B}),
    ("MAIL FROM:\t<a@b.test>\tSIZE=10\t", A_B, {B}),
    (" MAIL FROM:<a@b.test>", A_B, {B}),
    ("\t\tMAIL \t FROM \t:\t <\t a@b.test \t>\t", A_B, {B}),
    ("MAIL FROM:< a@b.test>", A_B, {B}),
    ("MAIL FROM:<a@b.test >", A_B, {B}),
    ("MAIL FROM:< >", NULL, {B}),
    ("MAIL FROM:<\t> SIZE=1", NULL, {B}),
    ("MAIL FROM:<user..name@b.test>", Address("user..name", "b.test"), {D}),
    ("MAIL FROM:<user.@b.test>", Address("user.", "b.test"), {D}),
    ("MAIL FROM:<.user@b.test>", Address(".user", "b.test"), {D}),
    ("MAIL FROM:<...a...b...@b.test>", Address("...a...b...", "b.test"), {D}),
    (f"MAIL FROM:<{LONG}@b.test>", Address(LONG, "b.test"), {L}),
    (f"MAIL FROM:<{'a' * 256}@b.test>", Address("a" * 256, "b.test"), {L}),
    (f'MAIL FROM:<"{LONG} x"@b.test>', Address(LONG + " x", "b.test"), {L}),
    (f"MAIL FROM:<{LONG}..@{'c' * 60}.test>", Address(LONG + "..", "c" * 60 + ".test"), {L, D}),
    ("MAIL FROM:<root@db_1.internal>", Address("root", "db_1.internal"), {U}),
    ("MAIL FROM:<root@_db._tcp_.internal.>", Address("root", "_db._tcp_.internal"), {U}),
    ("MAIL FROM:root..@db_1.internal", Address("root..", "db_1.internal"), {R, D, U}),
    ("MAIL FROM:<a@b.test> ENVID=QQ314159=", A_B, {Leniency.ENVID}),
    ("MAIL FROM:<a@b.test> ENVID=", A_B, {Leniency.ENVID}),
    ("MAIL FROM:<a@b.test> ENVID", A_B, {Leniency.ENVID}),
    ("MAIL FROM:<a@b.test> ENVID=a+b", A_B, {Leniency.ENVID}),
    (f"MAIL FROM:<a@b.test> ENVID={'x' * 101}", A_B, {Leniency.ENVID}),
    ("MAIL FROM:<a@b.test> AUTH=", A_B, {Leniency.AUTH}),
    ("MAIL FROM:<a@b.test> AUTH=<a@b.test>", A_B, {Leniency.AUTH}),
    ("MAIL FROM:<a@b.test> AUTH=anna", A_B, {Leniency.AUTH}),
    ("MAIL FROM:<a@b.test> X-COLOUR=blue", A_B, {P}),
    ("MAIL FROM:<a@b.test> XVERP", A_B, {P}),
    ("MAIL FROM:<a@b.test> XVERP=-= SIZE=10", A_B, {P}),
    ("MAIL FROM:<a@b.test> NOTIFY=NEVER", A_B, {P}),
    ("MAIL FROM:a@b.test X-COLOUR=blue", A_B, {R, P}),
]


@pytest.mark.parametrize(("line", "sender", "kinds"), SENDERS)
@pytest.mark.parametrize("relayer", [False, True])
def test_a_sender_is_taken_as_it_is_meant(
    line: str, sender: Address, kinds: set[Leniency], relayer: bool
) -> None:
    told = ask(line.encode(), relayer=relayer)
    assert told.said() == "250 2.1.0 Sender OK\r\n"
    assert sender_of(told) == sender
    assert set(kinds_of(told)) == kinds
    strict = ask(line.encode(), relayer=relayer, strict=True)
    assert strict.said().startswith("5")
    assert not kinds_of(strict)


RECIPIENTS: list[tuple[str, Address, set[Leniency]]] = [
    ("RCPT TO:a@b.test", A_B, {R}),
    ("RCPT TO:postmaster", Address("postmaster", LOCAL), {R}),
    ("RCPT TO:< Postmaster >", Address("postmaster", LOCAL), {B}),
    ("RCPT TO: a@b.test NOTIFY=NEVER", A_B, {R}),
    ("RCPT TO:< a@b.test >", A_B, {B}),
    ("RCPT  TO : <a@b.test>", A_B, {B}),
    ("RCPT TO:<user..name@mobile.test>", Address("user..name", "mobile.test"), {D}),
    ("RCPT TO:<ü..n@b.test>", Address("ü..n", "b.test"), {D}),
    ("RCPT TO:<a@bü_cher.test>", None, set()),  # type: ignore[list-item]
    ("RCPT TO:<a@x_1.bücher.test>", Address("a", "x_1.bücher.test"), {U}),
    ("RCPT TO:<a@b.test> ORCPT=rfc822;prvs=12=a@b", A_B, {Leniency.ORCPT}),
    ("RCPT TO:<a@b.test> ORCPT=a@b.test", A_B, {Leniency.ORCPT}),
    ("RCPT TO:<a@b.test> ORCPT=rfc822;", A_B, {Leniency.ORCPT}),
    (f"RCPT TO:<a@b.test> ORCPT=rfc822;{'x' * 501}", A_B, {Leniency.ORCPT}),
    ("RCPT TO:<a@b.test> ORCPT NOTIFY=FAILURE", A_B, {Leniency.ORCPT}),
    ("RCPT TO:<a@b.test> SIZE=1", A_B, {P}),
]


@pytest.mark.parametrize(("line", "address", "kinds"), RECIPIENTS)
def test_a_recipient_is_taken_as_it_is_meant(line: str, address: Address, kinds: set[Leniency]) -> None:
    told = ask(line.encode())
    if address is None:
        assert told.said() == "501 5.1.3 Bad recipient address syntax\r\n"
        return
    assert told.said() == "250 2.1.5 Recipient OK\r\n"
    (asked,) = [event for event in told.events if isinstance(event, RcptQuestion)]
    assert asked.recipient.address == address
    assert asked.recipient.orcpt is None
    assert set(kinds_of(told)) == kinds
    assert ask(line.encode(), strict=True).said().startswith("5")


@pytest.mark.parametrize(
    ("line", "address", "orcpt"),
    [
        ("RCPT TO:<root>", ROOT, "rfc822;root"),
        ("RCPT TO:root", ROOT, "rfc822;root"),
        ("RCPT TO: < www-data >", Address("www-data", LOCAL), "rfc822;www-data"),
        ("RCPT TO:<root> ORCPT=rfc822;x@y", ROOT, "rfc822;x@y"),
        ("RCPT TO:<anna+tag>", Address("anna+tag", LOCAL), "rfc822;anna+tag"),
        ("RCPT TO:<a..b>", Address("a..b", LOCAL), "rfc822;a..b"),
    ],
)
def test_a_name_without_a_domain_is_one_of_this_host_for_those_who_may_relay(
    line: str, address: Address, orcpt: str
) -> None:
    told = ask(line.encode(), relayer=True)
    assert told.said() == "250 2.1.5 Recipient OK\r\n"
    (asked,) = [event for event in told.events if isinstance(event, RcptQuestion)]
    assert asked.recipient.address == address
    assert asked.recipient.orcpt == orcpt
    assert N in kinds_of(told)
    assert ask(line.encode()).said() == "501 5.1.3 Bad recipient address syntax\r\n"
    assert ask(line.encode(), relayer=True, strict=True).said().startswith("501 5.1.3")


@pytest.mark.parametrize("line", ["MAIL FROM:<root>", "MAIL FROM:root", "MAIL FROM:root SIZE=10"])
def test_a_sender_without_a_domain_is_one_of_this_host_for_those_who_may_relay(line: str) -> None:
    told = ask(line.encode(), relayer=True)
    assert told.said() == "250 2.1.0 Sender OK\r\n"
    assert sender_of(told) == ROOT
    assert ask(line.encode()).said() == "501 5.1.7 Bad sender address syntax\r\n"


def test_a_user_that_logged_in_may_leave_the_domain_out() -> None:
    told = conversation(relayer=False)
    told.send(b"EHLO x\r\nAUTH PLAIN AGEAYg==\r\nMAIL FROM:<root>\r\nRCPT TO:<root>\r\n")
    assert told.said().endswith("250 2.1.0 Sender OK\r\n250 2.1.5 Recipient OK\r\n")


# In each of these two readers could see two addresses, or some reader another one than Elemta does.
AMBIGUOUS = [
    *("<a@b.test", "a@b.test>", "<a@b.test>>", "<<a@b.test>>", "<a@b.test>,<c@d.test>", "a@b.test,c@d.test"),
    *("<a@b.test> <c@d.test>", "a@b.test c@d.test", "<a@b.test>c@d.test", "<a@b.test c@d.test>"),
    *(
        "<a b@c.test>",
        "<a @b.test>",
        "<a@ b.test>",
        "<a\t@b.test>",
        "a @b.test",
        "<a@b@c.test>",
        "a@b@c.test",
    ),
    *('"a"@b.test', '"a b"@c.test', '<a"b@c.test>', '<"a"b@c.test>', '<"a@b.test>', '<"a\tb"@c.test>'),
    *('<"a"@b.test"@c.test>', '<"a\\"@b.test>', '<"">', '<""@b.test>', '"', '<">', '<" "'),
    *("@x.test:a@b.test", "<@x.test:a..b@c.test>", "<@x.test>", "<@x.test:a@b@c.test>", "<x.test:a@b.test>"),
    *("Anna <a@b.test>", "<Anna <a@b.test>>", "(x) <a@b.test>", "<a(x)@b.test>", "<mailto:a@b.test>"),
    *("<a@b.test>;", "<a@b.test>SIZE=1", "<a@b.test>X", "<a;b@c.test>", "<a:b@c.test>", "<a,b@c.test>"),
    *("<a@b_.test,c.test>", "<a@.test>", "<a@b..test>", "<a@>", "<@>", "<@b.test>", "<a@-b_.test>"),
    *("<.@b.test>", "<..@b.test>", "<...@b.test>", "a@", "@b.test", "@", "<a\\@b.test>", "<a[1]@b.test>"),
    *("<a@[192.0.2.1]x>", "<a@[192.0.2.1", "<a@192.0.2.1]>", "<a@[x_y]>", "<a..b@[192.0.2.256]>"),
    *("<a%b>", "<a!b>", "a%b", "a!b", "<a:b>", "x!y!z", "root bob", "root bob=x", "root X-A=1", "SIZE=10"),
    *("", " ", "<root,bob>", "<root bob>", "<a=b>"),
    *(
        "<a@b.test> SIZE=1 SIZE=1",
        "<a@b.test> X X",
        "<a@b.test> ENVID== ENVID=a",
        "<a@b.test> ORCPT== ORCPT==",
    ),
    *(
        "<a@b.test> =x",
        "<a@b.test> X_Y=1",
        "<a@b.test> -",
        "<a@b.test> a,b",
        "<a@b.test> X;Y",
        "a@b.test bob",
    ),
    *("<a@b.test> REQUIRETLS", "<a@b.test> RRVS=2026-01-01T00:00:00Z"),
    f"<{'a' * 257}@b.test>",
    f"<a@{'b' * 64}_.test>",
]


@pytest.mark.parametrize("path", AMBIGUOUS)
@pytest.mark.parametrize("verb", ["MAIL FROM:", "RCPT TO:"])
@pytest.mark.parametrize("relayer", [False, True])
def test_what_two_readers_could_read_in_two_ways_is_refused(path: str, verb: str, relayer: bool) -> None:
    if verb == "RCPT TO:" and "ENVID" in path:
        return
    told = ask(f"{verb}{path}".encode(), relayer=relayer)
    said = told.said()
    assert said[:3] in ("501", "555"), said
    assert said.count("\r\n") == 1
    assert not kinds_of(told)
    assert not any(isinstance(event, (MailQuestion, RcptQuestion)) for event in told.events)


@pytest.mark.parametrize("octet", [b"\0", b"\x01", b"\r", b"\x0b", b"\x1b", b"\x7f"])
@pytest.mark.parametrize(
    "place", [b"EHLO a%b", b"EHLO a%", b"%EHLO a", b"MAIL FROM:<a%@b.test>", b"MAIL FROM:<a@b.test>%"]
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_control_other_than_tab_is_never_forgiven(octet: bytes, place: bytes, end: bytes) -> None:
    told = ask(place.replace(b"%", octet), end=end)
    said = told.said()
    if octet == b"\r" and place.endswith(b"%") and end == b"\n":
        assert said.startswith("250"), "this is a CRLF"
        return
    assert said == "501 5.5.2 Control characters are not allowed in commands\r\n"
    assert not kinds_of(told)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b"Annas PC", "Annas PC"),
        ("Müller-PC".encode(), "Müller-PC"),
        ("Müller-PC".encode("latin-1"), "Müller-PC"),
        (b"(none)", "(none)"),
        (b"my_host!", "my_host!"),
        (b"<anna>", "<anna>"),
        (b'"x"', '"x"'),
        ("パソコン".encode(), "パソコン"),
        ("パソコン".encode("shift-jis"), "\\x83p\\x83\\\\x83R\\x83\\x93"),
        ("Анна".encode("cp1251"), "Àííà"),
        (b"a\tb", "a b"),
        (b"  x  ", "x"),
        (("é" * 255).encode(), "é" * 255),
        ("a\u00a0b".encode(), "a\u00a0b"),
    ],
)
@pytest.mark.parametrize("verb", [b"HELO ", b"EHLO ", b"ehlo\t"])
def test_any_printable_helo_name_is_taken(name: bytes, kept: str, verb: bytes) -> None:
    told = ask(verb + name)
    assert told.said().startswith("250")
    (asked,) = [event for event in told.events if isinstance(event, HeloQuestion)]
    assert asked.session.helo == kept
    assert kinds_of(told)


@pytest.mark.parametrize(
    "name", [b"", b" ", b"a" * 256, "a\u202eb".encode(), "a\u0085b".encode(), "a\u2028b".encode(), b"a\0b"]
)
def test_a_helo_name_that_can_not_be_shown_is_refused(name: bytes) -> None:
    told = ask(b"EHLO " + name)
    assert told.said().startswith("501 5.5.")
    assert not kinds_of(told)


@pytest.mark.parametrize(
    "line", [b"MAIL FROM:<\xe9@b.test>", b"NOOP \xe9", b"\xe9", b"RCPT TO:<\xff@b.test>"]
)
def test_octets_that_are_no_utf_8_are_refused_outside_of_a_helo_name(line: bytes) -> None:
    assert ask(line).said() == "501 5.6.7 Command is neither ASCII nor UTF-8\r\n"


def test_commands_that_bare_lfs_end_are_answered_in_order() -> None:
    told = Conversation.begin()
    told.send(b"EHLO test\nNOOP\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\nQUIT\n")
    said = told.said().split("\r\n")
    assert said[0] == "220 mx.test ESMTP Elemta"
    assert said[-5:-1] == [
        "250 2.0.0 OK",
        "250 2.1.0 Sender OK",
        "250 2.1.5 Recipient OK",
        "221 2.0.0 mx.test closing connection",
    ]
    assert kinds_of(told) == [Leniency.BARE_LF] * 4


@pytest.mark.parametrize("line", [r"BDAT 4 LAST\n", r"bdat 4\n", r" BDAT 4\n"])
def test_bdat_needs_its_crlf(line: str) -> None:
    told = converse(ENVELOPE + f"C> {line}hi\\r\\nNOOP\\r\\n\nS: 500 5.5.2 Command lines end with CRLF\nX:\n")
    assert told.session.transaction is None


def test_a_message_that_bare_lfs_end_never_ends() -> None:
    told = converse(ENVELOPE + "C> DATA\\n\nS: 354 Start mail input; end with <CRLF>.<CRLF>\nC> hi\\n\nQ:\n")
    assert not told.closed
    converse(
        ENVELOPE
        + "C> DATA\\n\nS: 354 Start mail input; end with <CRLF>.<CRLF>\n"
        + "C> hi\\n.\\nQUIT\\n\nS: 550 5.6.0 Message contains a bare CR or LF\nX:\n"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("DATA\\t", "354 Start mail input; end with <CRLF>.<CRLF>"),
        ("\\tDATA", "354 Start mail input; end with <CRLF>.<CRLF>"),
        ("RSET \\t", "250 2.0.0 OK"),
        ("  NOOP", "250 2.0.0 OK"),
        ("\\tquit", "221 2.0.0 mx.test closing connection\nX:"),
        ("BDAT\\t4  LAST\\r\\nhi", "250 2.0.0 Message accepted for delivery; queued as Q1"),
    ],
)
def test_spare_blanks_of_any_command(line: str, said: str) -> None:
    converse(ENVELOPE + f"C> {line}\\r\\n\nS: {said}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (r"a\nb\r\n.\r\n", b"a\r\nb\r\n"),
        (r"a\rb\r\n.\r\n", b"a\r\nb\r\n"),
        (r"a\n.\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
        (r"a\r\n..\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
        (r".\nb\r\n.\r\n", b"\r\nb\r\n"),
    ],
)
def test_bare_newlines_of_those_who_may_relay_become_crlf(content: str, message: bytes) -> None:
    told = converse(DATA + f"C> {content}\n" + QUEUED, may_relay=relays)
    assert told.message == message
    assert kinds_of(told) == [Leniency.BARE_NEWLINE]
    refused = "S: 550 5.6.0 Message contains a bare CR or LF\n"
    for changes in ({}, {"may_relay": relays, "strict": True}):
        lone = r"\n.\n" in content or r".\n" in content[:3]
        converse(DATA + f"C> {content}\n" + refused + ("X:\n" if lone else ""), **changes)


def test_bare_newlines_of_a_user_become_crlf_in_chunks_too() -> None:
    script = """
        S: 220 mx.test ESMTP Elemta
        C: HELO x
        S: 250 mx.test
        C: AUTH PLAIN AGEAYg==
        S: 235 2.7.0 Authentication successful
        C: MAIL FROM:<a@b.test>
        S: 250 2.1.0 Sender OK
        C: RCPT TO:<c@home.test>
        S: 250 2.1.5 Recipient OK
        C> BDAT 9 LAST\\r\\na\\nb\\n.\\nc\\r\\n
    """
    told = converse(script.rstrip() + "\n" + QUEUED, tls=TLS)
    assert told.message == b"a\r\nb\r\n.\r\nc\r\n"
    assert kinds_of(told) == [Leniency.BARE_NEWLINE]
    converse(script.rstrip() + "\nS: 550 5.6.0 Message contains a bare CR or LF\n", tls=TLS, strict=True)


def test_a_nul_is_refused_from_those_who_may_relay_too() -> None:
    script = DATA + "C> a\\x00b\\n\\r\\n.\\r\\n\nS: 550 5.6.0 Message contains a NUL octet\n"
    converse(script, may_relay=relays)


def test_the_table_has_a_row_for_each_kind_and_its_examples_are_taken() -> None:
    assert [row.kind for row in FORGIVEN] == list(Leniency)
    for row in FORGIVEN:
        for text in row.examples:
            line = text.replace(r"\t", "\t").replace(r"\n", "").replace(r"\r", "").encode()
            if row.kind is Leniency.BARE_NEWLINE:
                continue
            end = b"\n" if text.endswith(r"\n") else b"\r\n"
            told = ask(line, relayer=row.relayers_only, end=end)
            if row.kind is not Leniency.BLANKS or not line.startswith(b"DATA"):
                assert told.said().startswith("250"), text
            else:
                assert told.said().startswith("503"), text
            assert row.kind in kinds_of(told), text


# Properties

HOW = settings(auth=True)
WORDS = ["a", "b", "root", ".", "..", "@", "b.test", "_", "-", '"', "\\", "<", ">", ",", ":", ";", "%", "!"]
WORDS += [" ", "  ", "(", ")", "[", "]", "[192.0.2.1]", "[IPv6:::1]", "=", "é", "\u00a0", "\uff20", "x" * 70]
WORDS += [
    "SIZE=1",
    " SMTPUTF8",
    " X=1",
    "\t",
    "\0",
    "\r",
    "\n",
    "postmaster",
    "xn--bcher-kva",
    "a..b@c_d.test",
]
arguments = st.lists(st.sampled_from(WORDS), max_size=12).map("".join) | st.text(max_size=40)
framed = st.tuples(
    st.sampled_from(["<", "< ", "", " ", "<@x:", '<"']),
    arguments,
    st.sampled_from([">", " >", "", "> SMTPUTF8"]),
).map("".join)


def paths(arguments: str, relayer: bool) -> tuple[object, object, Kinds, object, object, Kinds]:
    mail_kinds: Kinds = []
    rcpt_kinds: Kinds = []
    return (
        grammar.parse_mail("FROM:" + arguments, HOW),
        lenient_grammar.read_mail("FROM:" + arguments, Reading(HOW, relayer, mail_kinds)),
        mail_kinds,
        grammar.parse_rcpt("TO:" + arguments, HOW),
        lenient_grammar.read_rcpt("TO:" + arguments, Reading(HOW, relayer, rcpt_kinds)),
        rcpt_kinds,
    )


@given(framed | arguments, st.booleans())
@example("<a@b.test>", False)
@example('<"a b"@c.test> SMTPUTF8', True)
@example("<@x.test:a@b.test>", True)
@example("<postmaster>", True)
def test_the_lenient_reader_reads_what_the_strict_one_reads_in_the_same_way(text: str, relayer: bool) -> None:
    strict_mail, lenient_mail, mail_kinds, strict_rcpt, lenient_rcpt, rcpt_kinds = paths(text, relayer)
    if not isinstance(strict_mail, Reply):
        assert lenient_mail == strict_mail
        assert not mail_kinds
    if not isinstance(strict_rcpt, Reply):
        assert lenient_rcpt == strict_rcpt
        assert not rcpt_kinds


@given(framed | arguments, st.booleans())
@example("<a..b@c_d.test>", False)
@example("<.a.@b.test>", False)
@example("a@b.test", False)
@example(f"<{'a' * 256}@b.test>", False)
@example("<root>", True)
def test_what_is_taken_is_one_address_for_other_readers_too(text: str, relayer: bool) -> None:
    for taken in (paths(text, relayer)[1], paths(text, relayer)[4]):
        if taken is None or isinstance(taken, Reply):
            continue
        address = getattr(taken, "sender", None)
        address = taken.address if address is None else address  # type: ignore[attr-defined]
        wire = str(address)
        assert not any(char in wire for char in "<>\r\n\0") or wire.startswith('"')
        if not address:
            assert wire == ""
            continue
        # What goes on is read as the same address by this reader, and by Python's.
        kinds: Kinds = []
        assert parse_address(wire, kinds) == address
        assert str(parse_address(wire, [])) == wire
        assert read_by_python(wire) == (address.local, address.domain)


def read_by_python(wire: str) -> tuple[str, str]:
    """The one address that Python reads in what follows MAIL FROM: or stands in a header."""
    ((name, spec),) = email.utils.getaddresses([f"<{wire}>"])
    assert not name
    local, _, domain = spec.rpartition("@")
    if local.startswith('"') and local.endswith('"'):
        local = local[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return local, domain


@given(
    st.lists(st.sampled_from(["a", "b1", ".", "..", "_", "x" * 60, "+", "=", "é"]), min_size=1, max_size=6)
)
def test_a_local_part_with_dots_is_carried_as_it_was_written(parts: list[str]) -> None:
    local = "".join(parts)
    try:
        address = parse_address(f"{local}@b.test", [])
    except AddressSyntaxError:
        assert not local.strip(".") or len(local.encode()) > 256
        return
    assert str(address) == f"{local}@b.test"
    assert address == Address(local, "b.test")
    assert hash(address) == hash(Address(local, "b.test"))


@given(st.binary(max_size=60), st.booleans(), st.integers(1, 61))
@example(b"EHLO \xff\n", False, 61)
@example(b"MAIL FROM:<root>\n", True, 5)
def test_any_octets_get_the_same_answer_however_they_are_cut(line: bytes, relayer: bool, cut: int) -> None:
    # What comes together with a command that ends a group is refused, and what comes later is not.
    assume(first_letters(line) not in (b"STAR", b"DATA"))
    answers = []
    for pieces in ([line + b"\r\n"], [line[:cut], line[cut:] + b"\r\n"]):
        told = conversation(relayer=relayer)
        for piece in itertools.filterfalse(lambda piece: not piece, pieces):
            told.send(piece)
        answers.append((told.said(), told.facts_told(), kinds_of(told)))
    assert answers[0] == answers[1]


def outcome(told: Conversation) -> tuple[object, ...]:
    asked = [event for event in told.events if isinstance(event, (MailQuestion, RcptQuestion, HeloQuestion))]
    facts = [(type(event).__name__, event.session.helo) for event in asked]
    transaction = told.session.transaction
    envelope = transaction and (transaction.sender, transaction.parameters, transaction.recipients)
    return told.said(), facts, envelope, told.closed


lines = st.tuples(
    st.sampled_from(
        ["MAIL FROM:", "RCPT TO:", "EHLO ", "HELO ", "NOOP ", "RSET", "BDAT ", "VRFY ", "DATA", ""]
    ),
    framed | arguments,
).map("".join)


@given(lines, st.booleans())
@example("BDAT 0 LAST", False)
@example("EHLO [192.0.2.1]", False)
@example("RCPT TO:<@x.test:a@b.test> NOTIFY=NEVER", True)
def test_what_a_strict_listener_takes_every_listener_takes_in_the_same_way(text: str, relayer: bool) -> None:
    line = text.replace("\n", "").encode()
    strict = outcome(ask(line, relayer=relayer, strict=True))
    if str(strict[0])[:1] in "23":
        assert outcome(ask(line, relayer=relayer)) == strict


def test_a_line_of_quotes_and_tabs_takes_one_pass() -> None:
    kinds: Kinds = []
    began = time.process_time()
    for _ in range(100):
        assert lenient_grammar.text_of(b'MAIL\t"' + b'\\"' * 1000, kinds) is None
    assert time.process_time() - began < 0.5


def test_a_plain_session_is_told_nothing_of_leniency() -> None:
    told = converse(HELLO + "C: MAIL FROM:<a@b.test> SIZE=10 BODY=8BITMIME\nS: 250 2.1.0 Sender OK\n")
    assert not any(isinstance(event, Forgave) for event in told.events)


@pytest.mark.parametrize(
    "line", [b"AUTH  PLAIN AGEAYg==\r\n", b"\tAUTH PLAIN AGEAYg==\n", b"AUTH PLAIN\nAGEAYg==\n"]
)
def test_nothing_of_an_auth_command_is_reported(line: bytes) -> None:
    told = conversation(relayer=False)
    told.send(b"EHLO x\r\n" + line)
    assert told.said().endswith("235 2.7.0 Authentication successful\r\n")
    reported = [event for event in told.events if isinstance(event, Forgave)]
    assert reported
    assert {event.text for event in reported} == {""}
