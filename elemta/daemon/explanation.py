"""What would happen to a client and its message, in the words of the admin API.

:class:`Explanation` is the answer of ``POST /v1/explain``; :mod:`elemta.daemon.explainer` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elemta.daemon.limit_operations import BoundFill, bounds_of
from elemta.limits.explaining_limiter import LimitLook
from elemta.limits.overrides import Override
from elemta.policy.explained_chain import PolicyAnswer
from elemta.policy.verdicts import Accept, Discard, Quarantine, name_of, reply_of
from elemta.smtp import replies
from elemta.smtp.reply import Reply

if TYPE_CHECKING:
    from elemta.net.explained_session import Exchange

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class ExplainedAnswer:
    """What one policy answered. ``text`` is its reply or its reason; ``failure`` why ``on_error`` counts."""

    policy: str
    verdict: str
    mode: str
    text: str
    failure: str | None

    @classmethod
    def of(cls, answer: PolicyAnswer) -> ExplainedAnswer:
        verdict = answer.verdict
        reply = reply_of(verdict)
        text = "" if reply is None else str(reply)
        if isinstance(verdict, (Quarantine, Discard)):
            text = verdict.reason
        return cls(
            answer.policy,
            name_of(verdict),
            "observe" if answer.observed else "enforce",
            text,
            None if answer.failure is None else answer.failure.value,
        )


@dataclass(frozen=True, slots=True)
class ExplainedLimit:
    """One limit as this client finds it.

    ``bounds`` is how full it is before the client is counted; empty where that is not known, because Valkey
    does not answer. ``passes`` is whether the limit lets it pass, or in mode observe, would. ``retry_after``
    is the seconds until it would pass, 0 for now, and null for never. ``override`` names the override that
    holds in place of the limit's rates: these or ``exempt``, its author and its note.
    """

    limit: str
    identity: str
    counts: str
    mode: str
    bounds: tuple[BoundFill, ...]
    amount: int
    passes: bool
    retry_after: float
    override: str = ""

    @classmethod
    def of(cls, look: LimitLook) -> ExplainedLimit:
        usage = look.usage
        wait: float = 0.0
        if usage is not None:
            wait = float("inf") if usage.wait is None else usage.wait / _MICROSECONDS
        return cls(
            look.rule.name,
            look.request.identity,
            look.rule.counts.value,
            look.rule.mode.value,
            () if usage is None else bounds_of(usage.request.spec, usage.used),
            look.request.amount,
            look.passes,
            wait,
            _override(look.override),
        )


def _override(override: Override | None) -> str:
    if override is None:
        return ""
    author = f" by {override.author}" if override.author else ""
    return f"{override.words}{author}{': ' if override.note else ''}{override.note}"


@dataclass(frozen=True, slots=True)
class ExplainedStage:
    """One command, or the connection itself, and what comes of it.

    ``command`` is what the client sends, ``reply`` what it reads, line by line. ``decided_by`` is the
    policy or the part of Elemta that decided; empty where nothing had an objection. ``option`` is the setting
    that decided.
    """

    stage: str
    command: str
    accepted: bool
    reply: tuple[str, ...]
    decided_by: str
    option: str
    reason: str
    policies: tuple[ExplainedAnswer, ...]
    limits: tuple[ExplainedLimit, ...]


@dataclass(frozen=True, slots=True)
class ExplainedRoute:
    """The way of one mailbox that would get the message.

    ``route`` is the target, ``destination`` where it waits, ``state`` that of the destination, and empty
    for mail that stays on this host. ``next_attempt_at`` is in seconds since the epoch.
    """

    recipient: str
    route: str
    destination: str
    state: str
    last_error: str
    next_attempt_at: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen. Nothing was charged, stored, counted or logged, and no observer heard of it.

    ``reply`` is what the client reads in the end, or where it is refused first; lines are joined. ``held``
    says why the message would go to the hold queue, ``discarded`` that it would be stored nowhere.
    ``not_asked`` are sentences about what was not looked at, and what was taken for granted.
    """

    accepted: bool
    reply: str
    listener: str
    ip: str
    stages: tuple[ExplainedStage, ...]
    routes: tuple[ExplainedRoute, ...]
    held: str | None
    discarded: bool
    not_asked: tuple[str, ...]


def stage_of(
    name: str, exchange: Exchange, answers: Sequence[PolicyAnswer], looks: Sequence[LimitLook]
) -> ExplainedStage:
    """What one exchange comes to."""
    decided_by, option = _decision(exchange, answers, looks)
    reply = exchange.reply
    return ExplainedStage(
        name,
        exchange.command,
        exchange.accepted,
        () if reply is None else lines_of(reply),
        decided_by,
        option,
        "; ".join(exchange.reasons),
        tuple(ExplainedAnswer.of(answer) for answer in answers),
        tuple(ExplainedLimit.of(look) for look in looks),
    )


def lines_of(reply: Reply) -> tuple[str, ...]:
    """The lines that a client reads."""
    return tuple(reply.encode().decode("ascii").splitlines())


def _decision(
    exchange: Exchange, answers: Sequence[PolicyAnswer], looks: Sequence[LimitLook]
) -> tuple[str, str]:
    """What decided, and the setting that did."""
    if exchange.accepted:
        for answer in answers:
            if not answer.observed and isinstance(answer.verdict, (Accept, Discard, Quarantine)):
                return answer.policy, f"policy.{answer.policy}"
        return "", ""
    kind, _, name = (exchange.reasons[-1] if exchange.reasons else "").partition(" ")
    if kind == "limit":
        return "limits", _limit_option(name)
    if kind == "policy" and name == "may_relay":
        return "relaying", "policies.may_relay, domains.relay_from"
    if kind == "policy":
        return name, _policy_option(name, exchange, answers, looks)
    return "server", _server_option(exchange)


def _policy_option(
    name: str, exchange: Exchange, answers: Sequence[PolicyAnswer], looks: Sequence[LimitLook]
) -> str:
    if any(answer.policy == name and answer.failure is not None for answer in answers):
        return f"policy.{name}.on_error"
    refusing = [look for look in looks if not look.passes and look.rule.mode.value == "enforce"]
    if refusing and any(answer.policy == name and name == "limits" for answer in answers):
        said = " ".join(exchange.reply.lines) if exchange.reply is not None else ""
        named = [look for look in refusing if f"limit {look.rule.name}" in said] or refusing
        return _limit_option(named[0].rule.name)
    if name == "relay":
        no_mailbox = exchange.reply is not None and exchange.reply.enhanced == "5.1.1"
        return "domains.recipients" if no_mailbox else "domains.local, domains.relay_from"
    return f"policy.{name}"


_OF_LIMIT = {
    "ip": "resources.max_requests_per_window",
    "connections-per-ip": "resources.max_connections_per_ip",
    "guesses-per-user": "auth.guesses_per_user",
    "guesses-per-known-client": "auth.guesses_per_user",
    "guesses-per-network": "auth.guesses_per_network",
}


def _limit_option(name: str) -> str:
    return _OF_LIMIT.get(name) or f"limit {name}"


_OF_REPLY: dict[Reply, str] = {
    replies.AUTH_REQUIRED: "listener.role",
    replies.AUTH_NEEDS_TLS: "auth.require_tls",
    replies.NOT_IMPLEMENTED: "auth.checkers",
    replies.MESSAGE_TOO_BIG: "server.max_message_size",
    replies.SENDER_NOT_OWN: "submission.senders",
    replies.AUTHOR_NOT_OWN: "submission.senders",
    replies.AUTHOR_UNREADABLE: "submission.senders",
    replies.TOO_MANY_RECIPIENTS: "server.max_recipients",
    replies.BARE_NEWLINE_IN_MESSAGE: "server.bare_newline",
    replies.NO_MAILBOX: "route.create_mailboxes, domains.recipients",
    replies.STORAGE_FULL: "spool.minimum_free",
    replies.TOO_MANY_CONNECTIONS: "resources.max_connections",
}


def _server_option(exchange: Exchange) -> str:
    return "" if exchange.reply is None else _OF_REPLY.get(exchange.reply, "")
