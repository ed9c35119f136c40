"""The images that the compose files name: pulled where a registry answers, else made of Debian's packages."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.compose.engine import COMPOSE, ROOT, Engine, EngineFailed

SUITE = "trixie"
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
    engine.run(
        "build", "--network", "host", *_pip_settings(engine.directory),
        "--tag", "elemta", "--file", COMPOSE / "Dockerfile", ROOT,
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


# What pip of this machine is told


def _pip_settings(directory: Path) -> Iterator[str]:
    """Options of ``podman build`` by which pip in there finds what pip here finds; nothing of it stays."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    lines = ["[global]"]
    for line in listing.stdout.splitlines():
        name, _, quoted = line.partition("=")
        key, value = name.rsplit(".", 1)[1], " ".join(shlex.split(quoted))
        if key == "cert":
            # The package ca-certificates writes where this machine has it.
            yield from _mounted(value, "/etc/pip-cert.pem")
            value = "/etc/pip-cert.pem"
        for word in value.split() if key in ("find-links", "index-url", "extra-index-url") else ():
            place = Path(word.removeprefix("file://"))
            if place.is_absolute() and place.is_dir():
                # An index tells where its files are in relation to itself.
                whole = place.parent if place.name == "simple" else place
                yield from _mounted(whole, whole)
        lines.append(f"{key} = {value}")
    settings = directory / "pip.conf"
    settings.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    yield from _mounted(settings, "/etc/pip.conf")


def _mounted(source: str | Path, target: str | Path) -> tuple[str, str]:
    return "--volume", f"{source}:{target}:ro"
