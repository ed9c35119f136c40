"""The policy ``limits`` over a real limiter and store, on a clock that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from elemta.config import (
    Counts,
    Identity,
    LimitConfig,
    Mode,
    OnExceed,
    PolicyCommon,
    Rate,
    ResourcesConfig,
    WhenValkeyIsDown,
)
from elemta.domains import Domains
from elemta.envelope import MailParameters, Recipient
from elemta.errors import StoreUnavailable
from elemta.limits import Limiter, LimitRefusal, LocalStore, rules_from_config
from elemta.limits.known_logins import LoginHistory
from elemta.limits.store import Decision, Request, Usage
from elemta.policies import limits as limits_module
from elemta.policies.limits import LimitsOptions, LimitsPlugin
from elemta.policy import (
    CONTINUE,
    Defer,
    Disconnect,
    IMailPolicy,
    IRcptPolicy,
    LoadedPolicy,
    LoginOutcome,
    PolicyChain,
    Reject,
    RelayPermission,
    Verdict,
)
from elemta.policy.discovery import interfaces_of
from elemta.policy.interfaces import STAGE_INTERFACES
from elemta.policy.limit_replies import limit_verdict
from elemta.policy.testing import PolicyTester, make_services
from elemta.smtp.events import ConnectQuestion, MailQuestion, RcptQuestion, Stage
from elemta.smtp.path import parse_address
from elemta.smtp.session_info import SessionInfo, TransactionInfo

WINDOWS = {"1s": 1.0, "10s": 10.0, "1m": 60.0, "15m": 900.0, "30m": 1800.0, "1h": 3600.0, "1d": 86400.0}


def limit(
    name: str, counts: Counts, *per: Identity, rates: Sequence[str] = ("2/1m",), **more: Any
) -> LimitConfig:
    made = [rate.partition("/") for rate in rates]
    parsed = tuple(Rate(int(number), WINDOWS[window] if window else None) for number, _, window in made)
    return LimitConfig(name=name, per=per, counts=counts, rates=parsed, **more)


TOO_MANY_MESSAGES = "Too many messages (limit m, 1 per minute), try again in 60 seconds"


class Harness:
    """One node's limits, with as many clients as a test wants."""

    def __init__(self, *limits: LimitConfig, store: LocalStore | None = None, **resources: int) -> None:
        self.clock = store.clock if isinstance(store, LateStore) else Clock()
        self.store = store or LocalStore(self.clock)
        settings = {"max_requests_per_window": 0, "max_connections_per_ip": 1000, **resources}
        self.limiter = Limiter(rules_from_config(ResourcesConfig(**settings), limits), self.store)
        services = make_services(self.clock, limits=self.limiter)
        self.policy = LimitsPlugin().build(LimitsOptions(), services)

    def client(self, client_ip: str = "192.0.2.1", **more: Any) -> PolicyTester:
        made = PolicyTester(LimitsPlugin(), client_ip=client_ip, **more)
        made.policy, made.clock = self.policy, self.clock
        return made

    def used(self, name: str) -> int:
        """What counts against the fullest key of a limit."""
        top = self.top(name, 1)
        return top[0].used[0] if top else 0

    def top(self, name: str, count: int) -> Sequence[Usage]:
        """The fullest keys of a limit."""
        (spec,) = (rule.spec for rule in self.limiter.rules if rule.name == name)
        return self.store.top(spec, count).usages


class LateStore(LocalStore):
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)
        self.pending: list[tuple[Deferred[Decision], Sequence[Request]]] = []

    def acquire(self, requests: Sequence[Request]) -> Any:
        answer: Deferred[Decision] = Deferred()
        self.pending.append((answer, requests))
        return answer

    def deliver(self) -> None:
        pending, self.pending = self.pending, []
        for answer, requests in pending:
            decision = super().acquire(requests)
            if answer.called:
                # It was cancelled: each store gives back what no caller gets.
                self.refund([receipt for receipt in decision.receipts if not receipt.is_lease])
                self.release(decision.receipts)
            else:
                answer.callback(decision)


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ([], {"IConnectPolicy"}),
        ([limit("helo", Counts.CONNECTIONS, Identity.HELO)], {"IConnectPolicy", "IHeloPolicy"}),
        ([limit("mails", Counts.MESSAGES, Identity.IP)], {"IConnectPolicy", "IMailPolicy"}),
        # At MAIL it gives back what was charged for a transaction that never began.
        (
            [limit("recipients", Counts.RECIPIENTS, Identity.IP)],
            {"IConnectPolicy", "IMailPolicy", "IRcptPolicy"},
        ),
        ([limit("octets", Counts.BYTES, Identity.IP)], {"IConnectPolicy", "IMailPolicy", "IMessagePolicy"}),
        ([limit("users", Counts.CONNECTIONS, Identity.USER)], {"IConnectPolicy", "IAuthPolicy"}),
        ([limit("failures", Counts.AUTH_FAILURES, Identity.USER)], {"IConnectPolicy"}),
    ],
)
def test_it_is_asked_only_where_there_is_a_limit(limits: list[LimitConfig], asked: set[str]) -> None:
    stages = {interface.__name__ for interface, _ in STAGE_INTERFACES.values()} - {"ILoginPolicy"}
    assert set(interfaces_of(Harness(*limits).policy)) & stages == asked


def test_a_connection_over_the_rate_is_greeted_with_421_name_and_time() -> None:
    registry = Harness(max_requests_per_window=2)
    assert [registry.client().connected() for _ in range(2)] == [CONTINUE, CONTINUE]
    registry.clock.advance(18)
    expected = Disconnect(
        "Too many connections from your address (limit ip, 2 per minute), try again in 42 seconds",
        421,
        "4.7.0",
    )
    assert registry.client().connected() == expected
    assert registry.client("198.51.100.1").connected() == CONTINUE
    registry.clock.advance(42)
    assert registry.client().connected() == CONTINUE


def test_too_many_open_connections_are_421_until_one_closes() -> None:
    registry = Harness(max_connections_per_ip=2)
    first, second = registry.client(), registry.client()
    assert [first.connected(), second.connected()] == [CONTINUE, CONTINUE]
    refused = registry.client().connected()
    assert refused == Disconnect(
        "Too many connections from your address (limit connections-per-ip, 2 at a time), "
        "try again in 30 seconds",
        421,
        "4.7.0",
    )
    first.disconnected()
    first.disconnected()
    assert registry.client().connected() == CONTINUE
    assert registry.client().connected() == refused


def test_a_session_that_was_refused_holds_no_lease_that_its_end_could_release() -> None:
    registry = Harness(max_connections_per_ip=1)
    registry.client().connected()
    for _ in range(3):
        refused = registry.client()
        refused.connected()
        refused.disconnected()
    assert registry.used("connections-per-ip") == 1


@pytest.mark.parametrize(
    ("counts", "per", "rates", "words"),
    [
        (
            Counts.CONNECTIONS,
            [Identity.IP],
            ["2/1m"],
            "connections from your address (limit x, 2 per minute)",
        ),
        (
            Counts.CONNECTIONS,
            [Identity.HELO],
            ["2/1d"],
            "connections with your HELO name (limit x, 2 per day)",
        ),
        (Counts.CONNECTIONS, [], ["2/1m"], "connections (limit x, 2 per minute)"),
        (
            Counts.CONNECTIONS,
            [Identity.LISTENER],
            ["2/1m"],
            "connections on this port (limit x, 2 per minute)",
        ),
        (
            Counts.MESSAGES,
            [Identity.SENDER],
            ["100/1m", "1000/1h"],
            "messages from this sender (limit x, 100 per minute and 1000 per hour)",
        ),
        (
            Counts.MESSAGES,
            [Identity.IP, Identity.SENDER_DOMAIN],
            ["9/15m"],
            "messages from your address and this sender's domain (limit x, 9 per 15 minutes)",
        ),
        (
            Counts.RECIPIENTS,
            [Identity.NETWORK, Identity.RECIPIENT],
            ["9/30m"],
            "messages from your network to this recipient (limit x, 9 per 30 minutes)",
        ),
        (Counts.RECIPIENTS, [Identity.USER], ["9/1h"], "recipients from your account (limit x, 9 per hour)"),
        (
            Counts.AUTH_FAILURES,
            [Identity.USER, Identity.NETWORK],
            ["10/15m"],
            "failed logins for this account from your network (limit x, 10 per 15 minutes)",
        ),
        (
            Counts.REFUSALS,
            [Identity.IP],
            ["9/1s"],
            "refused commands from your address (limit x, 9 per second)",
        ),
        (
            Counts.OPEN_CONNECTIONS,
            [Identity.IP],
            ["20"],
            "connections from your address (limit x, 20 at a time)",
        ),
    ],
)
def test_a_refusal_says_what_is_too_much_in_words_for_a_sender(
    counts: Counts, per: list[Identity], rates: list[str], words: str
) -> None:
    (rule,) = rules_from_config(
        ResourcesConfig(max_requests_per_window=0, max_connections_per_ip=0),
        [limit("x", counts, *per, rates=rates)],
    )
    refusal = LimitRefusal("x", OnExceed.DEFER, 41.2, "id", counts, per=rule.per, rates=rule.rates)
    assert limit_verdict(refusal, Stage.MAIL) == Defer(
        f"Too many {words}, try again in 42 seconds", 450, "4.7.1"
    )
    size = Rate(100 * 2**20, 3600.0)
    refusal = LimitRefusal("y", OnExceed.DEFER, 1.0, "id", Counts.BYTES, per=(Identity.USER,), rates=(size,))
    assert limit_verdict(refusal, Stage.MESSAGE) == Defer(
        "Too much mail from your account (limit y, 100 MiB per hour), try again in 1 second", 450, "4.7.1"
    )


def test_every_count_and_identity_has_words() -> None:
    for counts in Counts:
        for identity in Identity:
            refusal = LimitRefusal(
                "x", OnExceed.DEFER, 1.0, "id", counts, per=(identity,), rates=(Rate(1, 1.0),)
            )
            verdict = limit_verdict(refusal, Stage.MAIL)
            assert isinstance(verdict, Defer)
            assert "(limit x, 1 " in verdict.text


@pytest.mark.parametrize(
    ("action", "verdict"),
    [
        (OnExceed.DEFER, Defer(TOO_MANY_MESSAGES, 450, "4.7.1")),
        (OnExceed.REJECT, Reject(TOO_MANY_MESSAGES, 550, "5.7.1")),
        (OnExceed.DISCONNECT, Disconnect(TOO_MANY_MESSAGES, 421, "4.7.0")),
    ],
)
def test_each_action_has_its_verdict(action: OnExceed, verdict: Verdict) -> None:
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1m"], on_exceed=action))
    client = registry.client()
    assert client.mail() == CONTINUE
    client.committed()
    assert client.mail() == verdict


def test_a_greeting_is_rejected_with_554_and_a_login_deferred_with_454() -> None:
    registry = Harness(
        limit("c", Counts.CONNECTIONS, rates=["1/1m"], on_exceed=OnExceed.REJECT),
        limit("u", Counts.CONNECTIONS, Identity.USER, rates=["1/1m"]),
    )
    first = registry.client()
    assert [first.connected(), first.authenticated("bob")] == [CONTINUE, CONTINUE]
    assert registry.client().connected() == Reject(
        "Too many connections (limit c, 1 per minute), try again in 60 seconds", 554, "5.7.1"
    )
    second = registry.client()
    assert second.authenticated("bob") == Defer(
        "Too many connections from your account (limit u, 1 per minute), try again in 60 seconds",
        454,
        "4.7.0",
    )
    assert second.authenticated("carol") == CONTINUE


def test_the_last_second_is_rounded_up() -> None:
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1s"]))
    client = registry.client()
    client.mail()
    client.committed()
    registry.clock.advance(0.6)
    assert client.mail() == Defer(
        "Too many messages (limit m, 1 per second), try again in 1 second", 450, "4.7.1"
    )


def test_a_message_above_a_limit_of_bytes_is_refused_for_good() -> None:
    registry = Harness(limit("b", Counts.BYTES, rates=["100/1m"]))
    client = registry.client()
    client.mail()
    assert client.message(b"x" * 101) == Reject(
        "Message is larger than rate limit b ever allows", 552, "5.3.4"
    )
    client.refused()
    client.mail()
    assert client.message(b"x" * 60) == CONTINUE
    client.committed()
    client.mail()
    assert client.message(b"x" * 60) == Defer(
        "Too much mail (limit b, 100 bytes per minute), try again in 60 seconds", 450, "4.7.1"
    )


def test_a_limit_of_zero_refuses_without_naming_a_time() -> None:
    registry = Harness(limit("m", Counts.MESSAGES, rates=["0/1m"]))
    assert registry.client().mail() == Defer("Rate limit m allows nothing", 450, "4.7.1")


def test_a_transaction_that_comes_to_nothing_costs_nothing() -> None:
    registry = Harness(
        limit("m", Counts.MESSAGES, rates=["9/1m"]),
        limit("r", Counts.RECIPIENTS, rates=["9/1m"]),
        limit("b", Counts.BYTES, rates=["900/1m"]),
    )
    client = registry.client()
    client.mail()
    client.rcpt("a@example.com")
    client.rcpt("b@example.com")
    client.message(b"x" * 50)
    assert [registry.used(name) for name in "mrb"] == [1, 2, 50]
    client.refused()
    assert [registry.used(name) for name in "mrb"] == [0, 0, 0]


def test_what_was_committed_stays_charged() -> None:
    registry = Harness(
        limit("m", Counts.MESSAGES), limit("r", Counts.RECIPIENTS), limit("b", Counts.BYTES, rates=["900/1m"])
    )
    client = registry.client()
    client.mail()
    client.rcpt("a@example.com")
    client.message(b"x" * 50)
    client.committed()
    client.disconnected()
    assert [registry.used(name) for name in "mrb"] == [1, 1, 50]


def test_recipients_that_another_policy_refused_are_given_back_at_the_end() -> None:
    registry = Harness(limit("r", Counts.RECIPIENTS, rates=["9/1m"]))
    client = registry.client()
    client.mail()
    for name in ("a", "b", "c"):
        client.rcpt(f"{name}@example.com")
    assert client.transaction_facts is not None
    del client.transaction_facts.recipients[1]
    assert registry.used("r") == 3
    client.committed()
    assert registry.used("r") == 2


def test_a_message_to_several_recipients_of_a_domain_is_one_message_to_it() -> None:
    registry = Harness(limit("d", Counts.MESSAGES, Identity.RECIPIENT_DOMAIN, rates=["9/1m"]))
    client = registry.client()
    client.mail()
    for name in ("a", "b", "c"):
        client.rcpt(f"{name}@example.com")
    assert registry.used("d") == 1
    assert client.transaction_facts is not None
    # The first of them, for which the message was charged, is refused by another policy.
    del client.transaction_facts.recipients[0]
    client.committed()
    assert registry.used("d") == 1
    client.mail()
    client.rcpt("a@example.com")
    assert client.transaction_facts is not None
    client.transaction_facts.recipients.clear()
    client.committed()
    assert registry.used("d") == 1


def test_a_mail_that_another_policy_refused_is_given_back_with_the_next_or_at_the_end() -> None:
    registry = Harness(limit("m", Counts.MESSAGES, rates=["9/1m"]))
    client = registry.client()
    client.mail()
    client.mail()  # no word of the first: it never became a transaction
    assert registry.used("m") == 1
    client.disconnected()
    assert registry.used("m") == 0


def test_a_helo_name_said_again_is_charged_once_and_another_one_anew() -> None:
    registry = Harness(limit("h", Counts.CONNECTIONS, Identity.HELO, rates=["1/1m"]))
    client = registry.client()
    assert [client.helo("one.example"), client.helo("ONE.example")] == [CONTINUE, CONTINUE]
    assert client.helo("two.example") == CONTINUE
    assert isinstance(registry.client().helo("one.example"), Defer)


def test_open_connections_per_user_are_held_until_the_end() -> None:
    registry = Harness(limit("u", Counts.OPEN_CONNECTIONS, Identity.USER, rates=["1"]))
    first, second = registry.client(), registry.client()
    assert first.authenticated("bob") == CONTINUE
    assert isinstance(second.authenticated("bob"), Defer)
    first.disconnected()
    assert second.authenticated("bob") == CONTINUE


def test_delay_waits_until_it_passes() -> None:
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1s"], on_exceed=OnExceed.DELAY))
    client = registry.client()
    client.mail()
    client.committed()
    answer = client.ask(Stage.MAIL)
    verdicts: list[Verdict] = []
    answer.addCallback(verdicts.append)
    registry.clock.advance(0.9)
    assert verdicts == []
    registry.clock.advance(0.2)
    assert verdicts == [CONTINUE]


def test_a_client_that_was_delayed_is_not_refused_for_a_rounding() -> None:
    for number in range(1, 150, 3):
        registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1s"], on_exceed=OnExceed.DELAY))
        registry.clock.advance(number * 12_345_678.9123457 + number / 7)
        client = registry.client()
        client.mail()
        client.committed()
        registry.clock.advance(1 / 3)
        verdicts: list[Verdict] = []
        client.ask(Stage.MAIL).addCallback(verdicts.append)
        (waiting,) = registry.clock.getDelayedCalls()
        # At the very time for which it was asked, as a reactor does that is quick.
        registry.clock.rightNow = waiting.getTime()
        registry.clock.advance(0)
        assert verdicts == [CONTINUE]


def test_a_recipient_that_was_named_twice_and_accepted_once_is_charged_once() -> None:
    registry = Harness(
        limit("r", Counts.RECIPIENTS, rates=["9/1m"]), limit("s", Counts.RECIPIENTS, Identity.SENDER)
    )
    client = registry.client()
    client.mail()
    for _ in range(2):
        client.rcpt("a@example.com")
    assert client.transaction_facts is not None
    client.transaction_facts.recipients.pop()
    client.committed()
    assert (registry.used("r"), registry.used("s")) == (1, 1)


def test_delay_is_bounded_and_then_defers() -> None:
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1m"], on_exceed=OnExceed.DELAY))
    client = registry.client()
    client.mail()
    client.committed()
    assert client.mail(wait=LimitsOptions().max_delay) == Defer(
        "Too many messages (limit m, 1 per minute), try again in 56 seconds", 450, "4.7.1"
    )


def test_what_the_first_check_takes_is_a_part_of_the_longest_delay() -> None:
    store = LateStore()
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1m"], on_exceed=OnExceed.DELAY), store=store)
    first, second = registry.client(), registry.client()
    first.ask(Stage.MAIL)
    store.deliver()
    first.committed()
    answer = second.ask(Stage.MAIL)
    registry.clock.advance(0.9)
    store.deliver()
    registry.clock.advance(LimitsOptions().max_delay - 1.0)
    assert not store.pending
    registry.clock.advance(0.1)
    assert len(store.pending) == 1
    store.deliver()
    assert isinstance(answer.result, Defer)


def test_only_so_many_clients_are_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "MAX_DELAYED", 1)
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1m"], on_exceed=OnExceed.DELAY))
    policy = registry.client()
    policy.mail()
    policy.committed()
    waiting = policy.ask(Stage.MAIL)
    assert isinstance(policy.mail(), Defer)
    waiting.addErrback(lambda failure: failure.trap(CancelledError))
    waiting.cancel()
    with pytest.raises(AssertionError, match="no answer"):
        policy.mail()
    registry.clock.advance(60)


def test_a_client_that_leaves_while_it_is_delayed_is_not_charged() -> None:
    registry = Harness(limit("c", Counts.OPEN_CONNECTIONS, rates=["1"], on_exceed=OnExceed.DELAY))
    first, second = registry.client(), registry.client()
    first.connected()
    second.ask(Stage.CONNECT)
    second.disconnected()
    first.disconnected()
    registry.clock.advance(10)
    assert registry.used("c") == 0


def test_an_answer_that_nobody_waits_for_any_more_is_given_back() -> None:
    store = LateStore()
    registry = Harness(limit("m", Counts.MESSAGES), store=store, max_connections_per_ip=5)
    client = registry.client()
    asked = client.ask(Stage.MAIL)
    asked.addErrback(lambda failure: failure.trap(CancelledError))
    asked.cancel()
    left = registry.client()
    left.ask(Stage.CONNECT)
    left.disconnected()
    store.deliver()
    assert registry.used("m") == 0
    assert registry.used("connections-per-ip") == 0


def test_a_store_that_answers_later_is_waited_for() -> None:
    store = LateStore()
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1m"]), store=store)
    verdicts: list[Verdict] = []
    for _ in range(2):
        registry.client().ask(Stage.MAIL).addCallback(verdicts.append)
    assert verdicts == []
    store.deliver()
    assert verdicts == [CONTINUE, Defer(TOO_MANY_MESSAGES, 450, "4.7.1")]


@pytest.mark.parametrize("action", list(OnExceed))
def test_a_store_that_is_away_is_never_a_permanent_refusal(action: OnExceed) -> None:
    class DownStore(LocalStore):
        def acquire(self, requests: Sequence[Request]) -> Decision:
            raise StoreUnavailable("away")

    down = {"when_valkey_is_down": WhenValkeyIsDown.DEFER, "on_exceed": action}
    registry = Harness(
        limit("c", Counts.CONNECTIONS, **down), limit("m", Counts.MESSAGES, **down), store=DownStore(Clock())
    )
    assert registry.client().connected() == Disconnect(
        "Rate limit c can't be checked now, try again in 10 seconds", 421, "4.3.0"
    )
    assert registry.client().mail() == Defer(
        "Rate limit m can't be checked now, try again in 10 seconds", 451, "4.3.0"
    )


def test_an_observed_limit_lets_everybody_pass() -> None:
    registry = Harness(limit("m", Counts.MESSAGES, rates=["1/1m"], mode=Mode.OBSERVE))
    for _ in range(5):
        client = registry.client()
        assert client.mail() == CONTINUE
        client.committed()
    assert registry.used("m") == 1


@implementer(IMailPolicy, IRcptPolicy)
class Later:
    """A policy behind ``limits`` in the chain."""

    refuses_mail = False

    def mail(self, session: object, transaction: object) -> Verdict:
        return Reject("not today") if self.refuses_mail else CONTINUE

    def rcpt(self, session: object, transaction: object, recipient: Recipient) -> Verdict:
        return Reject("no such mailbox") if recipient.local.startswith("no") else CONTINUE


def test_in_the_chain_only_what_every_policy_let_pass_is_charged_in_the_end() -> None:
    registry = Harness(
        limit("m", Counts.MESSAGES, rates=["9/1m"]),
        limit("r", Counts.RECIPIENTS, rates=["9/1m"]),
        max_requests_per_window=9,
    )
    chain = PolicyChain(
        [
            LoadedPolicy("limits", registry.policy, PolicyCommon()),
            LoadedPolicy("later", Later(), PolicyCommon()),
        ],
        registry.clock,
        relay=RelayPermission(Domains(frozenset({"example.com"}))),
    )
    facts = SessionInfo("s1", ip_address("192.0.2.1"), 1025, "mx")
    talk = chain.open(facts)
    talk.ask(ConnectQuestion(facts))
    transaction = TransactionInfo(parse_address("jane@example.org"), MailParameters())
    talk.ask(MailQuestion(facts, transaction))
    for name in ("yes", "no1", "no2"):
        recipient = Recipient(parse_address(f"{name}@example.com"))
        decision = talk.ask(RcptQuestion(facts, transaction, recipient))
        assert not isinstance(decision, Deferred)
        if decision.verdict is CONTINUE:
            transaction.recipients.append(recipient)
    assert (registry.used("m"), registry.used("r")) == (1, 3)
    talk.committed(transaction)
    talk.disconnected()
    assert (registry.used("m"), registry.used("r")) == (1, 1)
    assert registry.used("ip") == 1
    assert registry.used("connections-per-ip") == 0


def guessing(**more: Any) -> Harness:
    return Harness(limit("guesses", Counts.AUTH_FAILURES, Identity.USER, rates=("2/1m",)), **more)


@pytest.mark.parametrize(
    ("outcome", "used"), [(LoginOutcome.GOOD, 0), (LoginOutcome.BAD, 1), (LoginOutcome.UNKNOWN, 0)]
)
def test_an_attempt_to_log_in_is_charged_until_it_was_no_failure(outcome: LoginOutcome, used: int) -> None:
    registry = guessing()
    client = registry.client()
    assert client.login("anna") == CONTINUE
    assert registry.used("guesses") == 1
    client.login_ended("anna", outcome)
    assert registry.used("guesses") == used
    # A second word about the same attempt gives nothing back.
    client.login_ended("anna", LoginOutcome.GOOD)
    assert registry.used("guesses") == used


def test_attempts_over_the_limit_are_deferred_as_authentication_failures() -> None:
    registry = guessing()
    for _ in range(2):
        client = registry.client()
        assert client.login("anna") == CONTINUE
        client.login_ended("anna", LoginOutcome.BAD)
    refused = Defer(
        "Too many failed logins for this account (limit guesses, 2 per minute), try again in 60 seconds",
        454,
        "4.7.0",
    )
    assert registry.client().login("anna") == refused
    assert registry.client().login("berta") == CONTINUE


def test_only_a_good_login_makes_a_user_known() -> None:
    registry = guessing()
    address = ip_address("192.0.2.1")
    for outcome in (LoginOutcome.BAD, LoginOutcome.UNKNOWN):
        client = registry.client(str(address))
        client.login("anna")
        client.login_ended("anna", outcome)
        assert registry.limiter.known_logins.standing("anna", address) is LoginHistory.UNKNOWN
    client.login("anna")
    client.login_ended("anna", LoginOutcome.GOOD)
    assert registry.limiter.known_logins.standing("anna", address) is LoginHistory.KNOWN_ADDRESS


def test_a_charge_for_a_login_that_comes_when_nobody_waits_is_given_back() -> None:
    store = LateStore()
    registry = guessing(store=store)
    client = registry.client()
    asked = client.ask(Stage.LOGIN, "anna")
    asked.addErrback(lambda failure: failure.trap(CancelledError) and None)
    asked.cancel()
    store.deliver()
    assert registry.used("guesses") == 0
