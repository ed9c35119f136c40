"""What the Debian packages say agrees with the rest of the tree; `make deb-test` shows that they work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from elemta import __version__
from elemta.config import load

ROOT = Path(__file__).parents[2]
INSTALL = (ROOT / "docs/install.md").read_text(encoding="utf-8")
UNIT = (ROOT / "debian/elemta.service").read_text(encoding="utf-8")


def test_the_version_of_the_package_is_that_of_the_program() -> None:
    first = (ROOT / "debian/changelog").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"elemta ({__version__}) ")


def test_every_dependency_of_the_program_is_one_of_the_package() -> None:
    """Those that dh_python3 does not find by itself are named; here that nothing is bundled or forgotten."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    control = (ROOT / "debian/control").read_text(encoding="utf-8")
    assert "${python3:Depends}" in control
    for name in ("idna", "txredisapi", "hiredis"):
        assert f'"{name}' in setup, f"{name} is no longer needed: take it from debian/control"
        assert f"python3-{name}" in control


def test_the_source_of_txredisapi_is_pinned_by_its_hash() -> None:
    pinned = (ROOT / "packaging/txredisapi/requirements.txt").read_text(encoding="utf-8")
    (version,) = re.findall(r"^txredisapi==(\S+) --hash=sha256:[0-9a-f]{64}$", pinned, re.MULTILINE)
    changelog = (ROOT / "packaging/txredisapi/debian/changelog").read_text(encoding="utf-8")
    assert f"({version})" in changelog.splitlines()[0]


def test_the_unit_starts_the_daemon_that_the_documents_describe() -> None:
    settings = dict(re.findall(r"^([A-Za-z]+)=(.*)$", UNIT, re.MULTILINE))
    assert settings["User"] == "elemta"
    assert settings["CapabilityBoundingSet"] == ""
    assert settings["RestartPreventExitStatus"] == "78"
    assert "MemoryDenyWriteExecute" not in settings, "STARTTLS would fail: pyOpenSSL needs such memory"
    assert "/etc/elemta.toml" in settings["ExecStart"]


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", INSTALL, re.DOTALL))
def test_what_the_installation_page_configures_is_accepted(block: str, tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(block, encoding="utf-8")
    load(str(config), {})


def test_every_point_of_the_boot_test_has_words_of_its_own() -> None:
    script = (ROOT / "packaging/deb-acceptance").read_text(encoding="utf-8")
    points = re.findall(r'^@point\(\s*"(.*)"', script, re.MULTILINE)
    assert len(points) > 20
    assert len(set(points)) == len(points)
