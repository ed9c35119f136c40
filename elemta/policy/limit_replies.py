"""The verdict, and so the reply, for a refusal by a limit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from elemta.config import Counts, Identity, OnExceed, Rate, format_size
from elemta.limits import LimitRefusal, RefusalCause
from elemta.policy.verdicts import Defer, Disconnect, Reject, Verdict
from elemta.stage import Stage


def limit_verdict(refusal: LimitRefusal, stage: Stage) -> Verdict:
    """The verdict that tells a client the limit's name and when to try again."""
    text = _text(refusal)
    if refusal.cause is RefusalCause.UNAVAILABLE:
        # Local trouble: never permanent, whatever ``on_exceed`` says.
        return _deferral(text, stage, 451, "4.3.0")
    if refusal.action is OnExceed.DISCONNECT:
        return Disconnect(text, 421, "4.7.0")
    if refusal.action is OnExceed.REJECT:
        # RFC 5321 §4.3.2: 554 is what a greeting may say instead of 220.
        return Reject(text, 554 if stage is Stage.CONNECT else 550, "5.7.1")
    if refusal.cause is RefusalCause.IMPOSSIBLE and refusal.counts is Counts.BYTES:
        # RFC 3463 §3.4: too big for this system, and no later attempt can pass either.
        return Reject(text, 552, "5.3.4")
    return _deferral(text, stage, 450, "4.7.1")


def _deferral(text: str, stage: Stage, code: int, enhanced: str) -> Verdict:
    if stage is Stage.CONNECT:
        # RFC 5321 §4.3.2: a greeting has no other transient code.
        return Disconnect(text, 421, "4.7.0" if code == 450 else enhanced)
    if stage in (Stage.LOGIN, Stage.AUTH):
        # RFC 4954 §6: temporary authentication failure
        return Defer(text, 454, "4.7.0")
    return Defer(text, code, enhanced)


def _text(refusal: LimitRefusal) -> str:
    if refusal.cause is RefusalCause.IMPOSSIBLE:
        if refusal.counts is Counts.BYTES:
            return f"Message is larger than rate limit {refusal.limit} ever allows"
        if refusal.counts is Counts.RECIPIENTS:  # where another server asks for all of a message
            return f"More recipients at once than rate limit {refusal.limit} ever allows"
        return f"Rate limit {refusal.limit} allows nothing"
    wait = refusal.retry_after if refusal.reply_wait is None else refusal.reply_wait
    when = f"try again in {_in_words(wait)}"
    if refusal.cause is RefusalCause.UNAVAILABLE:
        return f"Rate limit {refusal.limit} can't be checked now, {when}"
    subject = " ".join((_too_much(refusal), *_whose(refusal)))
    return f"{subject} (limit {refusal.limit}{_comma(_rates(refusal))}), {when}"


def _too_much(refusal: LimitRefusal) -> str:
    if refusal.counts is Counts.RECIPIENTS and not _RECIPIENTS.isdisjoint(refusal.per):
        # Of one recipient there are not many.
        return _TOO_MUCH[Counts.MESSAGES]
    return _TOO_MUCH[refusal.counts]


def _whose(refusal: LimitRefusal) -> Iterator[str]:
    """Which of them are counted: ``from your address``, ``to this recipient``."""
    per = [_WHOSE[identity] for identity in refusal.per]
    failed_login = refusal.counts is Counts.AUTH_FAILURES
    for word in ("from", "with", "to", "on"):
        whose = [words for preposition, words in per if preposition == word]
        if whose and word == "from" and failed_login and Identity.USER in refusal.per:
            # The user has not proved to be the one whose account it is.
            whose.remove(_WHOSE[Identity.USER][1])
            yield "for this account"
        if whose:
            yield f"{word} {' and '.join(whose)}"


def _rates(refusal: LimitRefusal) -> str:
    """The rates of the limit, such as ``100 per minute and 1000 per hour``."""
    return " and ".join(_rate(rate, refusal.counts) for rate in refusal.rates)


def _rate(rate: Rate, counts: Counts) -> str:
    amount = _size(rate.limit) if counts is Counts.BYTES else str(rate.limit)
    return f"{amount} at a time" if rate.seconds is None else f"{amount} per {_span(rate.seconds)}"


def _span(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= length and seconds % length == 0:
            count = int(seconds // length)
            return unit if count == 1 else f"{count} {unit}s"
    return f"{seconds:g} seconds"


def _size(octets: int) -> str:
    text = format_size(octets)
    unit = text.lstrip("0123456789")
    return f"{text.removesuffix(unit)} {'bytes' if unit == 'B' else unit}"


def _comma(text: str) -> str:
    return f", {text}" if text else ""


def _in_words(seconds: float) -> str:
    whole = max(1, math.ceil(seconds))
    return "1 second" if whole == 1 else f"{whole} seconds"


_RECIPIENTS = frozenset({Identity.RECIPIENT, Identity.RECIPIENT_DOMAIN})
_UNITS = ((604800, "week"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_TOO_MUCH: Mapping[Counts, str] = {
    Counts.CONNECTIONS: "Too many connections",
    Counts.MESSAGES: "Too many messages",
    Counts.RECIPIENTS: "Too many recipients",
    Counts.BYTES: "Too much mail",
    Counts.AUTH_FAILURES: "Too many failed logins",
    Counts.REFUSALS: "Too many refused commands",
    Counts.OPEN_CONNECTIONS: "Too many connections",
}
_WHOSE: Mapping[Identity, tuple[str, str]] = {
    Identity.IP: ("from", "your address"),
    Identity.NETWORK: ("from", "your network"),
    Identity.USER: ("from", "your account"),
    Identity.HELO: ("with", "your HELO name"),
    Identity.SENDER: ("from", "this sender"),
    Identity.SENDER_DOMAIN: ("from", "this sender's domain"),
    Identity.RECIPIENT: ("to", "this recipient"),
    Identity.RECIPIENT_DOMAIN: ("to", "this recipient's domain"),
    Identity.LISTENER: ("on", "this port"),
    # Outbound mail waits, and no client is answered.
    Identity.DESTINATION: ("to", "this destination"),
}
