from ask_service import AskServicePlugin

from elemta.policy import CONTINUE, BackendError, Defer, Reject
from elemta.policy.testing import PolicyTester, http_answer

URL = "http://127.0.0.1:8000/"
OPTIONS = {"url": URL}


def test_the_service_decides() -> None:
    script = {
        URL + "boss%40example.com": http_answer(200),
        URL + "gone%40example.com": http_answer(404),
    }
    tester = PolicyTester(AskServicePlugin(), OPTIONS, http=script)
    assert tester.rcpt("boss@example.com") == CONTINUE
    assert tester.rcpt("gone@example.com") == Reject("no such mailbox", enhanced="5.1.1")
    assert [request.method for request in tester.http.requests] == ["GET", "GET"]


def test_a_service_that_does_not_answer_is_no_refusal() -> None:
    script = {URL + "boss%40example.com": BackendError("refused")}
    tester = PolicyTester(AskServicePlugin(), OPTIONS, http=script)
    assert isinstance(tester.rcpt("boss@example.com"), Defer)
    assert tester.logged[0]["reason"] == "refused"
