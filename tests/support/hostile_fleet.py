"""A node with a console, a Valkey, and mail with what harms a page in every field that a peer controls."""

from __future__ import annotations

import base64
import contextlib
import json
import smtplib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from elemta.console.pages import MENU
from tests.support.console import TOKENS, accounts
from tests.support.daemon import Daemon
from tests.support.limit_tables import limit_table
from tests.support.refusing_hop import RefusingHop
from tests.support.valkey import ValkeyServer, eventually

SCRIPT = "<script>window.harmed=1</script><img/src=x/onerror=window.harmed=1>"
TURNED = "\u202egro.elpmaxe\u2066"
LONG = 1_000_000
FAILING_CHAIN = """\
[policies]
chain = ["limits", "clamav", "relay"]
[policy.clamav]
endpoint = "unix:/run/no-clamd-here.ctl"
on_error = "accept"
timeout = "2s"
"""
"""A chain with one policy that fails for each message, and lets it pass."""
LIMITS = (
    limit_table("mail-per-sender", "sender", "messages", "2/1h", mode="observe")
    + limit_table("mail-per-helo", "helo", "messages", "2/1h", mode="observe")
    + limit_table("mail-per-ip", "ip", "messages", "50/1h")
)
ROUTES = """\
[[route]]
domains = ["hold.test"]
to = "hold:"
[[route]]
domains = ["hop.test"]
to = "smtp://127.0.0.1:{hop}"
"""


class HostileFleet:
    """The node and what it got. ``base`` is the URL of its console."""

    def __init__(self, directory: Path) -> None:
        self.valkey = ValkeyServer().start()
        self._hop = RefusingHop(f"451 4.7.1 {SCRIPT} {TURNED} \x1b[31m")
        users = directory / "console-users"
        users.write_text(accounts())
        tables = FAILING_CHAIN + LIMITS + ROUTES.format(hop=self._hop.port)
        self.daemon = Daemon(directory / "node", tables, domains='relay_from = ["127.0.0.0/8"]')
        self.daemon.open_console(users)
        self.daemon.count_in(self.valkey.url)
        self.daemon.start()
        self.base = self.daemon.console

    def fill(self) -> None:
        """Send the mail, be refused, and write into free fields."""
        self._send_mail()
        self._be_refused()
        self._operate()

    def close(self) -> None:
        self.daemon.kill()
        self._hop.close()
        self.valkey.stop()

    def _send_mail(self) -> None:
        for number, domain in enumerate(("hold.test", "hop.test", "example.test") * 2):
            long = f"X-Long: {'<b>' * 20}\r\n\t".ljust(990, "x") + "\r\n"
            self.send(domain, number, more=long * (LONG // len(long)) if number == 0 else "")

    def send_long(self, domain: str, number: int) -> str:
        """Send one more, whose Subject, From and Message-ID have a megabyte each; its queue id."""
        return self.send(domain, number, folded=f"\r\n\t{'<b>' * 300}" * (LONG // 900))

    def send(self, domain: str, number: int, *, more: str = "", folded: str = "") -> str:
        """Send one message with ``folded`` behind the values of its fields; its queue id."""
        encoded = base64.b64encode(f"{SCRIPT}\r\nX: y\r\r{TURNED}\x00".encode()).decode()
        with self.daemon.client() as client:
            client.ehlo(f"{SCRIPT}{number % 2}")
            assert client.mail(f'"{SCRIPT}{number % 2}"@evil.test')[0] == 250
            assert client.rcpt(f'"<b>o</b>"@{domain}')[0] == 250
            head = (
                f"Subject: =?utf-8?b?{encoded}?= {SCRIPT} {TURNED}{folded}\r\n"
                f"Message-ID: <{number}{SCRIPT}@evil.test>{folded}\r\n"
                f"From: {TURNED} <a\r{SCRIPT}@evil.test>{folded}\r\nX-CR: a\rb\r{SCRIPT}\r\n"
            )
            code, reply = client.data(f"{head}{more}\r\n{SCRIPT}\r\n".encode())
            assert code == 250, reply
            return reply.decode().rpartition(" ")[2]

    def attempts(self, queue_id: str) -> int:
        """How many attempts a message has had, once none is under way."""

        def found() -> Any:
            message = self.call(f"/v1/queue/{queue_id}")
            return message if message["attempts"] and message["state"] != "active" else None

        return int(eventually(found, f"{queue_id} was tried")["attempts"])

    def _be_refused(self) -> None:
        with self.daemon.client() as client, contextlib.suppress(smtplib.SMTPServerDisconnected):
            client.ehlo(SCRIPT)
            client.docmd("MAIL", f"FROM:<{SCRIPT}@evil.test>")
            client.docmd("MAIL", "FROM:<a@evil.test>")
            client.docmd("RCPT", f'TO:<"{SCRIPT}">')
            client.command_encoding = "utf-8"
            client.docmd(SCRIPT, TURNED)

    def _operate(self) -> None:
        """What an operator, or a program with a token, writes into free fields."""
        note = f"{SCRIPT} {TURNED}"
        for given in ({"toml": LIMITS}, {"toml": LIMITS.replace("50/1h", "60/1h")}):
            self.call("/v1/limits/push", {**given, "note": note})
        override = {"limit": "mail-per-sender", "identity": "a@b.test", "for": "1h", "exempt": True}
        self.call("/v1/limits/overrides", {**override, "note": note})
        held = self.queue_ids("hop.test")[0]
        self.call(f"/v1/queue/{held}/hold", {"reason": note})

    def call(self, path: str, given: Mapping[str, object] | None = None) -> Any:
        """What the API answers an operator; ``given`` is the body of a POST."""
        body = None if given is None else json.dumps(given).encode()
        request = urllib.request.Request(self.base + path, body)
        request.add_header("Authorization", f"Bearer {TOKENS['operator']}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def page(self, path: str, role: str = "operator") -> tuple[int, str]:
        """The status and the text of a page."""
        request = urllib.request.Request(self.base + path)
        request.add_header("Authorization", f"Bearer {TOKENS[role]}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def queue_ids(self, domain: str) -> list[str]:
        """The messages to a domain, once there is one and nothing is under way to it."""

        def found() -> list[str]:
            messages = self.call(f"/v1/queue?to=@{domain}")["messages"]
            return [] if any(each["state"] == "active" for each in messages) else messages

        return [str(each["queue_id"]) for each in eventually(found, f"mail to {domain} waits")]

    @property
    def refused_by_hop(self) -> int:
        """How many recipients the next hop has refused."""
        return self._hop.asked

    def ended(self, text: str) -> Any:
        """What the history has for a text."""
        return self.call(f"/v1/find?text={quote(text)}")["messages"]

    def _delivered(self) -> list[str]:
        found = self.call("/v1/find?text=127.0.0.1")["messages"]
        return [str(each["queue_id"]) for each in found if each["state"] == "ended"]

    def paths(self) -> list[str]:
        """Every page that is read, with what is in the queue; the pages of the menu first."""
        held, waiting = self.queue_ids("hold.test")[0], self.queue_ids("hop.test")[-1]
        ended = eventually(self._delivered, "local mail is delivered")[0]
        sender = quote(f'"{SCRIPT}0"@evil.test')
        client = quote(SCRIPT)
        recipient = quote('"<b>o</b>"@hold.test')
        return [
            *(path for path, *_ in MENU),
            *(f"/messages/{queue_id}" for queue_id in (held, waiting, ended)),
            f"/messages/{held}/content",
            f"/messages/{held}/content?whole=1",
            f"/find?text={sender}",
            f"/queue?from={client}",
            "/queue/act?action=delete&from=evil.test",
            f"/refused?client=127.0.0.1&policy={client}",
            "/limits?limit=mail-per-helo",
            f"/limits?limit=mail-per-sender&id={quote('mail-per-sender:')}{sender}",
            "/limits/networks?limit=mail-per-ip",
            "/limits/networks?limit=mail-per-ip&within=127.0.0.0/8",
            "/limits/push",
            "/limits/rollback?version=1",
            f"/explain?ip=127.0.0.1&helo={client}&from=a@evil.test&to={recipient}",
            "/logout",
            f"/nowhere/{client}",
        ]
