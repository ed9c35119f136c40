"""The verdict, and so the reply, for a refusal by a limit."""

from __future__ import annotations

import math

from elemta.config import Counts, OnExceed
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
        return f"Rate limit {refusal.limit} allows nothing"
    when = f"try again in {_in_words(refusal.retry_after)}"
    if refusal.cause is RefusalCause.UNAVAILABLE:
        return f"Rate limit {refusal.limit} can't be checked now, {when}"
    if refusal.counts is Counts.OPEN_CONNECTIONS:
        return f"Too many connections, limit {refusal.limit}, {when}"
    return f"Rate limit {refusal.limit} exceeded, {when}"


def _in_words(seconds: float) -> str:
    whole = max(1, math.ceil(seconds))
    return "1 second" if whole == 1 else f"{whole} seconds"
