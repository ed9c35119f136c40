"""Relaying is granted in one place: whatever policies say or however they fail, no foreign client relays."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer

from elemta.address import Address
from elemta.config import Mode, OnError, PolicyCommon
from elemta.domains import Domains
from elemta.envelope import MailParameters, Recipient
from elemta.errors import AddressSyntaxError, RelayNotGranted
from elemta.policies.relay import RelayPlugin
from elemta.policy import (
    CONTINUE,
    Accept,
    ChainDecision,
    Defer,
    Disconnect,
    IAuthPolicy,
    IConnectPolicy,
    IDataPolicy,
    IHeloPolicy,
    IMailPolicy,
    IMessagePolicy,
    IRcptPolicy,
    LoadedPolicy,
    NoOptions,
    PolicyChain,
    Quarantine,
    Reject,
    RelayPermission,
    reply_of,
)
from elemta.policy.testing import make_message, make_services
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

DENIED = ChainDecision(Reject("Relay access denied", code=554, enhanced="5.7.1"), "may_relay")
DOMAINS = Domains(frozenset({"example.com"}), relay_from=(ip_network("10.0.0.0/8"),))
STAGES = ("connect", "helo", "auth", "mail", "rcpt", "data", "message")


class LooksAccepted(Accept):
    """A verdict of a plugin's own making."""


VERDICTS = {
    "continue": CONTINUE,
    "accept": Accept(),
    "own accept": LooksAccepted(),
    "quarantine": Quarantine("odd"),
    "defer": Defer("later"),
    "reject": Reject("no"),
    "disconnect": Disconnect("bye"),
    "none": None,
    "invalid": "OK",
}


@implementer(IConnectPolicy, IHeloPolicy, IAuthPolicy, IMailPolicy, IRcptPolicy, IDataPolicy, IMessagePolicy)
class Drawn:
    """Answers what was drawn for each stage, at once or later, or fails in the way that was drawn."""

    def __init__(self, clock: Clock, answers: dict[str, tuple[str, str]]) -> None:
        self._clock = clock
        self._answers = answers
        self.granted: list[Address] = []

    def _answer(self, stage: str, recipient: Recipient | None = None) -> Any:
        verdict, manner = self._answers[stage]
        if manner == "raise":
            raise RuntimeError("out of cheese")
        if manner == "exit":
            raise SystemExit(1)
        if manner == "hang":
            return Deferred()
        if manner == "raise late":
            return deferLater(self._clock, 1.0, lambda: 1 / 0)
        if recipient is not None and isinstance(VERDICTS[verdict], Accept):
            self.granted.append(recipient.address)
        if manner == "late":
            return deferLater(self._clock, 1.0, lambda: VERDICTS[verdict])
        return VERDICTS[verdict]

    def connected(self, session: object) -> Any:
        return self._answer("connect")

    def helo(self, session: object) -> Any:
        return self._answer("helo")

    def authenticated(self, session: object) -> Any:
        return self._answer("auth")

    def mail(self, session: object, transaction: object) -> Any:
        return self._answer("mail")

    def rcpt(self, session: object, transaction: object, recipient: Recipient) -> Any:
        return self._answer("rcpt", recipient)

    def data(self, session: object, transaction: object) -> Any:
        return self._answer("data")

    def message(self, session: object, transaction: object, message: object) -> Any:
        return self._answer("message")


answers = st.tuples(
    st.sampled_from([*VERDICTS, "accept", "quarantine", "continue"]),
    st.sampled_from(["at once", "at once", "late", "raise", "exit", "hang", "raise late"]),
)
commons = st.builds(
    PolicyCommon,
    mode=st.sampled_from(Mode),
    on_error=st.sampled_from(OnError),
    listeners=st.sampled_from([(), ("mx",), ("other",)]),
)
drawn = st.tuples(st.fixed_dictionaries(dict.fromkeys(STAGES, answers)), commons)
# The names of the drawn policies; None is the bundled relay.
chains = st.permutations(["a", "b", "c", "srs", None]).flatmap(
    lambda names: st.integers(0, 5).map(lambda length: names[:length])
)
addresses = st.sampled_from(
    [
        Address("someone", "example.com"),
        Address("target", "example.org"),
        Address("target%example.org", "example.com"),
        Address("target\uff20example.org", "example.com"),
        Address("target", "sub.example.com"),
        Address("target", "[127.0.0.1]"),
    ]
)


class Conversed:
    """One session over a drawn chain, as the SMTP core would lead it."""

    def __init__(self, names: list[str | None], policies: Any, granting: set[str], **facts: Any) -> None:
        self.clock = Clock()
        self.made: dict[str, Drawn] = {}
        self.modes: dict[str, Mode] = {}
        loaded = []
        for name, (what, common) in zip(names, policies, strict=False):
            policy: object
            if name is None:
                policy = RelayPlugin().build(NoOptions(), make_services(self.clock))
            else:
                policy = self.made[name] = Drawn(self.clock, what)
                self.modes[name] = common.mode
            loaded.append(LoadedPolicy(name or "relay", policy, common))
        self.granting = granting
        chain = PolicyChain(loaded, self.clock, relay=RelayPermission(DOMAINS, frozenset(granting)))
        self.facts = SessionInfo("s", ip_address("192.0.2.1"), 1025, "mx", **facts)
        self.talk = chain.open(self.facts)
        self.transaction = TransactionInfo(Address("sender", "example.net"), MailParameters())

    def ask(self, question: Any, message: Any = None) -> ChainDecision:
        decision = self.talk.ask(question, message)
        if isinstance(decision, Deferred):
            results: list[Any] = []
            decision.addBoth(results.append)
            self.clock.pump([1.0] * 40)
            (decision,) = results
        assert isinstance(decision, ChainDecision)
        return decision

    def lead(self, recipients: list[Address]) -> None:
        facts, transaction = self.facts, self.transaction
        for question in (ConnectQuestion(facts), HeloQuestion(facts), AuthQuestion(facts)):
            self.ask(question)
        self.ask(MailQuestion(facts, transaction))
        for address in recipients:
            recipient = Recipient(address)
            if reply_of(self.ask(RcptQuestion(facts, transaction, recipient)).verdict) is None:
                transaction.recipients.append(recipient)
        self.ask(DataQuestion(facts, transaction))
        self.ask(MessageQuestion(facts, transaction), make_message(b"Subject: x\r\n\r\n"))

    def may_have(self, address: Address) -> bool:
        """Whether a policy that may grant relaying, and is enforced, accepted this recipient."""
        return any(
            name in self.granting and self.modes[name] is Mode.ENFORCE and address in policy.granted
            for name, policy in self.made.items()
        )


@settings(max_examples=300)
@given(
    names=chains,
    policies=st.lists(drawn, min_size=5, max_size=5),
    granting=st.sets(st.sampled_from(["relay", "srs", "a"])),
    recipients=st.lists(addresses, min_size=1, max_size=4),
)
def test_no_stranger_gets_a_foreign_recipient_unless_a_policy_that_may_grant_it_did(
    names: list[str | None], policies: Any, granting: set[str], recipients: list[Address]
) -> None:
    session = Conversed(names, policies, granting)
    session.lead(recipients)
    for recipient in session.transaction.recipients:
        assert DOMAINS.ends_here(recipient.address) or session.may_have(recipient.address)


@settings(max_examples=60)
@given(
    names=chains.filter(lambda names: "srs" not in names),
    policies=st.lists(drawn, min_size=5, max_size=5),
    recipients=st.lists(addresses, min_size=1, max_size=4),
)
def test_by_default_a_stranger_gets_no_foreign_recipient_at_all(
    names: list[str | None], policies: Any, recipients: list[Address]
) -> None:
    session = Conversed(names, policies, {"relay", "srs"})
    session.lead(recipients)
    assert all(DOMAINS.ends_here(recipient.address) for recipient in session.transaction.recipients)


def verdict_at_rcpt(verdict: str, manner: str = "at once") -> Any:
    what = dict.fromkeys(STAGES, ("continue", "at once"))
    return {**what, "rcpt": (verdict, manner)}


def decide(
    *policies: tuple[str, str], granting: str = "relay", domain: str = "example.org", **facts: Any
) -> ChainDecision:
    """What a chain of such policies decides about a recipient in this domain."""
    drawn = [(verdict_at_rcpt(verdict), PolicyCommon()) for _, verdict in policies]
    session = Conversed([name for name, _ in policies], drawn, {granting}, **facts)
    recipient = Recipient(Address("someone", domain))
    return session.ask(RcptQuestion(session.facts, session.transaction, recipient))


def test_a_chain_without_policies_relays_for_nobody_who_may_not() -> None:
    assert decide() == DENIED
    assert decide(domain="example.com").verdict == CONTINUE
    assert decide(user="jane").verdict == CONTINUE


@pytest.mark.parametrize("verdict", ["accept", "own accept", "quarantine", "continue"])
def test_no_verdict_of_a_policy_that_may_not_grant_relaying_does(verdict: str) -> None:
    assert decide(("a", verdict)) == DENIED


def test_an_acceptance_leaves_the_question_of_relaying_to_those_that_may_grant_it() -> None:
    granted = decide(("a", "accept"), ("b", "reject"), ("c", "accept"), granting="c")
    assert granted == ChainDecision(Accept(), "c")
    refused = decide(("a", "accept"), ("b", "accept"), ("c", "defer"), granting="c")
    assert refused == ChainDecision(Defer("later"), "c")
    assert decide(("a", "accept"), ("b", "reject"), ("c", "continue"), granting="c") == DENIED
    assert decide(("a", "accept"), ("c", "continue"), granting="c", user="jane") == ChainDecision(
        Accept(), "a"
    )


def test_an_acceptance_settles_a_recipient_that_is_not_relayed_to() -> None:
    assert decide(("a", "accept"), ("c", "reject"), granting="c", domain="example.com") == ChainDecision(
        Accept(), "a"
    )


def test_a_recipient_that_a_policy_quarantined_and_nobody_may_relay_to_is_on_no_message() -> None:
    quarantine = (verdict_at_rcpt("quarantine"), PolicyCommon())
    session = Conversed(["a", None], [quarantine, (None, PolicyCommon())], {"relay"})
    session.lead([Address("target", "example.org"), Address("someone", "example.com")])
    assert [str(recipient) for recipient in session.transaction.recipients] == ["someone@example.com"]
    assert session.talk.hold_reason(session.transaction) == "odd"


def test_a_denial_of_the_last_instance_is_logged_with_the_policy_that_had_accepted(logged: Any) -> None:
    decide(("a", "accept"))
    (event,) = [event for event in logged if event.get("event") == "relay.denied"]
    assert (event["recipient"], event["accepted_by"]) == ("someone@example.org", "a")


TOO_LONG = Address("a" * 257, "example.com")


@implementer(IDataPolicy)
class Adds:
    """Adds one recipient, and keeps what that raised."""

    def __init__(self, wanted: Any) -> None:
        self.wanted = wanted
        self.raised: Exception | None = None

    def data(self, session: object, transaction: Any) -> Any:
        try:
            transaction.add_recipient(self.wanted)
        except Exception as error:
            self.raised = error
            raise
        return CONTINUE


def _add(
    wanted: Any,
    *,
    policy: str = "a",
    user: str | None = None,
    ip: str = "192.0.2.1",
    mode: Mode = Mode.ENFORCE,
) -> tuple[Adds, list[str], ChainDecision]:
    clock = Clock()
    adds = Adds(wanted)
    loaded = LoadedPolicy(policy, adds, PolicyCommon(mode=mode))
    chain = PolicyChain([loaded], clock, relay=RelayPermission(DOMAINS, frozenset({"srs"})))
    facts = SessionInfo(id="s", client_ip=ip_address(ip), client_port=1, listener="mx", user=user)
    transaction = TransactionInfo(Address("a", "b.example"), MailParameters())
    transaction.recipients.append(Recipient(Address("first", "example.com")))
    decision = chain.open(facts).ask(DataQuestion(facts, transaction))
    assert isinstance(decision, ChainDecision)
    return adds, [str(each) for each in transaction.recipients[1:]], decision


@pytest.mark.parametrize(
    ("wanted", "who", "added"),
    [
        ("archive@example.com", {}, True),
        ("archive@example.org", {}, False),
        ("target%example.org@example.com", {}, False),
        (Recipient(Address("archive", "example.org")), {}, False),
        ("archive@[127.0.0.1]", {}, False),
        ("archive@example.org", {"user": "anna"}, True),
        ("archive@example.org", {"ip": "10.1.2.3"}, True),
        ("archive@example.org", {"policy": "srs"}, True),
    ],
)
def test_a_policy_adds_no_recipient_to_whom_the_client_may_not_relay(
    wanted: Any, who: dict[str, Any], added: bool
) -> None:
    adds, recipients, decision = _add(wanted, **who)
    assert bool(recipients) is added
    if not added:
        assert isinstance(adds.raised, RelayNotGranted)
        assert "[policies] may_relay" in str(adds.raised)
        # It counts as a failure of the policy, whose on_error decides: a defer by default.
        assert isinstance(decision.verdict, Defer)


@pytest.mark.parametrize(
    "wanted",
    [
        "nobody",
        "a@b@example.com",
        "a@example.com\r\nRCPT TO:<b@example.com>",
        "a" * 257 + "@example.com",
        "a@" + ".".join(["b" * 60] * 5),
        TOO_LONG,
        Recipient(TOO_LONG),
        Address("a", "exa mple.com"),
        Address("a", "example.com>"),
        Address("a\r\nb", "example.com"),
        Address("a", ""),
        Address("", "example.com"),
        Address("a", "EXAMPLE.com"),
        Address("a", "b" * 64 + ".example.com"),
    ],
)
@pytest.mark.parametrize("who", [{}, {"user": "anna"}, {"policy": "srs"}], ids=["stranger", "user", "srs"])
def test_a_policy_adds_nothing_that_no_command_could_name(wanted: Any, who: dict[str, Any]) -> None:
    adds, recipients, decision = _add(wanted, **who)
    assert recipients == []
    assert isinstance(adds.raised, AddressSyntaxError)
    assert isinstance(decision.verdict, Defer)


def test_what_an_observer_may_not_add_is_told_too() -> None:
    adds, recipients, _ = _add("archive@example.org", mode=Mode.OBSERVE)
    assert isinstance(adds.raised, RelayNotGranted)
    assert recipients == []
