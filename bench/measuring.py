"""What the benchmarks share: the load, the rounds in which servers take turns, the machine, and the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from servers import (
    DOMAIN,
    BenchError,
    ElemtaServer,
    PostfixServer,
    Server,
    changed_server,
    checkout_server,
)

WARM_UP = 100
TIE = 1.3

Started = TypeVar("Started", bound=Server)


@dataclass(frozen=True)
class Scenario:
    """What is sent: ``messages`` of ``octets`` each over ``sessions`` at a time.

    smtp-source sends it, unless it is ``pipelined``, over ``tls``, or with a ``login``.
    """

    name: str
    words: str
    messages: int
    octets: int
    sessions: int
    reuse: bool
    pipelined: bool = False
    tls: bool = False
    login: bool = False

    def sized(self, factor: float) -> Scenario:
        return replace(self, messages=max(self.sessions, round(self.messages * factor)))

    @property
    def special(self) -> list[str]:
        """The options of load.py for what smtp-source can't do."""
        return [f"--{name}" for name in ("pipelined", "tls", "login") if getattr(self, name)]


@dataclass(frozen=True)
class Run:
    """One measured run. ``rate`` is messages a second, ``cpu`` seconds per 1,000.

    ``behind`` is how many seconds after the last 250 everything had arrived where it is counted. ``memory``
    is the octets of the server's processes then, and ``others`` the part of all cores that other programs
    used meanwhile.
    """

    server: str
    scenario: str
    rate: float
    cpu: float
    behind: float
    memory: float = 0.0
    others: float = 0.0


@dataclass(frozen=True)
class Bench:
    """One benchmark: its name and words, its scenarios, and how one server is measured in one of them.

    ``arrived`` says in words where messages are counted.
    """

    name: str
    words: str
    scenarios: Sequence[Scenario]
    measure: Callable[[type[Server], Scenario, Path], Run]
    arrived: str
    programs: tuple[str, ...] = ("smtp-source",)


def send(port: int, scenario: Scenario, messages: int) -> float:
    """Send; seconds that it took. The first refusal raises BenchError."""
    if scenario.special:
        return float(
            made_by_load(
                port,
                scenario.sessions,
                *scenario.special,
                *(["--reuse"] if scenario.reuse else []),
                "--messages",
                str(messages),
                "--octets",
                str(scenario.octets),
            )
        )
    command = ["smtp-source", "-s", str(min(scenario.sessions, messages)), "-m", str(messages)]
    command += ["-l", str(scenario.octets), "-f", f"sender@{DOMAIN}", "-t", f"someone@{DOMAIN}"]
    command += ["-M", "client.test", *(["-d"] if scenario.reuse else []), f"127.0.0.1:{port}"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode or done.stderr:
        raise BenchError(f"smtp-source: {done.stderr.strip()}")
    return seconds


def made_by_load(port: int, sessions: int, *options: str) -> float:
    """The answer of load.py."""
    command = [sys.executable, str(Path(__file__).with_name("load.py")), "--port", str(port)]
    command += ["--sessions", str(sessions), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(done.stderr.strip())
    return float(json.loads(done.stdout))


@contextmanager
def running(make: Callable[[Path], Started], parent: Path) -> Iterator[Started]:
    """A server on a directory of its own, which is removed behind it."""
    directory = Path(tempfile.mkdtemp(prefix="elemta-bench-", dir=parent))
    directory.chmod(0o755)  # Postfix's processes are not root and have to pass
    server = make(directory)
    try:
        server.start()
        yield server
    finally:
        with suppress(AttributeError):  # it was not started
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


# Where it was measured


def sync_milliseconds(parent: Path) -> float:
    """The median time to append 4 KiB to a file and sync it."""
    times = []
    with tempfile.NamedTemporaryFile(dir=parent) as file:
        for _ in range(200):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def host() -> dict[str, str]:
    """What every figure depends on, in words."""
    model = "unknown"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    flags = str(sysconfig.get_config_var("CONFIG_ARGS"))
    build = "with" if "--enable-optimizations" in flags else "without"
    build = "the distribution's build" if sys.base_prefix == "/usr" else f"{build} --enable-optimizations"
    return {
        "CPU": f"{model}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "load before": load(),
        "Python": f"{platform.python_version()}, {platform.python_compiler()}, {build}",
        "Elemta": _version_of("elemta"),
    }


def machine(parent: Path) -> dict[str, str]:
    """What the figures of a server with a disk depend on, in words."""
    return host() | {
        "disk": f"append of 4 KiB and fdatasync in {sync_milliseconds(parent):.2f} ms (median of 200)",
        "SQLite": sqlite3.sqlite_version,
        "Twisted": version("twisted"),
        "Postfix": _postfix_version(),
    }


def load() -> str:
    return " ".join(f"{average:.1f}" for average in os.getloadavg())


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "from the source tree"


def _postfix_version() -> str:
    done = subprocess.run(["postconf", "-dh", "mail_version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "absent"


# The figures


def report(runs: Sequence[Run], scenarios: Sequence[Scenario], other: str) -> list[dict[str, object]]:
    """One row for each scenario; ratios of this Elemta to the server ``other`` are of one round each."""
    rows: list[dict[str, object]] = []
    for scenario in scenarios:
        ours = [run for run in runs if run.scenario == scenario.name and run.server == ElemtaServer.name]
        theirs = [run for run in runs if run.scenario == scenario.name and run.server == other]
        row: dict[str, object] = {"scenario": scenario.name, "words": scenario.words, "rounds": len(ours)}
        for name, some in (("elemta", ours), ("other", theirs)):
            if some:
                row[name] = statistics.median(run.rate for run in some)
                row[f"{name}_cpu"] = statistics.median(run.cpu for run in some)
        if theirs:
            ratios = [our.rate / their.rate for our, their in zip(ours, theirs, strict=True)]
            row["ratios"] = [round(ratio, 2) for ratio in ratios]
            row["ratio"] = statistics.median(ratios)
            row["cpu_ratio"] = statistics.median(
                our.cpu / their.cpu for our, their in zip(ours, theirs, strict=True)
            )
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, object]], other: str) -> str:
    """The rows in Markdown."""
    heads = ("", "Elemta /s", f"{other} /s", "ratio", "of each round")
    heads += ("CPU s per 1,000: Elemta", other, "CPU ratio")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        ratio = row.get("ratio")
        words = "-"
        if isinstance(ratio, float):
            words = f"{ratio:.2f}" + (" (tie)" if 1 / TIE < ratio < TIE else "")
        each = row.get("ratios")
        cells = [
            str(row["words"]),
            _number(row, "elemta", 0),
            _number(row, "other", 0),
            words,
            " ".join(map(str, each)) if isinstance(each, list) else "-",
            _number(row, "elemta_cpu", 2),
            _number(row, "other_cpu", 2),
            _number(row, "cpu_ratio", 2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(row: Mapping[str, object], key: str, digits: int) -> str:
    value = row.get(key)
    return f"{value:,.{digits}f}" if isinstance(value, float) else "-"


# The command


def run(bench: Bench) -> int:
    """The benchmark as a command; its exit status."""
    options = _arguments(bench)
    alone = options.without_postfix or options.beside is not None or options.beside_settings
    reason = _why_not(bench, bool(alone))
    if reason is not None:
        print(f"bench/{bench.name}: {reason}", file=sys.stderr)
        return 2
    scenarios = [
        s.sized(options.scale) for s in bench.scenarios if not options.only or s.name in options.only
    ]
    where = machine(options.directory)
    try:
        kinds = _kinds(options)
        runs = list(_rounds(bench, scenarios, kinds, options.rounds, options.directory))
    except BenchError as error:
        print(f"bench/{bench.name}: {error}", file=sys.stderr)
        return 1
    where["load after"] = load()
    rows = report(runs, scenarios, kinds[-1].name)
    if options.json:
        print(json.dumps({"machine": where, "rows": rows, "runs": [asdict(run) for run in runs]}, indent=2))
    else:
        print("\n".join(f"{name}: {value}" for name, value in where.items()))
        print("\n" + table(rows, kinds[-1].name))
    return 0


def _kinds(options: argparse.Namespace) -> list[type[Server]]:
    """The servers that take turns, this Elemta first."""
    if options.beside is not None:
        return [ElemtaServer, checkout_server(options.beside)]
    if options.beside_settings:
        return [ElemtaServer, changed_server(options.beside_settings)]
    return [ElemtaServer] if options.without_postfix else [ElemtaServer, PostfixServer]


def _rounds(
    bench: Bench, scenarios: Sequence[Scenario], kinds: list[type[Server]], rounds: int, directory: Path
) -> Iterator[Run]:
    for number in range(rounds):
        for scenario in scenarios:
            # The first server changes, so that neither always finds the disk as the other left it.
            for kind in kinds if number % 2 == 0 else kinds[::-1]:
                run = bench.measure(kind, scenario, directory)
                print(
                    f"round {number + 1}, {scenario.name}: {run.server} {run.rate:.0f}/s,"
                    f" {run.cpu:.2f} CPU s per 1,000, all {bench.arrived} {run.behind:.2f} s later",
                    file=sys.stderr,
                )
                yield run


def _arguments(bench: Bench) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"bench/{bench.name}",
        description=bench.words,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [scenario.name for scenario in bench.scenarios]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the messages of a scenario")
    parser.add_argument(
        "--only", choices=names, action="append", metavar="SCENARIO",
        help=f"{', '.join(names[:-1])} or {names[-1]}; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure"
    )
    parser.add_argument("--without-postfix", action="store_true", help="measure Elemta alone; no root needed")
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="CHECKOUT",
        help="measure beside the Elemta of another checkout, not Postfix",
    )
    parser.add_argument(
        "--beside-settings",
        action="append",
        metavar="TABLE.KEY=VALUE",
        help="measure beside this Elemta with another setting, not Postfix; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="machine, rows and every run as JSON")
    return parser.parse_args()


def _why_not(bench: Bench, without_postfix: bool) -> str | None:
    for program in bench.programs:
        if shutil.which(program) is None:
            return f"{program} is missing: install postfix (Debian: apt install postfix)"
    if without_postfix:
        return None
    if shutil.which("postfix") is None:
        return "postfix is missing: install it (Debian: apt install postfix), or give --without-postfix"
    if os.geteuid() != 0:
        return "Postfix's master needs root: run this as root, or give --without-postfix"
    return None
