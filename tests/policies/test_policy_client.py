"""An external Postfix policy daemon, scripted; a real one is Elemta's own policy service."""

from __future__ import annotations

import pytest

from elemta.policies.policy_client import PolicyClientPlugin
from elemta.policy import CONTINUE, BackendError, Defer, Discard, Disconnect, Quarantine, Reject
from elemta.policy.testing import PolicyTester

ENDPOINT = "unix:/run/policyd/policy.sock"
MESSAGE = b"Subject: s\r\n\r\ntext\r\n"


def policy(*actions: str, **how) -> PolicyTester:
    answers = [f"action={action}\n\n".encode() for action in actions]
    asked = PolicyTester(PolicyClientPlugin(), connections={ENDPOINT: answers}, **how)
    asked.helo("client.example.org")
    asked.mail("a@example.org")
    return asked


def attributes(octets: bytes) -> dict[str, str]:
    assert octets.endswith(b"\n\n")
    return dict(line.split("=", 1) for line in octets.decode().rstrip("\n").split("\n"))


def test_the_daemon_is_asked_at_each_recipient_and_at_the_end_with_the_same_instance():
    asked = policy("DUNNO", "DUNNO", "DUNNO", user="anna", reverse_name="client.example.org")
    assert asked.rcpt("b@example.com") == CONTINUE
    assert asked.rcpt("c@example.com") == CONTINUE
    assert asked.message(MESSAGE) == CONTINUE
    first, second, last = map(attributes, asked.connections.written[0])
    assert (first["request"], first["protocol_state"]) == ("smtpd_access_policy", "RCPT")
    assert (first["client_address"], first["helo_name"]) == ("192.0.2.1", "client.example.org")
    assert (first["sender"], first["recipient"], first["sasl_username"]) == (
        "a@example.org",
        "b@example.com",
        "anna",
    )
    assert second["recipient"] == "c@example.com"
    assert (last["protocol_state"], last["recipient_count"], last["size"]) == ("END-OF-MESSAGE", "2", "20")
    assert first["instance"] == second["instance"] == last["instance"] != ""


@pytest.mark.parametrize(
    ("action", "verdict"),
    [
        ("DUNNO", CONTINUE),
        ("dunno", CONTINUE),
        ("OK", CONTINUE),
        ("REJECT", Reject("Access denied", code=554, enhanced="5.7.1")),
        ("REJECT 5.7.23 no such luck", Reject("no such luck", code=554, enhanced="5.7.23")),
        ("DEFER_IF_PERMIT 4.7.1 slow down", Defer("slow down", code=450, enhanced="4.7.1")),
        ("DEFER", Defer("Try again later", code=450, enhanced="4.7.1")),
        ("DEFER\t4.3.0\tlater", Defer("later", code=450, enhanced="4.3.0")),
        ("550\tnot you", Reject("not you", code=550, enhanced="5.7.1")),
        ("550 5.1.1 unknown", Reject("unknown", code=550, enhanced="5.1.1")),
        ("451 later", Defer("later", code=451, enhanced="4.7.1")),
        ("421 4.3.2 going down", Disconnect("going down", code=421, enhanced="4.3.2")),
        ("HOLD suspicious", Quarantine("suspicious")),
        ("DISCARD", Discard("the policy daemon")),
        ("WARN odd", CONTINUE),
    ],
)
def test_an_action_is_a_verdict(action, verdict):
    assert policy(action).rcpt("b@example.com") == verdict


def test_a_field_that_is_prepended_stands_on_top_of_the_message_once():
    asked = policy("PREPEND Received-SPF: pass", "PREPEND Received-SPF: pass", "DUNNO")
    asked.rcpt("b@example.com")
    asked.rcpt("c@example.com")
    assert asked.message(MESSAGE) == CONTINUE
    assert asked.edited_message == b"Received-SPF: pass\r\n" + MESSAGE


@pytest.mark.parametrize(
    "field", ["no field", "X A: 1", ": 1", "X" * 200 + ": 1", "X-A: " + "y" * 2000, "X-A"]
)
def test_a_field_that_can_not_be_is_left_out(field):
    for actions in ((f"PREPEND {field}", "PREPEND X-B: 2"), ("PREPEND X-B: 2", f"PREPEND {field}")):
        asked = policy(*actions)
        asked.rcpt("b@example.com")
        assert asked.message(MESSAGE) == CONTINUE
        assert asked.edited_message == b"X-B: 2\r\n" + MESSAGE


@pytest.mark.parametrize(
    "answer", [b"\n\n", b"nonsense\n\n", b"action=\n\n", b"action=FILTER x\n\n", b"x" * 9000]
)
def test_an_answer_that_means_nothing_is_a_failure_of_the_policy(answer):
    asked = PolicyTester(PolicyClientPlugin(), connections={ENDPOINT: [answer]})
    asked.mail("a@example.org")
    with pytest.raises(BackendError):
        asked.rcpt("b@example.com")


def test_a_connection_is_kept_and_a_lost_one_is_made_anew():
    asked = policy("DUNNO")  # the daemon closes after its only answer
    asked.rcpt("b@example.com")
    asked.rcpt("c@example.com")
    assert len(asked.connections.written) == 2
    asked.stop()
    assert asked.connections.open == 0


def test_no_value_can_write_an_attribute_of_its_own():
    asked = PolicyTester(PolicyClientPlugin(), connections={ENDPOINT: [b"action=DUNNO\n\n"]})
    asked.helo("a\nsasl_username=root")
    asked.mail("a@example.org")
    asked.rcpt("b@example.com")
    assert attributes(asked.connections.written[0][0])["sasl_username"] == ""


def test_an_answer_without_a_question_is_no_answer_about_the_next_client():
    answers = [b"action=DUNNO\n\naction=REJECT stale\n\n", b"action=DUNNO\n\n"]
    first = PolicyTester(PolicyClientPlugin(), connections={ENDPOINT: answers})
    first.mail("a@example.org")
    assert first.rcpt("b@example.com") == CONTINUE
    first.connections.scripts[ENDPOINT] = [b"action=DUNNO\n\n"]
    assert first.rcpt("c@example.com") == CONTINUE
    assert first.connections.open == 1
