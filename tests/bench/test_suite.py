"""The suite of benchmarks: its load, what it publishes, and when it publishes nothing."""

from __future__ import annotations

import importlib
import importlib.util
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def _module(name: str) -> ModuleType:
    if str(BENCH) not in sys.path:
        sys.path.insert(0, str(BENCH))
    return importlib.import_module(name)


load, pictures, busy, contenders = map(_module, ("load", "pictures", "busy", "contenders"))
_loader = SourceFileLoader("bench_suite", str(BENCH / "suite"))
_spec = importlib.util.spec_from_loader("bench_suite", _loader)
assert _spec is not None
suite = importlib.util.module_from_spec(_spec)
_loader.exec_module(suite)


# The load


class Peer:
    """A server that takes everything but ``refused``, and notes what each read brought."""

    def __init__(self, refused: bytes = b"never") -> None:
        self.refused = refused
        self.reads: list[bytes] = []
        self.connections = self.messages = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        # A client that was refused has closed its end.
        with suppress(OSError), sock, sock.makefile("rb") as lines:
            sock.sendall(b"220 peer\r\n")
            in_data = False
            group: list[bytes] = []
            for line in lines:
                if in_data:
                    in_data = line != b".\r\n"
                    self.messages += not in_data
                    if not in_data:
                        sock.sendall(b"250 2.0.0 ok\r\n")
                    continue
                group.append(line[:4])
                if line.startswith(self.refused):
                    sock.sendall(b"550 5.7.1 no\r\n")
                    return
                in_data = line.startswith(b"DATA")
                if line.startswith((b"MAIL", b"RCPT")) and self._pipelining:
                    continue
                if group[-3:] == [b"MAIL", b"RCPT", b"DATA"] and self._pipelining:
                    sock.sendall(b"250 ok\r\n250 ok\r\n")
                sock.sendall(b"354 go\r\n" if in_data else b"250-peer\r\n250 more\r\n")

    _pipelining = False

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def _plan(messages: int, **more: Any) -> Any:
    options = {"reuse": True, "pipelined": False, "tls": False, "login": False, **more}
    return load.Plan(messages, b"Subject: x\r\n\r\nx\r\n.\r\n", "a@b.test", "c@d.test", **options)


@pytest.mark.parametrize(("reuse", "connections"), [(True, 3), (False, 10)])
def test_all_messages_are_sent_over_so_many_connections(peer: Peer, reuse: bool, connections: int) -> None:
    assert load.run(_plan(10, reuse=reuse), peer.port, 3) > 0
    assert (peer.messages, peer.connections) == (10, connections)


def test_pipelined_commands_wait_for_no_reply_before_data(peer: Peer) -> None:
    # This peer answers MAIL and RCPT only when DATA is there.
    peer._pipelining = True
    load.run(_plan(6, pipelined=True), peer.port, 2)
    assert peer.messages == 6


def test_the_first_refusal_ends_the_load(peer: Peer) -> None:
    peer.refused = b"RCPT"
    with pytest.raises(load.Refused, match=r"550 5\.7\.1 no"):
        load.run(_plan(6), peer.port, 2)


def test_what_others_use_is_a_part_of_the_machine() -> None:
    assert 0.0 <= busy.Others().share() <= 1.0


# What is published


def _run(part: str, scenario: str, server: str, rate: float, number: int, others: float = 0.0) -> Any:
    return {
        "part": part, "scenario": scenario, "server": server, "rate": rate, "cpu": 100 / rate,
        "behind": 0.0, "memory": 2**26, "others": others, "round": number,
    }  # fmt: skip


def _account(workers: int, number: int, rate: float, cpu: float, others: float = 0.0) -> Any:
    return {
        "part": "workers", "scenario": "new", "words": "new", "server": f"{workers} workers", "round": number,
        "workers": workers, "rate": rate, "seconds": 1.0, "cpu": cpu, "supervisor": 0.2, "load": 0.1,
        "others": others,
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, Any]:
    names = {"Elemta": "Elemta", "Postfix, tuned": "Postfix", "a <b> & c": "c"}
    rates = {"Elemta": (3000.0, 1000.0, 2000.0), "Postfix, tuned": (1000.0, 1000.0, 1000.0)}
    runs = [
        _run(part, "new", server, rate, number)
        for part in ("accept", "relay")
        for server, each in rates.items()
        for number, rate in enumerate(each)
    ]
    runs.append(_run("accept", "new", "a <b> & c", 5.0, 0))
    return {
        "machine": {"CPU": "two cores"}, "at": "1 January 2026", "rounds": 3, "quick": False,
        "skipped": ["Haraka: there is no npm"], "short": names, "runs": runs,
        "words": {part: {"new": "new <connections>"} for part in ("accept", "relay")},
        "idle": [{"part": "idle", "scenario": "5000", "server": "Elemta", "sessions": 5000, "octets": 4000.0,
                  "seconds": 2.0, "others": 0.0}],
        "queue": [{"part": "queue", "scenario": "10", "server": "Elemta", "messages": 10, "start": 1.0,
                   "list": 0.1, "memory": 2**26, "drain": 900.0, "others": 0.0}],
        "workers": [
            _account(1, 0, 1000.0, 0.8), _account(2, 0, 1500.0, 1.0), _account(2, 1, 1800.0, 0.8),
            _account(1, 1, 1000.0, 0.8),
        ],
        "calls": {"connections reused": 2128.0},
        "limits": [{"part": "limits", "scenario": "one", "server": "Elemta", "words": "one", "in flight": 64,
                    "rate": 28757.0, "cpu us": 22.9, "p50 ms": 2.16, "p99 ms": 3.0, "others": 0.0}],
    }  # fmt: skip


def test_a_table_has_medians_and_the_ratio_of_each_round(results: dict[str, Any]) -> None:
    text = pictures.page(results, "performance")
    assert "| new <connections> | 2,000 | 1,000 | 5 |" in text
    assert "| new <connections> | Elemta | 2.00 | 3.00 1.00 2.00 |" in text
    assert "- Haraka: there is no npm" in text
    for words in (
        "| 5,000 | 4,000 | 2.0 |",
        "| 10 | 1.0 | 0.10 | 64 | 900 |",
        "| one | 64 | 28,757 |",
        "2,128",
    ):
        assert words in text
    assert "busy" not in text
    assert "Other programs" not in text


def test_workers_are_compared_by_rate_and_by_cpu_within_a_round(results: dict[str, Any]) -> None:
    text = pictures.page(results, "performance")
    assert "| new | 1 | 1,000 | 0.80 | - | 0.10 | 0.80 | 0.10 | 1,250 |" in text
    assert "| new | 2 | 1,650 | 0.90 | 0.20 | 0.10 | 1.49 | 0.17 | 1,111 |" in text
    assert "| new | 2 | 1.65 | 1.50 1.80 | 1.80 | 1.60 2.00 |" in text
    # What an earlier suite kept has none.
    del results["workers"]
    assert "Workers" not in pictures.page(results, "performance")


def test_all_servers_and_scenarios_fit_into_the_page_and_have_their_colours(results: dict[str, Any]) -> None:
    results["short"] = contenders.SHORT
    results["words"] = {part: {each.name: each.words for each in some} for part, some in suite.WORDS.items()}
    results["runs"] = [
        _run(part, each.name, server, 9876.5, 0)
        for part, some in suite.WORDS.items()
        for each in some
        for server in contenders.SHORT
    ]
    text = pictures.page(results, "performance")
    assert max(map(len, text.splitlines())) <= 110
    picture = pictures.picture(results, "accept", "rate", "all")
    fills = [each.get("fill") for each in ElementTree.fromstring(picture).iter() if each.get("fill")]
    assert len(set(fills)) == len(contenders.SHORT) + 1
    assert {kind.name for kind in contenders.ALL} == set(contenders.SHORT)


def test_a_picture_is_xml_whatever_a_server_is_called(results: dict[str, Any]) -> None:
    root = ElementTree.fromstring(pictures.picture(results, "accept", "rate", "a & b"))
    texts = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "new <connections>", "a <b> & c", "2,000"} <= set(texts)


def _written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]) -> tuple[int, Path]:
    page, saved = tmp_path / "performance.md", tmp_path / "run.json"
    page.write_text(f"# Before\n\n{pictures.BEGIN}\nold\n{pictures.END}\n\n## Behind\n")
    saved.write_text(json.dumps(results))
    monkeypatch.setattr(suite, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["suite", "--from", str(saved), "--write"])
    return suite.main(), page


def test_a_run_is_written_between_the_marks_and_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]
) -> None:
    for _ in range(2):
        code, page = _written(tmp_path, monkeypatch, results)
        assert code == 0
    text = page.read_text()
    assert text.startswith("# Before\n\n<!--")
    assert text.endswith("-->\n\n## Behind\n")
    assert "old" not in text
    for name in ("accept", "accept-cpu", "relay", "relay-cpu"):
        assert f"(performance/{name}.svg)" in text
        ElementTree.parse(tmp_path / "performance" / f"{name}.svg")


def test_a_part_that_was_not_run_has_no_table_and_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]
) -> None:
    results["runs"] = [run for run in results["runs"] if run["part"] == "accept"]
    results["scale"] = 0.5
    code, page = _written(tmp_path, monkeypatch, results)
    assert code == 0
    assert "Relayed" not in page.read_text()
    assert "Each scenario had 0.5 times its messages." in page.read_text()
    assert sorted(path.name for path in (tmp_path / "performance").iterdir()) == [
        "accept-cpu.svg",
        "accept.svg",
    ]


@pytest.mark.parametrize("what", ["busy", "busy with limits", "busy with workers", "quick"])
def test_nothing_is_written_of_a_busy_machine_or_a_quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any], what: str
) -> None:
    if what == "quick":
        results["quick"] = True
    elif what == "busy with limits":
        results["limits"][0]["others"] = 0.2
    elif what == "busy with workers":
        results["workers"][0]["others"] = 0.2
    else:
        results["runs"].append(_run("relay", "new", "Elemta", 10.0, 3, others=0.2))
    code, page = _written(tmp_path, monkeypatch, results)
    assert code == 3
    assert "old" in page.read_text()
    assert not (tmp_path / "performance").exists()


def test_the_page_has_the_place_for_the_figures() -> None:
    text = suite.PAGE.read_text(encoding="utf-8")
    assert text.index(pictures.BEGIN) < text.index(pictures.END)
