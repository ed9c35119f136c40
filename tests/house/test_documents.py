"""What the documents say is there, and nothing in the tree is about the machine that it was written on."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from elemta.config import load
from elemta.console.pages import MENU
from tests.support.generators import generator
from tests.support.references import REFERENCE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tracked() -> list[Path]:
    """The files of the project; a tarball has no git, and holds nothing else."""
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in str(path)]
    return [path for name in run.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9.-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_make_target_that_a_document_names_exists() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        named = set(
            re.findall(
                r"`(?:sudo )?make ([a-z][a-z0-9.-]*)[` ]|^(?:[#$] )?(?:sudo )?make ([a-z][a-z0-9.-]*)",
                page.read_text(),
                re.MULTILINE,
            )
        )
        words = {first or second for first, second in named}
        assert words <= targets(), page
    assert {"run", "test"} <= targets()


def test_make_alone_lists_every_target_with_its_words() -> None:
    # Without what a make that runs these tests would hand down.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    run = subprocess.run(["make"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in run.stdout.splitlines()[1:]}
    assert listed == targets()
    assert all(len(line.split()) > 2 for line in run.stdout.splitlines()[1:])


def test_every_link_inside_the_project_leads_somewhere() -> None:
    for page in [path for path in tracked() if path.suffix == ".md"]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_link_to_a_heading_finds_it() -> None:
    missing = []
    for page in [path for path in tracked() if path.suffix == ".md"]:
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if anchor not in headings(page.parent / target if target else page):
                missing.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert missing == []


def test_the_readmes_map_names_what_is_there() -> None:
    for name in re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE):
        assert (ROOT / name).exists(), name
    packages = [path.parent.name for path in (ROOT / "elemta").glob("*/__init__.py")]
    assert [name for name in sorted(packages) if f"`elemta/{name}`" not in README] == []


def test_the_rates_in_the_readme_are_those_of_the_page_about_performance() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    ((ours, theirs),) = re.findall(
        r"^\| messages/s of 1 KB, on 2 cores \| (\S+) \| (\S+) \|", README, re.MULTILINE
    )
    (accepted,) = re.findall(r"^### Accepted: messages a second\n(.*?)^### ", page, re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in accepted.splitlines() if "|" in line]
    (reused,) = (dict(zip(rows[0], row, strict=True)) for row in rows if row[0].startswith("reused"))
    assert (reused["Elemta"], reused["Postfix"]) == (ours, theirs)


def test_the_page_about_the_console_names_its_pages_and_those_that_renew_themselves() -> None:
    page = " ".join((ROOT / "docs" / "console.md").read_text(encoding="utf-8").split())
    (listed,) = re.findall(r"(Overview, find, .*?)\. A page shows", page)
    assert [title for _, title, *_ in MENU if title.lower() not in listed.lower()] == []
    (renewed,) = re.findall(r"([A-Z][a-z, ]*) renew themselves", page)
    templates = (ROOT / "elemta" / "console" / "templates").glob("*.html")
    live = {each.stem for each in templates if "data-refresh=" in each.read_text(encoding="utf-8")}
    assert set(re.split(r", | and ", renewed.lower())) == live


@pytest.mark.parametrize(
    ("name", "least"),
    [("CONTRIBUTING.md", 40), ("README.md", 10), ("docs/architecture.md", 40), ("docs/glossary.md", 0)],
)
def test_every_place_that_contributors_are_sent_to_exists(name: str, least: int) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    places = re.findall(
        r"`((?:elemta|tests|twisted|docs|monitoring|etc|\.ci)/[\w./]+|[\w]+\.(?:md|toml))`", page
    )
    assert len(places) >= least
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_what_make_run_prints_is_what_its_configuration_says() -> None:
    text = (ROOT / "etc" / "elemta-dev.toml").read_text()
    words = "\n".join(line for line in text.split("\n\n[")[0].splitlines() if line.startswith("#"))
    config = load(str(ROOT / "etc" / "elemta-dev.toml"), {})
    port = {"tcp:2525:interface=127.0.0.1": "127.0.0.1:2525"}[config.listeners[0].endpoint]
    assert f"SMTP     {port}" in words
    assert f"--server {port} --to someone@{next(iter(config.domains.local))}" in words
    assert config.metrics.endpoint == "tcp:8080:interface=127.0.0.1"
    assert "http://127.0.0.1:8080/metrics" in words
    assert f"{config.spool.directory}/mail/{next(iter(config.domains.local))}/" in words
    assert f"--server {port} --to someone@{next(iter(config.domains.local))}" in README


def test_nothing_is_about_the_machine_that_it_was_written_on() -> None:
    # In pieces, so that this file does not name them itself.
    places = [
        "/wo" + "rk/",
        "/ro" + "ot/",
        "/opt/" + "elemta",
        "/tmp/" + "elemta",
        "/home" + "/",
        "/opt/" + "pypi",
    ]
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for place in places:
            assert place not in text, f"{path.relative_to(ROOT)} has {place}"


@pytest.mark.parametrize("name", ["22.4", "24.11"])
def test_the_constraints_pin_the_twisted_they_are_named_for(name: str) -> None:
    lines = (ROOT / ".ci" / f"constraints-{name}.txt").read_text().splitlines()
    assert any(line.startswith(f"Twisted=={name}.") for line in lines)
    assert f"test-twisted-{name}" in targets()


def test_every_dependency_has_a_floor() -> None:
    text = (ROOT / "setup.py").read_text()
    block = text.split("install_requires=[\n")[1].split("\n    ],")[0]
    requirements = re.findall(r'"([^"]+)"', block)
    assert requirements
    assert all(">=" in requirement for requirement in requirements), requirements


def test_a_citation_is_found_with_the_function_it_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rfc = generator("generate_rfc")
    (tmp_path / "elemta").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "elemta" / "room.py").write_text(
        '"""A room (RFC 5321 §4.5.3.1.5)."""\n\n'
        "# RFC 5321 §4.10.\n"
        "def above():\n"
        "    pass\n\n\n"
        "class Reader:\n"
        "    def read(self):\n"
        "        # RFC 5321 §4.2 and RFC 3461 §4.1, RFC 5321 §4.2\n"
        "        return 'not RFC5321 4.3'\n"
    )
    (tmp_path / "tests" / "test_room.py").write_text('def test_it():\n    """RFC 3461 §4.1"""\n')
    monkeypatch.setattr(rfc, "ROOT", tmp_path)
    text = rfc.render()
    assert [line for line in text.splitlines() if line.startswith(("- ", "  - ", "## "))] == [
        "## [RFC 3461](https://www.rfc-editor.org/rfc/rfc3461)",
        "- §4.1",
        "  - `elemta/room.py` Reader.read",
        "  - `tests/test_room.py` test_it",
        "## [RFC 5321](https://www.rfc-editor.org/rfc/rfc5321)",
        "- §4.2",
        "  - `elemta/room.py` Reader.read",
        "- §4.5.3.1.5",
        "  - `elemta/room.py`",
        "- §4.10",
        "  - `elemta/room.py` above",
    ]


def test_a_stale_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("generate_rfc", "generate_metrics", "generate_logging", "generate_leniency"):
        module = generator(name)
        monkeypatch.setattr(module, "TARGET", tmp_path / f"{name}.md")
        monkeypatch.setattr(module, "render", cache(module.render))  # the code stays what it is
        assert module.main(["--check"]) == 1
        assert module.main([]) == 0
        assert module.main(["--check"]) == 0
        with (tmp_path / f"{name}.md").open("a") as page:
            page.write("by hand\n")
        assert module.main(["--check"]) == 1


def test_every_event_is_on_the_page_about_the_log() -> None:
    text = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    events: set[str] = set()
    for path in (ROOT / "elemta").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pairs = [(each.arg, each.value) for each in node.keywords] if isinstance(node, ast.Call) else []
            if isinstance(node, ast.Dict):
                pairs = [
                    (key.value, value)
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant)
                ]
            events |= {
                str(value.value)
                for name, value in pairs
                if name == "event" and isinstance(value, ast.Constant)
            }
    assert {"policy.verdict", "command.refused", "policy.slow"} <= events
    assert [event for event in sorted(events) if f"\n- `{event}`, " not in text] == []


def test_a_test_may_be_named_on_one_line_or_on_two() -> None:
    text = "- It holds.\n  `tests/a/test_b.py::test_c`\n- `tests/a/test_b.py::`\n  `test_d`\n  `test_e`\n"
    assert REFERENCE.findall(text) == [("tests/a/test_b.py", "test_c"), ("tests/a/test_b.py", "test_d")]


@cache
def campaigns(path: Path) -> set[str]:
    """The tests of a file that only ``make campaign`` runs."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {
        each.name for each in functions if "pytest.mark.campaign" in map(ast.unparse, each.decorator_list)
    }


def test_a_claim_that_only_a_campaign_shows_says_so() -> None:
    silent, marked = [], 0
    for page in [path for path in tracked() if path.suffix == ".md"]:
        for entry in re.split(r"^(?=- [^`]|#+ )", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            for path, name in REFERENCE.findall(entry):
                # `make multinode` runs all tests of its directory.
                if not path.startswith("tests/multinode/") and name in campaigns(ROOT / path):
                    marked += 1
                    silent += [] if "campaign" in entry else [f"{page.name}: {path}::{name}"]
    assert marked > 10
    assert silent == []


def test_no_reference_to_a_test_is_written_in_another_form() -> None:
    other = []
    for page in [path for path in tracked() if path.suffix == ".md"]:
        rest = REFERENCE.sub("", page.read_text(encoding="utf-8"))
        other += [f"{page.name}: {found}" for found in re.findall(r"tests/[\w/]+\.py::\S*|`test_\w+`", rest)]
    assert other == []


def test_every_test_that_a_document_names_exists() -> None:
    missing = []
    for page in [path for path in tracked() if path.suffix == ".md"]:
        for path, name in REFERENCE.findall(page.read_text(encoding="utf-8")):
            file = ROOT / path
            if not file.is_file() or not re.search(rf"def {name}\(", file.read_text(encoding="utf-8")):
                missing.append(f"{page.name}: {path}::{name}")
    assert missing == []
