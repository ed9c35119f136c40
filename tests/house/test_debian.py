"""What the Debian packages say agrees with the rest of the tree; `make deb-test` shows that they work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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


def test_the_libraries_of_an_extra_are_in_a_package_of_its_own() -> None:
    """Nothing that only some policies need comes with the daemon."""
    control = (ROOT / "debian/control").read_text(encoding="utf-8")
    packages = {text.split()[1]: text for text in control.split("\n\n") if text.startswith("Package:")}
    libraries = {"python3-spf", "python3-dkim", "python3-publicsuffix2", "python3-nacl"}
    assert {name for name in libraries if name in packages["elemta-mail-auth"]} == libraries
    assert {name for name in libraries if name in packages["elemta"]} == set()


def test_the_installation_page_lists_the_packages_that_are_built() -> None:
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", INSTALL.partition("## What is installed")[0], re.MULTILINE)
    controls = [ROOT / place / "control" for place in ("debian", "packaging/txredisapi/debian")]
    texts = [control.read_text(encoding="utf-8") for control in controls]
    assert listed == re.findall(r"^Package: (\S+)$", "".join(texts), re.MULTILINE)
    assert f"It builds {({4: 'four'})[len(listed)]} packages:" in INSTALL


def test_the_installation_page_says_where_a_daemon_listens_that_is_not_configured(
    tmp_path: Path,
) -> None:
    (tmp_path / "elemta.toml").touch()
    config = load(str(tmp_path / "elemta.toml"), {})
    endpoints = config.listeners[0].endpoint, config.metrics.endpoint, config.console.endpoint
    ports = [each.removeprefix("tcp:").removesuffix(":interface=127.0.0.1") for each in endpoints]
    shown = re.search(r"It listens on (.*?) only\.", INSTALL, re.DOTALL)
    assert shown is not None
    assert re.findall(r"127\.0\.0\.1:(\d+)", shown[1]) == ports


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


SOCKETS = {
    "elemta.socket": ["0.0.0.0:25", "[::]:25"],
    "elemta-submission.socket": ["587"],
    "elemta-submissions.socket": ["465"],
}


def unit_file(name: str) -> str:
    source = name if name == "elemta.socket" else f"elemta.{name}"
    return (ROOT / "debian" / source).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SOCKETS)
def test_each_port_below_1024_has_a_socket_unit_that_starts_the_daemon(name: str) -> None:
    text = unit_file(name)
    settings = dict(re.findall(r"^([A-Za-z0-9]+)=(.*)$", text, re.MULTILINE))
    assert re.findall(r"^ListenStream=(.*)$", text, re.MULTILINE) == SOCKETS[name]
    assert settings.get("Service", "elemta.service") == "elemta.service"
    assert settings["BindIPv6Only"] == ("ipv6-only" if name == "elemta.socket" else "both")
    assert settings["WantedBy"] == "sockets.target"
    rules = (ROOT / "debian/rules").read_text(encoding="utf-8")
    assert re.search(rf"^\t\$\(SOCKET\).*\b{re.escape(name.removesuffix('.socket'))}\b", rules, re.MULTILINE)
    for path in ("debian/elemta.prerm", "debian/elemta.README.Debian", "docs/install.md"):
        assert name in (ROOT / path).read_text(encoding="utf-8"), path


def test_every_port_below_1024_of_the_recipes_has_a_socket_unit() -> None:
    """Else the daemon of the package, which has no capability, fails to bind it."""
    recipes = (ROOT / "docs/relaying.md").read_text(encoding="utf-8")
    ports = {int(port) for port in re.findall(r'^endpoint = "tcp6?:(\d+)', recipes, re.MULTILINE)}
    assert {25, 587, 465} <= ports
    opened = {int(place.rpartition(":")[2]) for places in SOCKETS.values() for place in places}
    assert {port for port in ports if port < 1024} <= opened


@pytest.mark.parametrize("name", ["elemta.service", *SOCKETS])
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    for each in SOCKETS:
        (tmp_path / each).write_text(unit_file(each), encoding="utf-8")
    # Its programs come with the package.
    service = re.sub(r"=/usr/bin/(twistd3|elemtactl)", "=/bin/true", UNIT)
    (tmp_path / "elemta.service").write_text(service, encoding="utf-8")
    done = subprocess.run(
        [verify, "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        timeout=90,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "elemta" in line]
    assert said == []
    assert done.returncode == 0, done.stderr


def test_every_point_of_the_boot_test_has_words_of_its_own() -> None:
    script = (ROOT / "packaging/deb-acceptance").read_text(encoding="utf-8")
    points = re.findall(r'^@point\(\s*"(.*)"', script, re.MULTILINE)
    assert len(points) > 20
    assert len(set(points)) == len(points)


def test_every_page_to_which_an_installed_page_leads_is_installed() -> None:
    installed = set()
    for pattern in (ROOT / "debian/elemta.docs").read_text(encoding="utf-8").split():
        for path in ROOT.glob(pattern):
            installed |= set(path.rglob("*.md")) if path.is_dir() else {path}
    assert len(installed) > 30
    missing = set()
    for page in installed:
        for target in re.findall(r"\]\(([^)#:\s]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            # What is beside docs/ is in the source only.
            if path.is_relative_to(ROOT / "docs") and path not in installed:
                missing.add(f"{page.relative_to(ROOT)}: {target}")
    assert missing == set()
