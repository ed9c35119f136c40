"""Reads a TOML table into a dataclass of settings and finds every fault in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from elemta.config.faults import Faults
from elemta.config.layout import SECTIONS
from elemta.config.redaction import shown
from elemta.config.schema import PolicyCommon
from elemta.config.setting import SettingField, settings_of
from elemta.config.types import SettingType, table_of, type_of
from elemta.config.values import nearest

Options = TypeVar("Options")

_BAD = object()

OWN_DEFAULTS = frozenset({"timeout", "on_error"})
"""Keys of every policy for which a policy may have a default of its own."""


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a policy that has none."""


def read_table(shape: type[Options], table: Mapping[str, object], key: str, faults: Faults) -> Options | None:
    """Read a table into an instance of ``shape``.

    A setting at fault takes its default so that reading goes on; None means that there was a fault in
    one without a default. Nothing is raised but TypeError for a dataclass that can't be read.
    """
    values, complete = _read_settings(shape, table, key, faults)
    note_unknown_keys(table, [field.key for field in settings_of(shape)], key, faults)
    return _construct(shape, values, key, faults) if complete else None


def sound_settings(shape: type[Any], table: Mapping[str, object], key: str) -> Mapping[str, Any]:
    """What can be read of a table with faults; settings without a default that are at fault are left out."""
    values, _ = _read_settings(shape, table, key, Faults(""))
    return values


def read_policy(
    cls: type[Options] | None, table: Mapping[str, object], place: str, key: str
) -> tuple[PolicyCommon, Options]:
    """Read a ``[policy.NAME]`` table: the four keys of every policy, and the policy's own options.

    ``cls`` is the policy's frozen dataclass of options (None for a policy without any); its fields are
    made with :func:`setting` or are plain fields. A field that is a dataclass is a table, and a tuple of one
    a list of tables. ``timeout`` and ``on_error`` among them give these keys another default. ``place`` and
    ``key`` (``policy.NAME``) stand in the faults. Raises ConfigError with every fault, and TypeError for a
    dataclass that can't be read.
    """
    shape: type[Any] = NoOptions if cls is None else cls
    own = [field.key for field in settings_of(shape)]
    common = [field.key for field in settings_of(PolicyCommon)]
    twice = [name for name in own if name in common and name not in OWN_DEFAULTS]
    if twice:
        raise TypeError(f"{shape.__qualname__}: every policy has {', '.join(twice)} already")
    faults = Faults(place)
    common_values, _ = _read_settings(PolicyCommon, table, key, faults)
    for name, default in _own_defaults(shape, common_values).items():
        if name not in table:
            common_values[name] = default
    values, complete = _read_settings(shape, table, key, faults)
    note_unknown_keys(table, [*own, *common], key, faults)
    options = _construct(shape, values, key, faults) if complete and not faults.within(key) else None
    options = faults.unless_any(options)
    return PolicyCommon(**common_values), options


def _own_defaults(shape: type[Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that a policy gives keys of every policy, where the table has none of its own."""
    defaults = {}
    for field in settings_of(shape):
        if field.key in OWN_DEFAULTS:
            wanted = type(common[field.key])
            if field.type is not wanted:
                name = field.key
                raise TypeError(
                    f"{shape.__qualname__}: every policy has {name} already, as {wanted.__name__}"
                )
            if not field.required:
                defaults[field.key] = field.default
    return defaults


def read_policy_common(table: Mapping[str, object], key: str, faults: Faults) -> PolicyCommon:
    """Read only the four keys that every policy takes; the others belong to the policy."""
    values, _ = _read_settings(PolicyCommon, table, key, faults)
    return PolicyCommon(**values)


def note_unknown_keys(table: Mapping[str, object], known: Iterable[str], key: str, faults: Faults) -> None:
    """Note each key of the table that isn't known, with where it belongs or the nearest one."""
    names = list(known)
    for name in table:
        if name not in names:
            dotted = f"{key}.{name}" if key else name
            faults.add(dotted, "unknown key", _unknown_key_hint(name, names))


def homes_of(name: str) -> list[str]:
    """The tables of the schema that know a key of this name, in brackets as a file writes them."""
    return [
        f"[[{section.table}]]" if section.many else f"[{section.table}]"
        for section in SECTIONS
        if name in {field.key for field in settings_of(section.shape)}
    ]


def _unknown_key_hint(name: str, known: list[str]) -> str:
    allowed = f"known here: {', '.join(known)}" if known else "no key is known here"
    homes = homes_of(name)
    if homes:
        return f"it belongs in {' or '.join(homes)}; {allowed}"
    match = nearest(name, known)
    return f'did you mean "{match}"? {allowed}' if match else allowed


def _read_settings(
    shape: type[Any], table: Mapping[str, object], key: str, faults: Faults
) -> tuple[dict[str, Any], bool]:
    values: dict[str, Any] = {}
    complete = True
    for field in settings_of(shape):
        nested, dotted = table_of(field), f"{key}.{field.key}"
        kind = type_of(field) if nested is None else None
        value = _BAD
        if field.key in table and kind is not None:
            value = _read_value(field, kind, table[field.key], dotted, faults)
        elif field.key in table and nested is not None:
            value = _read_tables(field, nested, table[field.key], dotted, faults)
        elif field.required:
            faults.add(dotted, f"is needed: {_needed(kind)}")
        if value is not _BAD:
            values[field.name] = value
        elif field.required:
            complete = False
        else:
            values[field.name] = field.default
    return values, complete


def _read_tables(
    field: SettingField, nested: tuple[type[Any], bool], found: object, key: str, faults: Faults
) -> Any:
    """A table of a policy's options, or a list of them."""
    shape, many = nested
    tables = found if many else [found]
    if not isinstance(tables, list) or not all(isinstance(each, Mapping) for each in tables):
        faults.add_found(key, found, f"must be {_needed_tables(key, many=many)}")
        return _BAD
    places = [f"{key}[{number}]" for number in range(1, len(tables) + 1)] if many else [key]
    values = [read_table(shape, each, at, faults) for each, at in zip(tables, places, strict=True)]
    if any(value is None for value in values):
        return _BAD
    if field.about.not_empty and not values:
        faults.add_found(key, found, "must not be empty")
        return _BAD
    return tuple(values) if many else values[0]


def _needed_tables(key: str, *, many: bool) -> str:
    return f"tables [[{key}]]" if many else f"a table [{key}]"


def _needed(kind: SettingType | None) -> str:
    if kind is None:
        return "a table"
    return f"a list, each {kind.words}" if kind.is_list else kind.words


def _read_value(field: SettingField, kind: SettingType, found: object, key: str, faults: Faults) -> Any:
    if kind.gather is None:
        value = _read_one(kind, found, key, faults)
    elif isinstance(found, list):
        elements = [_read_one(kind, each, f"{key}[{n}]", faults) for n, each in enumerate(found, start=1)]
        value = _BAD if any(each is _BAD for each in elements) else kind.gather(elements)
    else:
        faults.add_found(key, found, f"must be a list, each {kind.words}", _list_hint(kind, key, found))
        return _BAD
    if field.about.not_empty and value is not _BAD and not value:
        faults.add_found(key, found, "must not be empty")
        return _BAD
    return value


def _list_hint(kind: SettingType, key: str, found: object) -> str:
    try:
        kind.read(found)
    except ValueError:
        return ""
    return f"did you mean [{shown(key, found)}]?"


def _read_one(kind: SettingType, found: object, key: str, faults: Faults) -> Any:
    try:
        return kind.read(found)
    except ValueError as error:
        faults.add_value(key, found, error)
        return _BAD


def _construct(shape: type[Options], values: Mapping[str, Any], key: str, faults: Faults) -> Options | None:
    try:
        return shape(**values)
    except ValueError as error:
        # What a dataclass of options checks over several fields, in its __post_init__.
        faults.add(key, str(error))
        return None
