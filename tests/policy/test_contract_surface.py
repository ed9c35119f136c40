"""The surface of the plugin contract, written out: every name, parameter and default that plugins rely on."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import pytest
from zope.interface import Interface
from zope.interface.interface import Method

import elemta.policy
import elemta.policy.testing
from elemta.policy.testing import PolicyTester, make_message, make_services

NAMES = (
    "CONTINUE Accept Defer Reject Disconnect Quarantine Discard RouteTo Hold "
    "IPolicyPlugin IConnectPolicy IHeloPolicy ILoginPolicy IAuthPolicy IMailPolicy IRcptPolicy IDataPolicy "
    "IMessagePolicy ISigner IDeliveryPolicy IDeliveryObserver IOutcomeObserver ILifecycle "
    "CONTRACT_VERSION NoOptions REQUIRED setting Services Session Transaction Message Results Notes "
    "SPFResult DKIMResult ARCResult DMARCResult "
    "StoreUnavailable BackendError NoSuchDomain ResolverTrouble "
    "Address Recipient Envelope Outcome Stage Status Verdict ConfigError Fault"
)

# Version 1 of the contract had these too.
FIRST_NAMES = "Client Decision Headers MailParameters Mode OnError Receipt TLSInfo reply_of"

# Interface: its methods with their parameters; those in brackets may be left out by a policy.
METHODS = {
    "IConnectPolicy": {"connected": "session"},
    "IHeloPolicy": {"helo": "session"},
    "ILoginPolicy": {"login": "session username"},
    "IAuthPolicy": {"authenticated": "session"},
    "IMailPolicy": {"mail": "session transaction"},
    "IRcptPolicy": {"rcpt": "session transaction recipient"},
    "IDataPolicy": {"data": "session transaction"},
    "IMessagePolicy": {"message": "session transaction message"},
    "ISigner": {"sign": "envelope message"},
    "IDeliveryPolicy": {"route": "envelope recipient"},
    "IDeliveryObserver": {"attempted": "outcome"},
    "IOutcomeObserver": {
        "committed": "session transaction queue_id",
        "refused": "session transaction",
        "disconnected": "session",
    },
    "ILifecycle": {"start": "predecessor", "stop": ""},
    "IPolicyPlugin": {"build": "options services"},
}

NEEDED = object()

# Verdict: its fields in order with their defaults.
VERDICTS: dict[str, dict[str, object]] = {
    "Accept": {},
    "Defer": {"text": NEEDED, "code": 450, "enhanced": "4.7.1"},
    "Reject": {"text": NEEDED, "code": 550, "enhanced": "5.7.1"},
    "Disconnect": {"text": NEEDED, "code": 421, "enhanced": "4.7.0"},
    "Quarantine": {"reason": NEEDED},
    "Discard": {"reason": NEEDED},
    "Hold": {"reason": NEEDED},
    "RouteTo": {
        "target": NEEDED, "tls": None, "source": None, "credentials": None, "address_family": None,
    },
}  # fmt: skip

SESSION = (
    "id client_ip client_port server_ip server_port listener hostname helo tls user reverse_name "
    "notes results"
)
TRANSACTION = (
    "queue_id sender recipients parameters size notes results "
    "add_recipient remove_recipient replace_recipient"
)
MESSAGE = "size headers open add_header remove_header replace_header replace_body"
SERVICES = "reactor threads store connect http resolver limits domains metrics log hostname node_id"

# Thing: its call as plugins write it, by the names and defaults of the parameters.
CALLS = {
    "store.get": "(key)",
    "store.set": "(key, value, *, ttl, only_if_absent=False)",
    "store.add": "(key, amount=1, *, ttl)",
    "store.delete": "(key)",
    "message.add_header": "(name, value, at='top')",
    "message.remove_header": "(name, index=None, where=None)",
    "message.replace_header": "(name, value, index=0)",
    "message.replace_body": "(file)",
}


def exported(name: str) -> Any:
    assert name in elemta.policy.__all__, name
    return getattr(elemta.policy, name)


@pytest.mark.parametrize("name", (NAMES + " " + FIRST_NAMES).split())
def test_every_name_is_exported(name: str) -> None:
    assert exported(name) is not None


def test_nothing_that_a_policy_gets_can_be_changed_by_mistake() -> None:
    exported = {name: getattr(elemta.policy, name) for name in elemta.policy.__all__}
    found = {name for name, each in exported.items() if isinstance(each, type) and is_dataclass(each)}
    changeable = {name for name in found if not exported[name].__dataclass_params__.frozen}
    # What a chain answers to the daemon, and what a store knows by identity.
    assert changeable == {"ChainDecision", "Decision", "Receipt"}


def test_the_kit_is_exported_under_both_its_names() -> None:
    kit = elemta.policy.testing
    assert {"PolicyTester", "Rehearsal"} <= set(kit.__all__)
    assert kit.Rehearsal is kit.PolicyTester


@pytest.mark.parametrize("name", METHODS)
def test_an_interface_has_these_methods(name: str) -> None:
    interface = exported(name)
    assert issubclass(type(interface), type(Interface))
    for method, parameters in METHODS[name].items():
        described = interface[method]
        assert isinstance(described, Method)
        assert list(described.positional) == parameters.split()


def test_what_may_be_left_out_is_named_where_its_interface_is_described() -> None:
    for name, left_out in (
        ("IDeliveryObserver", "ended(envelope, recipient, outcome)"),
        ("IOutcomeObserver", "decided(session, policy, stage, verdict)"),
    ):
        assert left_out in exported(name).__doc__


@pytest.mark.parametrize("name", VERDICTS)
def test_a_verdict_has_these_fields(name: str) -> None:
    found = {
        each.name: NEEDED if each.default is MISSING else each.default for each in fields(exported(name))
    }
    assert found == VERDICTS[name]
    assert list(found) == list(VERDICTS[name])


@pytest.fixture
def tester() -> PolicyTester:
    from elemta.policies.relay import RelayPlugin

    return PolicyTester(RelayPlugin())


def test_the_views_and_services_have_these_attributes(tester: PolicyTester) -> None:
    for thing, names in (
        (tester.session, SESSION),
        (tester.transaction, TRANSACTION),
        (make_message(b"A: b\r\n\r\n"), MESSAGE),
        (make_services(), SERVICES),
    ):
        assert [name for name in names.split() if not hasattr(thing, name)] == []


def test_the_session_says_where_the_client_connected_and_what_we_are_called() -> None:
    from elemta.policies.relay import RelayPlugin

    tester = PolicyTester(RelayPlugin(), server_ip="2001:db8::25", server_port=587, hostname="mx.example.net")
    session = tester.session
    assert (str(session.server_ip), session.server_port) == ("2001:db8::25", 587)
    assert session.hostname == "mx.example.net"


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_spelled_so(tester: PolicyTester, name: str) -> None:
    things = {"store": tester.services.store, "message": make_message(b"A: b\r\n\r\n")}
    thing, _, method = name.partition(".")
    signature = inspect.signature(getattr(things[thing], method))
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    shown = inspect.Signature(bare)
    assert str(shown) == CALLS[name]


def test_the_version_of_the_contract_is_2() -> None:
    assert exported("CONTRACT_VERSION").split(".")[0] == "2"
