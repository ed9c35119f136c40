"""What goes over the wire: commands as bytes, error replies, redirections, maps of slots."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.errors import ValkeyFailure
from elemta.valkey import Script, resp
from elemta.valkey.resp import Move, SlotRange, kind_of, move_of, slot_of, slot_ranges

WORDS = st.lists(
    st.binary(max_size=50) | st.text(max_size=50).filter(str.isprintable) | st.integers(), min_size=1
)


@given(words=WORDS)
def test_a_command_is_read_as_it_was_written(words: list[bytes | str | int]) -> None:
    for pack in (resp.pack, resp._pack):
        reader = hiredis.Reader()
        reader.feed(pack(words))
        assert reader.gets() == [word if isinstance(word, bytes) else str(word).encode() for word in words]
        assert reader.gets() is False


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("LOADING Valkey is loading the dataset in memory", ValkeyFailure.LOADING),
        ("READONLY You can't write against a read only replica.", ValkeyFailure.READONLY),
        ("MASTERDOWN Link with MASTER is down", ValkeyFailure.READONLY),
        ("OOM command not allowed when used memory > 'maxmemory'.", ValkeyFailure.OOM),
        ("BUSY Valkey is busy running a script.", ValkeyFailure.BUSY),
        ("NOREPLICAS Not enough good replicas to write.", ValkeyFailure.NOREPLICAS),
        ("CLUSTERDOWN The cluster is down", ValkeyFailure.REDIRECTED),
        ("TRYAGAIN Multiple keys request during rehashing of slot", ValkeyFailure.REDIRECTED),
        ("NOAUTH Authentication required.", ValkeyFailure.DENIED),
        ("WRONGPASS invalid username-password pair or user is disabled.", ValkeyFailure.DENIED),
        ("NOPERM User x has no permissions", ValkeyFailure.DENIED),
        ("ERR max number of clients reached", ValkeyFailure.OVERLOADED),
        ("ERR unknown command", ValkeyFailure.OTHER),
        ("BUSYKEY Target key name already exists.", ValkeyFailure.OTHER),
        ("", ValkeyFailure.OTHER),
    ],
)
def test_error_replies_are_told_apart_by_their_first_word(words: str, kind: ValkeyFailure) -> None:
    assert kind_of(words) is kind


@pytest.mark.parametrize(
    ("words", "move"),
    [
        ("MOVED 3999 127.0.0.1:6381", Move(3999, "127.0.0.1", 6381)),
        ("ASK 16383 2001:db8::1:6381", Move(16383, "2001:db8::1", 6381)),
        ("MOVED 0 :6381", Move(0, "", 6381)),
        ("MOVED 16384 127.0.0.1:6381", None),
        ("MOVED 1 127.0.0.1", None),
        ("MOVED x y:z", None),
        ("ERR MOVED 1 127.0.0.1:6381", None),
    ],
)
def test_redirections_say_where_to(words: str, move: Move | None) -> None:
    assert move_of(words) == move


@pytest.mark.parametrize(
    ("key", "same"),
    [
        (b"elemta:ip:{192.0.2.1}", b"192.0.2.1"),
        (b"{}a", b"{}a"),
        (b"a{b}{c}", b"b"),
        (b"{a", b"{a"),
        (b"a}{b}", b"b"),
        (b"{{a}}", b"{a"),
    ],
)
def test_the_slot_is_that_of_the_first_tag(key: bytes, same: bytes) -> None:
    from binascii import crc_hqx

    assert slot_of(key) == crc_hqx(same, 0) % 16384


def test_the_check_value_of_the_specification_holds() -> None:
    assert slot_of(b"123456789") == 0x31C3 % 16384


def test_a_map_names_the_primary_of_each_range() -> None:
    reply = [
        [0, 100, [b"10.0.0.1", 7000, b"id", []], [b"10.0.0.4", 7003, b"id", []]],
        [101, 16383, [b"", 7001, b"id"]],
        [101, 16383, [None, 7002, b"id"]],
        [5, 6, [b"?", 7004, b"id"]],
    ]
    assert slot_ranges(reply, "seed.example") == (
        SlotRange(0, 100, "10.0.0.1", 7000),
        SlotRange(101, 16383, "seed.example", 7001),
        SlotRange(101, 16383, "seed.example", 7002),
    )


ANYTHING = st.recursive(
    st.none() | st.integers() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


@given(reply=ANYTHING)
def test_no_reply_makes_the_map_fail_in_another_way(reply: Any) -> None:
    try:
        slot_ranges(reply, "seed.example")
    except ValueError:
        return


def test_a_script_has_the_name_that_the_server_gives_it() -> None:
    assert Script("one", "return 1").sha == b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
