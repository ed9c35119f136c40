"""A cheap check of Twisted's endpoint descriptions: what can be seen to be wrong without opening anything.

Descriptions of kinds that other packages bring to Twisted pass; they are tried at the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from elemta.config.values import Unacceptable, nearest
from elemta.ip import is_ip_address

_PART = re.compile(r"((?:[^\\:=]|\\.)*)([:=]?)", re.DOTALL)
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]*")
# unix(7): sun_path has 108 octets with the NUL at the end
_LONGEST_UNIX_PATH = 107
_KINDS = ("tcp", "tcp6", "unix", "systemd")
_KINDS_OF_POSTFIX = ("inet", "inet6")
_TCP_KEYS = frozenset({"port", "interface", "backlog"})
_UNIX_KEYS = frozenset({"address", "mode", "backlog", "lockfile"})
_SYSTEMD_KEYS = frozenset({"domain", "index", "name"})
_SYSTEMD_DOMAINS = ("INET", "INET6", "UNIX")


def check_listener_endpoint(text: str) -> None:
    """Accept the endpoint of an SMTP listener."""
    if not text:
        raise Unacceptable('must be an endpoint such as "tcp:25"')
    if text.startswith("ssl:"):
        raise Unacceptable("must be the endpoint without TLS", 'write "tcp:…" and tls = "implicit"')
    if text.startswith("haproxy:"):
        raise Unacceptable("must be the endpoint itself", "name the load balancers in proxy_protocol_from")
    check_endpoint(text)


def check_optional_endpoint(text: str) -> None:
    """Accept an endpoint, or nothing for one that is off."""
    if text:
        check_endpoint(text)


def check_endpoint(text: str) -> None:
    """Accept a description of a server endpoint; Unacceptable says what is wrong with it."""
    positional, keyed = _split(text)
    kind, arguments = positional[0], positional[1:]
    check = _CHECKS.get(kind)
    if check is not None:
        check(arguments, keyed)
        return
    if kind in _KINDS_OF_POSTFIX:
        text = text.partition(":")[2]
    meant = nearest(kind, _KINDS)
    if (
        meant is not None
        or kind in _KINDS_OF_POSTFIX
        or len(positional) + len(keyed) < 2
        or not _KIND.fullmatch(kind)
    ):
        hint = f'did you mean "{meant}:{text.partition(":")[2]}"?' if meant else _address_hint(text)
        raise Unacceptable('must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"', hint)


def tcp_endpoint(text: str) -> tuple[str, str, int] | None:
    """Kind, interface ("" for all addresses) and port of an endpoint over TCP; None for any other."""
    positional, keyed = _split(text)
    kind, *arguments = positional
    if kind not in ("tcp", "tcp6"):
        return None
    port = keyed.get("port") or arguments[0]
    interface = keyed.get("interface", arguments[1] if len(arguments) > 1 else "")
    return kind, str(ip_address(interface)) if interface else "", int(port)


def systemd_index(text: str) -> int | None:
    """The index of a socket that systemd hands over; None for any other endpoint, and for one with a name."""
    positional, keyed = _split(text)
    kind, *arguments = positional
    index = keyed.get("index", arguments[1] if len(arguments) > 1 else None)
    return int(index) if kind == "systemd" and index is not None else None


def _split(text: str) -> tuple[list[str], Mapping[str, str]]:
    """Twisted's grammar: arguments between colons, ``key=value``, and a backslash that takes both away."""
    positional: list[str] = []
    keyed: dict[str, str] = {}
    key: str | None = None
    pending = ""
    position = 0
    while True:
        match = _PART.match(text, position)
        if match is None or (not match[2] and match.end() < len(text)):
            raise Unacceptable("ends in a backslash, which must stand before a character")
        pending += re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)
        position = match.end()
        if match[2] == "=":
            # Only the first equals sign of an argument divides it.
            key, pending = (pending, "") if key is None else (key, pending + "=")
            continue
        if key is None:
            positional.append(pending)
        else:
            keyed[key] = pending
        key, pending = None, ""
        if not match[2]:
            return (positional or [""]), keyed


def _check_tcp(arguments: list[str], keyed: Mapping[str, str]) -> None:
    _check_keys(keyed, _TCP_KEYS)
    ports = [*arguments[:1], *([keyed["port"]] if "port" in keyed else [])]
    if len(ports) != 1 or not re.fullmatch(r"[0-9]{1,5}", ports[0]) or int(ports[0]) > 65535:
        raise Unacceptable('must have one port from 0 to 65535, as in "tcp:25"')
    interface = keyed.get("interface", arguments[1] if len(arguments) > 1 else "")
    if len(arguments) > 2 or (interface and not is_ip_address(interface)):
        problem = 'must have an IP address as its interface, as in "tcp:25:interface=192.0.2.1"'
        raise Unacceptable(problem, r"the colons of an IPv6 address are escaped: interface=2001\:db8\:\:1")


def _check_unix(arguments: list[str], keyed: Mapping[str, str]) -> None:
    _check_keys(keyed, _UNIX_KEYS)
    path = keyed.get("address", arguments[0] if arguments else "")
    if not path.startswith("/"):
        raise Unacceptable('must have an absolute path, as in "unix:/run/elemta/smtp.sock"')
    if len(path.encode(errors="surrogateescape")) > _LONGEST_UNIX_PATH:
        raise Unacceptable(f"must have a path of at most {_LONGEST_UNIX_PATH} octets")
    mode = keyed.get("mode", arguments[1] if len(arguments) > 1 else "666")
    if not re.fullmatch(r"[0-7]{3,4}", mode):
        raise Unacceptable('must have an octal mode, as in "unix:/run/elemta/smtp.sock:mode=660"')


def _check_systemd(arguments: list[str], keyed: Mapping[str, str]) -> None:
    _check_keys(keyed, _SYSTEMD_KEYS)
    domain = keyed.get("domain", arguments[0] if arguments else "")
    index = keyed.get("index", arguments[1] if len(arguments) > 1 else None)
    if domain not in _SYSTEMD_DOMAINS or (index is None) == ("name" not in keyed):
        raise Unacceptable('must be like "systemd:domain=INET:index=0" or "systemd:domain=INET:name=smtp"')
    if index is not None and not re.fullmatch(r"[0-9]{1,4}", index):
        raise Unacceptable("must have a number as its index")


def _check_keys(keyed: Mapping[str, str], known: frozenset[str]) -> None:
    for key in keyed:
        if key not in known:
            meant = nearest(key, known)
            hint = f'did you mean "{meant}"?' if meant else f"known are {', '.join(sorted(known))}"
            raise Unacceptable(f'has the unknown argument "{key}"', hint)


_CHECKS: Mapping[str, Callable[[list[str], Mapping[str, str]], None]] = {
    "tcp": _check_tcp,
    "tcp6": _check_tcp,
    "unix": _check_unix,
    "systemd": _check_systemd,
}


def _address_hint(text: str) -> str:
    host, _, port = text.rpartition(":")
    if port.isdecimal() and not host:
        return f'did you mean "tcp:{port}"?'
    if port.isdecimal() and is_ip_address(host.strip("[]")):
        escaped = host.strip("[]").replace(":", r"\:")
        return f'did you mean "tcp:{port}:interface={escaped}"?'
    return f"known are {', '.join(_KINDS)}"
