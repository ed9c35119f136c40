"""The kit that a plugin's author tests with."""

from dataclasses import dataclass

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.envelope import MailParameters
from elemta.errors import ConfigError
from elemta.policy import (
    CONTINUE,
    Accept,
    Address,
    Defer,
    Hold,
    IConnectPolicy,
    IDeliveryObserver,
    IDeliveryPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IPolicyPlugin,
    IRcptPolicy,
    MailExchanger,
    NoOptions,
    NoSuchDomain,
    Outcome,
    Quarantine,
    Reject,
    ResolverTrouble,
    RouteTo,
    Stage,
    Status,
    setting,
)
from elemta.policy.doubles import MemoryOutbox, RecordedMetrics, ScriptedConnections, ScriptedHttp
from elemta.policy.services import PrefixedMetrics
from elemta.policy.testing import PolicyTester, Zone, http_answer, make_message


@dataclass(frozen=True)
class Options:
    delay: float = setting(0.0, "Seconds that an answer takes.", unit="seconds", minimum=0)


@implementer(IConnectPolicy, IRcptPolicy, IMessagePolicy, IOutcomeObserver)
class Everything:
    def __init__(self, options, services):
        self.options = options
        self.services = services
        self.counter = services.metrics.counter("asked_total", "Questions.", ["stage"])

    def connected(self, session):
        return CONTINUE if session.notes.published("other", "good") else Reject("no")

    async def rcpt(self, session, transaction, recipient):
        self.counter.labels("rcpt").inc()
        self.services.log.info("asked", recipient=str(recipient))
        if self.options.delay:
            await deferLater(self.services.reactor, self.options.delay)
        if recipient.local == "bad":
            raise RuntimeError("bad recipient")
        if recipient.local == "odd":
            return Reject("no", code=250)
        transaction.add_header("X-Seen", str(len(transaction.recipients)))
        return Reject("no") if recipient.local == "refused" else CONTINUE

    def message(self, session, transaction, message):
        with message.open() as file:
            content = file.read()
        assert len(content) == message.size == transaction.size
        return Quarantine(message.headers.get("Subject") or "no subject")

    def committed(self, session, transaction):
        session.notes["committed"] = [str(recipient) for recipient in transaction.recipients]

    async def refused(self, session, transaction):
        session.notes["refused"] = True

    def disconnected(self, session):
        raise OSError("gone")


@implementer(IPlugin, IPolicyPlugin)
class EverythingPlugin:
    name = "every-thing"
    options = Options

    def build(self, options, services):
        return Everything(options, services)


def test_a_policy_is_asked_as_the_daemon_asks_it():
    tester = PolicyTester(EverythingPlugin(), user="alice", client_ip="2001:db8::1")
    assert tester.session.user == "alice"
    assert str(tester.session.client_ip) == "2001:db8::1"
    assert tester.helo("client") == CONTINUE
    assert tester.mail("", MailParameters(size=7)) == CONTINUE
    assert not tester.transaction.sender
    assert tester.transaction.size == 7
    assert tester.rcpt("refused@example.com") == Reject("no")
    assert tester.rcpt("someone@example.com") == CONTINUE
    assert [str(recipient) for recipient in tester.transaction.recipients] == ["someone@example.com"]
    assert tester.added_headers == [("X-Seen", "0"), ("X-Seen", "0")]
    assert tester.message(b"Subject: odd\r\n\r\n") == Quarantine("odd")
    tester.committed()
    assert tester.session.notes["committed"] == ["someone@example.com"]


@implementer(IOutcomeObserver)
class Deciding:
    def decided(self, session, policy, stage, verdict):
        session.notes["decided"] = (policy, stage, verdict)

    def committed(self, session, transaction, queue_id): ...

    def refused(self, session, transaction): ...

    def disconnected(self, session): ...


@implementer(IPlugin, IPolicyPlugin)
class DecidingPlugin:
    name = "deciding"
    options = NoOptions

    def build(self, options, services):
        return Deciding()


def test_an_observer_hears_what_the_policies_of_a_stage_decided():
    tester = PolicyTester(DecidingPlugin())
    tester.decided(Stage.RCPT, Reject("no"), "relay")
    assert tester.session.notes["decided"] == ("relay", Stage.RCPT, Reject("no"))
    # A policy that does not care is one all the same.
    PolicyTester(EverythingPlugin()).decided(Stage.RCPT)


def test_metrics_and_log_of_a_policy_can_be_looked_at():
    tester = PolicyTester(EverythingPlugin())
    tester.rcpt("someone@example.com")
    assert tester.metrics.total("elemta_plugin_every_thing_asked_total", "rcpt") == 1
    assert tester.metrics.total("elemta_plugin_every_thing_asked_total", "mail") == 0
    with pytest.raises(KeyError):
        tester.metrics.total("elemta_plugin_every_thing_other_total")
    assert [event["recipient"] for event in tester.logged] == ["someone@example.com"]


def test_what_other_policies_published_can_be_given():
    tester = PolicyTester(EverythingPlugin())
    assert tester.connected() == Reject("no")
    tester.publish_on_session("other", "good", True)
    assert tester.connected() == CONTINUE


def test_a_policy_that_takes_its_time_is_waited_for_on_the_clock():
    tester = PolicyTester(EverythingPlugin(), {"delay": "2s"})
    assert tester.rcpt("refused@example.com", wait=2.0) == Reject("no")
    with pytest.raises(AssertionError, match="no answer within 1 s"):
        tester.rcpt("refused@example.com", wait=1.0)
    pending = tester.ask(Stage.MESSAGE, make_message(b""))
    assert isinstance(pending, Deferred)


def test_what_a_policy_raises_is_raised():
    with pytest.raises(RuntimeError, match="bad recipient"):
        PolicyTester(EverythingPlugin()).rcpt("bad@example.com")
    with pytest.raises(OSError, match="gone"):
        PolicyTester(EverythingPlugin()).disconnected()


def test_an_invalid_answer_fails_the_test_with_words():
    with pytest.raises(AssertionError, match="Reject with the code 250"):
        PolicyTester(EverythingPlugin()).rcpt("odd@example.com")


def test_wrong_options_are_told_as_the_daemon_tells_them():
    with pytest.raises(ConfigError, match=r'policy\.every-thing\.dealy: unknown key.*"delay"'):
        PolicyTester(EverythingPlugin(), {"dealy": 1})


def test_a_plugin_that_builds_no_policy_fails_the_test():
    class Useless(EverythingPlugin):
        options = NoOptions

        def build(self, options, services):
            return self

    with pytest.raises(AssertionError, match="no interface"):
        PolicyTester(Useless())


def test_a_transaction_is_changed_only_while_the_policy_is_asked():
    tester = PolicyTester(EverythingPlugin())
    tester.rcpt("someone@example.com")
    with pytest.raises(RuntimeError):
        tester.transaction.add_header("X-Late", "yes")


def test_a_transaction_that_was_refused_is_over():
    tester = PolicyTester(EverythingPlugin())
    tester.rcpt("someone@example.com")
    tester.refused()
    assert tester.session.notes["refused"]
    assert tester.transaction.recipients == ()


@implementer(IPlugin, IPolicyPlugin)
class DepartingPlugin:
    """Sends mail of a user where DNS says, and counts what became of it."""

    name = "departing"
    options = NoOptions

    def build(self, options, services):
        return Departing(services)


@implementer(IDeliveryPolicy, IDeliveryObserver)
class Departing:
    def __init__(self, services):
        self._resolver = services.resolver
        self._attempts = services.metrics.counter("attempts_total", "Attempts.", ["status"])

    async def route(self, envelope, recipient):
        if envelope.client.user is None:
            return CONTINUE
        try:
            (target,) = await self._resolver.text(f"_relay.{recipient.domain}")
        except NoSuchDomain:
            return Hold("no relay is named")
        except ResolverTrouble as trouble:
            return Defer(str(trouble))
        return RouteTo(target)

    def attempted(self, outcome):
        self._attempts.labels(outcome.status.value).inc()


def test_a_policy_on_the_way_out_is_asked_and_told():
    trouble = ResolverTrouble("no answer")
    zone = Zone(
        texts_of={"_relay.example.net": ["smtp://relay.example.net:25"], "_relay.example.edu": trouble}
    )
    tester = PolicyTester(DepartingPlugin(), resolver=zone, user="alice")
    assert tester.route("bob@Example.NET") == RouteTo("smtp://relay.example.net:25")
    assert tester.route("bob@example.com") == Hold("no relay is named")
    assert tester.route("bob@example.edu") == Defer("no answer")
    assert tester.rcpt("bob@example.net") == CONTINUE
    outcome = Outcome("Q1", Address("bob", "example.net"), Status.DELIVERED, "ok", "mx:", "mail", 1.0)
    tester.attempted(outcome)
    assert tester.metrics.total("elemta_plugin_departing_attempts_total", "delivered") == 1


def test_the_envelope_on_the_way_out_is_that_of_the_transaction():
    seen = []

    @implementer(IDeliveryPolicy)
    class Looking:
        def route(self, envelope, recipient):
            seen.append(envelope)
            return Accept() if recipient.local == "odd" else CONTINUE

    class LookingPlugin(DepartingPlugin):
        def build(self, options, services):
            return Looking()

    tester = PolicyTester(LookingPlugin(), client_ip="192.0.2.9")
    tester.mail("alice@example.org")
    tester.rcpt("carol@example.com")
    assert tester.route("bob@example.net") == CONTINUE
    (envelope,) = seen
    assert (str(envelope.sender), envelope.client.ip) == ("alice@example.org", "192.0.2.9")
    assert [str(each) for each in envelope.recipients] == ["carol@example.com", "bob@example.net"]
    with pytest.raises(AssertionError, match="no choice of a route but Accept"):
        tester.route("odd@example.net")


@pytest_twisted.ensureDeferred
async def test_a_zone_answers_as_dns_does():
    zone = Zone(
        addresses_of={"mail.example.net": ["192.0.2.1", "2001:db8::1"]},
        exchangers_of={"example.net": [MailExchanger(20, "b.example"), MailExchanger(10, "a.example")]},
        names_of={"192.0.2.1": ["mail.example.net"]},
    )
    assert [str(ip) for ip in await zone.addresses("mail.example.net.")] == ["2001:db8::1", "192.0.2.1"]
    assert [mx.host for mx in await zone.mail_exchangers("EXAMPLE.net")] == ["a.example", "b.example"]
    assert await zone.reverse("192.0.2.1") == ("mail.example.net",)
    assert await zone.text("example.net") == ()
    with pytest.raises(NoSuchDomain):
        await zone.text("example.invalid")


@pytest_twisted.ensureDeferred
async def test_doubles_refuse_what_the_services_refuse():
    clock = Clock()
    connect = ScriptedConnections(clock, {"anything": [b"x"]})
    await (await connect("anything")).close()
    for endpoint in ("bogus", "tcp:localhost", "tcp:host=h:port=x"):
        with pytest.raises(ValueError, match="no client endpoint"):
            await connect(endpoint)
    http = ScriptedHttp(clock, {"http://x.test/": http_answer(200)})
    for headers in ({"A": "b\r\nC: d"}, {"A\n": "b"}):
        with pytest.raises(ValueError, match="no header"):
            await http.request("GET", "http://x.test/", headers=headers)
    outbox = MemoryOutbox()
    for record in ("text", b"x" * 65537):
        with pytest.raises(ValueError, match="65536"):
            await outbox.append(record)
    metrics = PrefixedMetrics("p", RecordedMetrics())
    # As a name it stands behind a prefix, and means nothing else.
    metrics.counter("le", "Words.")
    with pytest.raises(ValueError, match="a metric's name"):
        metrics.counter("Bad-Name", "Words.")
    for label in ("node_id", "le", "Bad-Label", "__name__", ""):
        with pytest.raises(ValueError, match="label"):
            metrics.counter("x_total", "Words.", (label,))
        with pytest.raises(ValueError, match="label"):
            metrics.histogram("x_seconds", "Words.", (label,))
