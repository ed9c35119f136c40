"""Where the programs of `make interop` are, and a mount space for those with paths compiled into them."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from tests.interop.matrix_table import NotRun

CACHE = Path(os.environ.get("ELEMTA_INTEROP_CACHE", "/var/cache/elemta-interop"))
_BEYOND_PATH = ("/usr/sbin", "/sbin", "/usr/lib/dovecot")


def absent(name: str, why: str) -> NoReturn:
    """Say why a program can't be run, with what `tests/interop/run` noted."""
    noted = CACHE / "why" / name
    raise NotRun(f"{why}; {noted.read_text().strip()}" if noted.exists() else why)


def find(name: str) -> str:
    """The path of an installed program."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_BEYOND_PATH)))
    if path is None:
        absent(name, f"{name} is not installed")
    return path


def unpacked(name: str, path: str) -> str:
    """The path of a program in a package that was only unpacked."""
    found = CACHE / name / path
    if not found.exists():
        absent(name, f"{name} is not unpacked")
    return str(found)


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NotRun(f"only root can run {what}")


class MountSpace:
    """A mount namespace with an ``/etc`` of its own and an empty ``/var``, for one program."""

    def __init__(
        self, directory: Path, files: Mapping[str, str], empty: Sequence[str], *, owner: str, more: str = ""
    ) -> None:
        need_root("a program in a mount space")
        self._etc = directory / "etc"
        if not self._etc.exists():
            shutil.copytree("/etc", self._etc, symlinks=True, ignore_dangling_symlinks=True)
        for name, text in files.items():
            path = self._etc / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if name in ("passwd", "group") else "w") as file:
                file.write(text)
        self._empty = empty
        self._owner = owner
        self._more = more

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs a copy of ``command`` in it: the program itself may be below ``/var``."""
        program, *arguments = command
        copied = self._etc.parent / Path(program).name
        shutil.copy(program, copied)
        command = [str(copied), *arguments]
        directories = " ".join(shlex.quote(each) for each in self._empty)
        script = (
            f"set -e; mount --make-rprivate /; mount --bind {shlex.quote(str(self._etc))} /etc; "
            f"mount -t tmpfs tmpfs /var; mkdir -p /var/run /var/tmp {directories}; "
            f"chown {self._owner} {directories}; chmod 2775 {directories}; {self._more} "
            f"exec {shlex.join(command)}"
        )
        return ["unshare", "--mount", "sh", "-c", script]
