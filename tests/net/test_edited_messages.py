"""What policies make of a message, from the end of the data to what is stored."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.config import OnError
from elemta.policy import CONTINUE, Quarantine, Reject
from tests.net.conftest import Place, Scripted, reply_of, spooled

ONE, YES, NO = b"Subject: one\r\n", b"X-Spam: yes\r\n", b"x-spam: no\r\n"
TWO = b"Subject: two\r\n\tfolded\r\n"
HEADER = b"Received: from a by b; now\r\n" + ONE + YES + TWO + NO
BODY = b"\r\nbody\r\nline two\r\n"
MIB = 1024 * 1024


class Editing(Scripted):
    def __init__(self, *edits: Callable[[Any], object]) -> None:
        super().__init__()
        self.edits = edits
        self.kept: list[Any] = []
        self.verdict: Any = CONTINUE

    def message(self, session: Any, transaction: Any, message: Any) -> Any:
        self.kept.append(message)
        for edit in self.edits:
            edit(message)
        return self.verdict


def parts(stored: bytes) -> tuple[bytes, bytes]:
    """What is above our Received, and what is below it."""
    above, received, below = stored.partition(b"Received: from client")
    if not received:
        above, received, below = stored.partition(b"Received: from ")
    end = below.index(b"+0000\r\n") + 7
    return above, below[end:]


def without(*fields: bytes) -> bytes:
    left = HEADER
    for field in fields:
        left = left.replace(field, b"")
    return left


CASES: list[tuple[list[Callable[[Any], object]], bytes, bytes]] = [
    ([lambda m: m.add_header("X-New", "v")], b"X-New: v\r\n", HEADER),
    ([lambda m: m.add_header("A", "1"), lambda m: m.add_header("B", "2")], b"B: 2\r\nA: 1\r\n", HEADER),
    ([lambda m: m.add_header("X-New", "v", at="bottom")], b"", HEADER + b"X-New: v\r\n"),
    (
        [lambda m: m.remove_header("X-SPAM")],
        b"",
        without(YES, NO),
    ),
    ([lambda m: m.remove_header("Subject", 0)], b"", without(ONE)),
    ([lambda m: m.remove_header("Subject", -1)], b"", without(TWO)),
    ([lambda m: m.remove_header("Subject", 7)], b"", HEADER),
    (
        [lambda m: m.remove_header("X-Spam", where=lambda value: value == "no")],
        b"",
        without(NO),
    ),
    (
        [lambda m: m.remove_header("Subject", where="two\tfolded".__eq__)],
        b"",
        without(TWO),
    ),
    ([lambda m: m.replace_header("subject", "new")], b"", HEADER.replace(b"Subject: one", b"subject: new")),
    (
        [lambda m: m.replace_header("Subject", "new", -1)],
        b"",
        HEADER.replace(TWO, b"Subject: new\r\n"),
    ),
    ([lambda m: m.replace_header("None", "new")], b"", HEADER),
    ([lambda m: m.add_header("X", "1"), lambda m: m.remove_header("X")], b"", HEADER),
    ([lambda m: m.add_header("X", "1"), lambda m: m.replace_header("X", "2")], b"X: 2\r\n", HEADER),
    ([lambda m: m.add_header("X", "1", "bottom"), lambda m: m.remove_header("X")], b"", HEADER),
]


@pytest.mark.parametrize(("edits", "above", "below"), CASES)
@pytest.mark.parametrize("size", [0, 300_000], ids=["small", "in a file"])
@ensureDeferred
async def test_edits_of_the_header_are_stored_once_and_nothing_else_changes(
    place: Place, edits: Any, above: bytes, below: bytes, size: int
) -> None:
    place.policy = policy = Editing(*edits)
    body = BODY + b"0123456789abcde\r\n" * (size // 17)
    stored = parts(await spooled(place, HEADER + body))
    assert stored == (above, below + body)
    with pytest.raises(RuntimeError):
        policy.kept[0].open()


@pytest.mark.parametrize("old", [0, 300_000])
@pytest.mark.parametrize("new", [0, 3 * MIB])
@ensureDeferred
async def test_another_body_is_stored_in_the_place_of_the_clients(place: Place, old: int, new: int) -> None:
    content = b"new\r\n" + b"fedcba987654321\r\n" * (new // 17)
    file = io.BytesIO(content)
    place.policy = Editing(lambda m: m.replace_body(file), lambda m: m.add_header("X", "1", "bottom"))
    stored = parts(await spooled(place, HEADER + BODY + b"0123456789abcde\r\n" * (old // 17)))
    assert stored == (b"", HEADER + b"X: 1\r\n" + b"\r\n" + content)
    assert file.closed


@ensureDeferred
async def test_no_body_of_a_policy_smuggles_an_end_of_data(place: Place) -> None:
    file = io.BytesIO(b"a\n.\nb\r.\r\x00c\r\r\n" * 10)
    place.policy = Editing(lambda m: m.replace_body(file))
    stored = parts(await spooled(place, HEADER + BODY))[1]
    body = stored.removeprefix(HEADER + b"\r\n")
    assert body == b"a\r\n.\r\nb\r\n.\r\nc\r\n\r\n" * 10


@pytest.mark.parametrize("first", [b"no header\r\n", b"", b"\r\nbody\r\n", b"Subject: x\r\n"])
@ensureDeferred
async def test_messages_of_odd_shapes_keep_their_meaning(place: Place, first: bytes) -> None:
    place.policy = Editing(lambda m: m.add_header("X", "1", "bottom"), lambda m: m.add_header("Y", "2"))
    above, below = parts(await spooled(place, first))
    assert above == b"Y: 2\r\n"
    expected = (
        b"Subject: x\r\nX: 1\r\n"
        if first.startswith(b"Subject")
        else b"X: 1\r\n\r\n" + first.removeprefix(b"\r\n")
    )
    assert below.rstrip(b"\r\n") == expected.rstrip(b"\r\n")


@ensureDeferred
async def test_later_policies_see_the_edits_and_the_message_as_it_will_be(place: Place) -> None:
    seen: list[Any] = []

    def look(message: Any) -> None:
        with message.open() as file:
            seen.append(
                (message.size, file.read(), message.headers.get_all("x"), message.headers.get("X-Spam"))
            )
            file.seek(0)
            seen.append(file.readline())

    def again(message: Any) -> None:
        with message.open() as one, message.open() as other:
            assert one.read(3) == other.read(3)
            assert one.read() == other.read()

    place.policy = Editing(
        lambda m: m.add_header("X", "1"),
        lambda m: m.remove_header("X-Spam"),
        lambda m: m.replace_body(io.BytesIO(b"new\r\n")),
        look,
        again,
    )
    await spooled(place, HEADER + BODY)
    (size, content, x, spam), line = seen
    assert content.startswith(b"X: 1\r\nReceived: from a by b; now\r\n")
    assert content.endswith(b"\r\n\r\nnew\r\n")
    assert (size, x, spam, line) == (len(content), ["1"], None, b"X: 1\r\n")


@pytest.mark.parametrize("verdict", [Reject("no"), Quarantine("odd")])
@ensureDeferred
async def test_a_changed_message_that_is_refused_leaves_nothing_and_a_held_one_is_changed(
    place: Place, verdict: Any
) -> None:
    file = io.BytesIO(b"new\r\n")
    place.policy = policy = Editing(lambda m: m.replace_body(file), lambda m: m.remove_header("Subject"))
    policy.verdict = verdict
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(HEADER + BODY + b".\r\n")
    (reply,) = await reply_of(client)
    assert file.closed
    if isinstance(verdict, Reject):
        assert reply.startswith("550")
        assert (await place.spool.stats()).total == 0
    else:
        with await place.spool.open_content(reply.split()[-1]) as content:
            assert content.read().endswith(b"\r\n\r\nnew\r\n")


class Failing(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if size == 0:
            return b""
        raise OSError("gone")


@ensureDeferred
async def test_a_file_of_text_is_no_body_and_the_policy_has_failed(place: Place, tmp_path: Path) -> None:
    written = tmp_path / "body.txt"
    written.write_text("new")
    place.on_error = OnError.ACCEPT
    for file in (io.StringIO("new"), written.open(encoding="utf-8")):
        with file:
            place.policy = Editing(lambda m, file=file: m.replace_body(file))
            assert (await spooled(place, HEADER + BODY)).endswith(BODY)


@ensureDeferred
async def test_a_body_that_can_not_be_read_is_local_trouble_and_the_next_message_is_taken(
    place: Place,
) -> None:
    place.policy = Editing(lambda m: m.replace_body(Failing(b"x")))
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(HEADER + BODY + b".\r\n")
    (reply,) = await reply_of(client)
    assert reply.startswith("451 4.3.0")
    place.policy = Editing()
    assert (await spooled(place, HEADER + BODY)).endswith(BODY)
    assert (await place.spool.stats()).total == 1


@ensureDeferred
async def test_a_header_of_many_octets_can_be_edited_and_an_endless_one_is_an_error(place: Place) -> None:
    errors: list[Exception] = []

    def edit(message: Any) -> None:
        try:
            message.remove_header("X-Spam")
        except ValueError as error:
            errors.append(error)

    place.policy = Editing(edit)
    many = b"X-Pad: 0123456789\r\n" * 20_000
    stored = await spooled(place, many + HEADER + BODY)
    assert b"X-Spam" not in stored
    assert stored.endswith(BODY)
    await spooled(place, b"X-Pad: 0123456789\r\n" * 80_000 + BODY)
    assert len(errors) == 1
