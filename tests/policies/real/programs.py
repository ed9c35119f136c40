"""Debian's mail filters, each with a configuration of the test's own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.interop.programs import Server, free_port, program, wait_until

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
"""What every spam filter takes for spam."""


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
        self._program = program("clamd")
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
        self._program = program("opendkim")
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
        self._program = program("rspamd")
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
        self._program = program("postfwd1")
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


_SPAM_RULES = f"""
body GTUBE_OF_TEST /{re.escape(GTUBE)}/
describe GTUBE_OF_TEST the test pattern
score GTUBE_OF_TEST 1000
header MARKED_BY_TEST Subject =~ /mark me/
describe MARKED_BY_TEST a subject that the test chose
score MARKED_BY_TEST 7
required_score 5
report_safe 1
rewrite_header Subject [SPAM]
add_header spam Flag _YESNOCAPS_
add_header all Level _STARS(*)_
add_header all Status "_YESNO_, score=_SCORE_ required=_REQD_ tests=_TESTS_ version=_VERSION_"
report _SUMMARY_
use_bayes 0
"""


class SpamAssassin:
    """spamd with rules of the test's own, and spamass-milter, which asks it through spamc."""

    def __init__(self, directory: Path) -> None:
        self._spamd, self._milter = program("spamd"), program("spamass-milter")
        program("spamc")
        self._directory = directory
        for name in ("rules", "site"):
            (directory / name).mkdir(parents=True)
        (directory / "rules" / "10_test.cf").write_text(_SPAM_RULES)
        (directory / "site" / "init.pre").write_text("loadplugin Mail::SpamAssassin::Plugin::Check\n")
        self.port = free_port()
        self.socket = directory / "milter.sock"
        self.endpoint = f"unix:{self.socket}"
        self._servers = Server("spamd", directory / "spamd.log"), Server("milter", directory / "milter.log")

    def start(self) -> SpamAssassin:
        rules, site = self._directory / "rules", self._directory / "site"
        command = [
            self._spamd, "--local", "--nouser-config", "--max-children=1", "--listen=127.0.0.1",
            f"--port={self.port}", f"--configpath={rules}", f"--siteconfigpath={site}",
            f"--helper-home-dir={self._directory}", "--syslog=stderr",
            f"--pidfile={self._directory / 'spamd.pid'}",
        ]  # fmt: skip
        if os.geteuid() == 0:
            shutil.chown(self._directory, "nobody")
            command.append("--username=nobody")
        self._servers[0].run(*command, ready=lambda: listens(self.port))
        self.start_milter()
        return self

    def start_milter(self) -> None:
        spamc = ("--", "-d", "127.0.0.1", "-p", str(self.port), "-s", "10000000")
        self._servers[1].run(
            self._milter, "-p", str(self.socket), "-r", "15", *spamc, ready=self.socket.is_socket
        )

    def stop_milter(self) -> None:
        self._servers[1].stop()
        self.socket.unlink(missing_ok=True)

    def stop(self) -> None:
        self.stop_milter()
        self._servers[0].stop()


# Debian's program, told of another name server than the host's.
_POLICYD_SPF = """
import sys
import DNS
DNS.DiscoverNameServers = lambda: None
DNS.defaults["server"], DNS.defaults["port"] = ["{host}"], {port}
from spf_engine.policyd_spf import main
sys.argv = ["policyd-spf", "{configuration}"]
sys.exit(main())
"""
_POLICYD_SPF_CONFIGURATION = """
debugLevel = 0
HELO_reject = Fail
Mail_From_reject = Fail
PermError_reject = True
TempError_Defer = True
skip_addresses = 192.0.2.255/32
"""


class PolicydSpf:
    """policyd-spf, one process for each connection, as Postfix's spawn(8) runs it."""

    def __init__(self, directory: Path, nameserver: tuple[str, int]) -> None:
        program("policyd-spf")
        directory.mkdir(parents=True)
        configuration = directory / "policyd-spf.conf"
        configuration.write_text(_POLICYD_SPF_CONFIGURATION)
        host, port = nameserver
        script = directory / "policyd_spf.py"
        script.write_text(_POLICYD_SPF.format(host=host, port=port, configuration=configuration))
        # Debian's own Python, which has the program's modules.
        self._command = ("/usr/bin/python3", str(script))
        self._running: list[subprocess.Popen[bytes]] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp:host=127.0.0.1:port={self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> PolicydSpf:
        self._thread.start()
        return self

    @property
    def started(self) -> int:
        """How many connections there were."""
        return len(self._running)

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        self.kill_all()

    def kill_all(self) -> None:
        """End every process at once."""
        for process in self._running:
            process.kill()
            process.wait()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self._running.append(subprocess.Popen(self._command, stdin=connection, stdout=connection))
