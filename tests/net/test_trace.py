"""Live conversations for a watcher: without secrets and content, bounded, and only while it watches."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from elemta.conversation_trace import MOST_LINES, MOST_WATCHES, UNREAD_SECONDS, ConversationTrace
from elemta.daemon.trace_operations import WAIT_SECONDS, TraceOperations
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal
from elemta.runtime import Runtime
from elemta.smtp.client import ClientSession, ClientSettings
from elemta.smtp.trace_lines import HIDDEN, shown_command, shown_line
from tests.net.conftest import Client, Place

SECRET = base64.b64encode(b"\0anna\0correct horse").decode()


class Watcher:
    """The calls of one operator on a place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.calls = CallTable(TraceOperations(Runtime.of(place.clock), place.registry.trace, place.registry))
        self.name = ""

    async def begin(self, query: str = "") -> None:
        self.name = str((await self.calls.answer("POST", f"/v1/trace{query}"))["id"])  # type: ignore[call-overload, index]

    async def read(self) -> Any:
        return await self.calls.answer("GET", f"/v1/trace/{self.name}")

    async def texts(self) -> list[str]:
        return [f"{line['sent_by'][:1]} {line['text']}" for line in (await self.read())["lines"]]


def converse(client: Client, recipient: str = "b@example.test") -> None:
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    client.send(f"RCPT TO:<{recipient}>\r\n".encode())


@ensureDeferred
async def test_a_conversation_is_shown_as_it_goes_on_and_content_is_not(place: Place) -> None:
    watcher = Watcher(place)
    early = place.connect("192.0.2.9")
    early.send(b"EHLO early.test\r\n")
    assert early.protocol._session.state.trace is None
    await watcher.begin()
    early.send(b"NOOP my password\r\n")
    client = place.connect("192.0.2.1")
    client.envelope()
    client.send(b"Secret: content\r\n\r\nbody\r\n")
    texts = await watcher.texts()
    assert texts[:2] == [f"c NOOP {HIDDEN}", "s 250 2.0.0 OK"]
    assert texts[2:] == [
        "s 220 mx.test ESMTP Elemta",
        "c EHLO client.test",
        texts[4],
        "c MAIL FROM:<a@client.test>",
        "s 250 2.1.0 Sender OK",
        "c RCPT TO:<b@example.test>",
        "s 250 2.1.5 Recipient OK",
        "c DATA",
        "s 354 Start mail input; end with <CRLF>.<CRLF>",
    ]
    client.lose()
    assert await watcher.texts() == [" the connection is closed"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"AUTH PLAIN {SECRET}", f"AUTH PLAIN {HIDDEN}"),
        ("auth login", None),
        ("AUTH LOGIN", "AUTH LOGIN"),
        (f"AUTH {SECRET}", f"AUTH {HIDDEN}"),
        (SECRET, f"{HIDDEN}: no command, {len(SECRET)} characters"),
        ("PASS correct horse", f"{HIDDEN}: no command, {len('PASScorrect horse')} characters"),
        ("MAIL correct horse", f"MAIL {HIDDEN}"),
        ("RCPT TO:<b@example.test> NOTIFY=NEVER", "RCPT TO:<b@example.test> NOTIFY=NEVER"),
        ("QUIT correct horse", f"QUIT {HIDDEN}"),
        ("RSET", "RSET"),
        ("BDAT 17 LAST", "BDAT 17 LAST"),
        ("BDAT correct horse", f"BDAT {HIDDEN}"),
        ("VRFY correct", f"VRFY {HIDDEN}"),
    ],
)
def test_what_may_be_a_secret_is_not_shown(line: str, shown: str | None) -> None:
    verb, _, argument = line.partition(" ")
    known = verb in ("AUTH", "MAIL", "RCPT", "QUIT", "RSET", "BDAT", "VRFY")
    if shown is not None:
        assert shown_command(verb, argument, known=known) == shown
        assert "horse" not in shown
        assert SECRET not in shown


@pytest.mark.parametrize(
    "octets",
    [
        b"AUTH PLAIN " + SECRET.encode() + b"\r\n",
        SECRET.encode() + b"\r\n",
        b"correct\x07horse\r\n",
        b"x" * 3000 + b"horse\r\n",
        b"AUTH LOGIN " + SECRET.encode() + b"\r\n" + SECRET.encode() + b"\r\n",
    ],
)
@ensureDeferred
async def test_no_line_of_a_client_shows_a_secret(place: Place, octets: bytes) -> None:
    watcher = Watcher(place)
    await watcher.begin()
    client = place.connect()
    client.send(b"EHLO client.test\r\n" + octets)
    texts = await watcher.texts()
    assert any(HIDDEN in text for text in texts)
    assert not any("horse" in text or SECRET in text for text in texts)


@ensureDeferred
async def test_conversations_are_chosen_by_client_and_by_recipient_from_their_last_lines_on(
    place: Place,
) -> None:
    by_ip, by_domain = Watcher(place), Watcher(place)
    await by_ip.begin("?ip=192.0.2.0/25")
    await by_domain.begin("?to=Example.ORG")
    converse(place.connect("192.0.2.200"))
    converse(place.connect("192.0.2.7"))
    other = place.connect("2001:db8::1")
    converse(other, "x@EXAMPLE.org")
    assert {line["peer"] for line in (await by_ip.read())["lines"]} == {"192.0.2.7"}
    lines = (await by_domain.read())["lines"]
    assert {line["peer"] for line in lines} == {"2001:db8::1"}
    assert lines[0]["text"] == "220 mx.test ESMTP Elemta"
    assert lines[-1]["text"] == "250 2.1.5 Recipient OK"
    other.send(b"RCPT TO:<y@example.net>\r\n")
    assert len((await by_domain.read())["lines"]) == 2


@ensureDeferred
async def test_with_one_it_ends_with_the_first_conversation(place: Place) -> None:
    watcher = Watcher(place)
    await watcher.begin("?one=true")
    first, second = place.connect("192.0.2.1"), place.connect("192.0.2.2")
    converse(second)
    first.lose()
    page = await watcher.read()
    assert {line["peer"] for line in page["lines"]} == {"192.0.2.1"}
    assert page["ended"] is True
    with pytest.raises(AdminRefusal, match="no such watch"):
        await watcher.read()
    assert place.registry.trace.watches == ()


@ensureDeferred
async def test_a_reader_waits_for_a_line_and_no_longer_than_ten_seconds(place: Place) -> None:
    watcher = Watcher(place)
    await watcher.begin()
    pages: list[Any] = []
    Deferred.fromCoroutine(watcher.read()).addCallback(pages.append)
    place.clock.advance(WAIT_SECONDS - 0.1)
    assert pages == []
    place.clock.advance(0.1)
    assert pages == [{"lines": [], "lost": 0, "ended": False}]
    Deferred.fromCoroutine(watcher.read()).addCallback(pages.append)
    place.connect()
    assert [line["text"] for line in pages[1]["lines"]] == ["220 mx.test ESMTP Elemta"]
    assert place.clock.getDelayedCalls() == [] or all(
        call.getTime() - place.clock.seconds() != WAIT_SECONDS for call in place.clock.getDelayedCalls()
    )


@ensureDeferred
async def test_a_watch_that_is_not_read_loses_the_oldest_lines_and_then_ends(place: Place) -> None:
    watcher = Watcher(place)
    await watcher.begin()
    client = place.connect()
    for _ in range(MOST_LINES // 2 + 50):
        client.send(b"NOOP\r\n")
    page = await watcher.read()
    assert page["lost"] == 2 * (MOST_LINES // 2 + 50) + 1 - MOST_LINES
    rest = [await watcher.read() for _ in range(3)]
    assert sum(len(each["lines"]) for each in (page, *rest)) == MOST_LINES
    assert all(each["lost"] == 0 for each in rest)
    place.clock.advance(UNREAD_SECONDS + 1)
    client.send(b"NOOP\r\n")
    assert place.registry.trace.watches == ()
    client.send(b"NOOP\r\n")
    # What follows it now finds no watch, and a new conversation is not followed at all.
    assert place.connect().protocol._session.state.trace is None


@ensureDeferred
async def test_there_are_so_many_watches_and_no_more(place: Place) -> None:
    watchers = [Watcher(place) for _ in range(MOST_WATCHES)]
    for watcher in watchers:
        await watcher.begin()
    with pytest.raises(AdminRefusal, match="as many watches"):
        await Watcher(place).begin()
    await watchers[0].calls.answer("DELETE", f"/v1/trace/{watchers[0].name}")
    await Watcher(place).begin()


# With next hops


class _Hop:
    """A next hop that is replied for by the test."""

    def __init__(self, trace: ConversationTrace) -> None:
        self.session = ClientSession(ClientSettings(hostname="mx.test"))
        self.session.follow(trace.conversation("out", "Q1", None, "hop.test:25"))

    def replies(self, *lines: str) -> None:
        for line in lines:
            self.session.receive(f"{line}\r\n".encode())


def _texts(trace: ConversationTrace, watch: Any) -> Sequence[str]:
    return [f"{line.sent_by[:1]} {line.text}" for line in trace.take(watch, 100)[0]]


def _clock(at: float) -> Callable[[], float]:
    return lambda: at


def test_a_conversation_with_a_next_hop_is_shown() -> None:
    trace = ConversationTrace(_clock(1.0), _clock(1.0))
    watch = trace.watch()
    assert watch is not None
    hop = _Hop(trace)
    hop.replies("220 hop.test ESMTP", "250-hop.test", "250 SIZE")
    hop.session.quit()
    assert _texts(trace, watch) == [
        "s 220 hop.test ESMTP",
        "c EHLO mx.test",
        "s 250 hop.test SIZE",
        "c QUIT",
    ]


@pytest.mark.parametrize(
    ("verb", "line", "shown"),
    [
        ("AUTH", f"AUTH PLAIN {SECRET}\r\n", f"AUTH PLAIN {HIDDEN}"),
        ("AUTH", f"{SECRET}\r\n", HIDDEN),
        ("BDAT", "BDAT 9 LAST\r\ncontent\r\n", "BDAT 9 LAST"),
        ("RCPT", "RCPT TO:<b@Example.org>\r\n", "RCPT TO:<b@Example.org>"),
    ],
)
def test_what_this_host_says_to_a_next_hop_shows_no_secret_and_no_content(
    verb: str, line: str, shown: str
) -> None:
    assert shown_line(verb, line.encode())[0] == shown


def test_a_next_hop_of_another_network_is_not_shown() -> None:
    trace = ConversationTrace(_clock(1.0), _clock(1.0))
    watch = trace.watch(ip_network("192.0.2.0/24"))
    _Hop(trace).replies("220 hop.test ESMTP")
    assert _texts(trace, watch) == []
