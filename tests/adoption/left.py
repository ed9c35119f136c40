"""What a node that is gone left behind: a spool on a shared volume, with messages in it."""

from __future__ import annotations

import json
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.durability.ledger import Ledger, Message
from tests.support.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
REMOTE = "sink.test"
DEAD_NODE = "dead"


def left_behind(
    directory: Path,
    ledger: Ledger,
    count: int,
    *,
    hold: str = "",
    node: str = DEAD_NODE,
    part: int = 0,
) -> list[str]:
    """A spool with so many messages that their clients got a 250 for; their queue ids."""
    messages = [
        Message.make(f"{directory.name}-{part}-{number}", 300, (f"u{number}@{REMOTE}",))
        for number in range(count)
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.adoption.fill", str(directory), str(part), node, hold],
        input=pickle.dumps(messages),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=50,
        check=True,
    )
    for message in messages:
        ledger.sending(message)
        ledger.answered(message, "250 queued as")
    return list(json.loads(done.stdout))


def undelivered(directory: Path, part: int = 0) -> set[str]:
    """The queue ids of what is in a spool that no process has open."""
    connection = sqlite3.connect(directory / f"p{part}" / "queue.db")
    try:
        return {row[0] for row in connection.execute("SELECT queue_id FROM message")}
    finally:
        connection.close()


def spools(node: Daemon) -> dict[str, dict[str, Any]]:
    """What a node says of the spools that it delivers from, by their directories."""
    listed = json.loads(node.ctl("--json", "spool", "list").stdout)["spools"]
    return {spool["directory"]: spool for spool in listed}
