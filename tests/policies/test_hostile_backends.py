"""Backends that misbehave for good: each is bounded in time and memory, and costs no other session."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

TIMEOUT = 2.0
PIECE = b"x" * 65536


def floods(connection: socket.socket) -> None:
    """Up to 1 GB, as fast as it is read."""
    for _ in range(16 * 1024):
        connection.sendall(PIECE)


def floods_http(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    floods(connection)


def drips(connection: socket.socket) -> None:
    """An octet now and then, for ever."""
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def is_silent(connection: socket.socket) -> None:
    """Reads all, and never answers."""
    while connection.recv(65536):
        pass


def breaks_off(connection: socket.socket) -> None:
    connection.recv(10)


def says_garbage(connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 16)
    connection.recv(65536)


class Backend:
    """A server on a port of its own, where every connection meets the behaviour of the moment."""

    def __init__(self) -> None:
        self.behaves: Callable[[socket.socket], None] = is_silent
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.behaves(connection)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.close()


POLICIES = ("rspamd", "clamav", "policy-client", "milter")


@pytest.fixture(scope="module")
def daemon(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    endpoint = f'endpoint = "tcp:host=127.0.0.1:port={backend.port}"'
    where = {"rspamd": f'url = "http://127.0.0.1:{backend.port}"'}
    tables = "".join(
        f'[[listener]]\nname = "{name}"\nendpoint = "tcp:0:interface=127.0.0.1"\n'
        f'[policy.{name}]\ntimeout = "{TIMEOUT:g}s"\nlisteners = ["{name}"]\n{where.get(name, endpoint)}\n'
        for name in POLICIES
    )
    made = Daemon(
        tmp_path_factory.mktemp("hostile"),
        f'[policies]\nchain = ["relay", "rspamd", "clamav", "policy-client", "milter"]\n{tables}',
    )
    yield made.start()
    made.stop()


def memory(daemon: Daemon) -> int:
    """The resident memory of the daemon, in KiB."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def send(daemon: Daemon, listener: str) -> int:
    """The code that a client reads in the end."""
    try:
        with daemon.client(listener) as client:
            client.sendmail("a@client.test", ["b@example.test"], "Subject: s\r\n\r\nHello\r\n")
    except smtplib.SMTPResponseException as error:
        return error.smtp_code
    except smtplib.SMTPRecipientsRefused as error:
        return next(iter(error.recipients.values()))[0]
    except smtplib.SMTPServerDisconnected:
        return 421
    return 250


@pytest.mark.parametrize("behaviour", [floods, floods_http, drips, is_silent, breaks_off, says_garbage])
def test_a_backend_that_misbehaves_costs_its_own_clients_a_4xx_and_no_others(
    daemon: Daemon, backend: Backend, behaviour: Callable[[socket.socket], None]
) -> None:
    backend.behaves = behaviour
    before = memory(daemon)
    codes: dict[str, int] = {}

    def client(listener: str) -> None:
        codes[listener] = send(daemon, listener)

    threads = [threading.Thread(target=client, args=(name,)) for name in POLICIES]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # Meanwhile the others are served: this one asks none of the four.
        assert send(daemon, "mx") == 250
    assert time.monotonic() - began < 60
    assert {code // 100 for code in codes.values()} == {4}, codes
    assert sorted(codes) == sorted(POLICIES)
    # An answer of HTTP is read up to 16 MiB.
    assert memory(daemon) - before < 120 * 1024


def test_connections_to_backends_do_not_pile_up(daemon: Daemon, backend: Backend) -> None:
    backend.behaves = says_garbage
    for name in POLICIES:
        for _ in range(5):
            assert send(daemon, name) // 100 == 4
    places = [path.readlink() for path in Path(f"/proc/{daemon.pid}/fd").iterdir() if path.is_symlink()]
    assert len(places) < 100
