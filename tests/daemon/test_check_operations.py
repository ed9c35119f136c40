"""The limits as another server asks them over HTTP: what each stage is charged, and the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import Clock

from elemta.auth.roles import AccessRole, Caller
from elemta.config import Counts, Identity, LimitConfig, Rate, ResourcesConfig
from elemta.daemon.check_operations import CheckOperations
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal

ASKED: Mapping[str, Any] = {
    "ip": "192.0.2.1",
    "helo": "mail.example.net",
    "user": "anna",
    "sender": "anna@example.com",
    "recipients": ["bert@example.org"],
    "size": 1000,
}
TOKEN = Caller("token:haraka", AccessRole.LIMITER)


class Server:
    """The call on limits of three a minute."""

    def __init__(self, counts: Counts, *per: Identity, limit: int = 3) -> None:
        rule = LimitConfig(name="mine", per=per, counts=counts, rates=(Rate(limit, 60.0),))
        resources = ResourcesConfig(max_requests_per_window=0)
        self.limiter = Limiter(rules_from_config(resources, (rule,)), LocalStore(Clock()))
        self.calls = CallTable(CheckOperations(lambda: self.limiter))
        (self.call,) = self.calls.calls

    async def check(self, stage: str, caller: Caller = TOKEN, **others: Any) -> Any:
        return await self.call.answer({}, {}, {**ASKED, "stage": stage, **others}, caller)

    async def admitted(self, stage: str, attempts: int = 5, **others: Any) -> int:
        return sum([(await self.check(stage, **others))["admitted"] for _ in range(attempts)])


@pytest.mark.parametrize(
    ("counts", "per", "stage"),
    [
        (Counts.CONNECTIONS, (Identity.IP,), "connect"),
        (Counts.CONNECTIONS, (Identity.HELO, Identity.NETWORK), "connect"),
        (Counts.MESSAGES, (Identity.SENDER,), "mail"),
        (Counts.MESSAGES, (Identity.USER,), "message"),
        (Counts.MESSAGES, (Identity.RECIPIENT_DOMAIN,), "message"),
        (Counts.MESSAGES, (), "message"),
        (Counts.RECIPIENTS, (Identity.SENDER_DOMAIN,), "rcpt"),
        (Counts.RECIPIENTS, (Identity.RECIPIENT,), "rcpt"),
    ],
)
@ensureDeferred
async def test_a_stage_is_charged_what_happens_at_it_and_nothing_else(
    counts: Counts, per: tuple[Identity, ...], stage: str
) -> None:
    server = Server(counts, *per)
    for other in {"connect", "rcpt", *({"mail", "message"} if counts is not Counts.MESSAGES else ())} - {
        stage
    }:
        assert await server.admitted(other) == 5
    assert await server.admitted(stage) == 3


@ensureDeferred
async def test_bytes_are_those_of_the_message() -> None:
    server = Server(Counts.BYTES, Identity.SENDER, limit=5000)
    assert await server.admitted("message", size=2000) == 2
    assert await server.admitted("message", size=1000) == 1


@ensureDeferred
async def test_a_refusal_says_which_limit_for_which_identity_until_when_and_in_words() -> None:
    server = Server(Counts.MESSAGES, Identity.SENDER)
    assert await server.check("message") == {
        "admitted": True, "limit": "", "identity": "", "retry_after": 0.0, "text": ""
    }  # fmt: skip
    await server.admitted("message", 2)
    answer = await server.check("message")
    assert answer == {
        "admitted": False,
        "limit": "mine",
        "identity": "anna@example.com",
        "retry_after": 60.0,
        "text": "Too many messages from this sender (limit mine, 3 per minute), try again in 60 seconds",
    }


@ensureDeferred
async def test_what_can_never_pass_has_no_time_to_wait_for() -> None:
    server = Server(Counts.BYTES, Identity.SENDER, limit=5000)
    answer = await server.check("message", size=6000)
    assert (answer["admitted"], answer["retry_after"]) == (False, None)


@ensureDeferred
async def test_more_recipients_than_the_limit_can_never_pass_together() -> None:
    server = Server(Counts.RECIPIENTS, Identity.SENDER)
    answer = await server.check("rcpt", recipients=[f"{n}@example.org" for n in range(4)])
    assert (answer["admitted"], answer["retry_after"]) == (False, None)
    assert answer["text"] == "More recipients at once than rate limit mine ever allows"


@ensureDeferred
async def test_several_recipients_are_one_decision_and_each_is_charged() -> None:
    many = [f"{name}@example.org" for name in ("a", "b")]
    server = Server(Counts.RECIPIENTS, Identity.SENDER)
    assert (await server.check("rcpt", recipients=many))["admitted"]
    assert not (await server.check("rcpt", recipients=many))["admitted"]
    # None of the two was charged.
    assert (await server.check("rcpt", recipients=many[:1]))["admitted"]
    domain = Server(Counts.RECIPIENTS, Identity.RECIPIENT_DOMAIN)
    assert await domain.admitted("rcpt", 2, recipients=many) == 1
    mailbox = Server(Counts.RECIPIENTS, Identity.RECIPIENT)
    assert await mailbox.admitted("rcpt", 5, recipients=many) == 3


@pytest.mark.parametrize("per", [Identity.SENDER, Identity.SENDER_DOMAIN])
@pytest.mark.parametrize(("stage", "counts"), [("message", Counts.MESSAGES), ("rcpt", Counts.RECIPIENTS)])
@ensureDeferred
async def test_a_sender_that_is_not_given_is_not_the_null_sender(
    stage: str, counts: Counts, per: Identity
) -> None:
    server = Server(counts, per)
    assert await server.admitted(stage, sender=None) == 5
    assert await server.admitted(stage, sender="") == 3
    assert await server.admitted(stage, sender="<>") == 0
    question = {key: value for key, value in ASKED.items() if key != "sender"}
    answer: Any = await server.call.answer({}, {}, {**question, "stage": stage}, TOKEN)
    assert answer["admitted"]


@pytest.mark.parametrize(
    "sender", ["anna@example.com", "<anna@example.com>", " anna@EXAMPLE.com. ", '"anna"@example.com']
)
@ensureDeferred
async def test_an_address_is_the_same_in_any_spelling(sender: str) -> None:
    server = Server(Counts.MESSAGES, Identity.SENDER)
    await server.admitted("message", 3)
    assert not (await server.check("message", sender=sender))["admitted"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"ip": "192.0.2.1:25"}, "is no IP address"),
        ({"ip": 7}, "ip is not a string"),
        ({"stage": "data"}, "unknown stage"),
        ({"size": -1}, "size"),
        ({"size": "1000"}, "size is not an integer"),
        ({"recipients": "a@example.org"}, "recipients is not an array"),
        ({"recipients": [7]}, "recipients is not a list of texts"),
        ({"recipients": ["a@example.org"] * 1001}, "recipients has 1001 entries"),
        ({"sneder": "a@example.org"}, "unknown key 'sneder'"),
    ],
)
@ensureDeferred
async def test_what_is_no_question_is_refused_and_charged_nothing(
    given: dict[str, Any], problem: str
) -> None:
    server = Server(Counts.MESSAGES, Identity.SENDER)
    with pytest.raises(AdminRefusal, match=problem):
        await server.call.answer({}, {}, {**ASKED, "stage": "message", **given}, TOKEN)
    assert await server.admitted("message") == 3


@ensureDeferred
async def test_a_viewer_may_not_charge() -> None:
    server = Server(Counts.MESSAGES, Identity.SENDER)
    with pytest.raises(AdminRefusal, match="may not"):
        await server.check("message", Caller("vera", AccessRole.VIEWER))
    assert (await server.check("message", Caller("olga", AccessRole.OPERATOR)))["admitted"]
