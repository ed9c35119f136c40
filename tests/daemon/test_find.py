"""``elemtactl find`` on a real daemon: whole lives, hostile words, a reload, and a kill."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tests.support.daemon import Daemon

HELD = '[[route]]\ndomains = ["held.test"]\nto = "hold:"\n'
HOSTILE = "\x1b[2J=?utf-8?B?4oCu77u/G1sxbQ==?= <script>alert(1)</script>\tx\u202e" + "A" * 300


def send(
    daemon: Daemon, *recipients: str, subject: str = "hello", message_id: str = "one@client.test"
) -> str:
    """One message; its queue id."""
    with daemon.client() as client:
        client.ehlo("client.test")
        client.mail("Sender@client.test", ["SMTPUTF8"] if not subject.isascii() else [])
        for each in recipients:
            client.rcpt(each)
        text = f"Message-ID: <{message_id}>\r\nSubject: {subject}\r\n\r\nx\r\n"
        code, reply = client.data(text.encode())
    assert code == 250
    return reply.decode().split()[-1]


def ask(daemon: Daemon, path: str) -> tuple[int, str]:
    """A call of the admin API."""
    connection = http.client.HTTPConnection("elemta", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(daemon.spool / "admin.sock"))
    connection.request("GET", path)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def found(daemon: Daemon, text: str) -> list[dict[str, Any]]:
    """What is found."""
    status, answer = ask(daemon, f"/v1/find?text={quote(text)}")
    assert status == 200, answer
    messages: list[dict[str, Any]] = json.loads(answer)["messages"]
    return messages


def wait_until(condition: Callable[[], bool]) -> None:
    """Each question takes some milliseconds, so as many are time enough."""
    assert any(condition() for _ in range(5000))


def test_the_life_of_a_message_is_found_and_outlives_a_kill(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(HELD, domains='relay_from = ["127.0.0.0/8"]').start()
    queue_id = send(daemon, "anna@example.test", "bob@held.test")
    daemon.wait_for_mail("anna")

    def is_delivered() -> bool:
        (life,) = found(daemon, "SENDER@client.test")
        return bool(life["recipients"][0]["status"] == "delivered")

    wait_until(is_delivered)
    (life,) = found(daemon, "one@client.test")
    assert (life["queue_id"], life["subject"], life["state"]) == (queue_id, "hello", "hold")
    assert [each["status"] for each in life["recipients"]] == ["delivered", "pending"]
    answer = json.loads(daemon.ctl("--json", "find", queue_id).stdout)
    assert (answer["messages"], answer["complete"]) == ([life], True)
    assert life["node_id"] == answer["node_id"]
    shown = daemon.ctl("find", queue_id).stdout
    assert "<anna@example.test> delivered" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "/" not in line)
    # What was written stays, and what was not is in the queue.
    late = send(daemon, "carl@held.test", message_id="two@client.test")
    daemon.kill()
    daemon.start()
    wait_until(lambda: [each["queue_id"] for each in found(daemon, "two@client.test")] == [late])
    daemon.ctl("queue", "delete", "--yes", late)
    (life,) = found(daemon, late)
    assert (life["state"], life["recipients"][0]["status"]) == ("ended", "deleted")
    assert life["changes"][-1]["by"].startswith("uid:")
    (life,) = found(daemon, "anna@example.test")
    assert life["recipients"][0]["status"] == "delivered"
    assert daemon.metric(r"elemta_history_messages\{.*\}") == 2
    nothing = daemon.ctl("find", "nothing@client.test", check=False)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (1, "no message\n", "")
    domain = daemon.ctl("find", "client.test", check=False)
    assert (domain.returncode, domain.stdout) == (1, "no message\n")
    assert domain.stderr.endswith(": elemtactl queue list --to @client.test\n")


def test_hostile_subjects_and_questions_are_harmless(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(HELD, domains='relay_from = ["127.0.0.0/8"]').start()
    queue_id = send(daemon, "bob@held.test", subject=HOSTILE)
    (life,) = found(daemon, queue_id)
    assert len(life["subject"]) == 100
    assert "<script>" in life["subject"]
    shown = daemon.ctl("find", queue_id).stdout
    assert shown.replace("\n", "").isprintable()
    for query, wrong in (
        ("", "text"),
        ("?text=", "text"),
        ("?text=x&after=y", "place"),
        ("?text=x&limit=101", "limit"),
        ("?text=x&y=z", "y"),
    ):
        status, answer = ask(daemon, f"/v1/find{query}")
        assert (status, wrong in answer) == (400, True), answer


def test_a_reload_turns_history_off_and_on(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(HELD, domains='relay_from = ["127.0.0.0/8"]').start()
    first = send(daemon, "bob@held.test")
    assert [each["queue_id"] for each in found(daemon, "one@client.test")] == [first]
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace("[spool]\n", "[spool]\nhistory = 0\n"))
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded")
    second = send(daemon, "bob@held.test")
    assert found(daemon, "one@client.test") == []
    assert {each["queue_id"] for each in found(daemon, "bob@held.test")} == {first, second}
    assert "history is 0" in daemon.ctl("find", second).stderr
