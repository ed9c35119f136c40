"""One node loses Valkey while the others keep it: what passes then, and what when it is back."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.crowd import burst, new_client
from tests.cluster.fleet import CLUSTER, LOCAL, NODES, Fleet, Node, until
from tests.support.valkey import ValkeyServer

LIMIT = 30
RESOURCES: dict[str, int | str] = {
    "max_connections": 1000,
    "max_connections_per_ip": 500,
    "rate_limit_window": 600,
    "max_requests_per_window": LIMIT,
    # With a long one a machine that stumbles changes no exact count.
    "valkey_deadline": "2s",
}


class Cable:
    """A way to a port on 127.0.0.1 that can be cut: what goes over it breaks, and nothing gets through."""

    def __init__(self, to_port: int) -> None:
        self._to = ("127.0.0.1", to_port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        self._whole = True
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._let_in)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        with self._lock:
            self._whole = False
            ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def mend(self) -> None:
        with self._lock:
            self._whole = True

    def _run(self, what: object, *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                with self._lock:
                    if not self._whole:
                        near.close()
                        continue
                    far = socket.create_connection(self._to, timeout=10)
                    far.settimeout(None)
                    self._ends += [near, far]
                self._run(self._carry, near, far)
                self._run(self._carry, far, near)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def test_a_node_that_alone_is_cut_off_from_valkey_adds_no_more_than_its_share(
    tmp_path: Path, own_valkey: ValkeyServer
) -> None:
    with Cable(own_valkey.port) as cable:
        fleet = Fleet(tmp_path, own_valkey.url, resources=RESOURCES)
        fleet.nodes[2] = Node(
            tmp_path / "far", f"valkey://127.0.0.1:{cable.port}/0", name="far", resources=RESOURCES
        )
        with fleet:
            fleet.introduce()
            together, far = fleet.ports()[:2], fleet.ports()[2:]
            cable.cut()
            until(lambda: fleet.nodes[2].mode == LOCAL, "the far node alone", words=fleet.nodes[2].troubles)

            client = new_client()
            assert sum(visit.passed for visit in burst(together, [client] * 2 * LIMIT)) == LIMIT
            assert sum(visit.passed for visit in burst(far, [client] * LIMIT)) == LIMIT // NODES

            cable.mend()
            fleet.wait_for_mode(CLUSTER)
            # What is counted is Valkey's again: a client above its limit there is above it here.
            assert not any(visit.passed for visit in burst(far, [client] * 5))
            other = new_client()
            assert sum(visit.passed for visit in burst(fleet.ports(), [other] * 3 * LIMIT)) == LIMIT
            assert fleet.faults() == []
