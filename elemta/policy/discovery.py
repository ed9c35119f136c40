"""Plugins: found, verified, and built into the chain that the configuration names.

A plugin is an entry point of the group ``elemta.policies`` or a module in ``twisted/plugins/``.
``twisted.plugin.getPlugins`` does not report a module that it could not import, so that a policy would be
missing without an error. Here such a module stops the start.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from twisted.plugin import CachedPlugin, getCache
from twisted.python.modules import PythonModule, getModule
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from elemta.config import OptionInfo, describe_options, read_policy
from elemta.errors import ConfigError, Fault, PolicyUnavailable
from elemta.metrics import PolicyMetrics
from elemta.policy.chain import PolicyChain
from elemta.policy.contract import contract_problem, takes
from elemta.policy.interfaces import (
    OTHER_INTERFACES,
    STAGE_INTERFACES,
    IFirstOutcomeObserver,
    IOutcomeObserver,
    IPolicyPlugin,
)
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.runner import LoadedPolicy
from elemta.policy.services import Services

if TYPE_CHECKING:
    from elemta.config import Config

_log = Logger()


_INSTANCE = re.compile(r"[a-z][a-z0-9-]{0,63}")

GROUP = "elemta.policies"
"""The group of the entry points of plugins."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One installed plugin, for a listing.

    ``origin`` is the distribution of its entry point, or its module. ``error`` is the reason why it can't be
    used, or "". ``name`` is "" where it is not known. ``words`` is the first line of its documentation.
    ``interfaces`` are those of the policy where it is in the chain, else empty: only a policy that was built
    shows them.
    """

    name: str
    origin: str
    words: str = ""
    error: str = ""
    in_chain: bool = False
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PluginDetails:
    """All about one plugin. ``instances`` are the policies of the chain that are made from it."""

    info: PluginInfo
    about: str
    contract: str
    requires: tuple[str, ...]
    options: tuple[OptionInfo, ...]
    instances: tuple[str, ...]


def load_chain(config: Config, services: Services, metrics: PolicyMetrics | None = None) -> PolicyChain:
    """Find, verify and build what ``[policies] chain`` names, in its order.

    Raises :class:`~elemta.errors.PolicyUnavailable` where a policy can't be found, imported, verified or
    built, and :class:`~elemta.errors.ConfigError` where only settings are wrong. Either has every fault that
    was found. No part of a chain with a fault is used.
    """
    unavailable: list[Fault] = []
    faults: list[Fault] = []
    loaded: list[LoadedPolicy] = []
    catalogue = PluginCatalogue()
    for index, name in enumerate(config.policies.chain):
        key = f"policies.chain[{index + 1}]"
        try:
            table, wanted = policy_instance(config, name)
            at = key if wanted == name else f"policy.{name}.use"
            found = _find_one(catalogue, wanted, Fault(config.source, at, ""))
            problem = _problem_with_place(found, name, config)
            if problem:
                raise _unavailable(config, key, name, problem, found)
            loaded.append(_load(found, _PluginPlace(name, table, key), config, services))
        except PolicyUnavailable as error:
            unavailable.extend(error.faults)
        except ConfigError as error:
            faults.extend(error.faults)
    if unavailable:
        raise PolicyUnavailable([*unavailable, *faults])
    if faults:
        raise ConfigError(faults)
    relay = RelayPermission(services.domains, frozenset(config.policies.may_relay))
    return PolicyChain(loaded, services.reactor, metrics, relay=relay)


def available_plugins(chain: PolicyChain | None = None) -> list[PluginInfo]:
    """Every installed plugin by name, also those that can't be imported. ``chain`` is the running chain."""
    policies = chain.policies if chain is not None else ()
    running = {loaded.plugin or loaded.name: loaded for loaded in reversed(policies)}
    found, broken = PluginCatalogue().find_all()
    plugins = [
        PluginInfo(
            name=each.name,
            origin=each.origin,
            words=(type(each.plugin).__doc__ or "").strip().partition("\n")[0],
            in_chain=each.name in running,
            interfaces=interfaces_of(running[each.name].policy) if each.name in running else (),
        )
        for each in found
    ]
    plugins += [PluginInfo(name=each.name, origin=each.origin, error=each.error) for each in broken]
    return sorted(plugins, key=lambda plugin: (plugin.name == "", plugin.name, plugin.origin))


def plugin_details(name: str, config: Config, chain: PolicyChain | None = None) -> PluginDetails | None:
    """All about a plugin, by its name or by that of a policy made of it; None where there is none."""
    _, wanted = policy_instance(config, name)
    infos = [info for info in available_plugins(chain) if info.name == wanted]
    found, _ = PluginCatalogue().find(wanted)
    if not infos:
        return None
    plugin = found[0].plugin if found else None
    options = getattr(plugin, "options", None)
    return PluginDetails(
        info=infos[0],
        about=inspect.cleandoc(type(plugin).__doc__ or "") if plugin is not None else "",
        contract=str(getattr(plugin, "contract", "1")),
        requires=tuple(map(str, getattr(plugin, "requires", ()))),
        options=tuple(describe_options(options)) if options is not None else (),
        instances=tuple(each for each in config.policies.chain if config.plugin_of(each) == wanted),
    )


def policy_instance(config: Config, name: str) -> tuple[Mapping[str, object], str]:
    """The table of a policy without ``use``, and the name of its plugin, which ``use`` may say."""
    table = dict(config.policy.get(name, {}))
    wanted = table.pop("use", name)
    if not isinstance(wanted, str):
        raise ConfigError([Fault(config.source, f"policy.{name}.use", "must be the name of a plugin")])
    if wanted != name and not _INSTANCE.fullmatch(name):
        problem = "a policy with use has a name of lower case letters, digits and hyphens"
        raise ConfigError([Fault(config.source, f"policy.{name}", problem)])
    return table, wanted


def _problem_with_place(found: FoundPlugin, name: str, config: Config) -> str:
    """Why a plugin can't stand in this chain, or at this place of it."""
    wanted = getattr(found.plugin, "contract", None)
    problem = "" if wanted is None else contract_problem(wanted)
    if problem:
        return problem
    needed = getattr(found.plugin, "requires", ())
    if isinstance(needed, str) or not all(isinstance(each, str) for each in needed):
        return "its requires is not a list of names of policies"
    chain = config.policies.chain
    before = {used for each in chain[: chain.index(name)] for used in (each, config.plugin_of(each))}
    for each in needed:
        if each not in before:
            there = any(each in (other, config.plugin_of(other)) for other in chain)
            missing = "" if there else ", and the chain has none"
            return f'it needs the policy "{each}" before it in the chain{missing}'
    return ""


@dataclass(frozen=True, slots=True)
class _PluginPlace:
    """A policy in the configuration: its name, its table without ``use``, and its key in the chain."""

    name: str
    table: Mapping[str, object]
    key: str


def _load(found: FoundPlugin, place: _PluginPlace, config: Config, services: Services) -> LoadedPolicy:
    name, key = place.name, place.key
    try:
        common, options = read_policy(found.plugin.options, place.table, config.source, f"policy.{name}")
    except (
        TypeError
    ) as error:  # the plugin's options are no dataclass, or have a type that no setting can have
        raise _unavailable(
            config, key, name, f"its options can't be read: {describe(error)}", found
        ) from error
    try:
        own = services.of_policy(name, common.timeout)
        policy = found.plugin.build(options, own)
    except ConfigError as error:
        # The policy checked its options: a file is missing, keys contradict each other.
        raise ConfigError([_placed(fault, config.source, name) for fault in error.faults]) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _log.failure("a policy could not be built", event="policy.build_failed", policy=name)
        raise _unavailable(config, key, name, f"it can't be built: {describe(error)}", found) from error
    problem = problem_with(policy)
    if problem:
        raise _unavailable(config, key, name, problem, found)
    build = partial(found.plugin.build, options)
    return LoadedPolicy(name, policy, common, found.origin, own, found.name, build)


def _find_one(catalogue: PluginCatalogue, name: str, at: Fault) -> FoundPlugin:
    found, broken = catalogue.find(name)
    mine = [each for each in broken if each.name == name]
    if mine:
        raise PolicyUnavailable(
            [_fault(at, f'the policy "{name}" ({each.origin}): {each.error}') for each in mine]
        )
    if len(found) > 1:
        origins = " and ".join(each.origin for each in found)
        raise PolicyUnavailable([_fault(at, f'the policy "{name}" is there more than once: {origins}')])
    if found:
        return found[0]
    raise PolicyUnavailable([_fault(at, f'no policy is called "{name}"', _remedy(catalogue, name, broken))])


def _remedy(catalogue: PluginCatalogue, name: str, broken: list[BrokenPlugin]) -> str:
    hints = []
    names = catalogue.names()
    close = get_close_matches(name, names, n=1)
    if close:
        hints.append(f'did you mean "{close[0]}"?')
    elif names:
        hints.append("installed are: " + ", ".join(names))
    hints += [f"{each.origin} {each.error}" for each in broken]
    return "; ".join(hints)


def problem_with(policy: object) -> str:
    """Why an object is no policy; "" where it is one."""
    interfaces = [interface for interface, _ in STAGE_INTERFACES.values()]
    provided = [each for each in (*interfaces, *OTHER_INTERFACES) if each.providedBy(policy)]
    for interface in provided:
        wanted = interface
        if interface is IOutcomeObserver and takes(getattr(policy, "committed", None), 2):
            # That of version 1 of the contract gets no queue id.
            wanted = IFirstOutcomeObserver
        try:
            verifyObject(wanted, policy, tentative=True)
        except Invalid as error:
            return f"it says that it provides {interface.__name__} but does not: {describe(error)}"
    if provided:
        return ""
    if policy is None:
        return "build returned None: does it end without return?"
    if isinstance(policy, type):
        return f"build returned the class {policy.__name__}, not a policy made from it"
    hints = [
        f"it has a method {method}: declare @implementer({interface.__name__})"
        for interface, method in STAGE_INTERFACES.values()
        if callable(getattr(policy, method, None))
    ]
    return "it provides no interface of a policy" + (f" ({hints[0]})" if hints else "")


def _placed(fault: Fault, source: str, name: str) -> Fault:
    """A fault that a policy raised about one of its own keys, with the key's place in the configuration."""
    prefix = f"policy.{name}"
    key = fault.key if fault.key.startswith(prefix) else f"{prefix}.{fault.key}".rstrip(".")
    return Fault(fault.place or source, key, fault.problem, fault.hint)


def _unavailable(config: Config, key: str, name: str, problem: str, found: FoundPlugin) -> PolicyUnavailable:
    return PolicyUnavailable([Fault(config.source, key, f'the policy "{name}" ({found.origin}): {problem}')])


def _fault(at: Fault, problem: str, hint: str = "") -> Fault:
    return Fault(at.place, at.key, problem, hint)


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """A plugin and its origin: a distribution's entry point, or a module in ``twisted/plugins/``."""

    name: str
    plugin: Any
    origin: str


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that can't be used. ``name`` is "" where it is not known."""

    name: str
    origin: str
    error: str


class PluginCatalogue:
    """The installed plugins, looked up once. An entry point is loaded only when it is asked for."""

    def __init__(self) -> None:
        self._entry_points = entry_points(group=GROUP)
        self._from_twisted = list(_twisted_plugins())

    def find(self, name: str) -> tuple[list[FoundPlugin], list[BrokenPlugin]]:
        """The plugins with this name, and the unusable ones that have, or may have, this name.

        A plugin that is found twice counts once.
        """
        things = [_load_entry_point(entry) for entry in self._entry_points if entry.name == name]
        return _separate([*things, *(thing for thing in self._from_twisted if thing.name in (name, ""))])

    def find_all(self) -> tuple[list[FoundPlugin], list[BrokenPlugin]]:
        """Every installed plugin, also those that the configuration does not name."""
        return _separate([*(_load_entry_point(entry) for entry in self._entry_points), *self._from_twisted])

    def names(self) -> list[str]:
        """The names that a configuration could mean."""
        names = {entry.name for entry in self._entry_points}
        names.update(thing.name for thing in self._from_twisted if thing.name)
        return sorted(names)


def interfaces_of(policy: object) -> tuple[str, ...]:
    """The names of the contract's interfaces that an object provides."""
    interfaces = [interface for interface, _ in STAGE_INTERFACES.values()]
    return tuple(
        interface.__name__ for interface in (*interfaces, *OTHER_INTERFACES) if interface.providedBy(policy)
    )


def describe(error: BaseException) -> str:
    """An exception in one line, its class first."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _load_entry_point(entry: EntryPoint) -> FoundPlugin | BrokenPlugin:
    dist = entry.dist
    origin = f"entry point of {dist.name} {dist.version}" if dist is not None else "entry point"
    try:
        plugin: Any = entry.load()
        if isinstance(plugin, type) and _implements_plugin(plugin):
            plugin = plugin()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may even call sys.exit() while it is imported
        return BrokenPlugin(entry.name, origin, f"{entry.value} can't be imported: {describe(error)}")
    found = _verified(plugin, origin, entry.value)
    if isinstance(found, FoundPlugin) and found.name != entry.name:
        problem = f'the entry point is called "{entry.name}" but its plugin "{found.name}"'
        return BrokenPlugin(entry.name, origin, problem)
    return BrokenPlugin(entry.name, origin, found.error) if isinstance(found, BrokenPlugin) else found


def _implements_plugin(kind: Any) -> bool:
    return bool(IPolicyPlugin.implementedBy(kind))


def _twisted_plugins() -> Iterator[FoundPlugin | BrokenPlugin]:
    import twisted.plugins as package  # noqa: PLC0415 - its search path is made when it is imported

    dropins = getCache(package)
    for module in getModule(package.__name__).iterModules():
        key = module.name.rsplit(".", 1)[-1]
        if key not in dropins:
            broken = _why_broken(module)
            if broken is not None:
                yield broken
    for dropin in dropins.values():
        for cached in dropin.plugins:
            if any(provided.isOrExtends(IPolicyPlugin) for provided in cached.provided):
                yield _load_cached(cached)


def _load_cached(cached: CachedPlugin) -> FoundPlugin | BrokenPlugin:
    origin = f"module {cached.dropin.moduleName}"
    try:
        plugin = cached.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the cache has it, but the module has changed
        return BrokenPlugin("", origin, f"can't be imported: {describe(error)}")
    return _verified(plugin, origin, cached.name)


def _why_broken(module: PythonModule) -> BrokenPlugin | None:
    try:
        module.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return BrokenPlugin("", f"module {module.name}", f"can't be imported: {describe(error)}")
    return None


def _verified(plugin: object, origin: str, place: str) -> FoundPlugin | BrokenPlugin:
    if not IPolicyPlugin.providedBy(plugin):
        return BrokenPlugin("", origin, f"{place} does not provide IPolicyPlugin")
    name = str(getattr(plugin, "name", ""))
    try:
        verifyObject(IPolicyPlugin, plugin)
    except Invalid as error:
        return BrokenPlugin(name, origin, f"{place} is no complete IPolicyPlugin: {describe(error)}")
    return FoundPlugin(name, plugin, origin)


def _separate(things: list[FoundPlugin | BrokenPlugin]) -> tuple[list[FoundPlugin], list[BrokenPlugin]]:
    found: list[FoundPlugin] = []
    for each in things:
        if isinstance(each, FoundPlugin) and not any(_is_same(each.plugin, known.plugin) for known in found):
            found.append(each)
    return found, [each for each in things if isinstance(each, BrokenPlugin)]


def _is_same(one: object, other: object) -> bool:
    # A package may offer one plugin in both ways, with an object for each.
    if one is other:
        return True
    return type(one) is type(other) and getattr(one, "__dict__", None) == getattr(other, "__dict__", None)
