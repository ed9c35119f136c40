"""The servers of the suite: Elemta with several chains, Postfix as it is shipped, aiosmtpd, and the floor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load import PASSWORD
from servers import DOMAIN, ElemtaServer, PostfixServer, Server, Sink, free_port
from valkeys import ValkeyServer, server_program

ROOT = Path(__file__).resolve().parents[1]
NAMESERVER = "127.0.0.78"
AIOSMTPD = ROOT / ".venv-bench" / "bin" / "python"
NODE_MODULES = ROOT / ".venv-bench" / "npm" / "node_modules"
USER = f"sender@{DOMAIN}"
TLS_SERVICE = "tlsmgr    unix       - - n 1000? 1 tlsmgr\n"


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate with its key, in one file."""
    key, certificate, both = (directory / name for name in ("key.pem", "certificate.pem", "both.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "100", "-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN}"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    both.touch(mode=0o600)
    both.write_text(key.read_text() + certificate.read_text())
    return both


class SuiteElemta(ElemtaServer):
    """Elemta with the default chain, TLS, and a listener for users."""

    chain = '"limits", "relay"'
    tables = ""
    resources = ""

    def __init__(self, directory: Path, next_hop: int | None = None) -> None:
        super().__init__(directory, next_hop)
        self._users = free_port()

    def configuration(self) -> str:
        common = super().configuration().replace("[resources]", f"[resources]\n{self.resources}")
        return f"""{common}
[tls]
certificate = "{make_certificate(self.directory)}"
[auth]
checkers = ["elemta-users:{self.directory}/users"]
[[listener]]
name = "users"
role = "submission"
endpoint = "tcp:{self._users}:interface=127.0.0.1"
[policies]
chain = [{self.chain}]
{self.tables}
"""

    def start(self) -> None:
        elemtactl = self.python.with_name("elemtactl")
        users = self.directory / "users"
        users.touch(mode=0o600)
        command = [str(elemtactl), "user", "add", "--file", str(users), "--password-stdin", USER]
        subprocess.run(command, input=f"{PASSWORD}\n", text=True, check=True, capture_output=True)
        super().start()

    def port_for(self, *, login: bool) -> int:
        return self._users if login else self.port


class IdleElemta(SuiteElemta):
    """Elemta that takes as many sessions as a process may have files open."""

    name = "Elemta, many sessions"

    def configuration(self) -> str:
        text = super().configuration()
        text = text.replace("max_connections_per_ip = 1000", "max_connections_per_ip = 100000")
        return text.replace("[resources]", "[resources]\nmax_connections = 25000", 1)


def with_workers(number: int) -> type[SuiteElemta]:
    """Elemta with so many processes that receive mail."""

    class Workers(SuiteElemta):
        name = f"Elemta, {number} workers" if number > 1 else "Elemta"

        def configuration(self) -> str:
            return super().configuration().replace("[server]", f"[server]\nworkers = {number}", 1)

    return Workers


WorkersElemta = with_workers(2)


class ValkeyElemta(SuiteElemta):
    """Elemta whose limits count in a Valkey of its own: connections, and messages of a sender."""

    name = "Elemta, limits in Valkey"
    tables = """
[[limit]]
name = "mail-per-sender"
per = ["sender"]
counts = "messages"
rates = ["10000000/1m"]
[[limit]]
name = "recipients-per-client"
per = ["ip"]
counts = "recipients"
rates = ["10000000/1m"]
"""

    def start(self) -> None:
        self._valkey = ValkeyServer(self.directory)
        self._valkey.start()
        self.resources = f'valkey_url = "{self._valkey.url}"'
        super().start()

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._valkey.stop()

    def pids(self) -> tuple[int, ...]:
        return (self.pid(), self._valkey.pid())


class EdgeElemta(SuiteElemta):
    """Elemta with the chain of ``etc/elemta-edge.toml``, without its scanners, which are other programs."""

    name = "Elemta, edge chain"
    chain = '"limits", "dnsbl", "reverse-dns", "greylist", "relay", "mail-auth"'
    tables = """
[[policy.dnsbl.zone]]
name = "list.test"
weight = 5
[policy.reverse-dns]
require = ["sender_domain"]
[policy.greylist]
pass_with = ["spf"]
[policy.mail-auth]
dmarc = "enforce"
timeout = "20s"
"""

    def start(self) -> None:
        (self.directory / "resolv.conf").write_text(f"nameserver {NAMESERVER}\n")
        script = f'mount --bind {self.directory}/resolv.conf /etc/resolv.conf && exec "$0" "$@"'
        self.prefix = ("unshare", "--mount", "sh", "-c", script)
        super().start()


@contextmanager
def name_server(directory: Path) -> Iterator[None]:
    """The name server that the edge chain asks."""
    sys.path.insert(0, str(ROOT))
    from tests.support.nameservers import Nsd  # noqa: PLC0415 - needs the tree

    zones = {
        DOMAIN: '@ A 127.0.0.1\n@ TXT "v=spf1 ip4:127.0.0.0/8 -all"\n_dmarc TXT "v=DMARC1; p=reject"\n',
        "list.test": "",
        "127.in-addr.arpa": f"1.0.0 PTR {DOMAIN}.\n1.1.0 PTR {DOMAIN}.\n",
    }
    server = Nsd(directory, zones, address=(NAMESERVER, 53)).start()
    try:
        yield
    finally:
        server.stop()


class TunedPostfix(PostfixServer):
    """The Postfix of the other benchmarks, with TLS."""

    name = "Postfix, tuned"
    SERVICES = f"{PostfixServer.SERVICES}{TLS_SERVICE}"

    def settings(self) -> str:
        return tls_of_postfix(self.SETTINGS, self.directory)


class ShippedPostfix(PostfixServer):
    """Postfix with the settings that it comes with; it is not in a chroot, and logs to a file."""

    name = "Postfix, as shipped"
    SERVICES = f"{PostfixServer.SERVICES.replace('{processes} smtpd', '- smtpd')}{TLS_SERVICE}"
    CHANGED = f"{PostfixServer.PLACES}smtpd_tls_security_level = none\n{{way}}\n"
    RELAY = "mydestination =\nrelayhost = [127.0.0.1]:{port}\nsmtp_tls_security_level = none\n"

    def settings(self) -> str:
        return tls_of_postfix(self.CHANGED, self.directory)


def tls_of_postfix(settings: str, directory: Path) -> str:
    """With the certificate in a file that the servers of Postfix read before they give up root."""
    certificate = make_certificate(directory)
    files = f"smtpd_tls_security_level = may\nsmtpd_tls_chain_files = {certificate}"
    return settings.replace("smtpd_tls_security_level = none", files)


class FileServer(Server):
    """One that writes each message to a file of its own, and syncs it before it answers."""

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """What is started."""

    def start(self) -> None:
        self._store = self.directory / "store"
        self._store.mkdir()
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, "STORE": str(self._store), "NODE_PATH": str(NODE_MODULES)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_until_serving()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def pid(self) -> int:
        return self._process.pid

    def held(self) -> tuple[int, int]:
        return len(os.listdir(self._store)), 0


class Aiosmtpd(FileServer):
    """aiosmtpd of PyPI."""

    name = "aiosmtpd"

    @property
    def command(self) -> list[str]:
        program = Path(__file__).with_name("aiosmtpd_server.py")
        return [str(AIOSMTPD), str(program), str(self.port), str(self._store)]


class Haraka(FileServer):
    """Haraka of npm, in one process, without its usual plugins."""

    name = "Haraka"

    @property
    def command(self) -> list[str]:
        config, plugins = self.directory / "config", self.directory / "plugins"
        shutil.copytree(NODE_MODULES / "Haraka" / "config", config)
        plugins.mkdir()
        shutil.copy(Path(__file__).with_name("haraka_store.js"), plugins / "store.js")
        for name, text in {
            "smtp.ini": f"listen=127.0.0.1:{self.port}\nnodes=0\n",
            "plugins": "store\n",
            "databytes": "104857600\n",
            "me": f"{DOMAIN}\n",
            "loglevel": "LOGNOTICE\n",
        }.items():
            (config / name).write_text(text)
        return ["node", str(NODE_MODULES / "Haraka" / "bin" / "haraka"), "-c", str(self.directory)]


class Floor(Sink):
    """smtp-sink: takes everything, keeps nothing."""

    name = "smtp-sink (keeps nothing)"


ELEMTA = (SuiteElemta, WorkersElemta, ValkeyElemta, EdgeElemta)
ALL: tuple[type[Server], ...] = (*ELEMTA, TunedPostfix, ShippedPostfix, Aiosmtpd, Haraka, Floor)
#: Short names, for columns.
SHORT = {
    SuiteElemta.name: "Elemta",
    WorkersElemta.name: "2 workers",
    ValkeyElemta.name: "in Valkey",
    EdgeElemta.name: "edge",
    TunedPostfix.name: "Postfix",
    ShippedPostfix.name: "as shipped",
    Aiosmtpd.name: "aiosmtpd",
    Haraka.name: "Haraka",
    Floor.name: "smtp-sink",
}


#: They get fewer messages, so that a run of theirs takes no minutes.
SLOW = (ShippedPostfix, Aiosmtpd, Haraka)
SLOWER = 0.3


def present() -> tuple[list[type[Server]], list[str]]:
    """The servers that can be run here, and why the others can't."""
    missing: dict[type[Server], str] = {}
    root = os.geteuid() == 0
    for kind in (TunedPostfix, ShippedPostfix):
        if shutil.which("postfix") is None:
            missing[kind] = "postfix is not installed"
        elif not root:
            missing[kind] = "Postfix's master needs root"
    if shutil.which("smtp-sink") is None:
        missing[Floor] = "smtp-sink is not installed (Debian: postfix)"
    if not AIOSMTPD.exists():
        missing[Aiosmtpd] = "aiosmtpd is not installed: run `make .venv-bench/.done`"
    if server_program() is None:
        missing[ValkeyElemta] = "valkey-server is not installed"
    if not root or shutil.which("nsd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        missing[EdgeElemta] = "the edge chain needs root and nsd, for a resolver of its own"
    if not (NODE_MODULES / "Haraka").is_dir():
        missing[Haraka] = "it is not installed: `make .venv-bench/.done` does that where there is npm"
    skipped = [f"{kind.name}: {reason}" for kind, reason in missing.items()]
    return [kind for kind in ALL if kind not in missing], skipped
