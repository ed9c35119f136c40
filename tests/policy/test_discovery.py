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
from elemta.policy.discovery import plugin_details
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


DROPIN = "from MODULE import Plugin\nplugin = Plugin()\n"
WAYS = [{"entry_point": "Plugin"}, {"dropin": "from MODULE import Plugin\nplugin = Plugin()\n"}]
BOTH = pytest.mark.parametrize("way", WAYS, ids=["entry point", "twisted/plugins"])


def test_the_bundled_policies_are_found_by_the_public_mechanism():
    origins = {plugin.name: plugin.origin for plugin in available_plugins()}
    assert origins["limits"] == origins["relay"] == "module twisted.plugins.elemta_policies"


def test_the_default_chain_loads(start):
    chain = start(["limits", "relay"])
    assert [loaded.name for loaded in chain.policies] == ["limits", "relay"]
    assert Stage.RCPT in chain.asked


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
    assert (
        "installed are: clamav, dkim-sign, dnsbl, greylist, limits, mail-auth, milter, policy-client"
        in refused(start, ["zzzzzz"])
    )


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


def faults_of(start, chain, tables="", services=None):
    with pytest.raises(ConfigError) as caught:
        start(chain, tables, services)
    return [f"{fault.key}: {fault.problem}" for fault in caught.value.faults]


# Two policies of one plugin


def test_use_makes_a_second_policy_of_a_plugin_with_options_and_a_name_of_its_own(site, start):
    site("word", dropin=DROPIN)
    metrics = RecordedMetrics()
    chain = start(
        ["word", "other-word"],
        '[policy.word]\nword = "a"\n[policy.other-word]\nuse = "word"\nword = "b"\ntimeout = "2s"',
        make_services(Clock(), metrics=metrics),
    )
    assert [(each.name, each.plugin, each.policy.options.word) for each in chain.policies] == [
        ("word", "word", "a"),
        ("other-word", "word", "b"),
    ]
    first, second = (each.policy.services for each in chain.policies)
    second.metrics.counter("n_total", "n").inc()
    assert metrics.total("elemta_plugin_other_word_n_total") == 1
    assert (first.log.namespace, second.log.namespace) == ("elemta.policy.word", "elemta.policy.other-word")
    (info,) = [each for each in available_plugins(chain) if each.name == "word"]
    assert info.in_chain


@pytest.mark.parametrize(
    ("chain", "tables", "expected"),
    [
        (["x"], '[policy.x]\nuse = "wird"', 'policy.x.use: no policy is called "wird"'),
        (["x"], "[policy.x]\nuse = 3", "policy.x.use: must be the name of a plugin"),
        (["x", "word"], '[policy.x]\nuse = ["word"]', "policy.x.use: must be the name of a plugin"),
        (["X-y"], '[policy.X-y]\nuse = "word"', "policy.X-y: a policy with use has a name of lower case"),
        (
            ["x"],
            '[policy.x]\nuse = "word"\ntries = 9',
            "policy.x.tries: found 9: must be a whole",
        ),
        (["word"], '[policy.word]\nuse = "word"\nwird = "a"', "policy.word.wird: unknown key"),
    ],
)
def test_faults_of_a_named_policy_have_its_own_keys(site, start, chain, tables, expected):
    site("word", dropin=DROPIN)
    (fault,) = faults_of(start, chain, tables)
    assert fault.startswith(expected)


# What a plugin needs


def plugin_with(attribute):
    return PLUGIN.replace('name = "NAME"', f'name = "NAME"\n        {attribute}')


@pytest.mark.parametrize("contract", ["1", "1.0", "1.3", "2", "2.0", "2.1"])
def test_a_plugin_of_this_contract_or_an_older_one_is_loaded(site, start, contract):
    site(
        "word",
        plugin_with(f'contract = "{contract}"'),
        dropin="from MODULE import Plugin\nplugin = Plugin()\n",
    )
    assert [each.name for each in start(["word"]).policies] == ["word"]


@pytest.mark.parametrize(
    ("contract", "reason"),
    [
        ('"2.2"', "it needs contract 2.2, and this Elemta has 2.1"),
        ('"3"', "it needs contract 3, and this Elemta has 2.1"),
        ('"99999999"', "its contract is no version"),
        ('"two"', "its contract is no version"),
        ("2", "its contract is no version"),
    ],
)
def test_a_plugin_that_needs_a_newer_contract_stops_the_start_with_that_reason(site, start, contract, reason):
    site(
        "word", plugin_with(f"contract = {contract}"), dropin="from MODULE import Plugin\nplugin = Plugin()\n"
    )
    (fault,) = faults_of(start, ["word"])
    assert reason in fault


REQUIRES = plugin_with('requires = ("spf", "geo")')


@pytest.mark.parametrize(
    ("chain", "tables", "missing"),
    [
        (["spf", "geo", "word"], "", None),
        (["geo", "relay", "spf", "word"], "", None),
        (["my-spf", "geo", "word"], '[policy.my-spf]\nuse = "spf"', None),
        (["spf", "word"], "", '"geo" before it in the chain, and the chain has none'),
        (["word"], "", '"spf" before it in the chain, and the chain has none'),
        (["geo", "word", "spf"], "", '"spf" before it in the chain'),
        (["spf", "word", "geo"], "", '"geo" before it in the chain'),
        (["geo", "word", "my-spf"], '[policy.my-spf]\nuse = "spf"', '"spf" before it in the chain'),
    ],
)
def test_a_chain_in_the_wrong_order_is_a_fault_at_the_start(site, start, chain, tables, missing):
    for name, source in (("word", REQUIRES), ("spf", PLUGIN), ("geo", PLUGIN)):
        site(name, source, dropin=DROPIN)
    if missing is None:
        assert [each.name for each in start(chain, tables).policies] == chain
        return
    (fault,) = faults_of(start, chain, tables)
    assert fault.startswith(f"policies.chain[{chain.index('word') + 1}]: ")
    assert missing in fault


def test_requires_that_is_one_text_is_a_fault(site, start):
    site("word", plugin_with('requires = "spf"'), dropin=DROPIN)
    assert "is not a list of names" in faults_of(start, ["word"])[0]


NESTED = """
    from dataclasses import dataclass
    from twisted.plugin import IPlugin
    from zope.interface import implementer
    from elemta.policy import *

    @dataclass(frozen=True)
    class Zone:
        name: str = setting(REQUIRED, "The list.")
        weight: int = setting(1, "What a hit weighs.")

    @dataclass(frozen=True)
    class Limits:
        most: int = setting(5, "At most.", minimum=1)

    @dataclass(frozen=True)
    class Options:
        zone: tuple[Zone, ...] = setting((), "The lists that are asked.")
        limits: Limits = setting(Limits(), "The limits.")
        timeout: float = setting(2.0, "How long.", unit="seconds")

    @implementer(IRcptPolicy)
    class Policy:
        def __init__(self, options):
            self.options = options

        def rcpt(self, session, transaction, recipient):
            return CONTINUE

    @implementer(IPlugin, IPolicyPlugin)
    class Plugin:
        \"\"\"Asks lists.\"\"\"

        name = "NAME"
        contract = "2"
        options = Options

        def build(self, options, services):
            return Policy(options)
"""


def test_nested_options_are_tables_and_a_plugin_has_its_own_default_of_timeout(site, start):
    site("lists", NESTED, dropin=DROPIN)
    chain = start(
        ["lists", "slow"],
        '[policy.lists.limits]\nmost = 7\n[[policy.lists.zone]]\nname = "a.test"\n'
        '[[policy.lists.zone]]\nname = "b.test"\nweight = -2\n[policy.slow]\nuse = "lists"\ntimeout = "9s"',
    )
    first, second = chain.policies
    assert [(zone.name, zone.weight) for zone in first.policy.options.zone] == [("a.test", 1), ("b.test", -2)]
    assert (first.policy.options.limits.most, second.policy.options.limits.most) == (7, 5)
    assert (first.common.timeout, first.policy.options.timeout) == (2.0, 2.0)
    assert (second.common.timeout, second.policy.options.timeout) == (9.0, 9.0)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ("[[policy.lists.zone]]\nweight = 2", ["zone[1].name: is needed: a string"]),
        (
            '[[policy.lists.zone]]\nname = "a"\n[[policy.lists.zone]]\nname = 3\nweigth = 2',
            [
                "zone[2].name: found 3: must be a string",
                "zone[2].weigth: unknown key",
            ],
        ),
        ("[policy.lists]\nzone = 3", ["zone: found 3: must be tables [[policy.lists.zone]]"]),
        (
            "[policy.lists]\nzone = [3]",
            ["zone: found a list: must be tables [[policy.lists.zone]]"],
        ),
        (
            '[policy.lists.zone]\nname = "a"',
            ["zone: found a table: must be tables [[policy.lists.zone]]"],
        ),
        (
            "[policy.lists]\nlimits = 3",
            ["limits: found 3: must be a table [policy.lists.limits]"],
        ),
        (
            "[[policy.lists.limits]]",
            ["limits: found a list: must be a table [policy.lists.limits]"],
        ),
        (
            "[policy.lists.limits]\nmost = 0",
            ["limits.most: found 0: must be a whole number from 1"],
        ),
    ],
)
def test_every_fault_within_a_table_is_named_with_its_place(site, start, tables, expected):
    site("lists", NESTED, dropin=DROPIN)
    places = [fault.removeprefix("policy.lists.") for fault in faults_of(start, ["lists"], tables)]
    assert places == expected


def test_the_details_of_a_plugin_have_every_option_and_each_policy_that_is_made_of_it(site, start, tmp_path):
    site("lists", NESTED, dropin=DROPIN)
    chain = start(["slow", "lists"], '[policy.slow]\nuse = "lists"')
    config = load(str(tmp_path / "elemta.toml"), {})
    for name in ("lists", "slow"):
        details = plugin_details(name, config, chain)
        assert (details.info.name, details.about, details.contract) == ("lists", "Asks lists.", "2")
        assert details.instances == ("slow", "lists")
        assert details.info.interfaces == ("IRcptPolicy",)
        assert [(each.key, each.type, each.default) for each in details.options] == [
            ("zone", "list of tables", "[]"),
            ("zone[].name", "string", ""),
            ("zone[].weight", "whole number", "1"),
            ("limits", "table", "{}"),
            ("limits.most", "whole number", "5"),
            ("timeout", "duration", '"2s"'),
        ]
        assert all(each.words for each in details.options)
    assert plugin_details("none", config, chain) is None


def test_the_details_of_a_broken_plugin_say_why(site, start, tmp_path):
    site(
        "word",
        PLUGIN.replace("def build(self, options, services):", "def build(self):"),
        dropin="from MODULE import Plugin\nplugin = Plugin()\n",
    )
    start(["relay"])
    details = plugin_details("word", load(str(tmp_path / "elemta.toml"), {}))
    assert "no complete IPolicyPlugin" in details.info.error
    assert details.instances == ()
