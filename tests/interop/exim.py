"""An Exim of the test's own, which stores whatever it is sent in one Maildir.

Debian's Exim and Postfix can't be installed beside each other. So the test takes an Exim that was only
unpacked (``apt-get download exim4-daemon-light``, ``dpkg -x``), when ``ELEMTA_TEST_EXIM`` is its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.interop.programs import Server, free_port, greets, missing, need_root

_CONFIGURATION = """
exim_path = {exim}
exim_user = nobody
exim_group = nogroup
never_users =
deliver_drop_privilege = true
primary_hostname = exim.test
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
pid_file_path = {directory}/exim.pid
local_interfaces = 127.0.0.1.{port}
daemon_smtp_ports = {port}
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
acl_smtp_rcpt = acl_check_rcpt
acl_smtp_data = all
{settings}
begin acl
all:
  accept
acl_check_rcpt:
{before_accept}
  accept
begin routers
box:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  maildir_format
  directory = {directory}/mail
  create_directory
  user = nobody
  group = nogroup
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{alice}}}}{{eq{{$auth3}}{{correct horse}}}}}}}}
  server_set_id = $auth2
"""


def write_configuration(
    directory: Path, exim: str, port: int, settings: str, *, before_accept: str = ""
) -> Path:
    """A configuration that accepts everything into one Maildir, and where it was written.

    ``settings`` are lines of the main section, ``before_accept`` statements of the ACL for RCPT. The user
    ``alice`` may log in.
    """
    for name in ("spool", "log"):
        (directory / name).mkdir()
        shutil.chown(directory / name, "nobody", "nogroup")
    path = directory / "exim.conf"
    path.write_text(
        _CONFIGURATION.format(
            exim=exim, directory=directory, port=port, settings=settings, before_accept=before_accept
        )
    )
    return path


def exim_program() -> str:
    """Where Exim is; skips the test without one that runs, or fails it where everything has to be there."""
    path = os.environ.get("ELEMTA_TEST_EXIM") or shutil.which("exim4", path="/usr/sbin")
    if path is None:
        missing("Exim is not installed, and ELEMTA_TEST_EXIM names none that was unpacked")
    try:
        done = subprocess.run([path, "-C", "/dev/null", "-bV"], capture_output=True, text=True, check=False)
    except OSError as error:
        missing(f"{path} does not run: {error}")
    if done.returncode or not done.stdout.startswith("Exim version 4"):
        missing(f"{path} does not run: {done.stderr.strip()}")
    return path


class Exim:
    """One instance below ``directory``, which its user must be able to enter."""

    def __init__(self, directory: Path, *, chunking: bool = False, before_accept: str = "") -> None:
        need_root("Exim")
        self._exim = exim_program()
        self.directory = directory
        self.port = free_port()
        self._server = Server("Exim", directory / "output")
        directory.mkdir()
        (directory / "mail").mkdir()
        shutil.chown(directory / "mail", "nobody", "nogroup")
        settings = (
            f"tls_advertise_hosts =\nchunking_advertise_hosts = {'*' if chunking else ''}\n"
            "smtp_accept_max = 100\nsmtp_accept_queue_per_connection = 0\n"
        )
        self._configuration = write_configuration(
            directory, self._exim, self.port, settings, before_accept=before_accept
        )

    def start(self) -> Exim:
        self._server.run(self._exim, "-C", str(self._configuration), "-bdf", ready=lambda: greets(self.port))
        return self

    def stop(self) -> None:
        self._server.stop()

    def log(self) -> str:
        logs = sorted((self.directory / "log").iterdir())
        return self._server.words() + "".join(path.read_text("utf-8", "replace") for path in logs)

    def messages(self) -> list[bytes]:
        """All that it stored."""
        new = self.directory / "mail/new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []
