"""The plugin package that the documentation opens with is built, installed and run, found in both ways."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
VARIANTS = {
    "refuse-future": "entry point of elemta-refuse-future 1.0",
    "refuse-future-dropin": "module twisted.plugins.refuse_future_plugin",
}

ASK = """
import sys
from ipaddress import ip_address
from twisted.internet.task import Clock
from elemta.address import Address
from elemta.config import load
from elemta.envelope import MailParameters, Recipient
from elemta.policy import available_plugins, load_chain, reply_of
from elemta.policy.testing import make_services
from elemta.smtp.events import RcptQuestion
from elemta.smtp.session_info import SessionInfo, TransactionInfo

chain = load_chain(load(sys.argv[1], {}), make_services(Clock()))
facts = SessionInfo("s1", ip_address("192.0.2.1"), 25, "mx")
talk = chain.open(facts)
transaction = TransactionInfo(Address("sender", "example.org"), MailParameters())
for text in sys.argv[2:]:
    decision = talk.ask(RcptQuestion(facts, transaction, Recipient(Address(*text.split("@")))))
    print(text, decision.policy or "-", reply_of(decision.verdict) or "accepted")
for plugin in available_plugins(chain):
    if plugin.name == "refuse-future":
        print(plugin.origin, plugin.interfaces, plugin.error)
"""


@pytest.fixture(scope="module", params=VARIANTS)
def installed(request, tmp_path_factory):
    """A fresh directory with nothing but the package in it, as pip installed it."""
    place = tmp_path_factory.mktemp(request.param)
    source = place / "source"
    shutil.copytree(EXAMPLES / request.param, source)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
    ]
    pip += ["--disable-pip-version-check", "--target", str(place / "site"), str(source)]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return request.param, place / "site"


def run(site, *arguments):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_the_installed_package_refuses_one_recipient_and_no_other(installed, tmp_path):
    variant, site = installed
    file = tmp_path / "elemta.toml"
    file.write_text(
        '[domains]\nlocal = ["example.com"]\n[policies]\nchain = ["refuse-future", "relay"]\n'
        '[policy.refuse-future]\nprefix = "next-"\n'
    )
    addresses = ["next-boss@example.com", "boss@example.com", "future-boss@example.com", "boss@example.org"]
    result = run(site, "-c", ASK, str(file), *addresses)
    assert result.stdout.splitlines() == [
        "next-boss@example.com refuse-future 550 5.1.1 no such mailbox yet",
        "boss@example.com - accepted",
        "future-boss@example.com - accepted",
        "boss@example.org relay 554 5.7.1 Relay access denied",
        f"{VARIANTS[variant]} ('IRcptPolicy',) ",
    ], result.stderr


def test_without_the_package_a_chain_that_names_it_does_not_load(tmp_path):
    file = tmp_path / "elemta.toml"
    file.write_text('[domains]\nlocal = ["example.com"]\n[policies]\nchain = ["refuse-future", "relay"]\n')
    result = run(ROOT, "-c", ASK, str(file), "boss@example.com")
    assert result.returncode != 0
    assert 'no policy is called "refuse-future"' in result.stderr


def test_the_packages_own_tests_pass(installed, tmp_path):
    _, site = installed
    tests = tmp_path / "tests"
    shutil.copytree(EXAMPLES / "refuse-future" / "tests", tests)
    result = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tests))
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout


def test_the_second_package_has_the_same_policy():
    first, second = (EXAMPLES / variant / "refuse_future.py" for variant in VARIANTS)
    assert first.read_text() == second.read_text()


def shown_files():
    """What docs/plugins.md shows as files: a bold line with the path, then a fenced block."""
    text = (ROOT / "docs" / "plugins.md").read_text()
    return re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_documentation_opens_with_the_whole_package_word_for_word():
    shown = dict(shown_files())
    files = {
        path.relative_to(EXAMPLES).as_posix()
        for variant in VARIANTS
        for path in (EXAMPLES / variant).rglob("*")
        if path.is_file() and path.suffix in {".py", ".toml"} and "__pycache__" not in path.parts
    }
    assert set(shown) == files - {"refuse-future-dropin/refuse_future.py"}
    for name, content in shown.items():
        assert content == (EXAMPLES / name).read_text(), name


def test_everything_that_the_documentation_names_as_exported_is_exported():
    import elemta.policy

    text = (ROOT / "docs" / "plugins.md").read_text()
    for name in elemta.policy.__all__:
        assert hasattr(elemta.policy, name)
    interfaces = set(re.findall(r"`(I[A-Z]\w+(?:Policy|Observer|Plugin))`", text))
    assert interfaces == {
        name for name in elemta.policy.__all__ if re.fullmatch(r"I[A-Z]\w+(Policy|Observer|Plugin)", name)
    }
