import pytest

from elemta.policy import CONTINUE, Accept, Defer, Disconnect, Quarantine, Reject, Verdict, reply_of
from elemta.policy.verdicts import name_of, verdict_problem


@pytest.mark.parametrize("verdict", [CONTINUE, Accept(), Quarantine("looks odd")])
def test_a_verdict_that_refuses_nothing_has_no_reply(verdict):
    assert reply_of(verdict) is None
    assert verdict_problem(verdict) is None


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (Defer("later"), "450 4.7.1 later"),
        (Defer("later", code=451, enhanced="4.3.0"), "451 4.3.0 later"),
        (Reject("no"), "550 5.7.1 no"),
        (Reject("no", code=554, enhanced="5.7.1"), "554 5.7.1 no"),
        (Disconnect("bye"), "421 4.7.0 bye"),
        (Disconnect("bye", code=554, enhanced="5.7.1"), "554 5.7.1 bye"),
    ],
)
def test_a_refusal_has_the_reply_that_it_says(verdict, line):
    assert verdict_problem(verdict) is None
    assert str(reply_of(verdict)) == line


def test_a_text_of_several_lines_is_a_reply_of_several_lines():
    reply = reply_of(Reject("no\r\n250 2.0.0 yes"))
    assert reply.encode() == b"550-5.7.1 no\r\n550 5.7.1 250 2.0.0 yes\r\n"


@pytest.mark.parametrize(
    "invalid",
    [
        Defer("no", code=550),
        Defer("no", code=550, enhanced="5.7.1"),
        Defer("no", code=250, enhanced="2.0.0"),
        Defer("no", code=460),
        Defer("bye", code=421),
        Defer("no", code="450"),
        Defer("no", enhanced="5.7.1"),
        Defer("no", enhanced="4.7"),
        Defer("no", enhanced="4.7.1\r\n250 ok"),
        Defer("no", enhanced=None),
        Defer(None),
        Reject("no", code=450, enhanced="4.7.1"),
        Reject("no", code=999),
        Reject("no", code=-50),
        Reject("no", code=599),
        Reject("no", enhanced="5.7.1000"),
        Reject(b"no"),
        Disconnect("no", code=250),
        Disconnect("no", code=354),
        Disconnect("no", code=554),
        Quarantine(None),
        Verdict(),
        None,
        True,
        "accept",
        250,
        Reject,
    ],
)
def test_an_invalid_answer_is_seen(invalid):
    assert verdict_problem(invalid)


def test_a_derived_verdict_is_what_it_derives_from():
    class Greylisted(Defer):
        pass

    assert verdict_problem(Greylisted("later")) is None
    assert name_of(Greylisted("later")) == "defer"
    assert str(reply_of(Greylisted("later"))) == "450 4.7.1 later"
