"""Debian's mail filters, each with a configuration of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.interop.programs import Server, free_port, wait_until

_BEYOND_PATH = ("/usr/sbin", "/sbin")


def filter_program(name: str) -> str:
    """The path of a filter; without it the test is skipped, in CI too, which installs no filters."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_BEYOND_PATH)))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def listens(port: int) -> bool:
    """Whether a server takes connections on this port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except OSError:
        return False
    return True


class Clamd:
    """clamd with a signature database of the test's own."""

    def __init__(
        self, directory: Path, *, patterns: dict[str, bytes], hashes: Sequence[str] = (), more: str = ""
    ) -> None:
        self._program = filter_program("clamd")
        self._directory = directory
        database = directory / "database"
        database.mkdir(parents=True)
        lines = [f"{name}:0:*:{pattern.hex()}\n" for name, pattern in patterns.items()]
        (database / "test.ndb").write_text("".join(lines))
        if hashes:
            (database / "test.hdb").write_text("".join(f"{line}\n" for line in hashes))
        self.socket = directory / "clamd.ctl"
        self.endpoint = f"unix:{self.socket}"
        (directory / "clamd.conf").write_text(
            f"LocalSocket {self.socket}\nDatabaseDirectory {database}\nForeground yes\nScanMail yes\n"
            f"FixStaleSocket yes\nMaxThreads 2\n{more}"
        )
        self._server = Server("clamd", directory / "clamd.log")

    def start(self) -> Clamd:
        configuration = f"--config-file={self._directory / 'clamd.conf'}"
        self._server.run(self._program, configuration, ready=self._answers)
        return self

    def stop(self) -> None:
        self._server.stop()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(str(self.socket))
                sock.sendall(b"zPING\0")
                return sock.recv(16).startswith(b"PONG")
        except OSError:
            return False


class OpenDKIM:
    """OpenDKIM as a milter that signs what comes from this host."""

    def __init__(self, directory: Path, *, domain: str, selector: str, canonicalization: str) -> None:
        self._program = filter_program("opendkim")
        directory.mkdir(parents=True)
        self._directory = directory
        self.port = free_port()
        self.endpoint = f"tcp:host=127.0.0.1:port={self.port}"
        key = directory / "key.pem"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        key.chmod(0o600)
        public = subprocess.run(
            ["openssl", "rsa", "-in", str(key), "-pubout"], check=True, capture_output=True, text=True
        )
        content = "".join(line for line in public.stdout.splitlines() if not line.startswith("-"))
        self.record = f"v=DKIM1; k=rsa; p={content}".encode()
        (directory / "opendkim.conf").write_text(
            f"Socket inet:{self.port}@127.0.0.1\nMode s\nDomain {domain}\nSelector {selector}\n"
            f"KeyFile {key}\nCanonicalization {canonicalization}\nInternalHosts 127.0.0.1\n"
            "Syslog no\nBackground no\nRequireSafeKeys no\n"
        )
        self._server = Server("opendkim", directory / "opendkim.log")

    def start(self) -> OpenDKIM:
        configuration = str(self._directory / "opendkim.conf")
        self._server.run(self._program, "-f", "-x", configuration, ready=lambda: listens(self.port))
        return self

    def stop(self) -> None:
        self._server.stop()


_RSPAMD = """
.include "$CONFDIR/common.conf"
options {{
    pidfile = "{directory}/rspamd.pid";
    .include "$CONFDIR/options.inc"
    filters = "regexp";
    tempdir = "{directory}";
    control_socket = "{directory}/control.sock mode=0600";
    dns {{ nameserver = ["127.0.0.1:{dead}"]; timeout = 0.1s; retransmits = 1; }}
    enable_test_patterns = true;
}}
logging {{ type = "console"; level = "notice"; }}
worker "normal" {{ bind_socket = "127.0.0.1:{port}"; count = 1; }}
worker "rspamd_proxy" {{
    bind_socket = "127.0.0.1:{milter}";
    milter = yes;
    count = 1;
    upstream "local" {{ default = yes; hosts = "127.0.0.1:{port}"; }}
}}
{disabled}
"""

# Modules that ask the network.
_NETWORK = (
    "rbl", "surbl", "asn", "dmarc", "spf", "dkim", "arc", "phishing", "fuzzy_check", "mx_check", "hfilter",
    "rspamd_update", "bayes_expiry", "url_redirector", "dcc", "p0f", "greylist", "ratelimit", "history_redis",
    "once_received", "whitelist", "mime_types", "mid", "reputation", "neural", "bimi", "dkim_signing",
)  # fmt: skip

_RSPAMD_LUA = """
local function subject_is(text)
    return function(task) return task:get_header('Subject') == text end
end
rspamd_config:register_symbol{
    name = 'TEST_RULES', type = 'prefilter',
    callback = function(task)
        if subject_is('come back')(task) then
            task:set_pre_result('soft reject', 'Come back in a minute')
        elseif subject_is('greylist me')(task) then
            task:set_pre_result('greylist', 'Greylisted by the test')
        elseif subject_is('mark me')(task) then
            task:set_pre_result('add header', 'Marked')
        elseif subject_is('rewrite me')(task) then
            task:set_metric_subject('[SPAM] rewrite me')
            task:set_pre_result('rewrite subject', 'Rewritten')
        end
    end
}
rspamd_config:register_symbol{
    name = 'TEST_FIELDS', type = 'postfilter',
    callback = function(task)
        task:set_milter_reply({
            add_headers = {['X-Rspamd-Test'] = 'seen ' .. (task:get_helo() or 'no helo')
                .. ' ' .. tostring(task:get_from_ip()), ['X-Rspamd-Rcpts'] =
                tostring(#(task:get_recipients('smtp') or {})), ['X-Rspamd-Rcpt'] =
                ((task:get_recipients('smtp') or {})[1] or {}).addr or 'none'},
            remove_headers = {['X-Remove-Me'] = 0},
        })
    end
}
"""


class Rspamd:
    """rspamd with Debian's rules, without those that ask the network, and with rules of the test's own."""

    def __init__(self, directory: Path) -> None:
        self._program = filter_program("rspamd")
        directory.mkdir(parents=True)
        self._directory = directory
        self.port, self.milter_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.milter_endpoint = f"tcp:host=127.0.0.1:port={self.milter_port}"
        disabled = "".join(f"{name} {{ enabled = false; }}\n" for name in _NETWORK)
        (directory / "rspamd.conf").write_text(
            _RSPAMD.format(
                directory=directory,
                port=self.port,
                milter=self.milter_port,
                dead=free_port(),
                disabled=disabled,
            )
        )
        (directory / "rspamd.local.lua").write_text(_RSPAMD_LUA)
        self._server = Server("rspamd", directory / "rspamd.log")

    def start(self) -> Rspamd:
        """In a directory that the user _rspamd may write to, where root starts it."""
        variables = [
            f"--var={name}={self._directory}" for name in ("DBDIR", "RUNDIR", "LOGDIR", "LOCAL_CONFDIR")
        ]
        user = []
        if os.geteuid() == 0:
            shutil.chown(self._directory, "_rspamd", "_rspamd")
            user = ["-u", "_rspamd", "-g", "_rspamd"]
        configuration = str(self._directory / "rspamd.conf")
        self._server.run(
            self._program, "-f", "-c", configuration, *variables, *user, ready=self._answers, seconds=150
        )
        return self

    def stop(self) -> None:
        self._server.stop()

    def words(self) -> str:
        return self._server.words()

    def _answers(self) -> bool:
        return listens(self.port) and listens(self.milter_port)


class Postfwd:
    """postfwd with rules of the test's own."""

    def __init__(self, directory: Path, rules: str) -> None:
        self._program = filter_program("postfwd1")
        directory.mkdir(parents=True)
        self._rules = directory / "postfwd.cf"
        self._rules.write_text(rules)
        self.port = free_port()
        self.endpoint = f"tcp:host=127.0.0.1:port={self.port}"
        self._pid_file = directory / "postfwd.pid"

    def start(self) -> Postfwd:
        """It becomes a daemon: without that it reads questions from its standard input."""
        command = [
            self._program, "-d", "-f", str(self._rules), "-i", "127.0.0.1", "-p", str(self.port), "--nodns",
            "--pidfile", str(self._pid_file),
        ]  # fmt: skip
        if os.geteuid() == 0:
            command += ["-u", "root", "-g", "root"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=90)
        wait_until("postfwd listens", lambda: listens(self.port))
        return self

    def stop(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(self._pid_file.read_text()), signal.SIGTERM)
        wait_until("postfwd ends", lambda: not listens(self.port))
