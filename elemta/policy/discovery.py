"""From the chain of a configuration to policies that are found, verified and built, or to a refused start."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from twisted.logger import Logger
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from elemta.config import read_policy
from elemta.errors import ConfigError, Fault, PolicyUnavailable
from elemta.policy.chain import LoadedPolicy, PolicyChain
from elemta.policy.finding import Broken, Catalogue, Found, stages_of, words_of
from elemta.policy.interfaces import OTHER_INTERFACES, STAGE_INTERFACES
from elemta.policy.observer import PolicyObserver
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.services import Services

if TYPE_CHECKING:
    from elemta.config import Config

_log = Logger()


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One installed plugin, for a listing.

    ``origin`` says by which distribution's entry point or which module it was found. ``error`` is "" or
    why it can't be used, and ``name`` is "" where it did not get so far as to tell it. ``words`` is the
    first line of its documentation. ``interfaces`` are those of the policy where it is in the chain, else
    empty: only a policy that was built tells which it provides.
    """

    name: str
    origin: str
    words: str = ""
    error: str = ""
    in_chain: bool = False
    interfaces: tuple[str, ...] = ()


def load_chain(config: Config, services: Services, observer: PolicyObserver | None = None) -> PolicyChain:
    """Find, verify and build what ``[policies] chain`` names, in its order.

    Raises :class:`~elemta.errors.PolicyUnavailable` where a policy can't be found, imported, verified or
    built, and :class:`~elemta.errors.ConfigError` where only settings are wrong; either carries every
    fault that was found. Nothing of a chain with a fault is ever used.
    """
    unavailable: list[Fault] = []
    faults: list[Fault] = []
    loaded: list[LoadedPolicy] = []
    catalogue = Catalogue()
    for index, name in enumerate(config.policies.chain):
        try:
            found = _find_one(catalogue, name, Fault(config.source, f"policies.chain[{index + 1}]", ""))
            loaded.append(_load(found, f"policies.chain[{index + 1}]", config, services))
        except PolicyUnavailable as error:
            unavailable.extend(error.faults)
        except ConfigError as error:
            faults.extend(error.faults)
    if unavailable:
        raise PolicyUnavailable([*unavailable, *faults])
    if faults:
        raise ConfigError(faults)
    relay = RelayPermission(services.domains, frozenset(config.policies.may_relay))
    return PolicyChain(loaded, services.reactor, observer, relay=relay)


def available_plugins(chain: PolicyChain | None = None) -> list[PluginInfo]:
    """Every installed plugin by name, those that can't be imported too; ``chain`` is the running one."""
    running = {loaded.name: loaded for loaded in chain.policies} if chain is not None else {}
    found, broken = Catalogue().find_all()
    plugins = [
        PluginInfo(
            name=each.name,
            origin=each.origin,
            words=(type(each.plugin).__doc__ or "").strip().partition("\n")[0],
            in_chain=each.name in running,
            interfaces=stages_of(running[each.name].policy) if each.name in running else (),
        )
        for each in found
    ]
    plugins += [PluginInfo(name=each.name, origin=each.origin, error=each.error) for each in broken]
    return sorted(plugins, key=lambda plugin: (plugin.name == "", plugin.name, plugin.origin))


def _load(found: Found, key: str, config: Config, services: Services) -> LoadedPolicy:
    name = found.name
    try:
        common, options = read_policy(
            found.plugin.options, config.policy.get(name, {}), config.source, f"policy.{name}"
        )
    except (
        TypeError
    ) as error:  # the plugin's options are no dataclass, or have a type that no setting can have
        raise _unavailable(
            config, key, name, f"its options can't be read: {words_of(error)}", found
        ) from error
    try:
        policy = found.plugin.build(options, services.of_policy(name))
    except ConfigError as error:
        # The policy's own look at its options: a file that is not there, keys that contradict each other.
        raise ConfigError([_placed(fault, config.source, name) for fault in error.faults]) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _log.failure("a policy could not be built", event="policy.build-failed", policy=name)
        raise _unavailable(config, key, name, f"it can't be built: {words_of(error)}", found) from error
    problem = problem_with(policy)
    if problem:
        raise _unavailable(config, key, name, problem, found)
    return LoadedPolicy(name, policy, common, found.origin)


def _find_one(catalogue: Catalogue, name: str, at: Fault) -> Found:
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


def _remedy(catalogue: Catalogue, name: str, broken: list[Broken]) -> str:
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
        try:
            verifyObject(interface, policy)
        except Invalid as error:
            return f"it says that it provides {interface.__name__} but does not: {words_of(error)}"
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
    """A fault that a policy raised about one of its own keys, at its place in the configuration."""
    prefix = f"policy.{name}"
    key = fault.key if fault.key.startswith(prefix) else f"{prefix}.{fault.key}".rstrip(".")
    return Fault(fault.place or source, key, fault.problem, fault.hint)


def _unavailable(config: Config, key: str, name: str, problem: str, found: Found) -> PolicyUnavailable:
    return PolicyUnavailable([Fault(config.source, key, f'the policy "{name}" ({found.origin}): {problem}')])


def _fault(at: Fault, problem: str, hint: str = "") -> Fault:
    return Fault(at.place, at.key, problem, hint)
