"""The policy ``clamav``: asks clamd whether a message carries a virus (clamd's INSTREAM)."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.option_checks import endpoint_faults, refuse
from elemta.policy import (
    CONTINUE,
    BackendError,
    IMessagePolicy,
    IPolicyPlugin,
    Message,
    Quarantine,
    Reject,
    Services,
    Session,
    Stream,
    Transaction,
    Verdict,
    setting,
)

BLOCK = 64 * 1024
MAX_ANSWER = 4096
_FOUND = re.compile(r"stream: (.+) FOUND", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ClamAVOptions:
    """The keys of [policy.clamav]."""

    endpoint: str = setting(
        "unix:/run/clamav/clamd.ctl", "Where clamd listens, as a Twisted client endpoint.", not_empty=True
    )
    quarantine: bool = setting(False, "Hold a message with a virus instead of refusing it.")
    max_size: int = setting(
        25 * 1024 * 1024,
        "Larger messages are not scanned. clamd has a limit of its own, StreamMaxLength.",
        unit="bytes",
        minimum=1,
    )


@dataclass(frozen=True, slots=True)
class ClamAVResult:
    """What clamd said: the name of the virus, "" where there is none, None where it did not scan."""

    virus: str | None


@implementer(IMessagePolicy)
class ClamAVPolicy:
    """Sends each message to clamd as it is read from disk."""

    def __init__(self, options: ClamAVOptions, services: Services) -> None:
        self._options = options
        self._services = services
        self._scanned = services.metrics.counter("scanned_total", "Messages by what clamd said.", ("result",))

    async def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:  # noqa: ARG002
        if message.size > self._options.max_size:
            return self._said(transaction, None, "too_large")
        answer = await self._ask(message)
        if answer == "stream: OK":
            return self._said(transaction, "", "clean")
        if (found := _FOUND.fullmatch(answer)) is not None:
            return self._refuse(transaction, found[1])
        if "size limit exceeded" in answer:
            self._services.log.warn("clamd takes no message as large as {size} octets", size=message.size)
            return self._said(transaction, None, "too_large")
        raise BackendError(f"clamd answered {answer!r}")

    def _said(self, transaction: Transaction, virus: str | None, result: str) -> Verdict:
        transaction.results.publish(ClamAVResult(virus))
        self._scanned.labels(result).inc()
        return CONTINUE

    def _refuse(self, transaction: Transaction, virus: str) -> Verdict:
        self._said(transaction, virus, "infected")
        name = re.sub(r"[^A-Za-z0-9._/-]", "?", virus)[:80]
        self._services.log.info(
            "a message carries {virus}",
            event="policy.virus_found",
            queue_id=transaction.queue_id,
            virus=name,
        )
        if self._options.quarantine:
            return Quarantine(f"virus {name}")
        return Reject(f"The message carries a virus ({name})", code=554, enhanced="5.7.1")

    async def _ask(self, message: Message) -> str:
        stream = await self._services.connect(self._options.endpoint)
        try:
            # Past its limit clamd answers and closes before it has read all: the answer counts then.
            with suppress(BackendError):
                await self._send(stream, message.open())
            answer = await stream.read_until(b"\0", MAX_ANSWER)
            return answer.rstrip(b"\0").decode("utf-8", "replace")
        finally:
            await stream.close()

    async def _send(self, stream: Stream, file: BinaryIO) -> None:
        stream.write(b"zINSTREAM\0")
        with file:
            while block := await self._services.threads(file.read, BLOCK):
                stream.write(struct.pack("!I", len(block)) + block)
                await stream.drain()
        stream.write(struct.pack("!I", 0))


@implementer(IPlugin, IPolicyPlugin)
class ClamAVPlugin:
    """Refuses viruses that clamd knows."""

    name = "clamav"
    contract = "2"
    options = ClamAVOptions

    def build(self, options: ClamAVOptions, services: Services) -> ClamAVPolicy:
        """Raises ConfigError where the endpoint is none."""
        refuse(endpoint_faults("endpoint", options.endpoint))
        return ClamAVPolicy(options, services)
