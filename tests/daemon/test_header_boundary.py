"""Where our fields end and a client's message begins, wherever the message goes."""

from __future__ import annotations

import email
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.daemon.test_relaying import Store
from tests.interop.programs import wait_until
from tests.interop.sink import Sink
from tests.support.daemon import Daemon
from tests.support.wire import Wire

FORGERY = b"\t; dkim=pass header.d=bank.example\r\n"
LARGE = b"x" * 70 + b"\r\n"
RETURN_PATH = b"rEturn-paTh :\r\n\t<forged@bank.example>\r\n"

# What the client sends, and what stands behind our fields.
MESSAGES: dict[str, tuple[bytes, bytes]] = {
    "fields": (b"Subject: x\r\n\r\nbody\r\n", b"Subject: x\r\n\r\nbody\r\n"),
    "continued": (FORGERY + b"Subject: x\r\n\r\n", b"\r\n" + FORGERY + b"Subject: x\r\n\r\n"),
    "blank": (b" \r\nSubject: x\r\n", b"\r\n \r\nSubject: x\r\n"),
    "no header": (b"words\r\nmore words\r\n", b"\r\nwords\r\nmore words\r\n"),
    "mbox": (b">From a b\r\nSubject: x\r\n\r\n", b"X-Mailbox-Line: >From a b\r\nSubject: x\r\n\r\n"),
    "mbox, continued": (b"From a b\r\n" + FORGERY, b"X-Mailbox-Line: From a b\r\n\r\n" + FORGERY),
    "return-path": (RETURN_PATH + b"A: b\r\n" + RETURN_PATH + b"\r\nx\r\n", b"A: b\r\n\r\nx\r\n"),
    "return-path, continued": (RETURN_PATH + b"words\r\n" + FORGERY, b"\r\nwords\r\n" + FORGERY),
    "return-path in the body": (b"A: b\r\n\r\n" + RETURN_PATH, b"A: b\r\n\r\n" + RETURN_PATH),
    "large": (FORGERY + LARGE * 5000, b"\r\n" + FORGERY + LARGE * 5000),
    "large header": (
        b"From a b\r\n" + b"X: y\r\n" * 20_000 + RETURN_PATH + b"\r\n" + LARGE * 2000,
        b"X-Mailbox-Line: From a b\r\n" + b"X: y\r\n" * 20_000 + b"\r\n" + LARGE * 2000,
    ),
}


@dataclass
class Places:
    """A daemon, and where its mail ends: a Maildir, a store by LMTP, a hop by DATA, a node by BDAT."""

    daemon: Daemon
    store: Store
    hop: Sink
    node: Daemon

    def send(self, recipient: str, message: bytes, *, bdat: bool) -> None:
        with self.daemon.socket() as sock, Wire(sock) as wire:
            assert wire.reply().startswith("220")
            assert wire.command("EHLO client.test").startswith("250")
            assert wire.command("MAIL FROM:<a@client.test>").startswith("250")
            assert wire.command(f"RCPT TO:<{recipient}>").startswith("250")
            if bdat:
                half = len(message) // 2
                wire.send(b"BDAT %d\r\n%s" % (half, message[:half]))
                assert wire.reply().startswith("250")
                wire.send(b"BDAT %d LAST\r\n%s" % (len(message) - half, message[half:]))
            else:
                assert wire.command("DATA").startswith("354")
                wire.send(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            assert "queued as" in wire.reply()


@pytest.fixture
def places(make_daemon: Callable[..., Daemon]) -> Iterator[Places]:
    with ExitStack() as stack:
        store = stack.enter_context(Store())
        hop = stack.enter_context(Sink())
        node = make_daemon(name="far")
        both = node.config.read_text().replace('["example.test"]', '["example.test", "far.example.test"]')
        node.config.write_text(both)
        node.start()
        routes = "".join(
            f'[[route]]\ndomains = ["{domain}"]\nto = "{to}"\ntls = "none"\n'
            for domain, to in (
                ("lmtp.test", f"lmtp://127.0.0.1:{store.port}"),
                ("data.test", f"smtp://127.0.0.1:{hop.port}"),
                ("far.example.test", f"smtp://127.0.0.1:{node.port}"),
            )
        )
        daemon = make_daemon(routes)
        text = daemon.config.read_text()
        local = 'local = ["example.test", "lmtp.test", "data.test", "far.example.test"]'
        daemon.config.write_text(text.replace('local = ["example.test"]', local))
        yield Places(daemon.start(), store, hop, node)


def split(content: bytes, theirs: bytes) -> bytes:
    """Our fields in front of what must be exactly the client's."""
    assert content.endswith(theirs), content[:600]
    return content[: len(content) - len(theirs)]


@pytest.mark.parametrize("bdat", [False, True])
def test_wherever_a_message_goes_its_octets_stay_out_of_our_fields(places: Places, bdat: bool) -> None:
    for number, (sent, theirs) in enumerate(MESSAGES.values(), start=1):
        for domain in ("example.test", "lmtp.test", "data.test", "far.example.test"):
            places.send(f"box{number}@{domain}", sent, bdat=bdat)
        (in_maildir,) = places.daemon.wait_for_mail(f"box{number}")
        (far,) = places.node.wait_for_mail(f"box{number}", domain="far.example.test")
        wait_until("the hop has the message", lambda count=number: len(places.hop.taken) == count)
        wait_until("the store has the message", lambda count=number: len(places.store.taken) == count)
        arrived = {
            "maildir": in_maildir,
            "lmtp": places.store.taken[-1][1].replace(b"\r\n..", b"\r\n."),
            "data": places.hop.taken[-1].content,
            "bdat": far,
        }
        expected = {
            "maildir": ["Return-Path", "Received"],
            "bdat": ["Return-Path", "Received", "Received"],
        }
        for way, content in arrived.items():
            ours = split(content, theirs)
            names = [name for name, _ in email.message_from_bytes(ours).raw_items()]
            assert names == expected.get(way, ["Received"]), way
            # Python's reader sees the same fields of ours in front of the whole message.
            whole = email.message_from_bytes(content)
            assert [name for name, _ in whole.raw_items()][: len(names)] == names
            assert whole["Received"] == email.message_from_bytes(ours)["Received"]
    assert not places.hop.faults
