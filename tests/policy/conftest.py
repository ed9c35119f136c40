"""A chain with a clock that stands still, one client, and everything that is counted and logged."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface import implementer

from elemta.address import Address
from elemta.config import PolicyCommon
from elemta.domains import Domains
from elemta.envelope import MailParameters, Recipient
from elemta.metrics import PolicyMetrics
from elemta.policy import (
    CONTINUE,
    ChainSettings,
    IAuthPolicy,
    IConnectPolicy,
    IDataPolicy,
    IHeloPolicy,
    IMailPolicy,
    IMessagePolicy,
    IRcptPolicy,
    LoadedPolicy,
    PolicyChain,
    RelayPermission,
)
from elemta.policy.testing import make_message
from elemta.smtp.events import (
    AuthQuestion,
    ConnectQuestion,
    DataQuestion,
    HeloQuestion,
    MailQuestion,
    MessageQuestion,
    RcptQuestion,
)
from elemta.smtp.session_info import SessionInfo, TransactionInfo
from tests.support.metrics import record

LOCAL = RelayPermission(Domains(frozenset({"example.com"})), frozenset({"relay", "srs"}))


class Counted(PolicyMetrics):
    """Keeps what the chain counts, in order."""

    def __init__(self):
        super().__init__()
        self._verdicts = record(self, "verdicts")
        self._durations = record(self, "duration")
        self.failed_ = record(self, "failures")

    @property
    def asked_(self):
        """Policy, stage, verdict and seconds of each answer."""
        return [
            (*answer, seconds) for answer, (_, seconds) in zip(self._verdicts, self._durations, strict=True)
        ]


@implementer(IConnectPolicy, IHeloPolicy, IAuthPolicy, IMailPolicy, IRcptPolicy, IDataPolicy, IMessagePolicy)
class Scripted:
    """A policy at every stage that answers what it was made with; a callable is called with what is shown."""

    def __init__(self, answer=CONTINUE):
        self.answer = answer
        self.seen = []

    def _say(self, stage, *shown):
        self.seen.append((stage, *shown))
        return self.answer(*shown) if callable(self.answer) else self.answer

    def connected(self, session):
        return self._say("connect", session)

    def helo(self, session):
        return self._say("helo", session)

    def authenticated(self, session):
        return self._say("auth", session)

    def mail(self, session, transaction):
        return self._say("mail", session, transaction)

    def rcpt(self, session, transaction, recipient):
        return self._say("rcpt", session, transaction, recipient)

    def data(self, session, transaction):
        return self._say("data", session, transaction)

    def message(self, session, transaction, message):
        return self._say("message", session, transaction, message)


class Stage:
    """One chain, one clock, and as many sessions as wanted."""

    def __init__(self, logged):
        self.clock = Clock()
        self.counted = Counted()
        self.logged = logged
        self.chain = None

    def play(self, *policies, terms=None, relay=None, **common):
        """Make the chain; a policy is an object, or a name, an object and its common settings."""
        loaded = []
        for number, policy in enumerate(policies, start=1):
            name, thing, settings = policy if isinstance(policy, tuple) else (f"p{number}", policy, common)
            loaded.append(LoadedPolicy(name, thing, PolicyCommon(**settings)))
        self.chain = PolicyChain(loaded, self.clock, self.counted, terms or ChainSettings(), relay or LOCAL)
        return Client(self.chain)

    def another(self, **facts):
        """One more session of the same chain."""
        return Client(self.chain, **facts)

    def events(self, name):
        return [event for event in self.logged if event.get("event") == name]


class Client:
    """One session and its transaction."""

    numbers = 0

    def __init__(self, chain, listener="mx", user=None, ip="192.0.2.7", helo="client.example.org"):
        Client.numbers += 1
        self.facts = SessionInfo(
            f"s{Client.numbers}",
            ip_address(ip),
            4321,
            listener,
            helo=helo,
            user=user,
        )
        self.talk = chain.open(self.facts)
        self.begin()

    def begin(self, sender_domain="example.org"):
        self.transaction = TransactionInfo(Address("sender", sender_domain), MailParameters())
        self.transaction.recipients.append(Recipient(Address("first", "example.com")))
        return self.transaction

    def connect(self):
        return self.talk.ask(ConnectQuestion(self.facts))

    def helo(self):
        return self.talk.ask(HeloQuestion(self.facts))

    def auth(self):
        return self.talk.ask(AuthQuestion(self.facts))

    def mail(self):
        return self.talk.ask(MailQuestion(self.facts, self.transaction))

    def rcpt(self, local="someone", domain="example.com"):
        recipient = Recipient(Address(local, domain))
        return self.talk.ask(RcptQuestion(self.facts, self.transaction, recipient))

    def data(self):
        return self.talk.ask(DataQuestion(self.facts, self.transaction))

    def message(self, content=b"Subject: hello\r\n\r\nbody\r\n"):
        return self.talk.ask(MessageQuestion(self.facts, self.transaction), make_message(content))


def said(decision):
    """The decision, which must be there."""
    if isinstance(decision, Deferred):
        results = []
        decision.addBoth(results.append)
        assert results, "the chain has not decided yet"
        return results[0]
    return decision


@pytest.fixture
def logged():
    events = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


@pytest.fixture
def stage(logged):
    return Stage(logged)


@pytest.fixture
def scripted():
    return Scripted


@pytest.fixture(name="said")
def said_fixture():
    return said
