"""What is printed fits, and does not drive the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.ctl.text import Column, age, cells, cut, safe, size, table

COLUMNS = (
    Column("ID"),
    Column("SIZE", right=True),
    Column("FROM", flexible=True),
    Column("NEXT", flexible=True),
)


@pytest.mark.parametrize(
    "evil",
    [
        "\x1b[31mred",
        "a\rb",
        "a\nb",
        "\x9b2J",
        "\x07",
        "\u202eevil",
        "\u2028",
        "a\x00b",
        "\ud800",
        "\u200b",
        "\t",
    ],
)
def test_nothing_unprintable_reaches_the_terminal(evil: str) -> None:
    shown = safe(evil)
    assert shown.isprintable()
    assert "\\" in shown


def test_printable_text_of_any_script_is_left_as_it_is() -> None:
    assert safe("Grüße <анна@пример.рф> 用户") == "Grüße <анна@пример.рф> 用户"


@given(st.text(), st.integers(1, 40))
def test_cut_text_fits(text: str, width: int) -> None:
    assert cells(cut(safe(text), width)) <= width


def test_wide_characters_count_as_two_columns() -> None:
    assert cells("用户") == 4
    assert cut("用户用户", 5) == "用户…"


@given(
    st.lists(st.tuples(st.text(max_size=30), st.text(max_size=8), st.text(), st.text()), max_size=8),
    st.integers(20, 120),
)
def test_every_line_of_a_table_fits_the_terminal(rows: list[tuple[str, str, str, str]], width: int) -> None:
    lines = table(COLUMNS, rows, width)
    assert len(lines) == len(rows) + 1
    assert all(cells(line) <= width for line in lines)


def test_long_text_gives_way_before_ids_do() -> None:
    lines = table(COLUMNS, [("0123456789ABCDEFGH", "1 KiB", "<" + "a" * 100 + "@example.com>", "in 5m")], 80)
    assert lines[1].startswith("0123456789ABCDEFGH  1 KiB  <aaaa")
    assert lines[1].endswith("…  in 5m")
    assert len(lines[1]) == 80


def test_a_column_that_can_be_spared_gives_way_before_a_line_is_cut_off() -> None:
    columns = (Column("ID"), Column("SIZE", right=True, spare=2), Column("AGE", spare=1), Column("LAST"))
    row = ("0123456789", "1 KiB", "3d 4h", "end")
    assert table(columns, [row], 30)[1] == "0123456789  1 KiB  3d 4h  end"
    assert table(columns, [row], 29)[1] == "0123456789  3d 4h  end"
    assert table(columns, [row], 22)[1] == "0123456789  end"


def test_a_table_that_is_piped_is_not_cut() -> None:
    lines = table(COLUMNS, [("ID1", "1 B", "x" * 500, "now")], None)
    assert "x" * 500 in lines[1]


def test_numbers_stand_on_the_right() -> None:
    lines = table(COLUMNS, [("A", "1 B", "", ""), ("B", "100 KiB", "", "")], None)
    assert lines[1:] == ["A       1 B", "B   100 KiB"]


@pytest.mark.parametrize(
    ("octets", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (12345, "12 KiB"),
        (50 * 2**20, "50 MiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_sizes_are_for_people(octets: int, shown: str) -> None:
    assert size(octets) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m 59s"),
        (3600, "1h"),
        (93784, "1d 2h"),
        (86400 * 400, "400d"),
        (86400 + 61, "1d"),
    ],
)
def test_ages_are_for_people(seconds: float, shown: str) -> None:
    assert age(seconds) == shown
