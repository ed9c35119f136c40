"""Large messages stream: what they cost a real daemon in memory, on the way in and on the way out."""

from __future__ import annotations

import contextlib
import hashlib
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import Wire

_MIB = 1 << 20
#: One message, in octets: 50 MB, in lines that are as long as they may be.
_LINE = b"x" * 998 + b"\r\n"
_LINES = 50_000
_HEAD = b"Subject: large\r\n\r\n"
_PIECE = _LINE * 100
#: What memory may grow by. Neither depends on the size of a message.
_FOR_ONE = 10 * _MIB
_FOR_TEN = 30 * _MIB


def _digest() -> str:
    digest = hashlib.sha256(_HEAD)
    for _ in range(_LINES // 100):
        digest.update(_PIECE)
    return digest.hexdigest()


DIGEST = _digest()


class _Hop(socketserver.StreamRequestHandler):
    """Takes a message without keeping it."""

    timeout = 60

    def handle(self) -> None:
        self._say("220 sink.test ESMTP")
        while line := self.rfile.readline(2000):
            if line[:4] == b"DATA":
                self._say("354 go on")
                self._take()
            self._say("250 OK")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(text.encode() + b"\r\n")

    def _take(self) -> None:
        digest = hashlib.sha256()
        inside = False
        while (line := self.rfile.readline()) != b".\r\n":
            if not line:
                return
            inside = inside or line.startswith(b"Subject:")
            if inside:
                digest.update(line)
        assert isinstance(self.server, _Sink)
        self.server.digests.append(digest.hexdigest())


class _Sink(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 100  # a full queue leaves connections half open, until the greeting's deadline

    def __init__(self) -> None:
        self.digests: list[str] = []
        super().__init__(("127.0.0.1", 0), _Hop)


@pytest.fixture
def sink() -> Iterator[_Sink]:
    with _Sink() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=10)


@pytest.fixture
def node(tmp_path: Path, sink: _Sink) -> Iterator[Daemon]:
    daemon = Daemon(
        tmp_path / "node",
        f'[[route]]\ndomains = ["sink.test"]\nto = "smtp://127.0.0.1:{sink.server_address[1]}"\n',
        domains='relay_from = ["127.0.0.0/8"]\n[submission]\nadd_missing = false\n',
    )
    yield daemon.start()
    daemon.kill()


def _memory(daemon: Daemon, field: str) -> int:
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _send(daemon: Daemon, recipient: str, pieces: int, replies: list[str]) -> None:
    with Wire(daemon.socket(timeout=60)) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        wire.send(f"MAIL FROM:<a@client.test>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode())
        assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
        wire.send(_HEAD)
        for _ in range(pieces):
            wire.send(_PIECE)
        wire.send(b".\r\n")
        replies.append(wire.reply())


def _send_at_once(daemon: Daemon, recipients: list[str], pieces: int = _LINES // 100) -> None:
    """Send to each recipient over a connection of its own, and wait until the queue is empty."""
    replies: list[str] = []
    threads = [
        threading.Thread(target=_send, args=(daemon, recipient, pieces, replies)) for recipient in recipients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(replies) == len(recipients)
    assert all("queued as" in reply for reply in replies), replies
    deadline = time.monotonic() + 60
    while daemon.metric("elemta_spool_messages"):
        assert time.monotonic() < deadline, daemon.output()[-4000:]
        time.sleep(0.05)


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    inside = False
    with path.open("rb") as file:
        for line in file:
            inside = inside or line.startswith(b"Subject:")
            if inside:
                digest.update(line)
    return digest.hexdigest()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("count", "bound"), [(1, _FOR_ONE), (10, _FOR_TEN)], ids=["one", "ten at once"])
def test_messages_of_50_mb_do_not_pass_through_memory(
    node: Daemon, sink: _Sink, count: int, bound: int, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [f"u{number}@example.test" for number in range(count)]
    hops = [f"s{number}@sink.test" for number in range(count)]
    # Threads, connections and caches that small messages need as well are no cost of large ones.
    _send_at_once(node, (boxes + hops) * 2, pieces=2)
    sink.digests.clear()
    before = _memory(node, "VmRSS")
    grown = {}
    for way, recipients in (("Maildir", boxes), ("next hop", hops)):
        Path(f"/proc/{node.pid}/clear_refs").write_text("5")  # the peak begins anew
        begun = time.monotonic()
        _send_at_once(node, recipients)
        grown[way] = _memory(node, "VmHWM") - before
        with capsys.disabled():
            print(
                f"\n  {count} x 50 MB to a {way}: {grown[way] / _MIB:.1f} MiB over {before / _MIB:.0f} MiB"
                f" at the peak, {time.monotonic() - begun:.1f} s",
                end="",
            )
    assert sink.digests == [DIGEST] * count
    for number in range(count):
        *_, large = sorted(node.mailbox(f"u{number}"), key=lambda path: path.stat().st_size)
        assert _digest_of(large) == DIGEST
        large.unlink()
    assert max(grown.values()) < bound, grown
