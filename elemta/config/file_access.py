"""Finds files with secrets that others can read, for the warnings of ``--check``.

The owner may read such a file. So may a group of the service's own: root's group, a group of this process, or
that of the spool directory, which is the daemon's also where root runs the check. The permission bits of the
file itself decide, because a directory above it that keeps others out may be opened later.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from elemta.config.redaction import CHECKERS_WITH_PATHS, SECRET_NAME, redacted_url
from elemta.config.valkey_url import parse_valkey_url
from elemta.errors import Fault

if TYPE_CHECKING:
    from elemta.config.config import Config

_SPOOL = "spool.directory"


def readable_secrets(config: Config) -> Iterator[Fault]:
    """A warning for each file or directory with secrets that others can read."""
    groups = _own_groups(config.spool.directory)
    found = set()
    for key, path, what in (*_named(config), *_of_policies(config), *_holding(config)):
        reader = _other_reader(path, groups)
        if reader and (path, what) not in found:
            found.add((path, what))
            mode = "0700" if key == _SPOOL else "0640 or 0600"
            problem = f"{path}, {what}, can be read by {reader}"
            yield Fault(config.place_of(key), key, problem, f"chmod {mode}, and a group of the daemon's own")


def _named(config: Config) -> Iterator[tuple[str, str, str]]:
    """Key, path and content of what the configuration names."""
    tls = config.tls
    if tls.certificate:
        key = "tls.private_key" if tls.private_key else "tls.certificate"
        yield key, tls.private_key or tls.certificate, "a private key"
    for number, more in enumerate(config.certificates, start=1):
        key = f"certificate[{number}]"
        key = f"{key}.private_key" if more.private_key else f"{key}.certificate"
        yield key, more.private_key or more.certificate, "a private key"
    for number, route in enumerate(config.routes, start=1):
        if route.credentials:
            yield f"route[{number}].credentials", route.credentials, "a password"
    for number, checker in enumerate(config.auth.checkers, start=1):
        kind, _, rest = checker.partition(":")
        if kind in CHECKERS_WITH_PATHS:
            yield f"auth.checkers[{number}]", rest.partition(":")[0], "users and their passwords"
    if config.console.endpoint:
        yield "console.users", config.console.users, "users and their passwords"
    if config.resources.valkey_url:
        yield (
            "resources.valkey_url",
            parse_valkey_url(config.resources.valkey_url).private_key,
            "a private key",
        )
    yield _SPOOL, config.spool.directory, "the queue and its mail"


def _of_policies(config: Config) -> Iterator[tuple[str, str, str]]:
    for key, value in _policy_texts(config):
        if _is_file(key) and SECRET_NAME.search(_last(key).removesuffix("_file")):
            yield key, value, "a secret"


def _holding(config: Config) -> Iterator[tuple[str, str, str]]:
    """The configuration file, for each key whose value there is a secret."""
    for key in _secret_keys(config):
        if key not in config.environment and os.path.isfile(config.source):
            yield key, config.source, "a configuration with a password"


def _secret_keys(config: Config) -> Iterator[str]:
    url = config.resources.valkey_url
    if url and redacted_url(url) != url:
        yield "resources.valkey_url"
    for number, checker in enumerate(config.auth.checkers, start=1):
        kind, colon, _ = checker.partition(":")
        if colon and kind not in CHECKERS_WITH_PATHS:
            yield f"auth.checkers[{number}]"
    for key, value in _policy_texts(config):
        if redacted_url(value) != value or (SECRET_NAME.search(_last(key)) and not _is_file(key)):
            yield key


def _policy_texts(config: Config) -> Iterator[tuple[str, str]]:
    for name, table in config.policy.items():
        yield from _texts(table, f"policy.{name}")


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Every text below a raw value that is not empty, with its key."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(each, f"{key}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)
    elif isinstance(value, str) and value:
        yield key, value


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _is_file(key: str) -> bool:
    return _last(key).endswith("file")


def _own_groups(spool: str) -> frozenset[int]:
    groups = {0, os.getegid(), *os.getgroups()}
    # The spool comes with the first start.
    with contextlib.suppress(OSError):
        groups.add(os.stat(spool).st_gid)
    return frozenset(groups)


def _other_reader(path: str, own_groups: frozenset[int]) -> str:
    """The users, beside the owner and the service's groups, that can read a file; "" if there are none."""
    try:
        about = os.stat(path) if path else None
    except OSError:
        # The user of the file reports that it can't be read.
        about = None
    if about is None:
        return ""
    if about.st_mode & stat.S_IROTH:
        return f"all users (mode {stat.S_IMODE(about.st_mode):04o})"
    if about.st_mode & stat.S_IRGRP and about.st_gid not in own_groups:
        return f"the group {_group(about.st_gid)} (mode {stat.S_IMODE(about.st_mode):04o})"
    return ""


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
