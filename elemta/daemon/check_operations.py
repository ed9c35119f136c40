"""The admin call that asks the limits for another server: ``POST /v1/limits/check``."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Annotated

from elemta.address import Address
from elemta.auth.roles import AccessRole
from elemta.config import Counts
from elemta.deferred_value import value_of
from elemta.envelope import Recipient
from elemta.ip import IPAddress
from elemta.limits import Limiter
from elemta.ops.admin_calls import route
from elemta.ops.admin_json import ClientAddress, Count, Text, Texts
from elemta.policy import limit_verdict
from elemta.stage import Stage

LISTENER = "check"
"""What a limit ``per = ["listener"]`` counts these under."""

MAX_RECIPIENTS = 1000
NO_ADDRESS = IPv4Address("0.0.0.0")
_ANY = r"(?s:.*)"
_Words = Annotated[str, Text(512, "", _ANY)]
_Recipients = Annotated[tuple[str, ...], Texts(Text(512, "an address"), MAX_RECIPIENTS, 0)]


class CheckStage(enum.Enum):
    """What happened at the other server: the counts that it is charged."""

    CONNECT = "connect"
    MAIL = "mail"
    RCPT = "rcpt"
    MESSAGE = "message"


_COUNTED = {
    CheckStage.CONNECT: frozenset({Counts.CONNECTIONS}),
    CheckStage.MAIL: frozenset({Counts.MESSAGES}),
    CheckStage.RCPT: frozenset({Counts.RECIPIENTS}),
    CheckStage.MESSAGE: frozenset({Counts.MESSAGES, Counts.BYTES}),
}
_STAGES = {
    CheckStage.CONNECT: Stage.CONNECT,
    CheckStage.MAIL: Stage.MAIL,
    CheckStage.RCPT: Stage.RCPT,
    CheckStage.MESSAGE: Stage.MESSAGE,
}


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """What the limits say. Where nothing refuses, the others are empty, and ``retry_after`` is 0.

    ``limit`` refuses, by what it counted for ``identity``; it passes after ``retry_after`` seconds (null:
    never), and ``text`` is for the client.
    """

    admitted: bool
    limit: str = ""
    identity: str = ""
    retry_after: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class _AskedSession:
    """A session and a transaction of another server, as far as limits read them."""

    client_ip: IPAddress
    helo: str
    user: str | None
    sender: Address | None
    recipients: tuple[Recipient, ...]
    size: int
    listener: str = LISTENER


class CheckOperations:
    """Charges the limits in force for what another server is about to take."""

    def __init__(self, limiter: Callable[[], Limiter]) -> None:
        self._limiter = limiter

    @route("POST", "/v1/limits/check", role=AccessRole.LIMITER)
    async def check(
        self,
        *,
        stage: CheckStage,
        ip: Annotated[IPAddress, ClientAddress()] | None = None,
        helo: _Words = "",
        user: _Words = "",
        sender: _Words | None = None,
        recipients: _Recipients = (),
        size: Annotated[int, Count(0, 2**53)] = 0,
    ) -> LimitCheck:
        """Charge all limits for a stage of a session at another server, or none where one refuses."""
        given = None if sender is None else Address.of_path(sender)
        asked = _AskedSession(ip or NO_ADDRESS, helo, user or None, given, _recipients(recipients), size)
        only = asked.recipients[0] if len(asked.recipients) == 1 else None
        charge = await value_of(self._limiter().charge_counts(_COUNTED[stage], asked, asked, only))
        refusal = charge.refusal
        if refusal is None:
            return LimitCheck(admitted=True)
        return LimitCheck(
            admitted=False,
            limit=refusal.limit,
            identity=refusal.identity,
            retry_after=refusal.retry_after,
            text=getattr(limit_verdict(refusal, _STAGES[stage]), "text", ""),
        )


def _recipients(texts: tuple[str, ...]) -> tuple[Recipient, ...]:
    return tuple(Recipient(Address.of_path(text)) for text in texts)
