"""The table of a policy, whose own options are a dataclass of the plugin's author."""

# ruff: noqa: E501 - the faults stand here as they are read

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest

from elemta.config import (
    REQUIRED,
    Mode,
    NoOptions,
    OnError,
    PolicyCommon,
    Rate,
    Unacceptable,
    read_policy,
    setting,
)
from elemta.errors import ConfigError

ONCE = Rate(1, 60.0)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def _no_spaces(text: str) -> None:
    if " " in text:
        raise Unacceptable("must have no spaces", "take them out")


def _even(number: int) -> None:
    if number % 2:
        raise ValueError("must be even")


@dataclass(frozen=True, slots=True)
class Plain:
    """No setting() at all: the types say it."""

    word: str = "w"
    count: int = 1
    share: float = 0.5
    active: bool = False
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = (1,)
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    colour: Colour = Colour.RED
    colours: frozenset[Colour] = frozenset()
    path: Path = Path("/a")
    rate: Rate = ONCE
    maybe: str | None = None
    derived: int = field(default=7, init=False)


@dataclass(frozen=True, slots=True)
class Marked:
    key: str = setting(REQUIRED, "A key.", check=_no_spaces)
    delay: float = setting(300.0, "A wait.", unit="seconds", minimum=1, maximum=3600)
    size: int = setting(1024, "A size.", unit="bytes", maximum=2**20)
    number: int = setting(2, "A number.", minimum=0, check=_even)
    level: int = setting(1, "A level.", choices=(1, 2, 3))
    how: str = setting("fast", "The pace.", choices=("fast", "slow"))
    from_: tuple[str, ...] = setting(("a",), "Sources.", not_empty=True)


@dataclass(frozen=True, slots=True)
class Related:
    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low must not be above high")


def _complaints(cls: type[object], table: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_policy(cls, table, "elemta.toml", "policy.mine")
    return [str(fault).removeprefix("elemta.toml: policy.mine") for fault in caught.value.faults]


def test_an_empty_table_is_the_defaults() -> None:
    common, options = read_policy(Plain, {}, "elemta.toml", "policy.mine")
    assert common == PolicyCommon(Mode.ENFORCE, 5.0, OnError.DEFER, ())
    assert options == Plain()


def test_the_four_common_keys_and_the_options_come_from_one_table() -> None:
    table: dict[str, object] = {
        "mode": "observe",
        "timeout": "2s",
        "on_error": "accept",
        "listeners": ["mx"],
        "key": "k",
        "delay": "1m",
        "from": ["b", "c"],
    }
    common, options = read_policy(Marked, table, "elemta.toml", "policy.mine")
    assert common == PolicyCommon(Mode.OBSERVE, 2.0, OnError.ACCEPT, ("mx",))
    assert options == Marked(key="k", delay=60.0, from_=("b", "c"))


def test_fields_without_setting_are_read_by_their_type() -> None:
    table: dict[str, object] = {
        "word": "x",
        "count": 3,
        "share": 1,
        "active": True,
        "words": ["a", "b"],
        "numbers": [],
        "networks": ["192.0.2.0/24", "2001:db8::/32"],
        "colour": "blue",
        "colours": ["blue", "red", "blue"],
        "path": "/tmp/x",
        "rate": "5/1h",
        "maybe": "yes",
    }
    _, options = read_policy(Plain, table, "elemta.toml", "policy.mine")
    assert options == Plain(
        word="x",
        count=3,
        share=1.0,
        active=True,
        words=("a", "b"),
        numbers=(),
        networks=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
        colour=Colour.BLUE,
        colours=frozenset(Colour),
        path=Path("/tmp/x"),
        rate=Rate(5, 3600.0),
        maybe="yes",
    )
    assert isinstance(options.share, float)


def test_a_policy_without_options_takes_the_four_common_keys_only() -> None:
    common, options = read_policy(None, {"timeout": 1}, "elemta.toml", "policy.mine")
    assert (common.timeout, options) == (1.0, NoOptions())
    with pytest.raises(ConfigError, match="known here: mode, timeout, on_error, listeners"):
        read_policy(None, {"colour": "red"}, "elemta.toml", "policy.mine")


def test_every_fault_of_a_table_comes_at_once() -> None:
    table: dict[str, object] = {
        "mode": "watch",
        "timeouts": 3,
        "delay": "2h",
        "size": "2MiB",
        "number": 3,
        "level": 4,
        "how": "slo",
        "from": [],
    }
    assert _complaints(Marked, table) == [
        '.mode: found "watch": must be "enforce" or "observe"',
        ".key: is needed: a string",
        '.delay: found "2h": must be a duration such as "5m" or a number of seconds from 1s to 1h',
        '.size: found "2MiB": must be a size such as "50MiB" or a number of bytes up to 1MiB',
        ".number: found 3: must be even",
        ".level: found 4: must be a whole number: 1 or 2 or 3",
        '.how: found "slo": must be "fast" or "slow" (did you mean "slow"?)',
        ".from: found an empty list: must not be empty",
        '.timeouts: unknown key (did you mean "timeout"? known here: key, delay, size, number, level, how, from, mode, timeout, on_error, listeners)',
    ]


def test_a_check_of_the_author_says_what_is_wrong_and_what_to_do() -> None:
    assert _complaints(Marked, {"key": "a b"}) == ['.key: found "a b": must have no spaces (take them out)']


def test_what_an_author_checks_over_several_options_is_a_fault_of_the_table() -> None:
    assert _complaints(Related, {"low": 3}) == [": low must not be above high"]


def test_a_value_of_the_wrong_type_is_a_fault() -> None:
    table: dict[str, object] = {
        "share": float("nan"),
        "words": [1],
        "path": 5,
        "colours": "red",
        "maybe": {"a": 1},
        "networks": ["x"],
        "rate": [],
    }
    assert _complaints(Plain, table) == [
        ".share: found nan: must be a number",
        ".words[1]: found 1: must be a string",
        '.networks[1]: found "x": must be a network such as "192.0.2.0/24" or an address',
        '.colours: found "red": must be a list, each "red" or "blue" (did you mean ["red"]?)',
        ".path: found 5: must be a path",
        '.rate: found an empty list: must be a rate such as "100/1m", or a plain number such as "20"',
        ".maybe: found a table: must be a string",
    ]


def test_a_secret_is_not_told() -> None:
    @dataclass(frozen=True)
    class Options:
        api_token: int = 0

    assert _complaints(Options, {"api_token": "hunter2"}) == [".api_token: found ***: must be a whole number"]


def test_an_author_is_told_about_a_dataclass_that_cannot_be_read() -> None:
    @dataclass(frozen=True)
    class Unreadable:
        when: complex = 1j

    @dataclass(frozen=True)
    class Pair:
        pair: tuple[int, int] = (1, 2)

    @dataclass(frozen=True)
    class Clash:
        timeout: int = 1

    with pytest.raises(TypeError, match=r"when: a setting can't have the type <class 'complex'>"):
        read_policy(Unreadable, {}, "elemta.toml", "policy.mine")
    with pytest.raises(TypeError, match="pair: a list is written"):
        read_policy(Pair, {}, "elemta.toml", "policy.mine")
    with pytest.raises(TypeError, match="every policy has timeout already"):
        read_policy(Clash, {}, "elemta.toml", "policy.mine")
    with pytest.raises(TypeError, match="is not a dataclass"):
        read_policy(int, {}, "elemta.toml", "policy.mine")
