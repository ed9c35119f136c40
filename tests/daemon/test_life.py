"""The daemon's life as an operator sees it: start, faults in the configuration, reload, drain, stop."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.wire import Wire

MakeDaemon = Callable[..., Daemon]


def run_twistd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "elemta", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=cwd,
        check=False,
    )


def test_a_mail_lies_in_the_maildir_with_its_trace_fields(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.sendmail("sender@client.test", ["someone@example.test"], "Subject: first\r\n\r\nHello\r\n")
    (message,) = daemon.wait_for_mail("someone")
    lines = message.decode().splitlines()
    assert lines[0] == "Return-Path: <sender@client.test>"
    assert lines[1].startswith("Received: from client.test ([127.0.0.1])")
    queue_id = daemon.records("message.accepted")[0]["queue_id"]
    assert f"id {queue_id}" in message.decode()
    assert lines[-3:] == ["Subject: first", "", "Hello"]


def test_every_fault_is_told_at_once_and_the_exit_status_is_78(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text('[server]\nhostnam = "x"\nmax_recipients = "many"\n[policies]\nchain = ["limits"]\n')
    done = run_twistd("--config", str(config), cwd=tmp_path)
    assert done.returncode == 78
    assert "server.hostnam" in done.stderr
    assert "hostname" in done.stderr
    assert "server.max_recipients" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_check_says_that_a_good_configuration_is_good_and_opens_nothing(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    done = run_twistd("--config", str(daemon.config), "--check", cwd=daemon.directory)
    assert done.returncode == 0
    assert "good" in done.stdout
    assert not daemon.spool.exists()


def test_check_finds_a_policy_that_is_not_there(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon('[policies]\nchain = ["limits", "relax"]\n')
    done = run_twistd("--config", str(daemon.config), "--check", cwd=daemon.directory)
    assert done.returncode == 78
    assert "relax" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_stops_the_start_with_a_clear_word(make_daemon: MakeDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = make_daemon(f'[[listener]]\nname = "b"\nendpoint = "tcp:{port}:interface=127.0.0.1"\n')
        done = run_twistd("--config", str(daemon.config), cwd=daemon.directory)
    assert done.returncode not in (0, 78)
    assert f"tcp:{port}" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_spool_that_another_daemon_owns_stops_the_start(daemon: Daemon, make_daemon: MakeDaemon) -> None:
    second = make_daemon(name="second")
    second.config.write_text(second.config.read_text().replace(str(second.spool), str(daemon.spool)))
    done = run_twistd("--config", str(second.config), cwd=second.directory)
    assert done.returncode == 75
    assert "could not start" in done.stdout
    assert "owned by" in done.stdout or "another" in done.stdout


def test_health_and_readiness_are_told_over_http(daemon: Daemon) -> None:
    assert json.loads(daemon.get("/healthz")) == {"alive": True}
    assert json.loads(daemon.get("/readyz"))["ready"] is True
    assert "elemta_" in daemon.get("/metrics")


def test_a_stop_says_421_to_the_idle_and_lets_a_message_finish(daemon: Daemon) -> None:
    with Wire(daemon.socket()) as idle, Wire(daemon.socket()) as busy:
        idle.reply()
        busy.reply()
        busy.command("EHLO busy.test")
        busy.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<late@example.test>\r\nDATA\r\n")
        assert [busy.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
        daemon.signal(signal.SIGTERM)
        assert idle.reply().startswith("421 4.3.2")
        assert idle.is_closed()
        busy.send(b"Subject: late\r\n\r\nbody\r\n.\r\n")
        assert "queued as" in busy.reply()
        assert busy.reply().startswith("421 4.3.2")
    assert daemon.stop() in (0, -signal.SIGTERM, 143)
    daemon.start()
    assert len(daemon.wait_for_mail("late")) == 1


def test_a_stop_is_over_within_shutdown_grace_whatever_a_client_does(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(server='shutdown_grace = "2s"\n').start()
    with Wire(daemon.socket()) as stubborn:
        stubborn.reply()
        stubborn.command("EHLO stubborn.test")
        stubborn.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<x@example.test>\r\nDATA\r\n")
        for _ in range(3):
            stubborn.reply()
        began = time.monotonic()
        daemon.stop(timeout=90)
        assert time.monotonic() - began < 20


def test_a_reload_puts_a_new_configuration_into_force(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.ehlo()
        assert client.esmtp_features["size"] == str(50 * 1024 * 1024)
    daemon.configure(server='max_message_size = "1MiB"\n')
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded")
    with daemon.client() as client:
        client.ehlo()
        assert client.esmtp_features["size"] == str(1024 * 1024)


def test_a_reload_of_a_bad_file_changes_nothing_and_says_why(daemon: Daemon) -> None:
    daemon.config.write_text(daemon.config.read_text() + "\n[nonsense]\nx = 1\n")
    daemon.signal(signal.SIGHUP)
    record = daemon.wait_for("config.reload_refused")
    assert "nonsense" in record["fault"]
    with daemon.client() as client:
        client.sendmail("a@client.test", ["still@example.test"], "Subject: x\r\n\r\nx\r\n")
    daemon.wait_for_mail("still")


def test_a_reload_takes_a_renewed_certificate(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    daemon = make_daemon(files.table).start()
    first = served_certificate(daemon)
    make_certificate(tmp_path)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded")
    assert served_certificate(daemon) != first


def served_certificate(daemon: Daemon) -> bytes:
    with Wire(daemon.socket()) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        wire.command("STARTTLS")
        wire.start_tls()
        assert isinstance(wire.sock, ssl.SSLSocket)
        return wire.sock.getpeercert(binary_form=True) or b""


def test_a_certificate_without_its_key_is_a_fault(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir()
    other.mkdir()
    certificate, key = make_certificate(ours).certificate, make_certificate(other).key
    daemon = make_daemon(f'[tls]\ncertificate = "{certificate}"\nprivate_key = "{key}"\n')
    done = run_twistd("--config", str(daemon.config), "--check", cwd=daemon.directory)
    assert done.returncode == 78
    assert str(certificate) in done.stderr
    assert "Traceback" not in done.stderr


def test_implicit_tls_greets_inside_tls(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    daemon = make_daemon(
        files.table + '[[listener]]\nname = "tls"\nendpoint = "tcp:0:interface=127.0.0.1"\ntls = "implicit"\n'
    ).start()
    with Wire(daemon.socket("tls")) as wire:
        wire.start_tls()
        assert wire.reply() == "220 mx.example.test ESMTP Elemta"
        assert "STARTTLS" not in wire.command("EHLO client.test")
        wire.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<tls@example.test>\r\nDATA\r\n")
        for _ in range(3):
            wire.reply()
        wire.send(b"Subject: tls\r\n\r\nx\r\n.\r\n")
        assert "queued as" in wire.reply()
    (message,) = daemon.wait_for_mail("tls")
    assert b"with ESMTPS id" in message


def test_connections_over_max_connections_are_told_421(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    text = daemon.config.read_text().replace("[resources]", "[resources]\nmax_connections = 3")
    daemon.config.write_text(text)
    daemon.start()
    wires = [Wire(daemon.socket()) for _ in range(3)]
    for wire in wires:
        assert wire.reply().startswith("220")
    with Wire(daemon.socket()) as fourth:
        assert fourth.reply().startswith("421 4.7.0")
        assert fourth.is_closed()
    wires.pop().sock.close()
    deadline = time.monotonic() + 45
    greeting = ""
    while not greeting.startswith("220") and time.monotonic() < deadline:
        with Wire(daemon.socket()) as fifth:
            greeting = fifth.reply()
    assert greeting.startswith("220")
    for wire in wires:
        wire.sock.close()


def test_a_command_line_has_a_deadline_that_single_bytes_do_not_move(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(server='command_timeout = "2s"\n').start()
    with Wire(daemon.socket()) as wire:
        wire.reply()
        began = time.monotonic()
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.3):
                try:
                    wire.send(b"N")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert wire.reply().startswith("421 4.4.2")
        finally:
            stop.set()
            dripping.join()
        assert 1.5 < time.monotonic() - began < 20


def test_one_byte_now_and_then_does_not_keep_a_message_open(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(server='data_timeout = "2s"\n').start()
    with Wire(daemon.socket()) as wire:
        wire.reply()
        wire.command("EHLO slow.test")
        wire.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<x@example.test>\r\nDATA\r\n")
        for _ in range(3):
            wire.reply()
        began = time.monotonic()
        wire.sock.settimeout(0.3)
        reply = ""
        while not reply and time.monotonic() - began < 30:
            try:
                reply = wire.reply()
            except TimeoutError:
                wire.send(b"x")
        assert reply.startswith("421 4.4.2")
    assert daemon.metric(r"elemta_messages_received") == 0 or not daemon.mailbox("x")


def test_sessions_and_deliveries_share_one_grace(make_daemon: MakeDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        route = f'[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{silent.getsockname()[1]}"\n'
        daemon = make_daemon(route, server='shutdown_grace = "8s"\n').start()
        with daemon.client() as client:
            client.sendmail("a@client.test", ["stuck@example.test"], "Subject: x\r\n\r\nx\r\n")
        with Wire(daemon.socket()) as stubborn:
            stubborn.reply()
            stubborn.command("EHLO stubborn.test")
            stubborn.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<x@example.test>\r\nDATA\r\n")
            for _ in range(3):
                stubborn.reply()
            began = time.monotonic()
            daemon.stop(timeout=90)
            assert time.monotonic() - began < 15.5  # one after the other they would take 16
