"""A small internet of the test's own: hosts in network namespaces, joined by a bridge, without a way out.

The addresses are those that were set apart for documentation (RFC 5737, RFC 3849), so that a mistake
can't reach any host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.interop.programs import missing, need_root, program

T = TypeVar("T")

_NAMESPACES = Path("/run/netns")
_FILES = Path("/etc/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """One host: a namespace with one interface, whose addresses end in ``number``."""

    def __init__(self, network: Network, name: str, number: int, *, four: bool, six: bool) -> None:
        self.name = name
        self.four = f"198.51.100.{number}" if four else None
        self.six = f"2001:db8::{number}" if six else None
        self.namespace = network.namespace(name)
        self.prefix = (network.ip, "netns", "exec", self.namespace)
        self._network = network

    def call(self, function: Callable[[], T]) -> T:
        """Call it in a thread that is in the namespace; a socket stays where it was made."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self._enter()
                results.append(function())
            except BaseException as error:  # the caller gets it
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def _enter(self) -> None:
        with (_NAMESPACES / self.namespace).open("rb") as namespace:
            if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def link(self, state: str) -> None:
        """Pull the plug (``down``) or put it in again (``up``).

        At the switch, so that the host keeps its addresses.
        """
        self._network.run(f"-n {self._network.switch} link set to-{self.name} {state}")


class Network:
    """The namespaces and the bridge. Everything is gone again when it is left."""

    def __init__(self) -> None:
        need_root("network namespaces")
        self.ip = program("ip")
        self._stem = f"elemta-{os.getpid()}"
        self.switch = self.namespace("switch")
        self._made: list[str] = []
        self._files: list[Path] = []

    def namespace(self, name: str) -> str:
        """The namespace's name, which is the machine's: unlike those of other runs."""
        return f"{self._stem}-{name}"

    def __enter__(self) -> Network:
        try:
            self._make(self.switch)
            self.run(f"-n {self.switch} link add bridge type bridge", f"-n {self.switch} link set bridge up")
        except subprocess.CalledProcessError as error:
            self._remove()
            missing(f"network namespaces can't be made here ({error.stderr.strip()})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def host(self, name: str, number: int, *, four: bool = True, six: bool = True) -> Host:
        """A new host with an IPv4 and an IPv6 address, or one of them."""
        host = Host(self, name, number, four=four, six=six)
        self._make(host.namespace)
        inside, port = f"-n {host.namespace}", f"to-{name}"
        self.run(
            f"-n {self.switch} link add {port} type veth peer name eth0 netns {host.namespace}",
            f"-n {self.switch} link set {port} master bridge up",
            *(
                f"{inside} address add {address} dev eth0"
                for address in (
                    host.four and f"{host.four}/24",
                    # Without the search for duplicates, which takes a second.
                    host.six and f"{host.six}/64 nodad",
                )
                if address
            ),
            f"{inside} link set lo up",
            f"{inside} link set eth0 up",
        )
        return host

    def use_resolver(self, host: Host, address: str) -> None:
        """Let programs that are started in the host find this server in ``/etc/resolv.conf``."""
        directory = _FILES / host.namespace
        for path in (_FILES, directory):
            if not path.exists():
                path.mkdir()
                self._files.append(path)
        (directory / "resolv.conf").write_text(f"nameserver {address}\n")

    def run(self, *commands: str) -> None:
        """Run ``ip`` with each of them."""
        for command in commands:
            subprocess.run([self.ip, *command.split()], check=True, capture_output=True, text=True)

    def _make(self, namespace: str) -> None:
        self.run(f"netns add {namespace}")
        self._made.append(namespace)

    def _remove(self) -> None:
        for namespace in reversed(self._made):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run(f"netns delete {namespace}")
        for path in reversed(self._files):
            if path == _FILES:
                with contextlib.suppress(OSError):  # others use it by now
                    path.rmdir()
            else:
                shutil.rmtree(path, ignore_errors=True)
