"""What is optional is imported where the chain names a policy that needs it, and nowhere else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOAD = """
import sys
from twisted.internet.task import Clock
from elemta.config import load
from elemta.policy import load_chain
from elemta.policy.testing import make_services

load_chain(load(sys.argv[1], {}), make_services(Clock()))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

# By what they are imported as: the libraries of an extra, and those that these bring.
OPTIONAL = {"spf", "dkim", "publicsuffix2", "nacl", "authres", "argon2", "uvloop", "DNS"}


def loaded(chain: str, directory: Path) -> set[str]:
    """What is imported after a chain was built."""
    config = directory / "elemta.toml"
    config.write_text(f'[domains]\nlocal = ["example.com"]\n[policies]\nchain = {chain}\n')
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("chain", "wanted"),
    [
        ('["limits", "relay", "reverse-dns"]', set()),
        ('["limits", "relay", "mail-auth"]', {"spf", "dkim", "publicsuffix2"}),
    ],
)
def test_a_chain_imports_the_libraries_of_its_own_policies(
    chain: str, wanted: set[str], tmp_path: Path
) -> None:
    found = loaded(chain, tmp_path) & OPTIONAL
    assert wanted <= found
    if not wanted:
        assert found == set()


def test_the_extras_are_those_that_the_documents_name() -> None:
    call = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (extras,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(call)
        if isinstance(node, ast.keyword) and node.arg == "extras_require"
    )
    assert set(extras) == {"argon2", "http", "mail-auth", "test", "check"}
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    for name in ("http", "mail-auth"):
        assert f"`elemta[{name}]`" in page
