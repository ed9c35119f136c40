"""DNS for libraries that want their answers at once.

pyspf and dkimpy ask DNS by a function that returns the answer. Here that function never waits: it looks into
a table, and where the answer is missing the evaluation stops. The missing answers are fetched without a
thread that waits for them, and the evaluation runs once more.
So a dead DNS zone holds up no other message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import DeferredList, ensureDeferred

from elemta.policy import NoSuchDomain, ResolverTrouble

Result = TypeVar("Result")

# RFC 7208 §4.6.4: 10 mechanisms, the addresses of 10 exchangers each, and an explanation.
MAX_QUESTIONS = 160
AT_ONCE = 16
"""Questions of one message that wait for DNS at the same time."""


class FactType(Enum):
    """The types of records that the evaluations ask for."""

    A = "A"
    AAAA = "AAAA"
    MX = "MX"
    PTR = "PTR"
    TXT = "TXT"


Question = tuple[str, FactType]
"""A name in lower case, without a dot at its end, and a type."""


@dataclass(frozen=True, slots=True)
class DnsFact:
    """What is known of a name and type: ``values``, empty where there are none, or why that isn't known.

    Values are text; those of MX are ``(preference, host)``.
    """

    values: tuple[object, ...] = ()
    trouble: str | None = None


class Lookups(Protocol):
    """Asks DNS. Raises :class:`NoSuchDomain` and :class:`ResolverTrouble` as a policy's resolver does."""

    async def lookup(self, name: str, kind: FactType) -> tuple[object, ...]:
        """The values of the records, the aliases (CNAME) followed."""


class MissingFact(Exception):
    """The table has no answer yet. Only :func:`evaluate` catches it."""


@dataclass(slots=True)
class DnsFacts:
    """The answers that one evaluation has so far."""

    known: dict[Question, DnsFact] = field(default_factory=dict)
    missing: list[Question] = field(default_factory=list)

    def get(self, name: str, kind: FactType) -> DnsFact:
        """The answer for ``name``, or :class:`MissingFact`."""
        question = name.lower().rstrip("."), kind
        fact = self.known.get(question)
        if fact is None:
            self.missing.append(question)
            raise MissingFact(question)
        return fact


async def evaluate(
    step: Callable[[DnsFacts], Result],
    lookups: Lookups,
    run: Callable[[Callable[[], Result]], Awaitable[Result]],
    facts: DnsFacts | None = None,
    wanted: Iterable[Question] = (),
) -> Result:
    """Run ``step`` until it has every answer that it asks for; ``run`` calls it, usually in a thread.

    ``wanted`` are asked before the first run. After ``MAX_QUESTIONS`` answers every further one is trouble,
    so an evaluation always ends.
    """
    facts = DnsFacts() if facts is None else facts
    await fetch(lookups, facts, wanted)
    while True:
        facts.missing.clear()
        try:
            result = await run(lambda: step(facts))
        except MissingFact:
            pass
        else:
            # A library may swallow the exception; what it made of that is not a result.
            if not facts.missing:
                return result
        await fetch(lookups, facts, facts.missing)


async def fetch(lookups: Lookups, facts: DnsFacts, questions: Iterable[Question]) -> None:
    """Ask what is not known yet, many questions at once.

    What will be asked is better asked before an evaluation: each run of it does again what the ones before
    did. And of a name server that does not answer each wait takes nearly all of the time that is left.
    """
    wanted = [question for question in dict.fromkeys(questions) if question not in facts.known]
    for start in range(0, len(wanted), AT_ONCE):
        some, asked = wanted[start : start + AT_ONCE], len(facts.known)
        asking = [ensureDeferred(_ask(lookups, each, asked + n)) for n, each in enumerate(some)]
        answers: list[tuple[bool, Any]] = await DeferredList(asking, consumeErrors=True)
        for question, (fine, found) in zip(some, answers, strict=True):
            if not fine:
                found.raiseException()
            facts.known[question] = found


async def _ask(lookups: Lookups, question: Question, asked: int) -> DnsFact:
    if asked >= MAX_QUESTIONS:
        return DnsFact(trouble="too many questions for one message")
    try:
        return DnsFact(await lookups.lookup(*question))
    except NoSuchDomain:
        return DnsFact()
    except ResolverTrouble as error:
        return DnsFact(trouble=str(error))
