"""The policy ``limits``: charges the limits of the configuration at every stage and refuses as they say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import alsoProvides, implementer
from zope.interface.interface import InterfaceClass

from elemta.policies.limit_ledger import SessionLedger, TransactionLedger
from elemta.policy import (
    CONTINUE,
    Charge,
    IAuthPolicy,
    IConnectPolicy,
    IHeloPolicy,
    ILimitPolicy,
    ILoginObserver,
    ILoginPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IPolicyPlugin,
    IRcptPolicy,
    LimitRefusal,
    Limits,
    LoginOutcome,
    MaybeDeferred,
    Message,
    Receipt,
    Recipient,
    Services,
    Session,
    Stage,
    Steps,
    Transaction,
    Verdict,
    limit_verdict,
    run,
    setting,
    then,
)

_LEDGER = "ledger"
# A call that is made a moment too early is refused once more.
_MARGIN = 0.001
MAX_DELAYED = 200
"""So many clients are kept waiting at once by limits that delay; others are deferred at once."""


@dataclass(frozen=True, slots=True)
class LimitsOptions:
    """The options of ``[policy.limits]`` beside those of every policy."""

    max_delay: float = setting(
        4.0,
        'The longest that a client is kept waiting by a limit with on_exceed = "delay"; then it is deferred. '
        "Keep it below this policy's timeout, by what a check may wait for Valkey.",
        unit="seconds",
        minimum=0.0,
        maximum=240.0,
    )


@dataclass(slots=True, eq=False)
class _Charged:
    """The subject of a charge, with the ledgers it goes into."""

    stage: Stage
    session: Session
    ledger: SessionLedger
    transaction: Transaction | None = None
    recipient: Recipient | None = None
    entries: TransactionLedger | None = None

    @property
    def already(self) -> Collection[str]:
        if self.entries is None or not self.entries.keys:
            return self.ledger.keys
        return {*self.ledger.keys, *self.entries.keys}

    @property
    def over(self) -> bool:
        """Whether what is charged now would be for something that has ended."""
        return self.ledger.over or (self.entries is not None and self.entries.over)


_STAGES: dict[Stage, InterfaceClass] = {
    Stage.CONNECT: IConnectPolicy,
    Stage.HELO: IHeloPolicy,
    Stage.AUTH: IAuthPolicy,
    Stage.MAIL: IMailPolicy,
    Stage.RCPT: IRcptPolicy,
    Stage.MESSAGE: IMessagePolicy,
}


@implementer(ILoginPolicy, IOutcomeObserver, ILoginObserver, ILimitPolicy)
class LimitsPolicy:
    """Keeps the receipts of what it charged, and gives back what came to nothing.

    It provides the stages at which there is a limit, and is asked at no other. Charges of a transaction that
    is refused or abandoned are refunded, and those for recipients that a later policy refused. Those of a
    connection stay when a policy refuses it; only its lease ends.
    """

    def __init__(self, limits: Limits, reactor: IReactorTime, options: LimitsOptions) -> None:
        self._limits = limits
        self._reactor = reactor
        self.max_delay = options.max_delay
        self._delayed = 0
        charged = {stage for stage in _STAGES if limits.charges(stage)}
        if charged & {Stage.RCPT, Stage.MESSAGE}:
            # There it gives back what was charged for a transaction that another policy ended.
            charged.add(Stage.MAIL)
        alsoProvides(self, *(interface for stage, interface in _STAGES.items() if stage in charged))

    def connected(self, session: Session) -> MaybeDeferred[Verdict]:
        if not self._limits.charges(Stage.CONNECT):
            return CONTINUE
        return self._charge(_Charged(Stage.CONNECT, session, _ledger(session)))

    def helo(self, session: Session) -> MaybeDeferred[Verdict]:
        if not self._limits.charges(Stage.HELO):
            return CONTINUE
        return self._charge(_Charged(Stage.HELO, session, _ledger(session)))

    def login(self, session: Session, username: str) -> MaybeDeferred[Verdict]:
        return run(self._charge_login(session, username))

    def login_ended(self, session: Session, username: str, outcome: LoginOutcome) -> MaybeDeferred[None]:
        ledger = _ledger(session)
        receipts, ledger.login = ledger.login, ()
        if outcome is LoginOutcome.GOOD:
            self._limits.remember_login(session, username)
        # Only failures are counted.
        return None if outcome is LoginOutcome.BAD else self._limits.refund(receipts)

    def authenticated(self, session: Session) -> MaybeDeferred[Verdict]:
        if not self._limits.charges(Stage.AUTH):
            return CONTINUE
        return self._charge(_Charged(Stage.AUTH, session, _ledger(session)))

    def mail(self, session: Session, transaction: Transaction) -> MaybeDeferred[Verdict]:
        abandoned = _ledger(session).transaction
        if abandoned is not None and not abandoned.over:
            # Another policy refused the MAIL before this one: that transaction never began.
            self._limits.refund(abandoned.refused())
        return self._of_transaction(Stage.MAIL, session, transaction)

    def rcpt(
        self, session: Session, transaction: Transaction, recipient: Recipient
    ) -> MaybeDeferred[Verdict]:
        return self._of_transaction(Stage.RCPT, session, transaction, recipient)

    def message(self, session: Session, transaction: Transaction, message: Message) -> MaybeDeferred[Verdict]:
        del message  # its size is the transaction's by now
        return self._of_transaction(Stage.MESSAGE, session, transaction)

    def committed(self, session: Session, transaction: Transaction, queue_id: str) -> MaybeDeferred[None]:
        del session, queue_id
        entries: TransactionLedger | None = transaction.notes.get(_LEDGER)
        return None if entries is None else self._limits.refund(entries.committed(transaction.recipients))

    def refused(self, session: Session, transaction: Transaction) -> MaybeDeferred[None]:
        del session
        entries: TransactionLedger | None = transaction.notes.get(_LEDGER)
        return None if entries is None else self._limits.refund(entries.refused())

    def disconnected(self, session: Session) -> MaybeDeferred[None]:
        ledger = _ledger(session)
        ledger.over = True
        if ledger.transaction is not None and not ledger.transaction.over:
            self._limits.refund(ledger.transaction.refused())
        return self._limits.release(ledger.receipts)

    def _of_transaction(
        self, stage: Stage, session: Session, transaction: Transaction, recipient: Recipient | None = None
    ) -> MaybeDeferred[Verdict]:
        if not self._limits.charges(stage):
            return CONTINUE
        ledger = _ledger(session)
        entries: TransactionLedger | None = transaction.notes.get(_LEDGER)
        if entries is None:
            entries = ledger.transaction = transaction.notes[_LEDGER] = TransactionLedger()
        return self._charge(_Charged(stage, session, ledger, transaction, recipient, entries))

    def _charge_login(self, session: Session, username: str) -> Steps[Verdict]:
        ledger = _ledger(session)
        charge: Charge = yield self._limits.charge_login(session, username)
        if charge.refusal is not None:
            return limit_verdict(charge.refusal, Stage.LOGIN)
        ledger.login = charge.receipts
        return CONTINUE

    def _charge(self, about: _Charged, *, again: bool = False) -> MaybeDeferred[Verdict]:
        may_delay = not again and self._delayed < MAX_DELAYED
        began = self._reactor.seconds()
        charge = self._limits.charge(
            about.stage,
            about.session,
            about.transaction,
            about.recipient,
            already=about.already,
            may_delay=may_delay,
        )
        return then(charge, self._record, about, may_delay, began)

    def _record(
        self, charge: Charge, about: _Charged, may_delay: bool, began: float
    ) -> MaybeDeferred[Verdict]:
        if about.over:
            self._give_back(charge.receipts)
            return CONTINUE
        about.ledger.record(charge, comes_again=about.stage is not Stage.CONNECT)
        if about.entries is not None:
            about.entries.record(charge, about.recipient)
        refusal = charge.refusal
        if refusal is None:
            return CONTINUE
        if may_delay and refusal.delays and self._delayed < MAX_DELAYED:
            return run(self._charge_again(about, refusal, began))
        return limit_verdict(refusal, about.stage)

    def _charge_again(self, about: _Charged, refusal: LimitRefusal, began: float) -> Steps[Verdict]:
        yield from self._delay(refusal, began)
        verdict: Verdict = CONTINUE if about.over else (yield self._charge(about, again=True))
        return verdict

    def _delay(self, refusal: LimitRefusal, began: float) -> Steps[None]:
        """Wait until it would pass, or as long as we may: what the first check took is a part of that."""
        left = max(0.0, began + self.max_delay - self._reactor.seconds())
        self._delayed += 1
        try:
            yield deferLater(self._reactor, min(refusal.retry_after + _MARGIN, left))
        finally:
            self._delayed -= 1

    def _give_back(self, receipts: tuple[Receipt, ...]) -> None:
        self._limits.refund(receipts)
        self._limits.release(receipts)


def _ledger(session: Session) -> SessionLedger:
    ledger: SessionLedger | None = session.notes.get(_LEDGER)
    if ledger is None:
        ledger = session.notes[_LEDGER] = SessionLedger()
    return ledger


@implementer(IPlugin, IPolicyPlugin)
class LimitsPlugin:
    """Charges every [[limit]], and the two limits of [resources]."""

    name = "limits"
    options = LimitsOptions

    def build(self, options: LimitsOptions, services: Services) -> LimitsPolicy:
        """The policy over the limits of the configuration."""
        return LimitsPolicy(services.limits, services.reactor, options)
