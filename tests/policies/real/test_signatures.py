"""The policy ``dkim-sign``: Debian's OpenDKIM verifies its signatures after two relays."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.programs import program
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers

TEXT = (
    b"From: Anna <anna@signed.test>\r\nTo: b@example.test\r\nSubject:  folded\r\n\t twice  \r\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@signed.test>\r\n\r\n"
)
BODIES = {
    "plain": b"Hello\r\n",
    "dots": b".\r\n..two\r\n.three\r\n",
    "blank": b"spaces  \t \r\n\r\n\r\n",
    "empty": b"",
    "raw": "Grüße\r\n".encode() * 10_000,
}


@pytest.fixture(scope="module")
def keys(open_directory: Path) -> Path:
    """OpenDKIM's file of public keys, from the records that the command printed."""
    program("opendkim")
    lines = []
    signer = Daemon(open_directory / "keys")
    for selector in ("one", "two"):
        file = str(open_directory / f"{selector}.pem")
        printed = signer.ctl("dkim", "generate", "signed.test", "--selector", selector, "--file", file)
        record = "".join(re.findall(r'"([^"]*)"', printed.stdout))
        lines.append(f"{selector}._domainkey.signed.test {record}\n")
    path = open_directory / "public-keys"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def nodes(open_directory: Path, keys: Path) -> Iterator[list[Daemon]]:
    """One that signs, one that relays, one with the mailboxes; the first is the last of the list."""
    nodes = [Daemon(open_directory / "store").start()]
    signs = "".join(
        f'[[policy.dkim-sign.key]]\ndomain = "signed.test"\nselector = "{selector}"\n'
        f'file = "{keys.parent}/{selector}.pem"\n'
        for selector in ("one", "two")
    )
    for name, more in (
        ("relay", ""),
        ("signer", f'[policies]\nchain = ["limits", "relay", "dkim-sign"]\n{signs}'),
    ):
        node = Daemon(
            open_directory / name,
            f'{more}[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{nodes[-1].port}"\n',
            domains='relay_from = ["127.0.0.0/8"]',
            mailboxes=False,
        )
        nodes.append(node.start())
    yield nodes
    for node in nodes:
        node.stop()


def verified(message: bytes, keys: Path, directory: Path) -> list[str]:
    """The selectors whose signatures OpenDKIM finds good."""
    path = directory / "message"
    path.write_bytes(message)
    configuration = directory / "opendkim.conf"
    configuration.write_text(f"Mode v\nTestPublicKeys {keys}\nSocket inet:0@127.0.0.1\nSyslog no\n")
    command = [program("opendkim"), "-x", str(configuration), "-t", str(path), "-vv"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout
    return sorted(re.findall(r"dkim=pass[^;]*header\.s=(\S+)", said.replace("\n\t", " ")))


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_opendkim_verifies_both_signatures_after_two_relays(
    nodes: list[Daemon], keys: Path, tmp_path: Path, kind: str
) -> None:
    store, _, signer = nodes
    with signer.client() as client:
        client.ehlo()
        client.mail("anna@signed.test", ["BODY=8BITMIME"])
        client.rcpt(f"{kind}@example.test")
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send((TEXT + BODIES[kind]).replace(b"\r\n.", b"\r\n..") + b".\r\n")
        assert client.getreply()[0] == 250
    (message,) = store.wait_for_mail(kind)
    assert verified(message, keys, tmp_path) == ["one", "two"]
    changed = message.replace(b"Subject:  folded", b"Subject:  forged")
    assert changed != message
    assert verified(changed, keys, tmp_path) == []
