"""A Postfix of the test's own: its configuration, queue and mail in one directory, the system's untouched."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.interop.programs import Server, free_port, greets, need_root, program
from tests.support.places import HERE, Place

_MAIN = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = {directory}/postfix.log
maillog_file_prefixes = {directory}
myhostname = {hostname}
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtputf8_enable = yes
smtp_host_lookup = native
smtp_dns_support_level = disabled
message_size_limit = 0
virtual_mailbox_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_tls_security_level = none
smtp_line_length_limit = 0
minimal_backoff_time = 1s
maximal_backoff_time = 5s
queue_run_delay = 1s
{settings}
"""

_MASTER = """
{host}:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsproxy unix - - n - 0 tlsproxy
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """One instance below ``directory``, which its users must be able to enter.

    It listens on a free port of 127.0.0.1, unless a ``place`` and an ``address`` are given.
    """

    def __init__(
        self,
        directory: Path,
        settings: str,
        *,
        hostname: str = "postfix.test",
        place: Place = HERE,
        address: tuple[str, int] | None = None,
    ) -> None:
        need_root("Postfix")
        self._postfix = program("postfix")
        self.directory = directory
        self._place = place
        self.host, self.port = address or ("127.0.0.1", free_port())
        # What is started is a shell, which ends when the master process does, but does not end it.
        self._server = Server("Postfix", directory / "output", directory / "queue/pid/master.pid")
        self._configuration = directory / "etc"
        for name in ("etc", "queue", "data", "mail"):
            (directory / name).mkdir(parents=True)
        shutil.chown(directory / "data", "postfix")
        shutil.chown(directory / "mail", "nobody")
        self._configuration.joinpath("main.cf").write_text(
            _MAIN.format(directory=directory, hostname=hostname, settings=settings)
        )
        self._configuration.joinpath("master.cf").write_text(_MASTER.format(host=self.host, port=self.port))

    @classmethod
    def with_mailboxes(
        cls,
        directory: Path,
        domain: str,
        users: Sequence[str],
        *,
        more: str = "",
        place: Place = HERE,
        address: tuple[str, int] | None = None,
    ) -> Postfix:
        """One that is the end of the way for ``domain``: a Maildir ``mail/USER`` for each of ``users``."""
        directory.mkdir()
        boxes = directory / "boxes"
        boxes.write_text("".join(f"{user}@{domain} {user}/\n" for user in users))
        settings = (
            f"virtual_mailbox_domains = {domain}\n"
            f"virtual_mailbox_base = {directory}/mail\n"
            f"virtual_mailbox_maps = texthash:{boxes}\n"
            "virtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\n"
        )
        return cls(directory, settings + more, place=place, address=address)

    @classmethod
    def relaying_to(cls, directory: Path, port: int, *, tls: bool) -> Postfix:
        """One that hands everything to ``port``."""
        directory.mkdir()
        level = "encrypt" if tls else "none"
        return cls(
            directory,
            f"relayhost = [127.0.0.1]:{port}\n"
            f"smtp_tls_security_level = {level}\nsmtp_tls_loglevel = 1\nsmtp_tls_connection_reuse = yes\n"
            f"smtp_connection_cache_destinations = [127.0.0.1]:{port}\n",
        )

    def start(self) -> Postfix:
        self._server.run(
            *self._place.prefix,
            self._postfix,
            "-c",
            str(self._configuration),
            "start-fg",
            ready=lambda: greets(self.port, self.host, self._place),
        )
        return self

    def stop(self) -> None:
        self._server.stop()
        assert not greets(self.port), "Postfix was stopped and still answers"

    def log(self) -> str:
        log = self.directory / "postfix.log"
        return self._server.words() + (log.read_text("utf-8", "replace") if log.exists() else "")

    def mailbox(self, user: str) -> list[bytes]:
        """The messages in the Maildir of a user."""
        new = self.directory / "mail" / user / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.is_dir() else []
