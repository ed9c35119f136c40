"""Mail to whole domains: a real DNS server says where it goes, and hosts of a network take it or don't."""

from __future__ import annotations

import time

import pytest

from tests.interop.programs import wait_until
from tests.mailout.world import World, whole

pytestmark = pytest.mark.servers


def test_the_most_preferred_exchanger_gets_all_mail(world: World) -> None:
    recipients = [f"u{number}@order" for number in range(5)]
    ids = [world.send("sender", [recipient]) for recipient in recipients]
    for queue_id, recipient in zip(ids, recipients, strict=True):
        outcome = world.attempt(queue_id, recipient)
        assert outcome["status"] == "delivered"
        assert "anna.world.test" in outcome["next_hop"]
        assert len(world.at("anna", recipient)) == 1
        assert world.at("bert", recipient) == []


def test_a_message_arrives_as_it_was_behind_its_trace_field(world: World) -> None:
    queue_id = world.send("sender", ["exact@order"])
    world.attempt(queue_id, "exact@order", "delivered")
    (taken,) = world.at("anna", "exact@order")
    assert taken.mail.startswith("MAIL FROM:<sender@example.test>")
    assert taken.content.startswith(b"Received: from client.test")
    assert taken.content.endswith(b"\r\nSubject: from sender\r\n\r\n.dots\r\n..and more\r\n")


def test_exchangers_of_equal_preference_share_the_mail(world: World) -> None:
    # A domain for each: what follows on one that is open already goes the way of the first.
    recipients = [f"someone@d{number}.equal.world.test" for number in range(24)]
    queue_id = world.send("sender", recipients)
    for recipient in recipients:
        world.attempt(queue_id, recipient, "delivered")
    shares = [sum(len(world.at(host, each)) for each in recipients) for host in ("anna", "bert")]
    assert sum(shares) == len(recipients)
    # By chance alone one of them would get nothing once in 8 million runs.
    assert min(shares) > 0, shares


def test_a_null_mx_is_told_to_the_sender_at_once(world: World) -> None:
    begun = time.monotonic()
    world.send("nuller", ["someone@null"])
    (report,) = world.reports("nuller")
    assert time.monotonic() - begun < 25
    fields = report.recipients[whole("someone@null")]
    assert (fields["action"], fields["status"]) == ("failed", "5.1.10")


def test_a_domain_that_does_not_exist_is_told_to_the_sender(world: World) -> None:
    queue_id = world.send("typist", ["someone@nowhere"])
    (report,) = world.reports("typist")
    fields = report.recipients[whole("someone@nowhere")]
    assert (fields["action"], fields["status"]) == ("failed", "5.1.2")
    assert whole("someone@nowhere") in report.text
    wait_until("the end of the message", lambda: not world.waits(queue_id))


def test_exchangers_without_an_address_are_told_to_the_sender(world: World) -> None:
    world.send("barren", ["someone@barren"])
    (report,) = world.reports("barren")
    assert report.recipients[whole("someone@barren")]["status"] == "5.4.4"


def test_exchangers_that_lead_into_this_host_are_told_to_the_sender(world: World) -> None:
    world.send("inward", ["someone@inward"])
    (report,) = world.reports("inward")
    assert report.recipients[whole("someone@inward")]["status"] == "5.4.4"
    assert "127.0.0.0/8" in report.text


def test_beside_an_exchanger_that_leads_into_this_host_the_next_is_used(world: World) -> None:
    world.attempt(world.send("sender", ["someone@partly"]), "someone@partly", "delivered")
    assert len(world.at("anna", "someone@partly")) == 1


def test_a_broken_zone_makes_mail_wait_and_nobody_is_told(world: World) -> None:
    queue_id = world.send("waiter", ["someone@broken.test"])
    outcome = world.attempt(queue_id, "someone@broken.test")
    assert (outcome["status"], outcome["enhanced"]) == ("deferred", "4.4.3")
    assert "SERVFAIL" in outcome["reply"]
    assert world.waits(queue_id)
    assert world.daemon.mailbox("waiter") == []
    world.daemon.ctl("queue", "delete", queue_id)


def test_behind_a_closed_port_the_next_exchanger_is_used_at_once(world: World) -> None:
    begun = time.monotonic()
    outcome = world.attempt(world.send("sender", ["someone@refusing"]), "someone@refusing")
    assert outcome["status"] == "delivered"
    assert time.monotonic() - begun < 25
    assert len(world.at("bert", "someone@refusing")) == 1


def test_behind_an_exchanger_that_is_unplugged_the_next_is_used_soon(world: World) -> None:
    # The system takes three seconds to find out that there is no host.
    begun = time.monotonic()
    outcome = world.attempt(world.send("sender", ["someone@down"]), "someone@down")
    assert outcome["status"] == "delivered"
    assert time.monotonic() - begun < 25
    assert len(world.at("bert", "someone@down")) == 1


def test_behind_an_exchanger_that_is_too_busy_the_next_is_used(world: World) -> None:
    outcome = world.attempt(world.send("sender", ["someone@turned"]), "someone@turned")
    assert outcome["status"] == "delivered"
    assert world.sinks["busy"].connections > 0
    assert len(world.at("bert", "someone@turned")) == 1


def test_an_exchanger_that_has_only_ipv6_gets_its_mail(world: World) -> None:
    outcome = world.attempt(world.send("sender", ["someone@onlysix"]), "someone@onlysix")
    assert outcome["status"] == "delivered"
    assert "2001:db8::16" in outcome["next_hop"]
    assert len(world.at("six", "someone@onlysix")) == 1


def test_an_ipv6_address_that_nobody_has_costs_only_its_head_start(world: World) -> None:
    begun = time.monotonic()
    outcome = world.attempt(world.send("sender", ["someone@slowsix"]), "someone@slowsix")
    assert outcome["status"] == "delivered"
    assert time.monotonic() - begun < 25
    assert "198.51.100.17" in outcome["next_hop"]


def test_without_mx_records_the_host_itself_gets_the_mail(world: World) -> None:
    outcome = world.attempt(world.send("sender", ["someone@implicit"]), "someone@implicit")
    assert outcome["status"] == "delivered"
    assert len(world.at("anna", "someone@implicit")) == 1


def test_an_alias_has_the_exchangers_of_what_it_stands_for(world: World) -> None:
    world.attempt(world.send("sender", ["someone@alias"]), "someone@alias", "delivered")
    assert len(world.at("anna", "someone@alias")) == 1


def test_an_address_literal_is_where_the_mail_goes(world: World) -> None:
    recipient = "someone@[IPv6:2001:db8::12]"
    assert world.attempt(world.send("sender", [recipient]), recipient)["status"] == "delivered"
    assert len(world.sinks["bert"].by_recipient()[recipient]) == 1


@pytest.mark.parametrize("domain", ["loop", "hairpin"])
def test_a_domain_whose_best_exchanger_is_elemta_itself_is_no_loop(world: World, domain: str) -> None:
    """``loop`` has it by its name, ``hairpin`` by its address."""
    sender = f"{domain}er"
    world.send(sender, [f"someone@{domain}"])
    (report,) = world.reports(sender)
    fields = report.recipients[whole(f"someone@{domain}")]
    assert (fields["action"], fields["status"]) == ("failed", "5.4.6")
    assert world.at("anna", f"someone@{domain}") == []


def test_a_backup_waits_for_better_exchangers_and_asks_no_worse_one(world: World) -> None:
    queue_id = world.send("sender", ["someone@backup"])
    outcome = world.attempt(queue_id, "someone@backup")
    assert (outcome["status"], outcome["enhanced"]) == ("deferred", "4.4.1")
    assert world.at("anna", "someone@backup") == []
    world.daemon.ctl("queue", "delete", queue_id)


def test_recipients_of_one_message_at_several_domains_fare_each_for_itself(world: World) -> None:
    good = {"a@one": "anna", "b@one": "anna", "c@two": "bert", "d@three": "six"}
    queue_id = world.send("many", [*good, "e@nine", "f@broken.test", "g@missing"])
    for recipient, host in good.items():
        assert world.attempt(queue_id, recipient)["status"] == "delivered"
        assert len(world.at(host, recipient)) == 1
    assert world.attempt(queue_id, "f@broken.test")["status"] == "deferred"
    wait_until("both failures", lambda: len(_failures(world, "many")) == 2)
    assert _failures(world, "many") == {whole("e@nine"): "5.1.10", whole("g@missing"): "5.1.2"}
    # One transaction for those that go to one host together.
    assert world.at("anna", "a@one") == world.at("anna", "b@one")
    assert world.waits(queue_id)
    world.daemon.ctl("queue", "delete", queue_id)


def _failures(world: World, sender: str) -> dict[str, str]:
    return {
        recipient: fields["status"]
        for report in world.reports(sender)
        for recipient, fields in report.recipients.items()
    }


def test_postfix_gets_mail_over_tls_and_what_it_refuses_is_told_to_the_sender(world: World) -> None:
    queue_id = world.send("writer", ["paul@real", "nobody@real"])
    assert world.attempt(queue_id, "paul@real")["status"] == "delivered"
    refused = world.attempt(queue_id, "nobody@real")
    assert (refused["status"], refused["code"], refused["enhanced"]) == ("failed", 550, "5.1.1")
    wait_until("the message", lambda: len(world.postfix.mailbox("paul")) == 1)
    (message,) = world.postfix.mailbox("paul")
    assert message.endswith(b"Subject: from writer\n\n.dots\n..and more\n")
    assert b"(using TLSv1.3" in message
    (report,) = world.reports("writer")
    assert list(report.recipients) == [whole("nobody@real")]
    fields = report.recipients[whole("nobody@real")]
    assert fields["status"] == "5.1.1"
    assert fields["remote-mta"] == "dns; postfix.world.test"
    assert "User unknown" in fields["diagnostic-code"]


def test_mail_waits_for_the_only_exchanger_and_goes_when_it_is_back(world: World) -> None:
    queue_id = world.send("sender", ["someone@returning"])
    outcome = world.attempt(queue_id, "someone@returning")
    assert (outcome["status"], outcome["enhanced"]) == ("deferred", "4.4.1")
    assert world.at("unplugged", "someone@returning") == []
    world.unplugged.link("up")
    world.attempt(queue_id, "someone@returning", "delivered", seconds=60)
    assert len(world.at("unplugged", "someone@returning")) == 1


def test_mail_waits_while_dns_is_away_and_goes_when_it_is_back(world: World) -> None:
    world.nsd.stop()
    try:
        queue_id = world.send("sender", ["someone@late"])
        outcome = world.attempt(queue_id, "someone@late", seconds=60)
        assert (outcome["status"], outcome["enhanced"]) == ("deferred", "4.4.3")
    finally:
        world.nsd.start()
    world.attempt(queue_id, "someone@late", "delivered", seconds=60)
    assert len(world.at("anna", "someone@late")) == 1


def test_nobody_gets_a_message_twice(world: World) -> None:
    """Behind all others: what they sent arrived once each, whatever it took."""
    twice = {
        (host, recipient): len(messages)
        for host, sink in world.sinks.items()
        for recipient, messages in sink.by_recipient().items()
        if len(messages) > 1
    }
    assert twice == {}
