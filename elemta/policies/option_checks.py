"""Checks of options that name something elsewhere, so that a start finds what could never be reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.interfaces import IReactorPluggableNameResolver
from zope.interface import implementer

from elemta.policy import ConfigError, Fault

# An underscore may be in a name of DNS. Short enough for what a policy puts in front of it.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,180}}\Z){_LABEL}(?:\.{_LABEL})*\.?", re.DOTALL)


def refuse(faults: Sequence[Fault]) -> None:
    """Raise ConfigError with the faults, if there is one."""
    if faults:
        raise ConfigError(faults)


def domain_faults(key: str, text: str) -> list[Fault]:
    """What is wrong with a domain in ASCII."""
    if _DOMAIN.fullmatch(text):
        return []
    return [Fault("", key, f'found "{text}": must be a domain such as "lists.example.org"')]


def url_faults(key: str, text: str) -> list[Fault]:
    """What is wrong with a URL of HTTP or HTTPS."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if good and text.isascii() and not any(sign <= " " or sign == "\x7f" for sign in text):
        return []
    # Not the password that may stand in it.
    shown = re.sub(r"//[^/?#]*@", "//...@", text)[:200]
    problem = f'found "{shown}": must be a URL of HTTP or HTTPS such as "https://example.com/hook"'
    return [Fault("", key, problem)]


def endpoint_faults(key: str, text: str) -> list[Fault]:
    """What is wrong with a client endpoint of Twisted."""
    from twisted.internet.endpoints import clientFromString  # noqa: PLC0415 - costs 20 ms, and few ask

    try:
        endpoint = clientFromString(_NoReactor(), text)
    except Exception:  # what a parser of endpoints raises is not agreed upon
        endpoint = None
    if endpoint is not None and _could_be_reached(endpoint):
        return []
    words = 'must be a client endpoint such as "unix:/run/filter.sock" or "tcp:host=127.0.0.1:port=10040"'
    return [Fault("", key, f'found "{text}": {words}')]


def _could_be_reached(endpoint: object) -> bool:
    """Whether an endpoint of Twisted's own has a port that there is, and a path or a host."""
    endpoint = getattr(endpoint, "_wrappedEndpoint", endpoint)
    port = getattr(endpoint, "_port", 1)
    named = (getattr(endpoint, name, "x") for name in ("_path", "_host"))
    return all(named) and (not isinstance(port, int) or 0 < port < 65536)


@implementer(IReactorPluggableNameResolver)
class _NoReactor:
    """In the place of a reactor while an endpoint is read, and nothing is connected."""

    nameResolver = None

    def installNameResolver(self, resolver: Any) -> Any:
        return resolver
