"""What the supervisor hands a worker when it starts it: its number, its sockets, and the way to speak."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from elemta.config import Config

DIRECTORY = "workers"
"""Beside the partitions: where each worker has its sockets, in a directory named by its number."""

METRICS_SOCKET = "metrics.sock"

WITHOUT_VALKEY_SECONDS = 0.9
"""Seconds that a decision waits for the supervisor where there is no Valkey.

The supervisor decides at once then. A worker that decides by its share is worse than one that waits. With the
longest delay of the policy limits, 4 s, this is less than the timeout of a policy, 5 s.
"""


def worker_count(workers: int) -> int:
    """How many there are where ``[server] workers`` is this; 0 is one for each core of this process."""
    return workers or len(os.sched_getaffinity(0))


def decision_seconds(config: Config) -> float:
    """The longest time that a decision about a limit waits for Valkey, or for the supervisor of workers."""
    if config.resources.valkey_url:
        return config.resources.valkey_deadline
    return WITHOUT_VALKEY_SECONDS if worker_count(config.server.workers) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class WorkerOrders:
    """The orders of worker ``number`` of ``count``, from 0 on; it owns the partition of its number.

    ``channel`` is the descriptor over which it speaks with the supervisor, ``text`` that of the
    configuration in force, whose file is ``config`` and may have been changed meanwhile. ``listeners`` and
    ``policy_services`` are descriptors of listening sockets by name. ``journald``: the supervisor writes to
    the journal, so lines begin with a priority. ``reactor`` is the one that twistd was asked for, "" for
    Twisted's choice.
    """

    number: int
    count: int
    channel: int
    config: str | None
    text: int
    listeners: Mapping[str, tuple[int, ...]]
    policy_services: Mapping[str, tuple[int, ...]]
    journald: bool = False
    reactor: str = ""

    def encode(self) -> str:
        """As one argument of a command."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> WorkerOrders:
        """What :meth:`encode` made."""
        fields = json.loads(text)
        for name in ("listeners", "policy_services"):
            fields[name] = {key: tuple(value) for key, value in fields[name].items()}
        return cls(**fields)


def worker_directory(spool: str, number: int) -> Path:
    """Where a worker has its sockets."""
    return Path(spool) / DIRECTORY / str(number)


def leftover_partitions(found: tuple[int, ...], number: int, count: int) -> tuple[int, ...]:
    """Those of the partitions that were ``found`` without a worker, which worker ``number`` delivers from."""
    return tuple(each for each in found if each >= count and each % count == number)
