"""Limits as a client meets them."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Callable

from tests.support.daemon import Daemon
from tests.support.wire import Wire

MakeDaemon = Callable[..., Daemon]


def greeting(daemon: Daemon) -> str:
    with Wire(daemon.socket()) as wire:
        return wire.reply()


def with_resources(daemon: Daemon, **resources: int) -> Daemon:
    text = daemon.config.read_text()
    text = text.replace("max_requests_per_window = 0\n", "").replace("max_connections_per_ip = 10000\n", "")
    lines = "".join(f"{key} = {value}\n" for key, value in resources.items())
    daemon.config.write_text(text.replace("[resources]\n", "[resources]\n" + lines))
    return daemon


def test_of_more_connections_than_the_limit_exactly_the_limit_is_greeted(make_daemon: MakeDaemon) -> None:
    daemon = with_resources(make_daemon(), max_requests_per_window=20, rate_limit_window=60).start()
    greetings = [greeting(daemon) for _ in range(50)]
    assert sum(line.startswith("220") for line in greetings) == 20
    refused = [line for line in greetings if not line.startswith("220")]
    assert all(line.startswith("421 4.7.0") for line in refused)
    assert daemon.metric("smtp_rate_limit_rejections_total") == 30


def test_a_refusal_says_when_to_come_back_and_then_one_passes(make_daemon: MakeDaemon) -> None:
    daemon = with_resources(make_daemon(), max_requests_per_window=2, rate_limit_window=2).start()
    assert [greeting(daemon)[:3] for _ in range(2)] == ["220", "220"]
    refused = greeting(daemon)
    found = re.search(r"(\d+) second", refused)
    assert found, refused
    time.sleep(int(found.group(1)))
    assert greeting(daemon).startswith("220")


def test_open_connections_of_one_client_are_bounded_and_come_back(make_daemon: MakeDaemon) -> None:
    daemon = with_resources(make_daemon(), max_connections_per_ip=3, max_requests_per_window=0).start()
    wires = [Wire(daemon.socket()) for _ in range(3)]
    assert all(wire.reply().startswith("220") for wire in wires)
    assert greeting(daemon).startswith("421 4.7.0")
    wires[0].sock.close()
    deadline = time.monotonic() + 45
    while not (again := greeting(daemon)).startswith("220") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert again.startswith("220")
    for wire in wires:
        wire.sock.close()


def test_messages_of_one_sender_are_limited_by_name_and_time(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        '[[limit]]\nname = "mail-per-sender"\nper = ["sender"]\ncounts = "messages"\nrates = ["2/1m"]\n'
    ).start()
    with Wire(daemon.socket()) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        for _ in range(2):
            wire.send(b"MAIL FROM:<busy@client.test>\r\nRCPT TO:<u@example.test>\r\nDATA\r\n")
            assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
            wire.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
            assert "queued as" in wire.reply()
        refused = wire.command("MAIL FROM:<busy@client.test>")
        assert refused.startswith("450 4.7.1")
        assert "mail-per-sender" in refused
        assert re.search(r"\d+ second", refused)
        assert wire.command("MAIL FROM:<other@client.test>").startswith("250")


def test_a_message_that_was_refused_later_is_not_charged(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        '[[limit]]\nname = "mail-per-sender"\nper = ["sender"]\ncounts = "messages"\nrates = ["1/1m"]\n'
    ).start()
    with Wire(daemon.socket()) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        for _ in range(3):
            assert wire.command("MAIL FROM:<s@client.test>").startswith("250")
            assert wire.command("RCPT TO:<x@elsewhere.test>").startswith("554 5.7.1")
            assert wire.command("RSET").startswith("250")
        assert wire.command("MAIL FROM:<s@client.test>").startswith("250")


def test_an_observed_limit_changes_nothing(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        '[[limit]]\nname = "watch"\nper = ["ip"]\ncounts = "connections"\nrates = ["1/1m"]\n'
        'mode = "observe"\n'
    ).start()
    assert [greeting(daemon)[:3] for _ in range(3)] == ["220"] * 3
    assert daemon.metric(r'elemta_limit.*limit="watch".*observed') >= 1


def test_leaving_between_the_dot_and_the_reply_gives_no_charge_back(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        '[[limit]]\nname = "mail-per-sender"\nper = ["sender"]\ncounts = "messages"\nrates = ["3/1m"]\n'
    ).start()
    for _ in range(12):
        with Wire(daemon.socket()) as wire:
            wire.reply()
            wire.command("EHLO client.test")
            wire.send(b"MAIL FROM:<hasty@client.test>\r\nRCPT TO:<u@example.test>\r\nDATA\r\n")
            if [wire.reply()[:3] for _ in range(3)] != ["250", "250", "354"]:
                continue
            # Closing with a reply unread resets the connection: the daemon sees the client leave at once.
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    time.sleep(0.5)
    assert len(daemon.mailbox("u")) <= 3


def test_who_is_limited_is_shown_and_let_in_again_by_the_operator(make_daemon: MakeDaemon) -> None:
    daemon = with_resources(make_daemon(), max_requests_per_window=2, rate_limit_window=60).start()
    assert [greeting(daemon)[:3] for _ in range(3)] == ["220", "220", "421"]
    shown = json.loads(daemon.ctl("--json", "limits", "show", "127.0.0.1").stdout)
    (fill,) = [each for each in shown["limits"] if each["limit"] == "ip"]
    assert fill["bounds"] == [{"used": 2, "limit": 2, "window": 60.0, "share": None}]
    assert 0 < fill["retry_after"] <= 60
    assert daemon.ctl("limits", "reset", "ip:127.0.0.1").stdout == "ip: 127.0.0.1 reset\n"
    assert greeting(daemon).startswith("220")
    (node,) = json.loads(daemon.ctl("--json", "nodes").stdout)["nodes"]
    assert (node["this"], node["mode"], node["address"]) == (True, "memory", "tcp:0:interface=127.0.0.1")
