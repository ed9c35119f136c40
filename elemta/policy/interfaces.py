"""The interfaces of the plugin contract: one per stage, the plugin that builds a policy, and the observer.

A policy provides the interfaces of its stages and is asked at no other stage. A method returns a verdict, or
a Deferred or coroutine of one. ``session``, ``transaction`` and
``message`` are the views of :mod:`elemta.policy.views`.
"""

from __future__ import annotations

import enum
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface
from zope.interface.interface import InterfaceClass

from elemta.envelope import Envelope, Recipient
from elemta.outcome import Outcome
from elemta.policy.message_view import OutgoingMessage
from elemta.policy.services import Services
from elemta.policy.verdicts import Verdict
from elemta.policy.views import Message, Session, Transaction
from elemta.stage import Stage

PolicyAnswer = Verdict | Deferred[Verdict] | Coroutine[Deferred[Any], Any, Verdict]
"""What a policy's method returns: a verdict, now or later."""

FactAnswer = Deferred[None] | Coroutine[Deferred[Any], Any, None] | None
"""What an observer's method returns: nothing, now or later."""


class IConnectPolicy(Interface):
    """Asked before the greeting."""

    def connected(session: Session) -> PolicyAnswer:
        """A client has connected. Neither HELO name nor user are known yet."""


class IHeloPolicy(Interface):
    """Asked at HELO, EHLO and LHLO."""

    def helo(session: Session) -> PolicyAnswer:
        """The client sent its name, which is ``session.helo``."""


class ILoginPolicy(Interface):
    """Asked at AUTH, before a password is looked at."""

    def login(session: Session, username: str) -> PolicyAnswer:
        """The client wants to log in as ``username``.

        The name is folded to one spelling: width, case and Unicode form do not tell two users apart, and
        nothing says that there is such a user. A refusal is the reply to AUTH. A charge made here is for a
        failure: take it back when :class:`ILoginObserver` hears of anything else.
        """


class IAuthPolicy(Interface):
    """Asked after good credentials, before 235."""

    def authenticated(session: Session) -> PolicyAnswer:
        """The client has logged in as ``session.user``."""


class IMailPolicy(Interface):
    """Asked at MAIL."""

    def mail(session: Session, transaction: Transaction) -> PolicyAnswer:
        """The client begins a transaction; ``transaction.sender`` is the reverse-path."""


class IRcptPolicy(Interface):
    """Asked at each RCPT."""

    def rcpt(session: Session, transaction: Transaction, recipient: Recipient) -> PolicyAnswer:
        """The client names ``recipient``, which is not among ``transaction.recipients`` yet."""


class IDataPolicy(Interface):
    """Asked before 354, or at the first BDAT."""

    def data(session: Session, transaction: Transaction) -> PolicyAnswer:
        """The client wants to send the message; ``transaction.recipients`` are those that were accepted."""


class IMessagePolicy(Interface):
    """Asked with the whole message in hand, before it is committed to the spool."""

    def message(session: Session, transaction: Transaction, message: Message) -> PolicyAnswer:
        """The client has sent ``message`` and waits for the reply."""


class ISigner(Interface):
    """Asked last of all about each message of ours that leaves.

    That is accepted mail, after all policies, and our own notices, whose ``envelope.client.listener`` is
    "bounce".
    """

    def sign(envelope: Envelope, message: OutgoingMessage) -> FactAnswer:
        """Add header fields to the message, which is as it will be stored.

        Where the policy fails, ``on_error`` says what becomes of the message: ``accept`` stores it without
        the fields, ``defer`` and ``reject`` refuse it. A notice that is not stored is made again later.
        """


class IDeliveryPolicy(Interface):
    """Asked for a recipient's route before a delivery is planned."""

    def route(envelope: Envelope, recipient: Recipient) -> PolicyAnswer:
        """``RouteTo`` a target, ``Hold``, ``Defer``, or ``CONTINUE`` for the routes of the configuration.

        Asked for each recipient before each attempt: the answer is not kept.
        """


class IDeliveryObserver(Interface):
    """Called after each delivery attempt, and at the end of a delivery: facts.

    A policy may leave out ``ended``, which version 1 of the contract did not have:
    ``ended(envelope, recipient, outcome)`` says that nothing more is tried for a recipient.
    ``outcome.reason`` is ``delivered``, ``failed``, ``expired``, ``bounced`` or ``deleted``.

    ``recording`` came with version 2.1 and may be left out, too: ``recording(envelope, recipient, outcome)``
    is called before what came of a recipient is recorded in the queue. The record waits until the policy is
    done, at most the policy's timeout, so what the policy keeps here outlives a crash as the record does.
    After a crash it may come twice for the same recipient, or say what never was recorded.
    ``outcome.reason`` is that of ``ended``, or ``deferred``. It is not called for what an operator deletes.
    """

    def attempted(outcome: Outcome) -> FactAnswer:
        """An attempt for one recipient came to ``outcome``. It may not be recorded yet."""


class IOutcomeObserver(Interface):
    """Called when transactions and sessions end: facts, for refunds and counters.

    A policy may leave out ``decided``, which version 1 of the contract did not have:
    ``decided(session, policy, stage, verdict)`` is called when the policies of a stage have decided;
    ``policy`` is the name of the one that did, "" where none had an opinion.

    ``refused_at`` came with version 2.1 and may be left out, too:
    ``refused_at(session, stage, reply, transaction, recipient)`` is called when the client gets a reply that
    refuses what it asked for at ``stage``, whatever the reason: a policy, a mailbox that is not there, or
    trouble here. ``reply`` has ``code``, ``enhanced`` and ``text``. ``transaction`` is None before MAIL, and
    ``recipient`` None at other stages than RCPT.
    """

    def committed(session: Session, transaction: Transaction, queue_id: str) -> FactAnswer:
        """The message of ``transaction`` was accepted: it is on stable storage, or discarded.

        A method without ``queue_id``, as in version 1 of the contract, is called without it.
        """

    def refused(session: Session, transaction: Transaction) -> FactAnswer:
        """``transaction`` ended without a message: refused, reset, or its client went away."""

    def disconnected(session: Session) -> FactAnswer:
        """The session is over. Called once, last."""


class IFirstOutcomeObserver(Interface):
    """:class:`IOutcomeObserver` as it was in version 1 of the contract."""

    def committed(session: Session, transaction: Transaction) -> FactAnswer: ...

    def refused(session: Session, transaction: Transaction) -> FactAnswer: ...

    def disconnected(session: Session) -> FactAnswer: ...


class LoginOutcome(enum.Enum):
    """How an attempt to log in ended.

    ``GOOD`` and ``BAD`` are what the credentials were. ``UNKNOWN``: a policy refused the attempt, the client
    left before the password was looked at, or the credentials could not be checked.
    """

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


class ILoginObserver(Interface):
    """Called when attempts to log in end: facts."""

    def login_ended(session: Session, username: str, outcome: LoginOutcome) -> FactAnswer:
        """The attempt about which :meth:`ILoginPolicy.login` was asked is over.

        Called once at most, and not where the client left while the password was checked.
        """


class ILifecycle(Interface):
    """A policy that opens something of its own: started before it is first asked, stopped at its end."""

    def start(predecessor: object | None) -> FactAnswer:
        """Open what the policy needs.

        ``predecessor`` is the policy of this name that a reload replaces, else None: take over its sockets,
        caches and connections. It is still asked by the sessions that began with it. A start that raises, or
        does not end within the policy's timeout, is tried again; until then the policy is not asked, and its
        ``on_error`` verdict applies.
        """

    def stop() -> FactAnswer:
        """Close what the policy opened and did not hand over.

        Called once: after the last session of a policy that a reload replaced, else at the end of the
        daemon. Called also where ``start`` failed.
        """


class ILimitPolicy(Interface):
    """A mark: the refusals of this policy are those of a limit, so that no limit counts them as refusals."""


class IPolicyPlugin(Interface):
    """A plugin: it has a name and options, and builds the policy.

    It may have two more attributes. ``contract`` is the version of the contract that it needs, as ``"2"``.
    ``requires`` are the names of policies that must stand before it in the chain.
    """

    name = Attribute(
        "The policy's name in [policies] chain and of its table [policy.NAME]: lower case letters, digits "
        "and hyphens, beginning with a letter."
    )
    options = Attribute(
        "A frozen dataclass whose fields are the policy's own keys, made with elemta.policy.setting; "
        "NoOptions for a policy that has none."
    )

    def build(options: Any, services: Services) -> object:
        """Make the policy. ``options`` is an instance of :attr:`options`, read and checked.

        Called at the start, at ``--check`` and at each reload: open nothing and start nothing here.
        An exception stops the start (or the reload) and is shown to the operator.
        """


STAGE_INTERFACES: dict[Stage, tuple[InterfaceClass, str]] = {
    Stage.CONNECT: (IConnectPolicy, "connected"),
    Stage.HELO: (IHeloPolicy, "helo"),
    Stage.LOGIN: (ILoginPolicy, "login"),
    Stage.AUTH: (IAuthPolicy, "authenticated"),
    Stage.MAIL: (IMailPolicy, "mail"),
    Stage.RCPT: (IRcptPolicy, "rcpt"),
    Stage.DATA: (IDataPolicy, "data"),
    Stage.MESSAGE: (IMessagePolicy, "message"),
}
"""For each stage the interface whose provider is asked, and its method."""

OTHER_INTERFACES: tuple[InterfaceClass, ...] = (
    IOutcomeObserver,
    ILoginObserver,
    IDeliveryPolicy,
    IDeliveryObserver,
    ILifecycle,
    ISigner,
)


class FailureKind(enum.StrEnum):
    """Why a policy's own verdict did not count.

    ``ERROR`` it raised; ``TIMEOUT`` it did not answer in time; ``INVALID`` its answer is no valid verdict;
    ``OPEN`` its breaker is open, and it did not answer within the short wait; ``BUSY`` too many of its calls
    are unanswered, so it was not asked; ``STOPPED`` it has not started, so it was not asked.
    """

    ERROR = "error"
    TIMEOUT = "timeout"
    INVALID = "invalid"
    OPEN = "open"
    BUSY = "busy"
    STOPPED = "stopped"
