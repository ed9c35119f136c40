"""The Python functions of Elemta that run for a decision: a figure that no busy machine changes.

docs/performance.md has the figures of a whole daemon.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from elemta.config import Counts, Identity, LimitConfig, PolicyServiceConfig, Rate, ResourcesConfig
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.metrics import PolicyServiceMetrics
from elemta.policy_service.service import PolicyServiceFactory
from tests.net.test_calls import calls
from tests.support.runtime import runtime_of

CONFIG = PolicyServiceConfig(name="postfix", endpoint="tcp:10031")
LIMIT = LimitConfig("per-user", per=(Identity.USER,), counts=Counts.RECIPIENTS, rates=(Rate(100, 3600.0),))
MOST = 100
"""The most functions for a request of one limit that is counted in memory."""


def question(number: int) -> bytes:
    return (
        "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nhelo_name=mx.example.com\n"
        f"sender=a@example.com\nrecipient={number}@example.net\ninstance=1.{number}\nsize=1000\n"
        "sasl_username=anna\n\n"
    ).encode()


def test_a_decision_takes_few_calls() -> None:
    clock = Clock()
    factory = PolicyServiceFactory(CONFIG, PolicyServiceMetrics(), clock)
    rules = rules_from_config(ResourcesConfig(), (LIMIT,))
    factory.set_limits(Limiter(rules, LocalStore(runtime_of(clock))), CONFIG.charge_messages_at)
    protocol, transport = factory.buildProtocol(None), StringTransport()
    assert protocol is not None
    protocol.makeConnection(transport)
    protocol.dataReceived(question(0))  # what is made once is there
    taken = calls(lambda: protocol.dataReceived(question(1)))
    assert transport.value() == 2 * b"action=DUNNO\n\n"
    assert taken <= MOST
