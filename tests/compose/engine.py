"""Podman with a store, networks and settings of its own, so that nothing of this host's is touched."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

#: The first with ipv4_address is 1.0.6; Debian 12 has 1.0.3.
PODMAN_COMPOSE = "podman-compose>=1.2"
ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deployments" / "compose"


class EngineFailed(AssertionError):
    """A command of podman or podman-compose did not do what it was called for; carries what it said."""


class Engine:
    """What is made with it lies in ``directory``; its networks are in the namespace of the caller."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._settings = directory / "containers.conf"
        self._storage = directory / "storage.conf"
        self._compose = directory / "podman-compose"
        self._environ = {
            **os.environ,
            "PYTHONPATH": str(self._compose),
            "CONTAINERS_CONF": str(self._settings),
            "CONTAINERS_STORAGE_CONF": str(self._storage),
            "BUILDAH_FORMAT": "docker",  # which has HEALTHCHECK
            "DISABLE_HC_SYSTEMD": "true",  # asked by the tests, not by timers of systemd
        }

    def configure(self) -> None:
        """Write down how podman works here; runc, where it is, also works where cgroups are of both kinds."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        here = self.directory
        runtime = 'runtime = "runc"' if shutil.which("runc") else ""
        self._settings.write_text(
            f'[engine]\n{runtime}\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{here}/state"\nvolume_path = "{here}/volumes"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{here}/networks"\n'
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=1000:1000"]\n'
        )
        self._storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{here}/store"\nrunroot = "{here}/run"\n'
        )

    def install_compose(self) -> None:
        """Get podman-compose from where pip here gets packages."""
        options = ("--quiet", "--disable-pip-version-check", "--target", str(self._compose))
        subprocess.run([sys.executable, "-m", "pip", "install", *options, PODMAN_COMPOSE], check=True)

    def run(self, *words: str | Path, check: bool = True, timeout: float = 300) -> str:
        """What a podman command says; its standard error as well where it fails and may."""
        return self._call(["podman", *map(str, words)], check=check, timeout=timeout)

    def compose(self, project: str, file: str, *words: str, timeout: float = 300) -> str:
        """What a command of podman-compose says."""
        command = [sys.executable, "-m", "podman_compose", "-p", project, "-f", str(COMPOSE / file), *words]
        return self._call(command, check=True, timeout=timeout)

    def status(self, *words: str, timeout: float = 120) -> int:
        """The exit status of a podman command."""
        done = subprocess.run(
            ["podman", *words], env=self._environ, capture_output=True, timeout=timeout, check=False
        )
        return done.returncode

    def log(self, container: str) -> str:
        """What it has said, to its standard output and its standard error."""
        command = ["podman", "logs", container]
        done = subprocess.run(
            command,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return done.stdout

    def _call(self, command: list[str], *, check: bool, timeout: float) -> str:
        done = subprocess.run(
            command,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=COMPOSE,
        )
        if not done.returncode:
            return done.stdout
        if check:
            raise EngineFailed(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


class Stack:
    """The containers of one compose file, from ``up`` to ``down``."""

    def __init__(self, engine: Engine, file: str, project: str) -> None:
        self.engine = engine
        self._file = file
        self._project = project

    def up(self) -> None:
        self.engine.compose(self._project, self._file, "up", "-d")
        _pin_bridges()

    def down(self, *options: str) -> None:
        self.engine.compose(self._project, self._file, "down", "-t", "60", *options)

    def container(self, service: str) -> str:
        """The name of the container of a service."""
        (name,) = self.engine.run(
            "ps", "--all", "--format", "{{.Names}}",
            "--filter", f"label=com.docker.compose.project={self._project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip
        return name

    def execute(self, service: str, *words: str, check: bool = True) -> str:
        """What a command says inside the container of a service."""
        return self.engine.run("exec", self.container(service), *words, check=check)

    def stop(self, service: str) -> int:
        """As ``docker stop`` does it, with its wait; the exit status of what ran there."""
        name = self.container(service)
        self.engine.run("stop", "--time", "60", name)
        return int(self.engine.run("inspect", "--format", "{{.State.ExitCode}}", name))

    def start(self, *services: str) -> None:
        """Start what has stopped; what runs goes on."""
        self.engine.run("start", *[self.container(service) for service in services])

    def log(self, service: str) -> str:
        return self.engine.log(self.container(service))

    def records(self, service: str) -> list[dict[str, object]]:
        """The log of a node."""
        lines = self.log(service).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def settings_of(self, service: str) -> dict[str, object]:
        (about,) = json.loads(self.engine.run("inspect", self.container(service)))
        return dict(about)


def _pin_bridges() -> None:
    """Let the bridges keep their hardware addresses.

    A bridge without its own has that of one of its ports, and another when this container stops: the
    others answer to the old one then for up to a minute. On a host udev sees to that, here nothing does.
    """
    listing = subprocess.run(
        ["ip", "-json", "link", "show", "type", "bridge"], capture_output=True, text=True, check=True
    )
    for bridge in json.loads(listing.stdout or "[]"):
        command = ["ip", "link", "set", bridge["ifname"], "address", bridge["address"]]
        subprocess.run(command, check=True)
