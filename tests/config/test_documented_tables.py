"""What the documents show as configuration passes ``elemtactl config check``, and its policies are built."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from elemta.ctl.main import main
from elemta.policy import available_plugins
from tests.support.certificates import make_certificate

ROOT = Path(__file__).parents[2]
TABLES = re.compile(r"^( *)```toml\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
TEXTS = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = re.compile(r'"(?:elemta-users:)?(/(?:etc/elemta|run/credentials)/[^"]+)"')
FOREIGN = {"first", "refuse-future", "customers"}
"""The policies of the pages that are not Elemta's; tests/policy/test_example_package.py runs them."""


def shown() -> dict[str, str]:
    """All configurations, by page and place; the files of a Python package are none."""
    pages = [
        *ROOT.glob("*.md"),
        *(path for name in ("docs", "deployments", "monitoring") for path in (ROOT / name).rglob("*.md")),
    ]
    return {
        f"{page.relative_to(ROOT)}:{number}": text
        for page in sorted(pages)
        for number, (_, text) in enumerate(TABLES.findall(page.read_text(encoding="utf-8")), 1)
        if "[build-system]" not in text
    }


SHOWN = shown()


def first_text_under(heading: str, page: str) -> str:
    """The first block without a language behind a heading of a page."""
    _, found, rest = (ROOT / page).read_text(encoding="utf-8").partition(f"\n{heading}\n")
    assert found, f"{page} has no {heading}"
    block = TEXTS.search(rest)
    assert block is not None, f"{page} shows no file under {heading}"
    return block[1]


def elemtactl(*arguments: str) -> tuple[int, str]:
    """The exit status, and all that it wrote."""
    said = io.StringIO()
    return main(arguments, said, said, {}, io.StringIO()), said.getvalue()


def with_files(text: str, directory: Path) -> str:
    """The configuration with the files that it names; the pages' own where they show them."""
    for name in dict.fromkeys(FILES.findall(text)):
        path = directory / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "aliases":
            aliases = first_text_under("## The file", "docs/aliases.md")
            # Its addresses are at a local domain.
            path.write_text(
                aliases if '"example.com"' in text else aliases.replace("example.com", "example.net")
            )
        elif path.name == "senders":
            path.write_text(first_text_under("## The file of senders", "docs/submission.md"))
        elif path.name == "recipients":
            path.write_text("anna@example.org\n")
        elif path.name == "smarthost":
            path.write_text("elemta:secret\n")
        elif path.name == "users":
            path.touch(mode=0o600)
        elif f'\nfile = "{name}"' in text:
            key = ("dkim", "generate", "example.com", "--selector", "s2026", "--file", str(path))
            assert elemtactl(*key)[0] == 0
        else:
            write_half_of_certificate(path, directory)
        text = text.replace(name, str(path))
    return text


def write_half_of_certificate(path: Path, directory: Path) -> None:
    """A certificate with its key, or the key of the one that has the same name alone."""
    host = path.stem.removeprefix("private_")
    whole = directory / f"{host}-certificate.pem", directory / f"{host}-key.pem"
    if not whole[0].exists():
        make_certificate(directory, f"{host}.test", stem=f"{host}-")
    if path.suffix != ".key":
        # A page that names no key has it in the same file.
        path.write_bytes(b"".join(half.read_bytes() for half in whole))
        return
    path.write_bytes(whole[1].read_bytes())


@pytest.mark.parametrize("name", SHOWN)
def test_a_configuration_that_a_page_shows_can_be_used(name: str, tmp_path: Path) -> None:
    text = with_files(SHOWN[name], tmp_path)
    if 'listeners = ["submission"]' in text:  # the page leaves the listener itself out
        text += '[[listener]]\nname = "submission"\nendpoint = "tcp:587"\n'
    file = tmp_path / "elemta.toml"
    file.write_text(text)
    file.chmod(0o600)
    code, said = elemtactl("config", "check", "--config", str(file))
    foreign = [each for each in FOREIGN if f'"{each}"' in text.partition("chain = ")[2].partition("\n")[0]]
    if foreign:
        assert re.findall('no policy is called "(.+?)"', said) == foreign, said
        return
    assert code == 0, said
    # Nothing on the page is for nothing.
    assert "no effect" not in said


def test_every_bundled_policy_has_its_row_and_a_page_that_shows_its_chain() -> None:
    bundled = {each.name for each in available_plugins() if each.origin.endswith(".elemta_policies")}
    rows = (ROOT / "docs/policies.md").read_text(encoding="utf-8").partition("## Comparison")[0]
    assert set(re.findall(r"^\| \[?`([\w-]+)`", rows, re.MULTILINE)) == bundled
    # Pages about limits and relaying describe these two.
    own = bundled - {"limits", "relay"}
    assert {page.stem for page in (ROOT / "docs/policies").glob("*.md")} == own
    for name in own:
        chain = SHOWN[f"docs/policies/{name}.md:1"].partition("chain = ")[2].partition("\n")[0]
        assert f'"{name}"' in chain
