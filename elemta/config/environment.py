"""Settings from the environment: ``ELEMTA_<TABLE>_<KEY>``, and three older names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from elemta.config.faults import Faults
from elemta.config.layout import SECTIONS
from elemta.config.setting import settings_of
from elemta.config.types import SettingType, type_of
from elemta.config.values import did_you_mean, nearest

PREFIX: Final = "ELEMTA_"

ALIASES: Final[Mapping[str, str]] = {
    "VALKEY_URL": "ELEMTA_RESOURCES_VALKEY_URL",
    "VALKEY_KEY_PREFIX": "ELEMTA_RESOURCES_VALKEY_KEY_PREFIX",
    "NODE_ID": "ELEMTA_SERVER_NODE_ID",
}
"""Names that are understood too, where the one of the schema isn't set; empty, they count as not set."""

# Kubernetes puts these into every container beside a service that is named elemta or elemta-….
_OF_KUBERNETES = re.compile(
    r".*_(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)
_IN_THE_FILE_ONLY = {
    "POLICY": "[policy.NAME]",
    "LISTENER": "[[listener]]",
    "CERTIFICATE": "[[certificate]]",
    "LIMIT": "[[limit]]",
    "ROUTE": "[[route]]",
}


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that sets one scalar key."""

    name: str
    table: str
    key: str
    kind: SettingType


def variables() -> dict[str, Variable]:
    """Every known ``ELEMTA_`` variable, by name."""
    known = {}
    for section in SECTIONS:
        for field in settings_of(section.shape) if not section.many else ():
            kind = type_of(field)
            if not kind.is_list:
                name = f"{PREFIX}{section.table}_{field.key}".upper()
                known[name] = Variable(name, section.table, field.key, kind)
    return known


@dataclass(frozen=True, slots=True)
class EnvironmentOverride:
    """A key whose value is from the environment; ``value`` is what TOML would have held."""

    variable: str
    table: str
    key: str
    value: object


def read_environment(environ: Mapping[str, str], faults: Faults) -> tuple[EnvironmentOverride, ...]:
    """The overrides of an environment; a variable that looks like one and isn't is a fault.

    Variables that begin with ``ELEMTA_`` and neither name a table nor are near to a known name are left
    alone: other programs and Kubernetes set such.
    """
    known = variables()
    overrides: dict[str, EnvironmentOverride] = {}
    for alias, name in ALIASES.items():
        if environ.get(alias):
            overrides[name] = _override(known[name], alias, environ[alias])
    for name in sorted(environ):
        if name in known:
            overrides[name] = _override(known[name], name, environ[name])
        elif name.startswith(PREFIX) and not _OF_KUBERNETES.fullmatch(name):
            _note_unknown(name, known, faults)
    return tuple(overrides.values())


def _override(variable: Variable, name: str, text: str) -> EnvironmentOverride:
    return EnvironmentOverride(name, variable.table, variable.key, variable.kind.from_text(text))


def _note_unknown(name: str, known: Mapping[str, Variable], faults: Faults) -> None:
    table, _, key = name.removeprefix(PREFIX).partition("_")
    for section in SECTIONS:
        if section.many or section.table.upper() != table:
            continue
        keys = {field.key: type_of(field) for field in settings_of(section.shape)}
        if key.lower() in keys:
            problem = f"{section.table}.{key.lower()} is a list, which can't be set from the environment"
            faults.add_variable(name, problem, "set it in the file")
        else:
            scalars = {each.key: each.name for each in known.values() if each.table == section.table}
            match = nearest(key, scalars)
            listed = f"known are {', '.join(scalars.values())}" if scalars else ""
            hint = f'did you mean "{scalars[match]}"?' if match else listed
            faults.add_variable(name, f"[{section.table}] has no key {key.lower()}", hint)
        return
    if key and table in _IN_THE_FILE_ONLY:
        faults.add_variable(name, f"keys of {_IN_THE_FILE_ONLY[table]} can't be set from the environment")
    elif nearest(name, known, cutoff=0.85):
        faults.add_variable(name, "is no setting", did_you_mean(name, known))
