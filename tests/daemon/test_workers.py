"""``[server] workers``: several processes behind the sockets of one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import signal
import smtplib
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.test_start import AS_SYSTEMD
from tests.daemon.test_systemd import Systemd
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.valkey import valkey_server

TABLES = """
[[route]]
domains = ["later.test"]
to = "smtp://127.0.0.1:1"
"""
PATIENCE = 60.0
PER_IP = {"ELEMTA_RESOURCES_MAX_CONNECTIONS_PER_IP": "25"}


def make(directory: Path, tables: str = "", **options: Any) -> Daemon:
    """A daemon with two workers, through which mail for ``later.test`` stays in the queue."""
    domains = 'relay_from = ["127.0.0.0/8"]\n'
    return Daemon(directory, TABLES + tables, server="workers = 2\n", domains=domains, **options)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for the tests that leave it running. Its listener ``implicit`` begins with TLS."""
    directory = tmp_path_factory.mktemp("workers")
    implicit = '[[listener]]\nname = "implicit"\nendpoint = "tcp:0:interface=127.0.0.1"\ntls = "implicit"\n'
    daemon = make(directory / "node", implicit + make_certificate(directory).table, environ=PER_IP).start()
    yield daemon
    daemon.kill()


def submit(
    client: smtplib.SMTP, recipient: str = "box@example.test", *, sender: str = "a@client.test"
) -> str:
    """Send a message; its queue id."""
    client.mail(sender)
    client.rcpt(recipient)
    code, reply = client.data(b"Subject: x\r\n\r\nx\r\n")
    assert code == 250, reply
    found = re.search(rb"queued as ([0-9A-Z]+)", reply)
    assert found is not None
    return found[1].decode()


def worker_of(daemon: Daemon, queue_id: str) -> int:
    """The worker that took a message."""
    return int(daemon.wait_for("message.accepted", queue_id=queue_id)["worker"])


@contextlib.contextmanager
def a_client_of_each(daemon: Daemon) -> Iterator[dict[int, smtplib.SMTP]]:
    """A session on each of the two workers, over which a message was sent already.

    Each is from another sender: it may take many until the second worker has one, and a limit knows none.
    """
    with contextlib.ExitStack() as opened:
        found: dict[int, smtplib.SMTP] = {}
        for number in itertools.count():
            if len(found) == 2:
                break
            client = daemon.client()
            client.ehlo()
            queue_id = submit(client, sender=f"probe-{number}@client.test")
            if found.setdefault(worker_of(daemon, queue_id), client) is client:
                opened.enter_context(client)
            else:
                client.quit()
        yield found


def until_queued(daemon: Daemon, count: int) -> None:
    """Wait until so many messages are left in the queue."""
    deadline = time.monotonic() + PATIENCE
    while json.loads(daemon.ctl("--json", "queue", "stats").stdout)["total"]["messages"] != count:
        assert time.monotonic() < deadline, daemon.output()


def pid_of(daemon: Daemon, worker: int) -> int:
    """The process id of a worker's newest process."""
    ready = [record for record in daemon.records("worker.ready") if record["worker"] == worker]
    return int(ready[-1]["pid"])


def until_gone(pid: int) -> None:
    """Wait until there is no such process, or only its entry is left."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


def test_mail_over_two_workers_arrives(daemon: Daemon) -> None:
    before = len(daemon.mailbox("both"))
    with a_client_of_each(daemon) as clients:
        ids = [submit(client, "both@example.test") for client in clients.values() for _ in range(10)]
    assert len(set(ids)) == 20
    assert len(daemon.wait_for_mail("both", before + 20)) == 20


def test_operators_and_monitoring_see_one_daemon(daemon: Daemon) -> None:
    with a_client_of_each(daemon) as clients:
        queued = {worker: submit(client, "seen@later.test") for worker, client in clients.items()}
        # One of them tries, and the other leaves the destination alone.
        daemon.wait_for("delivery.attempted", recipient="seen@later.test", status="deferred")
        status = json.loads(daemon.ctl("--json", "status").stdout)
    assert (status["pid"], status["ready"], status["state"]) == (daemon.pid, True, "serving")
    assert [(each["number"], each["state"]) for each in status["workers"]] == [(0, "running"), (1, "running")]
    listed = json.loads(daemon.ctl("--json", "queue", "list", "--to", "seen@later.test").stdout)
    assert [each["queue_id"] for each in listed["messages"]] == sorted(queued.values())
    for queue_id in queued.values():
        assert queue_id in daemon.ctl("find", queue_id).stdout
        daemon.ctl("queue", "delete", queue_id)
    accepted = len(daemon.records("message.accepted"))
    assert daemon.metric(r"elemta_messages_accepted_total\{") == accepted
    assert json.loads(daemon.get("/readyz")) == {"ready": True, "reasons": []}


def test_a_worker_that_is_killed_loses_nothing_and_clients_of_the_other_do_not_notice(
    daemon: Daemon,
) -> None:
    with a_client_of_each(daemon) as clients:
        kept = [submit(clients[1], "x@later.test") for _ in range(5)]
        # Until the mail of before has left the queue, too: it counts below.
        until_queued(daemon, len(kept))
        os.kill(pid_of(daemon, 1), signal.SIGKILL)
        # New connections find the other one, and nothing that waits at the socket is lost.
        for _ in range(5):
            submit(clients[0])
            with daemon.client() as client:
                client.ehlo()
                submit(client)
        daemon.wait_for("worker.ended", worker=1)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            clients[1].noop()
        deadline = time.monotonic() + PATIENCE
        while len([each for each in daemon.records("worker.ready") if each["worker"] == 1]) < 2:
            assert time.monotonic() < deadline, daemon.output()
            time.sleep(0.02)
        opened = [each for each in daemon.records("spool.opened") if each["worker"] == 1][-1]
        assert opened["active"] + opened["deferred"] == len(kept)


def test_a_reload_reaches_every_worker_also_one_that_starts(daemon: Daemon) -> None:
    text = daemon.config.read_text()
    os.kill(pid_of(daemon, 1), signal.SIGKILL)
    daemon.config.write_text(text.replace("mx.example.test", "renamed.example.test"))
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded", worker=0)
    deadline = time.monotonic() + PATIENCE
    renamed: set[int] = set()
    while len(renamed) < 2:
        assert time.monotonic() < deadline, daemon.output()[-4000:]
        with daemon.client() as client:
            if b"renamed.example.test" in client.ehlo()[1]:
                renamed.add(worker_of(daemon, submit(client)))
    daemon.config.write_text("nonsense = 1\n")
    daemon.signal(signal.SIGHUP)
    refused = daemon.wait_for("config.reload_refused")
    assert "worker" not in refused
    daemon.config.write_text(text)


def accepted(clients: Iterable[smtplib.SMTP], sender: str) -> int:
    """How many of eight messages of this sender over each of the sessions are accepted."""
    taken = 0
    for client in [*clients] * 8:
        client.rset()
        refused = client.mail(sender)[0] != 250 or client.rcpt("box@example.test")[0] != 250
        taken += not refused and client.data(b"Subject: x\r\n\r\nx\r\n")[0] == 250
    return taken


def is_greeted(wire: socket.socket) -> bool:
    """Whether there is a place for this connection; the other answer is 421."""
    line = wire.recv(100)
    assert line[:3] in (b"220", b"421"), line
    return line.startswith(b"220")


def take_places(daemon: Daemon, count: int, opened: contextlib.ExitStack) -> None:
    """Open connections until so many have a place.

    One may be refused while another worker has the last free place, or has not said yet that a client left.
    """
    deadline = time.monotonic() + PATIENCE
    while count:
        assert time.monotonic() < deadline, daemon.output()[-3000:]
        count -= is_greeted(opened.enter_context(daemon.socket()))


def test_a_limit_holds_over_all_workers_without_valkey(tmp_path: Path) -> None:
    limits = """
[[limit]]
name = "mail-per-sender"
per = ["sender"]
counts = "messages"
rates = ["9/1h"]

[[limit]]
name = "held"
per = ["ip"]
counts = "open_connections"
rates = ["4"]
"""
    daemon = make(tmp_path / "node", limits)
    try:
        daemon.start()
        with a_client_of_each(daemon) as clients:
            taken = accepted(clients.values(), "limited@client.test")
            assert taken == 9
            # A reset reaches what each worker remembers, and so does an override.
            daemon.ctl("limits", "reset", "mail-per-sender:limited@client.test")
            assert accepted(clients.values(), "limited@client.test") == 9
            change = ("--rates", "12/1h", "--for", "1h")
            daemon.ctl("limits", "override", "mail-per-sender", "limited@client.test", *change)
            assert accepted(clients.values(), "limited@client.test") == 3
        # The places of a worker that died are free at once.
        with contextlib.ExitStack() as opened:
            take_places(daemon, 4, opened)
            assert not is_greeted(opened.enter_context(daemon.socket()))
            os.kill(pid_of(daemon, 0), signal.SIGKILL)
            os.kill(pid_of(daemon, 1), signal.SIGKILL)
            daemon.wait_for("worker.ended", worker=0)
            daemon.wait_for("worker.ended", worker=1)
            take_places(daemon, 4, opened)
            assert not is_greeted(opened.enter_context(daemon.socket()))
    finally:
        daemon.kill()


def test_with_valkey_all_workers_are_one_node(tmp_path: Path) -> None:
    limit = """
[[limit]]
name = "mail-per-sender"
per = ["sender"]
counts = "messages"
rates = ["9/1h"]
"""
    with valkey_server() as valkey:
        environ = {"VALKEY_URL": valkey.url, "ELEMTA_RESOURCES_VALKEY_DEADLINE": "2s"}
        daemon = make(tmp_path / "node", limit, environ=environ)
        try:
            daemon.start()
            (node,) = json.loads(daemon.ctl("--json", "nodes").stdout)["nodes"]
            assert node["mode"] == "cluster"
            status = json.loads(daemon.ctl("--json", "status").stdout)
            assert (status["limiter"], status["live_nodes"]) == ("cluster", 1)
            with a_client_of_each(daemon) as clients:
                assert accepted(clients.values(), "limited@client.test") == 9
            # Each partition has its lease, in the name of the one node.
            leases = valkey.command("KEYS", "elemta:ratelimit:spool:*")
            assert [valkey.command("HGET", each, "node") for each in leases] == [b"mx.example.test"] * 2
        finally:
            daemon.stop()
        assert valkey.command("KEYS", "elemta:ratelimit:spool:*") == []


class Hop(socketserver.ThreadingTCPServer):
    """A next hop that takes everything, slowly enough that connections meet, and counts these."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HopSession)
        self.lock = threading.Lock()
        self.open = self.most = self.messages = 0


class HopSession(socketserver.StreamRequestHandler):
    """One connection to it."""

    server: Hop

    def handle(self) -> None:
        hop = self.server
        with hop.lock:
            hop.open += 1
            hop.most = max(hop.most, hop.open)
        try:
            self.serve()
        finally:
            with hop.lock:
                hop.open -= 1

    def serve(self) -> None:
        self.wfile.write(b"220 hop.test\r\n")
        in_message = False
        for line in self.rfile:
            if in_message and line != b".\r\n":
                continue
            verb = line[:4].upper()
            if in_message:
                with self.server.lock:
                    self.server.messages += 1
                in_message, reply = False, b"250 taken"
            elif verb == b"DATA":
                in_message, reply = True, b"354 go on"
            elif verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                reply = b"250 good"
            self.wfile.write(reply + b"\r\n")


def test_connections_are_bounded_over_all_workers(tmp_path: Path) -> None:
    with Hop() as hop:
        serving = threading.Thread(target=hop.serve_forever, daemon=True)
        serving.start()
        route = f"""
[[route]]
domains = ["hop.test"]
to = "smtp://127.0.0.1:{hop.server_address[1]}"
max_connections = 1
"""
        daemon = make(tmp_path / "node", route, environ={"ELEMTA_RESOURCES_MAX_CONNECTIONS": "6"})
        try:
            daemon.start()
            with a_client_of_each(daemon) as clients:
                for _ in range(20):
                    for client in clients.values():
                        submit(client, "x@hop.test")
                with contextlib.ExitStack() as opened:
                    take_places(daemon, 4, opened)
                    for _ in range(8):
                        assert not is_greeted(opened.enter_context(daemon.socket()))
            deadline = time.monotonic() + PATIENCE
            while hop.messages < 40:
                assert time.monotonic() < deadline, (hop.messages, daemon.output()[-3000:])
                time.sleep(0.02)
            assert hop.most == 1
            assert {each["worker"] for each in daemon.records("delivery.attempted")} == {0, 1}
        finally:
            daemon.kill()
            hop.shutdown()
            serving.join()


def test_handshakes_that_stall_are_bounded_over_all_workers(daemon: Daemon) -> None:
    most, clients = int(PER_IP["ELEMTA_RESOURCES_MAX_CONNECTIONS_PER_IP"]), 70
    with contextlib.ExitStack() as opened:
        stalled, refused = [], 0
        for _ in range(clients):
            try:
                stalled.append(opened.enter_context(daemon.socket("implicit")))
            except ConnectionResetError:
                # It was ended before this process had noticed that it stands.
                refused += 1
        ended = until_ended(stalled, clients - most - refused)
        assert len(ended) == clients - most - refused
        for each in stalled:
            each.close()
        # Their places are free as soon as both workers have noticed.
        deadline = time.monotonic() + PATIENCE
        while not is_greeted_over_tls(daemon):
            assert time.monotonic() < deadline


def is_greeted_over_tls(daemon: Daemon) -> bool:
    """Whether a handshake with the listener ``implicit`` may be done now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with daemon.socket("implicit") as plain, context.wrap_socket(plain) as wire:
            return wire.recv(100).startswith(b"220 ")
    except OSError:
        return False


def until_ended(sockets: list[socket.socket], count: int) -> list[socket.socket]:
    """Wait until the daemon has ended so many of them; those that it has ended."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ended, _, _ = select.select(sockets, [], [], 0.1)
        if len(ended) >= count:
            return ended
        assert time.monotonic() < deadline, len(ended)


def test_a_drain_holds_for_every_worker_until_it_ends(daemon: Daemon) -> None:
    with contextlib.suppress(smtplib.SMTPException), a_client_of_each(daemon):
        daemon.ctl("drain")
        for _ in range(8):
            with daemon.socket() as client:
                assert client.recv(100).startswith(b"421 ")
        daemon.ctl("undrain")
        for _ in range(8):
            with daemon.socket() as client:
                assert client.recv(100).startswith(b"220 ")


def test_systemd_hears_of_all_workers_and_a_stop_ends_each_in_order(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path / "notify")
    daemon = make(tmp_path / "node", environ=systemd.environ)
    try:
        daemon.launch()
        systemd.hears("READY=1")
        systemd.hears("WATCHDOG=1")
        systemd.hears("STATUS=2 of 2 workers, queue 0, sessions 0")
        daemon.signal(signal.SIGHUP)
        systemd.hears("RELOADING=1")
        systemd.hears("READY=1")
        pids = [pid_of(daemon, worker) for worker in (0, 1)]
        with contextlib.suppress(smtplib.SMTPException), a_client_of_each(daemon):
            assert daemon.stop() in (0, -signal.SIGTERM)
        systemd.hears("STOPPING=1")
        assert [record.get("worker") for record in daemon.records("daemon.stopped")][-1] is None
        assert {record.get("worker") for record in daemon.records("daemon.stopped")} == {0, 1, None}
        for pid in pids:
            until_gone(pid)
        assert not (daemon.spool / "admin.sock").exists()
    finally:
        daemon.kill()
        systemd.close()


def test_a_restart_refuses_no_connection_at_a_socket_of_systemd(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        place, descriptor = listening.getsockname(), listening.fileno()
        daemon = make(
            tmp_path / "node",
            f"""
[[listener]]
name = "handed"
endpoint = "tcp:{place[1]}:interface=127.0.0.1"
""",
        )

        def launch() -> None:
            daemon.launch(
                environ={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp"},
                before=[sys.executable, "-c", AS_SYSTEMD, str(descriptor)],
                pass_fds=[descriptor],
            )
            daemon.wait_until_ready()

        over, greetings = threading.Event(), list[str]()

        def connect() -> None:
            while not over.is_set():
                try:
                    with socket.create_connection(place, PATIENCE) as client:
                        greetings.append(client.recv(100).decode())
                except OSError as error:
                    greetings.append(repr(error))

        clients = [threading.Thread(target=connect) for _ in range(3)]
        try:
            launch()
            for each in clients:
                each.start()
            for _ in range(2):
                until_longer(greetings, len(greetings) + 10)
                daemon.stop()
                launch()
            until_longer(greetings, len(greetings) + 10)
        finally:
            over.set()
            for each in clients:
                each.join(PATIENCE)
            daemon.kill()
        # A client that is accepted just before a stop, and not greeted yet, gets 421.
        assert {each[:4] for each in greetings} <= {"220 ", "421 "}, greetings
        assert sum(each.startswith("421 ") for each in greetings) <= 2 * len(clients)


def until_longer(found: list[str], count: int) -> None:
    """Wait until there are so many."""
    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline, found[-5:]
        time.sleep(0.01)


def test_a_worker_that_can_not_start_leaves_the_others_at_work_and_says_why(tmp_path: Path) -> None:
    daemon = make(tmp_path / "node")
    (daemon.spool / "p1").mkdir(parents=True, mode=0o700)
    (daemon.spool / "p1/queue.db").write_bytes(b"this is no database\n" * 1000)
    try:
        daemon.start()
        with daemon.client() as client:
            client.ehlo()
            submit(client)
        daemon.wait_for_mail("box")
        failed = daemon.wait_for("worker.ended", worker=1)
        status = json.loads(daemon.ctl("--json", "status").stdout)
        assert status["ready"]
        assert "is not a database" in failed["reason"]
        assert status["workers"][1]["trouble"] == failed["reason"]
        assert "worker 1" in status["problems"][0]
    finally:
        daemon.stop()


def test_workers_end_with_their_supervisor_and_one_alone_delivers_what_they_left(tmp_path: Path) -> None:
    daemon = make(tmp_path / "node").start()
    try:
        pids = [pid_of(daemon, worker) for worker in (0, 1)]
        with a_client_of_each(daemon) as clients:
            for client in clients.values():
                submit(client, "x@later.test")
            daemon.wait_for("delivery.attempted", status="deferred")
        daemon.kill()
        for pid in pids:
            until_gone(pid)
        daemon.configure(f"""[[route]]
domains = ["later.test"]
to = "maildir:{daemon.spool}/mail/{{domain}}/{{local}}"
create_mailboxes = true
""")
        daemon.start()
        assert "worker" not in daemon.records("daemon.ready")[0]
        daemon.wait_for("spool.adopted", directory=str(daemon.spool))
        daemon.ctl("queue", "retry", "--yes", "--to", "later.test")
        daemon.wait_for_mail("x", 2, domain="later.test")
        daemon.wait_for("spool.adoption_done", directory=str(daemon.spool))
    finally:
        daemon.kill()
