from refuse_future import RefuseFuturePlugin

from elemta.policy import CONTINUE, Reject
from elemta.policy.testing import Rehearsal


def test_a_mailbox_of_the_future_is_refused_and_counted():
    rehearsal = Rehearsal(RefuseFuturePlugin())
    verdict = rehearsal.rcpt("future-boss@example.com")
    assert verdict == Reject("no such mailbox yet", code=550, enhanced="5.1.1")
    assert rehearsal.metrics.total("elemta_plugin_refuse_future_refused_total") == 1


def test_a_mailbox_of_today_is_nobodys_business():
    assert Rehearsal(RefuseFuturePlugin()).rcpt("boss@example.com") == CONTINUE


def test_the_prefix_is_an_option():
    rehearsal = Rehearsal(RefuseFuturePlugin(), {"prefix": "next-"})
    assert rehearsal.rcpt("next-boss@example.com") != CONTINUE
    assert rehearsal.rcpt("future-boss@example.com") == CONTINUE
