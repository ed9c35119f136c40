"""What the image is built from: pinned packages, and nothing of the host's settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deployments/compose"
DOCKERFILE = (COMPOSE / "Dockerfile").read_text(encoding="utf-8")


def pinned() -> dict[str, str]:
    """Package to version; each has a hash."""
    text = (COMPOSE / "requirements.txt").read_text(encoding="utf-8")
    blocks = re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(blocks) == len(lines), "a line without a version and a hash"
    return {name: version for name, version, _ in blocks}


def test_every_package_that_elemta_needs_is_pinned_in_a_version_that_it_takes() -> None:
    versions = pinned()
    for text in requires("elemta") or ():
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": "argon2"}):
            name = re.sub("[-_.]+", "-", need.name).lower()
            assert need.specifier.contains(versions[name]), text


def test_pip_installs_nothing_without_a_hash_and_reads_no_settings() -> None:
    joined = re.sub(r" *\\\n *", " ", DOCKERFILE)
    commands = re.findall(r"/opt/venv/bin/pip (.*?)(?= && |\n)", joined)
    assert all(command.startswith("--isolated ") for command in commands)
    installs = [command for command in commands if " install " in command]
    assert len(installs) == 2
    for command in installs:
        assert "--require-hashes" in command or ("--no-index" in command and "--no-deps" in command), command


def test_the_build_names_no_index_and_takes_no_file_of_pips() -> None:
    for text in (DOCKERFILE, (ROOT / "tests/compose/images.py").read_text(encoding="utf-8")):
        assert not re.search(r"PIP_[A-Z]|index-url|pip\.conf|constraint|config.*list", text)


# Digests


def pin(tmp_path: Path, answer: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of pin-images, with a skopeo that answers so for every image."""
    here = tmp_path / "compose"
    here.mkdir()
    shutil.copy(COMPOSE / "pin-images", here)
    skopeo = tmp_path / "bin/skopeo"
    skopeo.parent.mkdir()
    skopeo.write_text(f"#!/bin/sh\n{answer}\n")
    skopeo.chmod(0o755)
    return subprocess.run(
        [sys.executable, here / "pin-images"],
        env={"PATH": f"{skopeo.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_image_of_the_compose_files_can_be_pinned_by_digest(tmp_path: Path) -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    done = pin(tmp_path, f"echo {digest}")
    assert done.returncode == 0, done.stderr
    written = dict(
        line.split("=", 1) for line in (tmp_path / "compose/.env").read_text().splitlines() if line[0] != "#"
    )
    used: dict[str, str] = {}
    for file in COMPOSE.glob("docker-compose*.yml"):
        used |= dict(re.findall(r"\$\{([A-Z]+_IMAGE):-([^}]+)\}", file.read_text()))
    assert written == {variable: f"{image}@{digest}" for variable, image in used.items()}
    assert f"ARG BASE={used['BASE_IMAGE']}" in DOCKERFILE


def test_an_answer_that_is_no_digest_pins_nothing(tmp_path: Path) -> None:
    for number, answer in enumerate(("echo latest", "exit 1", "true")):
        place = tmp_path / str(number)
        place.mkdir()
        assert pin(place, answer).returncode == 1
        assert not (place / "compose/.env").exists()
