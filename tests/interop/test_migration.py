"""What the page about migrating from Postfix shows: its files, its tables, its commands, and the queue."""

from __future__ import annotations

import os
import re
import shutil
import smtplib
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from elemta.config import BareNewline, load
from elemta.config.setting import settings_of
from elemta.policies.reverse_dns import ReverseDnsOptions
from elemta.policy import available_plugins
from tests.daemon.test_life import run_twistd
from tests.interop.postfix import Postfix
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.open_directory import open_directory
from tests.support.valkey import eventually

DOCS = Path(__file__).parents[2] / "docs"
MIB = 1024 * 1024
PAGE = (DOCS / "migrating-from-postfix.md").read_text(encoding="utf-8")
with_postfix = pytest.mark.skipif(shutil.which("postconf") is None, reason="needs Postfix")


def block(name: str) -> str:
    """The code block behind a mark of the page."""
    (text,) = re.findall(rf"<!-- {re.escape(name)} -->\n *```\w*\n(.*?)\n *```", PAGE, re.DOTALL)
    return textwrap.dedent(text) + "\n"


def shell(script: str, **environ: str) -> str:
    run = subprocess.run(
        ["bash", "-euc", script], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def rows() -> list[list[str]]:
    found = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line[:1] == "|"
    ]
    assert len(found) > 70
    return found


def test_every_setting_of_the_table_is_there() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    named = re.findall(r"\| `\[+([a-z_]+)\]+ ([a-z_]+)` \|", PAGE)
    assert len(named) > 45
    for table, key in named:
        part = re.search(rf"^## `\[+{table}\]+`$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        assert part is not None, table
        assert f"**`{key}`**" in part[1], f"[{table}] {key}"


def test_the_defaults_that_the_table_names_are_those_of_elemta() -> None:
    config = load(None, {})
    bare = {BareNewline.REJECT: "refused"}[config.server.bare_newline]
    said = {row[0]: row[2] for row in rows() if len(row) == 3}
    found = {
        "`message_size_limit`": f"{config.server.max_message_size // MIB} MiB, not 10 MB",
        "`smtpd_recipient_limit`": f"the same default, {config.server.max_recipients:,}",
        "`smtpd_tls_protocols`": config.tls.minimum.value.replace("v", " "),
        "`recipient_delimiter`": f"`{config.domains.recipient_delimiter}` by default",
        "`delay_warning_time`": f"{config.spool.warn_after / 3600:g} h, not off",
        "`queue_minfree`": f"{config.spool.minimum_free // MIB} MiB",
        "`smtpd_forbid_bare_newline`": f"{bare} by default",
        "`smtpd_tls_auth_only`": f"{({True: 'on'})[config.auth.require_tls]} by default",
        "`mynetworks`": f"{({(): 'empty'})[tuple(config.domains.relay_from)]} by default",
    }
    assert {name: said[name] for name in found} == found


def test_every_policy_of_the_page_is_bundled_and_takes_what_the_page_requires() -> None:
    bundled = {each.name for each in available_plugins() if each.origin.endswith(".elemta_policies")}
    restrictions = PAGE.partition("| restriction | policy |")[2].partition("\n\n")[0]
    named = set(re.findall(r"\| \[?`([a-z-]+)`[^|]*\|$", restrictions, re.MULTILINE))
    (others,) = re.findall(r"the policies ((?:`[a-z]+`(?:, )?)+)", PAGE)
    named |= {"srs", *re.findall(r"`([a-z]+)`", others)}
    assert len(named) > 8
    assert named <= bundled
    required = set(re.findall(r'require = \["(\w+)"\]', restrictions))
    (require,) = (each for each in settings_of(ReverseDnsOptions) if each.name == "require")
    assert required == set(require.about.choices)


@with_postfix
def test_every_parameter_of_the_tables_is_postfixs() -> None:
    known = set(re.findall(r"^(\w+) =", shell("postconf -d"), re.MULTILINE))
    known |= {"access"}
    named = [name for row in rows() if len(row) == 3 for name in re.findall(r"`([a-z_0-9*]+)`", row[0])]
    assert len(named) > 55
    assert [name for name in named if name not in known] == []


@with_postfix
def test_the_example_is_postfixs_own_language_and_checks_as_elemtas(tmp_path: Path) -> None:
    postfix, etc = tmp_path / "postfix", tmp_path / "elemta"
    postfix.mkdir()
    etc.mkdir()
    (postfix / "main.cf").write_text(block("main.cf"))
    shutil.copy("/usr/share/postfix/master.cf.dist", postfix / "master.cf")
    run = subprocess.run(["postconf", "-c", str(postfix), "-n"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    (postfix / "mailboxes").write_text("anna@example.org example.org/anna/\nbob@example.net bob/\n")
    (postfix / "virtual").write_text("sales@example.org anna@example.org, bob@example.net\n")
    shell(f"postmap hash:{postfix}/mailboxes hash:{postfix}/virtual", MAIL_CONFIG=str(postfix))
    tables = block("tables").replace("/etc/postfix", str(postfix)).replace("/etc/elemta", str(etc))
    shell(tables, MAIL_CONFIG=str(postfix))
    assert sorted((etc / "recipients").read_text().split()) == ["anna@example.org", "bob@example.net"]
    files = make_certificate(etc, "mail.example.org")
    (etc / "mail.pem").write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    (etc / "mail.pem").chmod(0o600)
    (etc / "users").touch(mode=0o600)
    spool = f'[spool]\ndirectory = "{tmp_path}/spool"'
    config = tmp_path / "elemta.toml"
    config.write_text(block("elemta.toml").replace("/etc/elemta/", f"{etc}/").replace("[spool]", spool))
    checked = run_twistd("--config", str(config), "--check", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


@with_postfix
def test_the_switch_takes_the_ports_from_postfix_and_gives_them_to_elemta(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text(block("main.cf"))
    master = tmp_path / "master.cf"
    master.write_text(
        "smtp inet n - y - - smtpd\nsubmission inet n - y - - smtpd\npickup unix n - y 60 1 pickup\n"
    )
    config = tmp_path / "elemta.toml"
    config.write_text('endpoint = "tcp:2525:interface=127.0.0.1"\n')
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "postfix"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/called\n')
        (programs / name).chmod(0o755)
    script = block("switch").replace("/etc/elemta.toml", str(config))
    script = script.replace("postconf ", f"postconf -c {tmp_path} ")
    shell(script, PATH=f"{programs}:{os.environ['PATH']}")
    assert [line for line in master.read_text().splitlines() if line[:1] != "#"] == [
        "pickup unix n - y 60 1 pickup"
    ]
    assert config.read_text() == 'endpoint = "tcp:25"\n'
    units = [line.split()[-1] for line in (tmp_path / "called").read_text().splitlines()]
    assert units == ["reload", "elemta", "elemta-submission.socket", "elemta"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that Postfix's users may enter."""
    with open_directory("elemta-migration-") as path:
        yield path


@pytest.fixture
def daemon(directory: Path) -> Iterator[Daemon]:
    made = Daemon(directory / "node", domains='relay_from = ["127.0.0.1"]').start()
    yield made
    made.kill()


@pytest.mark.servers
def test_the_queue_is_handed_over_and_what_is_on_hold_stays(directory: Path, daemon: Daemon) -> None:
    postfix = Postfix(directory / "postfix", "relayhost = [127.0.0.1]:1\n")
    configuration = directory / "postfix" / "etc"

    def send(subject: str) -> None:
        with smtplib.SMTP("127.0.0.1", postfix.port, "client.test", timeout=60) as client:
            client.sendmail("a@client.test", ["anna@example.test"], f"Subject: {subject}\r\n\r\nhello\r\n")

    def at_postfix(script: str) -> str:
        return shell(re.sub(r"^(post\w+) ", rf"\1 -c {configuration} ", script, flags=re.MULTILINE))

    def deferred() -> int:
        return sum(1 for path in (directory / "postfix/queue/deferred").rglob("*") if path.is_file())

    postfix.start()
    try:
        send("held")
        eventually(lambda: deferred() == 1, "the first message is deferred")
        at_postfix("postsuper -h ALL")
        send("handed over")
        eventually(lambda: deferred() == 1, "the second message is deferred")
        script = block("hand-over").replace("[127.0.0.1]:25'", f"[127.0.0.1]:{daemon.port}'")
        assert str(daemon.port) in script
        at_postfix(script)
        (mail,) = daemon.wait_for_mail("anna")
        assert b"Subject: handed over" in mail
        at_postfix("\n".join(["postsuper -H ALL", *script.splitlines()[-2:]]))
        assert any(b"Subject: held" in mail for mail in daemon.wait_for_mail("anna", 2))
    finally:
        postfix.stop()
