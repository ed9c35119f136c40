"""Testing a policy without a server.

A :class:`PolicyTester` builds a policy as the daemon does, from its plugin and a table of options. Each of
its methods asks the policy with the same views that the daemon uses::

    tester = PolicyTester(RefuseFuturePlugin(), {"prefix": "next-"})
    assert tester.rcpt("next-year@example.com") == Reject("no such mailbox yet", enhanced="5.1.1")

Time stands still until :attr:`PolicyTester.clock` is advanced. Errors of the policy are raised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from zope.interface.verify import verifyObject

from elemta.address import NULL
from elemta.config import read_policy
from elemta.envelope import Envelope, MailParameters, Recipient
from elemta.outcome import Outcome
from elemta.policy.contract import takes
from elemta.policy.discovery import problem_with
from elemta.policy.doubles import (
    HttpRequest,
    HttpScript,
    ListedQueue,
    MemoryOutbox,
    RecordedMetric,
    RecordedMetrics,
    ScriptedConnections,
    ScriptedHttp,
    StreamScript,
    TestReactor,
    ThreadsDouble,
    UnavailableStore,
    Zone,
    http_answer,
)
from elemta.policy.interfaces import STAGE_INTERFACES, IDeliveryPolicy, IPolicyPlugin, LoginOutcome
from elemta.policy.message_view import OutgoingMessage
from elemta.policy.policy_driver import PolicyDriver
from elemta.policy.policy_resolver import Resolver
from elemta.policy.policy_store import MemoryStore, Store
from elemta.policy.policy_threads import InThreads
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.results import Results
from elemta.policy.service_doubles import make_envelope, make_message, make_services
from elemta.policy.services import Limits
from elemta.policy.verdicts import CONTINUE, Discard, Verdict, reply_of, route_problem, verdict_problem
from elemta.policy.views import Message, Session, Transaction
from elemta.smtp.path import parse_address
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo, TLSInfo
from elemta.smtp.session_info import TransactionInfo as TransactionFacts
from elemta.stage import Stage

__all__ = [
    "HttpRequest",
    "HttpScript",
    "ListedQueue",
    "MemoryOutbox",
    "MemoryStore",
    "PolicyTester",
    "RecordedMetric",
    "RecordedMetrics",
    "Rehearsal",
    "ScriptedConnections",
    "ScriptedHttp",
    "StreamScript",
    "TestReactor",
    "ThreadsDouble",
    "UnavailableStore",
    "Zone",
    "http_answer",
    "make_message",
    "make_services",
]

_T = TypeVar("_T")


class PolicyTester(PolicyDriver):
    """One policy and one client's session with it.

    ``options`` is the policy's table as it would stand in the configuration; bad ones raise
    :class:`~elemta.errors.ConfigError`. ``local``, ``mailboxes``, ``relay_from``, ``limits`` and ``resolver``
    are those of :func:`make_services`, as are ``threads``, ``store``, ``connections``, ``http``,
    ``hostname``, ``node_id``, ``outbox`` and ``queue``. ``may_relay`` is whether ``[policies] may_relay``
    names the policy. ``facts`` is the session that the policy sees; change it as you like.

    A method per stage asks and returns the verdict; where the policy is not asked at that stage it
    returns ``CONTINUE``. ``wait`` is how many seconds the clock is advanced for a policy that doesn't
    answer at once; where it hasn't answered then, AssertionError.
    """

    def __init__(
        self,
        plugin: Any,
        options: Mapping[str, object] | None = None,
        *,
        local: Collection[str] = ("example.com",),
        mailboxes: Collection[str] | None = None,
        relay_from: Collection[str] = (),
        limits: Limits | None = None,
        resolver: Resolver | None = None,
        client_ip: str = "192.0.2.1",
        listener: str = "mx",
        user: str | None = None,
        tls: TLSInfo | None = None,
        reverse_name: str | None = None,
        server_ip: str = "192.0.2.25",
        server_port: int = 25,
        may_relay: bool = False,
        threads: InThreads | None = None,
        store: Store | None = None,
        connections: Mapping[str, StreamScript] | None = None,
        http: Mapping[str, HttpScript] | None = None,
        hostname: str = "mx.example.com",
        node_id: str = "node-1",
        outbox: MemoryOutbox | None = None,
        queue: ListedQueue | None = None,
    ) -> None:
        verifyObject(IPolicyPlugin, plugin)
        self.clock: Clock = TestReactor()
        self.connections = ScriptedConnections(self.clock, connections)
        self.http = ScriptedHttp(self.clock, http)
        self.outbox = outbox or MemoryOutbox()
        self.metrics = RecordedMetrics()
        self.logged: list[LogEvent] = []
        self.services = make_services(
            self.clock,
            local=local,
            mailboxes=mailboxes,
            relay_from=relay_from,
            limits=limits,
            metrics=self.metrics,
            logged=self.logged,
            resolver=resolver,
            threads=threads,
            store=store,
            connections=self.connections,
            http=self.http,
            hostname=hostname,
            node_id=node_id,
            outbox=self.outbox,
            queue=queue,
        )
        self.store = self.services.store
        self.common, parsed = read_policy(plugin.options, options or {}, "test", f"policy.{plugin.name}")
        self.name: str = plugin.name
        self._relay = RelayPermission(self.services.domains)
        self._may_relay = may_relay
        self.policy: Any = plugin.build(parsed, self.services.of_policy(plugin.name, self.common.timeout))
        problem = problem_with(self.policy)
        if problem:
            raise AssertionError(problem)
        self.facts = SessionInfo(
            "session-1",
            ip_address(client_ip),
            54321,
            listener,
            tls=tls,
            user=user,
            reverse_name=reverse_name,
            server_ip=ip_address(server_ip),
            server_port=server_port,
            hostname=hostname,
        )
        self._session_board: dict[tuple[str, str], Any] = {}
        self.session = Session(self.facts, self.name, self._session_board)
        self._transaction_board: dict[tuple[str, str], Any] = {}
        self.transaction_facts: TransactionFacts | None = None
        self._transaction: Transaction | None = None
        self._message: Message | None = None

    @property
    def transaction(self) -> Transaction:
        """The policy's view of the current transaction; begins one from sender@example.org if needed."""
        if self._transaction is None:
            return self._begin("sender@example.org", MailParameters())
        return self._transaction

    @property
    def added_headers(self) -> list[tuple[str, str]]:
        """What the policy put on top of the message."""
        return list(self.transaction_facts.added_headers) if self.transaction_facts else []

    def publish_on_session(self, policy: str, key: str, value: object) -> None:
        """Publish a note on the session in the name of another policy."""
        self._session_board[policy, key] = value

    def publish_on_transaction(self, policy: str, key: str, value: object) -> None:
        """Publish a note on the current transaction in the name of another policy."""
        self._transaction_board[policy, key] = value

    # Its life

    def start(self, predecessor: object | None = None, *, wait: float = 0) -> None:
        """Start the policy, as the daemon does before it is first asked."""
        self._tell("start", predecessor, wait=wait)

    def stop(self, *, wait: float = 0) -> None:
        """Stop the policy, as the daemon does at its end."""
        self._tell("stop", wait=wait)

    # The session

    def connected(self, *, wait: float = 0) -> Verdict:
        return self._wait(self.ask(Stage.CONNECT), wait)

    def helo(self, name: str = "client.example.org", *, wait: float = 0) -> Verdict:
        self.facts.helo, self.facts.esmtp = name, True
        return self._wait(self.ask(Stage.HELO), wait)

    def login(self, username: str, *, wait: float = 0) -> Verdict:
        """Let the client try to log in; the policy is asked before the password is looked at."""
        return self._wait(self.ask(Stage.LOGIN, username), wait)

    def login_ended(
        self, username: str, outcome: LoginOutcome = LoginOutcome.GOOD, *, wait: float = 0
    ) -> None:
        """Tell the policy how the attempt to log in ended."""
        self._tell("login_ended", self.session, username, outcome, wait=wait)

    def authenticated(self, user: str, *, wait: float = 0) -> Verdict:
        self.facts.user = user
        return self._wait(self.ask(Stage.AUTH), wait)

    def mail(
        self, sender: str = "sender@example.org", parameters: MailParameters | None = None, *, wait: float = 0
    ) -> Verdict:
        """Begin a transaction; ``""`` is the null sender."""
        self._begin(sender, parameters or MailParameters())
        return self._wait(self.ask(Stage.MAIL), wait)

    def rcpt(self, recipient: str | Recipient, *, wait: float = 0) -> Verdict:
        """Name a recipient, which is one of the transaction's afterwards unless it was refused."""
        recipient = _recipient_of(recipient)
        transaction = self.transaction
        if self.transaction_facts is not None:
            self.transaction_facts.replacement = None
        verdict = self._wait(self.ask(Stage.RCPT, recipient), wait)
        facts = self.transaction_facts
        if reply_of(verdict) is None and facts is not None:
            if isinstance(verdict, Discard):
                facts.replacement = ()
            facts.recipients.extend((recipient,) if facts.replacement is None else facts.replacement)
        assert transaction is self._transaction  # noqa: S101 - asking begins no other one
        return verdict

    def data(self, *, wait: float = 0) -> Verdict:
        return self._wait(self.ask(Stage.DATA), wait)

    def message(self, content: bytes, *, wait: float = 0) -> Verdict:
        """Send a message."""
        message = self._message = make_message(content)
        self.transaction  # noqa: B018 - begins one where there is none
        if self.transaction_facts is not None:
            self.transaction_facts.size = len(content)
        return self._wait(self.ask(Stage.MESSAGE, message), wait)

    @property
    def edited_message(self) -> bytes:
        """The message with what the policy made of it, as it would be stored behind our Received field."""
        if self._message is None:
            raise AssertionError("no message was sent")
        with self._message.content.open() as file:
            return file.read()

    def committed(self, *, wait: float = 0) -> None:
        """Tell the policy that the message is on stable storage; the transaction is over then."""
        shown: tuple[Any, ...] = self.session, self.transaction
        if takes(getattr(self.policy, "committed", None), 3):
            shown += (self.transaction.queue_id,)
        self._tell("committed", *shown, wait=wait)
        self._end()

    def refused(self, *, wait: float = 0) -> None:
        """Tell the policy that the transaction ended without a message; it is over then."""
        self._tell("refused", self.session, self.transaction, wait=wait)
        self._end()

    def refused_at(
        self, stage: Stage, reply: Reply, recipient: str | None = None, *, wait: float = 0
    ) -> None:
        """Tell the policy that the client gets a reply that refuses; from MAIL on in the transaction."""
        early = stage in (Stage.CONNECT, Stage.HELO, Stage.LOGIN, Stage.AUTH)
        about = None if recipient is None else _recipient_of(recipient)
        transaction = None if early else self.transaction
        self._tell("refused_at", self.session, stage, reply, transaction, about, wait=wait)

    def decided(
        self, stage: Stage, verdict: Verdict = CONTINUE, policy: str = "", *, wait: float = 0
    ) -> None:
        """Tell the policy what those of a stage decided; ``policy`` is the name of the one that did."""
        self._tell("decided", self.session, policy, stage, verdict, wait=wait)

    def disconnected(self, *, wait: float = 0) -> None:
        self._tell("disconnected", self.session, wait=wait)

    # Delivery

    def route(
        self, recipient: str | Recipient, envelope: Envelope | None = None, *, wait: float = 0
    ) -> Verdict:
        """Ask for a recipient's route: ``RouteTo``, ``Hold``, ``Defer`` or ``CONTINUE``.

        Without an envelope it is that of the transaction under way, to this recipient too.
        """
        recipient = _recipient_of(recipient)
        if not IDeliveryPolicy.providedBy(self.policy):
            return CONTINUE
        about = envelope or self._envelope(recipient)
        return self._wait(self._answer(self.policy.route, about, recipient, problem_of=route_problem), wait)

    def sign(self, content: bytes, envelope: Envelope | None = None, *, wait: float = 0) -> bytes:
        """Let the policy sign a message; returns the fields that it put on top.

        Without an envelope it is that of the transaction under way.
        """
        shared = make_message(content).content
        view = OutgoingMessage(shared, observed=False)
        about = envelope or self._envelope(None)
        try:
            self._tell("sign", about, view, wait=wait)
        finally:
            view.close()
        return b"".join(shared.header.top)

    def attempted(self, outcome: Outcome, *, wait: float = 0) -> None:
        """Tell the policy of a delivery attempt."""
        self._tell("attempted", outcome, wait=wait)

    def recording(
        self,
        recipient: str | Recipient,
        outcome: Outcome,
        envelope: Envelope | None = None,
        *,
        wait: float = 0,
    ) -> None:
        """Let the policy keep what came of a recipient, before the queue records it."""
        recipient = _recipient_of(recipient)
        self._tell("recording", envelope or self._envelope(recipient), recipient, outcome, wait=wait)

    def ended(
        self,
        recipient: str | Recipient,
        outcome: Outcome,
        envelope: Envelope | None = None,
        *,
        wait: float = 0,
    ) -> None:
        """Tell the policy that nothing more is tried for a recipient."""
        recipient = _recipient_of(recipient)
        self._tell("ended", envelope or self._envelope(recipient), recipient, outcome, wait=wait)

    def _envelope(self, recipient: Recipient | None) -> Envelope:
        return make_envelope(self.transaction, self.facts, recipient)

    def ask(self, stage: Stage, about: Recipient | Message | str | None = None) -> Deferred[Verdict]:
        """Ask at ``stage``; the verdict is in a Deferred.

        ``about`` is a user name at LOGIN, a recipient at RCPT and a message at MESSAGE.

        An invalid answer fails it with AssertionError, and whatever the policy raises with that.
        """
        interface, method = STAGE_INTERFACES[stage]
        if not interface.providedBy(self.policy):
            return succeed(CONTINUE)
        shown: list[Any] = [self.session]
        view = None
        if stage not in (Stage.CONNECT, Stage.HELO, Stage.LOGIN, Stage.AUTH):
            view = self.transaction
            view.writable = True
            view.asked = about if isinstance(about, Recipient) else None
            if isinstance(about, Message):
                about = view.message = Message.of(about.content, observed=False)
            shown.append(view)
        if about is not None:
            shown.append(about)
        answer = self._answer(getattr(self.policy, method), *shown, problem_of=verdict_problem)
        return answer if view is None else answer.addBoth(_close, view)

    def _begin(self, sender: str, parameters: MailParameters) -> Transaction:
        address = parse_address(sender, []) if sender else NULL
        self._transaction_board = {}
        self.transaction_facts = TransactionFacts(address, parameters, size=parameters.size or 0)
        self._transaction = Transaction(
            self.transaction_facts,
            self.name,
            self._transaction_board,
            observed=False,
            results=Results(self.session.results),
            may_receive=lambda address: self._may_relay or self._relay.allows(self.facts, address),
        )
        return self._transaction

    def _end(self) -> None:
        self._transaction = self.transaction_facts = None


Rehearsal = PolicyTester
"""The name of :class:`PolicyTester` before version 2 of the contract."""


def _recipient_of(recipient: str | Recipient) -> Recipient:
    return Recipient(parse_address(recipient, [])) if isinstance(recipient, str) else recipient


def _close(answer: _T, view: Transaction) -> _T:
    view.close()
    return answer
