import json
from ipaddress import ip_address
from pathlib import Path

import pytest
from counter_port import CounterPortPlugin
from country import ByCountryPlugin, CountryPlugin, CountryResult
from customer_route import CustomerRoutePlugin
from report_failures import ReportFailuresPlugin
from stamp import StampPlugin
from tag_subject import TagSubjectPlugin
from traps import TrapsPlugin

from elemta.policy import (
    CONTINUE,
    Address,
    ConfigError,
    Defer,
    Outcome,
    Quarantine,
    Reject,
    RouteTo,
    Status,
)
from elemta.policy.testing import PolicyTester, UnavailableStore, Zone, http_answer

TRAPS = {"addresses": ["trap@example.com"]}


def test_a_client_that_wrote_to_a_trap_is_deferred_for_an_hour() -> None:
    tester = PolicyTester(TrapsPlugin(), TRAPS)
    assert tester.connected() == CONTINUE
    assert tester.rcpt("boss@example.com") == CONTINUE
    assert tester.rcpt("trap@example.com") == Reject("no such mailbox", enhanced="5.1.1")
    assert isinstance(tester.connected(), Defer)
    tester.clock.advance(3601)
    assert tester.connected() == CONTINUE


def test_without_a_store_the_trap_refuses_and_others_pass() -> None:
    tester = PolicyTester(TrapsPlugin(), TRAPS, store=UnavailableStore())
    assert tester.connected() == CONTINUE
    assert isinstance(tester.rcpt("trap@example.com"), Reject)


def test_a_subject_is_marked_once_and_that_of_a_user_is_not() -> None:
    tester = PolicyTester(TagSubjectPlugin())
    for content, edited in (
        (b"Subject: hi\r\nX-Internal: yes\r\n\r\n", b"Subject: [external] hi\r\n\r\n"),
        (b"Subject: [external] hi\r\n\r\n", b"Subject: [external] hi\r\n\r\n"),
        (b"To: you\r\n\r\n", b"Subject: [external]\r\nTo: you\r\n\r\n"),
    ):
        assert tester.message(content) == CONTINUE
        assert tester.edited_message == edited
    ours = PolicyTester(TagSubjectPlugin(), user="anna")
    ours.message(b"Subject: hi\r\n\r\n")
    assert ours.edited_message == b"Subject: hi\r\n\r\n"


def test_a_stamp_is_over_the_body(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sesame\n")
    tester = PolicyTester(StampPlugin(), {"secret_file": str(secret)})
    one, same, other = (
        tester.sign(text)
        for text in (b"A: 1\r\n\r\nhello\r\n", b"A: 2\r\n\r\nhello\r\n", b"A: 1\r\n\r\nbye\r\n")
    )
    assert one.startswith(b"X-Stamp: ")
    assert one == same != other
    with pytest.raises(ConfigError):
        PolicyTester(StampPlugin(), {"secret_file": str(tmp_path / "none")})


def test_one_policy_finds_the_country_and_another_decides() -> None:
    zone = Zone(texts_of={"1.2.0.192.country.example.net": ["AQ"]})
    finds = PolicyTester(CountryPlugin(), resolver=zone)
    assert finds.connected() == CONTINUE
    assert finds.session.results.get(CountryResult) == CountryResult("AQ")
    elsewhere = PolicyTester(CountryPlugin(), resolver=zone, client_ip="192.0.2.9")
    assert elsewhere.connected() == CONTINUE
    decides = PolicyTester(ByCountryPlugin(), {"hold": ["AQ"]})
    assert decides.mail() == CONTINUE
    decides.session.results.publish(CountryResult("AQ"))
    assert decides.mail() == Quarantine("the client is in AQ")


def test_a_reload_hands_the_port_and_the_number_over() -> None:
    first = PolicyTester(CounterPortPlugin())
    first.start()
    first.mail()
    first.committed()
    second = PolicyTester(CounterPortPlugin())
    second.start(first.policy)
    assert (second.policy.count, first.policy.port) == (1, None)
    first.stop()
    second.stop()


def outcome(reason: str) -> Outcome:
    return Outcome(
        "Q1",
        Address("bob", "example.net"),
        Status.FAILED,
        "550 no",
        "mx:",
        "mx.example.net",
        at=0.0,
        reason=reason,
    )


def test_only_what_failed_for_good_is_reported() -> None:
    url = "http://127.0.0.1:8000/failed"
    tester = PolicyTester(ReportFailuresPlugin(), {"url": url}, http={url: http_answer(204)})
    tester.attempted(outcome(""))
    assert tester.metrics.total("elemta_plugin_report_failures_attempts_total", "failed") == 1
    tester.ended("bob@example.net", outcome("delivered"))
    tester.ended("bob@example.net", outcome("failed"))
    (request,) = tester.http.requests
    assert json.loads(request.body)["to"] == "bob@example.net"


def test_a_customers_mail_goes_by_the_customers_relay(tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.write_text("anna-at-relay:sesame\n")
    customer = {"user": "anna", "relay": "smtp://relay.example.net:587", "login_file": str(login)}
    options = {"customer": [{**customer, "source": "192.0.2.7"}]}
    expected = RouteTo(
        "smtp://relay.example.net:587",
        tls="require",
        source="192.0.2.7",
        credentials=("anna-at-relay", "sesame"),
    )
    assert PolicyTester(CustomerRoutePlugin(), options, user="anna").route("bob@example.net") == expected
    assert PolicyTester(CustomerRoutePlugin(), options, user="bob").route("bob@example.net") == CONTINUE
    assert expected.choice().source == (ip_address("192.0.2.7"),)
