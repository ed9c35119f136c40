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
from typing import Protocol, TypeVar

from elemta.policy import NoSuchDomain, ResolverTrouble

Result = TypeVar("Result")

# RFC 7208 §4.6.4: 10 mechanisms, the addresses of 10 exchangers each, and an explanation.
MAX_QUESTIONS = 160


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

    ``wanted`` are asked before the first run: each further run does again what the ones before it did.
    After ``MAX_QUESTIONS`` answers every further one is trouble, so an evaluation always ends.
    """
    facts = DnsFacts() if facts is None else facts
    await _fetch(lookups, facts, wanted)
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
        await _fetch(lookups, facts, facts.missing)


async def _fetch(lookups: Lookups, facts: DnsFacts, questions: Iterable[Question]) -> None:
    for question in dict.fromkeys(questions):
        if question not in facts.known:
            facts.known[question] = await _ask(lookups, question, len(facts.known))


async def _ask(lookups: Lookups, question: Question, asked: int) -> DnsFact:
    if asked >= MAX_QUESTIONS:
        return DnsFact(trouble="too many questions for one message")
    try:
        return DnsFact(await lookups.lookup(*question))
    except NoSuchDomain:
        return DnsFact()
    except ResolverTrouble as error:
        return DnsFact(trouble=str(error))
