"""Verdicts: what a policy answers. The first decisive one in the chain's order wins.

A ``Quarantine`` is not decisive: it marks, and the policies after it are asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from elemta.policy.route_choice import RouteChoice, SourceAddress, read_choice
from elemta.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Verdict:
    """The base of all verdicts."""


@dataclass(frozen=True, slots=True)
class Continue(Verdict):
    """No opinion: ask the next policy. When no policy has one, the command is accepted."""


@dataclass(frozen=True, slots=True)
class Accept(Verdict):
    """Accepted: no further policy is asked at this stage.

    It grants relaying only where ``[policies] may_relay`` names the policy. After an ``Accept`` at RCPT from
    another policy, the policies that may grant relaying are still asked.
    """


@dataclass(frozen=True, slots=True)
class Defer(Verdict):
    """Not now: a 4xx reply. ``text`` is what the peer reads; keep it generic and log the reason."""

    text: str
    code: int = 450
    enhanced: str = "4.7.1"


@dataclass(frozen=True, slots=True)
class Reject(Verdict):
    """No: a 5xx reply. ``text`` is what the peer reads; keep it generic and log the reason."""

    text: str
    code: int = 550
    enhanced: str = "5.7.1"


@dataclass(frozen=True, slots=True)
class Disconnect(Verdict):
    """The reply, then the connection is closed. The code may be any 4xx or 5xx; 421 is the usual one."""

    text: str
    code: int = 421
    enhanced: str = "4.7.0"


@dataclass(frozen=True, slots=True)
class Quarantine(Verdict):
    """The message goes to the hold queue if it is accepted; the operator sees ``reason`` there.

    The policies after it are still asked, and a refusal by one of them wins.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Discard(Verdict):
    """The client reads 250, and nothing is stored; ``reason`` is in the log.

    At RCPT that recipient is dropped. At any other stage the message is, and at CONNECT, HELO or AUTH every
    message of the session. A recipient to which the client may not relay is refused all the same.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class RouteTo(Verdict):
    """In delivery: the recipient's route is ``target``, in any form of ``to`` in ``[[route]]``.

    The others are as ``[[route]]`` has them: ``tls`` is none, may, require or implicit; ``source`` an address
    of this host to connect from, or one of each family; ``address_family`` any, ipv4, ipv6 or prefer_ipv4.
    ``credentials`` are a pair of user and password, or a text ``user:password``, for AUTH at the next hop.
    None is what the ``[[route]]`` with the same ``to`` has, else the default of a route.
    """

    target: str
    tls: str | None = None
    source: SourceAddress | Sequence[SourceAddress] | None = None
    credentials: Sequence[str] | None = field(default=None, repr=False)
    address_family: str | None = None

    def choice(self) -> RouteChoice:
        """What it says, read and checked; ValueError, without the credentials, where that is impossible."""
        return read_choice(self.target, self.tls, self.source, self.credentials, self.address_family)


@dataclass(frozen=True, slots=True)
class Hold(Verdict):
    """In delivery: the recipient stays in the hold queue; the operator sees ``reason`` there."""

    reason: str


CONTINUE = Continue()

_Refusal = Defer | Reject | Disconnect

_NAMES: dict[type[Verdict], str] = {
    Continue: "continue",
    Accept: "accept",
    Defer: "defer",
    Reject: "reject",
    Disconnect: "disconnect",
    Quarantine: "quarantine",
    Discard: "discard",
    RouteTo: "route",
    Hold: "hold",
}

_NO_VERDICT = "no verdict but None: does a method end without return CONTINUE?"

# RFC 3463 §2
_ENHANCED = re.compile(r"[45]\.\d{1,3}\.\d{1,3}", re.ASCII)


def name_of(verdict: Verdict) -> str:
    """The verdict's name in metrics and logs.

    It is continue, accept, defer, reject, disconnect or quarantine; in delivery also route or hold.
    """
    name = _NAMES.get(type(verdict))
    if name is None:  # a plugin may have derived a class of its own
        name = next((_NAMES[kind] for kind in type(verdict).__mro__ if kind in _NAMES), "invalid")
    return name


def reply_of(verdict: Verdict) -> Reply | None:
    """The reply for this verdict; None where the verdict refuses nothing.

    The verdict is one in which :func:`verdict_problem` finds nothing: the chain gives no others.
    """
    if isinstance(verdict, _Refusal):
        return Reply(verdict.code, verdict.enhanced, tuple(verdict.text.splitlines()) or ("",))
    return None


def verdict_problem(answer: object) -> str | None:
    """Why ``answer`` is no valid verdict, for the log; None where it is one.

    A code must be one that RFC 5321 §4.2 allows and of the verdict's own class (a ``Defer`` is 4xx), and
    the enhanced status code must be of the same class as the code (RFC 2034 §4).
    """
    if isinstance(answer, Continue | Accept):
        return None
    if isinstance(answer, (Quarantine, Discard)):
        kind = type(answer).__name__
        return None if isinstance(answer.reason, str) else f"the reason of a {kind} is not a text"
    if isinstance(answer, Defer):
        return _refusal_problem(answer, (4,))
    if isinstance(answer, Reject):
        return _refusal_problem(answer, (5,))
    if isinstance(answer, Disconnect):
        return _refusal_problem(answer, (4, 5))
    return _NO_VERDICT if answer is None else f"not a verdict but {type(answer).__name__}"


def route_problem(answer: object) -> str | None:
    """Why ``answer`` is no valid choice of a route, for the log; None where it is one."""
    if isinstance(answer, Continue):
        return None
    if isinstance(answer, Hold):
        return None if isinstance(answer.reason, str) else "the reason of a Hold is not a text"
    if isinstance(answer, Defer):
        return _refusal_problem(answer, (4,))
    if isinstance(answer, RouteTo):
        return _choice_problem(answer)
    return _NO_VERDICT if answer is None else f"no choice of a route but {type(answer).__name__}"


def _choice_problem(answer: RouteTo) -> str | None:
    try:
        answer.choice()
    except ValueError as error:
        return str(error)
    return None


def _refusal_problem(verdict: _Refusal, classes: tuple[int, ...]) -> str | None:
    name = type(verdict).__name__
    code, enhanced = verdict.code, verdict.enhanced
    if not isinstance(verdict.text, str):
        return f"the text of a {name} is not a text"
    # RFC 5321 §4.2: Reply-code = %x32-35 %x30-35 %x30-39
    if not isinstance(code, int) or code // 100 not in classes or code % 100 >= 60:
        return f"{name} with the code {code!r}"
    if code == 421 and not isinstance(verdict, Disconnect):
        return f"{name} with the code 421, which closes the connection: that is Disconnect"
    if not isinstance(enhanced, str) or not _ENHANCED.fullmatch(enhanced) or int(enhanced[0]) != code // 100:
        return f"{name} with the code {code} and the enhanced status code {enhanced!r}"
    return None
