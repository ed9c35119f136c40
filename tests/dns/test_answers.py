"""Reading answers: whatever a server sends, it is an answer or trouble."""

from __future__ import annotations

import contextlib

import dns.message
import dns.name
from hypothesis import example, given
from hypothesis import strategies as st

from elemta.dns.answers import DNSAnswer, LookupFailure, NoData, RecordType, Result
from elemta.dns.lookup import Alias, read_answer
from elemta.dns.transport import ServerFailed, parsed
from tests.support.nameservers import reply

_QUERY = dns.message.make_query("a.test", "MX", use_edns=0)
_ANSWER = reply(_QUERY, *(f"a.test. 60 IN MX {n} host{n}.b.test." for n in range(5)))
_WIRE = _ANSWER.to_wire()


def read(*answers: str, authority: str = "", rcode: str = "NOERROR", kind: str = "MX") -> Result | Alias:
    answer = reply(dns.message.make_query("a.test", kind), *answers, rcode=rcode)
    text = answer.to_text().replace(";AUTHORITY", f";AUTHORITY\n{authority}", 1)
    return read_answer(parsed(dns.message.from_text(text).to_wire()), RecordType[kind])


_SOA = "test. 900 IN SOA ns.test. hostmaster.test. 1 2 3 4 300"


def test_a_negative_answer_holds_for_the_minimum_of_its_soa() -> None:
    """RFC 2308 §5."""
    assert read(authority=_SOA) == NoData(name_exists=True, ttl=300)
    assert read(authority=_SOA, rcode="NXDOMAIN") == NoData(name_exists=False, ttl=300)
    assert read(authority=_SOA.replace("900", "90")) == NoData(name_exists=True, ttl=90)


def test_a_negative_answer_without_an_soa_does_not_say_how_long_it_holds() -> None:
    assert read() == NoData(name_exists=True, ttl=None)
    assert read(rcode="NXDOMAIN") == NoData(name_exists=False, ttl=None)


def test_an_alias_without_its_target_is_to_be_asked_for() -> None:
    """RFC 2308 §2.2: an SOA would say that the target has no such record."""
    alias = "a.test. 60 IN CNAME b.test."
    assert read(alias) == Alias(dns.name.from_text("b.test"), 60)
    assert read(alias, authority=_SOA) == NoData(name_exists=True, ttl=60)
    assert read(alias, rcode="NXDOMAIN") == NoData(name_exists=False, ttl=None)


def test_the_shortest_ttl_of_a_chain_holds() -> None:
    chain = ("a.test. 60 IN CNAME b.test.", "b.test. 30 IN CNAME c.test.", "c.test. 90 IN TXT x")
    assert read(*chain, kind="TXT") == DNSAnswer(("x",), 30)


def test_records_of_other_names_and_types_are_not_taken() -> None:
    assert read("b.test. 60 IN MX 10 b.test.", "a.test. 60 IN TXT x") == NoData(name_exists=True, ttl=None)


@given(st.binary(max_size=600))
def test_no_packet_breaks_the_reading(data: bytes) -> None:
    survive(data)


@given(st.lists(st.tuples(st.integers(0, len(_WIRE) - 1), st.integers(0, 255)), max_size=8), st.integers(0))
@example([], 0)
def test_no_damage_to_an_answer_breaks_the_reading(damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(_WIRE)
    for position, value in damage:
        data[position] = value
    survive(bytes(data[: len(data) - cut % len(data)]))


def survive(data: bytes) -> None:
    with contextlib.suppress(ServerFailed):
        answer = parsed(data)
        _QUERY.is_response(answer)
        for kind in RecordType:
            with contextlib.suppress(AttributeError):  # of records of another kind than was asked for
                assert isinstance(read_answer(answer, kind), DNSAnswer | NoData | LookupFailure | Alias)
