"""A limiter that explains: it decides as the real one, charges copies, counts no metric and logs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elemta.config import Mode
from elemta.deferred_value import MaybeDeferred, Steps, run
from elemta.limits.charge import Charge
from elemta.limits.limiter import Limiter
from elemta.limits.overrides import Override
from elemta.limits.rules import Rule, Subject
from elemta.limits.scratch_store import ScratchStore
from elemta.limits.store import Denial, ILimitStore, Request, Usage


@dataclass(frozen=True, slots=True)
class LimitLook:
    """One limit as a conversation found it, before it was charged.

    ``used`` is for each bound of ``usage``'s request; None where the store could not be asked. ``passes`` is
    whether the limit let this pass. ``remembered``: it was refused without asking. ``override`` held in place
    of the limit's own rates.
    """

    rule: Rule
    request: Request
    usage: Usage | None
    passes: bool
    remembered: bool = False
    override: Override | None = None


class ExplainingLimiter(Limiter):
    """The rules of ``real`` over copies of what ``store`` counts. ``looks``: the limits that were asked."""

    def __init__(self, real: Limiter, store: ILimitStore, wall: Callable[[], float] | None = None) -> None:
        self._scratch = ScratchStore(store)
        super().__init__(real.rules, self._scratch, None, wall, real.mailbox, overrides=real.overrides)
        self._refusals.follow(real.remembered_refusals)
        self._return_times.follow(real.return_times)
        self.looks: list[LimitLook] = []
        self._overridden: dict[str, Override] = {}

    def _requests(self, rule: Rule, subject: Subject) -> list[Request]:
        for request in rule.requests(subject) if len(self.overrides) else ():
            override = self.overrides.of(rule, request.identity, subject.session.client_ip)
            if override is not None and override.exempt:
                self.looks.append(LimitLook(rule, request, None, passes=True, override=override))
            elif override is not None:
                self._overridden[request.key] = override
        return super()._requests(rule, subject)

    def _acquire(
        self,
        asked: list[Request],
        subject: Subject | None,
        covered: tuple[Request, ...] = (),
        no: str = "refused",
    ) -> MaybeDeferred[Charge]:
        return run(self._acquire_and_note(asked, subject, covered, no))

    def _acquire_and_note(
        self, asked: list[Request], subject: Subject | None, covered: tuple[Request, ...], no: str
    ) -> Steps[Charge]:
        remembered = {denial.request.key for denial in self._remembered(asked, self._store.seconds())}
        # What is refused from memory is looked up all the same: an operator wants to see how full it is.
        before: dict[str, Usage | None] = yield from self._scratch.look(asked)
        charge: Charge = yield super()._acquire(asked, subject, covered, no)
        for request in asked:
            usage = before.get(request.key)
            refused = request.key in remembered or usage is None or usage.wait != 0
            rule = self._by_name.get(request.spec.name)
            if rule is not None and not (remembered and request.key not in remembered):
                passes = not refused or (charge.refusal is None and rule.mode is Mode.ENFORCE)
                override = self._overridden.get(request.key)
                self.looks.append(
                    LimitLook(rule, request, usage, passes, request.key in remembered, override)
                )
        return charge

    def _observe(self, denial: Denial, seconds: float) -> None:
        """What a limit in observe mode would have refused is in :attr:`looks`, and not in the log."""

    def take_looks(self) -> Sequence[LimitLook]:
        """The limits that were asked since the last call."""
        looks, self.looks = self.looks, []
        return looks
