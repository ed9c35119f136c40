"""The null sender is no sender: a limit per sender counts it for each recipient domain by itself."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elemta.address import Address
from elemta.config import Counts, Identity, LimitConfig, Rate, ResourcesConfig
from elemta.domains import Domains
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.limits.lookup import requests_for
from elemta.policies.limits import LimitsPlugin
from elemta.policy import CONTINUE, Verdict
from elemta.policy.testing import PolicyTester
from tests.policies.test_limits import Harness, limit


def used(harness: Harness, name: str = "m") -> dict[str, int]:
    return {usage.request.identity: usage.used[0] for usage in harness.top(name, 50)}


def send(client: PolicyTester, sender: str, *recipients: str) -> list[bool]:
    """Send a message to those that are accepted; whether MAIL and each RCPT was."""
    accepted = [client.mail(sender) == CONTINUE]
    if accepted[0]:
        accepted += [client.rcpt(each) == CONTINUE for each in recipients]
    if True in accepted[1:] and client.message(b"x" * 100) == CONTINUE:
        client.committed()
    else:
        client.refused()
    return accepted


@pytest.mark.parametrize("identity", [Identity.SENDER, Identity.SENDER_DOMAIN])
def test_notices_of_all_hosts_do_not_use_up_one_limit(identity: Identity) -> None:
    harness = Harness(limit("m", Counts.MESSAGES, identity))
    for number in range(20):
        client = harness.client(f"192.0.2.{number}")
        assert send(client, "", f"a@d{number}.example") == [True, True]
    assert used(harness) == {f"<>@d{number}.example": 1 for number in range(20)}


def test_notices_to_one_domain_are_limited_at_rcpt() -> None:
    harness = Harness(limit("m", Counts.MESSAGES, Identity.SENDER))
    client = harness.client()
    assert send(client, "", "a@one.example", "b@ONE.example", "c@two.example") == [True] * 4
    assert send(client, "", "a@one.example") == [True, True]
    assert used(harness) == {"<>@one.example": 2, "<>@two.example": 1}
    assert send(client, "", "z@one.example", "c@two.example") == [True, False, True]
    assert used(harness) == {"<>@one.example": 2, "<>@two.example": 2}
    assert send(client, "jane@example.org", "a@one.example") == [True, True]


def test_what_comes_to_nothing_is_given_back() -> None:
    harness = Harness(
        limit("m", Counts.MESSAGES, Identity.SENDER), limit("t", Counts.RECIPIENTS, rates=["1/1m"])
    )
    client = harness.client()
    client.mail("")
    assert client.rcpt("a@one.example") == CONTINUE
    # All or none: the other limit is full, so this one is not charged either.
    assert client.rcpt("a@two.example") != CONTINUE
    assert used(harness) == {"<>@one.example": 1}
    client.refused()
    assert used(harness) == {}


def test_recipients_and_bytes_are_counted_for_each_domain() -> None:
    harness = Harness(
        limit("r", Counts.RECIPIENTS, Identity.SENDER, rates=["9/1m"]),
        limit("b", Counts.BYTES, Identity.SENDER, Identity.IP, rates=["900/1m"]),
    )
    assert all(send(harness.client(), "", "a@one.example", "b@one.example", "c@two.example"))
    assert used(harness, "r") == {"<>@one.example": 2, "<>@two.example": 1}
    assert used(harness, "b") == {"<>@one.example|192.0.2.1": 100, "<>@two.example|192.0.2.1": 100}


@pytest.mark.parametrize(
    ("entry", "exempt"),
    [("<>", True), ("<>@One.example.", True), ("<>@two.example", False), ("one.example", False)],
)
def test_the_null_sender_can_be_exempt(entry: str, exempt: bool) -> None:
    harness = Harness(limit("m", Counts.MESSAGES, Identity.SENDER, rates=["1/1m"], except_=(entry,)))
    assert send(harness.client(), "", "a@one.example") == [True, True]
    assert send(harness.client(), "", "a@one.example") == [True, exempt]


def test_an_operator_finds_the_count() -> None:
    rules = rules_from_config(
        ResourcesConfig(), [LimitConfig("m", (Identity.SENDER,), Counts.MESSAGES, (Rate(5, 60.0),))]
    )
    assert [request.identity for request in requests_for(rules, "<>@One.Example")] == ["<>@one.example"]


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["", "", "jane@one.example"]),
        st.lists(
            st.sampled_from(["a@one.example", "b@one.example", "a@two.example"]), min_size=1, max_size=4
        ),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.integers(1, 4))
def test_no_more_pass_than_the_limit_says_and_all_that_it_allows(
    messages: list[tuple[str, list[str]]], most: int
) -> None:
    harness = Harness(limit("m", Counts.MESSAGES, Identity.SENDER, rates=[f"{most}/1m"]))
    passed: Counter[str] = Counter()
    client = harness.client()
    for sender, recipients in messages:
        keys = [sender or f"<>@{each.partition('@')[2]}" for each in recipients]
        if sender:
            wanted = [passed[sender] < most] + [True] * (len(recipients) if passed[sender] < most else 0)
        else:
            wanted = [True, *(passed[key] < most for key in keys)]
        assert send(client, sender, *recipients) == wanted
        passed.update({key for key, good in zip(keys, wanted[1:], strict=False) if good})
    assert used(harness) == dict(passed)


def test_another_tag_or_case_is_no_other_identity_of_a_local_mailbox() -> None:
    domains = Domains(frozenset({"example.com"}), delimiter="+")
    harness = Harness()
    limits = [limit("r", Counts.RECIPIENTS, Identity.RECIPIENT), limit("s", Counts.MESSAGES, Identity.SENDER)]
    settings_ = ResourcesConfig(max_requests_per_window=0)
    limiter = Limiter(
        rules_from_config(settings_, limits), LocalStore(harness.clock), mailbox=domains.mailbox
    )
    client = PolicyTester(LimitsPlugin(), limits=limiter)
    verdicts: list[Verdict] = [client.mail("x@example.org")]
    verdicts += [
        client.rcpt(each) for each in ("anna@example.com", "Anna+1@example.com", "anna+2@example.com")
    ]
    assert [verdict == CONTINUE for verdict in verdicts] == [True, True, True, False]
    client.committed()
    for sender, passes in (("a+1@example.com", True), ("A+2@example.com", True), ("a@example.com", False)):
        assert (client.mail(sender) == CONTINUE) is passes
        client.committed()
    # At other domains a tag is only a part of a name.
    assert [client.mail(f"a+{number}@example.org") == CONTINUE for number in range(4)] == [True] * 4
    assert domains.mailbox(Address("a+1", "example.org")) == Address("a+1", "example.org")


@pytest.mark.parametrize("text", ["Anna+x@example.com", "r:anna@EXAMPLE.com", "<anna+@example.com>"])
def test_an_operator_finds_a_mailbox_by_any_of_its_tags(text: str) -> None:
    domains = Domains(frozenset({"example.com"}), delimiter="+")
    rules = rules_from_config(ResourcesConfig(), [limit("r", Counts.RECIPIENTS, Identity.RECIPIENT)])
    (request,) = requests_for(rules, text, domains.mailbox)
    assert request.identity == "anna@example.com"
