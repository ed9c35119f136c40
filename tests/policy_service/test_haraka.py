"""A real Haraka that asks for limits with the plugin of docs/postfix.md, as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.programs import Server, free_port, greets, missing, program
from tests.support.daemon import Daemon
from tests.support.limit_tables import limit_table, policy_service_table

pytestmark = [pytest.mark.servers, pytest.mark.campaign]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "postfix.md"
STORE = ROOT / "tests" / "interop" / "matrix_sources" / "haraka_store.js"
PASSWORD = "correct horse"
TABLES = (
    policy_service_table("haraka")
    + limit_table("recipients-per-sender", "sender", "recipients", "3/1h")
    + limit_table("recipients-per-domain", "recipient_domain", "recipients", "2/1h", on_exceed="reject")
    + limit_table("messages-per-domain", "sender_domain", "messages", "2/1h", on_exceed="reject")
    + limit_table("bytes-per-helo", "helo", "bytes", "1MiB/1h")
    + limit_table("recipients-per-user", "user", "recipients", "1/1h")
    + limit_table("visits", "ip", "connections", "2/1h", on_exceed="disconnect", scope="node")
)


def modules() -> Path:
    """Where npm has put Haraka for the benchmarks or for `make interop`."""
    places = (
        ROOT / ".venv-bench/npm/node_modules",
        Path(os.environ.get("ELEMTA_INTEROP_CACHE", "/var/cache/elemta-interop")) / "npm/node_modules",
    )
    found = [place for place in places if (place / "Haraka/bin/haraka").exists()]
    if not found:
        missing("Haraka is not installed: `make .venv-bench/.done` brings it, where there is npm")
    return found[0]


def plugin(port: int) -> str:
    """The plugin of the page."""
    (shown,) = re.findall(r"^```js\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    text = str(shown).replace("10031", str(port))
    assert text != shown
    return text


@pytest.fixture
def haraka(node: Daemon, tmp_path: Path) -> Iterator[int]:
    """The port of a Haraka that takes and stores everything that the limits pass."""
    found, directory, port = modules(), tmp_path / "haraka", free_port()
    shutil.copytree(found / "Haraka/config", directory / "config")
    for name in ("plugins", "mail"):
        (directory / name).mkdir()
    shutil.copy(STORE, directory / "plugins/store.js")
    (directory / "plugins/elemta_limits.js").write_text(plugin(node.port_of("haraka")))
    for name, text in {
        "smtp.ini": f"listen=127.0.0.1:{port}\nnodes=0\n",
        "plugins": "auth/flat_file\nelemta_limits\nstore\n",
        "auth_flat_file.ini": f"[core]\nmethods=PLAIN,LOGIN\n[users]\nalice={PASSWORD}\n",
        "me": "haraka.test\n",
        "loglevel": "LOGNOTICE\n",
    }.items():
        (directory / "config" / name).write_text(text)
    server = Server("Haraka", directory / "output")
    server.run(
        "env",
        f"MAIL={directory / 'mail'}",
        f"NODE_PATH={found}",
        program("node"),
        str(found / "Haraka/bin/haraka"),
        "-c",
        str(directory),
        ready=lambda: greets(port),
    )
    yield port
    server.stop()


def client(port: int, helo: str = "client.test", source: str = "127.0.0.1") -> smtplib.SMTP:
    opened = smtplib.SMTP("127.0.0.1", port, local_hostname=helo, timeout=60, source_address=(source, 0))
    opened.ehlo()
    return opened


def ask(opened: smtplib.SMTP, sender: str, *recipients: str, octets: int = 10) -> list[tuple[int, str]]:
    """The answers to the recipients of one message, and that to the message where one was accepted."""
    assert opened.mail(sender)[0] == 250
    answers = [opened.rcpt(recipient) for recipient in recipients]
    if any(code == 250 for code, _ in answers):
        answers.append(opened.data(b"Subject: s\r\n\r\n" + b"x\r\n" * (octets // 3)))
    else:
        opened.rset()
    return [(code, text.decode()) for code, text in answers]


def test_each_limit_answers_as_it_says(haraka: int) -> None:
    with client(haraka, source="127.0.0.2") as opened:
        answers = ask(opened, "anna@a.test", *(f"to@{number}.test" for number in range(4)))
        assert [code for code, _ in answers] == [250, 250, 250, 450, 250]
        assert answers[3][1].startswith("4.7.1 Too many recipients")
        answers = ask(opened, "bert@b.test", *(f"{number}@to.test" for number in range(3)))
        assert [code for code, _ in answers] == [250, 250, 550, 250]
        assert answers[2][1].startswith("5.7.1 Too many")
    with client(haraka, source="127.0.0.3") as opened:
        answers = [ask(opened, f"{number}@c.test", f"c{number}@c{number}.test")[-1] for number in range(3)]
        assert [code for code, _ in answers] == [250, 250, 550]
        assert answers[2][1].startswith("5.7.1 Too many messages")
        answers = ask(opened, "d@d.test", "d@d0.test", octets=600_000)
        assert answers[-1][0] == 250
        code, text = ask(opened, "e@e.test", "e@e0.test", octets=600_000)[-1]
        assert code == 450
        assert text.startswith("4.7.1 Too much mail")
    with client(haraka, source="127.0.0.3") as opened:
        opened.login("alice", PASSWORD)
        assert [code for code, _ in ask(opened, "f@f.test", "f@f0.test", "g@f1.test")] == [250, 450, 250]
    with pytest.raises(smtplib.SMTPConnectError) as refused:
        client(haraka, source="127.0.0.3")
    assert refused.value.smtp_code == 421


def test_mail_passes_when_elemta_is_gone(haraka: int, node: Daemon) -> None:
    node.kill()
    with client(haraka) as opened:
        answers = ask(opened, "anna@a.test", *(f"to@{number}.test" for number in range(5)))
    assert [code for code, _ in answers] == [250] * 6
