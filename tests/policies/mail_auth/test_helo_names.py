"""HELO names that are none do no harm: they may be any printable text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from elemta.policies.mail_auth.field import property_of
from elemta.policies.mail_auth.spf import SPFQuestion, check_spf

NAMES = [
    "Annas PC",
    "Müller-PC",
    "(none)",
    "a..b",
    "%{i}.x",
    "x" * 255,
    "パソコン",
    "a\u00a0b",
    "@",
    "%{",
    ".",
]


class NoFacts:
    """DNS that knows nothing."""

    def get(self, name: str, kind: object) -> Any:
        return SimpleNamespace(trouble=None, values=())


@pytest.mark.parametrize("helo", NAMES)
@pytest.mark.parametrize("sender", ["", "a..b@c_d.test", ".a.@b.test", "v" * 200 + "@b.test"])
def test_spf_of_any_helo_name_is_none(helo: str, sender: str) -> None:
    question = SPFQuestion("192.0.2.1", helo, sender, "mx.test")
    assert check_spf(question, NoFacts()).result == "none"  # type: ignore[arg-type]


@pytest.mark.parametrize("helo", NAMES)
def test_the_property_of_a_helo_name_is_ascii(helo: str) -> None:
    text = property_of("smtp.helo", helo)
    assert text.isascii()
    assert text.startswith("smtp.helo=")
