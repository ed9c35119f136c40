"""Takes the pictures of docs/console.md: a small fleet with sample mail, and Chromium without a window.

python tests/console/take_screenshots.py DIRECTORY [NAME…]
"""

from __future__ import annotations

import smtplib
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.support.browser import AVAILABLE, Browser
from tests.support.certificates import make_certificate
from tests.support.console import PASSWORD, accounts
from tests.support.daemon import Daemon
from tests.support.hostile_fleet import FAILING_CHAIN
from tests.support.limit_tables import limit_table
from tests.support.refusing_hop import RefusingHop
from tests.support.valkey import ValkeyServer, eventually, free_port

# Name, path, width, scheme. Of these the page shows all.
PICTURES = (
    ("overview", "/", 1280, "light"),
    ("overview", "/", 1280, "dark"),
    ("overview", "/", 400, "light"),
    ("overview", "/", 400, "dark"),
    ("message", "/messages/{id}", 1280, "light"),
    ("destinations", "/destinations", 1280, "dark"),
    ("limits", "/limits", 1280, "light"),
    ("limits", "/limits", 400, "dark"),
    ("policies", "/policies", 1280, "light"),
    (
        "explain",
        "/explain?ip=192.0.2.66&helo=bulk.example&from=news@bulk.example&to=anna@example.org",
        1280,
        "dark",
    ),
)
HEIGHTS = {1280: 1000, 400: 1000}
LIMITS = (
    limit_table("mail-per-sender", "sender", "messages", "20/1h")
    + limit_table("mail-per-address", "ip", "messages", "30/1h")
    + limit_table("recipients-per-domain", "sender_domain", "recipients", "12/1h", mode="observe")
)
ROUTES = """\
[[route]]
domains = ["partner.example"]
to = "smtp://127.0.0.1:{down}"
[[route]]
domains = ["slow.example"]
to = "smtp://127.0.0.1:{hop}"
[[route]]
domains = ["review.example"]
to = "hold:"
"""
SENDERS = ("anna@shop.example", "billing@shop.example", "jo@studio.example", "lists@club.example")
SUBJECTS = (
    "Invoice 2026-118",
    "Minutes of Tuesday",
    "Your parcel is on its way",
    "Re: offer",
    "Weekly numbers",
)


class SampleFleet:
    """Two nodes on one Valkey; the first has the console."""

    def __init__(self, top: Path) -> None:
        self.valkey = ValkeyServer().start()
        greylisted = "451 4.7.1 Greylisted, please come back in 5 minutes"
        self.hop = RefusingHop(greylisted, greeting="220 mx.slow.example ESMTP")
        certificate = make_certificate(top, "mx1.example.org", "mx2.example.org", days=9)
        users = top / "console-users"
        users.write_text(accounts())
        for secret in (users, certificate.key):
            secret.chmod(0o600)
        routes = ROUTES.format(down=free_port(), hop=self.hop.port)
        tables = certificate.table + FAILING_CHAIN + LIMITS + routes
        self.nodes = []
        for name in ("mx1", "mx2"):
            node = Daemon(
                top / name,
                tables,
                server=f'node_id = "{name}"',
                listener='proxy_protocol_from = ["127.0.0.0/8"]',
                domains='relay_from = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "127.0.0.0/8"]',
            )
            node.open_console(users)
            node.count_in(self.valkey.url)
            text = node.config.read_text().replace("mx.example.test", f"{name}.example.org")
            node.config.write_text(text.replace("example.test", "example.org"))
            node.launch([sys.executable, str(Path(__file__).with_name("sampled_twistd.py"))])
            node.wait_until_ready()
            self.nodes.append(node)
        self.base = self.nodes[0].console

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        self.hop.close()
        self.valkey.stop()

    def send(self, ip: str, sender: str, recipient: str, subject: str, helo: str) -> None:
        """One message from this address, by the header that a load balancer sends."""
        connection = socket.create_connection(("127.0.0.1", self.nodes[0].port), timeout=60)
        connection.sendall(f"PROXY TCP4 {ip} 127.0.0.1 40000 25\r\n".encode())
        client = smtplib.SMTP(local_hostname=helo, timeout=60)
        client.sock = connection
        client.getreply()
        client.ehlo()
        if client.mail(sender)[0] != 250 or client.rcpt(recipient)[0] != 250:
            client.quit()
            return
        message_id = f"<{time.time_ns()}@{helo}>"
        head = f"From: {sender}\r\nTo: {recipient}\r\nSubject: {subject}\r\nMessage-ID: {message_id}"
        client.data(f"{head}\r\n\r\nThis is a sample.\r\n".encode())
        client.quit()

    def fill(self) -> None:
        node = self.nodes[0]
        limits = node.directory / "limits.toml"
        limits.write_text(LIMITS.replace("12/1h", "10/1h"))
        node.ctl("limits", "push", str(limits), "--yes")
        places = ("anna@example.org", "info@partner.example", "desk@slow.example", "board@review.example")
        for number in range(32):
            sender = SENDERS[number % 4]
            self.send(
                f"192.0.2.{10 + number % 5}",
                sender,
                places[number % 8 // 2],
                SUBJECTS[number % 5],
                f"mail.{sender.partition('@')[2]}",
            )
        for number in range(36):
            self.send(
                "198.51.100.66", "news@bulk.example", "anna@example.org", f"Offer {number}", "bulk.example"
            )
        node.ctl(
            *("limits", "override", "mail-per-sender", "billing@shop.example", "--rates", "200/1h"),
            *("--for", "2h", "--note", "end of the quarter"),
        )

    def message(self) -> str:
        """The id of a message that waits."""
        listing = eventually(
            lambda: self.nodes[0].ctl("queue", "list", "--to", "slow.example").stdout, "a message waits"
        )
        return str(listing.splitlines()[1].split()[0])


def main(arguments: list[str]) -> int:
    """Take the pictures, or those with these names."""
    if not AVAILABLE:
        sys.stderr.write("needs chromium and chromedriver\n")
        return 1
    target, names = Path(arguments[0]), set(arguments[1:])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as top:
        fleet = SampleFleet(Path(top))
        browser = Browser(Path(top))
        try:
            fleet.fill()
            queue_id = fleet.message()
            browser.open(fleet.base + "/login")
            browser.type("[name=username]", "operator")
            browser.type("[name=password]", PASSWORD)
            browser.click("button")
            browser.wait_for("Queue")
            for name, path, width, scheme in PICTURES:
                if names and name not in names:
                    continue
                browser.show_as(width, scheme)
                browser.open(fleet.base + path.replace("{id}", queue_id))
                browser.picture(target / f"{name}-{width}-{scheme}.png", width, HEIGHTS[width])
        finally:
            browser.close()
            fleet.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
