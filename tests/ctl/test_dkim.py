"""``elemtactl dkim generate``."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from elemta.policies.dkim_sign.signature import load_key
from tests.ctl.test_main import run


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_key_is_written_that_only_its_owner_reads_and_its_record_is_printed(
    tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "key"
    code, out, _ = run("--json", "dkim", "generate", "example.com", "--type", kind, "--file", str(file))
    assert code == 0
    said = json.loads(out)
    assert said["name"] == "elemta._domainkey.example.com."
    assert said["value"].startswith(f"v=DKIM1; k={kind}; p=")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_pem_private_key(file.read_bytes(), None)
    assert load_key("example.com", "elemta", file).algorithm.decode().startswith(kind)


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("precious")
    code, _, error = run("dkim", "generate", "example.com", "--file", str(file))
    assert code != 0
    assert "is there already" in error
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("Example.COM.", "example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_the_record_has_the_name_that_dns_has(tmp_path: Path, domain: str, name: str) -> None:
    argv = ("dkim", "generate", domain, "--type", "ed25519", "--file", str(tmp_path / "key"))
    assert json.loads(run("--json", *argv)[1])["name"] == f"elemta._domainkey.{name}."


@pytest.mark.parametrize("argv", [["not a domain"], ["[192.0.2.1]"], ["example.com", "--selector", "a b"]])
def test_a_domain_or_selector_that_is_none_is_wrong_use(argv: list[str], tmp_path: Path) -> None:
    code, _, error = run("dkim", "generate", *argv, "--file", str(tmp_path / "key"))
    assert code == 2 or code == 64
    assert error


def test_the_record_is_cut_into_strings_that_dns_takes(tmp_path: Path) -> None:
    _, out, _ = run("dkim", "generate", "example.com", "--bits", "4096", "--file", str(tmp_path / "key"))
    record = out.partition(" IN TXT ")[2].strip()
    strings = record.strip('"').split('" "')
    assert len(strings) > 1
    assert all(len(each) <= 255 for each in strings)
    assert "".join(strings).startswith("v=DKIM1; k=rsa; p=")
