"""Messages of many kinds, in canonical form: what the world sends, what it should not, and what is rare.

Everything that is made here is made the same at every run. No message holds a NUL or a CR or LF on its own:
those are refused, which other tests show.
"""

from __future__ import annotations

import base64
import importlib.util
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

_LINE_END = re.compile(rb"\r\n|\r|\n")
_DEBIAN_SAMPLES = Path("/usr/share/doc/spamassassin/examples")
_CHUNK = 64 * 1024
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Sample:
    """One message; ``name`` is in the reports and can stand in an address."""

    name: str
    content: bytes


def debian_samples() -> list[Sample]:
    """Those that come with Debian's spamassassin; none where it is not installed."""
    return _from_files("spamassassin", sorted(_DEBIAN_SAMPLES.glob("sample-*.txt")))


def python_samples() -> list[Sample]:
    """The running Python's own email test data; none where its tests are not installed."""
    try:
        spec = importlib.util.find_spec("test.test_email")
    except ImportError:
        return []
    if spec is None or spec.origin is None:
        return []
    return _from_files("python", sorted(Path(spec.origin).parent.glob("data/msg_*.txt")))


def generated_samples() -> list[Sample]:
    """Made ones, more than 200, none of them large."""
    found = []
    for make in _FAMILIES:
        family = make.__name__.strip("_").replace("_", "-")
        found += [Sample(f"{family}-{number}", content) for number, content in enumerate(make())]
    return found


def large_samples() -> list[Sample]:
    """Two of 20 MiB: one of lines, and one whose every octet differs from the next."""
    head = b"From: big@client.test\r\nSubject: big\r\n\r\n"
    line = base64.b64encode(random.Random(20).randbytes(54)) + b"\r\n"
    lines = head + line * ((20 * _MIB - len(head)) // len(line))
    octets = _eight_bit(random.Random(21), _MIB)
    stretch = b".\r\n..\r\n" + octets[:-8]
    return [
        Sample("large-lines", lines),
        Sample("large-eight-bit", head + (stretch + b"\r\n") * 20),
    ]


def canonical(text: bytes) -> bytes:
    """Text with CRLF at the end of every line, the last one too."""
    content = _LINE_END.sub(b"\r\n", text.replace(b"\0", b""))
    return content if not content or content.endswith(b"\r\n") else content + b"\r\n"


def _from_files(name: str, paths: list[Path]) -> list[Sample]:
    return [Sample(f"{name}-{path.stem}", canonical(path.read_bytes())) for path in paths]


def _eight_bit(source: random.Random, size: int) -> bytes:
    """Octets of every value but NUL, CR and LF."""
    return source.randbytes(size).translate(_NO_LINE_ENDS)


_NO_LINE_ENDS = bytes(octet + 128 if octet in (0, 10, 13) else octet for octet in range(256))
_HEAD = (
    b"From: a@client.test\r\nTo: b@example.test\r\nSubject: s\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n\r\n"
)


def _eight_bit_bodies() -> Iterator[bytes]:
    yield _HEAD + bytes(octet for octet in range(1, 256) if octet not in (10, 13)) + b"\r\n"
    yield _HEAD + "Grüße, 日本語, ☃\r\n".encode()
    yield _HEAD + "Grüße\r\n".encode("latin-1")
    yield _HEAD + "日本語".encode("utf-16-be") + b"\r\n"
    yield _HEAD + b"\xff" * 5000 + b"\r\n"
    yield _HEAD + b"\x1a\x04\x08\x7f\x1b[31m\r\n"
    for seed in range(14):
        source = random.Random(seed)
        lines = [_eight_bit(source, source.randrange(0, 400)) for _ in range(source.randrange(1, 300))]
        yield _HEAD + b"\r\n".join(lines) + b"\r\n"


def _long_lines() -> Iterator[bytes]:
    for length in (
        78,
        997,
        998,
        999,
        1000,
        1023,
        1024,
        2047,
        2048,
        2049,
        4096,
        _CHUNK - 1,
        _CHUNK,
        _CHUNK + 1,
    ):
        yield _HEAD + b"x" * length + b"\r\nshort\r\n"
    yield _HEAD + b"y" * 100_000 + b"\r\n" + b"." * 100_000 + b"\r\n"
    yield _HEAD + (b". " * 500_000) + b"\r\n"
    yield b"Subject: " + b"z" * 100_000 + b"\r\n\r\nlong field\r\n"
    yield b"Subject:" + b" word" * 30_000 + b"\r\n\r\nlong field\r\n"
    yield b"X" * 100_000 + b": long name\r\n\r\nbody\r\n"


def _nested(depth: int) -> bytes:
    """Multiparts in multiparts, as deep as that."""
    opening = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (level, level)
        for level in range(depth)
    )
    closing = b"".join(b"--b%d--\r\n" % level for level in reversed(range(depth)))
    return b"MIME-Version: 1.0\r\n" + opening + b"\r\ninnermost\r\n" + closing


def _deep_mime() -> Iterator[bytes]:
    for depth in (1, 10, 100, 1000):
        yield _nested(depth)
    yield _nested(300).replace(b"--b299--\r\n", b"")
    message = b"Subject: innermost\r\n\r\nx\r\n"
    for _ in range(200):
        message = b"Content-Type: message/rfc822\r\n\r\n" + message
    yield message
    parameters = b"".join(b'; p*%d*="v%d"' % (number, number) for number in range(900))
    yield b"Content-Type: text/plain" + parameters + b"\r\n\r\nx\r\n"


def _many_headers() -> Iterator[bytes]:
    for count in (1, 100, 1000, 5000):
        yield b"".join(b"X-Field-%d: value %d\r\n" % (n, n) for n in range(count)) + b"\r\nbody\r\n"
    yield b"Subject: same\r\n" * 3000 + b"\r\nbody\r\n"
    yield b"Subject: folded\r\n" + b"\tagain\r\n" * 5000 + b"\r\nbody\r\n"
    yield b"To: " + b",\r\n ".join(b"user%d@example.test" % n for n in range(3000)) + b"\r\n\r\nbody\r\n"
    yield b"Received: from a.test by b.test; Mon, 1 Jan 2024 00:00:00 +0000\r\n" * 90 + b"\r\nbody\r\n"


_ODD_HEADS = (
    b"Subject:no space",
    b"Subject : space before the colon",
    b"Subject:",
    b"Subject: \t ",
    b":empty name",
    b"no colon at all",
    b"From someone Mon Jan  1 00:00:00 2024",
    b">From: quoted",
    b" begins with a fold",
    b"\tbegins with a tab\r\nSubject: x",
    b"Subject: x\r\n \r\n\t\r\n y",
    b"Subject: x\r\n \r\nX-After: a blank fold",
    "Subject: Grüße ☃".encode(),
    "Subject: Grüße".encode("latin-1"),
    "Schlüssel: Wert".encode(),
    b"Subject: \x01\x02\x7f\x1b",
    b"SUBJECT: a\r\nsubject: b\r\nSubJect: c",
    b"Return-Path: <forged@client.test>",
    b"Return-Path: <a@client.test>\r\nReturn-Path: <b@client.test>",
    b"Received: nonsense",
    b"Received: from mx.example.test by mx.example.test; never",
    b"Delivered-To: user@example.test",
    b"Bcc: secret@client.test",
    b"Message-ID: <" + b"(" * 600 + b"@client.test>",
    b"From: " + b"(" * 600,
    b'From: "' + b"\\" * 501 + b'" <a@client.test>',
    b"To: group: a@client.test, b@client.test;, undisclosed:;",
    b"Date: not a date",
    b"Date: Fri, 99 Foo 99999999999 99:99:99 +9999",
    b"Content-Length: -1\r\nContent-Length: 1e99",
    b"Content-Transfer-Encoding: quoted-printable\r\nContent-Type: text/plain; charset=nonesuch",
    b"Content-Type: ;;;;====\r\nMIME-Version: 99",
    b"Subject: =?utf-8?b?" + b"A" * 2000 + b"?=",
    b"DATA",
    b"X-Status: RO\r\nStatus: RO\r\nX-Keywords:   ",
    b"Resent-From: a@client.test\r\nResent-From: b@client.test\r\nResent-To: c@client.test",
)


def _odd_headers() -> Iterator[bytes]:
    for head in _ODD_HEADS:
        yield head + b"\r\n\r\nbody\r\n"


def _hardly_messages() -> Iterator[bytes]:
    yield b""
    yield b"\r\n"
    yield b"\r\n\r\n"
    yield b"\r\n" * 2000
    yield b"Subject: no body\r\n\r\n"
    yield b"Subject: no end of the header\r\n"
    yield b"\r\nno header\r\n"
    yield b"neither header nor empty line\r\n"
    yield b"x\r\n"
    yield b" \r\n"
    yield b"\t\r\n\t\r\n"
    yield b"Subject: empty lines at the end\r\n\r\nx\r\n\r\n\r\n\r\n"


def _dots() -> Iterator[bytes]:
    yield b".\r\n"
    yield b"..\r\n"
    yield b"." * 70_000 + b"\r\n"
    yield b".\r\n" * 50_000
    yield b"..\r\n" * 10_000
    yield b".Subject: dot\r\n\r\n.\r\n"
    yield _HEAD + b".\r\n"
    yield _HEAD + b"\r\n.\r\n\r\n.\r\n.\r\n"
    yield _HEAD + b". \r\n.\t\r\n .\r\n"
    yield _HEAD + b".\r\nMAIL FROM:<smuggled@client.test>\r\nRCPT TO:<user@example.test>\r\nDATA\r\n.\r\n"
    yield _HEAD + b"..QUIT\r\n.QUIT\r\nQUIT\r\n"
    source = random.Random(7)
    yield _HEAD + b"".join(b"." * source.randrange(0, 5) + b"\r\n" for _ in range(20_000))


def _dots_at_borders() -> Iterator[bytes]:
    # Where 64 KiB end: of the message, of the message behind its dots, and anywhere behind trace fields.
    for offset in range(-4, 4):
        filling = (b"f" * 62 + b"\r\n") * 1022
        filling += b"g" * (_CHUNK + offset - len(_HEAD) - len(filling) - 2) + b"\r\n"
        yield _HEAD + filling + b".\r\nafter\r\n"
        yield _HEAD + filling + b"..\r\n.\r\n..after\r\n"
    for phase in range(3):
        filling = b"h" * (_CHUNK - 1000 - len(_HEAD) + phase) + b"\r\n"
        yield _HEAD + filling + b".\r\n" * 700 + b"end\r\n"
        yield _HEAD + filling + b"\r\n" * 1000 + b".end\r\n"


def _white_space() -> Iterator[bytes]:
    yield _HEAD + b"trailing   \r\n\t\r\n   \r\nx\t\t\t\r\n"
    yield _HEAD + b" " * 2000 + b"\r\n"
    yield b"Subject: trailing   \r\nX-Tab:\tx\t\r\n\r\n   leading\r\n"
    yield _HEAD + b"\x0b\x0c\x85\xa0\r\n"
    yield _HEAD + "\u2028\u2029\u0085\r\n".encode()
    yield _HEAD + b"From the start\r\n>From quoted\r\n>>From twice\r\n"
    yield _HEAD + b"-- \r\nsignature\r\n"


def _by_a_mail_library() -> Iterator[bytes]:
    for seed in range(40):
        yield canonical(_composed(random.Random(seed)).as_bytes())


def _composed(source: random.Random) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Möller <a@client.test>"
    message["To"] = ", ".join(f"user{n}@example.test" for n in range(source.randrange(1, 30)))
    message["Subject"] = "".join(source.choices("abc äöü ☃日本 =?_", k=source.randrange(0, 120)))
    words = "".join(source.choices("ab .\nüß☃", k=source.randrange(0, 5000)))
    message.set_content(words, cte=source.choice(("8bit", "quoted-printable", "base64")))
    if source.random() < 0.6:
        message.add_alternative(f"<p>{words}</p>", subtype="html")
    for number in range(source.randrange(0, 4)):
        message.add_attachment(
            source.randbytes(source.randrange(0, 40_000)),
            maintype="application",
            subtype="octet-stream",
            filename=f"Anhang ß {number}.bin",
        )
    for number, part in enumerate(message.walk()):
        if part.is_multipart():
            part.set_boundary(f"=={number}==")
    return message


_SHREDS = (
    b".",
    b"..",
    b"\r\n",
    b"\r\n",
    b"\r\n.\r\n",
    b"\r\n..",
    b" ",
    b"\t",
    b"x",
    b"\xe9",
    b"\xff",
    b"From ",
    b":",
)


def _shreds() -> Iterator[bytes]:
    for seed in range(60):
        source = random.Random(1000 + seed)
        text = b"".join(source.choices(_SHREDS, k=source.choice((5, 50, 500, 5000, 50_000))))
        yield text + b"\r\n"


_FAMILIES: tuple[Callable[[], Iterator[bytes]], ...] = (
    _eight_bit_bodies,
    _long_lines,
    _deep_mime,
    _many_headers,
    _odd_headers,
    _hardly_messages,
    _dots,
    _dots_at_borders,
    _white_space,
    _by_a_mail_library,
    _shreds,
)
