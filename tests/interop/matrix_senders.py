"""The senders of `make interop`: each sends one letter to a real daemon, with one feature."""

from __future__ import annotations

import base64
import os
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.interop.matrix_programs import CACHE, MountSpace, absent, find, unpacked
from tests.interop.matrix_table import CannotDo
from tests.support.certificates import CertificateFiles, make_certificate
from tests.support.daemon import Daemon

SOURCES = Path(__file__).with_name("matrix_sources")
SENDER = "alice@example.test"
PASSWORD = "correct horse"
_SECONDS = 240


@dataclass(frozen=True)
class Letter:
    """One message, its envelope, and how it has to be sent."""

    feature: str
    recipient: str
    path: Path
    host: str
    port: int
    certificate: CertificateFiles

    @property
    def tls(self) -> bool:
        return self.feature in ("TLS", "AUTH")

    @property
    def auth(self) -> bool:
        return self.feature == "AUTH"

    @property
    def dsn(self) -> bool:
        return self.feature == "DSN"

    @property
    def utf8(self) -> bool:
        return self.feature == "SMTPUTF8"

    @property
    def environ(self) -> dict[str, str]:
        """The letter in words, for the programs in ``matrix_sources``."""
        return {
            "HOST": self.host,
            "PORT": str(self.port),
            "SENDER": SENDER,
            "RECIPIENT": self.recipient,
            "MESSAGE": str(self.path),
            "FEATURE": self.feature,
            "AUTH_USER": "alice",
            "AUTH_PASSWORD": PASSWORD,
            "CA": str(self.certificate.certificate),
        }


Send = Callable[[Letter], None]


class Receiver:
    """A daemon with TLS, a user ``alice``, and one listener for users."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.certificate = make_certificate(directory, "localhost", "mx.example.test")
        users = directory / "users"
        users.touch(mode=0o600)
        self.daemon = Daemon(
            directory / "receiver",
            f"""{self.certificate.table}
[auth]
checkers = ["elemta-users:{users}"]
[[listener]]
name = "submission"
endpoint = "tcp:0:interface=127.0.0.1"
role = "submission"
""",
        )
        self.daemon.config.chmod(0o644)
        run(
            [
                _beside("elemtactl"),
                "--config",
                str(self.daemon.config),
                "user",
                "add",
                "alice",
                "--password-stdin",
            ],
            text=f"{PASSWORD}\n",
        )

    def __enter__(self) -> Receiver:
        self.daemon.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.daemon.stop()

    def try_sender(self, name: str, make: Callable[[Path], Send], feature: str) -> None:
        """Send one letter with this feature, and look whether it arrived as it should."""
        local = f"{name}-{feature}".lower().replace(" ", "-")
        if feature == "SMTPUTF8":
            local = f"{local}-ü"
        directory = self._directory / local
        directory.mkdir()
        directory.chmod(0o755)
        port = self.daemon.port_of("submission" if feature == "AUTH" else "mx")
        letter = Letter(
            feature,
            f"{local}@example.test",
            written(directory / "message", f"{local}@example.test", feature),
            "localhost" if name in ("Java", "Go", "Node") else "127.0.0.1",
            port,
            self.certificate,
        )
        make(directory)(letter)
        self._check(local, letter)

    def _check(self, local: str, letter: Letter) -> None:
        (message,) = self.daemon.wait_for_mail(urllib.parse.quote(local), seconds=90)
        found = re.search(rb"\(Elemta\) with (\w+) id ", message)
        protocol = found[1].decode() if found else "nothing"
        if letter.auth:
            assert protocol.endswith("SA"), f"it came with {protocol}"
        elif letter.tls:
            # A client that says HELO has no word for TLS in "with" (RFC 3848); the comment has it.
            assert re.search(rb"\r\n\t\(TLSv1", message[:2048]), f"it came with {protocol}, and without TLS"
        if letter.utf8:
            assert protocol.startswith("UTF8"), f"it came with {protocol}"
        assert b"the last line\r\n" in message[-400:], f"cut short: {message[-100:]!r}"
        if letter.feature == "20 MB":
            assert len(message) > 20_000_000, f"{len(message)} octets"
        if letter.dsn:
            self._wait_for_notice(letter.recipient)

    def _wait_for_notice(self, recipient: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for path in self.daemon.mailbox("alice"):
                notice = path.read_bytes()
                if recipient.encode() in notice and b"Action: delivered" in notice:
                    return
            time.sleep(0.1)
        raise AssertionError("NOTIFY=SUCCESS, and no notice came")


def written(path: Path, recipient: str, feature: str) -> Path:
    """A message with lines as Unix has them."""
    body = "Grüße.\n.\n..\nfrom the end   \n"
    if feature == "20 MB":
        line = base64.b64encode(random.Random(1).randbytes(57)).decode() + "\n"
        body += line * (20 * 1024 * 1024 // len(line))
    path.write_text(
        f"From: {SENDER}\nTo: {recipient}\nSubject: interop {feature}\nDate: Mon, 1 Jan 2024 00:00:00 +0000\n"
        f"Message-ID: <{path.parent.name.encode('ascii', 'replace').decode()}@example.test>\n"
        "MIME-Version: 1.0\n"
        f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{body}the last line\n",
        encoding="utf-8",
    )
    path.chmod(0o644)
    return path


def run(
    command: Sequence[str],
    *,
    text: str = "",
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run a sender; what it said is in the error when it fails."""
    stdin = path.open("rb") if path is not None else None
    try:
        done = subprocess.run(
            list(command),
            stdin=stdin,
            input=None if stdin is not None else text.encode(),
            capture_output=True,
            timeout=_SECONDS,
            env={**os.environ, **(environ or {})},
            check=False,
        )
    finally:
        if stdin is not None:
            stdin.close()
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode:
        raise AssertionError(f"{Path(command[0]).name} exits with {done.returncode}: {said[-800:]}")
    return said


def _beside(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _cannot(letter: Letter, *features: str) -> None:
    if letter.feature in features:
        raise CannotDo(f"it has no {letter.feature}")


def swaks(_: Path) -> Send:
    program = find("swaks")

    def send(letter: Letter) -> None:
        _cannot(letter, "DSN", "SMTPUTF8")
        auth = ["--auth", "PLAIN", "--auth-user", "alice", "--auth-password", PASSWORD]
        run(
            [
                program,
                "--server",
                f"{letter.host}:{letter.port}",
                "--from",
                SENDER,
                "--to",
                letter.recipient,
                "--timeout",
                "120",
                "--suppress-data",
                "--data",
                f"@{letter.path}",
                *(["--tls"] if letter.tls else []),
                *(auth if letter.auth else []),
            ]
        )

    return send


def msmtp(directory: Path) -> Send:
    program = find("msmtp")

    def send(letter: Letter) -> None:
        _cannot(letter, "SMTPUTF8")
        rc = directory / "msmtprc"
        lines = [f"account default\nhost {letter.host}\nport {letter.port}\nfrom {SENDER}\ndomain msmtp.test"]
        if letter.tls:
            lines.append(
                f"tls on\ntls_trust_file {letter.certificate.certificate}\ntls_host_override localhost"
            )
        if letter.auth:
            lines.append(f"auth on\nuser alice\npassword {PASSWORD}")
        if letter.dsn:
            lines.append("dsn_notify success\ndsn_return full")
        rc.write_text("\n".join(lines) + "\n")
        rc.chmod(0o600)
        run([program, "-C", str(rc), letter.recipient], path=letter.path)

    return send


def curl(_: Path) -> Send:
    program = find("curl")

    def send(letter: Letter) -> None:
        _cannot(letter, "DSN")
        tls = ["--ssl-reqd", "--cacert", str(letter.certificate.certificate)] if letter.tls else []
        auth = ["--user", f"alice:{PASSWORD}"] if letter.auth else []
        # Its upload has the lines of the file, and Elemta takes no bare LF from a client without a login.
        run(
            [
                program,
                "--silent",
                "--show-error",
                "--crlf",
                *tls,
                *auth,
                f"smtp://localhost:{letter.port}/curl.test",
                "--mail-from",
                SENDER,
                "--mail-rcpt",
                letter.recipient,
                "--upload-file",
                str(letter.path),
            ],
            environ={"LC_ALL": "C.UTF-8"},
        )

    return send


def s_nail(directory: Path) -> Send:
    program = find("s-nail")

    def send(letter: Letter) -> None:
        _cannot(letter, "DSN", "SMTPUTF8")
        user = f"alice:{urllib.parse.quote(PASSWORD)}@" if letter.auth else ""
        settings = [
            f"mta=smtp://{user}{letter.host}:{letter.port}",
            f"smtp-auth={'plain' if letter.auth else 'none'}",
            f"from={SENDER}",
            "v15-compat",
            "sendwait",
            "tls-verify=ignore",
            "smtp-hostname=example.test",
            *(["smtp-use-starttls"] if letter.tls else []),
        ]
        options = [word for setting in settings for word in ("-S", setting)]
        body = letter.path.read_text("utf-8").partition("\n\n")[2]
        text = directory / "text"
        text.write_text(body, "utf-8")
        run(
            [program, "-n", *options, "-s", "interop", letter.recipient],
            path=text,
            environ={"LC_ALL": "C.UTF-8", "HOME": str(directory)},
        )

    return send


def nullmailer(directory: Path) -> Send:
    program = unpacked("nullmailer", "usr/lib/nullmailer/smtp")

    def send(letter: Letter) -> None:
        _cannot(letter, "DSN", "SMTPUTF8")
        queued = directory / "queued"
        queued.write_bytes(f"{SENDER}\n{letter.recipient}\n\n".encode() + letter.path.read_bytes())
        options = [f"host={letter.host}", f"port={letter.port}"]
        options += ["starttls", "insecure"] if letter.tls else []
        options += ["user=alice", f"pass={PASSWORD}"] if letter.auth else []
        script = 'exec "$0" 3<"$1"'
        text = "".join(f"{option}\n" for option in options)
        run(["sh", "-c", script, program, str(queued)], text=text, environ={"HELOHOST": "nullmailer.test"})

    return send


def dma(directory: Path) -> Send:
    program = unpacked("dma", "usr/sbin/dma")

    def send(letter: Letter) -> None:
        _cannot(letter, "DSN", "SMTPUTF8")
        lines = [f"SMARTHOST {letter.host}", f"PORT {letter.port}", "MAILNAME dma.test"]
        lines += ["SECURETRANSFER", "STARTTLS"] if letter.tls else []
        lines += ["AUTHPATH /etc/dma/auth.conf"] if letter.auth else []
        space = MountSpace(
            directory,
            {
                "dma/dma.conf": "\n".join(lines) + "\n",
                "dma/auth.conf": f"alice|{letter.host}:{PASSWORD}\n",
                "aliases": "",
            },
            ("/var/spool/dma", "/var/mail", "/var/log"),
            owner="mail:mail",
        )
        # -D delivers before it returns.
        run(space.command([program, "-D", "-i", "-f", SENDER, letter.recipient]), path=letter.path)

    return send


def php(_: Path) -> Send:
    program = find("php")

    def send(letter: Letter) -> None:
        # mail() hands over to sendmail, which takes no such options from it.
        _cannot(letter, "TLS", "AUTH", "DSN", "SMTPUTF8")
        sendmail = f"{_beside('elemta-sendmail')} -t -i -f {SENDER}"
        config = letter.path.with_name("elemta.toml")
        config.write_text(f'[[listener]]\nname = "mx"\nendpoint = "tcp:{letter.port}:interface=127.0.0.1"\n')
        run(
            [
                program,
                "-d",
                f"sendmail_path={sendmail}",
                "-d",
                "memory_limit=512M",
                str(SOURCES / "send.php"),
            ],
            environ={**letter.environ, "ELEMTA_CONFIG": str(config)},
        )

    return send


def perl(_: Path) -> Send:
    program = find("perl")

    def send(letter: Letter) -> None:
        _cannot(letter, "SMTPUTF8")
        if (
            letter.auth
            and subprocess.run(
                [program, "-MAuthen::SASL", "-e1"], capture_output=True, check=False
            ).returncode
        ):
            absent("perl", "libauthen-sasl-perl is not installed")
        run([program, str(SOURCES / "send.pl")], environ=letter.environ)

    return send


def go(_: Path) -> Send:
    root = CACHE / "go"
    program = shutil.which("go") or str(root / "root/bin/go")
    if not shutil.which("go"):
        unpacked("go", "usr/lib/go-1.19/bin/go")
        _assemble_go(root)
    binary = CACHE / "send-go"
    home = {"HOME": str(CACHE), "GOCACHE": str(CACHE / "gocache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    if not shutil.which("go"):
        home["GOROOT"] = str(root / "root")
    source = SOURCES / "send.go"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        run([program, "build", "-o", str(binary), str(source)], environ=home)

    def send(letter: Letter) -> None:
        _cannot(letter, "DSN")
        run([str(binary)], environ=letter.environ)

    return send


def _assemble_go(root: Path) -> None:
    """Debian splits GOROOT over two trees with links between them."""
    target = root / "root"
    if (target / "bin/go").exists():
        return
    script = (
        'mkdir -p "$1" && cd "$0" && find . -type l -lname "*/share/go-*" -prune -o -type f -print0 '
        '| cpio --quiet -0pdm "$1" 2>/dev/null'
    )
    for part in (root / "usr/share/go-1.19", root / "usr/lib/go-1.19"):
        run(["sh", "-c", script, str(part), str(target)])


def java(directory: Path) -> Send:
    program = find("java")
    jars = [Path("/usr/share/java") / name for name in ("jakarta-mail.jar", "jakarta-activation.jar")]
    if not jars[0].exists():
        absent("java", "libjakarta-mail-java is not installed")
    path = ":".join(str(jar) for jar in jars if jar.exists())

    def send(letter: Letter) -> None:
        run([program, "-Xmx512m", "-cp", path, str(SOURCES / "Send.java")], environ=letter.environ)

    return send


def node(_: Path) -> Send:
    program = find("node")
    modules = CACHE / "npm/node_modules"
    if not (modules / "nodemailer").is_dir():
        absent("npm", "npm could not bring nodemailer")

    def send(letter: Letter) -> None:
        run([program, str(SOURCES / "send.js")], environ={**letter.environ, "NODE_PATH": str(modules)})

    return send


def python(_: Path) -> Send:
    def send(letter: Letter) -> None:
        run([sys.executable, str(SOURCES / "send.py")], environ=letter.environ)

    return send


SENDERS: Mapping[str, Callable[[Path], Send]] = {
    "swaks": swaks,
    "msmtp": msmtp,
    "curl": curl,
    "nullmailer": nullmailer,
    "dma": dma,
    "s-nail": s_nail,
    "PHP": php,
    "Perl": perl,
    "Go": go,
    "Java": java,
    "Node": node,
    "Python": python,
}
