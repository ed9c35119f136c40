from refuse_future import RefuseFuturePlugin

from elemta.policy import CONTINUE, Reject
from elemta.policy.testing import PolicyTester


def test_a_mailbox_of_the_future_is_refused_and_counted() -> None:
    tester = PolicyTester(RefuseFuturePlugin())
    verdict = tester.rcpt("future-boss@example.com")
    assert verdict == Reject("no such mailbox yet", code=550, enhanced="5.1.1")
    assert tester.metrics.total("elemta_plugin_refuse_future_refused_total") == 1


def test_there_is_no_opinion_about_a_mailbox_of_today() -> None:
    assert PolicyTester(RefuseFuturePlugin()).rcpt("boss@example.com") == CONTINUE


def test_the_prefix_is_an_option() -> None:
    tester = PolicyTester(RefuseFuturePlugin(), {"prefix": "next-"})
    assert tester.rcpt("next-boss@example.com") != CONTINUE
    assert tester.rcpt("future-boss@example.com") == CONTINUE
