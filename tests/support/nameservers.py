"""DNS servers for tests: Debian's NSD with zones of the test's own, and one that says what the test wants."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from tests.support.places import HERE, Place

_ZONE = """$ORIGIN {name}.
$TTL 300
@ SOA ns.{name}. hostmaster.{name}. 1 3600 600 86400 60
@ NS ns.{name}.
ns A {address}
"""

_SERVER = """
server:
  ip-address: {address}@{port}
  username: ""
  database: ""
  pidfile: "{directory}/nsd.pid"
  zonesdir: "{directory}"
  zonelistfile: "{directory}/zone.list"
  xfrdfile: "{directory}/xfrd.state"
  xfrdir: "{directory}"
  server-count: 1
remote-control:
  control-enable: no
"""


def free_dns_port() -> int:
    """A port of 127.0.0.1 that is free for UDP and TCP."""
    while True:
        with (
            socket.socket(type=socket.SOCK_DGRAM) as udp,
            socket.socket(type=socket.SOCK_STREAM) as tcp,
            contextlib.suppress(OSError),
        ):
            udp.bind(("127.0.0.1", 0))
            port = int(udp.getsockname()[1])
            tcp.bind(("127.0.0.1", port))
            return port


def nsd_program() -> str:
    """Where NSD is; skips the test without it, or fails it where everything has to be there."""
    path = shutil.which("nsd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if path is not None:
        return path
    if os.environ.get("CI"):
        pytest.fail("nsd is not installed, and CI has to have it", pytrace=False)
    pytest.skip("nsd is not installed")


class Nsd:
    """A real authoritative server, on a free port of 127.0.0.1 unless a ``place`` and an address are given.

    ``zones`` are the records of each zone, behind an SOA (negative answers hold for 60 seconds) and an NS;
    for a zone of ``broken`` it says SERVFAIL, for all others REFUSED.
    """

    def __init__(
        self,
        directory: Path,
        zones: Mapping[str, str],
        broken: tuple[str, ...] = (),
        *,
        place: Place = HERE,
        address: tuple[str, int] | None = None,
    ) -> None:
        self._program = nsd_program()
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._place = place
        self.address = address or ("127.0.0.1", free_dns_port())
        host, self.port = self.address
        self._process: subprocess.Popen[bytes] | None = None
        configuration = _SERVER.format(address=host, port=self.port, directory=directory)
        for name in (*zones, *broken):
            configuration += f'zone:\n  name: "{name}"\n  zonefile: "{name}.zone"\n'
        for name, records in zones.items():
            (directory / f"{name}.zone").write_text(_ZONE.format(name=name, address=host) + records + "\n")
        (directory / "nsd.conf").write_text(configuration)

    def start(self) -> Nsd:
        output = self._directory / "nsd.log"
        with output.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._place.prefix, self._program, "-d", "-c", str(self._directory / "nsd.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"NSD does not start:\n{output.read_text()}")
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(timeout=90)

    def _answers(self) -> bool:
        query = dns.message.make_query("ready.invalid", "A")
        try:
            return self._place.call(lambda: self._ask(query).rcode()) == dns.rcode.REFUSED
        except (OSError, dns.exception.DNSException):
            return False

    def _ask(self, query: dns.message.Message) -> dns.message.Message:
        host, port = self.address
        return dns.query.udp(query, host, 0.5, port)


Answer = Callable[[dns.message.Message, str], "bytes | dns.message.Message | None"]


class ScriptedNameserver:
    """Says what ``answer`` returns for a question that came over ``"udp"`` or ``"tcp"``; None is silence.

    ``asked`` is what it heard: over what, the name, and whether with EDNS.
    """

    def __init__(self, answer: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        self._answer = answer
        self.asked: list[tuple[str, str, bool]] = []
        self.faults: list[Exception] = []
        self.address = (host, port or free_dns_port())
        self._udp = socket.socket(type=socket.SOCK_DGRAM)
        self._udp.bind(self.address)
        self._tcp = socket.create_server(self.address)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> ScriptedNameserver:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join()
        for sock in (self._udp, self._tcp, self._stopped):
            sock.close()
        assert not self.faults

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._udp, self._tcp, self._stopped], [], [])
            try:
                if self._stopped in ready:
                    return
                if self._udp in ready:
                    self._serve_udp()
                if self._tcp in ready:
                    self._serve_tcp()
            except ConnectionError:
                continue
            except Exception as fault:  # the test shall see it
                self.faults.append(fault)

    def _serve_udp(self) -> None:
        data, peer = self._udp.recvfrom(65535)
        answer = self._answer_to(data, "udp")
        if answer is not None:
            self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        sock, _ = self._tcp.accept()
        with sock:
            sock.settimeout(30)
            (length,) = struct.unpack("!H", sock.recv(2, socket.MSG_WAITALL))
            answer = self._answer_to(sock.recv(length, socket.MSG_WAITALL), "tcp")
            if answer is not None:
                sock.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer_to(self, data: bytes, over: str) -> bytes | None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text(omit_final_dot=True)
        self.asked.append((over, name, query.edns >= 0))
        answer = self._answer(query, over)
        return answer.to_wire() if isinstance(answer, dns.message.Message) else answer


def reply(query: dns.message.Message, *answers: str, rcode: str = "NOERROR") -> dns.message.Message:
    """A reply with these records, each as in a zone file: ``"a.test. 60 IN A 192.0.2.1"``."""
    text = dns.message.make_response(query).to_text()
    whole = dns.message.from_text(text.replace(";ANSWER", "\n".join((";ANSWER", *answers)), 1))
    whole.id = query.id
    whole.set_rcode(dns.rcode.from_text(rcode))
    return whole
