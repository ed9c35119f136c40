"""rspamd, scripted."""

from __future__ import annotations

import json

import pytest

from elemta.policies.rspamd import RspamdPlugin, RspamdResult
from elemta.policy import CONTINUE, BackendError, Defer, Discard, Quarantine, Reject, StoreUnavailable
from elemta.policy.doubles import UnavailableStore
from elemta.policy.testing import PolicyTester, http_answer

URL = "http://127.0.0.1:11333/checkv2"
MESSAGE = b"Subject: Hello\r\nX-Spam: forged\r\nX-A: 1\r\nX-A: 2\r\n\r\ntext\r\n"


def policy(said, status=200, options=None, **how) -> PolicyTester:
    if not isinstance(said, Exception):
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        said = http_answer(status, body)
    asked = PolicyTester(RspamdPlugin(), options, http={URL: said}, **how)
    asked.helo("client.example.org")
    asked.mail("a@example.org")
    asked.rcpt("b@example.com")
    asked.rcpt("c@example.com")
    return asked


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ({"action": "no action"}, CONTINUE),
        ({"action": "add header"}, CONTINUE),
        ({"action": "rewrite subject"}, CONTINUE),
        ({"action": "reject"}, Reject("The message looks like spam", code=554, enhanced="5.7.1")),
        (
            {"action": "reject", "messages": {"smtp_message": "Gtube pattern"}},
            Reject("Gtube pattern", code=554, enhanced="5.7.1"),
        ),
        ({"action": "soft reject"}, Defer("Try again later", code=451, enhanced="4.7.1")),
        ({"action": "greylist"}, Defer("Greylisted, try again later", code=451, enhanced="4.7.1")),
        ({"action": "discard"}, Discard("rspamd")),
        ({"action": "quarantine"}, Quarantine("rspamd")),
    ],
)
def test_an_action_is_a_verdict(said, verdict):
    assert policy(said).message(MESSAGE) == verdict


def test_rspamd_hears_who_sends_what_and_to_whom():
    asked = policy({"action": "no action"}, user="anna", reverse_name="client.example.org")
    asked.message(MESSAGE)
    (request,) = asked.http.requests
    assert (request.method, request.url, request.body) == ("POST", URL, MESSAGE)
    assert request.headers["IP"] == "192.0.2.1"
    assert request.headers["Helo"] == "client.example.org"
    assert request.headers["From"] == "<a@example.org>"
    assert request.headers["Rcpt"] == "<b@example.com>, <c@example.com>"
    assert request.headers["User"] == "anna"
    assert request.headers["Hostname"] == "client.example.org"


def test_rspamd_is_told_of_as_many_recipients_as_it_takes():
    asked = policy({"action": "no action"})
    asked.transaction_facts.max_recipients = 1000
    for number in range(900):
        asked.rcpt(f"{number:0100}@example.com")
    asked.message(MESSAGE)
    told = asked.http.requests[0].headers["Rcpt"]
    assert told.startswith("<b@example.com>, <c@example.com>, <000")
    assert told.endswith("@example.com>")
    assert 60_000 < len(told) < 65_536


def test_its_header_changes_are_made():
    asked = policy(
        {
            "action": "add header",
            "score": 7.5,
            "required_score": 15,
            "symbols": {"BAYES": {}},
            "milter": {
                "remove_headers": {"X-Spam": 0, "X-A": 2},
                "add_headers": {
                    "X-Spamd-Result": {"value": "default: True\n\tSYMBOL(1)", "order": 0},
                    "X-B": ["1", {"value": "2"}],
                },
            },
        }
    )
    assert asked.message(MESSAGE) == CONTINUE
    header = asked.edited_message.partition(b"\r\n\r\n")[0]
    assert b"X-Spam: forged" not in header
    assert b"X-Spam: Yes" in header
    assert b"X-Spamd-Result: default: True\r\n\tSYMBOL(1)" in header
    assert b"X-A: 1" in header
    assert b"X-A: 2" not in header
    assert header.count(b"X-B: ") == 2
    result = asked.transaction.results.get(RspamdResult)
    assert result == RspamdResult("add header", 7.5, 15.0, ("BAYES",))


def test_a_subject_is_rewritten_in_ascii():
    asked = policy({"action": "rewrite subject", "subject": "*** SPAM *** Grüße\r\nBcc: x@example.org"})
    assert asked.message(MESSAGE) == CONTINUE
    header = asked.edited_message.partition(b"\r\n\r\n")[0]
    assert header.isascii()
    assert b"\nBcc:" not in header
    assert b"Subject: =?utf-8?" in header


def test_a_message_without_a_subject_gets_that_of_rspamd():
    asked = policy({"action": "rewrite subject", "subject": "*** SPAM ***"})
    assert asked.message(b"From: a@example.org\r\n\r\ntext\r\n") == CONTINUE
    assert asked.edited_message == b"From: a@example.org\r\nSubject: *** SPAM ***\r\n\r\ntext\r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("X A", "1"), ("X" * 200, "1"), ("", "1"), ("X:A", "1"), ("X-A", "\x00"), ("X-A", "y" * 2000)],
)
def test_a_field_that_can_not_be_is_left_out_and_the_others_are_added(name, value):
    asked = policy({"action": "add header", "milter": {"add_headers": {name: value, "X-B": "2"}}})
    assert asked.message(b"Subject: s\r\n\r\ntext\r\n") == CONTINUE
    assert asked.edited_message == b"X-Spam: Yes\r\nX-B: 2\r\nSubject: s\r\n\r\ntext\r\n"


@pytest.mark.parametrize("score", [b"9" * 400, b"-1e999", b"null", b'"7"', b"{}"])
def test_a_score_that_is_no_number_is_none_and_the_action_counts(score):
    asked = policy(b'{"action": "reject", "score": ' + score + b', "required_score": ' + score + b"}")
    assert isinstance(asked.message(MESSAGE), Reject)


@pytest.mark.parametrize(
    "said",
    [
        b"no json",
        b"[]",
        b"{}",
        {"action": "unheard of"},
        b"[" * 100_000,
        BackendError("nothing listens"),
    ],
)
def test_an_answer_that_means_nothing_is_a_failure_of_the_policy(said):
    with pytest.raises(BackendError):
        policy(said).message(MESSAGE)


@pytest.mark.parametrize(
    "changes", [1, [], {"add_headers": [1]}, {"remove_headers": {"a": "x"}}, {"add_headers": {"X": {}}}]
)
def test_changes_that_mean_nothing_are_left_out(changes):
    assert policy({"action": "no action", "milter": changes}).message(MESSAGE) == CONTINUE


def test_another_status_is_a_failure_and_the_password_is_sent(tmp_path):
    with pytest.raises(BackendError, match="status 500"):
        policy(b"", status=500).message(MESSAGE)
    (tmp_path / "password").write_text("secret\n")
    asked = policy({"action": "no action"}, options={"password_file": str(tmp_path / "password")})
    asked.message(MESSAGE)
    assert asked.http.requests[0].headers["Password"] == "secret"


def send(asked: PolicyTester, recipient: str = "b@example.com") -> object:
    asked.mail("a@example.org")
    asked.rcpt(recipient)
    return asked.message(MESSAGE)


def test_the_action_greylist_lets_a_message_wait_once_and_not_for_ever():
    asked = policy({"action": "greylist"})
    assert isinstance(send(asked), Defer)
    asked.clock.advance(299)
    assert isinstance(send(asked), Defer)
    asked.clock.advance(2)
    assert send(asked) == CONTINUE
    assert isinstance(send(asked, "c@example.com"), Defer)


def test_a_user_of_ours_does_not_wait_where_rspamd_says_greylist():
    assert policy({"action": "greylist"}, user="anna").message(MESSAGE) == CONTINUE


def test_without_the_store_the_action_greylist_is_a_failure_of_the_policy():
    with pytest.raises(StoreUnavailable):
        policy({"action": "greylist"}, store=UnavailableStore()).message(MESSAGE)
    assert policy({"action": "no action"}, store=UnavailableStore()).message(MESSAGE) == CONTINUE


def test_changes_beyond_all_measure_are_bounded():
    fields = {f"X-{number}": [str(count) for count in range(100)] for number in range(100)}
    asked = policy({"action": "no action", "milter": {"add_headers": fields}})
    assert asked.message(MESSAGE) == CONTINUE
    assert asked.edited_message.count(b"\r\nX-") <= 103


def test_an_answer_beyond_all_measure_is_a_failure_of_the_policy():
    said = b'{"action": "no action", "x": "' + b"x" * 1024 * 1024 + b'"}'
    with pytest.raises(BackendError, match="more than"):
        policy(said).message(MESSAGE)
