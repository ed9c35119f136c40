"""``valkey_url``: where the Valkey of the fleet is, which kind of set-up it is, and how to log in there.

Everything that can be known to be wrong without connecting is found here.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from elemta.config.names import is_remote_host
from elemta.config.values import Unacceptable, nearest


class ValkeyKind(enum.Enum):
    """The kind of set-up that a URL names."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class ValkeyURL:
    """A ``valkey_url`` taken apart.

    ``hosts`` are host and port: the server, the Sentinels, or nodes of the cluster to begin with; none for a
    Unix socket, whose ``path`` is given instead. ``service`` is the Sentinels' name of the primary. With
    ``tls`` the server is verified for ``tls_server_name`` (empty: the host) by the authorities in the file
    ``ca`` (empty: the system's), and shown the certificate in ``certificate`` with ``private_key`` if there
    is one.
    """

    kind: ValkeyKind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    service: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls: bool = False
    tls_server_name: str = ""
    ca: str = ""
    certificate: str = ""
    private_key: str = ""


_SINGLE = ("valkey", "valkeys", "redis", "rediss")
_SCHEMES = (*_SINGLE, "unix", *(f"{scheme}+{kind}" for scheme in _SINGLE for kind in ("sentinel", "cluster")))
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_DATABASE = re.compile(r"/?|/(?P<number>[0-9]{1,5})")
_SERVICE = re.compile(r"/?|/(?P<name>[A-Za-z0-9._-]*[A-Za-z._-][A-Za-z0-9._-]*)(?:/(?P<number>[0-9]{1,5})?)?")
_WORDS = "valkey://, valkeys://, unix://, valkey+sentinel:// or valkey+cluster:// (redis… too)"
_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
_DEFAULT_SERVICE = "mymaster"
_TLS_PARAMETERS = ("ca", "certificate", "private_key", "tls_server_name")
_FILES = ("ca", "certificate", "private_key")


def check_valkey_url(text: str) -> None:
    """Accept the URL of a Valkey, or nothing; Unacceptable says what is wrong with it."""
    if text:
        parse_valkey_url(text)


def parse_valkey_url(text: str) -> ValkeyURL:
    """Take a URL apart; Unacceptable says what is wrong with it. User and password are percent-decoded."""
    scheme, _, rest = text.partition("://")
    if scheme not in _SCHEMES or not text.startswith(f"{scheme}://"):
        near = nearest(scheme, _SCHEMES) if rest else None
        raise Unacceptable(f"must begin with {_WORDS}", f'did you mean "{near}://"?' if near else "")
    try:
        url = urlsplit(text)
    except ValueError:
        raise Unacceptable("must be a URL such as valkey://127.0.0.1:6379/0") from None
    if scheme != "unix" and "@" in url.path + url.query + url.fragment:
        raise Unacceptable('must have "/", "?" and "#" in a password as %2F, %3F and %23')
    username, password = _login(url)
    if scheme == "unix":
        return _unix(url, username, password)
    base, _, kind_name = scheme.partition("+")
    kind = ValkeyKind(kind_name or "single")
    tls = base.endswith("s") and base != "redis"
    parameters = _parameters(url, _allowed(kind, tls=tls))
    hosts = _hosts(url, kind)
    service, database = _path(url, kind)
    return ValkeyURL(
        kind,
        hosts,
        username=username,
        password=password,
        database=database,
        service=service,
        tls=tls,
        **parameters,
    )


def _unix(url: SplitResult, username: str, password: str) -> ValkeyURL:
    if url.netloc.rpartition("@")[2] or len(url.path) < 2:
        raise Unacceptable("must be like unix:///run/valkey/valkey.sock", "three slashes and a path")
    number = _parameters(url, ("db",)).get("db", "0")
    if not re.fullmatch(r"[0-9]{1,5}", number):
        raise Unacceptable("must have the number of a database as db")
    return ValkeyURL(
        ValkeyKind.SINGLE, path=unquote(url.path), username=username, password=password, database=int(number)
    )


def _login(url: SplitResult) -> tuple[str, str]:
    userinfo, at, _ = url.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    if at and not password:
        raise Unacceptable("must have a password behind the user", "as in user:password@, or :password@")
    return unquote(username), unquote(password)


def _hosts(url: SplitResult, kind: ValkeyKind) -> tuple[tuple[str, int], ...]:
    names = url.netloc.rpartition("@")[2].split(",")
    if len(names) > 1 and kind is ValkeyKind.SINGLE:
        raise Unacceptable("must name one host", "several are for valkey+sentinel:// and valkey+cluster://")
    default = _SENTINEL_PORT if kind is ValkeyKind.SENTINEL else _DEFAULT_PORT
    return tuple(_host(name, default) for name in names)


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or not is_remote_host(match["v6"] or match["name"]):
        raise Unacceptable("must name a host, as in valkey://127.0.0.1:6379/0")
    port = default_port if match["port"] is None else int(match["port"])
    if not 1 <= port <= 65535:
        raise Unacceptable("must have a port from 1 to 65535")
    return match["v6"] or match["name"], port


def _path(url: SplitResult, kind: ValkeyKind) -> tuple[str, int]:
    """The service and the database that the path names."""
    if kind is ValkeyKind.CLUSTER:
        if url.path not in ("", "/", "/0"):
            raise Unacceptable("must have no database: Valkey Cluster has only 0")
        return "", 0
    if kind is ValkeyKind.SENTINEL:
        match = _SERVICE.fullmatch(url.path)
        if match is None:
            raise Unacceptable("must name the primary as the Sentinels do, as in /mymaster or /mymaster/0")
        return match["name"] or _DEFAULT_SERVICE, int(match["number"] or 0)
    match = _DATABASE.fullmatch(url.path)
    if match is None:
        raise Unacceptable("must have the number of a database after the slash, or nothing")
    return "", int(match["number"] or 0)


def _allowed(kind: ValkeyKind, *, tls: bool) -> tuple[str, ...]:
    of_sentinels = ("sentinel_username", "sentinel_password") if kind is ValkeyKind.SENTINEL else ()
    return (*(_TLS_PARAMETERS if tls else ()), *of_sentinels)


_NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


def _parameters(url: SplitResult, allowed: tuple[str, ...]) -> Mapping[str, str]:
    if url.fragment:
        raise Unacceptable('must have "#" as %23')
    if not url.query:
        return _NO_PARAMETERS
    try:
        pairs = parse_qsl(url.query, keep_blank_values=True, strict_parsing=True, max_num_fields=20)
    except ValueError:
        raise Unacceptable("must have its parameters as ?name=value&name=value") from None
    found = dict(pairs)
    for name, value in found.items():
        _check_parameter(name, value, allowed)
    if len(found) < len(pairs):
        raise Unacceptable("must have each parameter once")
    if ("certificate" in found) != ("private_key" in found):
        raise Unacceptable("must have certificate and private_key together")
    if "sentinel_username" in found and "sentinel_password" not in found:
        raise Unacceptable("must have sentinel_password with sentinel_username")
    return found


def _check_parameter(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        near = nearest(name, allowed)
        known = f"the parameters are {', '.join(allowed)}" if allowed else "there are none for this scheme"
        if name in _TLS_PARAMETERS:
            known = "that one is for TLS: valkeys://"
        raise Unacceptable(f'has an unknown parameter "{name}"', f'did you mean "{near}"?' if near else known)
    if not value:
        raise Unacceptable(f"must have a value for {name}")
    if name in _FILES and not value.startswith("/"):
        raise Unacceptable(f"must have an absolute path as {name}")
    if name == "tls_server_name" and not is_remote_host(value):
        raise Unacceptable("must have a host name as tls_server_name")


def check_key_prefix(text: str) -> None:
    """Accept a prefix of keys. Braces would take the place of the hash tag on Valkey Cluster."""
    if not re.fullmatch(r"[!-~]{0,128}", text) or "{" in text or "}" in text:
        raise Unacceptable(
            'must be up to 128 printable ASCII characters without spaces and braces, such as "elemta:"'
        )
