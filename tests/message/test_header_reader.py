"""Our fields and what a client sent: two things to every reader, and the header ends at one place."""

from __future__ import annotations

import email
import email.message
import re
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from elemta.envelope import Client
from elemta.message.header_edits import EditedHeader
from elemta.message.header_reader import MAX_HELD, HeaderReader, header_size
from elemta.message.headers import read_headers
from elemta.message.trace import added_field, received_field

RECEIVED = received_field(
    hostname="mx.example",
    client=Client(ip="192.0.2.1", helo="client.example"),
    protocol="ESMTP",
    queue_id="4A7",
    at=1_763_862_000.0,
    only_recipient=None,
)
FORGERY = b"\t; dkim=pass header.d=bank.example"
MBOX = b"From a@b.test Mon Jan  1 00:00:00 2024"


def stored(clients: bytes, pieces: int = 0, **options: object) -> bytes:
    """What is stored of a message that comes in pieces of so many octets; 0: whole."""
    reader = HeaderReader(**options)  # type: ignore[arg-type]
    step = pieces or len(clients) or 1
    given_on = [reader.feed(clients[at : at + step]) for at in range(0, len(clients), step)]
    return b"".join(given_on) + reader.finish()


# A reader of this test's own, by lines: RFC 5322 §2.1 and §2.2, and what a server does with a first line.


def is_field(line: bytes) -> bool:
    name, colon, _ = line.partition(b":")
    name = name.rstrip(b" \t")
    # A longer name is in no real message.
    return bool(colon) and 0 < len(name) <= 15_000 and all(33 <= octet <= 126 for octet in name)


def fields_and_rest(message: bytes) -> tuple[list[bytes], bytes]:
    """The lines of the header, each with what continues it; and what comes from the empty line on."""
    lines = re.findall(rb"[^\n]*\n|[^\n]+", message)
    found: list[bytes] = []
    for number, line in enumerate(lines):
        if line == b"\r\n":
            return found, b"".join(lines[number:])
        if line[:1] in (b" ", b"\t") and found:
            found[-1] += line
        else:
            found.append(line)
    return found, b""


def is_return_path(field: bytes) -> bool:
    return is_field(field) and field.partition(b":")[0].rstrip(b" \t").lower() == b"return-path"


def as_it_should_be_stored(clients: bytes) -> bytes:
    lines = re.findall(rb"[^\n]*\n|[^\n]+", clients)
    front = b""
    while lines:
        if is_return_path(lines[0]):
            del lines[0]
            while lines and lines[0][:1] in (b" ", b"\t"):
                del lines[0]
        elif lines[0].lstrip(b">").startswith(b"From ") and not is_field(lines[0]):
            front += b"X-Mailbox-Line: " + lines.pop(0)
        else:
            break
    rest = b"".join(lines)
    if lines and lines[0] != b"\r\n" and not is_field(lines[0]):
        return front + b"\r\n" + rest
    fields, body = fields_and_rest(rest)
    return front + b"".join(field for field in fields if not is_return_path(field)) + body


def fields_and_payload(message: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """What Python's own parser takes for the fields, and for what is behind them."""
    parsed: email.message.Message = email.message_from_bytes(message)
    payload = parsed.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return [(name, str(value)) for name, value in parsed.raw_items()], payload


@pytest.mark.parametrize(
    "message",
    [
        FORGERY + b"\r\nSubject: x\r\n\r\nbody\r\n",
        b" \r\nSubject: x\r\n\r\n",
        b" \t \r\n\r\n",
        b"no header at all\r\n",
        b": no name\r\n",
        b"two words: x\r\n",
        b"S\xc3\xbcbject: x\r\n",
        b"From\r\n",
        b"x" * 70_000,
        b"x" * 70_000 + b": y\r\n",
    ],
)
def test_a_message_whose_first_line_is_no_field_stands_behind_an_empty_line(message: bytes) -> None:
    assert stored(message) == b"\r\n" + message
    assert stored(message, 1) == b"\r\n" + message
    assert read_headers(stored(message)).items() == ()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\r\nbody\r\n",
        b"\r\nReturn-Path: <of-the-body@b.test>\r\n",
        b"Subject: x\r\n\r\nbody\r\n",
        b"Subject:\r\n x\r\n",
        b"Subject \t: x\r\n\r\n",
        b">From: x\r\n\r\n",
        b"From : x\r\n" + FORGERY + b"\r\n",
        b"Subject: x\r\nno field\r\nDate: y\r\n\r\nReturn-Path: z\r\n",
        b"Return-Path-To: x\r\nX-Return-Path: y\r\nX:\r\n Return-Path: z\r\n\r\n",
        b"Subject: x\r\nReturn-Path is what this line is about\r\n\r\n",
    ],
)
def test_a_message_that_begins_with_a_field_or_has_no_header_is_left_as_it_is(message: bytes) -> None:
    assert stored(message) == message
    assert stored(message, 1) == message


@pytest.mark.parametrize("line", [MBOX, b">" + MBOX, b">>" + MBOX, b"From ", b"From a:b"])
@pytest.mark.parametrize(
    ("rest", "kept"),
    [
        (b"Subject: x\r\n\r\nbody\r\n", b"Subject: x\r\n\r\nbody\r\n"),
        (b"\r\nbody\r\n", b"\r\nbody\r\n"),
        (b"", b""),
        (FORGERY + b"\r\n", b"\r\n" + FORGERY + b"\r\n"),
        (b"no header\r\n", b"\r\nno header\r\n"),
        (b"Return-Path: <a@b.test>\r\n\tx\r\nno header\r\n", b"\r\nno header\r\n"),
    ],
)
def test_lines_of_an_mbox_file_become_fields_of_their_own(line: bytes, rest: bytes, kept: bytes) -> None:
    for count in (1, 2):
        wrapped = (b"X-Mailbox-Line: " + line + b"\r\n") * count
        message = (line + b"\r\n") * count + rest
        assert stored(message) == wrapped + kept
        assert stored(message, 1) == wrapped + kept


@pytest.mark.parametrize(
    "field",
    [
        b"Return-Path: <a@b.test>\r\n",
        b"rEtUrN-pAtH:<>\r\n",
        b"RETURN-PATH \t : \r\n",
        b"Return-Path:\r\n <a@b.test>\r\n\t\r\n  more\r\n",
        b"Return-Path: " + b"x" * 100_000 + b"\r\n",
        b"Return-Path:" + b"\r\n x" * 30_000 + b"\r\n",
    ],
)
@pytest.mark.parametrize("front", [b"", b"Subject: x\r\n", b"Subject: x\r\n\ty\r\nA: b\r\n"])
@pytest.mark.parametrize("rest", [b"", b"To: x\r\n", b"\r\n", b"To: x\r\n\r\nReturn-Path: body\r\n"])
def test_a_return_path_of_the_client_is_taken_away(front: bytes, field: bytes, rest: bytes) -> None:
    assert stored(front + field + rest) == front + rest
    assert stored(front + field + field + rest, 1000) == front + rest


LINES = st.sampled_from(
    [
        b"",
        b" ",
        b"\t",
        FORGERY,
        MBOX,
        b">" + MBOX,
        b"From : x",
        b"Subject: x",
        b"Authentication-Results: mx.example; dkim=pass",
        b"Return-Path: <forged@bank.example>",
        b"return-path\t :",
        b"Received: from a",
        b"X :y",
        b":",
        b"words",
        b"--=_x",
    ]
) | st.binary(max_size=30).map(lambda octets: re.sub(rb"[\r\n\0]", b"", octets))
MESSAGES = st.tuples(st.lists(LINES, max_size=7), st.booleans()).map(
    lambda made: b"\r\n".join(made[0]) + (b"\r\n" if made[1] and made[0] else b"")
)
OWN = st.lists(
    st.tuples(
        st.sampled_from(["Authentication-Results", "X-Spam", "From", ">From", "X"]),
        st.text(st.characters(blacklist_categories=["Cc"]), max_size=200) | st.sampled_from(["", "a " * 60]),
    ),
    max_size=3,
)


@given(MESSAGES, st.integers(0, 40))
@example(b"Return-Path: x\r\n\ty\r\n" + FORGERY + b"\r\n", 0)
@example(b"Return-Path: x\r\n" + MBOX + b"\r\nwords\r\n", 1)
def test_what_is_stored_is_what_an_independent_reader_expects(clients: bytes, pieces: int) -> None:
    assert stored(clients, pieces) == as_it_should_be_stored(clients)


@given(OWN, MESSAGES)
@example([("Authentication-Results", "mx.example; dkim=none")], FORGERY)
@example([], b">" + MBOX + b"\r\n" + FORGERY)
@example([], b"Return-Path: x\r\n\ty\r\n" + FORGERY)
def test_readers_see_exactly_our_fields_and_then_what_the_client_sent(
    own: list[tuple[str, str]], clients: bytes
) -> None:
    ours = RECEIVED + b"".join(added_field(name, value) for name, value in own)
    theirs = stored(clients)
    message = ours + theirs
    count = 1 + len(own)

    # A reader of ours: the fields of both in their order, the rest octet for octet.
    assert fields_and_rest(message) == (
        fields_and_rest(ours)[0] + fields_and_rest(theirs)[0],
        fields_and_rest(theirs)[1],
    )
    assert message.endswith(theirs)
    # Python's.
    fields, payload = fields_and_payload(message)
    own_fields, nothing = fields_and_payload(ours)
    assert fields[:count] == own_fields
    assert len(own_fields) == count
    assert not nothing
    if theirs.startswith(b"\r\n"):
        assert fields[count:] == []
        assert payload == theirs[2:]
    elif not re.search(rb"(?:\A|\n)From ", theirs):
        # Python's parser has an opinion of its own on such lines, which only an mbox file should have.
        assert (fields[count:], payload) == fields_and_payload(theirs)
    # What policies and notices are given is the header that the others see.
    size = header_size(theirs)
    seen = fields_and_rest(theirs)[0]
    assert b"".join(seen) == theirs[:size]
    assert [name.lower().encode() for name, _ in read_headers(theirs).items()] == [
        field.partition(b":")[0].rstrip(b" \t").lower() for field in seen if is_field(field)
    ]
    assert not any(map(is_return_path, seen))


@given(MESSAGES, st.integers(1, 40))
def test_hops_and_the_size_of_the_header_are_those_that_are_stored(clients: bytes, pieces: int) -> None:
    reader = HeaderReader()
    theirs = b"".join(reader.feed(clients[at : at + pieces]) for at in range(0, len(clients), pieces))
    theirs += reader.finish()
    assert reader.received == read_headers(theirs).count("Received")
    assert reader.size == len(b"".join(fields_and_rest(theirs)[0]))


@pytest.mark.parametrize("size", [1, MAX_HELD - 3, MAX_HELD + 1, 40_000])
@pytest.mark.parametrize("pieces", [0, 1, 7, 4096])
def test_a_field_of_any_length_is_found_and_continued(size: int, pieces: int) -> None:
    long = b"X: " + b"y" * size + b"\r\n\tReceived: no field\r\n"
    hop = b"Received: " + b"z" * size + b"\r\n\tby b.test\r\n"
    message = long + hop + b"RECEIVED :\r\n\r\nReceived: of the body\r\n"
    if pieces == 1 and size > MAX_HELD + 1:
        pieces = 3
    reader = HeaderReader()
    step = pieces or len(message)
    theirs = b"".join(reader.feed(message[at : at + step]) for at in range(0, len(message), step))
    assert theirs + reader.finish() == message
    assert reader.received == 2
    assert reader.size == message.index(b"\r\n\r\n") + 2


def seconds_to_read(text: bytes) -> float:
    """The least of three runs, in seconds of the processor."""
    taken = []
    for _ in range(3):
        reader = HeaderReader()
        began = time.thread_time()
        reader.feed(text)
        taken.append(time.thread_time() - began)
    return min(taken)


@pytest.mark.parametrize("line", [b">From \r\n", b"Return-Path:\r\n", b"From \r\nReturn-Path:\r\n"])
def test_the_time_for_lines_before_the_first_field_grows_with_their_octets(line: bytes) -> None:
    """One that grew with the square of them would take 256 times as long for 16 times as many."""
    few = line * (64 * 1024 // len(line))
    assert seconds_to_read(few * 16) < 64 * seconds_to_read(few)


@pytest.mark.parametrize(
    "repeated", [b"Received: from a.test\r\n", b"\tfolded\r\n", b"no field at all ", b"X: y\r\nno field\r\n"]
)
def test_a_header_without_end_is_read_whole_and_takes_no_memory(repeated: bytes) -> None:
    piece = repeated * (8192 // len(repeated))
    reader = HeaderReader()
    assert reader.feed(b"Subject: x\r\n") in (b"", b"Subject: x\r\n")
    tracemalloc.start()
    try:
        for _ in range(1000):
            reader.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * (MAX_HELD + 8192)
    reader.finish()
    assert reader.received == 1000 * piece.count(b"Received:")


# A header in which all readers find the same


@pytest.mark.parametrize("pieces", [0, 1, 5])
@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        (b"A: 1\r\nwords\r\nB: 2\r\n\r\nbody\r\n", b"A: 1\r\nN: 1\r\n\r\nwords\r\nB: 2\r\n\r\nbody\r\n"),
        (b"A: 1\r\n" + MBOX + b"\r\nB: 2\r\n", b"A: 1\r\nN: 1\r\n\r\n" + MBOX + b"\r\nB: 2\r\n"),
        (b"A: 1\r\n folded\r\n\r\nB: 2\r\n", b"A: 1\r\n folded\r\nN: 1\r\n\r\nB: 2\r\n"),
        (b"A: 1\r\n", b"A: 1\r\nN: 1\r\n"),
        (b"\r\nbody\r\n", b"N: 1\r\n\r\nbody\r\n"),
        (b"words\r\n", b"N: 1\r\n\r\nwords\r\n"),
        (FORGERY + b"\r\n", b"N: 1\r\n\r\n" + FORGERY + b"\r\n"),
        (MBOX + b"\r\nA: 1\r\n\r\n", b"X-Mailbox-Line: " + MBOX + b"\r\nA: 1\r\nN: 1\r\n\r\n"),
        (b"", b"N: 1\r\n"),
        (b"A: 1\r\nBcc: x\r\n\ty\r\nwords\r\n", b"A: 1\r\nN: 1\r\n\r\nwords\r\n"),
        (b"Bcc: x\r\n\ty\r\n\r\nBcc: z\r\n", b"N: 1\r\n\r\nBcc: z\r\n"),
        (b"From : a\r\nB\t :\r\n :c\r\n\r\n", b"From: a\r\nB:\r\n :c\r\nN: 1\r\n\r\n"),
        (b"A \t: " + b"w" * 50_000 + b"\r\n", b"A: " + b"w" * 50_000 + b"\r\nN: 1\r\n"),
        (b"A: 1\r\n" + b"w" * 50_000 + b"\r\n", b"A: 1\r\nN: 1\r\n\r\n" + b"w" * 50_000 + b"\r\n"),
    ],
)
def test_further_fields_stand_behind_the_last_one(clients: bytes, expected: bytes, pieces: int) -> None:
    if len(clients) > 10_000 and pieces == 1:
        pieces = 100
    options = {"remove": {b"bcc"}, "at_end": lambda: b"N: 1\r\n", "plain": True}
    assert stored(clients, pieces, **options) == expected


@settings(max_examples=200)
@given(MESSAGES, st.integers(0, 40))
def test_in_a_plain_header_all_readers_find_the_same_fields(clients: bytes, pieces: int) -> None:
    theirs = stored(clients, pieces, plain=True)
    fields, _ = fields_and_rest(theirs)
    assert all(map(is_field, fields))
    names, payload = fields_and_payload(theirs)
    assert [name for name, _ in names] == [field.partition(b":")[0].decode() for field in fields]
    size = header_size(theirs)
    assert payload == (b"" if size is None else theirs[size + 2 :])


@given(MESSAGES, st.integers(1, 40))
def test_a_field_that_is_watched_for_is_given_whole(clients: bytes, pieces: int) -> None:
    seen: list[tuple[bytes, bytes, bool]] = []
    theirs = stored(
        clients,
        pieces,
        watch={b"subject", b"x", b"from"},
        found=lambda name, field, whole: seen.append((name, field, whole)),
    )
    expected = []
    for field in fields_and_rest(theirs)[0]:
        name = field.partition(b":")[0].rstrip(b" \t").lower()
        if is_field(field) and name in (b"subject", b"x", b"from"):
            expected.append((name, field, True))
    assert seen == expected


@given(MESSAGES, st.booleans())
@example(b"A: 1\r\nwords\r\nB: 2\r\n\r\nbody\r\n", True)
@example(b"A: 1\r\nX :y\r\n\r\nbody\r\n", True)
def test_what_policies_add_at_either_end_is_a_field_to_every_reader(clients: bytes, changed: bool) -> None:
    # DATA ends a line, and BDAT is given a line end: no message in hand is without one.
    theirs = stored(clients if clients.endswith(b"\r\n") else clients + b"\r\n")
    size = header_size(theirs)
    header = EditedHeader(lambda: theirs[:size])
    if changed:
        header.top.append(b"X-Top: t\r\n\tu\r\n")
        header.bottom.append(b"X-Bottom: b\r\n\tc\r\n")
    body = b"" if size is None else theirs[size:]
    message = b"".join(header.top) + RECEIVED + header.stored + body
    if not changed:
        assert message == RECEIVED + theirs
        return
    names = ["X-Top", "Received"]
    parsed, payload = fields_and_payload(message)
    assert [name for name, _ in parsed][:2] == names
    assert ("X-Bottom", "b\r\n\tc") in parsed
    assert b"X-Bottom" not in payload
    fields, rest = fields_and_rest(message)
    assert fields[0] == b"X-Top: t\r\n\tu\r\n"
    assert b"X-Bottom: b\r\n\tc\r\n" in fields
    assert rest == body
    fields.remove(b"X-Bottom: b\r\n\tc\r\n")
    assert b"".join(fields[2:]) + rest == theirs
