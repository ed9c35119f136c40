"""The policy ``limits``: charges the limits of the configuration at every stage and says what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.config import Counts, OnExceed
from elemta.envelope import Recipient
from elemta.limits.ledger import SessionLedger, TransactionLedger
from elemta.limits.limiter import Charge, Limiter, LimitRefusal, RefusalCause
from elemta.limits.store import Receipt
from elemta.policy import (
    CONTINUE,
    Defer,
    Disconnect,
    IAuthPolicy,
    IConnectPolicy,
    IHeloPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IPolicyPlugin,
    IRcptPolicy,
    MaybeDeferred,
    Message,
    Reject,
    Services,
    Session,
    Stage,
    Steps,
    Transaction,
    Verdict,
    detached,
    run,
    setting,
)

_LEDGER = "ledger"
# A call that is made a moment too early is refused once more.
_MARGIN = 0.001
MAX_DELAYED = 200
"""So many clients are kept waiting at once by limits that delay; others are deferred at once."""


@dataclass(frozen=True, slots=True)
class LimitsOptions:
    """What ``[policy.limits]`` may say beside what every policy takes."""

    max_delay: float = setting(
        4.0,
        'The longest that a client is kept waiting by a limit with on_exceed = "delay"; then it is deferred. '
        "Keep it below this policy's timeout.",
        unit="seconds",
        minimum=0.0,
        maximum=240.0,
    )


@dataclass(frozen=True, slots=True)
class _Charged:
    """Whom a charge is for, with the ledgers it goes into."""

    stage: Stage
    session: Session
    ledger: SessionLedger
    transaction: Transaction | None = None
    recipient: Recipient | None = None
    entries: TransactionLedger | None = None

    @property
    def already(self) -> set[str]:
        if self.entries is None or not self.entries.keys:
            return self.ledger.keys
        return self.ledger.keys | self.entries.keys

    @property
    def over(self) -> bool:
        """Whether what is charged now would be for something that has ended."""
        return self.ledger.over or (self.entries is not None and self.entries.over)


@implementer(
    IConnectPolicy, IHeloPolicy, IAuthPolicy, IMailPolicy, IRcptPolicy, IMessagePolicy, IOutcomeObserver
)
class LimitsPolicy:
    """Keeps the receipts of what it charged, and gives back what came to nothing.

    Charges of a transaction that is refused or abandoned are refunded, and those for recipients that a
    later policy refused. Those of a connection stay when a policy refuses it; only its lease ends.
    """

    def __init__(self, limiter: Limiter, reactor: IReactorTime, log: Logger, options: LimitsOptions) -> None:
        self._limiter = limiter
        self._reactor = reactor
        self._log = log
        self.max_delay = options.max_delay
        self._delayed = 0

    def connected(self, session: Session) -> MaybeDeferred[Verdict]:
        return self._of_session(Stage.CONNECT, session)

    def helo(self, session: Session) -> MaybeDeferred[Verdict]:
        return self._of_session(Stage.HELO, session)

    def authenticated(self, session: Session) -> MaybeDeferred[Verdict]:
        return self._of_session(Stage.AUTH, session)

    def mail(self, session: Session, transaction: Transaction) -> MaybeDeferred[Verdict]:
        abandoned = _ledger(session).transaction
        if abandoned is not None and not abandoned.over:
            # Another policy refused the MAIL before this one: that transaction never began.
            self._limiter.refund(abandoned.refused())
        return self._of_transaction(Stage.MAIL, session, transaction)

    def rcpt(
        self, session: Session, transaction: Transaction, recipient: Recipient
    ) -> MaybeDeferred[Verdict]:
        return self._of_transaction(Stage.RCPT, session, transaction, recipient)

    def message(self, session: Session, transaction: Transaction, message: Message) -> MaybeDeferred[Verdict]:
        del message  # its size is the transaction's by now
        return self._of_transaction(Stage.MESSAGE, session, transaction)

    def committed(self, session: Session, transaction: Transaction) -> Deferred[None] | None:
        del session
        entries = cast("TransactionLedger | None", transaction.notes.get(_LEDGER))
        return None if entries is None else self._limiter.refund(entries.committed(transaction.recipients))

    def refused(self, session: Session, transaction: Transaction) -> Deferred[None] | None:
        del session
        entries = cast("TransactionLedger | None", transaction.notes.get(_LEDGER))
        return None if entries is None else self._limiter.refund(entries.refused())

    def disconnected(self, session: Session) -> Deferred[None] | None:
        ledger = _ledger(session)
        ledger.over = True
        if ledger.transaction is not None and not ledger.transaction.over:
            self._limiter.refund(ledger.transaction.refused())
        return self._limiter.release(ledger.receipts)

    def _of_session(self, stage: Stage, session: Session) -> MaybeDeferred[Verdict]:
        if not self._limiter.charges(stage):
            return CONTINUE
        return run(self._charge(_Charged(stage, session, _ledger(session))))

    def _of_transaction(
        self, stage: Stage, session: Session, transaction: Transaction, recipient: Recipient | None = None
    ) -> MaybeDeferred[Verdict]:
        if not self._limiter.charges(stage):
            return CONTINUE
        ledger = _ledger(session)
        entries = cast("TransactionLedger | None", transaction.notes.get(_LEDGER))
        if entries is None:
            entries = ledger.transaction = transaction.notes[_LEDGER] = TransactionLedger()
        return run(self._charge(_Charged(stage, session, ledger, transaction, recipient, entries)))

    def _charge(self, about: _Charged, *, again: bool = False) -> Steps[Verdict]:
        may_delay = not again and self._delayed < MAX_DELAYED
        asked = detached(
            self._limiter.charge(
                about.stage,
                about.session,
                about.transaction,
                about.recipient,
                already=about.already,
                may_delay=may_delay,
            ),
            self._give_back_unwanted,
            self._log_unwanted,
        )
        charge: Charge = yield asked
        if about.over:
            self._give_back(charge.receipts)
            return CONTINUE
        about.ledger.record(charge)
        if about.entries is not None:
            about.entries.record(charge, about.recipient)
        refusal = charge.refusal
        if refusal is None:
            return CONTINUE
        if may_delay and refusal.delays and self._delayed < MAX_DELAYED:
            yield from self._delay(refusal)
            return CONTINUE if about.over else (yield from self._charge(about, again=True))
        return verdict_of(refusal, about.stage)

    def _delay(self, refusal: LimitRefusal) -> Steps[None]:
        """Wait until it would pass, or as long as we may."""
        self._delayed += 1
        try:
            yield deferLater(self._reactor, min(refusal.retry_after + _MARGIN, self.max_delay))
        finally:
            self._delayed -= 1

    def _give_back_unwanted(self, charge: Charge) -> None:
        """The session did not wait for the store's answer: give back what was charged."""
        self._give_back(charge.receipts)

    def _log_unwanted(self, failure: Failure) -> None:
        self._log.failure("a limit that nothing waits for failed", failure, event="limits.trouble")

    def _give_back(self, receipts: tuple[Receipt, ...]) -> None:
        self._limiter.refund(receipts)
        self._limiter.release(receipts)


def verdict_of(refusal: LimitRefusal, stage: Stage) -> Verdict:
    """The reply's text: the limit's name and when to try again."""
    text = _text(refusal)
    if refusal.cause is RefusalCause.UNAVAILABLE:
        # Local trouble: never permanent, whatever the limit does when it is exceeded.
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
    if stage is Stage.AUTH:
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


def _ledger(session: Session) -> SessionLedger:
    ledger = cast("SessionLedger | None", session.notes.get(_LEDGER))
    if ledger is None:
        ledger = session.notes[_LEDGER] = SessionLedger()
    return ledger


@implementer(IPlugin, IPolicyPlugin)
class LimitsPlugin:
    """How much of what: every [[limit]], and the two limits of [resources]."""

    name = "limits"
    options = LimitsOptions

    def build(self, options: LimitsOptions, services: Services) -> LimitsPolicy:
        """The policy over the limits of the configuration."""
        return LimitsPolicy(cast(Limiter, services.limits), services.reactor, services.log, options)
