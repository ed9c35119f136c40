"""The ways in which a daemon is started, and may fail to: in the background, by systemd, as another user."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import twisted

from tests.support.daemon import Daemon
from tests.support.limit_tables import policy_service_table
from tests.support.wire import Wire

MakeDaemon = Callable[..., Daemon]

TWISTD = str(Path(sys.executable).with_name("twistd"))

AS_SYSTEMD = """
import fcntl, os, sys
given = [int(word) for word in sys.argv[1].split(",")]
# Out of the way of 3, 4, 5, and so on
moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in given]
for number, descriptor in enumerate(moved, start=3):
    os.dup2(descriptor, number)
    os.close(descriptor)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_start_that_fails_after_the_spool_is_open_ends_and_is_worth_another_try(
    make_daemon: MakeDaemon,
) -> None:
    daemon = make_daemon()
    daemon.spool.mkdir(parents=True)
    (daemon.spool / "admin.sock").write_text("another file")
    assert daemon.launch().wait(timeout=90) == 75
    assert "there is something that is no socket" in daemon.records("daemon.start_failed")[0]["error"]
    assert not daemon.records("daemon.ready")
    (daemon.spool / "admin.sock").unlink()
    daemon.start()


class Background:
    """A daemon that twistd put into the background, with its pid file and its log."""

    def __init__(self, daemon: Daemon) -> None:
        self.pidfile = daemon.directory / "elemta.pid"
        self.log = daemon.directory / "background.log"
        self.started = subprocess.run(
            [
                *(TWISTD, f"--pidfile={self.pidfile}", f"--logfile={self.log}"),
                *("elemta", "--config", str(daemon.config)),
            ],
            capture_output=True,
            text=True,
            timeout=90,
            cwd=daemon.directory,
            check=False,
        )

    def wait_for(self, event: str) -> str:
        deadline = time.monotonic() + 45
        while time.monotonic() < deadline:
            text = self.log.read_text() if self.log.exists() else ""
            if f'"event":"{event}"' in text:
                return text
            time.sleep(0.02)
        raise AssertionError(f"no {event} in {self.log.read_text()}")

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + 45
        while self.pidfile.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not self.pidfile.exists()


def test_in_the_background_it_has_a_pid_file_and_a_log_and_takes_signals(make_daemon: MakeDaemon) -> None:
    background = Background(make_daemon())
    assert background.started.returncode == 0, background.started
    log = background.wait_for("daemon.ready")
    pid = int(background.pidfile.read_text())
    try:
        found = re.search(r'"mx 127.0.0.1:(\d+)"', log)
        assert found is not None
        with Wire(socket.create_connection(("127.0.0.1", int(found[1])), timeout=90)) as wire:
            assert wire.reply() == "220 mx.example.test ESMTP Elemta"
        os.kill(pid, signal.SIGHUP)
        background.wait_for("config.reloaded")
    finally:
        os.kill(pid, signal.SIGTERM)
    background.wait_for("daemon.stopped")
    background.wait_until_gone()


def test_in_the_background_a_port_that_is_taken_is_told_to_who_started_it(make_daemon: MakeDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        background = Background(make_daemon(f'[[listener]]\nname = "b"\nendpoint = "{endpoint}"\n'))
    assert background.started.returncode == 1
    assert "listener b" in background.started.stdout + background.started.stderr
    assert endpoint in background.wait_for("listener.failed")
    background.wait_until_gone()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_privileges_are_given_up_after_the_sockets_are_bound(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    nobody = 65534
    daemon.spool.mkdir()
    os.chown(daemon.spool, nobody, nobody)
    for directory in (daemon.directory, *daemon.directory.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o711)
    daemon.launch(options=["--uid", str(nobody), "--gid", str(nobody)])
    daemon.wait_until_ready()
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert re.findall(r"^[UG]id:\t(\d+)\t(\d+)\t(\d+)\t(\d+)$", status, re.M) == [(str(nobody),) * 4] * 2
    with daemon.client() as client:
        client.sendmail("a@client.test", ["x@example.test"], "Subject: x\r\n\r\nx\r\n")
    daemon.wait_for_mail("x")
    assert daemon.spool.stat().st_uid == nobody


@pytest.fixture
def handed_over() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_a_socket_that_systemd_opened_is_listened_on(
    make_daemon: MakeDaemon, handed_over: socket.socket
) -> None:
    daemon = make_daemon('[[listener]]\nname = "handed"\nendpoint = "systemd:domain=INET:index=0"\n')

    daemon.launch(
        environ={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp"},
        before=[
            sys.executable,
            "-c",
            AS_SYSTEMD,
            str(handed_over.fileno()),
        ],
        pass_fds=[handed_over.fileno()],
    )
    daemon.wait_until_ready()
    with Wire(socket.create_connection(handed_over.getsockname(), timeout=90)) as wire:
        assert wire.reply() == "220 mx.example.test ESMTP Elemta"
        assert wire.command("QUIT").startswith("221")


def test_ports_that_systemd_opened_are_taken_by_their_address_whatever_their_order(
    make_daemon: MakeDaemon,
) -> None:
    """Two as by elemta.socket, one as by elemta-submission.socket, and one without a listener."""
    with contextlib.ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        port = four.getsockname()[1]
        six = stack.enter_context(socket.create_server(("::", port), family=socket.AF_INET6))
        both = stack.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        unused = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        submission = both.getsockname()[1]
        descriptors = [each.fileno() for each in (both, unused, six, four)]
        daemon = make_daemon(
            f'[[listener]]\nname = "port"\nendpoint = "tcp:{port}"\n'
            f'[[listener]]\nname = "submission"\nendpoint = "tcp:{submission}"\n'
        )
        daemon.launch(
            environ={"LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": "submission:x:smtp:smtp"},
            before=[sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, descriptors))],
            pass_fds=descriptors,
        )
        daemon.wait_until_ready()
        for host, number, name in (
            ("127.0.0.1", port, "port"),
            ("::1", port, "port"),
            ("127.0.0.1", submission, "submission"),
            ("::1", submission, "submission"),
        ):
            with Wire(socket.create_connection((host, number), timeout=90)) as wire:
                assert wire.reply() == "220 mx.example.test ESMTP Elemta"
                session = wire.command("BREAK")
                assert session
            daemon.wait_for("command.refused", client_ip=host, verb="?")
            assert name in daemon.records("daemon.ready")[-1]["listeners"][1 if name == "port" else 2]
        where = "{}:{}".format(*unused.getsockname())
        assert daemon.wait_for("listener.socket_unused")["address"] == where
        # The port is served still when no listener of systemd's is left to bind it: it was never bound twice.
        assert len(daemon.records("listener.socket_unused")) == 1


def test_a_port_that_only_systemd_may_open_is_refused_with_the_page_to_read(
    make_daemon: MakeDaemon,
) -> None:
    daemon = make_daemon('[[listener]]\nname = "low"\nendpoint = "tcp:587"\n')
    if os.geteuid() == 0:
        dropped = daemon.launch(before=["setpriv", "--bounding-set=-all", "--inh-caps=-all"])
    else:
        dropped = daemon.launch()
    if dropped.wait(timeout=90) == 0:
        pytest.skip("this host lets anyone bind port 587")
    assert "Permission denied; enable the socket unit of this port (docs/install.md" in daemon.output()


def test_without_the_socket_that_systemd_should_open_the_start_stops(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon('[[listener]]\nname = "handed"\nendpoint = "systemd:domain=INET:index=0"\n')
    assert daemon.launch().wait(timeout=90) not in (0, None)
    assert "handed" in daemon.output()
    assert "Traceback" not in daemon.output()


def test_a_listener_on_ipv6_knows_its_clients_addresses(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        '[[listener]]\nname = "six"\nendpoint = "tcp6:0:interface=\\\\:\\\\:1"\n'
        '[[listener]]\nname = "both"\nendpoint = "tcp6:0:interface=\\\\:\\\\:"\n'
    ).start()
    with Wire(socket.create_connection(("::1", daemon.port_of("six")), timeout=90)) as wire:
        assert wire.reply().startswith("220")
        wire.command("BREAK")
        daemon.wait_for("command.refused", client_ip="::1", verb="?")
    with Wire(socket.create_connection(("127.0.0.1", daemon.port_of("both")), timeout=90)) as wire:
        assert wire.reply().startswith("220")
        wire.command("BREAK")
        daemon.wait_for("command.refused", client_ip="127.0.0.1", verb="?")


def test_a_unix_socket_has_the_mode_it_was_given_and_its_clients_are_local(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    place = tmp_path / "smtp.sock"
    daemon = make_daemon(f'[[listener]]\nname = "unix"\nendpoint = "unix:{place}:mode=660"\n').start()
    assert place.stat().st_mode & 0o777 == 0o660
    assert f"unix {place}" in daemon.records("daemon.ready")[0]["listeners"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(place))
        with Wire(sock) as wire:
            assert wire.reply() == "220 mx.example.test ESMTP Elemta"
            wire.command("EHLO client.test")
            wire.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<x@example.test>\r\nDATA\r\n")
            assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
            wire.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
            assert "queued as" in wire.reply()
    assert b"from client.test ([127.0.0.1])" in daemon.wait_for_mail("x")[0]
    daemon.kill()
    daemon.start()  # over the socket file that the dead daemon left
    assert place.exists()
    daemon.stop()
    assert not place.exists()


@pytest.mark.skipif(twisted.version.major < 24, reason="older Twisteds use modules that warn")
def test_a_warning_would_be_an_error_and_there_is_none(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(environ={"PYTHONWARNINGS": "error"}).start()
    with daemon.client() as client:
        client.sendmail("a@client.test", ["x@example.test"], "Subject: x\r\n\r\nx\r\n")
    daemon.wait_for_mail("x")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded")
    daemon.stop()
    assert "Warning" not in daemon.output()
    assert not [record for record in daemon.records() if "traceback" in record]


def open_files_allowed(pid: int) -> int:
    found = re.search(r"^Max open files +(\d+) ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


WITH_LIMITS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:3])))
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("tables", "hard", "allowed", "warned"),
    [
        ("", 4096, 3024, 0),
        ("", 1500, 1500, 1),
        (policy_service_table("postfix"), 4096, 4096, 0),
    ],
)
def test_max_connections_gets_the_open_files_it_needs_or_a_warning(
    make_daemon: MakeDaemon, tables: str, hard: int, allowed: int, warned: int
) -> None:
    daemon = make_daemon(tables)
    daemon.launch(before=[sys.executable, "-c", WITH_LIMITS, "1024", str(hard)])
    daemon.wait_until_ready()
    assert open_files_allowed(daemon.pid) == allowed
    assert len(daemon.records("descriptors.too_few")) == warned


def test_a_file_without_its_option_is_refused_with_the_option(tmp_path: Path) -> None:
    command = [sys.executable, TWISTD, "elemta", "--check", "mx.toml"]
    ended = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "mx.toml: is no option (the configuration is --config mx.toml)" in ended.stdout + ended.stderr
