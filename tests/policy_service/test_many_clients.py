"""Hundreds of clients that send garbage, stop, pipeline or leave, at a real daemon: others are answered."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.limit_tables import limit_table, policy_service_table
from tests.support.valkey import eventually

CLIENTS = 400
TABLES = policy_service_table("postfix") + limit_table("per-user", "user", "recipients", "3/1h")
REQUEST = b"request=smtpd_access_policy\nprotocol_state=RCPT\nsasl_username=%s\n\n"


def garbage(client: socket.socket, dice: random.Random) -> None:
    client.sendall(dice.randbytes(dice.randrange(1, 4000)) + b"\n\n")


def endless(client: socket.socket, _dice: random.Random) -> None:
    client.sendall(b"a=" + b"x" * 70_000)


def slow(client: socket.socket, dice: random.Random) -> None:
    client.sendall((REQUEST % b"slow")[: dice.randrange(1, 30)])


def pipelined(client: socket.socket, dice: random.Random) -> None:
    client.sendall(REQUEST % (b"user%d" % dice.randrange(50)) * dice.randrange(2, 60))


def half_closed(client: socket.socket, dice: random.Random) -> None:
    pipelined(client, dice)
    client.shutdown(socket.SHUT_WR)


def cut_off(client: socket.socket, dice: random.Random) -> None:
    slow(client, dice)
    client.shutdown(socket.SHUT_WR)


def silent(_client: socket.socket, _dice: random.Random) -> None:
    """An idle connection, as Postfix keeps it."""


def gone(client: socket.socket, dice: random.Random) -> None:
    pipelined(client, dice)
    client.close()


KINDS: tuple[Callable[[socket.socket, random.Random], None], ...] = (
    garbage, endless, slow, pipelined, half_closed, cut_off, silent, gone,
)  # fmt: skip


def answers(client: socket.socket) -> list[bytes]:
    """All answers up to the end of the connection."""
    client.settimeout(60)
    heard = b""
    while part := client.recv(65536):
        heard += part
    assert heard == b"" or heard.endswith(b"\n\n")
    return heard.split(b"\n\n")[:-1]


def test_hostile_clients_do_not_keep_others_from_their_answers(tmp_path: Path) -> None:
    dice = random.Random(15)
    daemon = Daemon(tmp_path / "node", TABLES).start()
    clients = []
    try:
        for number in range(CLIENTS):
            client = daemon.socket("postfix", timeout=60)
            kind = KINDS[number % len(KINDS)]
            kind(client, dice)
            clients.append((kind, client))
        with daemon.socket("postfix", timeout=60) as good:
            good.sendall(REQUEST % b"anna" * 5)
            good.shutdown(socket.SHUT_WR)
            found = answers(good)
        assert [answer == b"action=DUNNO" for answer in found] == [True] * 3 + [False] * 2
        for kind, client in clients:
            if kind is half_closed:
                assert 2 <= len(answers(client)) < 60
            elif kind is cut_off:
                assert answers(client) == []
            client.close()
        connections = r"elemta_policy_service_connections_open\{"
        eventually(lambda: daemon.metric(connections) == 0, "every connection is closed")
        assert not daemon.records("policy_service.internal_error")
        # Each user passed three times, whatever the connection.
        passed = daemon.metric(r'elemta_policy_service_requests_total\{action="dunno"')
        assert 3 <= passed <= 3 * 51
    finally:
        for _, client in clients:
            client.close()
        daemon.kill()
