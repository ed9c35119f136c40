"""The recipes of docs/relaying.md: each is read as it stands there, and run with real daemons."""

from __future__ import annotations

import re
import smtplib
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elemta.config import Config, load
from tests.interop.programs import free_port, wait_until
from tests.interop.sink import Sink
from tests.support.certificates import make_certificate, unproved_tls
from tests.support.daemon import Daemon

MakeDaemon = Callable[..., Daemon]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "relaying.md"
RECIPES = dict(
    re.findall(r"<!-- recipe: (\S+) -->\n```toml\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
)
OWN_PLACES = """
[metrics]
endpoint = "tcp:0:interface=127.0.0.1"
[console]
endpoint = ""
"""
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"


class Store(socketserver.ThreadingTCPServer):
    """A mailbox store that speaks LMTP; the mailbox ``full`` is full and ``gone`` is gone."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), Mailboxes)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def __enter__(self) -> Store:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Mailboxes(socketserver.StreamRequestHandler):
    server: Store

    def handle(self) -> None:
        accepted: list[str] = []
        self.say("220 store.test LMTP")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "LHLO":
                self.say("250 store.test")
            elif verb == "RCPT":
                recipient = line.partition("<")[2].partition(">")[0]
                known = {"full": "452 4.2.2 full", "gone": "550 5.1.1 gone"}
                answer = known.get(recipient.partition("@")[0], "250 2.1.5 ok")
                accepted += [recipient] if answer.startswith("250") else []
                self.say(answer)
            elif verb == "DATA":
                self.say("354 go on")
                content = b"".join(iter(self.rfile.readline, b".\r\n"))
                for recipient in accepted:
                    self.server.taken.append((recipient, content))
                    self.say("250 2.0.0 ok")
                accepted = []
            else:
                self.say("221 bye" if verb == "QUIT" else "250 ok")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def recipe(name: str, **replacements: str) -> str:
    """A recipe with other names, ports and paths; each that is to be replaced must be there."""
    text = RECIPES[name]
    for found, instead in replacements.items():
        assert found in text, f"{found} is not in the recipe {name}"
        text = text.replace(found, instead)
    return text


def node(make_daemon: MakeDaemon, name: str, text: str, **options: Any) -> Daemon:
    """A daemon with this configuration and nothing else but places of its own."""
    daemon = make_daemon(name=name, **options)
    spool = f'directory = "{daemon.spool}"\nminimum_free = "1MiB"\n'
    text = text.replace("[spool]\n", f"[spool]\n{spool}") if "[spool]" in text else f"{text}[spool]\n{spool}"
    daemon.config.write_text(text + OWN_PLACES)
    return daemon


def test_the_page_has_the_recipes_that_it_promises() -> None:
    assert sorted(RECIPES) == ["backup-mx", "edge", "smarthost", "submission"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_a_configuration_in_which_everything_has_its_effect(name: str, tmp_path: Path) -> None:
    path = tmp_path / "elemta.toml"
    path.write_text(RECIPES[name])
    config: Config = load(str(path), {})
    # They say more than the defaults, and nothing that is dangerous or for nothing.
    assert config.routes
    assert (config.without_effect(), config.cautions()) == ((), ())


@pytest.fixture
def submission(make_daemon: MakeDaemon, tmp_path: Path) -> Iterator[tuple[Daemon, Sink, Store]]:
    """The submission server; in the place of the world's mail exchangers is one sink."""
    certificate = make_certificate(tmp_path, "localhost")
    users = tmp_path / "users"
    users.touch(mode=0o600)
    senders = tmp_path / "senders"
    senders.write_text("app1  @app1.example.org\n")
    with Sink() as world, Store() as store:
        text = recipe(
            "submission",
            **{
                "/etc/elemta/tls/smtp.example.org.pem": str(certificate.certificate),
                "/etc/elemta/tls/smtp.example.org.key": str(certificate.key),
                "/etc/elemta/users": str(users),
                "tcp:587": "tcp:0:interface=127.0.0.1",
                "tcp:465": "tcp:0:interface=127.0.0.1",
                "lmtp+unix:///run/dovecot/lmtp": f"lmtp://127.0.0.1:{store.port}",
            },
        )
        text += f'[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{world.port}"\n'
        text += f'[submission]\nsender_map = "{senders}"\n'
        daemon = node(make_daemon, "submission", text)
        daemon.add_user("alice", "correct horse")
        daemon.add_user("app1", "battery staple")
        yield daemon.start(), world, store
        daemon.kill()


def test_the_submission_server_takes_mail_of_its_users_and_brings_it_home_and_abroad(
    submission: tuple[Daemon, Sink, Store],
) -> None:
    daemon, world, store = submission
    with daemon.client("submission") as client:
        client.starttls(context=unproved_tls())
        with pytest.raises(smtplib.SMTPSenderRefused) as refused:
            client.sendmail("mallory@example.org", ["bob@far.example"], CONTENT)
        assert refused.value.smtp_code == 530
        client.login("alice", "correct horse")
        client.sendmail("alice@example.org", ["bob@far.example", "carol@example.org"], CONTENT)
    with smtplib.SMTP_SSL(
        "127.0.0.1", daemon.port_of("submissions"), context=unproved_tls(), timeout=90
    ) as client:
        client.login("alice", "correct horse")
        client.sendmail("alice@example.org", ["dave@far.example"], CONTENT)
    wait_until("the mail arrives", lambda: len(world.taken) == 2 and store.taken)
    assert sorted(world.by_recipient()) == ["bob@far.example", "dave@far.example"]
    assert [recipient for recipient, _ in store.taken] == ["carol@example.org"]
    assert daemon.metric(r"elemta_auth") == 2


def test_a_host_relays_through_a_smarthost_that_proved_its_name_and_took_its_password(
    submission: tuple[Daemon, Sink, Store], make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    smarthost, world, _ = submission
    credentials = tmp_path / "credentials"
    credentials.write_text("app1:battery staple\n")
    credentials.chmod(0o600)
    port = smarthost.port_of("submission")
    text = recipe(
        "smarthost",
        **{
            "smtp.provider.example:587": f"localhost:{port}",
            "/etc/elemta/smarthost": str(credentials),
            "tcp:25:interface=127.0.0.1": "tcp:0:interface=127.0.0.1",
        },
    )
    environ = {"SSL_CERT_FILE": str(tmp_path / "certificate.pem")}
    host = node(make_daemon, "smarthost", text, environ=environ).start()
    with host.client("local") as client:
        client.sendmail("cron@app1.example.org", ["bob@far.example"], CONTENT)
    wait_until(f"something arrives:\n{host.output()[-3000:]}", lambda: world.taken)
    attempt = host.wait_for("delivery.attempted")
    assert (attempt["status"], attempt["route"]) == ("delivered", f"smtp://localhost:{port}")
    assert "battery staple" not in host.output()
    received = world.taken[0].content.partition(b"\r\n\r\n")[0]
    assert b"ESMTPSA" in received


def test_a_smarthost_that_can_not_prove_its_name_gets_neither_mail_nor_password(
    submission: tuple[Daemon, Sink, Store], make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    smarthost, world, _ = submission
    credentials = tmp_path / "credentials"
    credentials.write_text("app1:battery staple\n")
    credentials.chmod(0o600)
    text = recipe(
        "smarthost",
        **{
            "smtp.provider.example:587": f"localhost:{smarthost.port_of('submission')}",
            "/etc/elemta/smarthost": str(credentials),
            "tcp:25:interface=127.0.0.1": "tcp:0:interface=127.0.0.1",
        },
    )
    host = node(make_daemon, "smarthost", text).start()
    with host.client("local") as client:
        client.sendmail("cron@app1.example.org", ["bob@far.example"], CONTENT)
    attempt = host.wait_for("delivery.attempted")
    assert (attempt["status"], attempt["code"]) == ("deferred", 0)
    assert world.taken == []
    assert smarthost.metric(r"elemta_auth") == 0


def test_the_backup_mx_keeps_mail_until_the_primary_is_back(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    recipients = tmp_path / "recipients"
    recipients.write_text("bob@example.org\n")
    port = free_port()
    text = recipe(
        "backup-mx",
        **{
            '"tcp:25"': '"tcp:0:interface=127.0.0.1"',
            "/etc/elemta/recipients": str(recipients),
            "mx1.example.org:25": f"127.0.0.1:{port}",
        },
    )
    backup = node(make_daemon, "backup", text).start()
    with backup.client() as client:
        client.sendmail("alice@far.example", ["bob@example.org"], CONTENT)
        for stranger, code in (("nobody@example.org", 550), ("eve@elsewhere.example", 554)):
            with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
                client.sendmail("alice@far.example", [stranger], CONTENT)
            assert refused.value.recipients[stranger][0] == code
    assert backup.wait_for("delivery.attempted")["status"] == "deferred"
    with Sink(address=("127.0.0.1", port)) as primary:
        backup.ctl("queue", "retry", "--all", "--yes")
        wait_until("the primary gets it", lambda: primary.taken)
        assert primary.taken[0].recipients == ("bob@example.org",)
        wait_until("the queue is empty", lambda: "no message" in backup.ctl("queue", "list").stdout)
    assert not backup.records("bounce.queued")


def test_the_edge_hands_on_by_lmtp_and_each_recipient_has_its_own_answer(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    recipients = tmp_path / "recipients"
    recipients.write_text("bob@example.org\nfull@example.org\ngone@example.net\n")
    certificate = make_certificate(tmp_path, "mx1.example.org")
    with Store() as store:
        text = recipe(
            "edge",
            **{
                '"tcp:25"': '"tcp:0:interface=127.0.0.1"',
                "/etc/elemta/recipients": str(recipients),
                "/etc/elemta/tls/mx1.example.org.pem": str(certificate.certificate),
                "/etc/elemta/tls/mx1.example.org.key": str(certificate.key),
                "store.example.org:24": f"127.0.0.1:{store.port}",
            },
        )
        edge = node(make_daemon, "edge", text).start()
        with edge.client() as client:
            client.starttls(context=unproved_tls())
            three = ["bob@example.org", "full@example.org", "gone@example.net"]
            client.sendmail("alice@far.example", three, CONTENT)
        for address, status in zip(three, ("delivered", "deferred", "failed"), strict=True):
            edge.wait_for("delivery.attempted", recipient=address, status=status)
        assert [recipient for recipient, _ in store.taken] == ["bob@example.org"]
        notice = edge.wait_for("bounce.queued")
        assert (notice["kind"], notice["recipients"]) == ("failure", ["gone@example.net"])
        shown = edge.ctl("queue", "show", notice["about"]).stdout
        target = f"127.0.0.1:{store.port}"
        tried = (
            rf"#\d <full@example.org> deferred in \d\.\d s by lmtp://{target} at {target}: 452 4\.2\.2 full"
        )
        assert re.search(tried, shown), shown
