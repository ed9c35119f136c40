"""AUTH: PLAIN and LOGIN, what is refused, and when no checker is asked any more.

RFC 4954 §4, RFC 4954 §6, RFC 4616 §2.
"""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp import replies
from elemta.smtp.events import AuthQuestion, CredentialsQuestion, Question, Refuse, Response
from elemta.smtp.sasl import Credentials, LoginMechanism, PlainMechanism, decode_response
from tests.smtp.transcript import ENVELOPE, HELLO, TLS, Conversation, converse, proceed


def encoded(text: str) -> str:
    """Base64 of ``text``, in which ␀ is a NUL, ␊ a line feed and every other letter one octet."""
    return base64.b64encode(text.replace("␀", "\0").replace("␊", "\n").encode("latin-1")).decode()


def refusing_credentials(question: Question) -> Response:
    if isinstance(question, CredentialsQuestion):
        return Refuse(replies.AUTH_FAILED)
    return proceed(question)


ACCEPTED = "S: 235 2.7.0 Authentication successful\n"
ASK_NAME = "S: 334 VXNlcm5hbWU6\n"
ASK_PASSWORD = "S: 334 UGFzc3dvcmQ6\n"
MALFORMED = "S: 501 5.5.2 Malformed authentication response\n"


@pytest.mark.parametrize(
    "exchange",
    [
        f"C: AUTH PLAIN {encoded('␀jane␀secret')}\n",
        f"C: auth plain {encoded('jane␀jane␀secret')}\n",
        f"C: AUTH PLAIN\nS: 334 \nC: {encoded('␀jane␀secret')}\n",
        f"C: AUTH LOGIN\n{ASK_NAME}C: {encoded('jane')}\n{ASK_PASSWORD}C: {encoded('secret')}\n",
        f"C: AUTH LOGIN {encoded('jane')}\nS: 334 UGFzc3dvcmQ6\nC: {encoded('secret')}\n",
        f"C: AUTH PLAIN {encoded('JANE␀jane␀secret')}\n",
        f"C: AUTH  PLAIN {encoded('␀jane␀secret')} \n",
        f"C: AUTH PLAIN \nS: 334 \nC: {encoded('␀jane␀secret')} \t\n",
        f"C: AUTH LOGIN\n{ASK_NAME}C: {encoded('jane')} \n{ASK_PASSWORD}C: {encoded('secret')}  \n",
        f"C: AUTH LOGIN {encoded('jane')} \nS: 334 UGFzc3dvcmQ6\nC: {encoded('secret')}\n",
    ],
)
def test_good_credentials_make_a_user(exchange: str) -> None:
    told = converse_with_tls(HELLO + exchange + ACCEPTED)
    asked = [event for event in told.events if isinstance(event, CredentialsQuestion)]
    assert [(question.username, question.password) for question in asked] == [("jane", b"secret")]
    assert told.session.facts.user == "jane"
    assert "secret" not in repr(asked)


def converse_with_tls(script: str, answering=proceed, **changes) -> Conversation:
    return converse(script, answering, tls=TLS, **changes)


@pytest.mark.parametrize(
    ("exchange", "said"),
    [
        ("C: AUTH\n", "S: 501 5.5.4 Syntax: AUTH mechanism [initial-response]\n"),
        ("C: AUTH PLAIN a b\n", "S: 501 5.5.4 Syntax: AUTH mechanism [initial-response]\n"),
        ("C: AUTH CRAM-MD5\n", "S: 504 5.5.4 Authentication mechanism not supported\n"),
        ("C: AUTH PLAIN not-base64\n", MALFORMED),
        ("C: AUTH PLAIN AGEAYg\n", MALFORMED),
        ("C: AUTH PLAIN AGEA Yg==\n", "S: 501 5.5.4 Syntax: AUTH mechanism [initial-response]\n"),
        ("C: AUTH PLAIN =\n", MALFORMED),
        (f"C: AUTH PLAIN {encoded('jane')}\n", MALFORMED),
        (f"C: AUTH PLAIN {encoded('␀␀secret')}\n", MALFORMED),
        (f"C: AUTH PLAIN {encoded('␀a␀b␀c')}\n", MALFORMED),
        (f"C: AUTH PLAIN {encoded('␀ÿ␀secret')}\n", MALFORMED),
        (f"C: AUTH PLAIN {encoded('␀ja␊ne␀secret')}\n", MALFORMED),
        (
            f"C: AUTH PLAIN {encoded('root␀jane␀secret')}\n",
            "S: 535 5.7.8 Authentication credentials invalid\n",
        ),
        ("C: AUTH PLAIN\nS: 334 \nC: *\n", "S: 501 5.7.0 Authentication cancelled\n"),
        ("C: AUTH PLAIN\nS: 334 \nC: ====\n", MALFORMED),
        ("C: AUTH LOGIN =\nS: 334 UGFzc3dvcmQ6\nC: c2VjcmV0\n", MALFORMED),
        (
            f"C: AUTH LOGIN\n{ASK_NAME}C: {encoded('j')}\n{ASK_PASSWORD}C: {encoded('a␀b')}\n",
            MALFORMED,
        ),
    ],
)
def test_a_malformed_exchange_is_refused_and_the_session_goes_on(exchange: str, said: str) -> None:
    told = converse_with_tls(HELLO + exchange + said + "C: NOOP\nS: 250 2.0.0 OK\n")
    assert told.session.facts.user is None
    assert not any(isinstance(event, CredentialsQuestion) for event in told.events)


@pytest.mark.parametrize(
    "exchange",
    [
        f"C: AUTH PLAIN {encoded('␀jane␀')}\n",
        f"C: AUTH PLAIN {encoded('jane␀jane␀')}\n",
        f"C: AUTH PLAIN\nS: 334 \nC: {encoded('␀jane␀')}\n",
        f"C: AUTH LOGIN\n{ASK_NAME}C: {encoded('jane')}\n{ASK_PASSWORD}C: \n",
        f"C: AUTH LOGIN {encoded('jane')}\n{ASK_PASSWORD}C: \t\n",
    ],
)
def test_an_empty_password_is_wrong_and_no_checker_is_asked(exchange: str) -> None:
    refused = "S: 535 5.7.8 Authentication credentials invalid\n"
    told = converse_with_tls(HELLO + exchange + refused + "C: NOOP\nS: 250 2.0.0 OK\n")
    assert told.session.facts.user is None
    assert not any(isinstance(event, CredentialsQuestion) for event in told.events)


@given(
    st.lists(st.sampled_from([b"jane", b"JANE", b"\0", b"", b"\xff", "É".encode(), "é".encode()]), max_size=6)
)
def test_an_authorization_identity_is_that_of_the_user_or_nobody_is_logged_in(parts: list[bytes]) -> None:
    response = b"".join(parts)
    step = PlainMechanism().respond(response)
    if isinstance(step, Credentials):
        identity, name, password = response.split(b"\0")
        assert (step.username.encode(), step.password) == (name, password)
        assert password
        assert (
            not identity
            or identity.decode("latin-1").casefold() == name.decode("latin-1").casefold()
            or (identity.decode().lower() == name.decode().lower())
        )


def test_bad_credentials_are_535() -> None:
    told = converse_with_tls(
        HELLO + "C: AUTH PLAIN AGEAYg==\nS: 535 5.7.8 Authentication credentials invalid\n",
        refusing_credentials,
    )
    assert told.session.facts.user is None


def test_policies_are_asked_before_235_and_may_refuse() -> None:
    def answer(question: Question) -> Response:
        if isinstance(question, AuthQuestion):
            assert question.session.user == "a"
            return Refuse(replies.AUTH_TROUBLE)
        return proceed(question)

    told = converse_with_tls(
        HELLO + "C: AUTH PLAIN AGEAYg==\nS: 454 4.7.0 Temporary authentication failure\n", answer
    )
    assert told.session.facts.user is None


def test_auth_waits_for_tls_where_it_must() -> None:
    converse(HELLO + "C: AUTH PLAIN AGEAYg==\nS: 538 5.7.11 Encryption required for authentication\n")
    converse(HELLO + "C: AUTH PLAIN AGEAYg==\n" + ACCEPTED, auth_needs_tls=False)
    converse(HELLO + "C: AUTH PLAIN AGEAYg==\nS: 502 5.5.1 Command not implemented\n", auth=False)


def test_a_second_auth_and_one_in_a_transaction_are_503() -> None:
    converse_with_tls(
        HELLO
        + "C: AUTH PLAIN AGEAYg==\n"
        + ACCEPTED
        + "C: AUTH PLAIN AGEAYg==\nS: 503 5.5.1 Already authenticated\n"
    )
    converse_with_tls(ENVELOPE + "C: AUTH PLAIN AGEAYg==\nS: 503 5.5.1 Not during a mail transaction\n")


def test_submission_wants_authentication_before_mail() -> None:
    converse_with_tls(
        HELLO
        + "C: MAIL FROM:<a@b.test>\nS: 530 5.7.0 Authentication required\n"
        + "C: RCPT TO:<a@b.test>\nS: 503 5.5.1 Need MAIL command\n"
        + "C: AUTH PLAIN AGEAYg==\n"
        + ACCEPTED
        + "C: MAIL FROM:<a@b.test>\nS: 250 2.1.0 Sender OK\n",
        require_auth=True,
    )


def test_after_the_limit_of_failures_credentials_are_not_tried_any_more() -> None:
    failing = "C: AUTH PLAIN AGEAYg==\nS: 535 5.7.8 Authentication credentials invalid\n"
    told = converse_with_tls(HELLO + failing * 3, refusing_credentials)
    assert not told.closed
    told = converse_with_tls(
        HELLO + failing * 3 + "C: AUTH PLAIN AGEAYg==\nS: 421 4.7.0 Too many failed authentications\nX:\n",
        refusing_credentials,
    )
    assert sum(isinstance(event, CredentialsQuestion) for event in told.events) == 3


def test_local_trouble_is_no_failure_of_the_client() -> None:
    def trouble(question: Question) -> Response:
        if isinstance(question, CredentialsQuestion):
            return Refuse(replies.AUTH_TROUBLE)
        return proceed(question)

    converse_with_tls(
        HELLO + "C: AUTH PLAIN AGEAYg==\nS: 454 4.7.0 Temporary authentication failure\n" * 5, trouble
    )


def test_a_response_line_has_a_limit() -> None:
    at_limit = encoded("␀jane␀" + "x" * 9200)
    at_limit += "A" * (12286 - len(at_limit))
    begin = HELLO + "C: AUTH PLAIN\nS: 334 \n"
    assert len(at_limit) + 2 == 12288
    converse_with_tls(begin + f"C: {at_limit}\n" + MALFORMED)
    converse_with_tls(begin + f"C: {at_limit}A\nS: 500 5.5.6 Authentication exchange line is too long\n")


def test_a_bare_lf_in_an_exchange_ends_the_session_of_a_strict_listener() -> None:
    begin = HELLO + "C: AUTH PLAIN\nS: 334 \nC> AGEAYg==\\n\n"
    told = converse_with_tls(begin + "S: 500 5.5.2 Command lines end with CRLF\nX:\n", strict=True)
    assert told.session.facts.user is None
    told = converse_with_tls(begin + "S: 235 2.7.0 Authentication successful\n")
    assert told.session.facts.user == "a"


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.binary(min_size=1).filter(lambda p: b"\0" not in p),
)
def test_any_name_and_password_travel_unchanged(name: str, password: bytes) -> None:
    expected = Credentials(name, password)
    assert PlainMechanism().respond(b"\0" + name.encode() + b"\0" + password) == expected
    login = LoginMechanism()
    login.respond(name.encode())
    assert login.respond(password) == expected


@given(st.binary(max_size=200))
def test_base64_is_taken_strictly(octets: bytes) -> None:
    text = base64.b64encode(octets)
    assert decode_response(text) == octets
    assert decode_response(text + b"\n") is None
    assert decode_response(b" " + text) is None
    assert decode_response(text + b"!") is None
