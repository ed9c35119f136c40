"""A Dovecot of the test's own that speaks LMTP, over TCP and a Unix socket, and stores Maildirs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.interop.programs import Server, free_port, greets, missing, need_root, program

_CONFIGURATION = """
protocols = lmtp
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/dovecot.log
ssl = no
hostname = dovecot.test
postmaster_address = postmaster@dovecot.test
mail_location = maildir:{directory}/mail/%n
# Messages are stored with CRLF, so that what arrived can be compared octet by octet.
mail_save_crlf = yes
mail_fsync = never
first_valid_uid = 1
auth_username_format = %Ln
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%n {directory}/users
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={directory}/mail/%n
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener lmtp {{
    mode = 0666
  }}
}}
"""


class Dovecot:
    """One instance below ``directory``, which its users must be able to enter, for ``users``."""

    def __init__(self, directory: Path, users: Sequence[str]) -> None:
        need_root("Dovecot")
        self._dovecot = program("dovecot")
        if not Path("/usr/lib/dovecot/lmtp").exists():
            missing("dovecot-lmtpd is not installed")
        version = subprocess.run(
            [self._dovecot, "--version"], capture_output=True, text=True, check=True
        ).stdout
        if not version.startswith("2.3."):
            missing(f"Dovecot 2.3 is not installed but {version.split()[0]}, whose configuration is another")
        self.directory = directory
        self.port = free_port()
        self.socket = directory / "run/lmtp"
        self._server = Server("Dovecot", directory / "output")
        self._configuration = directory / "dovecot.conf"
        directory.mkdir()
        for name in ("run", "state", "mail"):
            (directory / name).mkdir()
        shutil.chown(directory / "mail", "nobody", "nogroup")
        (directory / "users").write_text("".join(f"{user}:x\n" for user in users))
        self._configuration.write_text(_CONFIGURATION.format(directory=directory, port=self.port))

    def start(self) -> Dovecot:
        self._server.run(self._dovecot, "-F", "-c", str(self._configuration), ready=lambda: greets(self.port))
        return self

    def stop(self) -> None:
        self._server.stop()

    def log(self) -> str:
        log = self.directory / "dovecot.log"
        return self._server.words() + (log.read_text("utf-8", "replace") if log.exists() else "")

    def mailbox(self, user: str) -> list[bytes]:
        """The messages in the Maildir of a user."""
        new = self.directory / "mail" / user / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []
