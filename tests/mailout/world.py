"""Elemta among other hosts: a DNS server, next hops on port 25, and what mail became of it."""

from __future__ import annotations

import contextlib
import email
import email.policy
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from tests.interop.postfix import Postfix
from tests.interop.sink import Sink, Taken
from tests.mailout.network import Host, Network
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.nameservers import Nsd

#: Zone of the domains that mail goes to; every test has its own, so that none finds a destination that
#: another found down.
ZONE = """
anna        A     198.51.100.11
anna        AAAA  2001:db8::11
bert        A     198.51.100.12
bert        AAAA  2001:db8::12
busy        A     198.51.100.13
closed      A     198.51.100.14
closed      AAAA  2001:db8::14
unplugged   A     198.51.100.15
six         AAAA  2001:db8::16
half        A     198.51.100.17
half        AAAA  2001:db8::99
postfix     A     198.51.100.21
elemta      A     198.51.100.2

order       MX    10 anna
order       MX    20 bert
*.equal     MX    10 anna
*.equal     MX    10 bert
null        MX    0 .
refusing    MX    10 closed
refusing    MX    20 bert
down        MX    10 unplugged
down        MX    20 bert
turned      MX    10 busy
turned      MX    20 bert
returning   MX    10 unplugged
onlysix     MX    10 six
slowsix     MX    10 half
implicit    A     198.51.100.11
alias       CNAME order
barren      MX    10 nobody
loop        MX    10 mx.example.test.
loop        MX    20 anna
hairpin     MX    10 elemta
backup      MX    10 closed
backup      MX    20 mx.example.test.
backup      MX    30 anna
late        MX    10 anna
real        MX    10 postfix
one         MX    10 anna
two         MX    10 bert
three       MX    10 six
nine        MX    0 .
inward      MX    10 inside
inward      MX    20 inside-six
inside      A     127.0.0.1
inside-six  AAAA  ::1
inside-six  AAAA  64:ff9b::7f00:1
partly      MX    10 inside
partly      MX    20 anna
"""

_EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 0")
_QUEUED = re.compile(rb"queued as (\S+)")


@dataclass(frozen=True)
class Report:
    """A DSN: the text for people, and the fields for programs of each recipient."""

    message: EmailMessage
    text: str
    recipients: dict[str, dict[str, str]]


class World:
    """Everything that is up; left, it is gone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._messages = 0

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            network = stack.enter_context(Network())
            self._start(stack, network)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, network: Network) -> None:
        nameserver = network.host("dns", 53)
        zones = {"world.test": ZONE, "example.test": "mx A 198.51.100.2\n"}
        assert nameserver.four
        self.nsd = Nsd(
            self._directory / "nsd",
            zones,
            broken=("broken.test",),
            place=nameserver,
            address=(nameserver.four, 53),
        ).start()
        stack.callback(self.nsd.stop)
        self.sinks = {
            "anna": self._sink(stack, network.host("anna", 11)),
            "bert": self._sink(stack, network.host("bert", 12)),
            "busy": self._sink(stack, network.host("busy", 13), greeting="421 4.3.2 too busy"),
            "unplugged": self._sink(stack, unplugged := network.host("unplugged", 15, six=False)),
            "six": self._sink(stack, network.host("six", 16, four=False)),
            "half": self._sink(stack, network.host("half", 17, six=False)),
        }
        self.unplugged = unplugged
        unplugged.link("down")
        network.host("closed", 14)
        self.postfix = self._start_postfix(stack, network.host("postfix", 21))
        self.daemon = self._start_daemon(stack, network, nameserver.four)

    def _sink(self, stack: ExitStack, host: Host, greeting: str = "220 sink.test ESMTP") -> Sink:
        return stack.enter_context(
            Sink(*_EXTENSIONS, place=host, address=("::" if host.six else "0.0.0.0", 25), greeting=greeting)
        )

    def _start_postfix(self, stack: ExitStack, host: Host) -> Postfix:
        directory = self._directory / "postfix"
        certificates = self._directory / "certificates"
        certificates.mkdir()
        files = make_certificate(certificates, "postfix.world.test")
        assert host.four
        postfix = Postfix.with_mailboxes(
            directory,
            "real.world.test",
            ["paul"],
            more=f"smtpd_tls_security_level = may\nsmtpd_tls_received_header = yes\n"
            f"smtpd_tls_chain_files = {files.key}, {files.certificate}\n",
            place=host,
            address=(host.four, 25),
        )
        stack.callback(postfix.stop)
        return postfix.start()

    def _start_daemon(self, stack: ExitStack, network: Network, resolver: str) -> Daemon:
        host = network.host("elemta", 2)
        network.use_resolver(host, resolver)
        daemon = Daemon(
            self._directory / "node",
            f'[[listener]]\nname = "world"\nendpoint = "tcp:25:interface={host.four}"\n',
            domains='relay_from = ["127.0.0.0/8"]\n[submission]\nadd_missing = false\n',
            spool='retry = ["1s"]',
            place=host,
        )
        stack.callback(daemon.kill)
        return daemon.start()

    # Mail in

    def send(self, sender: str, recipients: Sequence[str]) -> str:
        """Send a message from ``SENDER@example.test``, whose mailbox is at Elemta; the queue id.

        Recipients are of the zone: ``"anna@order"``, unless they have a whole domain.
        """
        with self.daemon.client() as client:
            client.ehlo_or_helo_if_needed()
            assert client.mail(f"{sender}@example.test")[0] == 250
            for recipient in recipients:
                assert client.rcpt(whole(recipient))[0] == 250
            code, words = client.data(f"Subject: from {sender}\r\n\r\n.dots\r\n..and more\r\n")
        found = _QUEUED.search(words)
        assert code == 250, words
        assert found, words
        return found[1].decode()

    # What became of it

    def attempt(
        self, queue_id: str, recipient: str, status: str | None = None, seconds: float = 45.0
    ) -> dict[str, Any]:
        """The first attempt for this recipient, or the first that ended so."""
        fields = {"status": status} if status else {}
        return self.daemon.wait_for(
            "delivery.attempted", seconds=seconds, queue_id=queue_id, recipient=whole(recipient), **fields
        )

    def at(self, host: str, recipient: str) -> list[Taken]:
        """The messages for this recipient that a sink has."""
        return self.sinks[host].by_recipient().get(whole(recipient), [])

    def reports(self, sender: str, count: int = 1) -> list[Report]:
        """The DSNs that came to ``SENDER@example.test``, at least ``count``."""
        return [_read(mail) for mail in self.daemon.wait_for_mail(sender, count)]

    def waits(self, queue_id: str) -> bool:
        """Whether the message is still queued."""
        return queue_id in self.daemon.ctl("queue", "list").stdout

    def faults(self) -> Iterator[str]:
        """Whatever a next hop took amiss, and what the daemon says it did wrong."""
        for name, sink in self.sinks.items():
            yield from (f"{name}: {fault}" for fault in sink.faults)
        for line in self.daemon.output().splitlines():
            if "Traceback" in line or '"delivery.internal_error"' in line:
                yield line


def whole(recipient: str) -> str:
    """The address that is meant by ``LOCAL@NAME`` of the zone."""
    _, _, domain = recipient.partition("@")
    return recipient if "." in domain or "[" in domain else f"{recipient}.world.test"


def _read(mail: bytes) -> Report:
    message = email.message_from_bytes(mail, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert mail.startswith(b"Return-Path: <>\r\n")
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    text, status, *_ = message.iter_parts()
    assert status.get_content_type() == "message/delivery-status"
    recipients = {}
    for block in status.get_payload()[1:]:
        fields = {name.lower(): str(value) for name, value in block.items()}
        recipients[fields["final-recipient"].partition(";")[2].strip()] = fields
    return Report(message, text.get_content(), recipients)
