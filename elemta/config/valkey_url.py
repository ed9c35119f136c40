"""A check of ``valkey_url``: scheme, hosts and database, without connecting."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from elemta.config.names import is_remote_host
from elemta.config.values import Unacceptable, nearest

_SINGLE = ("valkey", "valkeys", "redis", "rediss")
_SCHEMES = (*_SINGLE, "unix", *(f"{scheme}+{kind}" for scheme in _SINGLE for kind in ("sentinel", "cluster")))
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_DATABASE = re.compile(r"/?|/[0-9]{1,5}")
_WORDS = "valkey://, valkeys://, unix://, valkey+sentinel:// or valkey+cluster:// (redis… too)"


def check_valkey_url(text: str) -> None:
    """Accept the URL of a Valkey, or nothing; Unacceptable says what is wrong with it."""
    if not text:
        return
    scheme, _, rest = text.partition("://")
    if scheme not in _SCHEMES or not text.startswith(f"{scheme}://"):
        near = nearest(scheme, _SCHEMES) if rest else None
        raise Unacceptable(f"must begin with {_WORDS}", f'did you mean "{near}://"?' if near else "")
    try:
        url = urlsplit(text)
    except ValueError:
        raise Unacceptable("must be a URL such as valkey://127.0.0.1:6379/0") from None
    if scheme == "unix":
        if url.netloc.rpartition("@")[2] or len(url.path) < 2:
            raise Unacceptable("must be like unix:///run/valkey/valkey.sock", "three slashes and a path")
        return
    _check_hosts(url, several=scheme not in _SINGLE)
    if scheme in _SINGLE and not _DATABASE.fullmatch(url.path):
        raise Unacceptable("must have the number of a database after the slash, or nothing")
    if scheme.endswith("+cluster") and url.path not in ("", "/", "/0"):
        raise Unacceptable("must have no database: Valkey Cluster has only 0")


def _check_hosts(url: SplitResult, *, several: bool) -> None:
    hosts = url.netloc.rpartition("@")[2].split(",")
    if len(hosts) > 1 and not several:
        raise Unacceptable("must name one host", "several are for valkey+sentinel:// and valkey+cluster://")
    for host in hosts:
        match = _HOST.fullmatch(host)
        if match is None or not is_remote_host(match["v6"] or match["name"]):
            raise Unacceptable("must name a host, as in valkey://127.0.0.1:6379/0")
        if match["port"] is not None and not 1 <= int(match["port"]) <= 65535:
            raise Unacceptable("must have a port from 1 to 65535")


def check_key_prefix(text: str) -> None:
    """Accept a prefix of keys. Braces would take the place of the hash tag on Valkey Cluster."""
    if not re.fullmatch(r"[!-~]{0,128}", text) or "{" in text or "}" in text:
        raise Unacceptable(
            'must be up to 128 printable ASCII characters without spaces and braces, such as "elemta:"'
        )
