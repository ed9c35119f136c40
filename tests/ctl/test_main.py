"""``elemtactl`` against a real admin API, and without one."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread, deferToThread

from elemta.address import NULL, Address
from elemta.ctl.client import AdminClient
from elemta.ctl.context import CommandContext
from elemta.ctl.main import main
from elemta.ctl.trace import trace_line
from elemta.daemon.membership import NodeLife
from elemta.daemon.reload import ReloadReport
from elemta.destination_status import DestinationState, DestinationStatus
from elemta.envelope import Client, MailParameters, Recipient
from elemta.errors import Fault
from elemta.limits.pushed_limits import MAX_TEXT
from elemta.ops.admin import AdminSite
from elemta.ops.admin_socket import AdminSocket
from elemta.outcome import Outcome
from elemta.outcome import Status as Came
from elemta.policy.discovery import PluginInfo
from elemta.runtime import Runtime
from elemta.spool import HoldCause, MessageState, PlannedPart, Spool, SpoolSettings, Submission
from tests.support.administered import Administered

EVIL = "\x1b]0;owned\x07"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*argv: str, stdin: str = "", terminal: bool = False, **environ: str) -> tuple[int, str, str]:
    make = Terminal if terminal else io.StringIO
    out, err = make(), make()
    code = main(argv, out, err, environ, make(stdin))
    return code, out.getvalue(), err.getvalue()


@dataclass
class Daemon(Administered):
    installed: tuple[PluginInfo, ...] = (
        PluginInfo("relay", "elemta 0.1.0", words="Who may relay where.", in_chain=True),
        PluginInfo("", "broken.module", error="ImportError: nothing"),
    )
    toml: str = '[server]\nhostname = "running.example.org"\n'
    up: float = 3700.0
    socket: str = ""

    async def ctl(self, *argv: str, **more: Any) -> tuple[int, str, str]:
        return await deferToThread(run, "--socket", self.socket, *argv, **more)

    async def json(self, *argv: str, **more: Any) -> Any:
        _, out, _ = await self.ctl("--json", *argv, **more)
        return json.loads(out)

    async def queue(
        self,
        sender: Address = NULL,
        *to: str,
        helo: str = "c",
        hold: str | None = None,
        cause: HoldCause = HoldCause.OPERATOR,
    ) -> str:
        writer = self.spool.begin()
        writer.write(b"Subject: hello\r\n\r\nhello\r\n")
        recipients = tuple(Recipient(Address(*each.split("@"))) for each in to or ("anna@example.com",))
        client = Client(ip="192.0.2.1", helo=helo, listener="mx", session_id="s1")
        submission = Submission(
            sender, recipients, MailParameters(), client, b"X: y\r\n", time.time(), hold, cause
        )
        return (await self.spool.commit(writer, submission)).queue_id

    async def state_of(self, queue_id: str) -> MessageState:
        return (await self.spool.show(queue_id)).message.state

    async def ids(self) -> list[str]:
        return [summary.queue_id for summary in await self.spool.list()]


@pytest_twisted.async_yield_fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    settings = SpoolSettings(directory=tmp_path / "spool", minimum_free=0)
    spool = await Spool.open(settings, runtime=Runtime.of(reactor))
    daemon = Daemon(spool)
    daemon.socket = str(tmp_path / "spool" / "admin.sock")
    opened = AdminSocket(daemon.socket, AdminSite(daemon.calls, reactor), reactor)
    opened.open()
    yield daemon
    await opened.close()
    await spool.close()


def test_a_line_of_a_trace_has_the_time_of_this_host(monkeypatch) -> None:
    line = {"at": 1_700_000_000.25, "direction": "in", "conversation": "a-1", "peer": "192.0.2.1"}
    for zone, shown in (("UTC", "22:13:20.250"), ("Asia/Kolkata", "03:43:20.250")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        words = trace_line({**line, "sent_by": "client", "text": "QUIT"})
        assert words == f"{shown} in  a-1 192.0.2.1 > QUIT"
    monkeypatch.undo()
    time.tzset()


# What is no text


@pytest.mark.parametrize(
    "argv",
    [
        ("find", "\udcff"),
        ("queue", "list", "--from", "a\udcff"),
        ("queue", "show", "\udcff"),
        ("queue", "hold", "A", "--reason", "\udcff"),
        ("plugins", "show", "\udcff"),
        ("limits", "show", "\udcff"),
        ("limits", "override", "ip", "192.0.2.1", "--exempt", "--for", "1h", "--note", "\udcff"),
        ("destinations", "pause", "\udcff"),
        ("explain", "--ip", "192.0.2.1", "--helo", "\udcff"),
        ("spool", "adopt", "/\udcff"),
    ],
)
def test_an_argument_in_another_encoding_is_wrong_use(argv: tuple[str, ...]) -> None:
    code, out, err = run("--socket", "/nowhere/admin.sock", *argv)
    assert (code, out, err) == (2, "", "elemtactl: an argument is not UTF-8\n")


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (("trace", "--ip", ""), "--ip"),
        (("trace", "--to", "", "--one"), "--to"),
        (("limits", "top", ""), "LIMIT"),
        (("explain", "--ip", "192.0.2.1", "--user", ""), "--user"),
        (("explain", "--ip", "192.0.2.1", "--listener", ""), "--listener"),
    ],
)
def test_an_empty_text_does_not_mean_all(argv: tuple[str, ...], option: str) -> None:
    code, out, err = run("--socket", "/nowhere/admin.sock", *argv)
    assert (code, out) == (2, "")
    assert f"{option} is empty" in err


# The daemon


@ensureDeferred
async def test_status_tells_what_runs_and_what_waits(daemon: Daemon) -> None:
    await daemon.queue(hold="odd")
    code, out, err = await daemon.ctl("status")
    assert (code, err) == (0, "")
    assert "Elemta 0.1.0 on mx1.example.org, node mx1, pid 42, up 1h 1m" in out
    assert "1 message (0 active, 0 deferred, 1 hold)" in out
    assert "127.0.0.1:2525" in out
    assert re.search(r"^/etc/mx\.pem +mx1\.example\.org +RSA +4$", out, re.MULTILINE)
    assert "note: /etc/elemta.toml: server.workers: has no effect yet" in out


@ensureDeferred
async def test_the_socket_is_found_through_the_configuration(daemon: Daemon, tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(f'[spool]\ndirectory = "{tmp_path}/spool"\n')
    code, out, _ = await deferToThread(run, "status", "--json", ELEMTA_CONFIG=str(config))
    assert (code, json.loads(out)["pid"]) == (0, 42)
    code, out, _ = await deferToThread(run, "status", "--config", str(config), "--json")
    assert (code, json.loads(out)["pid"]) == (0, 42)


@ensureDeferred
async def test_json_may_stand_before_or_behind_the_command_and_is_one_document(daemon: Daemon) -> None:
    for argv in (("--json", "queue", "list"), ("queue", "list", "--json"), ("queue", "--json", "list")):
        code, out, _ = await daemon.ctl(*argv)
        assert (code, json.loads(out)) == (0, {"messages": [], "complete": True})


@ensureDeferred
async def test_plugins_are_listed_with_those_that_are_broken(daemon: Daemon) -> None:
    code, out, _ = await daemon.ctl("plugins")
    assert code == 0
    assert "Who may relay where." in out
    assert "can't be used: ImportError: nothing" in out


@ensureDeferred
async def test_a_reload_that_is_refused_exits_78_with_every_fault(daemon: Daemon) -> None:
    daemon.reloaded = ReloadReport(
        faults=(Fault("f.toml", "a.b", "is bad", "try c"), Fault("f.toml", "d", "worse"))
    )
    code, out, err = await daemon.ctl("reload")
    assert (code, out) == (78, "")
    assert "f.toml: a.b: is bad (try c)" in err
    assert "f.toml: d: worse" in err
    daemon.reloaded = ReloadReport(needs_restart=("listener",))
    code, out, _ = await daemon.ctl("reload")
    assert code == 0
    assert "listener changed and takes effect after a restart" in out


@ensureDeferred
async def test_drain_drains(daemon: Daemon) -> None:
    code, out, _ = await daemon.ctl("drain")
    assert code == 0
    assert "draining" in out
    assert daemon.state_name == "draining"
    assert "no: draining" in (await daemon.ctl("status"))[1]
    code, out, _ = await daemon.ctl("undrain")
    assert (code, daemon.state_name) == (0, "serving")
    assert "serving" in out


@ensureDeferred
async def test_the_running_configuration_can_be_dumped(daemon: Daemon) -> None:
    code, out, _ = await daemon.ctl("config", "dump", "--running")
    assert (code, out) == (0, '[server]\nhostname = "running.example.org"\n')


@ensureDeferred
async def test_what_waits_for_a_restart_is_told_after_the_reload_too(daemon: Daemon) -> None:
    daemon.reloaded = ReloadReport(needs_restart=("listener",))
    told = "listener changed and takes effect after a restart"
    assert told in (await daemon.ctl("reload"))[1]
    assert f"note: {told}" in (await daemon.ctl("status"))[1]
    _, out, err = await daemon.ctl("config", "dump", "--running")
    assert told in err
    assert told not in out


# The queue


@ensureDeferred
async def test_the_list_cuts_nothing_that_one_must_copy(daemon: Daemon, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sender, to = "x" * 60 + "@example.net", "y" * 50 + "@" + "z" * 60 + ".example"
    queue_id = await daemon.queue(Address(*sender.split("@")), to)
    short = await daemon.queue(Address("a", "b.test"), "c@d.test", hold="looks odd " * 20)
    code, out, _ = await daemon.ctl("queue", "list", terminal=True)
    assert code == 0
    assert "…" not in out
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["ID", "STATE"]
    assert lines[0].split()[-1] == "NEXT"
    for text in (queue_id, short, f"<{sender}>", f"<{to}>", "<a@b.test>", "<c@d.test>", "looks odd " * 19):
        assert text in out
    assert next(line for line in lines if line.startswith(queue_id)).endswith("now")
    _, piped, _ = await daemon.ctl("queue", "list")
    assert len(piped.splitlines()) == 3


@ensureDeferred
async def test_text_of_strangers_does_not_drive_the_terminal(daemon: Daemon) -> None:
    sender = Address(EVIL, "example.net")
    queue_id = await daemon.queue(sender, helo=f"{EVIL}\u202e", hold=f"because\r{EVIL}")
    for argv in (("queue", "list"), ("queue", "show", queue_id), ("--json", "queue", "show", queue_id)):
        code, out, err = await daemon.ctl(*argv, terminal=True)
        assert code == 0
        assert all(char == "\n" or char.isprintable() for char in out + err)
    assert "\\x1b" in (await daemon.ctl("queue", "show", queue_id))[1]


@ensureDeferred
async def test_filters_choose_by_state_sender_and_recipient(daemon: Daemon) -> None:
    berta = await daemon.queue(Address("Berta", "Example.net"), "anna@example.com", "carla@example.org")
    bounce = await daemon.queue(NULL, "dora@example.com")
    literal = await daemon.queue(Address("x", "[192.0.2.1]"), "dora@example.org", hold="odd")

    async def chosen(*filters: str) -> list[str]:
        return [each["queue_id"] for each in (await daemon.json("queue", "list", *filters))["messages"]]

    assert await chosen("--from", "berta@example.NET") == [berta]
    assert await chosen("--from", "<>") == [bounce]
    assert await chosen("--from", "@[192.0.2.1]") == [literal]
    assert await chosen("--to", "@example.org") == [berta, literal]
    assert await chosen("--to", "d*@example.*") == [bounce, literal]
    assert await chosen("--state", "hold", "--to", "@example.org") == [literal]
    assert await chosen("--from", "@ample.net") == []


@ensureDeferred
async def test_a_limited_list_says_that_there_is_more(daemon: Daemon) -> None:
    ids = [await daemon.queue() for _ in range(3)]
    code, out, err = await daemon.ctl("queue", "list", "--limit", "2")
    assert code == 0
    assert ids[1] in out
    assert ids[2] not in out
    assert "--limit 0" in err
    assert (await daemon.json("queue", "list", "--limit", "2"))["complete"] is False
    assert len((await daemon.json("queue", "list", "--limit", "0"))["messages"]) == 3


@ensureDeferred
async def test_a_long_queue_is_read_page_by_page(daemon: Daemon, monkeypatch) -> None:
    from elemta.ctl import queue

    monkeypatch.setattr(queue, "PAGE", 2)
    ids = [await daemon.queue() for _ in range(7)]
    found = await daemon.json("queue", "list", "--limit", "0")
    assert [each["queue_id"] for each in found["messages"]] == ids


@ensureDeferred
async def test_show_tells_what_became_of_each_recipient(daemon: Daemon) -> None:
    queue_id = await daemon.queue(NULL, "anna@example.com", "berta@example.com")
    came = Outcome(
        queue_id,
        Address("anna", "example.com"),
        Came.DEFERRED,
        f"try later {EVIL}",
        route="lmtp://127.0.0.1:24",
        next_hop="127.0.0.1:24",
        at=time.time(),
        seconds=2.5,
        code=451,
        enhanced="4.3.0",
    )
    assert "to        <berta@example.com> not tried yet" in (await daemon.ctl("queue", "show", queue_id))[1]
    await daemon.spool.settle(queue_id, [came], retry_at=time.time() + 300, hold_reason=None)
    code, out, _ = await daemon.ctl("queue", "show", queue_id)
    assert code == 0
    assert "attempts  1" in out
    assert "to        <anna@example.com> deferred at 127.0.0.1:24: 451 4.3.0 try later \\x1b" in out
    assert "to        <berta@example.com> no result yet" in out
    tried = (
        "#1 <anna@example.com> deferred in 2.5 s by lmtp://127.0.0.1:24 at 127.0.0.1:24: 451 4.3.0 try later"
    )
    assert tried in out
    shown = (await daemon.json("queue", "show", queue_id))["messages"][0]
    assert shown["history"][0]["text"] == f"try later {EVIL}"
    assert shown["state"] == "deferred"


@ensureDeferred
async def test_several_messages_are_held_and_released(daemon: Daemon) -> None:
    ids = [await daemon.queue() for _ in range(2)]
    code, out, _ = await daemon.ctl("queue", "hold", *ids, "--reason", "looks odd")
    assert (code, out) == (0, f"{ids[0]} held\n{ids[1]} held\n")
    assert "looks odd" in (await daemon.ctl("queue", "list"))[1]
    assert (await daemon.ctl("queue", "release", *ids))[0] == 0
    assert [await daemon.state_of(each) for each in ids] == [MessageState.ACTIVE] * 2


@ensureDeferred
async def test_holding_a_held_message_keeps_its_reason_unless_another_is_given(daemon: Daemon) -> None:
    queue_id = await daemon.queue(hold="550 no such user")
    assert (await daemon.ctl("queue", "hold", queue_id))[:2] == (0, f"{queue_id} held\n")
    (held,) = (await daemon.json("queue", "list"))["messages"]
    assert (held["hold_reason"], held["next_attempt_at"]) == ("550 no such user", None)
    assert (await daemon.ctl("queue", "hold", queue_id, "--reason", "asked them"))[0] == 0
    assert (await daemon.json("queue", "list"))["messages"][0]["hold_reason"] == "asked them"


@ensureDeferred
async def test_what_could_not_be_shown_is_in_the_document_too(daemon: Daemon) -> None:
    queue_id = await daemon.queue()
    document = await daemon.json("queue", "show", queue_id, "NOSUCH")
    assert [message["queue_id"] for message in document["messages"]] == [queue_id]
    assert [failed["queue_id"] for failed in document["failed"]] == ["NOSUCH"]


@ensureDeferred
async def test_an_unknown_id_is_an_answer_of_no_and_the_others_are_done(daemon: Daemon) -> None:
    queue_id = await daemon.queue()
    code, out, err = await daemon.ctl("queue", "hold", "NOSUCH", queue_id)
    assert code == 1
    assert out == f"{queue_id} held\n"
    assert "NOSUCH: no message has this queue id" in err
    for argv in (("show", "NOSUCH"), ("retry", "NOSUCH"), ("delete", "--yes", "NOSUCH")):
        assert (await daemon.ctl("queue", *argv))[0] == 1


@ensureDeferred
async def test_retrying_a_held_message_says_to_release_it(daemon: Daemon) -> None:
    queue_id = await daemon.queue(hold="odd")
    code, _, err = await daemon.ctl("queue", "retry", queue_id)
    assert code == 1
    assert "release it instead" in err
    assert await daemon.state_of(queue_id) is MessageState.HOLD


@ensureDeferred
async def test_all_means_all_that_the_filters_let_through(daemon: Daemon) -> None:
    held = [await daemon.queue(hold="odd") for _ in range(2)]
    other = await daemon.queue(Address("x", "example.net"), hold="odd")
    code, out, _ = await daemon.ctl("queue", "release", "--yes", "--from", "<>")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert [await daemon.state_of(each) for each in held] == [MessageState.ACTIVE] * 2
    assert await daemon.state_of(other) is MessageState.HOLD
    assert (await daemon.ctl("queue", "hold", "--all", "--yes"))[0] == 0
    assert {await daemon.state_of(each) for each in held} == {MessageState.HOLD}


@ensureDeferred
async def test_delete_asks_on_a_terminal_and_takes_no_for_an_answer(daemon: Daemon) -> None:
    queue_id = await daemon.queue()
    for answer in ("n\n", "\n", ""):
        code, _, err = await daemon.ctl("queue", "delete", queue_id, terminal=True, stdin=answer)
        assert code == 1
        assert "[y/N]" in err
        assert await daemon.ids() == [queue_id]
    assert (await daemon.ctl("queue", "delete", queue_id, terminal=True, stdin="y\n"))[0] == 0
    assert await daemon.ids() == []


@ensureDeferred
async def test_a_question_may_wait_longer_than_an_idle_connection(daemon: Daemon, monkeypatch) -> None:
    ids = [await daemon.queue() for _ in range(2)]
    opened: list[Any] = []
    build = AdminSite.buildProtocol

    def keep(site: AdminSite, address: Any) -> Any:
        opened.append(build(site, address))
        return opened[-1]

    class Late(Terminal):
        def readline(self, *_: int) -> str:
            for channel in opened:
                blockingCallFromThread(reactor, channel._channel.loseConnection)
            return "y\n"

    monkeypatch.setattr(AdminSite, "buildProtocol", keep)
    out, err = Terminal(), Terminal()
    arguments = ("--socket", daemon.socket, "queue", "delete", "--all")
    assert await deferToThread(main, arguments, out, err, {}, Late()) == 0, err.getvalue()
    assert out.getvalue().count(" deleted") == len(ids)


@ensureDeferred
async def test_delete_with_yes_does_not_ask(daemon: Daemon) -> None:
    ids = [await daemon.queue() for _ in range(3)]
    assert (await daemon.ctl("queue", "delete", "--yes", *ids[:2], terminal=True))[0] == 0
    assert await daemon.ids() == ids[2:]


@ensureDeferred
async def test_a_script_that_deletes_everything_has_to_say_yes(daemon: Daemon) -> None:
    queue_id = await daemon.queue()
    assert (await daemon.ctl("queue", "delete", "--all"))[0] == 2
    assert await daemon.ids() == [queue_id]
    assert (await daemon.ctl("queue", "delete", "--all", "--yes"))[0] == 0
    assert await daemon.ids() == []


@ensureDeferred
async def test_bounce_asks_and_then_returns_the_message_to_its_sender(daemon: Daemon) -> None:
    queue_id = await daemon.queue(Address("jane", "example.org"))
    code, _, err = await daemon.ctl("queue", "bounce", queue_id, terminal=True, stdin="n\n")
    assert (code, "Return" in err, "nothing was returned" in err) == (1, True, True)
    assert await daemon.ids() == [queue_id]
    code, out, _ = await daemon.ctl("queue", "bounce", queue_id, terminal=True, stdin="y\n")
    assert (code, out) == (0, f"{queue_id} returned\n")
    (notice,) = await daemon.ids()
    record = await daemon.spool.show(notice)
    assert not record.envelope.sender
    assert [str(each.recipient) for each in record.recipients] == ["jane@example.org"]


@ensureDeferred
async def test_what_has_no_sender_is_not_returned_and_the_others_are(daemon: Daemon) -> None:
    from_nobody = await daemon.queue(NULL)
    from_jane = await daemon.queue(Address("jane", "example.org"))
    code, out, err = await daemon.ctl("queue", "bounce", from_nobody, from_jane)
    assert (code, out) == (1, f"{from_jane} returned\n")
    assert f"{from_nobody}: the sender is <>: there is no address for a notice" in err
    assert from_nobody in await daemon.ids()


@pytest.mark.parametrize("action", ["retry", "hold", "release", "bounce", "delete"])
@ensureDeferred
async def test_all_is_one_call_for_each_page_of_messages(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    hold = "odd" if action == "release" else None
    ids = [await daemon.queue(Address("jane", "example.org"), hold=hold) for _ in range(5)]
    calls: list[tuple[str, ...]] = []
    call = AdminClient.call

    def noting(client: AdminClient, method: str, *segments: str, **query: str) -> dict[str, Any]:
        if method != "GET":
            calls.append(segments)
        return call(client, method, *segments, **query)

    monkeypatch.setattr(AdminClient, "call", noting)
    monkeypatch.setattr("elemta.ctl.queue.TOGETHER", 3)
    state = ["--state", "active"] if action == "retry" else []
    done = await daemon.json("queue", action, "--all", *state, "--yes")
    assert [result["queue_id"] for result in done["results"]] == ids
    assert all(result["ok"] for result in done["results"])
    assert calls == [("queue", action)] * 2


@ensureDeferred
async def test_a_script_that_returns_everything_has_to_say_yes(daemon: Daemon) -> None:
    queue_id = await daemon.queue(Address("jane", "example.org"))
    code, _, err = await daemon.ctl("queue", "bounce", "--all")
    assert (code, "bounce of many messages without a terminal needs --yes" in err) == (2, True)
    assert await daemon.ids() == [queue_id]
    done = await daemon.json("queue", "bounce", "--all", "--yes")
    assert done["results"] == [{"queue_id": queue_id, "ok": True, "done": "returned", "notices": 1}]


@pytest.mark.parametrize("action", ["retry", "hold", "release", "bounce", "delete"])
@pytest.mark.parametrize("choice", [("--all",), ("--from", "X@"), ("--reason", "ODD"), ("--state", "hold")])
@ensureDeferred
async def test_what_acts_on_many_counts_them_and_asks(
    daemon: Daemon, action: str, choice: tuple[str, ...]
) -> None:
    ids = [await daemon.queue(Address("x", "y.test"), hold="looks odd") for _ in range(2)]
    ids.append(await daemon.queue(Address("x", "y.test"), hold="looks odd"))
    words = ("queue", action, *choice, *(["--state", "hold"] if "--state" not in choice else []))
    code, out, err = await daemon.ctl(*words)
    assert (code, out) == (2, "")
    assert f"{action} of many messages without a terminal needs --yes" in err
    code, out, err = await daemon.ctl(*words, terminal=True, stdin="n\n")
    assert (code, out) == (1, "")
    assert "3 messages (3 hold)" in err
    assert [await daemon.state_of(each) for each in ids] == [MessageState.HOLD] * 3


@ensureDeferred
async def test_filters_go_by_reason_and_age_and_fit_a_part_of_the_text(daemon: Daemon) -> None:
    held = await daemon.queue(Address("anna", "example.net"), hold="Looks ODD to me")
    tried = await daemon.queue(Address("joanna", "example.net"), "bob@dest.test")
    came = Outcome(
        tried, Address("bob", "dest.test"), Came.DEFERRED, "Try Later", "mx:", "hop", time.time(), code=451
    )
    await daemon.spool.settle(tried, [came], retry_at=time.time() + 300, hold_reason=None)

    async def chosen(*filters: str) -> list[str]:
        return [each["queue_id"] for each in (await daemon.json("queue", "list", *filters))["messages"]]

    assert await chosen("--reason", "odd TO") == [held]
    assert await chosen("--reason", "451 try") == [tried]
    assert await chosen("--reason", "*odd*me") == [held]
    assert await chosen("--from", "ANNA@example") == [held, tried]
    assert await chosen("--from", "<anna@example.net>") == [held]
    assert await chosen("--older-than", "0s", "--to", "DEST") == [tried]
    assert await chosen("--older-than", "1h") == []
    assert await chosen("--destination", "nowhere") == []
    (line,) = (await daemon.json("queue", "list", "--state", "deferred"))["messages"]
    assert (line["recipient"], line["reason"]) == ("bob@dest.test", "451 Try Later")
    assert (await daemon.ctl("queue", "list", "--older-than", "soon"))[0] == 2
    assert (await daemon.ctl("queue", "list", "--state", "gone"))[0] == 2


@ensureDeferred
async def test_quarantine_and_undeliverable_notices_are_states_of_their_own(daemon: Daemon) -> None:
    kept = await daemon.queue(hold="kept")
    spam = await daemon.queue(Address("a", "b.test"), hold="spam", cause=HoldCause.QUARANTINE)
    notice = await daemon.queue(NULL)
    await daemon.spool.settle(notice, (), retry_at=None, hold_reason="550 no", hold=HoldCause.UNDELIVERABLE)
    for state, queue_id in (("hold", kept), ("quarantine", spam), ("undeliverable", notice)):
        (line,) = (await daemon.json("queue", "list", "--state", state))["messages"]
        assert (line["queue_id"], line["state"], line["next_attempt_at"]) == (queue_id, state, None)
        (record,) = (await daemon.json("queue", "show", queue_id))["messages"]
        assert (record["state"], record["recipients"][0]["state"]) == (state, state)
    _, out, _ = await daemon.ctl("queue", "stats")
    assert "3 messages (0 active, 0 deferred, 1 hold, 1 quarantine, 1 undeliverable)" in out


@ensureDeferred
async def test_the_content_of_a_message_is_given_as_it_is(daemon: Daemon, monkeypatch) -> None:
    monkeypatch.setattr("elemta.daemon.queue_operations.MOST_OCTETS", 100)
    writer = daemon.spool.begin()
    writer.write(b"Subject: \xff\r\n\r\n" + bytes(range(128, 256)) * 5 + "ä\r\n".encode() * 100)
    client = Client(ip="192.0.2.1", helo="c", listener="mx", session_id="s1")
    given = (Recipient(Address("a", "b.test")),)
    message = Submission(NULL, given, MailParameters(), client, b"X: y\r\n", time.time())
    queue_id = (await daemon.spool.commit(writer, message)).queue_id
    content = await daemon.spool.open_content(queue_id)
    code, out, _ = await daemon.ctl("queue", "cat", queue_id)
    assert (code, out.encode("utf-8", "surrogateescape")) == (0, content.read())
    code, out, _ = await daemon.ctl("queue", "cat", queue_id, "--headers")
    assert (code, out.encode("utf-8", "surrogateescape")) == (0, b"X: y\r\nSubject: \xff\r\n")
    assert (await daemon.ctl("queue", "cat", "NOSUCH"))[0] == 1
    content.seek(0)
    for options, octets in (((), content.read()), (("--headers",), b"X: y\r\nSubject: \xff\r\n")):
        document = await daemon.json("queue", "cat", queue_id, *options)
        assert list(document) == ["queue_id", "size", "content", "charset"]
        assert (document["queue_id"], document["size"]) == (queue_id, len(octets))
        assert document["content"].encode(document["charset"]) == octets
    content.close()


@ensureDeferred
async def test_a_word_that_is_no_id_is_no_other_call(daemon: Daemon) -> None:
    for word in ("stats", "hold", "retry", "..", "x/content", "%2e"):
        for command in ("show", "cat"):
            code, out, err = await daemon.ctl("queue", command, word)
            assert (code, out) == (1, ""), word
            assert "no message has this queue id" in err


@ensureDeferred
async def test_a_character_that_a_page_would_cut_is_in_the_next_one(daemon: Daemon, monkeypatch) -> None:
    monkeypatch.setattr("elemta.daemon.queue_operations.MOST_OCTETS", 7)
    writer = daemon.spool.begin()
    writer.write("\r\näöüß日本語🎉🎉x".encode())
    client = Client(ip="192.0.2.1", helo="c", listener="mx", session_id="s1")
    given = (Recipient(Address("a", "b.test")),)
    message = Submission(NULL, given, MailParameters(), client, b"X: y\r\n", time.time())
    queue_id = (await daemon.spool.commit(writer, message)).queue_id
    admin, pages, offset = AdminClient(daemon.socket), [], 0
    while offset is not None:
        pages.append(
            await deferToThread(admin.get, "queue", queue_id, "content", offset=str(offset), limit="7")
        )
        offset = pages[-1]["next"]
    admin.close()
    assert {page["charset"] for page in pages} == {"utf-8"}
    assert "".join(page["content"] for page in pages) == "X: y\r\n\r\näöüß日本語🎉🎉x"
    _, out, _ = await daemon.ctl("queue", "cat", queue_id, terminal=True)
    assert out.splitlines()[-1] == "äöüß日本語🎉🎉x"


@pytest.mark.parametrize(
    "argv",
    [
        ("retry",),
        ("delete",),
        ("hold", "A", "--all"),
        ("release", "A", "--state", "hold"),
        ("retry", "--from", "x"),
    ],
)
@ensureDeferred
async def test_neither_ids_nor_all_or_both_is_wrong_use(daemon: Daemon, argv: tuple[str, ...]) -> None:
    queue_id = await daemon.queue(hold="odd")
    assert (await daemon.ctl("queue", *argv))[0] == 2
    assert await daemon.state_of(queue_id) is MessageState.HOLD


@pytest.mark.parametrize("option", ["--from", "--to", "--destination", "--reason", "--older-than"])
@pytest.mark.parametrize("action", ["list", "retry", "hold", "release", "bounce", "delete"])
@ensureDeferred
async def test_a_filter_without_a_text_does_not_mean_all(daemon: Daemon, action: str, option: str) -> None:
    """As in a script whose variable is empty."""
    queue_id = await daemon.queue(Address("anna", "example.com"))
    yes = () if action == "list" else ("--yes", "--all")
    code, _, err = await daemon.ctl("queue", action, option, "", *yes)
    assert (code, f"{option} is empty" in err) == (2, True)
    assert await daemon.ids() == [queue_id]
    assert await daemon.state_of(queue_id) is MessageState.ACTIVE


@ensureDeferred
async def test_an_empty_reason_of_a_named_message_is_none(daemon: Daemon) -> None:
    queue_id = await daemon.queue(hold="odd")
    assert (await daemon.ctl("queue", "hold", queue_id, "--reason", ""))[0] == 0
    assert (await daemon.spool.show(queue_id)).message.hold_reason == "odd"


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("argv", [("status",), ("queue", "list"), ("--json", "queue", "stats")])
@ensureDeferred
async def test_output_that_can_not_be_written_is_a_failure(daemon: Daemon, argv: tuple[str, ...]) -> None:
    await daemon.queue()
    err = io.StringIO()
    words = ("--socket", daemon.socket, *argv)
    assert await deferToThread(main, words, FullDisk(), err, {}, io.StringIO()) == 1
    assert err.getvalue() == "elemtactl: No space left on device\n"


def test_a_file_that_fails_in_a_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/srv/list")

    monkeypatch.setattr(CommandContext, "config", fail)
    code, _, err = run("config", "dump")
    assert (code, err) == (1, "elemtactl: /srv/list: Input/output error\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">/dev/full"])
def test_a_process_without_a_stream_ends_without_a_traceback(tmp_path: Path, closed: str) -> None:
    command = f"{sys.executable} -m elemta.ctl.main config dump --config {tmp_path}/elemta.toml {closed}"
    (tmp_path / "elemta.toml").write_text('[server]\nhostname = "mx.example.org"\n')
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1 if "full" in closed else 0, False)


@ensureDeferred
async def test_the_queue_in_numbers(daemon: Daemon) -> None:
    await daemon.queue()
    code, out, _ = await daemon.ctl("queue", "stats")
    assert code == 0
    assert "1 message (1 active, 0 deferred, 0 hold)" in out
    assert (await daemon.json("queue", "stats"))["total"]["messages"] == 1


# Destinations


@ensureDeferred
async def test_destinations_are_listed_with_what_waits_for_them_and_why(daemon: Daemon, monkeypatch) -> None:
    target = "smtp://" + "h" * 60 + ".test:25"
    monkeypatch.setenv("COLUMNS", "80")
    daemon.spool.use_plan(lambda given: [PlannedPart(target, given.received_at)])
    await daemon.queue(NULL, "a@b.test")
    daemon.spool.use_plan(lambda given: [PlannedPart("example.org", given.received_at)])
    for _ in range(2):
        await daemon.queue(NULL, "a@example.org")
    daemon.destined.pauses.names.append("empty.test")
    until = time.time() + 90.5
    daemon.destined.said = {
        target: DestinationStatus(DestinationState.BLOCKED, f"refused {EVIL}", until),
        "example.org": DestinationStatus(DestinationState.WAITING, "", until, "gently"),
    }
    code, out, _ = await daemon.ctl("destinations", terminal=True)
    assert code == 0
    assert target in out
    assert "…" not in out
    assert "\x1b" not in out
    assert out == (await daemon.ctl("destinations", "list", terminal=True))[1]
    found = (await daemon.json("destinations", "list"))["destinations"]
    assert [list(each) for each in found] == [
        [
            "name",
            "route",
            "waiting",
            "oldest_at",
            "state",
            "last_error",
            "next_attempt_at",
            "paced_by",
        ]
    ] * 3
    assert [(each["name"], each["state"], each["waiting"]) for each in found] == [
        ("example.org", "waiting", 2),
        (target, "blocked", 1),
        ("empty.test", "paused", 0),
    ]
    assert (found[0]["paced_by"], found[1]["paced_by"]) == ("gently", None)
    assert found[1]["next_attempt_at"] == until
    assert found[2]["next_attempt_at"] is None
    chosen = await daemon.json("queue", "list", "--destination", "EXAMPLE.org")
    assert len(chosen["messages"]) == 2


@ensureDeferred
async def test_a_destination_is_paused_probed_and_resumed_by_its_name(daemon: Daemon) -> None:
    target = "smtp://hop.test:25"
    code, out, _ = await daemon.ctl("destinations", "probe", target)
    assert (code, out) == (0, f"{target}: no mail waits, nothing is attempted\n")
    code, out, _ = await daemon.ctl("destinations", "pause", target)
    assert (code, out) == (0, f"{target}: paused; 0 messages wait\n")
    code, _, err = await daemon.ctl("destinations", "probe", target)
    assert (code, "resume it instead" in err) == (1, True)
    assert (await daemon.json("destinations", "resume", target))["state"] == "open"
    assert daemon.destined.asked == [("probe", target), ("pause", target), ("resume", target)]
    assert (await daemon.ctl("destinations", "resume", target))[0] == 1
    code, _, err = await daemon.ctl("destinations", "pause", "no/such")
    assert (code, "there is no destination no/such" in err) == (1, True)
    assert (await daemon.ctl("destinations", "pause"))[0] == 2


BROKEN = {
    "another setting": "[server]\nhostnam = 5\n",
    "no TOML": '[server]\nhostname = "unterminated\n',
    "a certificate that is not there": '[tls]\ncertificate = "/absent"\nprivate_key = "/absent"\n',
    "a table twice": '[server]\nhostname = "a.test"\n[server]\nworkers = 1\n',
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("last", [False, True])
@ensureDeferred
async def test_a_broken_configuration_keeps_nobody_from_the_daemon(
    daemon: Daemon, tmp_path: Path, fault: str, last: bool
) -> None:
    config = tmp_path / "elemta.toml"
    spool = f'[spool]\ndirectory = "{tmp_path}/spool" # here\n'
    config.write_text(fault + spool if last else spool + fault)
    for command in (("status",), ("drain",), ("undrain",), ("queue", "list")):
        code, _, err = await deferToThread(run, "--config", str(config), *command)
        assert (code, err) == (0, "")
    for written in (
        "[spool]\n'directory' = '{}'\n",
        '[spool]\ndirectory = """{}"""\n',
        'spool = {{ expire = "1d", directory = "{}" }}\n',
        'spool.directory = "{}"\n',
    ):
        spool = written.format(tmp_path / "spool")
        config.write_text(fault + spool if last and spool.startswith("[") else spool + fault)
        assert (await deferToThread(run, "--config", str(config), "status"))[0] == 0, written
    config.write_bytes(config.read_bytes() + b"# \xff\n")
    assert (await deferToThread(run, "--config", str(config), "status"))[0] == 0
    config.unlink()
    code, _, err = await deferToThread(run, "--config", str(config), "status")
    assert (code, "--socket" in err) == (78, True)
    assert (await daemon.ctl("status", ELEMTA_CONFIG=str(config)))[0] == 0


# Without a daemon


def test_without_a_daemon_the_word_names_the_socket_and_the_code_is_69(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(f'[spool]\ndirectory = "{tmp_path}"\n')
    code, out, err = run("--config", str(config), "status")
    assert (code, out) == (69, "")
    assert f"not running: nothing answers at {tmp_path}/admin.sock" in err
    assert "Traceback" not in err


def test_the_socket_of_a_dead_daemon_is_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert run("--socket", str(path), "status")[0] == 69


def test_a_failure_under_json_is_one_document_too(tmp_path: Path) -> None:
    code, out, _ = run("--json", "--socket", str(tmp_path / "absent"), "status")
    assert code == 69
    assert "not running" in json.loads(out)["error"]


@pytest.mark.parametrize(
    "answer", [b"220 mx1 ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b""]
)
def test_something_else_behind_the_socket_is_named_and_nothing_breaks(tmp_path: Path, answer: bytes) -> None:
    import threading

    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        code, _, err = run("--socket", str(path), "status")
        thread.join()
    assert code == 69
    assert str(path) in err


def test_a_daemon_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from elemta.ctl import client

    path = tmp_path / "stuck.sock"
    monkeypatch.setattr(client.AdminClient.__init__, "__defaults__", (0.05,))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        code, _, err = run("--socket", str(path), "status")
    assert code == 69
    assert "did not answer in time" in err


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nonsense",),
        ("queue",),
        ("queue", "show"),
        ("queue", "list", "--limit", "x"),
        ("--conf", "x", "status"),
    ],
)
def test_wrong_use_is_2_with_the_usage(argv: tuple[str, ...]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert "usage: elemtactl" in err


@pytest.mark.parametrize(
    "argv", [("--help",), ("queue", "delete", "--help"), ("user", "add", "-h"), ("--version",)]
)
def test_help_goes_to_standard_output(argv: tuple[str, ...]) -> None:
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert "elemtactl" in out


# The configuration


def test_a_good_configuration_is_good(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text('[server]\nhostname = "mx1.example.org"\n')
    code, out, err = run("config", "check", "--config", str(config))
    assert (code, err) == (0, "")
    assert f"{config}: the configuration is good" in out


def test_every_fault_of_the_file_is_listed_at_once(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text('[server]\nhostnam = "x"\nmax_recipients = "many"\n')
    code, out, err = run("config", "check", "--config", str(config))
    assert (code, out) == (78, "")
    assert "server.hostnam" in err
    assert "server.max_recipients" in err
    code, out, _ = run("--json", "config", "check", "--config", str(config))
    assert {fault["key"] for fault in json.loads(out)["faults"]} == {
        "server.hostnam",
        "server.max_recipients",
    }


def test_what_the_file_names_is_checked_too(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("anna:plain\n")
    config = tmp_path / "elemta.toml"
    config.write_text(
        '[server]\nhostname = "mx1.example.org"\n'
        f'[domains]\nrecipients = "{tmp_path}/absent"\n'
        f'[auth]\ncheckers = ["elemta-users:{users}"]\n'
        '[policies]\nchain = ["limits", "rellay"]\n'
    )
    code, _, err = run("config", "check", "--config", str(config))
    assert code == 78
    assert f"{tmp_path}/absent" in err
    assert "auth.checkers[1]" in err
    assert "line 1" in err
    assert 'policies.chain[2]: no policy is called "rellay" (did you mean "relay"?' in err


def test_a_fault_in_one_place_hides_none_in_another(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(
        '[server]\nhostname = "mx1.example.org"\nmax_recipients = "many"\n'
        f'[domains]\nrecipients = "{tmp_path}/absent"\n'
        '[auth]\ncheckers = ["bogus:x"]\n'
        '[policies]\nchain = ["limits", "greylist", "relay"]\n'
        '[policy.greylist]\ndelay = "long"\n'
        '[[limit]]\nname = "a"\nper = ["ip"]\ncounts = "messages"\nrates = ["many"]\n'
    )
    code, _, err = run("config", "check", "--config", str(config))
    assert code == 78
    keys = ("server.max_recipients", "limit[1].rates[1]", "domains.recipients", "policy.greylist.delay")
    assert [key for key in (*keys, "auth.checkers[1]") if key not in err] == []


def test_a_second_policy_of_a_plugin_is_no_fault_and_a_plugin_that_is_not_there_is_one(
    tmp_path: Path,
) -> None:
    config = tmp_path / "elemta.toml"
    text = '[server]\nhostname = "mx1.example.org"\n[policies]\nchain = ["limits", "relay", "second"]\n'
    for plugin, fault in [
        ('"milter"', ""),
        ('"miltre"', 'policy.second.use: no policy is called "miltre" (did you mean "milter"?'),
        ("5", "policy.second.use: must be the name of a plugin"),
    ]:
        endpoint = 'endpoint = "unix:/run/milter.sock"\n' if plugin == '"milter"' else ""
        config.write_text(f"{text}[policy.second]\nuse = {plugin}\n{endpoint}")
        code, _, err = run("config", "check", "--config", str(config))
        assert (code, fault in err) == (78 if fault else 0, True)


@pytest.mark.parametrize("named", [True, False], ids=["file", "stdin"])
def test_limits_that_are_too_long_to_push_are_refused_before_they_are_sent(
    tmp_path: Path, named: bool
) -> None:
    (tmp_path / "limits.toml").write_text("é" * (MAX_TEXT // 2 + 1))
    name = str(tmp_path / "limits.toml") if named else "-"
    more = ("limits", "push", "--yes", "--socket", str(tmp_path / "absent"))
    code, _, err = run(*more, name, stdin="#" * (MAX_TEXT + 1))
    assert (code, f"{name} has more than {MAX_TEXT} octets" in err) == (1, True)


def test_a_configuration_that_was_named_and_is_not_there_is_a_fault(tmp_path: Path) -> None:
    code, _, err = run("config", "check", "--config", str(tmp_path / "absent.toml"))
    assert code == 78
    assert "absent.toml" in err


def test_the_dump_can_be_read_again_and_hides_passwords(tmp_path: Path) -> None:
    import tomllib

    config = tmp_path / "elemta.toml"
    config.write_text('[resources]\nvalkey_url = "valkey://elemta:hunter2@127.0.0.1/0"\n')
    code, out, _ = run("config", "dump", "--config", str(config))
    assert code == 0
    assert "hunter2" not in out
    assert tomllib.loads(out)["server"]["max_recipients"] == 1000


def test_the_variable_that_names_the_file_is_no_setting(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text('[server]\nhostname = "mx1.example.org"\n')
    code, out, err = run("config", "check", ELEMTA_CONFIG=str(config))
    assert (code, err) == (0, "")
    assert str(config) in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_configuration_that_may_not_be_read_is_77(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text("")
    config.chmod(0)
    assert run("config", "check", "--config", str(config))[0] == 77


# Limits and nodes


@ensureDeferred
async def test_status_says_where_limits_are_counted(daemon: Daemon) -> None:
    for mode, words, valkey in (
        ("memory", "limits    counted in memory", []),
        ("cluster", "limits    counted in Valkey, by 2 nodes", ["valkey    valkey://cache, connected"]),
        (
            "local",
            "limits    Valkey is away: this node's share of each is 1/2",
            ["valkey    valkey://cache, DOES NOT ANSWER, breaker half open: connection refused"],
        ),
    ):
        daemon.overseen.mode = mode
        _, out, _ = await daemon.ctl("status")
        assert words in out.splitlines()
        assert [line for line in out.splitlines() if line.startswith("valkey")] == valkey


@ensureDeferred
async def test_the_nodes_are_shown_with_what_they_do(daemon: Daemon) -> None:
    code, out, _ = await daemon.ctl("nodes")
    assert code == 0
    heads, values = (line.split() for line in out.splitlines())
    assert heads == ["NODE", "STATE", "HOST", "VERSION", "UP", "SESSIONS", "QUEUE", "LIMITS", "SEEN"]
    assert values[:4] == ["mx2", "serving", "mx2.example.org", "0.1.0"]
    assert values[-5:-2] == ["7", "11", "Valkey"]
    assert (await daemon.json("nodes"))["nodes"][0]["node_id"] == "mx2"
    daemon.overseen.away = True
    _, _, err = await daemon.ctl("nodes")
    assert "other nodes can't be seen" in err


@ensureDeferred
async def test_nodes_that_are_gone_are_shown_when_asked_for_and_no_name_is_cut(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    (known,) = await daemon.overseen.others()
    long = "mx-" + 40 * "x" + ".example.org"
    daemon.overseen.ended = [
        replace(known, node_id=long, state=NodeLife.GONE, queued=5, seen_ago=7200.0),
        replace(known, node_id="mx4", state=NodeLife.GONE, left=True),
    ]
    _, out, _ = await daemon.ctl("nodes")
    assert long not in out
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 20)))
    monkeypatch.setattr("elemta.ctl.context.CommandContext.width", property(lambda _: 40))
    _, out, _ = await daemon.ctl("nodes", "--all")
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert "host mx2.example.org" in out
    assert [line.split()[0] for line in lines] == ["NODE", "mx2", long, "mx4"]
    assert "gone (lost)" in lines[2]
    assert lines[2].endswith("2h ago")
    assert "gone (left)" in lines[3]
    shown = (await daemon.json("nodes", "--all"))["nodes"]
    assert [(node["state"], node["queued"], node["limits_version"]) for node in shown] == [
        ("serving", 11, 0),
        ("gone", 5, 0),
        ("gone", 11, 0),
    ]


@ensureDeferred
async def test_the_limits_in_force_are_listed(daemon: Daemon) -> None:
    _, out, _ = await daemon.ctl("limits", "list")
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["ip", "connections", "ip", "3/1m", "cluster", "defer", "local", "enforce"]
    assert lines[3] == ["watch", "connections", "network", "1/1h", "cluster", "defer", "local", "observe"]


@ensureDeferred
async def test_who_is_limited_is_shown_with_how_full_and_until_when(daemon: Daemon) -> None:
    _, out, _ = await daemon.ctl("limits", "top")
    assert out == "nothing is counted\n"
    daemon.overseen.connect("192.0.2.1", 4)
    _, out, _ = await daemon.ctl("limits", "top", "ip")
    assert out.splitlines()[1].split() == ["ip", "192.0.2.1", "3/3", "in", "1m", "in", "1m"]
    _, out, _ = await daemon.ctl("limits", "show", "192.0.2.1")
    watched = out.splitlines()[2].split()
    assert watched == ["watch", "192.0.2.0/24", "1/1", "in", "1h", "now", "(else", "in", "1h)"]
    assert (await daemon.json("limits", "show", "ip:192.0.2.1"))["limits"][0]["retry_after"] == 60.0


@ensureDeferred
async def test_the_name_of_a_limit_and_an_identity_are_two_words_or_one(daemon: Daemon) -> None:
    daemon.overseen.connect("192.0.2.1", 4)
    for command in ("show", "reset"):
        _, of_both, _ = await daemon.ctl("limits", "show", "192.0.2.1")
        assert "watch" in of_both
        code, out, _ = await daemon.ctl("limits", command, "ip", "192.0.2.1")
        assert (code, "ip" in out, "watch" in out) == (0, True, False)
    code, _, err = await daemon.ctl("limits", "reset", "ipp", "192.0.2.1")
    assert code == 2
    assert 'no limit is called "ipp": there are ip, ' in err


@ensureDeferred
async def test_the_board_of_limits_is_shown_until_it_is_interrupted(daemon: Daemon, monkeypatch) -> None:
    slept: list[float] = []

    def sleep(_: object, seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("elemta.runtime.ProcessRuntime.sleep", sleep)
    daemon.overseen.connect("192.0.2.1", 2)
    code, out, _ = await daemon.ctl("limits", "top", "ip", "--watch", terminal=True)
    assert (code, slept) == (130, [2.0] * 3)
    assert out.count("192.0.2.1") == 3
    assert out.startswith("\x1b[H")
    slept.clear()
    _, out, _ = await daemon.ctl("--json", "limits", "top", "--watch")
    assert "\x1b" not in out
    assert out.count('"counted_in"') == 3


@ensureDeferred
async def test_while_valkey_is_away_who_looks_is_told_whose_count_it_is(daemon: Daemon) -> None:
    daemon.overseen.mode = "local"
    daemon.overseen.connect("192.0.2.1", 2)
    _, out, err = await daemon.ctl("limits", "top", "ip")
    assert "Valkey is away" in err
    assert "more" not in err
    assert "2/1 in 1m" in out
    assert "ip: as seen by this node alone, share 1 of 3" in out


@ensureDeferred
async def test_a_reset_names_what_was_reset_and_fails_where_nothing_was(daemon: Daemon) -> None:
    daemon.overseen.connect("192.0.2.1", 4)
    code, out, _ = await daemon.ctl("limits", "reset", "ip:192.0.2.1")
    assert (code, out) == (0, "ip: 192.0.2.1 reset\n")
    code, _, err = await daemon.ctl("limits", "reset", "ip:192.0.2.1")
    assert code == 1
    assert "nothing is counted for this identity" in err


@ensureDeferred
async def test_spools_are_adopted_listed_and_given_back(daemon: Daemon) -> None:
    code, out, err = await daemon.ctl("spool", "adopt", "/shared/there/../mx1")
    assert (code, out) == (0, "/shared/mx1 adopted: 1 message\n")
    assert err == "elemtactl: its node had adopted /shared/mx0, which has no owner now: adopt it, too\n"
    code, out, _ = await daemon.ctl("spool", "list")
    assert [line.split(maxsplit=3) for line in out.splitlines()] == [
        ["SPOOL", "STATE", "QUEUE", "WHY"],
        ["/var/spool/elemta", "own", "3"],
        ["/shared/mx4", "waiting", "there", "is no spool in /shared/mx4"],
        ["/shared/mx1", "delivering", "1"],
    ]
    assert (await daemon.ctl("spool", "give-back", "/shared/mx1"))[1] == "/shared/mx1 given back\n"
    code, _, err = await daemon.ctl("spool", "adopt", "/shared/mx2")
    assert code == 1
    assert "process 7 of node mx2 owns the spool partition /shared/mx2/p0" in err


@ensureDeferred
async def test_one_plugin_is_shown_with_its_options(daemon: Daemon) -> None:
    code, out, _ = await daemon.ctl("plugins", "show", "relay")
    assert code == 0
    assert "Local mailboxes for every client" in out
    code, out, _ = await daemon.ctl("--json", "plugins", "show", "limits")
    options = {option["key"]: option["default"] for option in json.loads(out)["options"]}
    assert options == {"max_delay": '"4s"'}
    code, _, err = await daemon.ctl("plugins", "show", "none")
    assert code != 0
    assert "no plugin is called none" in err


@pytest.mark.parametrize(
    ("argv", "usage", "fault"),
    [
        (["stauts"], "elemtactl [-h]", "(did you mean status?)"),
        (["queue", "lst"], "elemtactl queue [-h]", "(did you mean list?)"),
        (["queue", "list", "--state", "defered"], "elemtactl queue list [-h]", "(did you mean deferred?)"),
        (
            ["config", "dump", "--runing"],
            "elemtactl config dump [-h]",
            "unrecognized arguments: --runing (did you mean --running?)",
        ),
        (["nodes", "-all"], "elemtactl nodes [-h]", "(did you mean --all?)"),
        (["status", "--sockt=x"], "elemtactl status [-h]", "(did you mean --socket?)"),
        (
            ["explain", "--ip", "192.0.2.7", "a@example.com"],
            "elemtactl explain [-h]",
            "unrecognized arguments: a@example.com\n",
        ),
        (["spool"], "elemtactl spool [-h]", "required: COMMAND (one of "),
        ([], "elemtactl [-h]", "required: COMMAND (one of config, "),
    ],
)
def test_wrong_use_shows_the_usage_of_the_command_and_what_was_probably_meant(
    argv: list[str], usage: str, fault: str
) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"usage: {usage}")
    assert fault in err
