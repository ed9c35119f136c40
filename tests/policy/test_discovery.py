"""Plugins are found in two ways, and what can't be used stops the start with a clear word."""

import sys
import textwrap
from pathlib import Path

import pytest
import twisted.plugins
from twisted.internet.task import Clock

from elemta.config import load
from elemta.errors import ConfigError, PolicyUnavailable
from elemta.policy import Reject, Stage, available_plugins, load_chain
from elemta.policy.testing import RecordedMetrics, make_services

PLUGIN = """
    from dataclasses import dataclass
    from twisted.plugin import IPlugin
    from zope.interface import implementer
    from elemta.policy import *
    from elemta.policy import setting

    @dataclass(frozen=True)
    class Options:
        word: str = setting("no", "What is answered.")
        tries: int = setting(3, "How often.", minimum=1, maximum=5)

    @implementer(IRcptPolicy)
    class Policy:
        def __init__(self, options, services):
            self.options = options
            self.services = services

        def rcpt(self, session, transaction, recipient):
            return Reject(self.options.word)

    @implementer(IPlugin, IPolicyPlugin)
    class Plugin:
        \"\"\"Refuses everybody.

        More words.
        \"\"\"

        name = "NAME"
        options = Options

        def build(self, options, services):
            return Policy(options, services)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A directory that packages are installed into; returns a function that installs one."""
    dropins = tmp_path / "twisted" / "plugins"
    dropins.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(twisted.plugins, "__path__", [*twisted.plugins.__path__, str(dropins)])
    before = set(sys.modules)

    def install(name, source=PLUGIN, *, entry_point="", dropin=None, distribution=None):
        module = f"{tmp_path.name.replace('-', '_')}_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source).replace("NAME", name))
        if entry_point:
            info = tmp_path / f"{distribution or module}-2.5.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution or module}\nVersion: 2.5\n"
            )
            (info / "entry_points.txt").write_text(f"[elemta.policies]\n{name} = {module}:{entry_point}\n")
        if dropin is not None:
            (dropins / f"{module}_dropin.py").write_text(dropin.replace("MODULE", module))
        return module

    yield install
    for name in set(sys.modules) - before:
        if tmp_path.name.replace("-", "_") in name:
            del sys.modules[name]


@pytest.fixture
def start(tmp_path):
    """Load the chain of a configuration, as the start of the daemon does."""

    def start(chain, tables="", services=None):
        file = tmp_path / "elemta.toml"
        names = ", ".join(f'"{name}"' for name in chain)
        file.write_text(
            f'[server]\nhostname = "mx.example.com"\n[policies]\nchain = [{names}]\n{textwrap.dedent(tables)}'
        )
        return load_chain(load(str(file), {}), services or make_services(Clock()))

    return start


WAYS = [{"entry_point": "Plugin"}, {"dropin": "from MODULE import Plugin\nplugin = Plugin()\n"}]
BOTH = pytest.mark.parametrize("way", WAYS, ids=["entry point", "twisted/plugins"])


def test_the_bundled_policies_are_found_by_the_public_mechanism():
    origins = {plugin.name: plugin.origin for plugin in available_plugins()}
    assert origins["limits"] == origins["relay"] == "module twisted.plugins.elemta_policies"


def test_the_default_chain_loads(start):
    chain = start(["limits", "relay"])
    assert [loaded.name for loaded in chain.policies] == ["limits", "relay"]
    assert chain.asks(Stage.RCPT)


@BOTH
def test_a_plugin_is_found_built_with_its_options_and_asked(site, start, way):
    site("refuse-all", **way)
    chain = start(
        ["refuse-all"], '[policy.refuse-all]\nword = "never"\ntries = 5\ntimeout = "2s"\non_error = "accept"'
    )
    (loaded,) = chain.policies
    assert loaded.policy.options.word == "never"
    assert loaded.common.timeout == 2.0
    assert loaded.policy.rcpt(None, None, None) == Reject("never")


@BOTH
def test_wrong_options_are_all_told_with_file_key_and_what_is_allowed(site, start, tmp_path, way):
    site("refuse-all", **way)
    with pytest.raises(ConfigError) as caught:
        start(["refuse-all"], '[policy.refuse-all]\nwrod = "never"\ntries = 9')
    keys = {fault.key for fault in caught.value.faults}
    assert keys == {"policy.refuse-all.wrod", "policy.refuse-all.tries"}
    assert not isinstance(caught.value, PolicyUnavailable)
    text = str(caught.value)
    assert str(tmp_path / "elemta.toml") in text
    assert '"word"' in text


def test_a_plugin_offered_in_both_ways_is_one_plugin(site, start):
    site("refuse-all", entry_point="Plugin", dropin=WAYS[1]["dropin"])
    assert len(start(["refuse-all"]).policies) == 1


def test_a_name_that_two_plugins_claim_is_refused_with_both_places(site, start):
    site("refuse-all", entry_point="Plugin", distribution="one")
    site("refuse-all", PLUGIN.replace("Policy:", "Policy:  # of another"), entry_point="Plugin")
    other = PLUGIN.replace('"NAME"', '"refuse-all"')
    site("other", other, dropin=WAYS[1]["dropin"])
    with pytest.raises(
        PolicyUnavailable, match=r"more than once: entry point of .* and module twisted\.plugins"
    ):
        start(["refuse-all"])


def refused(start, chain, tables=""):
    with pytest.raises(PolicyUnavailable) as caught:
        start(chain, tables)
    return str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest_one(start):
    assert 'policies.chain[2]: no policy is called "realy" (did you mean "relay"?' in refused(
        start, ["limits", "realy"]
    )


def test_an_unknown_name_like_no_other_is_refused_with_those_that_there_are(start):
    assert "installed are: limits, relay" in refused(start, ["zzzzzz"])


def test_every_policy_that_is_missing_and_every_wrong_option_is_told_at_once(site, start):
    site("refuse-all", entry_point="Plugin")
    text = refused(start, ["one-missing", "refuse-all", "two-missing"], "[policy.refuse-all]\ntries = 0")
    assert "one-missing" in text
    assert "two-missing" in text
    assert "policy.refuse-all.tries" in text


BROKEN = "import a_module_that_is_not_there\n" + textwrap.dedent(PLUGIN)


def test_a_plugin_that_can_not_be_imported_is_refused_with_its_error(site, start):
    site("refuse-all", BROKEN, entry_point="Plugin")
    text = refused(start, ["refuse-all"])
    assert 'the policy "refuse-all" (entry point of ' in text
    assert "ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in text


def test_a_plugin_module_that_exits_when_it_is_imported_is_refused(site, start):
    site("refuse-all", "raise SystemExit(0)", entry_point="Plugin")
    assert "SystemExit: 0" in refused(start, ["refuse-all"])


def test_a_broken_module_in_twisted_plugins_is_named_where_a_policy_is_missing(site, start, unhandled_errors):
    module = site("refuse-all", BROKEN, dropin=WAYS[1]["dropin"])
    text = refused(start, ["refuse-all"])
    assert 'no policy is called "refuse-all"' in text
    assert f"module twisted.plugins.{module}_dropin can't be imported: ModuleNotFoundError" in text
    assert len(unhandled_errors) == 1  # Twisted's own word about it, in the log
    unhandled_errors.clear()


def test_a_broken_module_in_twisted_plugins_does_not_keep_others_from_starting(site, start, unhandled_errors):
    site("refuse-all", BROKEN, dropin=WAYS[1]["dropin"])
    assert len(start(["relay"]).policies) == 1
    unhandled_errors.clear()


def test_a_module_that_broke_after_twisted_cached_it_is_named(site, start, tmp_path):
    module = site("refuse-all", dropin=WAYS[1]["dropin"])
    assert len(start(["refuse-all"]).policies) == 1
    assert (tmp_path / "twisted" / "plugins" / "dropin.cache").exists()
    (tmp_path / f"{module}.py").write_text("raise RuntimeError('half an upgrade')")
    for name in [name for name in sys.modules if module in name]:
        del sys.modules[name]
    for cached in (tmp_path / "__pycache__").glob("*"):
        cached.unlink()
    assert "RuntimeError: half an upgrade" in refused(start, ["refuse-all"])


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('name = "NAME"', 'name = "other"', 'called "refuse-all" but its plugin "other"'),
        ("options = Options", "", "is no complete IPolicyPlugin"),
        ("def build(self, options, services)", "def build(self)", "is no complete IPolicyPlugin"),
        ("@implementer(IPlugin, IPolicyPlugin)", "", "does not provide IPolicyPlugin"),
        (
            "return Policy(options, services)",
            "raise OSError('no such file: x')",
            "can't be built: OSError: no such",
        ),
        ("return Policy(options, services)", "raise SystemExit(1)", "can't be built: SystemExit: 1"),
        ("return Policy(options, services)", "return None", "build returned None"),
        (
            "return Policy(options, services)",
            "return Policy",
            "build returned the class Policy, not a policy",
        ),
        (
            "@implementer(IRcptPolicy)",
            "",
            "provides no interface of a policy (it has a method rcpt: declare @implementer(IRcptPolicy))",
        ),
        (
            "def rcpt(self, session, transaction, recipient)",
            "def rcpt(self, session)",
            "provides IRcptPolicy but",
        ),
        ("def rcpt(", "def receipt(", "provides IRcptPolicy but does not"),
        ("options = Options", "options = dict", "its options can't be read: TypeError"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_refused_with_the_reason(site, start, before, after, words):
    assert before in PLUGIN
    site("refuse-all", PLUGIN.replace(before, after), entry_point="Plugin")
    text = refused(start, ["refuse-all"])
    assert "policies.chain[1]" in text
    assert words in text


def test_a_fault_that_a_policy_finds_in_its_options_is_told_as_a_setting(site, start):
    raising = """raise ConfigError([Fault("", "word", 'found "no"', "")])"""
    source = PLUGIN.replace("return Policy(options, services)", raising)
    site(
        "refuse-all",
        f"from elemta.errors import ConfigError, Fault\n{textwrap.dedent(source)}",
        entry_point="Plugin",
    )
    with pytest.raises(ConfigError, match=r'elemta\.toml: policy\.refuse-all\.word: found "no"'):
        start(["refuse-all"])


def test_a_policy_without_options_may_say_so(site, start):
    site("refuse-all", PLUGIN.replace("options = Options", "options = NoOptions"), entry_point="Plugin")
    assert len(start(["refuse-all"]).policies) == 1
    with pytest.raises(ConfigError, match=r"policy\.refuse-all\.word: unknown key"):
        start(["refuse-all"], '[policy.refuse-all]\nword = "no"')


def test_a_policy_of_the_way_out_is_found_and_verified_like_any(site, start):
    source = PLUGIN.replace("@implementer(IRcptPolicy)", "@implementer(IDeliveryPolicy)").replace(
        "def rcpt(self, session, transaction, recipient)", "def route(self, envelope, recipient)"
    )
    site("refuse-all", source, entry_point="Plugin")
    assert start(["refuse-all"]).delivery_hooks.asks
    site(
        "refuse-less",
        source.replace("refuse-all", "refuse-less").replace(", recipient)", ")"),
        entry_point="Plugin",
    )
    with pytest.raises(PolicyUnavailable, match="IDeliveryPolicy"):
        start(["refuse-less"])


def test_a_policys_metrics_and_log_carry_its_name(site, start):
    site("refuse-all", entry_point="Plugin")
    metrics, events = RecordedMetrics(), []
    chain = start(["refuse-all"], services=make_services(Clock(), metrics=metrics, logged=events))
    services = chain.policies[0].policy.services
    services.metrics.counter("lookups_total", "Lookups.", ["outcome"]).labels("hit").inc(2)
    services.log.info("looked up", domain="example.com")
    assert metrics.total("elemta_plugin_refuse_all_lookups_total", "hit") == 2
    assert events[0]["log_namespace"] == "elemta.policy.refuse-all"
    with pytest.raises(ValueError, match="metric"):
        services.metrics.counter("Look ups", "Lookups.")


def test_the_listing_names_every_plugin_with_its_place_and_what_is_broken(site, start, unhandled_errors):
    site("refuse-all", entry_point="Plugin")
    site("broken", BROKEN, entry_point="Plugin")
    site("broken-too", BROKEN, dropin=WAYS[1]["dropin"])
    chain = start(["refuse-all", "relay"])
    plugins = available_plugins(chain)
    by_name = {plugin.name: plugin for plugin in plugins}
    assert by_name["refuse-all"].origin.startswith("entry point of ")
    assert by_name["refuse-all"].origin.endswith(" 2.5")
    assert by_name["refuse-all"].words == "Refuses everybody."
    assert by_name["refuse-all"].interfaces == ("IRcptPolicy",)
    assert by_name["refuse-all"].in_chain
    assert not by_name["limits"].in_chain
    assert "ModuleNotFoundError" in by_name["broken"].error
    assert by_name[""].origin.endswith("_dropin")
    assert plugins[-1] is by_name[""]
    assert by_name["relay"].error == ""
    unhandled_errors.clear()


def test_finding_plugins_imports_no_reactor():
    import subprocess

    root = Path(__file__).parents[2]
    code = (
        "import sys; from elemta.policy import available_plugins; available_plugins();"
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
