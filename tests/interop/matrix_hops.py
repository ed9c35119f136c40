"""The next hops of `make interop`: Elemta relays one letter of each kind to real servers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from tests.interop.exim import write_configuration
from tests.interop.matrix_programs import CACHE, MountSpace, absent, find, need_root, unpacked
from tests.interop.matrix_senders import PASSWORD, SENDER, SOURCES, written
from tests.interop.matrix_table import CannotDo, NotRun
from tests.interop.programs import Server, free_port, greets
from tests.interop.sasl import SaslServer
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon

_KEYWORDS = {"TLS": "STARTTLS", "AUTH": "AUTH", "DSN": "DSN", "SMTPUTF8": "SMTPUTF8"}
_MOST_RECORDED = 64 * 1024


class Hop(Protocol):
    """One server; ``mail`` is a directory below which it stores messages, whatever their names."""

    port: int
    lmtp: bool
    mail: Path

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Recorder:
    """Stands between Elemta and a server, and keeps the beginning of what either says."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.client = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = self._listening.accept()
                outside = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._pass, args=(inside, outside, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(outside, inside, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, of_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if of_client and len(self.client) < _MOST_RECORDED:
                    self.client += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Relay:
    """A daemon whose routes lead to one server, a domain for each feature."""

    def __init__(self, directory: Path, make: Callable[[Path], Hop]) -> None:
        self._directory = directory
        self._make = make
        self._hop: Hop | None = None
        self._daemon: Daemon | None = None
        self._recorder: Recorder | None = None

    def start(self) -> None:
        """Start the server and the daemon; raises NotRun where the server can't be had."""
        self._directory.mkdir()
        self._directory.chmod(0o755)
        self._hop = self._make(self._directory)
        self._hop.start()
        self._recorder = Recorder(self._hop.port)
        credentials = self._directory / "credentials"
        credentials.write_text(f"alice:{PASSWORD}\n")
        credentials.chmod(0o600)
        to = f"{'lmtp' if self._hop.lmtp else 'smtp'}://127.0.0.1:{self._recorder.port}"
        routes = "".join(
            f'[[route]]\ndomains = ["{domain}.test"]\nto = "{to}"\ntls = "{tls}"\n{more}'
            for domain, tls, more in (
                ("plain", "none", ""),
                ("dsn", "none", ""),
                ("smtputf8", "none", ""),
                ("20mb", "none", ""),
                ("tls", "may", ""),
                ("auth", "may", f'credentials = "{credentials}"\n'),
            )
        )
        self._daemon = Daemon(
            self._directory / "relay",
            routes,
            domains='relay_from = ["127.0.0.0/8"]\n',
            spool='retry = ["2s"]\n',
        ).start()

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.stop()
        if self._recorder is not None:
            self._recorder.close()
        if self._hop is not None:
            self._hop.stop()

    def deliver(self, feature: str) -> None:
        """One letter with this feature."""
        assert self._hop is not None
        assert self._daemon is not None
        assert self._recorder is not None
        keyword = _KEYWORDS.get(feature)
        offered, trouble = self._offers() if keyword else (set(), "")
        if trouble and feature in ("TLS", "AUTH"):
            raise NotRun(f"its TLS fails with Python's client, too: {trouble}")
        if keyword and keyword not in offered:
            raise CannotDo(f"it offers no {keyword}")
        domain = f"{feature.lower().replace(' ', '')}.test"
        recipient = f"to{'-ü' if feature == 'SMTPUTF8' else ''}@{domain}"
        letter = self._directory / domain
        letter.mkdir()
        path = written(letter / "message", recipient, feature)
        content = path.read_bytes().replace(b"\n", b"\r\n")
        self._recorder.client = b""
        with self._daemon.client() as client:
            options = ["BODY=8BITMIME", *(["SMTPUTF8"] if feature == "SMTPUTF8" else [])]
            client.sendmail(
                SENDER, [recipient], content, options, ["NOTIFY=SUCCESS"] if feature == "DSN" else []
            )
        message = self._stored(feature)
        assert b"the last line" in message[-400:], f"cut short: {message[-100:]!r}"
        if feature == "20 MB":
            assert len(message) > 20_000_000, f"{len(message)} octets"
        self._check(feature, self._recorder.client)

    def _check(self, feature: str, said: bytes) -> None:
        """Whether Elemta really used the feature."""
        if feature == "TLS":
            assert b"STARTTLS\r\n" in said, said[:200]
        elif feature == "AUTH" and b"STARTTLS\r\n" not in said:
            assert re.search(rb"^AUTH ", said, re.MULTILINE), said[:200]
        elif feature == "DSN":
            assert b"NOTIFY=SUCCESS" in said, said[:400]
        elif feature == "SMTPUTF8":
            assert b"SMTPUTF8" in said, said[:400]

    def _stored(self, feature: str) -> bytes:
        assert self._hop is not None
        assert self._daemon is not None
        subject = f"Subject: interop {feature}".encode()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for path in [
                path for path in self._hop.mail.rglob("*") if path.is_file() and path.parent.name != "tmp"
            ]:
                with contextlib.suppress(OSError):
                    content = path.read_bytes()
                    if subject in content[:8192] and b"the last line" in content[-400:]:
                        return content
            time.sleep(0.2)
        said = [line for line in self._daemon.output().splitlines() if '"event":"delivery.' in line]
        heard = self._recorder.client[-300:] if self._recorder is not None else b""
        raise AssertionError(f"it did not arrive: {said[-1:]} {heard!r}")

    def _offers(self) -> tuple[set[str], str]:
        """The keywords that the server offers, in the clear and over TLS, and why its TLS failed."""
        assert self._hop is not None
        kind = smtplib.LMTP if self._hop.lmtp else smtplib.SMTP
        with kind("127.0.0.1", self._hop.port) as client:
            client.ehlo()
            offered = {name.upper() for name in client.esmtp_features}
            if "STARTTLS" in offered:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                try:
                    client.starttls(context=context)
                    client.ehlo()
                except (OSError, smtplib.SMTPException) as error:
                    return offered, str(error)
                offered |= {name.upper() for name in client.esmtp_features}
        return offered, ""


class _Program:
    """What servers share: a port, a certificate that their users may read, a directory for mail."""

    lmtp = False

    def __init__(self, directory: Path, name: str, *, with_rsa: bool = False) -> None:
        self.directory = directory / "hop"
        self.directory.mkdir()
        self.mail = self.directory / "mail"
        self.mail.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.mail, "nobody")
        self.certificate = make_certificate(self.directory, "localhost", with_rsa=with_rsa)
        self.certificate.key.chmod(0o644)
        self.port = free_port()
        self.server = Server(name, self.directory / "output")

    def run(self, *command: str, environ: Mapping[str, str] | None = None) -> None:
        words = ["env", *(f"{name}={value}" for name, value in (environ or {}).items()), *command]
        self.server.run(*words, ready=lambda: greets(self.port))

    def stop(self) -> None:
        self.server.stop()


class PostfixHop:
    """Debian's Postfix, with mailboxes of its own."""

    lmtp = False

    def __init__(self, directory: Path) -> None:
        from tests.interop.postfix import Postfix

        need_root("Postfix")
        find("postfix")
        here = directory / "hop"
        here.mkdir()
        files = make_certificate(here, "localhost")
        domains = [f"{name}.test" for name in ("plain", "tls", "auth", "dsn", "smtputf8", "20mb")]
        boxes = here / "boxes"
        boxes.write_text(
            "".join(f"{local}@{domain} {domain}/\n" for domain in domains for local in ("to", "to-ü"))
        )
        settings = (
            f"virtual_mailbox_domains = {' '.join(domains)}\nvirtual_mailbox_base = {here}/mail\n"
            f"virtual_mailbox_maps = texthash:{boxes}\nvirtual_uid_maps = static:65534\n"
            f"virtual_gid_maps = static:65534\nsmtpd_tls_security_level = may\n"
            f"smtpd_tls_cert_file = {files.certificate}\nsmtpd_tls_key_file = {files.key}\n"
            f"smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = {here}/sasl\n"
        )
        self._sasl = SaslServer(here / "sasl", "alice", PASSWORD)
        self._postfix = Postfix(here, settings)
        self.port = self._postfix.port
        self.mail = here / "mail"

    def start(self) -> None:
        self._postfix.start()

    def stop(self) -> None:
        self._postfix.stop()
        self._sasl.close()


class EximHop(_Program):
    """Debian's Exim, unpacked."""

    def __init__(self, directory: Path) -> None:
        need_root("Exim")
        exim = os.environ.get("ELEMTA_TEST_EXIM") or shutil.which("exim4", path="/usr/sbin")
        if exim is None or not Path(exim).exists():
            absent("exim", "Exim is not unpacked")
        super().__init__(directory, "Exim")
        version = subprocess.run(
            [exim, "-C", "/dev/null", "-bV"], capture_output=True, text=True, check=False
        ).stdout
        self._exim = exim
        settings = (
            "message_size_limit = 100M\ndsn_advertise_hosts = *\ntls_advertise_hosts = *\n"
            f"tls_certificate = {self.certificate.certificate}\ntls_privatekey = {self.certificate.key}\n"
        )
        if re.search(r"\b(?i:i18n)\b", version):
            settings += "smtputf8_advertise_hosts = *\n"
        self._configuration = write_configuration(self.directory, exim, self.port, settings)

    def start(self) -> None:
        self.run(self._exim, "-C", str(self._configuration), "-bdf")


class DovecotHop:
    """Debian's Dovecot, by LMTP."""

    lmtp = True

    def __init__(self, directory: Path) -> None:
        from tests.interop.dovecot import Dovecot

        need_root("Dovecot")
        find("dovecot")
        if not Path("/usr/lib/dovecot/lmtp").exists():
            absent("dovecot", "dovecot-lmtpd is not installed")
        self._dovecot = Dovecot(directory / "hop", ["to"])
        configuration = directory / "hop/dovecot.conf"
        files = make_certificate(directory / "hop", "localhost")
        text = configuration.read_text().replace("ssl = no", "ssl = yes")
        configuration.write_text(f"{text}\nssl_cert = <{files.certificate}\nssl_key = <{files.key}\n")
        self.port = self._dovecot.port
        self.mail = directory / "hop/mail"

    def start(self) -> None:
        self._dovecot.start()

    def stop(self) -> None:
        self._dovecot.stop()


class OpenSMTPDHop(_Program):
    """Debian's OpenSMTPD, unpacked; its paths are compiled in, so it has a mount space."""

    def __init__(self, directory: Path) -> None:
        need_root("OpenSMTPD")
        program = unpacked("opensmtpd", "usr/sbin/smtpd")
        # Its process for keys takes no ECDSA key with OpenSSL 3.
        super().__init__(directory, "OpenSMTPD", with_rsa=True)
        self.certificate.key.chmod(0o600)
        configuration = self.directory / "smtpd.conf"
        crypted = subprocess.run(
            ["openssl", "passwd", "-6", PASSWORD], capture_output=True, text=True, check=True
        ).stdout.strip()
        configuration.write_text(
            f'pki hop cert "{self.certificate.certificate}"\npki hop key "{self.certificate.key}"\n'
            f'table creds {{ "alice" = "{crypted}" }}\ntable boxes {{ "@" = "nobody" }}\n'
            "smtp max-message-size 100M\n"
            f"listen on 127.0.0.1 port {self.port} tls pki hop auth-optional <creds>\n"
            f'action "box" maildir "{self.mail}" virtual <boxes>\n'
            'match from any for any action "box"\nmatch auth from any for any action "box"\n'
        )
        libexec = self.directory / "libexec"
        shutil.copytree(CACHE / "opensmtpd/usr/libexec/opensmtpd", libexec)
        space = MountSpace(
            self.directory,
            {
                "passwd": "opensmtpd:x:9901:9901::/var/lib/opensmtpd/empty:/usr/sbin/nologin\n"
                "opensmtpq:x:9902:9902::/var/lib/opensmtpd/empty:/usr/sbin/nologin\n",
                "group": "opensmtpd:x:9901:\nopensmtpq:x:9902:\n",
                "aliases": "",
            },
            ("/var/spool", "/var/lib/opensmtpd/empty", "/var/mail", "/var/log"),
            owner="root:root",
            more=f"chmod 0755 /var/spool /var/lib/opensmtpd/empty; mkdir -p /usr/libexec; "
            "mount -t tmpfs tmpfs /usr/libexec; "
            f"mkdir /usr/libexec/opensmtpd; cp {libexec}/* /usr/libexec/opensmtpd/;",
        )
        self._command = space.command([program, "-d", "-f", str(configuration)])

    def start(self) -> None:
        self.run(*self._command)


class HarakaHop(_Program):
    """Haraka of npm, with a plugin that writes each message to a file."""

    def __init__(self, directory: Path) -> None:
        self._node = find("node")
        self._haraka = CACHE / "npm/node_modules/Haraka/bin/haraka"
        if not self._haraka.exists():
            absent("npm", "npm could not bring Haraka")
        super().__init__(directory, "Haraka")
        config = self.directory / "config"
        shutil.copytree(self._haraka.parents[1] / "config", config)
        (self.directory / "plugins").mkdir()
        shutil.copy(SOURCES / "haraka_store.js", self.directory / "plugins/store.js")
        for name, text in {
            "smtp.ini": f"listen=127.0.0.1:{self.port}\nnodes=0\nsmtputf8=true\n",
            "plugins": "tls\nauth/flat_file\nstore\n",
            "tls.ini": f"key={self.certificate.key}\ncert={self.certificate.certificate}\n",
            "auth_flat_file.ini": f"[core]\nmethods=PLAIN,LOGIN\n[users]\nalice={PASSWORD}\n",
            "databytes": "104857600\n",
            "me": "haraka.test\n",
            "loglevel": "LOGNOTICE\n",
        }.items():
            (config / name).write_text(text)

    def start(self) -> None:
        environ = {"MAIL": str(self.mail), "NODE_PATH": str(CACHE / "npm/node_modules")}
        self.run(self._node, str(self._haraka), "-c", str(self.directory), environ=environ)


class AiosmtpdHop(_Program):
    """aiosmtpd of PyPI."""

    def __init__(self, directory: Path) -> None:
        self._python = CACHE / "aiosmtpd/bin/python"
        if not (CACHE / "aiosmtpd/bin/aiosmtpd").exists():
            absent("aiosmtpd", "pip could not bring aiosmtpd")
        super().__init__(directory, "aiosmtpd")

    def start(self) -> None:
        files = self.certificate
        environ = {
            "MAIL": str(self.mail),
            "PORT": str(self.port),
            "AUTH_PASSWORD": PASSWORD,
            "CERTIFICATE": str(files.certificate),
            "KEY": str(files.key),
        }
        self.run(str(self._python), str(SOURCES / "aiosmtpd_store.py"), environ=environ)


class ElemtaHop(_Program):
    """Another Elemta."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "Elemta")
        users = self.directory / "users"
        users.touch(mode=0o600)
        boxes = f"maildir:{self.mail}/{{domain}}/{{local}}"
        self._daemon = Daemon(
            self.directory / "node",
            f"""{self.certificate.table}
[auth]
checkers = ["elemta-users:{users}"]
require_tls = false
[[route]]
domains = ["*"]
to = "{boxes}"
create_mailboxes = true
""",
            domains='relay_from = ["127.0.0.0/8"]\n',
        )
        command = [str(Path(sys.executable).with_name("elemtactl")), "--config", str(self._daemon.config)]
        subprocess.run(
            [*command, "user", "add", "alice", "--password-stdin"],
            input=f"{PASSWORD}\n",
            text=True,
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        self._daemon.start()
        self.port = self._daemon.port

    def stop(self) -> None:
        self._daemon.stop()


HOPS: Mapping[str, Callable[[Path], Hop]] = {
    "Postfix": PostfixHop,
    "Exim": EximHop,
    "OpenSMTPD": OpenSMTPDHop,
    "Dovecot LMTP": DovecotHop,
    "Haraka": HarakaHop,
    "aiosmtpd": AiosmtpdHop,
    "Elemta": ElemtaHop,
}
