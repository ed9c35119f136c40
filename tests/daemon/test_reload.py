"""A reload in the middle of sessions: a session keeps the context that it began with."""

from __future__ import annotations

import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.wire import Wire

MakeDaemon = Callable[..., Daemon]


def reload(daemon: Daemon, seen: int = 1) -> None:
    daemon.signal(signal.SIGHUP)
    deadline = time.monotonic() + 45
    while len(daemon.records("config.reloaded")) < seen and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(daemon.records("config.reloaded")) == seen


def test_a_session_keeps_the_terms_it_began_with_and_the_next_one_has_the_new(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    files = make_certificate(tmp_path)
    daemon = make_daemon(files.table, server='max_message_size = "1MiB"\n').start()
    with Wire(daemon.socket()) as before, Wire(daemon.socket()) as sending:
        before.reply()
        sending.reply()
        sending.command("EHLO client.test")
        sending.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<x@example.test>\r\nDATA\r\n")
        assert [sending.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
        sending.send(b"Subject: x\r\n\r\n")
        daemon.configure(files.table, server='max_message_size = "2MiB"\n', domains="relay_from = []\n")
        reload(daemon)
        sending.send(b"x" * 70_000 + b"\r\n.\r\n")
        assert "queued as" in sending.reply()
        assert "SIZE 1048576" in before.command("EHLO client.test")
        assert before.command("STARTTLS").startswith("220")
        before.start_tls()
        assert "SIZE 1048576" in before.command("EHLO client.test")
        with Wire(daemon.socket()) as after:
            after.reply()
            assert "SIZE 2097152" in after.command("EHLO client.test")
    daemon.wait_for_mail("x")


def test_a_handshake_that_began_before_a_reload_ends_after_it(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    files = make_certificate(tmp_path)
    daemon = make_daemon(
        files.table + '[[listener]]\nname = "tls"\ntls = "implicit"\nendpoint = "tcp:0:interface=127.0.0.1"\n'
    ).start()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    with Wire(daemon.socket("tls")) as wire:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            hello = outgoing.read()
        wire.send(hello[:40])
        make_certificate(tmp_path)
        reload(daemon)
        wire.send(hello[40:])
        greeting = b""
        while not greeting:
            incoming.write(wire.sock.recv(65536))
            try:
                tls.do_handshake()
                wire.send(outgoing.read())
                greeting = tls.read(100)
            except ssl.SSLWantReadError:
                wire.send(outgoing.read())
        assert greeting == b"220 mx.example.test ESMTP Elemta\r\n"


def test_many_reloads_under_way_change_nothing_for_a_client(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon().start()
    with daemon.client() as client:
        client.ehlo()
        for number in range(10):
            daemon.signal(signal.SIGHUP)
            client.sendmail("a@client.test", ["x@example.test"], f"Subject: {number}\r\n\r\nx\r\n")
    assert len(daemon.wait_for_mail("x", 10)) == 10
    assert not [record for record in daemon.records() if record["level"] in ("error", "critical")]
    assert daemon.stop() in (0, -signal.SIGTERM, 143)


def test_a_stop_waits_for_no_load_balancer_that_says_nothing(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        listener='proxy_protocol_from = ["127.0.0.0/8"]\n', server='shutdown_grace = "20s"\n'
    ).start()
    with Wire(daemon.socket()) as silent:
        time.sleep(0.1)
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < 18
        assert silent.is_closed()
