"""The packages of docs/examples are built, installed and run, found in both ways, by pip and as .deb."""

import json
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


def install(name, place):
    """A fresh directory with nothing but the package in it, as pip installed it."""
    source = place / "source"
    shutil.copytree(EXAMPLES / name, source)
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
    return place / "site"


@pytest.fixture(scope="module", params=VARIANTS)
def installed(request, tmp_path_factory):
    return request.param, install(request.param, tmp_path_factory.mktemp(request.param))


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


def ask(site, place, chain, *addresses, more=""):
    """Asks the policies of a chain, found from ``site``, about recipients; ``more`` is configuration."""
    file = place / "elemta.toml"
    file.write_text(f'[domains]\nlocal = ["example.com"]\n[policies]\nchain = {json.dumps(chain)}\n{more}')
    return run(site, "-c", ASK, str(file), *addresses)


def test_the_installed_package_refuses_one_recipient_and_no_other(installed, tmp_path):
    variant, site = installed
    addresses = ["next-boss@example.com", "boss@example.com", "future-boss@example.com", "boss@example.org"]
    more = '[policy.refuse-future]\nprefix = "next-"\n'
    result = ask(site, tmp_path, ["refuse-future", "relay"], *addresses, more=more)
    assert result.stdout.splitlines() == [
        "next-boss@example.com refuse-future 550 5.1.1 no such mailbox yet",
        "boss@example.com - accepted",
        "future-boss@example.com - accepted",
        "boss@example.org relay 554 5.7.1 Relay access denied",
        f"{VARIANTS[variant]} ('IRcptPolicy',) ",
    ], result.stderr


def test_without_the_package_a_chain_that_names_it_does_not_load(tmp_path):
    result = ask(ROOT, tmp_path, ["refuse-future", "relay"], "boss@example.com")
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


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian's dpkg-deb makes the package")
def test_the_debian_package_is_built_and_its_policy_runs(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(EXAMPLES / "refuse-future", source)
    # As in a network without an index, with the tools of these tests.
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    built = subprocess.run(
        ["sh", "build-deb"], cwd=source, env=environ, capture_output=True, text=True, check=False, timeout=100
    )
    assert built.returncode == 0, built.stderr
    (package,) = source.glob("*.deb")
    assert package.name == "elemta-refuse-future_1.0_all.deb"
    subprocess.run(["dpkg-deb", "-x", str(package), str(tmp_path / "root")], check=True)
    site = tmp_path / "root/usr/lib/python3/dist-packages"
    result = ask(site, tmp_path, ["refuse-future", "relay"], "future-boss@example.com", "boss@example.com")
    assert result.stdout.splitlines()[:2] == [
        "future-boss@example.com refuse-future 550 5.1.1 no such mailbox yet",
        "boss@example.com - accepted",
    ], result.stderr


def test_the_first_policy_runs_without_a_package(tmp_path):
    site = tmp_path / "first"
    shutil.copytree(EXAMPLES / "first", site)
    result = ask(site, tmp_path, ["limits", "first", "relay"], "future-boss@example.com", "boss@example.com")
    assert result.stdout.splitlines() == [
        "future-boss@example.com first 550 5.7.1 no such mailbox yet",
        "boss@example.com - accepted",
    ], result.stderr


def test_the_first_policy_is_as_short_as_it_is_said_to_be():
    (file,) = (EXAMPLES / "first" / "twisted" / "plugins").glob("*.py")
    assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 15


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return install("recipes", tmp_path_factory.mktemp("recipes"))


CHAIN = """
[domains]
local = ["example.com"]
[policies]
chain = [
    "limits", "country", "by-country", "traps", "ask-service", "relay", "tag-subject", "stamp",
    "counter-port", "report-failures", "customer-route", "keep-deliveries",
]
[policy.by-country]
hold = ["AQ"]
[policy.traps]
addresses = ["trap@example.com"]
[policy.ask-service]
url = "http://127.0.0.1:1/"
[policy.stamp]
secret_file = "FILE"
[policy.counter-port]
port = 0
[policy.report-failures]
url = "http://127.0.0.1:1/"
[[policy.customer-route.customer]]
user = "anna"
relay = "smtp://relay.example.net:587"
login_file = "FILE"
"""


def test_one_chain_has_all_recipes_and_they_are_asked(recipes, tmp_path):
    file, secret = tmp_path / "elemta.toml", tmp_path / "secret"
    secret.write_text("anna:sesame\n")
    file.write_text(CHAIN.replace("FILE", str(secret)))
    result = run(recipes, "-c", ASK, str(file), "trap@example.com", "boss@example.org")
    assert result.stdout.splitlines()[:2] == [
        "trap@example.com traps 550 5.1.1 no such mailbox",
        "boss@example.org relay 554 5.7.1 Relay access denied",
    ], result.stderr


def test_the_recipes_own_tests_pass(recipes, tmp_path):
    tests = tmp_path / "tests"
    shutil.copytree(EXAMPLES / "recipes" / "tests", tests)
    result = run(
        recipes, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tests)
    )
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) >= 10


def shown_files():
    """What docs/plugins.md shows as files: a bold line with the path, then a fenced block."""
    text = (ROOT / "docs" / "plugins.md").read_text()
    return re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shown_parts():
    """And as parts of files."""
    text = (ROOT / "docs" / "plugins.md").read_text()
    part = r"^From \[`([^`]+)`\]\(examples/\1\):\n\n```python\n(.*?)^```$"
    return re.findall(part, text, re.MULTILINE | re.DOTALL)


def test_the_documentation_shows_every_example_word_for_word():
    shown = dict(shown_files())
    files = {
        path.relative_to(EXAMPLES).as_posix()
        for path in EXAMPLES.rglob("*")
        if path.is_file() and path.suffix in {".py", ".toml"} and "__pycache__" not in path.parts
    }
    for name, content in shown.items():
        assert content == (EXAMPLES / name).read_text(), name
    for name, content in shown_parts():
        assert content in (EXAMPLES / name).read_text(), name
    # The second test file of the recipes is for the examples, and not for the reader.
    unseen = {
        "refuse-future-dropin/refuse_future.py",
        "recipes/pyproject.toml",
        "recipes/tests/test_others.py",
    }
    assert files - set(shown) - {name for name, _ in shown_parts()} == unseen


def test_a_policy_of_version_1_runs_unchanged():
    """Its code and its tests are those of the documentation of version 1, without a change."""
    place = Path(__file__).parent / "version_1"
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(place)]
    result = run(place, "-m", "pytest", *options, str(place / "refuse_future_checks.py"))
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout


def test_a_dropin_package_of_version_1_runs_unchanged(tmp_path):
    shutil.copy(Path(__file__).parent / "version_1" / "refuse_future.py", tmp_path)
    shutil.copytree(EXAMPLES / "refuse-future-dropin" / "twisted", tmp_path / "twisted")
    result = ask(
        tmp_path, tmp_path, ["refuse-future", "relay"], "future-boss@example.com", "boss@example.com"
    )
    assert result.stdout.splitlines()[:2] == [
        "future-boss@example.com refuse-future 550 5.1.1 no such mailbox yet",
        "boss@example.com - accepted",
    ], result.stderr


def test_everything_that_the_documentation_names_as_exported_is_exported():
    import elemta.policy

    text = (ROOT / "docs" / "plugins.md").read_text()
    for name in elemta.policy.__all__:
        assert hasattr(elemta.policy, name)
    interfaces = set(re.findall(r"`(I[A-Z]\w+(?:Policy|Observer|Plugin))`", text))
    assert interfaces == {
        name for name in elemta.policy.__all__ if re.fullmatch(r"I[A-Z]\w+(Policy|Observer|Plugin)", name)
    }
