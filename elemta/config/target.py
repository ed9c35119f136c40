"""The target of a route: the forms that ``to`` of a ``[[route]]`` can have."""

from __future__ import annotations

import enum
import os.path
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from elemta.config.names import is_host_name, is_remote_host
from elemta.config.values import Unacceptable

# Settings of whatever connects to an address.
_OVER_TCP = ("ca", "address_family", "source", "ignore_offers")
_PLACEHOLDERS = frozenset({"domain", "local"})


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A route's target, taken apart.

    ``host`` (a name or an IP address without brackets) and ``port`` are those of ``smtp`` and ``lmtp``, and
    ``names_port`` says whether the text has the port; ``path`` is the socket of ``lmtp+unix``, or the
    template of ``maildir`` with its ``{domain}`` and ``{local}``.
    """

    kind: TargetKind
    host: str = ""
    port: int = 0
    path: str = ""
    names_port: bool = field(default=False, compare=False)


def _parse_network_target(kind: TargetKind, text: str) -> RouteTarget:
    example = f"{kind}://HOST:PORT"
    if not text.startswith(f"{kind}://"):
        rest = text.partition(":")[2].lstrip("/")
        unix = kind is TargetKind.LMTP and text.startswith(("lmtp:unix:", "lmtp:/"))
        meant = f"lmtp+unix:///{rest.removeprefix('unix:').lstrip('/')}" if unix else f"{kind}://{rest}"
        raise Unacceptable(f"must be like {example}", f'did you mean "{meant}"?')
    try:
        url: SplitResult = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        raise Unacceptable(f"must be like {example}, with a port from 1 to 65535") from None
    if url.username is not None or url.password is not None:
        raise Unacceptable(f"must be like {example}, without a user or password")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise Unacceptable(f"must be like {example}, with nothing after the port")
    if port == 0 or not (is_remote_host(host)):
        raise Unacceptable(
            f"must be like {example}, with a host name or an address and a port from 1 to 65535"
        )
    return RouteTarget(
        kind,
        host=host,
        port=port if port is not None else _DEFAULT_PORTS[kind],
        names_port=port is not None,
    )


def _parse_socket(kind: TargetKind, text: str) -> RouteTarget:
    rest = text.partition(":")[2]
    if not rest.startswith("///") or len(rest) < 4:
        raise Unacceptable("must be like lmtp+unix:///run/dovecot/lmtp", "three slashes and a path")
    return RouteTarget(kind, path=rest[2:])


def _parse_bare(kind: TargetKind, text: str) -> RouteTarget:
    if text != f"{kind}:":
        raise Unacceptable(f'must be "{kind}:" and nothing more', f'did you mean "{kind}:"?')
    return RouteTarget(kind)


def _parse_template(kind: TargetKind, text: str) -> RouteTarget:
    path = text.partition(":")[2]
    _check_template(kind, path)
    return RouteTarget(kind, path=path)


def _check_template(kind: TargetKind, path: str) -> None:
    if not path.startswith("/"):
        raise Unacceptable(f"must have an absolute path, such as {kind}:/var/mail/{{domain}}/{{local}}")
    if ".." in path.split("/"):
        raise Unacceptable("must have a path without ..")
    try:
        fields = [part[1:] for part in string.Formatter().parse(path) if part[1] is not None]
    except ValueError:
        raise Unacceptable("has a brace that isn't closed; only {domain} and {local} are replaced") from None
    for name, specification, conversion in fields:
        if name not in _PLACEHOLDERS or specification or conversion:
            raise Unacceptable(f"has {{{name}}}; only {{domain}} and {{local}} are replaced")


class TargetKind(enum.StrEnum):
    """How mail leaves on a route: one row for each form of ``to``, by its first word.

    ``words`` is the form as messages and documents show it, and ``parse`` takes such a text apart; it gets
    the kind and the text, and raises Unacceptable. ``transport`` is the module with the transport (see
    :mod:`elemta.delivery.transport`); empty where mail stays in the queue. ``settings`` are those of a
    ``[[route]]`` that have an effect with some kinds only, and have one with this kind.
    """

    words: str
    parse: Callable[[TargetKind, str], RouteTarget]
    transport: str
    settings: frozenset[str]

    def __new__(
        cls,
        scheme: str,
        words: str,
        parse: Callable[[TargetKind, str], RouteTarget],
        transport: str,
        *settings: str,
    ) -> TargetKind:
        kind = str.__new__(cls, scheme)
        kind._value_ = scheme
        kind.words, kind.parse, kind.transport, kind.settings = words, parse, transport, frozenset(settings)
        return kind

    SMTP = (
        "smtp",
        "smtp://HOST:PORT",
        _parse_network_target,
        "elemta.delivery.smtp_transport",
        "tls",
        *_OVER_TCP,
        "credentials",
    )
    LMTP = (
        "lmtp",
        "lmtp://HOST:PORT",
        _parse_network_target,
        "elemta.delivery.smtp_transport",
        "tls",
        *_OVER_TCP,
        "credentials",
    )
    LMTP_UNIX = (
        "lmtp+unix",
        "lmtp+unix:///PATH",
        _parse_socket,
        "elemta.delivery.smtp_transport",
        "ignore_offers",
    )
    MX = (
        "mx",
        "mx:",
        _parse_bare,
        "elemta.delivery.mx_transport",
        "tls",
        *_OVER_TCP,
        "refuse_networks",
    )
    MAILDIR = (
        "maildir",
        "maildir:/PATH/{domain}/{local}",
        _parse_template,
        "elemta.delivery.maildir_transport",
        "create_mailboxes",
    )
    HOLD = "hold", "hold:", _parse_bare, ""


*_FIRST, _LAST = (kind.words for kind in TargetKind)
TARGET_WORDS = f"{', '.join(_FIRST)} or {_LAST}"

_BY_SCHEME = {kind.value: kind for kind in TargetKind}
_TEMPLATES = frozenset(kind.value for kind in TargetKind if kind.parse is _parse_template)
_DEFAULT_PORTS = {TargetKind.SMTP: 25, TargetKind.LMTP: 24}


def parse_target(text: str) -> RouteTarget:
    """Take a target apart; Unacceptable (a ValueError) says what is wrong with it."""
    scheme, _, rest = text.partition(":")
    kind = _BY_SCHEME.get(scheme)
    if kind is None:
        raise Unacceptable(f"must be one of {TARGET_WORDS}", _scheme_hint(scheme, rest))
    return kind.parse(kind, text)


def parse_route_target(text: str, spool: str = "/") -> RouteTarget:
    """Take the target of a ``[[route]]`` apart; mailboxes may be below ``{spool}``, the spool directory."""
    scheme, _, rest = text.partition(":")
    if rest.startswith("{spool}/") and scheme in _TEMPLATES:
        directory = os.path.abspath(spool).rstrip("/").replace("{", "{{").replace("}", "}}")
        text = f"{scheme}:{directory}/{rest.removeprefix('{spool}/')}"
    return parse_target(text)


def is_loopback(host: str) -> bool:
    """Whether a target's host is this machine, as far as its text says."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _scheme_hint(scheme: str, rest: str) -> str:
    if scheme in ("smtps", "smtp+tls", "submission"):
        return f'did you mean "smtp:{rest}"? TLS is chosen with tls'
    if scheme in ("lmtps", "unix"):
        return f'did you mean "lmtp+unix:///{rest.lstrip("/")}"?' if scheme == "unix" else ""
    if not scheme or scheme.startswith("/"):
        return f'did you mean "maildir:{scheme}"?' if scheme else ""
    return f'did you mean "smtp://{scheme}:{rest}"?' if rest.isdecimal() and is_host_name(scheme) else ""
