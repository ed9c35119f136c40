"""Several nodes on one Valkey: real daemons that share nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.daemon import Daemon, DaemonFailed
from tests.support.places import HERE, Place
from tests.support.wire import Wire

PREFIX = "elemta:ratelimit:"
NODES = 3
CLUSTER = "cluster"
LOCAL = "local"


class Node(Daemon):
    """A daemon that counts its limits in Valkey. ``resources`` are lines of that table, ``tables`` follow."""

    def __init__(
        self,
        directory: Path,
        valkey_url: str,
        *,
        name: str,
        resources: Mapping[str, int | str],
        tables: str = "",
        domains: str = "",
        spool: str = "",
        environ: dict[str, str] | None = None,
        place: Place = HERE,
    ) -> None:
        self.name = name
        self._resources = {"valkey_url": valkey_url, **resources}
        super().__init__(
            directory,
            tables,
            server=f'node_id = "{name}"',
            domains=domains,
            spool=spool,
            environ=environ,
            place=place,
        )

    def configure(self, tables: str = "", **places: str) -> None:
        super().configure(tables, **places)
        lines = "".join(
            f"{key} = {value if isinstance(value, int) else chr(34) + value + chr(34)}\n"
            for key, value in self._resources.items()
        )
        before, _, rest = self.config.read_text().partition("[resources]\n")
        after = rest[rest.index("[[listener]]") :]
        self.config.write_text(f"{before}[resources]\n{lines}{after}")

    def greeting(self) -> str:
        """The code of the greeting that a new connection gets."""
        with Wire(self.socket()) as wire:
            return wire.reply()[:3]

    def ask(self, *command: str) -> Any:
        """What ``elemtactl --json`` says."""
        return json.loads(self.ctl("--json", *command).stdout)

    @property
    def mode(self) -> str:
        """Where it counts now, by its own metrics."""
        modes = re.findall(
            r'^elemta_limiter_mode\{.*mode="(\w+)".*\} 1\.0$', self.get("/metrics"), re.MULTILINE
        )
        assert len(modes) == 1, modes
        return str(modes[0])

    def troubles(self) -> str:
        """What the log says, less what it says of clients."""
        lines = self.output().splitlines()
        return "\n".join(line for line in lines if '"client_ip"' not in line)[-4000:]

    def mode_changes(self) -> list[tuple[float, str]]:
        """When, by the system's clock, it changed to which mode, by its own log."""
        return [
            (datetime.fromisoformat(record["time"]).timestamp(), record["mode"])
            for record in self.records("limits.mode_changed")
        ]


class Fleet:
    """Nodes that are started together and killed when the with-block ends.

    ``environs`` are what each node's environment has besides. ``waits`` is for Valkey to be there.
    """

    def __init__(
        self,
        directory: Path,
        valkey_url: str,
        *,
        resources: Mapping[str, int | str],
        tables: str = "",
        domains: str = "",
        size: int = NODES,
        environs: Sequence[dict[str, str]] = (),
        waits: bool = True,
    ) -> None:
        self._waits = waits
        self.nodes = [
            Node(
                directory / f"n{number}",
                valkey_url,
                name=f"n{number}",
                resources=resources,
                tables=tables,
                domains=domains,
                environ=environs[number] if environs else None,
            )
            for number in range(size)
        ]

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait_until_ready()
            if self._waits:
                self.wait_for_mode(CLUSTER)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def ports(self, listener: str = "mx") -> list[int]:
        return [node.port_of(listener) for node in self.nodes]

    def wait_for_mode(self, mode: str, seconds: float = 60.0) -> None:
        """Until all nodes count there."""
        for node in self.nodes:
            until(lambda node=node: node.mode == mode, f"{node.name} in mode {mode}", seconds, node.troubles)

    def introduce(self) -> None:
        """Wait until each node knows of all others."""
        for node in self.nodes:
            until(
                lambda node=node: node.metric("elemta_live_nodes{") == len(self.nodes),
                f"all nodes known to {node.name}",
                words=node.troubles,
            )

    def has_changed(self, mode: str, since: float) -> bool:
        """Whether all nodes changed to this mode after ``since``, by the system's clock, and stayed there."""
        changes = [node.mode_changes() for node in self.nodes]
        return all(each and each[-1][0] >= since and each[-1][1] == mode for each in changes)

    def last_to_change(self, mode: str, since: float) -> float:
        """When, by the system's clock, the last node changed to this mode; each did after ``since``."""
        times = []
        for node in self.nodes:
            changes = [at for at, changed in node.mode_changes() if changed == mode and at >= since]
            if not changes:
                raise DaemonFailed(f"{node.name} did not change to {mode}:\n{node.troubles()}")
            times.append(changes[-1])
        return max(times)

    def clock(self, number: int) -> float:
        """The time that a node's log had when it was ready."""
        ready = self.nodes[number].records("daemon.ready")[-1]
        return datetime.fromisoformat(ready["time"]).timestamp()

    def failures(self) -> dict[str, float]:
        """How many calls to Valkey failed since the start, by kind, of all nodes."""
        counts: dict[str, float] = {}
        for node in self.nodes:
            samples = re.findall(
                r'^elemta_valkey_failures_total\{.*kind="(\w+)".*\} (\S+)$',
                node.get("/metrics"),
                re.MULTILINE,
            )
            for kind, value in samples:
                counts[kind] = counts.get(kind, 0.0) + float(value)
        return counts

    def faults(self) -> list[dict[str, Any]]:
        """What any node logged as an error."""
        return [
            record
            for node in self.nodes
            for record in node.records()
            if record.get("level") in ("error", "critical")
        ]


def until(
    condition: Callable[[], object], what: str, seconds: float = 60.0, words: Callable[[], str] | None = None
) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DaemonFailed(f"not within {seconds:.0f} s: {what}\n{words() if words else ''}")
        time.sleep(0.05)
