"""What arrives is what was sent, octet by octet, but for the trace fields.

Each message goes to a Maildir, to a next hop and to Dovecot in one transaction, over DATA or BDAT,
whole or in pieces.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.corpus import Sample, debian_samples, generated_samples, large_samples, python_samples
from tests.interop.dovecot import Dovecot
from tests.interop.programs import missing, wait_until
from tests.interop.sender import Sender, Way, repeated
from tests.interop.sink import Sink
from tests.message.test_header_reader import as_it_should_be_stored
from tests.support.daemon import Daemon
from tests.support.wire import Wire

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

_PER_CONNECTION = 25
_LARGEST_FOR_DOVECOT = 1024 * 1024

_DATE = rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000"
_RECEIVED = (
    rb"Received: from sender\.test \(\[127\.0\.0\.1\]\)\r\n"
    rb"\tby mx\.example\.test \(Elemta\) with ESMTP id ([\w-]+);\r\n\t" + _DATE + rb"\r\n"
)
# A field whose name fits a line, or the empty line that ends the header; mbox lines may come first.
_AT_NEXT_HOP = re.compile(_RECEIVED)
_IN_MAILDIR = re.compile(rb"Return-Path: <sender@client\.test>\r\n" + _RECEIVED)
_IN_DOVECOT = re.compile(
    rb"Return-Path: <sender@client\.test>\r\nDelivered-To: all@dovecot\.test\r\n"
    rb"Received: from mx\.example\.test \(\[127\.0\.0\.1\]\)\r\n"
    rb"\tby dovecot\.test with LMTP\r\n\tid [\w+/:]+\r\n\t\(envelope-from <sender@client\.test>\)\r\n"
    rb"\tfor <all@dovecot\.test>; [^\r\n]*\r\n" + _RECEIVED
)


# By the name of the sample: each arrival without its trace fields, None where there are others.
Arrived = dict[str, list[bytes | None]]


@dataclass
class Passage:
    """The corpus on its way: what was sent how, and where it came out."""

    node: Daemon
    sink: Sink
    dovecot: Dovecot
    samples: list[Sample]
    ways: Counter[Way]
    queue_ids: dict[str, str]

    @property
    def for_dovecot(self) -> list[Sample]:
        return [sample for sample in self.samples if len(sample.content) <= _LARGEST_FOR_DOVECOT]

    def in_maildirs(self) -> Arrived:
        """What lies in Elemta's own Maildirs."""
        boxes = {sample.name: self.node.mailbox(sample.name) for sample in self.samples}
        return {
            name: [_strip(_IN_MAILDIR, path.read_bytes())[1] for path in box] for name, box in boxes.items()
        }

    def at_next_hop(self) -> Arrived:
        """What the sink took."""
        taken = self.sink.by_recipient()
        return {
            sample.name: [
                _strip(_AT_NEXT_HOP, message.content)[1]
                for message in taken.get(f"{sample.name}@sink.test", [])
            ]
            for sample in self.samples
        }

    def in_dovecot(self) -> Arrived:
        """What Dovecot stored, all in one mailbox; the queue id in the trace field says what it is."""
        found: Arrived = {}
        for message in self.dovecot.mailbox("all"):
            queue_id, content = _strip(_IN_DOVECOT, message)
            found.setdefault(self.queue_ids.get(queue_id, queue_id), []).append(content)
        return found


@pytest.fixture(scope="module")
def passage(tmp_path_factory: pytest.TempPathFactory, open_directory: Path) -> Iterator[Passage]:
    if not (shipped := debian_samples()):
        missing("spamassassin, whose samples are part of the corpus, is not installed")
    samples = shipped + python_samples() + generated_samples() + large_samples()
    dovecot = Dovecot(open_directory / "dovecot", ["all", "other"]).start()
    try:
        with Sink("PIPELINING", "8BITMIME", "SIZE") as sink:
            node = Daemon(
                tmp_path_factory.mktemp("corpus") / "node",
                # Each sample is to arrive as it was sent.
                "[submission]\nadd_missing = false\nremove_bcc = false\n"
                f'[[route]]\ndomains = ["sink.test"]\nto = "smtp://127.0.0.1:{sink.port}"\n'
                f'[[route]]\ndomains = ["dovecot.test"]\nto = "lmtp://127.0.0.1:{dovecot.port}"\n',
                domains='relay_from = ["127.0.0.0/8"]',
            ).start()
            try:
                passage = Passage(node, sink, dovecot, samples, Counter(), {})
                _send(passage)
                _wait(passage)
                yield passage
            finally:
                node.kill()
    finally:
        dovecot.stop()


def _send(passage: Passage) -> None:
    """Every third message by BDAT; of all, every other whole and the rest in pieces."""
    for first in range(0, len(passage.samples), _PER_CONNECTION):
        with Wire(passage.node.socket(timeout=60)) as wire:
            sender = Sender(wire)
            for number in range(first, min(first + _PER_CONNECTION, len(passage.samples))):
                sample = passage.samples[number]
                recipients = [f"{sample.name}@example.test", f"{sample.name}@sink.test"]
                if len(sample.content) <= _LARGEST_FOR_DOVECOT:
                    recipients.append("all@dovecot.test")
                way = Way.BDAT if number % 3 == 0 else Way.DATA
                reply = sender.send(sample.content, recipients, way, _sizes(number, len(sample.content)))
                assert reply.startswith("250 2.0.0"), (sample.name, reply)
                passage.ways[way] += 1
                passage.queue_ids[reply.rpartition(" ")[2]] = sample.name
            sender.quit()


def _sizes(number: int, size: int) -> Iterator[int] | None:
    source = random.Random(number)
    kind = number % 6
    if kind in (0, 1) or size > 4 * 1024 * 1024:
        return None
    if kind in (2, 3):
        return repeated(64 * 1024)
    if kind == 4 and size < 2000:
        return repeated(1)
    return repeated(*(source.randrange(1100, 9000) for _ in range(50)))


def _wait(passage: Passage) -> None:
    node, sink, dovecot = passage.node, passage.sink, passage.dovecot
    names = {sample.name for sample in passage.samples}
    try:
        wait_until("all in Maildirs", lambda: all(node.mailbox(name) for name in names), 60)
        wait_until("all at the next hop", lambda: len(sink.taken) >= len(names), 60)
        new = dovecot.directory / "mail/all/new"
        expected = len(passage.for_dovecot)
        wait_until("all in Dovecot", lambda: new.is_dir() and len(list(new.iterdir())) >= expected, 60)
    except AssertionError as error:
        # What is missing is counted by the tests; what is said about it belongs into their output.
        print(error, node.output()[-4000:], dovecot.log()[-2000:], sep="\n")


def _strip(trace: re.Pattern[bytes], message: bytes) -> tuple[str, bytes | None]:
    """The queue id in the trace fields, and the message without them."""
    fields = trace.match(message)
    return (fields[1].decode(), message[fields.end() :]) if fields else ("", None)


def _handed_on(sample: Sample) -> bytes:
    """What arrives behind our fields: no Return-Path of the sample, and no line that is no field in front."""
    return as_it_should_be_stored(sample.content)


def _changed(found: Arrived, samples: list[Sample]) -> list[str]:
    return [
        f"{sample.name}: {_difference(_handed_on(sample), found.get(sample.name, []))}"
        for sample in samples
        if found.get(sample.name, []) != [_handed_on(sample)]
    ]


def _difference(sent: bytes, arrived: list[bytes | None]) -> str:
    if len(arrived) != 1:
        return f"arrived {len(arrived)} times"
    (content,) = arrived
    if content is None:
        return "other trace fields"
    at = next(
        (n for n, (a, b) in enumerate(zip(sent, content, strict=False)) if a != b),
        min(len(sent), len(content)),
    )
    return (
        f"sent {len(sent)}, arrived {len(content)}; from octet {at} on "
        f"{sent[at : at + 40]!r} is {content[at : at + 40]!r}"
    )


def test_the_corpus_is_large_and_varied(passage: Passage) -> None:
    assert len(passage.samples) >= 200
    assert len({sample.content for sample in passage.samples}) >= 200
    assert len({sample.name for sample in passage.samples}) == len(passage.samples)
    assert max(len(sample.content) for sample in passage.samples) > 20_000_000
    assert set(passage.ways) == set(Way)


def test_every_message_lies_in_its_maildir_as_it_was_sent(passage: Passage) -> None:
    assert _changed(passage.in_maildirs(), passage.samples) == []


def test_every_message_reaches_a_strict_next_hop_as_it_was_sent(passage: Passage) -> None:
    assert _changed(passage.at_next_hop(), passage.samples) == []
    assert passage.sink.faults == []


def test_every_message_lies_in_dovecot_as_it_was_sent(passage: Passage) -> None:
    assert _changed(passage.in_dovecot(), passage.for_dovecot) == []


@pytest.mark.parametrize("sizes", [None, (1000,)], ids=["one chunk", "chunks"])
def test_a_last_line_without_an_end_gets_one(passage: Passage, sizes: tuple[int, ...] | None) -> None:
    local = "no-end" if sizes is None else "no-end-in-chunks"
    content = b"Subject: no end\r\n\r\n" + b"x" * 5000 + b"\r\n.the last line"
    with Wire(passage.node.socket()) as wire:
        recipients = [f"{local}@example.test", f"{local}@sink.test", "other@dovecot.test"]
        reply = Sender(wire).send(content, recipients, Way.BDAT, sizes)
        assert reply.startswith("250 2.0.0")
    (stored,) = passage.node.wait_for_mail(local)
    assert _strip(_IN_MAILDIR, stored)[1] == content + b"\r\n"
    wait_until("the message", lambda: f"{local}@sink.test" in passage.sink.by_recipient())
    (taken,) = passage.sink.by_recipient()[f"{local}@sink.test"]
    assert _strip(_AT_NEXT_HOP, taken.content)[1] == content + b"\r\n"
    wait_until(
        "the message in Dovecot", lambda: len(passage.dovecot.mailbox("other")) == (1 if sizes is None else 2)
    )
    for message in passage.dovecot.mailbox("other"):
        assert message.endswith(b"\r\n" + content + b"\r\n")


def test_the_ledger_of_the_corpus_is_even(passage: Passage, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(len(sample.content) for sample in passage.samples)
    ways = ", ".join(f"{count} by {way.value}" for way, count in passage.ways.items())
    lines = [f"corpus: {len(passage.samples)} messages, {size / 1e6:.0f} MB, sent {ways}"]
    even = True
    for place, found, samples in (
        ("Maildir", passage.in_maildirs(), passage.samples),
        ("smtp:// to a strict sink", passage.at_next_hop(), passage.samples),
        ("lmtp:// to Dovecot", passage.in_dovecot(), passage.for_dovecot),
    ):
        arrived = sum(len(messages) for messages in found.values())
        identical = sum(_handed_on(sample) in found.get(sample.name, []) for sample in samples)
        even = even and arrived == identical == len(samples)
        lines.append(f"  {place:26} sent {len(samples)}, arrived {arrived}, identical {identical}")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert even
