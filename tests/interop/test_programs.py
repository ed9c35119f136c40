"""A program that is missing skips a test at home and fails it in CI."""

from __future__ import annotations

import pytest

from tests.interop.programs import program

pytestmark = pytest.mark.servers


def test_at_home_a_missing_program_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        program("no-such-program")


def test_in_ci_a_missing_program_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(
        pytest.fail.Exception, match="no-such-program is not installed, and CI has to have it"
    ):
        program("no-such-program")
