"""Reads a file and an environment into a ``Config``, or finds every fault in them."""

from __future__ import annotations

import dataclasses
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elemta.config.choices import Counts
from elemta.config.config import DEFAULTS, Config
from elemta.config.crosschecks import check_together, of_sound_settings
from elemta.config.environment import EnvironmentOverride, read_environment
from elemta.config.faults import Faults
from elemta.config.layout import SECTIONS, Section
from elemta.config.names import is_host_name
from elemta.config.reader import homes_of, read_policy_common, read_table, sound_settings
from elemta.config.schema import DEFAULT_LISTENER, LimitConfig, RouteConfig
from elemta.config.values import nearest
from elemta.errors import ConfigError, Fault

Document = Mapping[str, object]

MAX_PUSHED = 1000
"""The most [[limit]] tables of one set of pushed limits."""
_NOTHING_READ = {"name": "", "per": (), "counts": Counts.MESSAGES, "rates": ()}
# A key begins a line, a header, or a pair of an inline table.
_LONG_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*(?:(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){64}""",
    re.MULTILINE,
)
_TOML_POSITION = re.compile(r" \(at (?P<where>line \d+, column \d+|end of document)\)$")


class _UnsoundLimit(LimitConfig):
    """What can be read of a table that lacks a setting, for the checks of its other settings."""

    __slots__ = ()


def load(path: str | None, environ: Mapping[str, str], text: str | None = None) -> Config:
    """Read a configuration file (None: all defaults) and the overrides of an environment.

    ``text`` is the file's where that was read before: it is not read again. Raises ConfigError with every
    fault that was found, and with the rest of the configuration, where that is of use. The files that it
    names are not opened: certificates, users and recipients are read where they are used.
    """
    source = DEFAULTS if path is None else path
    if path is not None and text is None:
        text = _read_text(path)
    document = {} if text is None else _parsed(source, text)
    faults = Faults(source)
    overrides = read_environment(environ, faults)
    faults.places.update({f"{each.table}.{each.key}": each.variable for each in overrides})
    tables = _tables(document, overrides, faults)
    config = _read(document, tables, source, faults)
    if config is not None:
        config = dataclasses.replace(config, text=text)
        check_together(config, faults)
        if faults.any:
            limits = tuple(limit for limit in config.limits if not isinstance(limit, _UnsoundLimit))
            raise ConfigError(tuple(faults), rest=dataclasses.replace(config, limits=limits))
    return faults.unless_any(config)


def load_limits(text: str, source: str, base: Config) -> tuple[LimitConfig, ...]:
    """The ``[[limit]]`` tables of a text that has nothing else, as they would be beside ``base``'s others.

    Raises ConfigError with every fault that was found.
    """
    document = _parsed(source, text)
    faults = Faults(source)
    for name in document:
        if name != "limit":
            faults.add(name, "must not be here", "a set of limits has [[limit]] tables and nothing else")
    tables = document.get("limit")
    if isinstance(tables, list) and len(tables) > MAX_PUSHED:
        faults.add("limit", f"found {len(tables)} tables: must be at most {MAX_PUSHED}")
        return faults.unless_any(None)
    known = {"limit": tables} if "limit" in document else {}
    read = _read(known, _tables(known, (), faults), source, faults)
    if read is not None:
        both = base.explicit | {key for key in read.explicit if key.startswith("limit[")}
        config = dataclasses.replace(base, limits=read.limits, source=source, explicit=both, environment={})
        # What is between other settings was checked with them.
        others = Faults(source)
        check_together(config, others)
        of_limits = (fault for fault in others if fault.key.startswith("limit["))
        faults.extend(of_sound_settings(of_limits, faults))
    return faults.unless_any(None if read is None else read.limits)


def _read_text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        fault = Fault(path, "", f"is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}")
    except OSError as error:
        fault = Fault(path, "", f"can't be read: {error.strerror or error}")
    except ValueError as error:
        # A NUL in the name.
        fault = Fault(path, "", f"can't be read: {error}")
    raise ConfigError([fault])


def _parsed(path: str, text: str) -> dict[str, Any]:
    long = _LONG_KEY.search(text)
    if long is not None:
        # tomllib takes the square of the number of parts for each.
        line = text.count("\n", 0, long.end()) + 1
        problem = f"is not TOML that can be read: line {line} has a key of too many parts"
        raise ConfigError([Fault(path, "", problem)])
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        fault = Fault(path, "", *_syntax_problem(str(error), text))
    except RecursionError:
        fault = Fault(path, "", "is not TOML that can be read: lists or tables are nested too deep")
    except ValueError as error:
        fault = Fault(path, "", f"can't be read: {error}")
    raise ConfigError([fault])


def _syntax_problem(error: str, text: str) -> tuple[str, str]:
    position = _TOML_POSITION.search(error)
    if position is None:
        return f"is not TOML: {error}", ""
    problem, where = error[: position.start()], position["where"]
    if problem != "Cannot overwrite a value":
        return f"is not TOML, {where}: {problem}", ""
    # tomllib has read the value by then: it is in this line, or ends there.
    line = int(where.split()[1].rstrip(",")) if where.startswith("line") else text.count("\n") + 1
    key, equals, _ = text.split("\n")[line - 1].partition("=")
    again = f"{key.strip()} is there already" if equals else "a key is there already"
    return f"is not TOML, line {line}: {again}", "a key may be in its table once"


def _tables(
    document: Document, overrides: tuple[EnvironmentOverride, ...], faults: Faults
) -> dict[str, list[Document]]:
    """The tables of each section, one or many, with the environment's values laid over the file's."""
    known = {section.table: section for section in SECTIONS}
    tables: dict[str, list[Document]] = {section.table: [] for section in SECTIONS}
    for name, found in document.items():
        if name in known:
            tables[name] = list(_section_tables(known[name], found, faults))
        elif name != "policy":
            faults.add(name, *_unknown_table(name, found))
    for override in overrides:
        table = dict(tables[override.table][0]) if tables[override.table] else {}
        tables[override.table] = [table | {override.key: override.value}]
    return tables


def _section_tables(section: Section, found: object, faults: Faults) -> Iterator[Document]:
    if section.many:
        if not isinstance(found, list):
            hint = f"write [[{section.table}]]" if isinstance(found, dict) else ""
            faults.add_found(section.table, found, f"must be tables [[{section.table}]]", hint)
            return
        for number, each in enumerate(found, start=1):
            if isinstance(each, dict):
                yield each
            else:
                faults.add_found(f"{section.table}[{number}]", each, f"must be a table [[{section.table}]]")
    elif isinstance(found, dict):
        yield found
    else:
        hint = f"write [{section.table}], once" if isinstance(found, list) else ""
        faults.add_found(section.table, found, f"must be a table [{section.table}]", hint)


def _unknown_table(name: str, found: object) -> tuple[str, str]:
    by_name = {
        section.table: f"[[{section.table}]]" if section.many else f"[{section.table}]"
        for section in SECTIONS
    }
    by_name["policy"] = "[policy.NAME]"
    if not isinstance(found, dict | list) or (isinstance(found, list) and homes_of(name)):
        homes = homes_of(name)
        return "unknown key outside of every table", f"it belongs in {' or '.join(homes)}" if homes else ""
    match = nearest(name, by_name)
    known = f"known are {', '.join(by_name.values())}"
    return "unknown table", f"did you mean {by_name[match]}? {known}" if match else known


def _read(
    document: Document, tables: Mapping[str, list[Document]], source: str, faults: Faults
) -> Config | None:
    """Every section; None when one of many has a fault without a default to go on with."""
    values: dict[str, Any] = {}
    explicit: set[str] = set()
    complete = True
    for section in SECTIONS:
        read = []
        for number, table in enumerate(tables[section.table] or ([] if section.many else [{}]), start=1):
            key = f"{section.table}[{number}]" if section.many else section.table
            explicit.update(f"{key}.{name}" for name in table)
            one = read_table(section.shape, table, key, faults)
            read.append(_in_place_of(section, table, key) if one is None else one)
        if section.many and document.get(section.table) == []:
            explicit.add(section.table)
        complete = complete and None not in read
        values[section.attribute] = tuple(read) if section.many else read[0]
    policy = _read_policies(document.get("policy", {}), faults)
    explicit.update(f"policy.{name}" for name in policy)
    if not complete:
        return None
    config = Config(
        **values, policy=policy, source=source, explicit=frozenset(explicit), environment=dict(faults.places)
    )
    return _with_computed_defaults(config)


def _in_place_of(section: Section, table: Document, key: str) -> object | None:
    """What stands for a table that can't be read, so that those behind it keep their numbers in faults."""
    if section.shape is LimitConfig:
        return _UnsoundLimit(**{**_NOTHING_READ, **sound_settings(LimitConfig, table, key)})
    return RouteConfig((), "hold:") if section.shape is RouteConfig else None


def _read_policies(found: object, faults: Faults) -> dict[str, Mapping[str, object]]:
    """The raw ``[policy.NAME]`` tables; only the four keys that each of them has are checked here."""
    if not isinstance(found, dict):
        faults.add_found("policy", found, "must be tables [policy.NAME]")
        return {}
    policies: dict[str, Mapping[str, object]] = {}
    for name, table in found.items():
        if isinstance(table, dict):
            read_policy_common(table, f"policy.{name}", faults)
            policies[name] = table
        else:
            faults.add_found(f"policy.{name}", table, "must be a table [policy.NAME]")
    return policies


def _with_computed_defaults(config: Config) -> Config:
    server, domains, listeners = config.server, config.domains, config.listeners
    if not server.hostname:
        server = dataclasses.replace(server, hostname=_own_name())
    if not server.node_id:
        server = dataclasses.replace(server, node_id=server.hostname)
    if "domains.local" not in config.explicit:
        domains = dataclasses.replace(domains, local=(server.hostname,))
    # `listener = []` beside a policy service: a daemon that receives no mail.
    receives_none = "listener" in config.explicit and config.policy_services
    if not listeners and not receives_none:
        listeners = (DEFAULT_LISTENER,)
    return dataclasses.replace(config, server=server, domains=domains, listeners=listeners)


def _own_name() -> str:
    name = socket.getfqdn()
    return name if is_host_name(name) else "localhost"
