"""Finding plugins: entry points in the group ``elemta.policies``, and modules in ``twisted/plugins/``.

``twisted.plugin.getPlugins`` keeps silent about a module that it could not import, which would make a
policy disappear without a word. What is found here is the same, and what could not be imported is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from twisted.plugin import CachedPlugin, getCache
from twisted.python.modules import PythonModule, getModule
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from elemta.policy.interfaces import OTHER_INTERFACES, STAGE_INTERFACES, IPolicyPlugin

GROUP = "elemta.policies"
"""The group of entry points that name plugins."""


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin and where it is from: a distribution's entry point, or a module in ``twisted/plugins/``."""

    name: str
    plugin: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Broken:
    """Something that should be a plugin and can't be used. ``name`` is "" where it was not told."""

    name: str
    origin: str
    error: str


class Catalogue:
    """What is installed, looked up once. Of the entry points only those that are asked for are loaded."""

    def __init__(self) -> None:
        self._entry_points = entry_points(group=GROUP)
        self._from_twisted = list(_twisted_plugins())

    def find(self, name: str) -> tuple[list[Found], list[Broken]]:
        """The plugins called ``name``, and what can't be used and is, or may be, of that name.

        What is found twice is one plugin when it is the same one.
        """
        things = [_load_entry_point(entry) for entry in self._entry_points if entry.name == name]
        return _sorted_out([*things, *(thing for thing in self._from_twisted if thing.name in (name, ""))])

    def find_all(self) -> tuple[list[Found], list[Broken]]:
        """Every plugin that is installed, whether the configuration names it or not."""
        return _sorted_out([*(_load_entry_point(entry) for entry in self._entry_points), *self._from_twisted])

    def names(self) -> list[str]:
        """The names that a configuration could mean."""
        names = {entry.name for entry in self._entry_points}
        names.update(thing.name for thing in self._from_twisted if thing.name)
        return sorted(names)


def stages_of(kind: object) -> tuple[str, ...]:
    """The names of the interfaces of the contract that an object provides."""
    interfaces = [interface for interface, _ in STAGE_INTERFACES.values()]
    return tuple(
        interface.__name__ for interface in (*interfaces, *OTHER_INTERFACES) if interface.providedBy(kind)
    )


def words_of(error: BaseException) -> str:
    """An exception in one line, its kind first."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _load_entry_point(entry: EntryPoint) -> Found | Broken:
    dist = entry.dist
    origin = f"entry point of {dist.name} {dist.version}" if dist is not None else "entry point"
    try:
        plugin: Any = entry.load()
        if isinstance(plugin, type) and _implements_plugin(plugin):
            plugin = plugin()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may even call sys.exit() while it is imported
        return Broken(entry.name, origin, f"{entry.value} can't be imported: {words_of(error)}")
    found = _verified(plugin, origin, entry.value)
    if isinstance(found, Found) and found.name != entry.name:
        problem = f'the entry point is called "{entry.name}" but its plugin "{found.name}"'
        return Broken(entry.name, origin, problem)
    return Broken(entry.name, origin, found.error) if isinstance(found, Broken) else found


def _implements_plugin(kind: Any) -> bool:
    return bool(IPolicyPlugin.implementedBy(kind))


def _twisted_plugins() -> Iterator[Found | Broken]:
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


def _load_cached(cached: CachedPlugin) -> Found | Broken:
    origin = f"module {cached.dropin.moduleName}"
    try:
        plugin = cached.load()
    except KeyboardInterrupt:
        raise
    except (
        BaseException
    ) as error:  # its cache said that it is there, but the module has changed for the worse
        return Broken("", origin, f"can't be imported: {words_of(error)}")
    return _verified(plugin, origin, cached.name)


def _why_broken(module: PythonModule) -> Broken | None:
    try:
        module.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Broken("", f"module {module.name}", f"can't be imported: {words_of(error)}")
    return None


def _verified(plugin: object, origin: str, place: str) -> Found | Broken:
    if not IPolicyPlugin.providedBy(plugin):
        return Broken("", origin, f"{place} does not provide IPolicyPlugin")
    name = str(getattr(plugin, "name", ""))
    try:
        verifyObject(IPolicyPlugin, plugin)
    except Invalid as error:
        return Broken(name, origin, f"{place} is no complete IPolicyPlugin: {words_of(error)}")
    return Found(name, plugin, origin)


def _sorted_out(things: list[Found | Broken]) -> tuple[list[Found], list[Broken]]:
    found: list[Found] = []
    for thing in things:
        if isinstance(thing, Found) and not any(_is_same(thing.plugin, known.plugin) for known in found):
            found.append(thing)
    return found, [thing for thing in things if isinstance(thing, Broken)]


def _is_same(one: object, other: object) -> bool:
    # A package may offer one plugin in both ways, with an object for each.
    if one is other:
        return True
    return type(one) is type(other) and getattr(one, "__dict__", None) == getattr(other, "__dict__", None)
