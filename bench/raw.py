"""The script calls that the store makes, recorded and replayed by a client that does nothing else."""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servers import cpu_seconds
from valkeys import ValkeyServer, Word, benchmark_program, packed

from elemta.limits.valkey_calls import DECISIONS

CALLS = 10_000
BATCH = DECISIONS
BATCHES = 2_000
PROGRAM_CALLS = 100_000
PIPELINE = 16
CONNECTIONS = 50
RANDOM = 10_000


def recorded(valkey: Any) -> list[tuple[Any, list[Word]]]:
    """A list to which each script call of this connection is added from now on: the script, and its words."""
    calls: list[tuple[Any, list[Word]]] = []
    run = valkey.run

    def record(script: Any, keys: Sequence[Word], args: Sequence[Word], **options: Any) -> Any:
        if script.name == "acquire" and b"_probe" not in keys[0]:
            calls.append((script, [len(keys), *keys, *args]))
        return run(script, keys, args, **options)

    valkey.run = record
    return calls


def by_program(server: ValkeyServer, calls: Sequence[tuple[Any, list[Word]]]) -> list[dict[str, Any]]:
    """One decision for random clients by valkey-benchmark or redis-benchmark; nothing where there is none."""
    program = benchmark_program()
    if program is None:
        return []
    script, (count, *rest) = calls[-1]
    assert isinstance(count, int)
    keys, words = rest[:count], rest[count:]
    template = [text(key).rpartition(".")[0] + ".__rand_int__" for key in keys[: len(keys)]]
    # The number of a decision makes its charge another one.
    template += [text(words[0]), "__rand_int__", *map(text, words[2:])]
    with server.client() as client:
        client.call("FLUSHALL")
        client.call("SCRIPT", "LOAD", script.text)
    rows = []
    for pipeline in (1, PIPELINE):
        command = [program, "-s", server.socket, "-n", str(PROGRAM_CALLS), "-c", str(CONNECTIONS), "--csv"]
        command += [
            "-P",
            str(pipeline),
            "-r",
            str(RANDOM),
            "EVALSHA",
            text(script.sha),
            str(count),
            *template,
        ]
        cpu = cpu_seconds(server.pid())
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        cpu = cpu_seconds(server.pid()) - cpu
        rate = float(list(csv.reader(done.stdout.splitlines()))[-1][1])
        how = f"{CONNECTIONS} connections, one in a call, {pipeline} in a write"
        rows.append(
            {
                "client": f"{Path(program).name}, {how}",
                "rate": rate,
                "valkey cpu us": cpu / PROGRAM_CALLS * 1e6,
            }
        )
    return rows


def text(word: Word) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


def replayed(
    server: ValkeyServer, calls: Sequence[tuple[Any, list[Word]]], each: int, together: int, seconds: float
) -> dict[str, Any]:
    """Calls of so many decisions ``each`` again, on an empty server, so many ``together`` in one write."""
    with server.client() as client:
        client.call("FLUSHALL")
        for script in {script.sha: script for script, _ in calls}.values():
            client.call("SCRIPT", "LOAD", script.text)
        packets = [packed(["EVALSHA", script.sha, *rest]) for script, rest in calls]
        writes = [b"".join(packets[at : at + together]) for at in range(0, len(packets), together)]
        done = 0
        began, cpu = time.perf_counter(), cpu_seconds(server.pid())
        while (took := time.perf_counter() - began) < seconds and done < len(writes):
            client.exchange(writes[done], together)
            done += 1
        cpu = cpu_seconds(server.pid()) - cpu
    decisions = done * together * each
    how = "one call in a write" if together == 1 else f"{together} calls in a write"
    return {
        "client": f"ours, one connection, {each} in a call, {how}",
        "rate": decisions / took,
        "valkey cpu us": cpu / decisions * 1e6,
    }
