"""The images that the compose files name: pulled where a registry answers, else made of Debian's packages."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.compose.engine import COMPOSE, ROOT, Engine, EngineFailed

SUITE = "trixie"
#: That of the suite.
PYTHON = "3.13"
BASE = f"docker.io/library/debian:{SUITE}-slim"
HAPROXY = "docker.io/library/haproxy:3.0"
VALKEY = "docker.io/valkey/valkey:8.1"
#: The same as packaging/deb-test's.
CACHE = Path(os.environ.get("ELEMTA_DEBIAN_CACHE", "/var/cache/elemta-debian"))

# Where the public images have their files and users, and with the versions that their tags promise.
STAND_INS = {
    HAPROXY: """
USER haproxy
WORKDIR /var/lib/haproxy
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
""",
    VALKEY: """
USER valkey
WORKDIR /tmp
CMD ["valkey-server"]
""",
}
# As the public image has it: apt keeps nothing that it can get again.
CLEAN = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
PACKAGES = {HAPROXY: "haproxy", VALKEY: "valkey-server"}


def provide(engine: Engine) -> None:
    """Have all images in the engine's store."""
    if not _pulled(engine, BASE):
        _say(f"no registry answers: {BASE} is made of a bare Debian")
        _import_base(engine)
    for image, rest in STAND_INS.items():
        if not _pulled(engine, image):
            _say(f"{image} is made of Debian's {PACKAGES[image]}")
            _build_stand_in(engine, image, rest)
    _say("building elemta by deployments/compose/Dockerfile")
    context = _context(engine.directory)
    engine.run(
        "build", "--network", "host", "--tag", "elemta",
        "--ignorefile", COMPOSE / "Dockerfile.dockerignore",
        "--file", context / "deployments/compose/Dockerfile", context,
        timeout=1200,
    )  # fmt: skip


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _pulled(engine: Engine, image: str) -> bool:
    try:
        engine.run("pull", "--quiet", image, timeout=300)
    except (EngineFailed, subprocess.TimeoutExpired):
        return False
    return True


def _import_base(engine: Engine) -> None:
    bare = CACHE / f"{SUITE}-slim"
    if not bare.exists():
        _say(f"making a bare Debian in {bare}")
        making = bare.with_suffix(".new")
        shutil.rmtree(making, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", SUITE, making, _mirror()],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (making / "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
        making.rename(bare)
    tree = engine.directory / "base.tar"
    left_out = ("./var/cache/apt/*", "./var/lib/apt/lists/*", "./usr/share/doc/*", "./usr/share/man/*")
    excluded = [f"--exclude={pattern}" for pattern in left_out]
    subprocess.run(["tar", "-C", bare, *excluded, "-cf", tree, "."], check=True)
    engine.run("import", "--quiet", tree, BASE)
    tree.unlink()


def _mirror() -> str:
    """Where this machine's apt gets Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def _build_stand_in(engine: Engine, image: str, rest: str) -> None:
    directory = engine.directory / "stand-in"
    directory.mkdir(exist_ok=True)
    (directory / "Dockerfile").write_text(
        f"FROM {BASE}\n"
        "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "
        f"{PACKAGES[image]} && rm -rf /var/lib/apt/lists/*\n{rest}"
    )
    engine.run("build", "--network", "host", "--tag", image, directory, timeout=900)


# What the image needs of PyPI


def _context(directory: Path) -> Path:
    """The tree as the Dockerfile sees it, with the wheels that its requirements name.

    pip fetches them here with the settings of this machine. Whatever these are, the hashes decide.
    """
    context = directory / "context"
    shutil.copytree(
        ROOT, context, ignore=lambda top, names: _left_out(names) if Path(top) == ROOT else _unwanted(names)
    )
    wheels = context / "deployments/compose/wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    machine, version = platform.machine(), PYTHON.replace(".", "")
    platforms = [
        word
        for each in ("manylinux2014", "manylinux_2_28", "manylinux_2_34")
        for word in ("--platform", f"{each}_{machine}")
    ]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"),
            *("--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms),
            *("--abi", f"cp{version}", "--abi", "abi3", "--abi", "none"),
            *("--requirement", COMPOSE / "requirements.txt", "--dest", wheels),
        ],
        check=True,
    )
    return context


def _left_out(names: list[str]) -> set[str]:
    return set(names) - {
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "elemta",
        "twisted",
        "deployments",
    }


def _unwanted(names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}
