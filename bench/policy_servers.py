"""The servers that bench/policy_service asks, each with one limit per user, on a directory of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from servers import START_SECONDS, BenchError, end, free_port
from valkeys import ValkeyServer

LIMIT, WINDOW = 1000, 3600
"""At most so many recipients in so many seconds, of each user."""


class PolicyServer(ABC):
    """One server: how it is started, how it is asked about a user, and what its answer means."""

    name: str
    words: str
    programs: tuple[str, ...] = ()
    keeps_connections = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def pids(self) -> list[int]:
        """The processes whose CPU counts, each with its descendants."""

    def request(self, number: int, user: str) -> bytes:
        """A question as Postfix 3.7 asks it at RCPT."""
        return _QUESTION.format(number=number, user=user, address=number % 250 + 1).encode()

    def answer(self, data: bytes) -> bool | None:
        """Whether it passes; None where the answer is not whole yet."""
        if not data.endswith(b"\n\n"):
            return None
        action = data.partition(b"action=")[2].lower()
        return action.startswith((b"dunno", b"ok"))

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), self.connect():
                return
            time.sleep(0.05)
        raise BenchError(f"{self.name} does not listen; its log is in {self.directory}")


class OneProcess(PolicyServer):
    """One that stays in the foreground."""

    _process: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str]) -> None:
        """Start it, and wait until it listens."""
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait_until_serving()

    def stop(self) -> None:
        if self._process is not None:
            end(self._process)

    def pids(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]


class Elemta(OneProcess):
    name = "Elemta"
    words = "Elemta, in Valkey"

    def start(self) -> None:
        self._valkey = ValkeyServer(self.directory)
        self._valkey.start()
        config = self.directory / "elemta.toml"
        config.write_text(
            f"""
listener = []
[server]
hostname = "bench.test"
[resources]
max_requests_per_window = 0
valkey_url = "{self._valkey.url}"
[[policy_service]]
name = "postfix"
endpoint = "tcp:{self.port}:interface=127.0.0.1"
[[limit]]
name = "recipients-per-user"
per = ["user"]
counts = "recipients"
rates = ["{LIMIT}/{WINDOW}s"]
[spool]
directory = "{self.directory}/spool"
[metrics]
endpoint = ""
[console]
endpoint = ""
"""
        )
        twistd = Path(sys.executable).with_name("twistd")
        self.run([sys.executable, str(twistd), "-n", "--pidfile=", "elemta", "--config", str(config)])
        self._wait_until_joined()

    def _wait_until_joined(self) -> None:
        """Valkey counts, and not this process alone."""
        deadline = time.monotonic() + START_SECONDS
        with self.connect() as client, self._valkey.client() as valkey:
            while time.monotonic() < deadline:
                client.sendall(self.request(0, "probe"))
                while self.answer(client.recv(65536)) is None:
                    pass
                if valkey.call("EXISTS", "elemta:ratelimit:recipients-per-user:probe~"):
                    return
                time.sleep(0.1)
        raise BenchError(f"Elemta does not count in Valkey; its log is in {self.directory}")

    def stop(self) -> None:
        super().stop()
        self._valkey.stop()


class RateLimit(OneProcess):
    name = "policyd-rate-limit"
    words = "policyd-rate-limit, in SQLite"
    programs = ("policyd-rate-limit",)

    def start(self) -> None:
        config = self.directory / "policyd.yaml"
        config.write_text(
            f"""
debug: False
user: "{_user()}"
group: "{_user()}"
pidfile: "{self.directory}/pid"
sqlite_config:
    database: "{self.directory}/db.sqlite3"
backend: 0
SOCKET: ["127.0.0.1", {self.port}]
socket_permission: 0666
limits:
    - [{LIMIT}, {WINDOW}]
limits_by_id: {{}}
limit_by_sasl: True
limit_by_sender: False
limit_by_ip: False
limited_networks: []
success_action: "dunno"
fail_action: "defer_if_permit rate limit reached"
db_error_action: "dunno"
report: False
report_from: null
report_to: null
report_subject: ""
report_limits: [86400]
report_only_if_needed: True
smtp_server: ["localhost", 25]
smtp_starttls: False
smtp_credentials: null
delay_to_close: 300
"""
        )
        self.run(["policyd-rate-limit", "--file", str(config)])


class Postfwd(PolicyServer):
    """postfwd2 keeps the counts in the memory of one process that its servers ask."""

    name = "postfwd"
    words = "postfwd2, in memory"
    programs = ("postfwd2",)

    def start(self) -> None:
        rules = self.directory / "postfwd.cf"
        rules.write_text(
            f"id=R; sasl_username=~.+; action=rate(sasl_username/{LIMIT}/{WINDOW}/450 4.7.1 too many)\n"
            "id=D; action=DUNNO\n"
        )
        self._pid_file = self.directory / "pid"
        command = [
            "postfwd2", "-d", "-f", str(rules), "-i", "127.0.0.1", "-p", str(self.port), "--nodns",
            "--pidfile", str(self._pid_file), "--cache", "0", "-u", _user(), "-g", _user(),
            "--cache_socket", f"unix::{self.directory}/cache",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
        self.wait_until_serving()

    def stop(self) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(self._pid_file.read_text()), signal.SIGTERM)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                self.connect().close()
            except OSError:
                return
            time.sleep(0.05)
        raise BenchError("postfwd does not stop")

    def pids(self) -> list[int]:
        return [int(self._pid_file.read_text())]


class Rspamd(OneProcess):
    """rspamd has no policy protocol: it is asked over HTTP about a message, with its other modules off."""

    name = "rspamd"
    words = "rspamd ratelimit, in Valkey, a message over HTTP"
    programs = ("rspamd",)
    keeps_connections = False

    def start(self) -> None:
        self._socket = self.directory / "rspamd.sock"
        self._valkey_port = free_port()
        # rspamd asks over TCP.
        self._valkey = ValkeyServer(self.directory, "--port", str(self._valkey_port), "--bind", "127.0.0.1")
        self._valkey.start()
        config = self.directory / "rspamd.conf"
        config.write_text(
            f"""
{_RSPAMD_DISABLED}
.include "$CONFDIR/common.conf"
options {{
    pidfile = "{self.directory}/rspamd.pid";
    dns {{ nameserver = ["127.0.0.1:{free_port()}"]; timeout = 0.1s; retransmits = 1; }}
    filters = "";
    disable_hyperscan = true;
    tempdir = "{self.directory}";
    control_socket = "{self.directory}/control.sock mode=0600";
    .include "$CONFDIR/options.inc"
}}
logging {{ type = "console"; level = "error"; }}
worker "normal" {{ bind_socket = "{self._socket} mode=0666"; count = 1; }}
redis {{ servers = "127.0.0.1:{self._valkey_port}"; }}
ratelimit {{
    max_rate_mult = 1; max_bucket_mult = 1;
    rates {{ per_user = {{ selector = "user"; bucket = {{ burst = {LIMIT}; rate = "{LIMIT} / 1h"; }} }} }}
}}
"""
        )
        variables = [
            f"--var={name}={self.directory}" for name in ("DBDIR", "RUNDIR", "LOGDIR", "LOCAL_CONFDIR")
        ]
        user = []
        if os.geteuid() == 0:
            shutil.chown(self.directory, "_rspamd", "_rspamd")
            user = ["-u", "_rspamd", "-g", "_rspamd"]
        self.run(["rspamd", "-f", "-c", str(config), *variables, *user])

    def stop(self) -> None:
        super().stop()
        self._valkey.stop()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(self._socket))
        return client

    def request(self, number: int, user: str) -> bytes:
        body = f"Subject: {number}\r\nFrom: {user}@example.org\r\n\r\ntext\r\n"
        return (
            f"POST /checkv2 HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\nUser: {user}\r\n"
            f"IP: 192.0.2.{number % 250 + 1}\r\nFrom: {user}@example.org\r\nRcpt: bert@example.com\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def answer(self, data: bytes) -> bool | None:
        head, found, body = data.partition(b"\r\n\r\n")
        if not found:
            return None
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        return None if len(body) < length else b'"soft reject"' not in body


SERVERS: tuple[type[PolicyServer], ...] = (Elemta, RateLimit, Postfwd, Rspamd)

_QUESTION = """request=smtpd_access_policy
protocol_state=RCPT
protocol_name=ESMTP
client_address=192.0.2.{address}
client_name=client.example.org
client_port=40000
reverse_client_name=client.example.org
server_address=192.0.2.1
server_port=587
helo_name=client.example.org
sender={user}@example.org
recipient=bert@example.com
recipient_count=0
queue_id=
instance=bench.{number}
size=12345
etrn_domain=
stress=
sasl_method=PLAIN
sasl_username={user}
sasl_sender=
ccert_subject=
ccert_issuer=
ccert_fingerprint=
ccert_pubkey_fingerprint=
encryption_protocol=TLSv1.3
encryption_cipher=TLS_AES_256_GCM_SHA384
encryption_keysize=256
policy_context=

"""

# All but the one that is measured.
_RSPAMD_MODULES = (
    "rbl", "surbl", "asn", "dmarc", "spf", "dkim", "arc", "phishing", "fuzzy_check", "mx_check", "hfilter",
    "rspamd_update", "bayes_expiry", "url_redirector", "dcc", "p0f", "greylist", "history_redis", "chartable",
    "once_received", "whitelist", "mime_types", "mid", "reputation", "neural", "bimi", "dkim_signing",
    "forged_recipients", "maillist", "multimap", "replies", "trie", "emails", "external_services",
    "force_actions", "milter_headers", "metadata_exporter", "settings", "spamassassin", "antivirus",
    "elastic", "clickhouse", "known_senders", "aws_s3", "ip_score",
)  # fmt: skip
_RSPAMD_DISABLED = "".join(f"{name} {{ enabled = false; }}\n" for name in _RSPAMD_MODULES)


def _user() -> str:
    """These daemons want one, and the benchmark does not change its own."""
    return pwd.getpwuid(os.geteuid()).pw_name
