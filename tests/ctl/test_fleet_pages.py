"""Listings of a fleet that come in pages: what is missing of any page is said."""

from __future__ import annotations

from typing import Any

import pytest

from elemta.ctl.client import nodes_of


def node(name: str, problem: str = "", *, answered: bool = True) -> dict[str, Any]:
    return {"node_id": name, "answered": answered, "problem": problem}


SILENT = node("b", "no answer in time", answered=False)
PARTLY = node("b", "no answer in time")
PAGES = {
    "all answered": ([node("b")], [node("b")], node("b")),
    "not the first page": ([SILENT], [node("b")], PARTLY),
    "not the last page": ([node("b")], [SILENT], PARTLY),
    "no page": ([SILENT], [SILENT], SILENT),
    "only the first page": ([PARTLY], [], PARTLY),
    "one that came later": ([], [node("b")], node("b")),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_node_is_missing_where_any_page_lacks_its_part(name: str) -> None:
    first, second, joined = PAGES[name]
    pages = [{"nodes": [node("a"), *each]} for each in (first, second)]
    assert nodes_of(pages) == [node("a"), joined]
