"""docs/multinode-deployment.md: a test shows each thing that it says of a part that fails."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.references import REFERENCE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "multinode-deployment.md").read_text(encoding="utf-8")


def test_every_failure_that_the_page_lists_is_shown_by_a_test() -> None:
    section = PAGE.split("\n## When a part fails\n")[1].split("\n## ")[0]
    entries = re.split(r"^- ", re.sub(r"^### .+$", "", section, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    entries = [entry.split("\n\n")[0] for entry in entries if entry.startswith("**")]
    assert len(entries) > 20
    for entry in entries:
        words, _, tests = entry.partition("`tests/")
        assert len(words.split()) > 5, entry
        assert REFERENCE.sub("", "`tests/" + tests).strip() == "", entry


def test_every_link_of_what_is_deployed_and_watched_leads_somewhere() -> None:
    pages = [ROOT / "monitoring" / "README.md", *sorted((ROOT / "deployments").rglob("*.md"))]
    assert len(pages) > 1
    for page in pages:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
