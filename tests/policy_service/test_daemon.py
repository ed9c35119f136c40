"""The policy service of a running daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.limit_tables import policy_service_table
from tests.support.valkey import ValkeyServer, eventually

SERVICE = policy_service_table("postfix")
LIMIT = """
[[limit]]
name = "per-user"
per = ["user"]
counts = "recipients"
rates = ["{most}/1h"]
"""


class Asker:
    """A connection as Postfix has it."""

    def __init__(self, daemon: Daemon) -> None:
        self.socket = daemon.socket("postfix", timeout=20)
        self.file = self.socket.makefile("rb")

    def ask(self, **attributes: object) -> str:
        given = {"request": "smtpd_access_policy", "protocol_state": "RCPT", **attributes}
        text = "".join(f"{name}={value}\n" for name, value in given.items()) + "\n"
        self.socket.sendall(text.encode())
        line, empty = self.file.readline(), self.file.readline()
        assert (line[:7], empty) == (b"action=", b"\n"), line
        return line[7:].decode().rstrip("\n")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def test_a_daemon_without_a_listener_is_a_policy_service(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "node", SERVICE + LIMIT.format(most=3))
    text = daemon.config.read_text()
    before, _, rest = text.partition("[[listener]]")
    _, _, behind = rest.partition("\n\n")
    daemon.config.write_text("listener = []\n" + before + behind)
    daemon.start()
    try:
        ready = daemon.records("daemon.ready")[-1]
        assert ready["listeners"] == []
        asker = Asker(daemon)
        answers = [asker.ask(sasl_username="anna", recipient=f"{n}@example.com") for n in range(5)]
        assert [answer == "DUNNO" for answer in answers] == [True] * 3 + [False] * 2
        assert answers[4].startswith("DEFER_IF_PERMIT 4.7.1 ")
        assert asker.ask(sasl_username="bert") == "DUNNO"
        asker.close()
        assert json.loads(daemon.get("/readyz"))
        assert daemon.metric(r'elemta_policy_service_requests_total\{action="dunno"') == 4
        assert daemon.metric(r'elemta_policy_service_requests_total\{action="defer"') == 2
    finally:
        daemon.stop()


def test_a_reload_changes_the_limits_of_open_connections(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "node", SERVICE + LIMIT.format(most=2)).start()
    try:
        asker = Asker(daemon)
        assert [asker.ask(sasl_username="anna") == "DUNNO" for _ in range(3)] == [True, True, False]
        daemon.configure(SERVICE + LIMIT.format(most=4))
        daemon.ctl("reload")
        assert [asker.ask(sasl_username="anna") == "DUNNO" for _ in range(3)] == [True, True, False]
        asker.close()
    finally:
        daemon.kill()


@pytest.mark.parametrize("nodes", [3])
def test_three_nodes_admit_exactly_the_limit_and_go_on_without_valkey(tmp_path: Path, nodes: int) -> None:
    valkey = ValkeyServer().start()
    tables = (
        SERVICE
        + LIMIT.format(most=30)
        + f'[resources]\nvalkey_url = "{valkey.url}"\nvalkey_deadline = "2s"\nmax_requests_per_window = 0\n'
    )
    daemons = []
    for number in range(nodes):
        daemon = Daemon(tmp_path / f"node{number}", "", server=f'node_id = "n{number}"')
        text = daemon.config.read_text()
        head, _, tail = text.partition("[resources]")
        _, _, tail = tail.partition("[[listener]]")
        daemon.config.write_text(head + tables + "[[listener]]" + tail)
        daemons.append(daemon.start())
    try:
        askers = [Asker(daemon) for daemon in daemons]
        answers = [askers[n % nodes].ask(sasl_username="anna", instance=n) for n in range(60)]
        assert answers.count("DUNNO") == 30
        eventually(
            lambda: all(daemon.metric("elemta_live_nodes") == nodes for daemon in daemons), "all nodes known"
        )
        valkey.kill()
        answers = [askers[n % nodes].ask(sasl_username="bert", instance=f"b{n}") for n in range(60)]
        # Each node has its share of 10.
        assert 10 <= answers.count("DUNNO") <= 30
        assert all(answer.startswith(("DUNNO", "DEFER_IF_PERMIT 4.7.1")) for answer in answers)
        for asker in askers:
            asker.close()
    finally:
        for daemon in daemons:
            daemon.kill()
        valkey.stop()


def test_a_malformed_request_closes_its_connection_and_is_logged(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "node", SERVICE).start()
    try:
        other = Asker(daemon)
        with daemon.socket("postfix", timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\n\n")
            assert client.recv(100) == b""
        record = daemon.wait_for("policy_service.request_refused")
        assert (record["service"], record["level"]) == ("postfix", "warn")
        assert other.ask() == "DUNNO"
        other.close()
    finally:
        daemon.kill()


def test_a_name_or_endpoint_that_is_taken_is_a_fault(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "node", SERVICE.replace('"postfix"', '"mx"'))
    done = daemon.ctl("config", "check", check=False)
    assert done.returncode == 78
    assert 'policy_service[1].name: found "mx": a listener has this name' in done.stdout + done.stderr
