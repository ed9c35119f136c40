"""The set-ups of etc/ that docs/setups.md describes: each is read as it stands there, and takes a mail.

In the edge a name server, rspamd and clamd are doubles that speak their protocols; tests/policies/real has
the real ones.
"""

from __future__ import annotations

import http.server
import json
import re
import smtplib
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dkim
import pytest

from elemta.config import Config, load
from tests.daemon.test_relaying import CONTENT, OWN_PLACES, Store
from tests.interop.programs import wait_until
from tests.interop.sink import Sink
from tests.mailout.network import Host, Network
from tests.support.certificates import make_certificate, unproved_tls
from tests.support.daemon import Daemon
from tests.support.nameservers import Nsd

ROOT = Path(__file__).resolve().parents[2]
SETUPS = {path.stem.partition("-")[2]: path for path in (ROOT / "etc").glob("elemta-*.toml")}
SERVER = "198.51.100.2"
VIRUS = b"ELEMTA-TEST-VIRUS"
SPAM = b"ELEMTA-TEST-SPAM"


class Clamd(socketserver.ThreadingUnixStreamServer):
    """Finds VIRUS in what INSTREAM brings."""

    daemon_threads = True


class Scan(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert self.rfile.read(10) == b"zINSTREAM\0"
        content = b""
        while size := struct.unpack("!I", self.rfile.read(4))[0]:
            content += self.rfile.read(size)
        self.wfile.write(b"stream: Test.Virus FOUND\0" if VIRUS in content else b"stream: OK\0")


class Rspamd(http.server.BaseHTTPRequestHandler):
    """Finds SPAM in a message."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        action = "reject" if SPAM in content else "no action"
        body = json.dumps({"action": action, "score": 1.0, "required_score": 15.0, "symbols": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


def setup(name: str, **replacements: str) -> str:
    """A set-up with other names, ports and paths; each that is to be replaced must be there."""
    text = SETUPS[name].read_text()
    for found, instead in replacements.items():
        assert found in text, f"{found} is not in {SETUPS[name].name}"
        text = text.replace(found, instead)
    return text


def serve(stack: ExitStack, server: socketserver.BaseServer) -> None:
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)


def configure(daemon: Daemon, text: str) -> None:
    spool = f'[spool]\ndirectory = "{daemon.spool}"\nminimum_free = "1MiB"\n'
    daemon.config.write_text(text + spool + OWN_PLACES)
    for key in daemon.directory.parent.glob("*.pem"):
        key.chmod(0o600)
    config: Config = load(str(daemon.config), {})
    assert (config.without_effect(), config.cautions()) == ((), ())


def test_the_page_describes_each_set_up_and_the_policies_of_its_chain() -> None:
    page = (ROOT / "docs/setups.md").read_text()
    for name in ("edge", "submission"):
        assert f"etc/elemta-{name}.toml" in page
        chain = re.search(r"^chain = \[(.*)\]$", SETUPS[name].read_text(), re.MULTILINE)
        assert chain is not None
        for policy in re.findall(r'"([^"]+)"', chain[1]):
            assert f"`{policy}`" in page


def make_dkim_key(path: Path) -> bytes:
    """A key as the page says, and the record that the command printed, with its strings joined."""
    program = str(Path(sys.executable).with_name("elemtactl"))
    command = [program, "dkim", "generate", "example.org", "--selector", "s2026", "--file", str(path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout
    return "".join(re.findall(r'"([^"]*)"', printed)).encode()


@dataclass(frozen=True)
class Edge:
    daemon: Daemon
    store: Store
    known: Host  # a host whose SPF passes
    listed: Host  # a host that the DNS list knows
    other: Host

    def send(self, host: Host, sender: str, recipient: str, content: bytes = CONTENT) -> tuple[int, str]:
        """The first reply that says no, or that to the message."""
        with host.call(
            lambda: smtplib.SMTP(SERVER, 25, local_hostname="a.sender.test", timeout=60)
        ) as client:
            client.ehlo()
            code, text = client.mail(sender)
            if code == 250:
                code, text = client.rcpt(recipient)
            if code == 250:
                code, text = client.data(content)
            return code, text.decode()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    directory = tmp_path_factory.mktemp("edge")
    certificate = make_certificate(directory, "mx1.example.org")
    recipients = directory / "recipients"
    recipients.write_text("bob@example.org\n")
    zones = {
        "zen.spamhaus.org": "66.100.51.198 A 127.0.0.2\n",
        "list.dnswl.org": "",
        "sender.test": '@ A 198.51.100.7\n@ TXT "v=spf1 ip4:198.51.100.7 -all"\n'
        '_dmarc TXT "v=DMARC1; p=reject"\na A 198.51.100.7\na TXT "v=spf1 a -all"\n',
        "strict.test": '@ A 198.51.100.9\n_dmarc TXT "v=DMARC1; p=reject"\n',
        "plain.test": "@ A 198.51.100.8\n",
        "gone.test": "",
        "100.51.198.in-addr.arpa": "7 PTR a.sender.test.\n",
    }
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        nameserver, host = network.host("dns", 53), network.host("elemta", 2)
        address = (str(nameserver.four), 53)
        nsd = Nsd(directory / "nsd", zones, place=nameserver, address=address).start()
        stack.callback(nsd.stop)
        network.use_resolver(host, address[0])
        store = host.call(Store)
        stack.enter_context(store)
        rspamd = host.call(lambda: http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rspamd))
        serve(stack, rspamd)
        serve(stack, Clamd(str(directory / "clamd"), Scan))
        text = setup(
            "edge",
            **{
                "/etc/elemta/tls/mx1.example.org.pem": str(certificate.certificate),
                "/etc/elemta/tls/mx1.example.org.key": str(certificate.key),
                "/etc/elemta/recipients": str(recipients),
                "tcp:25": f"tcp:25:interface={SERVER}",
                "http://127.0.0.1:11333": f"http://127.0.0.1:{rspamd.server_port}",
                "/run/clamav/clamd.ctl": str(directory / "clamd"),
                "lmtp+unix:///run/dovecot/lmtp": f"lmtp://127.0.0.1:{store.port}",
            },
        )
        daemon = Daemon(directory / "node", place=host)
        configure(daemon, text)
        stack.callback(daemon.kill)
        yield Edge(
            daemon.start(),
            store,
            network.host("known", 7),
            network.host("listed", 66),
            network.host("other", 8),
        )
        daemon.stop()


@pytest.mark.servers
def test_the_edge_takes_a_mail_and_brings_it_to_the_store(edge: Edge) -> None:
    content = b"From: a@sender.test\r\nSubject: hello\r\n\r\nhello\r\n"
    code, words = edge.send(edge.known, "a@sender.test", "bob@example.org", content)
    assert code == 250, words
    wait_until(f"the store gets it:\n{edge.daemon.output()[-3000:]}", lambda: edge.store.taken)
    recipient, taken = edge.store.taken[0]
    assert recipient == "bob@example.org"
    assert b"spf=pass" in taken
    assert b"dmarc=pass" in taken


@pytest.mark.servers
def test_the_edge_refuses_what_each_of_its_policies_refuses(edge: Edge) -> None:
    known, listed, other = edge.known, edge.listed, edge.other
    bob = "bob@example.org"
    own = b"From: a@sender.test\r\nSubject: s\r\n\r\n"
    assert edge.send(listed, "a@plain.test", bob)[0] == 554
    assert edge.send(known, "a@gone.test", bob)[1].startswith("5.1.8")
    assert edge.send(other, "a@plain.test", bob)[0] == 451
    assert edge.send(known, "a@sender.test", "nobody@example.org")[0] == 550
    assert edge.send(known, "a@sender.test", "eve@elsewhere.test")[0] == 554
    own = own.replace(b"a@sender.test", b"a@strict.test")
    code, words = edge.send(known, "a@sender.test", bob, own + b"forged\r\n")
    assert (code, words[:6]) == (550, "5.7.26")


@pytest.mark.servers
def test_the_edge_takes_bounces(edge: Edge) -> None:
    """The null sender has no domain that could be asked for."""
    code, words = edge.send(edge.known, "", "bob@example.org", b"From: a@sender.test\r\n\r\nbounce\r\n")
    assert code == 250, words


def test_the_submission_server_takes_mail_of_a_user_and_brings_it_on(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "localhost")
    users = tmp_path / "users"
    users.touch(mode=0o600)
    own = b"From: alice@example.org\r\n" + CONTENT
    with Sink() as world, Store() as store:
        text = setup(
            "submission",
            **{
                "/etc/elemta/tls/smtp.example.org.pem": str(certificate.certificate),
                "/etc/elemta/tls/smtp.example.org.key": str(certificate.key),
                "/etc/elemta/users": str(users),
                "/etc/elemta/example.org.key": str(tmp_path / "dkim.key"),
                "tcp:587": "tcp:0:interface=127.0.0.1",
                "tcp:465": "tcp:0:interface=127.0.0.1",
                "lmtp+unix:///run/dovecot/lmtp": f"lmtp://127.0.0.1:{store.port}",
            },
        )
        # In the place of the world's mail exchangers.
        text += f'[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{world.port}"\n'
        daemon = Daemon(tmp_path / "node")
        record = make_dkim_key(tmp_path / "dkim.key")
        configure(daemon, text)
        daemon.add_user("alice", "correct horse")
        daemon.start()
        try:
            with daemon.client("submission") as client:
                client.starttls(context=unproved_tls())
                with pytest.raises(smtplib.SMTPSenderRefused):
                    client.sendmail("alice@example.org", ["bob@far.example"], CONTENT)
                client.login("alice", "correct horse")
                client.sendmail("alice@example.org", ["bob@far.example", "carol@example.org"], own)
            wait_until("the mail arrives", lambda: world.taken and store.taken)
            assert world.by_recipient().keys() == {"bob@far.example"}
            assert [recipient for recipient, _ in store.taken] == ["carol@example.org"]
            for content in (world.taken[0].content, store.taken[0][1].removesuffix(b".\r\n")):
                assert dkim.verify(content, dnsfunc=lambda *_, **__: record)
        finally:
            daemon.stop()
