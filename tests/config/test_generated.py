"""What is generated from the schema."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from elemta.config import Config, load, render_markdown, render_sample
from elemta.config.__main__ import main, stale
from elemta.config.layout import SECTIONS
from elemta.config.schema import PolicyCommon
from elemta.config.setting import settings_of

Read = Callable[..., Config]

ROOT = Path(__file__).parents[2]


def _uncommented(text: str) -> str:
    return re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE)


def test_the_generated_files_are_not_stale() -> None:
    assert stale(ROOT) == []


def test_the_sample_file_is_the_defaults() -> None:
    assert load(str(ROOT / "etc/elemta.toml"), {}) == load(None, {})
    assert load(str(ROOT / "etc/elemta.toml"), {}).explicit == frozenset()


def test_the_sample_file_with_every_setting_set_is_the_defaults_and_the_examples(read: Read) -> None:
    defaults = load(None, {"ELEMTA_SERVER_HOSTNAME": "mx1.example.org", "NODE_ID": "mx1"})
    config = read(_uncommented(render_sample()))
    assert config.server == defaults.server
    for name in (
        "listeners",
        "tls",
        "auth",
        "resources",
        "policies",
        "spool",
        "metrics",
        "console",
        "logging",
    ):
        assert getattr(config, name) == getattr(defaults, name)
    assert config.domains.local == ("example.com",)
    assert [limit.name for limit in config.limits] == ["mail-per-sender"]
    assert [route.to for route in config.routes] == ["lmtp://127.0.0.1:24"]


def test_the_sample_file_and_the_page_have_every_setting_and_its_sentence() -> None:
    document = tomllib.loads(_uncommented(render_sample()))
    page = re.sub(r"\n  ", " ", render_markdown())
    sample = re.sub(r"\n# ", " ", render_sample())
    for section in SECTIONS:
        table = document[section.table][0] if section.many else document[section.table]
        assert list(table) == [field.key for field in settings_of(section.shape)]
        for field in settings_of(section.shape):
            assert field.about.words, f"{section.table}.{field.key} has no sentence"
            assert field.about.words in sample
            assert field.about.words in page
    assert list(document["policy"]["relay"]) == [field.key for field in settings_of(PolicyCommon)]


def test_write_makes_what_check_wants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "etc/elemta.toml is stale: run python -m elemta.config write\n"
        "docs/configuration.md is stale: run python -m elemta.config write\n"
    )
    assert main(["write", str(tmp_path)]) == 0
    assert main(["check", str(tmp_path)]) == 0
    (tmp_path / "etc/elemta.toml").write_text("# old\n")
    assert main(["check", str(tmp_path)]) == 1


@pytest.mark.parametrize("arguments", [[], ["read"], ["write", "a", "b"]])
def test_other_arguments_get_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 64
    assert capsys.readouterr().err == "usage: python -m elemta.config write|check [ROOT]\n"


def test_the_configuration_is_read_without_twisted() -> None:
    program = (
        "import sys, elemta.config; elemta.config.load(None, {}); "
        "sys.exit(any(name.partition('.')[0] in ('twisted', 'idna') for name in sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-S", "-c", f"import site; site.main(); {program}"], check=False
        ).returncode
        == 0
    )
