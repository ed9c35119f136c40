"""The answers of several daemons to one call, as one: what each is asked, and how rows are put together.

``parts`` are by the name of a daemon, the one that was asked first. What this daemon did not write itself has
been read by its type (:func:`~elemta.daemon.peer_json.read_json`).
"""

from __future__ import annotations

import base64
import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from typing import Any, ClassVar

from elemta.ops.admin_errors import AdminRefusal

Query = Mapping[str, str]
Parts = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """A node that was asked, and whether its part is in the answer.

    ``problem`` says why it is not, or what is missing in that part.
    """

    node_id: str
    answered: bool = True
    problem: str = ""


class JoinedListing:
    """How the answers to one call become one: the parameter ``rows`` bounds it, or ``default``.

    ``outlives_node`` is False where a node that vanished has taken its part with it.
    """

    rows: ClassVar[str] = "limit"
    default: ClassVar[int] = 100
    outlives_node: ClassVar[bool] = True

    def query(self, query: Query, _name: str, /, *, own: bool) -> Query | None:
        """What the daemon of this name is asked, where the caller gave ``query``; None for nothing.

        Raises AdminRefusal.
        """
        del own
        return self.bounded(query)

    def join(self, query: Query, parts: Parts, missing: Sequence[str], /) -> dict[str, Any]:
        """One answer; ``missing`` are those that were asked and did not answer."""
        raise NotImplementedError

    def bounded(self, query: Query) -> Query:
        """The same, with the bound that holds."""
        return {**query, self.rows: query.get(self.rows) or str(self.default)}

    def most(self, query: Query) -> int:
        """The rows that one answer has at the most, by a query that was answered."""
        return int(query.get(self.rows) or self.default)


_PLACES = "nodes:"
_BEGIN = ("", 0)
LONGEST_PLACE = 8000
"""The characters of an ``after`` that names a place on several nodes."""


class FoundMessagesOfAll(JoinedListing):
    """``find``: the newest messages of all; ``after`` says how far each daemon's were shown.

    A daemon names the page that it gave, not each of its rows: the next page has what is left of it.
    """

    default = 20

    def query(self, query: Query, name: str, /, *, own: bool) -> Query | None:
        after = query.get("after", "")
        if not after.startswith(_PLACES):
            # A page of a daemon that was alone goes on there.
            return None if after and not own else self.bounded(query)
        places = _places(after)
        if name not in places:
            return None
        place = places[name][0]
        rest = {key: value for key, value in query.items() if key != "after"}
        return {**self.bounded(rest), **({"after": place} if place else {})}

    def join(self, query: Query, parts: Parts, missing: Sequence[str], /) -> dict[str, Any]:
        after = query.get("after", "")
        before = _places(after) if after.startswith(_PLACES) else {}
        left = [
            [(name, row) for row in part["messages"][before.get(name, _BEGIN)[1] :]]
            for name, part in parts.items()
        ]
        # The order that each daemon gave stays.
        rows = list(heapq.merge(*left, key=lambda each: -(each[1]["received_at"] or math.inf)))
        end = min(self.most(query), _known(rows, parts))
        shown, rest = rows[:end], rows[end:]
        places: dict[str, tuple[str, int]] = {}
        for name, part in parts.items():
            if any(each == name for each, _ in rest):
                page, seen = before.get(name, _BEGIN)
                places[name] = (page, seen + sum(each == name for each, _ in shown))
            elif part["next"] is not None:
                places[name] = (part["next"], 0)
        if places:
            # These may answer the next time.
            places |= {name: before.get(name, _BEGIN) for name in missing}
        first = next(iter(parts.values()))
        return {
            **first,
            "history": any(part["history"] for part in parts.values()),
            "messages": [row for _, row in shown],
            "next": _place_in_all(places) if places else None,
        }


def _known(rows: Sequence[tuple[str, dict[str, Any]]], parts: Parts) -> int:
    """So many rows are in order: behind the end of a page that goes on a newer one may come next."""
    names = [name for name, _ in rows]
    ends = [len(rows)]
    for name, part in parts.items():
        if part["next"] is not None:
            ends.append(max((place for place, each in enumerate(names) if each == name), default=-1) + 1)
    return min(ends)


def _place_in_all(places: Mapping[str, tuple[str, int]]) -> str | None:
    text = _PLACES + base64.urlsafe_b64encode(json.dumps(places).encode("utf-8")).decode("ascii")
    # With some hundred nodes: what is there is the end.
    return text if len(text) <= LONGEST_PLACE else None


def _places(after: str) -> Mapping[str, tuple[str, int]]:
    """The page of each daemon, and how many of its rows were shown. Raises AdminRefusal."""
    try:
        text = base64.urlsafe_b64decode(after.removeprefix(_PLACES))
        return {str(name): (str(page), max(0, int(row))) for name, (page, row) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        problem = "after is no place in what was found"
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, "after is the next of the page before") from None


class DestinationsOfAll(JoinedListing):
    """``destinations``: each row is one daemon's; ``limit`` counts names."""

    def join(self, query: Query, parts: Parts, _missing: Sequence[str], /) -> dict[str, Any]:
        rows, following = whole_names(parts.values(), self.most(query))
        return {**next(iter(parts.values())), "destinations": rows, "next": following}


def whole_names(pages: Iterable[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of the first names of all pages, and the name that they end with; None where they are all."""
    pages = list(pages)
    # Behind the end of a page that goes on, a name may have rows that are not here.
    known = min((page["next"] for page in pages if page["next"] is not None), default=None)
    found = [row for page in pages for row in page["destinations"] if known is None or row["name"] <= known]
    names = list(islice(sorted(dict.fromkeys(row["name"] for row in found)), limit + 1))
    if len(names) > limit:
        known = names[limit - 1]
        found = [row for row in found if row["name"] <= known]
    # Sorting is stable: of one name, the daemon that was asked comes first.
    return sorted(found, key=lambda row: str(row["name"])), known


class RefusedOfAll(JoinedListing):
    """``refused``: the newest of all, and how many there were together."""

    rows = "count"

    def join(self, query: Query, parts: Parts, _missing: Sequence[str], /) -> dict[str, Any]:
        rows = (row for part in parts.values() for row in part["refused"])
        return {
            **next(iter(parts.values())),
            "refused": heapq.nlargest(self.most(query), rows, key=lambda row: row["at"] or 0.0),
            "total": sum(part["total"] for part in parts.values()),
        }


class LimitsOfAll(JoinedListing):
    """``limits top`` and ``show``: what all count together comes from the daemon that is asked.

    The others are asked for the limits that each counts by itself, in its memory.
    """

    rows = "count"
    default = 20
    outlives_node = False

    def query(self, query: Query, _name: str, /, *, own: bool) -> Query | None:
        if own:
            return query
        return None if query.get("scope") == "cluster" else {**query, "scope": "node"}

    def join(self, query: Query, parts: Parts, _missing: Sequence[str], /) -> dict[str, Any]:
        own, *others = parts.values()
        alone = [row for part in others for row in part["limits"] if row["node_id"]]
        rows = [*own["limits"], *alone]
        if "id" not in query:
            rows = heapq.nlargest(self.most(query), rows, key=_urgency)
        return {**own, "limits": rows, "complete": all(part["complete"] for part in parts.values())}


def _urgency(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Identities that are refused come first, then those nearest to it."""
    fills = (bound["used"] / (bound["share"] or bound["limit"] or 1) for bound in row["bounds"])
    return row["retry_after"] != 0, max(fills, default=0.0)
