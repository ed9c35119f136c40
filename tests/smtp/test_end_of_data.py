"""Only CRLF.CRLF ends a message; what another server might take for an end is refused or made harmless.

RFC 5321 §4.1.1.4, RFC 5321 §4.5.2, RFC 5321 §2.3.8.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elemta.smtp.events import Close, MailQuestion, MessageQuestion
from elemta.smtp.framing import ContentError, DataDecoder
from tests.smtp.transcript import DATA, QUEUED, converse

BARE = "S: 550 5.6.0 Message contains a bare CR or LF\n"
NUL = "S: 550 5.6.0 Message contains a NUL octet\n"

# What some reader takes for the end of a message, and what is left of it where newlines are normalized.
VARIANTS = [
    (r"\n.\n", b"\r\n.\r\n"),
    (r"\n.\r\n", b"\r\n.\r\n"),
    (r"\r.\r", b"\r\n.\r\n"),
    (r"\r.\n", b"\r\n.\r\n"),
    (r"\r.\r\n", b"\r\n.\r\n"),
    (r"\n.\r", b"\r\n.\r\n"),
    (r"\r\n.\n", b"\r\n\r\n"),
    (r"\r\n.\r", b"\r\n\r\n"),
    (r"\r\r\n.\r\r\n", b"\r\n\r\n\r\n\r\n"),
    (r"\r\n\n.\r\n", b"\r\n\r\n.\r\n"),
    (r"\n\r.\n\r", b"\r\n\r\n.\r\n\r\n"),
]
# The same where the message begins, and behind another bare newline.
LONE_DOTS = [
    ("", r".\n"),
    ("", r".\rx"),
    (r"a\nb\r\nc", r"\r\n.\n"),
    (r"a\rb", r"\n.\r"),
    (r"\x00", r"\n.\n"),
]
SMUGGLED = r"MAIL FROM:<evil@b.test>\r\nRCPT TO:<target@home.test>\r\nDATA\r\n"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("variant", [variant for variant, _ in VARIANTS])
def test_an_end_of_data_variant_is_refused_and_nothing_behind_it_is_read(variant: str, strict: bool) -> None:
    told = converse(
        DATA + f"C> hello{variant}{SMUGGLED}bye\\r\\n.\\r\\nNOOP\\r\\n\n" + BARE + "X:\n", strict=strict
    )
    assert sum(isinstance(event, MailQuestion) for event in told.events) == 1
    assert not any(isinstance(event, MessageQuestion) for event in told.events)
    assert told.events[-1] == Close("a lone dot and a bare CR or LF", in_message=True)


@pytest.mark.parametrize(("before", "variant"), [(r"hello", variant) for variant, _ in VARIANTS] + LONE_DOTS)
def test_at_a_lone_dot_the_client_is_answered_although_it_waits(before: str, variant: str) -> None:
    behind = "x" if variant in (r"\r\n.\r", r"\r\r\n.\r") else ""
    converse(DATA + f"C> {before}{variant}{behind}\n" + BARE + "X:\n")


@pytest.mark.parametrize("content", [r"a\nb", r"a\n.b\nc", r"a\n..\nb", r"\nx.\n", r"\r\n..\n"])
def test_a_bare_newline_without_a_lone_dot_is_read_to_the_true_end_and_refused(content: str) -> None:
    converse(DATA + f"C> {content}b\\r\\n.\\r\\n\n" + BARE + "C: NOOP\nS: 250 2.0.0 OK\n")


@pytest.mark.parametrize(("variant", "normalized"), VARIANTS)
def test_an_end_of_data_variant_is_normalized_without_ending_the_message(
    variant: str, normalized: bytes
) -> None:
    told = converse(DATA + f"C> hello{variant}{SMUGGLED}bye\\r\\n.\\r\\n\n" + QUEUED, normalize_newlines=True)
    assert sum(isinstance(event, MailQuestion) for event in told.events) == 1
    smuggled = SMUGGLED.encode().decode("unicode_escape").encode()
    assert told.message == b"hello" + normalized + smuggled + b"bye\r\n"


@pytest.mark.parametrize("variant", [r"\r\n\x00.\r\n", r"\r\n.\x00\r\n", r"\r\x00\n.\r\n", r"a\x00b"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_nul_is_refused_in_both_modes(variant: str, normalize: bool) -> None:
    closed = "X:\n" if variant == r"\r\x00\n.\r\n" and not normalize else ""
    told = converse(
        DATA + f"C> hello{variant}{SMUGGLED}bye\\r\\n.\\r\\n\nS: 550 5.6.0 Message contains a ...\n" + closed,
        normalize_newlines=normalize,
    )
    assert sum(isinstance(event, MailQuestion) for event in told.events) == 1


@pytest.mark.parametrize("content", [r"\r", r"\n", r"hello\n", r"hello\r", r".a\n", r"..\n"])
def test_the_first_and_the_last_line_are_looked_at_too(content: str) -> None:
    converse(DATA + f"C> {content}\\r\\n.\\r\\n\n" + BARE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (r".\r\n", b""),
        (r"..\r\n.\r\n", b".\r\n"),
        (r"...\r\n.\r\n", b"..\r\n"),
        (r".a\r\n.\r\n", b"a\r\n"),
        (r"a\r\n..\r\n..b\r\n.\r\n", b"a\r\n.\r\n.b\r\n"),
        (r"a.\r\n.\r\n", b"a.\r\n"),
        (r"a\r\n. \r\n.\r\n", b"a\r\n \r\n"),
        (r"\r\n\r\n.\r\n", b"\r\n\r\n"),
    ],
)
def test_dots_are_unstuffed(content: str, message: bytes) -> None:
    assert converse(DATA + f"C> {content}\n" + QUEUED).message == message


def reference(stream: bytes, normalize: bool) -> tuple[bytes, bool, bool, bytes | None]:
    """The message in ``stream``: content, bare newlines, NULs, and what is behind it; line by line."""
    lines, rest = [], stream
    while True:
        line, crlf, behind = rest.partition(b"\r\n")
        if not crlf:
            content, behind_end = b"".join(lines), None
            break
        if line == b".":
            content, behind_end = b"".join(lines), behind
            break
        lines.append(line.removeprefix(b".") + crlf)
        rest = behind
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", content) is not None
    if normalize:
        content, bare = re.sub(rb"\r\n|\r|\n", b"\r\n", content), False
    return content, bare, b"\0" in content, behind_end


def has_lone_dot(stream: bytes) -> bool:
    """Whether a line is a single dot, between line ends that are not both CRLF, before the true end."""
    end_before = b"\r\n"
    for line in re.finditer(rb"([^\r\n]*)(\r\n|\r|\n)", stream):
        if line[1] == b".":
            both = (end_before, line[2])
            if both == (b"\r\n", b"\r\n"):
                return False
            # The next octet may yet make a CRLF of this CR.
            if both != (b"\r\n", b"\r") or line.end() < len(stream):
                return True
        end_before = line[2]
    return False


streams = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\r\n.", b"\n.", b"\0", b"xyz", b"\r\n.\r\n"]
    ),
    max_size=30,
).map(b"".join)


@given(streams, st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())
@example(b".\r\nMAIL", [1], False)
@example(b"\r\r\n.\r\n", [2], False)
def test_the_scan_of_blocks_agrees_with_a_reading_line_by_line(
    stream: bytes, sizes: list[int], normalize: bool
) -> None:
    content, bare, nul, behind = reference(stream, normalize)
    decoder = DataDecoder(normalize=normalize)
    got, at, turn, ended = b"", 0, 0, None
    while at < len(stream) and ended is None and not decoder.lone_dot:
        block = stream[at : at + sizes[turn % len(sizes)]]
        piece, used = decoder.feed(block)
        got += piece
        if used is not None:
            ended = stream[at + used :]
        at, turn = at + len(block), turn + 1
    assert decoder.lone_dot == (not normalize and has_lone_dot(stream))
    if decoder.lone_dot:
        assert decoder.check.flaw is not None
        assert ended is None
        return
    assert ended == behind
    if behind is None:
        return
    assert got == content
    expected = {flaw for flaw, there in ((ContentError.BARE_NEWLINE, bare), (ContentError.NUL, nul)) if there}
    assert (decoder.check.flaw in expected) if expected else decoder.check.flaw is None


@given(streams, st.integers(1, 9))
def test_never_more_than_four_octets_are_kept_back(stream: bytes, size: int) -> None:
    decoder = DataDecoder(normalize=False)
    fed = came = stuffed = 0
    for at in range(0, len(stream), size):
        block = stream[at : at + size]
        piece, used = decoder.feed(block)
        if used is not None or decoder.lone_dot:
            return
        fed, came = fed + len(block), came + len(piece)
        stuffed = (b"\r\n" + stream[:fed]).count(b"\r\n.")
        assert came >= fed - 4 - stuffed


def test_bytes_behind_the_end_are_commands() -> None:
    converse(DATA + "C> hi\\r\\n.\\r\\nNOOP\\r\\n\n" + QUEUED + "S: 250 2.0.0 OK\n")
