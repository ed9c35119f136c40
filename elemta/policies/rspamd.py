"""The policy ``rspamd``: asks rspamd over HTTP and does what it says (rspamd's protocol /checkv2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.header import Header
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.backend_text import add_field, printable
from elemta.policies.greylist import network_of
from elemta.policies.option_checks import refuse, url_faults
from elemta.policies.own_clients import is_exempt
from elemta.policies.secret_file import read_secrets
from elemta.policy import (
    CONTINUE,
    BackendError,
    Defer,
    Discard,
    IMessagePolicy,
    IPolicyPlugin,
    Message,
    Quarantine,
    Recipient,
    Reject,
    Services,
    Session,
    Transaction,
    Verdict,
    setting,
)

MAX_FIELDS = 100  # header changes of one answer that are heeded
MAX_ANSWER = 1024 * 1024  # octets: it is parsed in the reactor's thread
MAX_SHOWN = 64 * 1024
"""Octets of the recipients that rspamd gets. Its HTTP header may have 80 KiB."""
MAX_TEXT = 200
GREYLIST_DELAY = 300.0  # seconds, as in rspamd's own module
GREYLIST_MEMORY = 86_400.0


@dataclass(frozen=True, slots=True)
class RspamdOptions:
    """The keys of [policy.rspamd]."""

    url: str = setting(
        "http://127.0.0.1:11333", "Where rspamd's normal worker or proxy listens.", not_empty=True
    )
    password_file: str = setting("", "File with rspamd's password, for its controller; empty = none.")


@dataclass(frozen=True, slots=True)
class RspamdResult:
    """What rspamd thinks of a message."""

    action: str
    score: float
    required_score: float
    symbols: tuple[str, ...]


@implementer(IMessagePolicy)
class RspamdPolicy:
    """Sends each message to rspamd, changes its header as it says, and heeds its action."""

    def __init__(self, options: RspamdOptions, services: Services) -> None:
        place = urlsplit(options.url)
        self._url = urlunsplit(place._replace(path=place.path.rstrip("/") + "/checkv2", fragment=""))
        self._password = ""
        if options.password_file:
            secret = read_secrets("password_file", Path(options.password_file))[0]
            self._password = secret.decode("utf-8", "replace")
        self._services = services
        self._actions = services.metrics.counter("actions_total", "Messages by rspamd's action.", ("action",))

    async def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:
        answer = await self._services.http.request(
            "POST",
            self._url,
            headers=self._headers(session, transaction),
            body=message.open(),
            limit=MAX_ANSWER,
        )
        if answer.status != 200:
            raise BackendError(f"rspamd answered with status {answer.status}")
        found = _object(answer.body)
        action = str(found.get("action", ""))
        if action not in _KNOWN_ACTIONS:
            raise BackendError(f"rspamd knows an action that we do not: {action[:40]!r}")
        self._actions.labels(action).inc()
        transaction.results.publish(_result(action, found))
        if action in _KEPT:
            self._edit(message, found, action)
        if action == "greylist" and not await self._waits(session, transaction):
            return CONTINUE
        return _verdict(action, found)

    async def _waits(self, session: Session, transaction: Transaction) -> bool:
        """Whether a message with the action ``greylist`` waits: once, and no client of ours does.

        rspamd's own module keeps the time in Redis and says soft reject. The bare action comes from an rspamd
        without it: it would come at each try, and the message would never arrive.
        """
        if is_exempt(session, self._services.domains):
            return False
        recipients = sorted(str(one.address).lower() for one in transaction.recipients)
        words = "\n".join((network_of(session.client_ip), str(transaction.sender).lower(), *recipients))
        key = hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()
        store = self._services.store
        if await store.set(f"seen:{key}", b"1", ttl=GREYLIST_MEMORY, only_if_absent=True):
            await store.set(f"wait:{key}", b"1", ttl=GREYLIST_DELAY)
            return True
        return await store.get(f"wait:{key}") is not None

    def _headers(self, session: Session, transaction: Transaction) -> dict[str, str]:
        headers = {
            "IP": str(session.client_ip),
            "Helo": printable(session.helo),
            "From": f"<{printable(str(transaction.sender))}>",
            "Rcpt": ", ".join(_shown(transaction.recipients)),
            "MTA-Name": self._services.hostname,
            "Queue-Id": transaction.queue_id or "",
        }
        if session.reverse_name:
            headers["Hostname"] = printable(session.reverse_name)
        if session.user is not None:
            headers["User"] = printable(session.user)
        if session.tls is not None:
            headers["TLS-Cipher"] = printable(session.tls.cipher)
        if self._password:
            headers["Password"] = self._password
        return headers

    def _edit(self, message: Message, found: Mapping[str, Any], action: str) -> None:
        changes = found.get("milter")
        if isinstance(changes, Mapping):
            # Each looks at the whole header.
            for name, index in islice(_removed(changes.get("remove_headers")), MAX_FIELDS):
                _remove(message, name, index)
            for name, value in islice(_added(changes.get("add_headers")), MAX_FIELDS):
                add_field(message, name, value, self._services, "rspamd")
        if action == "add header":
            message.add_header("X-Spam", "Yes")
        subject = found.get("subject")
        if action == "rewrite subject" and isinstance(subject, str):
            words = _encoded(subject)
            if not message.replace_header("Subject", words):
                message.add_header("Subject", words, at="bottom")


_KNOWN_ACTIONS = frozenset(
    {
        "no action",
        "greylist",
        "add header",
        "rewrite subject",
        "soft reject",
        "reject",
        "discard",
        "quarantine",
    }
)
_KEPT = frozenset({"no action", "add header", "rewrite subject", "quarantine", "greylist"})


def _verdict(action: str, found: Mapping[str, Any]) -> Verdict:
    words = found.get("messages")
    said = words.get("smtp_message") if isinstance(words, Mapping) else None
    text = printable(said)[:MAX_TEXT] if isinstance(said, str) else ""
    if action == "reject":
        return Reject(text or "The message looks like spam", code=554, enhanced="5.7.1")
    if action == "soft reject":
        return Defer(text or "Try again later", code=451, enhanced="4.7.1")
    if action == "greylist":
        return Defer(text or "Greylisted, try again later", code=451, enhanced="4.7.1")
    if action == "discard":
        return Discard("rspamd")
    if action == "quarantine":
        return Quarantine("rspamd")
    return CONTINUE


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BackendError("rspamd's answer is no JSON") from error
    if not isinstance(found, Mapping):
        raise BackendError("rspamd's answer is no object")
    return found


def _result(action: str, found: Mapping[str, Any]) -> RspamdResult:
    symbols = found.get("symbols")
    return RspamdResult(
        action,
        _number(found.get("score")),
        _number(found.get("required_score")),
        tuple(map(str, symbols)) if isinstance(symbols, Mapping) else (),
    )


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:  # a whole number of JSON may have any length
        return 0.0


def _removed(changes: object) -> Iterable[tuple[str, int]]:
    """Name and number of each field to remove: 0 means all, -1 the last, else counted from 1."""
    if isinstance(changes, Mapping):
        for name, numbers in list(changes.items())[:MAX_FIELDS]:
            for number in (numbers if isinstance(numbers, list) else [numbers])[:MAX_FIELDS]:
                if isinstance(number, int):
                    yield str(name), number


def _remove(message: Message, name: str, number: int) -> None:
    if number == 0:
        message.remove_header(name)
    else:
        message.remove_header(name, index=number - 1 if number > 0 else number)


def _added(changes: object) -> Iterable[tuple[str, str]]:
    """Name and value of each field to add; a value is text, an object with ``value``, or a list of these."""
    if isinstance(changes, Mapping):
        for name, values in list(changes.items())[:MAX_FIELDS]:
            for value in (values if isinstance(values, list) else [values])[:MAX_FIELDS]:
                text = value.get("value") if isinstance(value, Mapping) else value
                if isinstance(text, str):
                    yield str(name), _folded(text)


def _folded(text: str) -> str:
    """A value of several lines, as rspamd folds it, with line ends that are legal in a header."""
    lines = [line.strip() for line in text.replace("\r", "").split("\n")]
    return "\r\n\t".join(line for line in lines if line)


def _encoded(subject: str) -> str:
    """A subject as a header may carry it (RFC 2047)."""
    text = printable(subject)
    if text.isascii():
        return text
    return Header(text, "utf-8", header_name="Subject", maxlinelen=76).encode(linesep="\r\n")


def _shown(recipients: Sequence[Recipient]) -> list[str]:
    """As many recipients as rspamd takes: it closes the connection at a longer header."""
    shown: list[str] = []
    left = MAX_SHOWN
    for recipient in recipients:
        text = f"<{printable(str(recipient.address))}>"
        left -= len(text.encode("utf-8")) + 2
        if left < 0:
            break
        shown.append(text)
    return shown


@implementer(IPlugin, IPolicyPlugin)
class RspamdPlugin:
    """Asks rspamd."""

    name = "rspamd"
    contract = "2"
    options = RspamdOptions

    def build(self, options: RspamdOptions, services: Services) -> RspamdPolicy:
        """Raises ConfigError where the URL is none."""
        refuse(url_faults("url", options.url))
        return RspamdPolicy(options, services)
