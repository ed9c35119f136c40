"""DMARC over what SPF and DKIM say."""

from __future__ import annotations

import asyncio

import pytest

from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.policies.mail_auth.dmarc import (
    Disposition,
    Suffixes,
    VouchedDomains,
    author_domains,
    check_dmarc,
)
from elemta.policies.mail_auth.dns_facts import evaluate

SUFFIXES = Suffixes()


class Zone:
    def __init__(self, records):
        self.records = records

    async def lookup(self, name, kind):
        if name not in self.records:
            raise NoSuchDomain(name)
        value = self.records[name]
        if isinstance(value, Exception):
            raise value
        return (value,) if isinstance(value, str) else tuple(value)


def check(authors, seen, records, sample=b"message"):
    async def in_place(step):
        return step()

    return asyncio.run(
        evaluate(lambda facts: check_dmarc(authors, seen, SUFFIXES, sample, facts), Zone(records), in_place)
    )


REJECT = {"_dmarc.example.org": "v=DMARC1; p=reject"}


@pytest.mark.parametrize(
    ("author", "spf", "dkim", "record", "result"),
    [
        ("example.org", "example.org", (), "p=reject", "pass"),
        ("example.org", "mail.example.org", (), "p=reject", "pass"),
        ("example.org", "mail.example.org", (), "p=reject; aspf=s", "fail"),
        ("example.org", "", ("news.example.org",), "p=reject", "pass"),
        ("example.org", "", ("news.example.org",), "p=reject; adkim=s", "fail"),
        ("example.org", "", ("example.com", "example.org"), "p=reject; adkim=s", "pass"),
        ("example.org", "example.com", ("example.net",), "p=reject", "fail"),
        ("example.org", "org", (), "p=reject", "fail"),
        ("example.org", "badexample.org", (), "p=reject", "fail"),
        ("example.org", "", (), "p=none", "fail"),
        ("example.org", "EXAMPLE.ORG", (), "p=reject", "pass"),
        ("example.org", "", (), "", "none"),
        ("example.org", "", (), "p=nonsense", "none"),
        ("example.org", "", (), "p=nonsense; rua=mailto:a@example.org", "fail"),
        ("example.org", "", (), "p=nonsense; rua=", "none"),
        ("example.org", "", (), "p=nonsense; rua=a@example.org", "none"),
        ("example.org", "", (), "p=reject; sp=nonsense", "none"),
        ("example.org", "", (), "p=reject; sp=", "none"),
    ],
)
def test_alignment_is_by_organizational_domain_or_strict(author, spf, dkim, record, result):
    found = check((author,), VouchedDomains(spf, dkim), {"_dmarc.example.org": f"v=DMARC1; {record}"})
    assert found.result == result


def test_domains_below_another_suffix_are_not_aligned():
    records = {"_dmarc.one.co.uk": "v=DMARC1; p=reject"}
    assert check(("one.co.uk",), VouchedDomains("two.co.uk"), records).result == "fail"
    assert check(("one.co.uk",), VouchedDomains("mail.one.co.uk"), records).result == "pass"


@pytest.mark.parametrize(
    ("record", "disposition"),
    [
        ("p=reject", Disposition.REJECT),
        ("p=reject; sp=quarantine", Disposition.QUARANTINE),
        ("p=reject; sp=none", Disposition.NONE),
        ("p=none; sp=reject", Disposition.REJECT),
        ("p=quarantine", Disposition.QUARANTINE),
        ("P=Reject", Disposition.REJECT),
    ],
)
def test_a_domain_below_takes_the_policy_of_its_organization(record, disposition):
    found = check(("a.b.example.org",), VouchedDomains(), {"_dmarc.example.org": f"v=DMARC1; {record}"})
    assert (found.result, found.disposition) == ("fail", disposition)


def test_a_record_of_its_own_goes_before_that_of_the_organization():
    records = REJECT | {"_dmarc.a.example.org": "v=DMARC1; p=none"}
    assert check(("a.example.org",), VouchedDomains(), records).disposition is Disposition.NONE


@pytest.mark.parametrize("record", [("v=DMARC1; p=reject", "v=DMARC1; p=none"), "v=spf1 -all", "DMARC1", ()])
def test_none_or_several_records_are_as_none(record):
    assert check(("example.org",), VouchedDomains(), {"_dmarc.example.org": record}).result == "none"


def test_other_texts_beside_the_record_do_no_harm():
    records = {"_dmarc.example.org": ("something", "v=DMARC1; p=reject")}
    assert check(("example.org",), VouchedDomains(), records).result == "fail"


def test_a_share_of_messages_gets_the_milder_treatment_and_each_always_the_same():
    records = {"_dmarc.example.org": "v=DMARC1; p=reject; pct=25"}

    def disposition(n):
        return check(("example.org",), VouchedDomains(), records, b"%d" % n).disposition

    found = [disposition(n) for n in range(1000)]
    assert found == [disposition(n) for n in range(1000)]
    assert set(found) == {Disposition.REJECT, Disposition.QUARANTINE}
    assert 150 < found.count(Disposition.REJECT) < 350


def test_trouble_with_dns_is_a_result_of_its_own_and_no_failure():
    found = check(("example.org",), VouchedDomains(), {"_dmarc.example.org": ResolverTrouble("no answer")})
    assert (found.result, found.disposition) == ("temperror", Disposition.NONE)
    assert check(("example.org",), VouchedDomains(unsure_spf="example.org"), REJECT).result == "temperror"
    vouched = VouchedDomains("example.org", unsure_dkim=("example.org",))
    assert check(("example.org",), vouched, REJECT).result == "pass"


@pytest.mark.parametrize(
    ("spf", "dkim", "tags", "result"),
    [
        ("mail.example.org", (), "", "temperror"),
        ("", ("example.net", "mail.example.org"), "", "temperror"),
        ("mail.example.org", (), "; aspf=s", "fail"),
        ("", ("mail.example.org",), "; adkim=s", "fail"),
        ("", ("mail.example.org",), "; aspf=s", "temperror"),
        ("mallory.example", ("mallory.example", "org", ""), "", "fail"),
    ],
)
def test_only_an_answer_that_could_have_vouched_for_the_author_is_missed(spf, dkim, tags, result):
    records = {"_dmarc.example.org": f"v=DMARC1; p=reject{tags}"}
    seen = VouchedDomains(unsure_spf=spf, unsure_dkim=dkim)
    assert check(("example.org",), seen, records).result == result


def test_of_several_authors_the_most_severe_result_counts():
    seen = VouchedDomains("example.com")
    assert check(("example.com", "example.org"), seen, REJECT).disposition is Disposition.REJECT
    assert check((), seen, REJECT).result == "permerror"
    for too_many in (None, tuple(f"d{n}.example" for n in range(6))):
        found = check(too_many, seen, REJECT)
        assert (found.result, found.disposition) == ("permerror", Disposition.REJECT)


@pytest.mark.parametrize(
    ("record", "policy"),
    [
        ("v=DMARC1; p=reject; sp=none; rua=mailto:a@example.org", "reject"),
        ("v=DMARC1; p=reject; sp=nonsense; rua=nothing, mailto:a@example.org!10m", "none"),
        ("V = DMARC1 ; P = Reject", "reject"),
        ("v=DMARC1; p=quarantine; sp=reject; unknown=1; =; p=none", "quarantine"),
    ],
)
def test_a_policy_that_can_not_be_read_asks_for_nothing(record, policy):
    assert check(("example.org",), VouchedDomains(), {"_dmarc.example.org": record}).policy == policy


@pytest.mark.parametrize(
    ("fields", "domains"),
    [
        ([b" anna@example.org"], ("example.org",)),
        ([b' "bank@example.com" <anna@Example.ORG>'], ("example.org",)),
        ([b" Anna <anna@example.org>, Bert <bert@example.com>"], ("example.org", "example.com")),
        ([b" anna@example.org", b" bert@example.com"], ("example.org", "example.com")),
        ([b" Group: a@example.org, b@example.net;"], ("example.org", "example.net")),
        ([b" =?utf-8?q?a=40example=2Ecom?= <anna@example.org>"], ("example.org",)),
        ([b" anna@example.org (bert@example.com)"], ("example.org",)),
        ([b" Anna\r\n <anna@example.org>\r\n"], ("example.org",)),
        ([" anna@bücher.example".encode()], ("xn--bcher-kva.example",)),
        ([b" anna@example.org."], ("example.org",)),
        ([b" Anna Jr. <anna@example.org.>, bert@example.com. (Bert)"], ("example.org", "example.com")),
        ([" Group: anna@bücher.example. ;".encode()], ("xn--bcher-kva.example",)),
        ([b" anna"], ()),
        ([b" anna, bert@example.com"], ("example.com",)),
        ([b" anna@[192.0.2.1], bert@example.com"], ("example.com",)),
        ([b" <>", b" bert@example.com,"], ("example.com",)),
        ([b""], ()),
        ([b" <>"], ()),
        ([b" a@b@c"], ()),
        ([b" \xff\xfe"], ()),
        ([b" " + b"(" * 5000], ()),
        ([b" " + b"a@example.org, " * 20_000], None),
    ],
)
def test_the_authors_are_read_from_the_from_field_and_nowhere_else(fields, domains):
    assert author_domains(fields) == domains


@pytest.mark.parametrize(
    ("domain", "organizational"),
    [
        ("example.com", "example.com"),
        ("a.b.example.com", "example.com"),
        ("a.b.co.uk", "b.co.uk"),
        ("co.uk", "co.uk"),
        ("a.www.ck", "www.ck"),
        ("b.a.foo.ck", "a.foo.ck"),
        # A top-level domain that the list does not know: its suffix is one label.
        ("one.unlisted", "one.unlisted"),
        ("b.a.one.unlisted", "one.unlisted"),
        ("unlisted", "unlisted"),
    ],
)
def test_the_organizational_domain_is_one_label_more_than_the_suffix(domain: str, organizational: str):
    assert SUFFIXES.organizational(domain) == organizational


def test_domains_below_an_unlisted_top_level_domain_do_not_stand_for_each_other():
    records = {"_dmarc.author.unlisted": "v=DMARC1; p=reject"}
    seen = VouchedDomains("mallory.unlisted", ("mallory.unlisted",))
    assert check(("author.unlisted",), seen, records).result == "fail"
    assert check(("author.unlisted",), VouchedDomains("mail.author.unlisted"), records).result == "pass"
