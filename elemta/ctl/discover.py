"""What ``elemta-sendmail`` has to know of the daemon of this host: where it takes mail, what it completes."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from elemta.config import Config, SubmissionConfig, load
from elemta.config.choices import ListenerTLS, Role
from elemta.ctl.context import CONFIG_VARIABLE, DEFAULT_CONFIG
from elemta.errors import ConfigError
from elemta.ip import is_ip_address, with_port

_MAILNAME: Final = Path("/etc/mailname")
_TCP: Final = re.compile(r"tcp6?:(?:port=)?([0-9]+)(?::|$)")
_INTERFACE: Final = re.compile(r":interface=((?:[^\\:]|\\:)*)")
_LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class ServerEndpoint:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return with_port(self.host, self.port)


USUAL: Final = (ServerEndpoint("127.0.0.1", 25), ServerEndpoint("127.0.0.1", 2525))
"""What is tried where the configuration can't be read: it may hold a password, so users may not."""


def places(environ: Mapping[str, str]) -> tuple[ServerEndpoint, ...]:
    """The addresses to hand in mail, in the order to try."""
    config = _readable(environ)
    return USUAL if config is None else tuple(dict.fromkeys(_of(config))) or USUAL


def submission(environ: Mapping[str, str]) -> SubmissionConfig:
    """What is done to mail before it is handed in; the defaults where the configuration can't be read."""
    config = _readable(environ)
    return SubmissionConfig() if config is None else config.submission


def _readable(environ: Mapping[str, str]) -> Config | None:
    path = environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG
    if not os.access(path, os.R_OK):
        return None
    try:
        return load(path, {})
    except ConfigError:
        # The daemon may well run on with what it read before.
        return None


def _of(config: Config) -> Iterator[ServerEndpoint]:
    for listener in config.listeners:
        if listener.role is not Role.MX or listener.tls is ListenerTLS.IMPLICIT:
            continue
        if listener.endpoint.startswith("systemd:"):
            # elemta.socket, whose addresses are not in our configuration
            yield USUAL[0]
        elif found := _TCP.match(listener.endpoint):
            yield ServerEndpoint(_host(listener.endpoint), int(found[1]))


def _host(endpoint: str) -> str:
    found = _INTERFACE.search(endpoint)
    text = found[1].replace("\\:", ":") if found else ""
    if not text and endpoint.startswith("tcp6:"):
        return "::1"
    return _LOOPBACK.get(text, text if is_ip_address(text) else "127.0.0.1")


def own_name() -> str:
    """The domain of addresses without one: Debian's ``/etc/mailname`` (Debian Policy §11.6), or the FQDN."""
    try:
        name = _MAILNAME.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    return name or socket.getfqdn()
