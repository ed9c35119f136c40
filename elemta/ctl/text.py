"""Text for people: tables that fit a terminal, sizes, durations and times, and no control characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

ELLIPSIS = "…"
GAP = "  "
INDENT = "    "
MIN_WIDTH = 8


def safe(text: str) -> str:
    """``text`` on one line with everything that is not printable written out, such as ``\\x1b``.

    Clients and servers choose addresses, HELO names and replies; none of them may move the cursor,
    colour the screen or turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _written_out(char) for char in text)


def _written_out(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def cells(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, ending in … where something was cut off."""
    if cells(text) <= width:
        return text
    kept: list[str] = []
    space = width - 1
    for char in text:
        space -= _cells_of(char)
        if space < 0:
            break
        kept.append(char)
    return "".join(kept) + ELLIPSIS


def size(octets: float) -> str:
    """``12345`` as ``12 KiB``: three digits at most, powers of 1024."""
    amount = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 999.5:
            return _amount(amount, unit)
        amount /= 1024
    return _amount(amount, "TiB")


def _amount(amount: float, unit: str) -> str:
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 9.95 else f"{amount:.1f} {unit}"


def age(seconds: float) -> str:
    """``93784`` as ``1d 2h``: the two largest units."""
    rest = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part) or "0s"


def remaining(seconds: float) -> str:
    """An age that is still to come, rounded up: when it has passed, all of ``seconds`` have."""
    return age(max(1, seconds + 0.999))


def due(at: float | None, now: float) -> str:
    """When the next attempt is: ``in 5m``, ``now``, or ``-`` where there is none."""
    if at is None:
        return "-"
    return f"in {age(at - now)}" if at - now >= 1 else "now"


def moment(at: float) -> str:
    """A time in this host's zone, with its offset."""
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")


def client_in_words(client: Mapping[str, Any]) -> str:
    """The client of a message: address, HELO name, listener, user and TLS, as far as there are such."""
    parts = (
        f"{client['ip']} helo {client['helo']}" if client["helo"] else client["ip"],
        f"listener {client['listener']}" if client["listener"] else "",
        f"user {client['user']}" if client["user"] else "",
        client["tls"],
    )
    return ", ".join(part for part in parts if part)


def where_counted(mode: str) -> str:
    """Where a node counts its limits: ``in Valkey``, ``in memory``, or ``alone`` while Valkey is away."""
    return {"cluster": "in Valkey", "memory": "in memory", "local": "alone"}.get(mode, mode)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, whether numbers stand in it, whether it may be cut to fit the terminal.

    Where cutting is not enough, columns with a ``spare`` above 0 are left out, the highest first. Those that
    ``folds`` are not lost then: their values stand whole below the line. What people copy, such as ids and
    addresses, is in columns that are not flexible, or that fold. A ``whole`` column is never cut: a
    line is longer than the terminal is wide where it has to be.
    """

    title: str
    right: bool = False
    flexible: bool = False
    spare: int = 0
    whole: bool = False
    folds: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The lines of a table; no wider than ``width`` columns, or as wide as it needs to be for None."""
    shown = [[safe(value) for value in row] for row in rows]
    widths = [
        max([cells(column.title), *(cells(row[index]) for row in shown)])
        for index, column in enumerate(columns)
    ]
    everything = range(len(columns))
    kept = list(everything) if width is None else _kept(columns, widths, width)
    folded = [index for index in everything if columns[index].folds and index not in kept]
    in_line = [columns[index] for index in kept]
    widths = [widths[index] for index in kept]
    if width is not None:
        widths = _fitting(in_line, widths, width)
    lines = [_line(in_line, [column.title for column in in_line], widths, width)]
    for row in shown:
        lines.append(_line(in_line, [row[index] for index in kept], widths, width))
        named = [f"{columns[index].title.lower()} {row[index]}" for index in folded if row[index]]
        lines += _below(named, width or 0)
    return lines


def _below(values: Sequence[str], width: int) -> list[str]:
    """Values in lines of their own, several in one where that fits; none of them is broken."""
    lines: list[str] = []
    for value in values:
        if lines and cells(lines[-1]) + len(GAP) + cells(value) <= width:
            lines[-1] += GAP + value
        else:
            lines.append(INDENT + value)
    return lines


def _kept(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The columns that fit when all that may be cut are cut."""
    kept = list(range(len(columns)))
    least = [
        min(space, MIN_WIDTH) if column.flexible else space
        for column, space in zip(columns, widths, strict=True)
    ]
    for index in sorted(kept, key=lambda index: -columns[index].spare):
        if columns[index].spare and sum(least[each] for each in kept) + len(GAP) * (len(kept) - 1) > width:
            kept.remove(index)
    return kept


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    fitting = list(widths)
    excess = sum(fitting) + len(GAP) * (len(fitting) - 1) - width
    while excess > 0:
        wide = [
            index for index, column in enumerate(columns) if column.flexible and fitting[index] > MIN_WIDTH
        ]
        if not wide:
            break
        # A column at a time loses what makes it wider than the next one: long texts give first.
        widest = max(wide, key=lambda index: fitting[index])
        fitting[widest] -= 1
        excess -= 1
    return fitting


def _line(columns: Sequence[Column], values: Sequence[str], widths: Sequence[int], width: int | None) -> str:
    parts = []
    for column, value, space in zip(columns, values, widths, strict=True):
        text = cut(value, space)
        fill = " " * (space - cells(text))
        parts.append(fill + text if column.right else text + fill)
    line = GAP.join(parts).rstrip()
    # What may not be cut is wrapped by the terminal.
    whole = any(column.whole for column in columns) or not any(column.flexible for column in columns)
    return line if width is None or whole else cut(line, width)
