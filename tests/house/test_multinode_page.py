"""docs/multinode-deployment.md: whatever it says of a part that fails, some test shows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "multinode-deployment.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`tests/[\w/]+\.py::test_\w+`")


def test_every_failure_that_the_page_tells_of_is_shown_by_a_test() -> None:
    section = PAGE.split("\n## When a part fails\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 3, row
        assert NAMED.search(row[2]), row
        assert NAMED.sub("", row[2]).strip(", ") == "", row


def test_every_link_of_what_is_deployed_and_watched_leads_somewhere() -> None:
    pages = [ROOT / "monitoring" / "README.md", *sorted((ROOT / "deployments").rglob("*.md"))]
    assert len(pages) > 1
    for page in pages:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
