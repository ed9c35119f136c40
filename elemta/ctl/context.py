"""One run of ``elemtactl``: its arguments and streams, and helpers that every command uses."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from elemta.config import Config, load
from elemta.config.spool_directory import spool_directory
from elemta.ctl.client import AdminClient
from elemta.ctl.exit_codes import EX_CONFIG, EX_NOPERM, EX_OK, EX_USAGE, CommandFailed
from elemta.ctl.text import Column, safe, table
from elemta.errors import ConfigError
from elemta.runtime import ProcessRuntime

DEFAULT_CONFIG = "/etc/elemta.toml"
CONFIG_VARIABLE = "ELEMTA_CONFIG"
SOCKET_NAME = "admin.sock"


@dataclass(frozen=True, slots=True)
class CommandContext:
    """Arguments, streams and environment of one run; ``closing`` closes at its end what it opened."""

    args: argparse.Namespace
    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    environ: Mapping[str, str]
    closing: ExitStack
    runtime: ProcessRuntime

    @property
    def json(self) -> bool:
        return bool(getattr(self.args, "json", False))

    @property
    def width(self) -> int | None:
        """The columns of the terminal; None where the output goes elsewhere, and is not cut then."""
        return shutil.get_terminal_size().columns if self.stdout.isatty() else None

    def refuse_empty(self, options: Mapping[str, str]) -> None:
        """Refuse an empty text for an argument: a script whose variable is empty does not mean all.

        ``options`` are the names of arguments, and how each is written. Raises CommandFailed.
        """
        for name, option in options.items():
            if getattr(self.args, name) == "":
                raise CommandFailed(EX_USAGE, f"{option} is empty", "leave it out")

    # Configuration and daemon

    @property
    def config_path(self) -> str | None:
        """The configuration that was named, else the usual one if it is there, else None: the defaults."""
        return config_path(getattr(self.args, "config", None), self.environ)

    def config(self, hint: str = "") -> Config:
        """The configuration. Raises CommandFailed with every fault, or ``hint`` where it may not be read."""
        path = self.config_path
        if path is not None and os.path.lexists(path) and not os.access(path, os.R_OK):
            raise CommandFailed(EX_NOPERM, f"permission denied: {path}", hint)
        environ = {name: value for name, value in self.environ.items() if name != CONFIG_VARIABLE}
        try:
            return load(path, environ)
        except ConfigError as error:
            raise CommandFailed(EX_CONFIG, "the configuration can't be used", faults=error.faults) from error

    def client(self) -> AdminClient:
        """The daemon's admin API; nothing is opened yet."""
        named = getattr(self.args, "socket", None)
        client = AdminClient(named or usual_socket(self.config_path, self.environ))
        self.closing.callback(client.close)
        self.closing.callback(self._note_problems, client)
        return client

    def _note_problems(self, client: AdminClient) -> None:
        for problem in client.problems:
            self.note(f"{problem}; its part is not in this")

    # Output

    def say(self, *lines: str) -> None:
        """Lines to standard output, without control characters."""
        for line in lines:
            self.stdout.write(safe(line) + "\n")

    def give_octets(self, octets: bytes) -> None:
        """Octets to standard output, unchanged; on a terminal without what could drive it."""
        if self.stdout.isatty():
            for line in octets.decode("utf-8", "replace").splitlines(keepends=True):
                end = "\n" if line.endswith("\n") else ""
                self.stdout.write(safe(line.rstrip("\r\n").expandtabs()) + end)
            return
        binary = getattr(self.stdout, "buffer", None)
        if binary is None:
            self.stdout.write(octets.decode("utf-8", "surrogateescape"))
        else:
            self.stdout.flush()
            binary.write(octets)

    def agreed(self, question: str) -> bool:
        """Whether the answer to a question, which goes to standard error, is yes."""
        self.stderr.write(f"{safe(question)} [y/N] ")
        self.stderr.flush()
        return self.stdin.readline().strip().lower() in ("y", "yes")

    def note(self, line: str) -> None:
        """A line to standard error."""
        self.stderr.write(f"elemtactl: {safe(line)}\n")

    def note_silent(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """A line for each node whose part, or some of it, is not in an answer."""
        for node in nodes:
            if node["problem"]:
                missing = "some of it" if node["answered"] else "it"
                self.note(f"node {node['node_id']}: {missing} is not in this: {node['problem']}")

    def give(self, document: object) -> None:
        """One JSON document to standard output."""
        self.stdout.write(json.dumps(document, indent=2) + "\n")

    def give_table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """A table to standard output."""
        self.say(*table(columns, rows, self.width))

    def give_answer(self, document: object, *lines: str) -> int:
        """The end of a command that succeeded: its answer as JSON, or in words."""
        if self.json:
            self.give(document)
        else:
            self.say(*lines)
        return EX_OK

    def give_listing(
        self, document: object, columns: Sequence[Column], rows: Sequence[Sequence[str]], nothing: str
    ) -> int:
        """The end of a command that lists: its answer as JSON, as a table, or ``nothing`` without rows."""
        if not self.json and rows:
            self.give_table(columns, rows)
            return EX_OK
        return self.give_answer(document, nothing)


def config_path(named: str | None, environ: Mapping[str, str]) -> str | None:
    """The configuration that was named, else the usual one if it is there, else None: the defaults."""
    named = named or environ.get(CONFIG_VARIABLE)
    if named:
        return named
    return DEFAULT_CONFIG if Path(DEFAULT_CONFIG).exists() else None


def usual_socket(path: str | None, environ: Mapping[str, str]) -> str:
    """The socket in the spool directory: other faults of the configuration don't matter for that."""
    hint = "it says where the daemon's socket is; --socket PATH says it too"
    without = {name: value for name, value in environ.items() if name != CONFIG_VARIABLE}
    try:
        directory = spool_directory(path, without)
    except PermissionError as error:
        raise CommandFailed(EX_NOPERM, f"permission denied: {path}", hint) from error
    except OSError as error:
        problem = f"{path} can't be read: {error.strerror or error}"
        raise CommandFailed(EX_CONFIG, problem, hint) from error
    return str(Path(directory) / SOCKET_NAME)
