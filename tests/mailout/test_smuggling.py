"""What one server takes for the end of a message and another does not: it leaves Elemta as one message.

With ``bare_newline = "normalize"`` Elemta accepts messages with bare line ends. Each of them holds commands
that would be executed by a next hop that saw an end where there is none, and goes to Postfix, Exim and a
server that notes every octet out of place, by DATA and, where offered, by BDAT.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.interop.exim import Exim
from tests.interop.postfix import Postfix
from tests.interop.programs import wait_until
from tests.interop.sink import Sink
from tests.support.daemon import Daemon
from tests.support.wire import Wire

pytestmark = pytest.mark.servers

VARIANTS = {
    "lf dot lf": b"\n.\n",
    "lf dot crlf": b"\n.\r\n",
    "lf dot cr": b"\n.\r",
    "cr dot cr": b"\r.\r",
    "cr dot lf": b"\r.\n",
    "cr dot crlf": b"\r.\r\n",
    "crlf dot lf": b"\r\n.\n",
    "crlf dot cr": b"\r\n.\r",
    "crcrlf dot crcrlf": b"\r\r\n.\r\r\n",
    "lfcr dot lfcr": b"\n\r.\n\r",
    "crlf lf dot crlf": b"\r\n\n.\r\n",
    "lf crlf dot lf": b"\n\r\n.\n",
    "dot dot": b"\n..\n.\r..\r.\n",
}
# These have a NUL, which no mode accepts.
REFUSED = {
    "nul before": b"\r\n\x00.\r\n",
    "nul behind": b"\r\n.\x00\r\n",
    "nul inside": b"\r\x00\n.\r\n",
}
# By BDAT a message may hold even the end of one that is sent by DATA (RFC 3030 §3).
BY_BDAT = {**VARIANTS, "crlf dot crlf": b"\r\n.\r\n"}

SMUGGLED = b"MAIL FROM:<evil@client.test>\r\nRCPT TO:<target@far.test>\r\nDATA\r\nSubject: evil\r\n\r\n"


class NextHop(Protocol):
    """Where the mail of a test ends."""

    port: int

    def messages(self) -> list[bytes]:
        """All that it took, with the line ends of the system."""

    def ways(self) -> set[str]:
        """The commands by which it got messages, once their senders are gone."""

    def faults(self) -> list[str]:
        """What it took amiss."""


class _Postfix:
    def __init__(self, directory: Path, *, chunking: bool) -> None:
        more = "" if chunking else "smtpd_discard_ehlo_keywords = chunking\n"
        self._postfix = Postfix.with_mailboxes(directory, "far.test", ["box", "target"], more=more).start()
        self.port = self._postfix.port
        self.stop = self._postfix.stop

    def messages(self) -> list[bytes]:
        return self._postfix.mailbox("box") + self._postfix.mailbox("target")

    def ways(self) -> set[str]:
        partings = [line for line in self._postfix.log().splitlines() if " disconnect from " in line]
        return {way.upper() for line in partings for way in re.findall(r" (data|bdat)=", line)}

    def faults(self) -> list[str]:
        found = [line for line in self._postfix.log().splitlines() if re.search("warning|reject|fatal", line)]
        # A file system whose clock is a tick behind or ahead, on a machine that is busy, is no mail.
        return [line for line in found if not re.search("file system clock|file time stamps", line)]


class _Exim:
    def __init__(self, directory: Path, *, chunking: bool) -> None:
        self._exim = Exim(directory, chunking=chunking).start()
        self.port = self._exim.port
        self.stop = self._exim.stop

    def messages(self) -> list[bytes]:
        return self._exim.messages()

    def ways(self) -> set[str]:
        # Exim notes K for CHUNKING.
        arrivals = [line for line in self._exim.log().splitlines() if " <= " in line]
        return {"BDAT" if " K " in line else "DATA" for line in arrivals}

    def faults(self) -> list[str]:
        return [line for line in self._exim.log().splitlines() if re.search("rror|rejected|panic", line)]


class _Strict:
    def __init__(self) -> None:
        self._sink = Sink("PIPELINING", "8BITMIME").__enter__()
        self.port = self._sink.port

    def stop(self) -> None:
        self._sink.__exit__(None, None, None)

    def messages(self) -> list[bytes]:
        return [taken.content.replace(b"\r\n", b"\n") for taken in list(self._sink.taken)]

    def ways(self) -> set[str]:
        return {"DATA"}  # it knows no other

    def faults(self) -> list[str]:
        return self._sink.faults


def _start(name: str, directory: Path) -> _Postfix | _Exim | _Strict:
    program, _, way = name.partition(" by ")
    if program == "Postfix":
        return _Postfix(directory, chunking=way == "BDAT")
    return _Exim(directory, chunking=way == "BDAT") if program == "Exim" else _Strict()


@pytest.fixture(
    params=["a strict server by DATA", "Postfix by DATA", "Postfix by BDAT", "Exim by DATA", "Exim by BDAT"]
)
def hop(request: pytest.FixtureRequest, open_directory: Path) -> Iterator[NextHop]:
    """The next hops, one after the other."""
    started = _start(request.param, open_directory / request.param.replace(" ", "-"))
    yield started
    started.stop()


@pytest.fixture
def node(hop: NextHop, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that accepts bare line ends, and whose mail goes to the next hop."""
    daemon = Daemon(
        tmp_path / "node",
        f'[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{hop.port}"\n',
        server='bare_newline = "normalize"',
        domains='relay_from = ["127.0.0.0/8"]',
    ).start()
    yield daemon
    daemon.kill()


def test_each_variant_leaves_as_one_canonical_message(
    hop: NextHop, node: Daemon, request: pytest.FixtureRequest
) -> None:
    sent: dict[str, bytes] = {}
    with _Smuggler(node) as smuggler:
        for pieces in ("whole", "in pieces"):
            for name, variant in VARIANTS.items():
                ident, content = _message(f"{name} by DATA {pieces}", variant)
                assert smuggler.by_data(content, split=pieces != "whole").startswith("250")
                sent[ident] = _canonical(_without_dots(content))
            for name, variant in BY_BDAT.items():
                ident, content = _message(f"{name} by BDAT {pieces}", variant)
                assert smuggler.by_bdat(content, split=pieces != "whole").startswith("250")
                sent[ident] = _canonical(content)
        for name, variant in REFUSED.items():
            assert smuggler.by_data(_message(name, variant)[1], split=False).startswith("550 5.6.0")
    accepted = node.records("message.accepted")
    assert len(accepted) == len(sent)
    assert {record["sender"] for record in accepted} == {"honest@client.test"}

    wait_until("all mail", lambda: len(hop.messages()) >= len(sent))
    wait_until("the end of all deliveries", lambda: node.metric("elemta_spool_messages") == 0)
    came = [(_subject(message), message) for message in hop.messages()]
    assert sorted(ident for ident, _ in came) == sorted(sent)
    for ident, message in came:
        assert message.endswith(b"\n\n" + sent[ident].replace(b"\r\n", b"\n")), ident
    node.stop()
    wait_until("a look at how it came", lambda: bool(hop.ways()))
    assert hop.ways() == {request.node.callspec.params["hop"].rpartition(" ")[2]}
    assert hop.faults() == []


class _Smuggler:
    """A client that pipelines nothing but puts odd octets into its messages."""

    def __init__(self, node: Daemon) -> None:
        self._wire = Wire(node.socket())
        self._wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> _Smuggler:
        assert self._wire.reply().startswith("220")
        assert "CHUNKING" in self._wire.command("EHLO client.test")
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.sock.close()

    def _begin(self) -> None:
        assert self._wire.command("MAIL FROM:<honest@client.test>").startswith("250")
        assert self._wire.command("RCPT TO:<box@far.test>").startswith("250")

    def by_data(self, content: bytes, *, split: bool) -> str:
        self._begin()
        assert self._wire.command("DATA").startswith("354")
        content += b".\r\n"
        for start in range(0, len(content), 3 if split else len(content)):
            self._wire.send(content[start : start + (3 if split else len(content))])
        reply = self._wire.reply()
        # One reply for one message: nothing that was inside it was executed.
        assert self._wire.command("NOOP").startswith("250 2.0.0")
        return reply

    def by_bdat(self, content: bytes, *, split: bool) -> str:
        self._begin()
        # In the middle of the variant, which is two octets behind the word.
        cut = content.index(b"outer") + 7 if split else 0
        if cut:
            self._wire.send(b"BDAT %d\r\n" % cut + content[:cut])
            assert self._wire.reply().startswith("250")
        self._wire.send(b"BDAT %d LAST\r\n" % (len(content) - cut) + content[cut:])
        reply = self._wire.reply()
        assert self._wire.command("NOOP").startswith("250 2.0.0")
        return reply


def _message(ident: str, variant: bytes) -> tuple[str, bytes]:
    content = b"Subject: %s\r\n\r\nouter" % ident.encode() + variant + SMUGGLED + b"inner\r\n"
    return ident, content


def _without_dots(content: bytes) -> bytes:
    # RFC 5321 §4.5.2, written apart from the daemon's own.
    return b"\r\n".join(line[1:] if line[:1] == b"." else line for line in content.split(b"\r\n"))


def _canonical(content: bytes) -> bytes:
    """The body with every CR, LF and CRLF as one CRLF."""
    body = content.partition(b"\r\n\r\n")[2]
    return re.sub(rb"\r\n|\r|\n", b"\r\n", body)


def _subject(message: bytes) -> str:
    found = re.search(rb"^Subject: (.*)$", message, re.MULTILINE)
    assert found, message
    return found[1].decode()
