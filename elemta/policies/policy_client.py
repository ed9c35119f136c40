"""The policy ``policy-client``: asks an external Postfix policy daemon (SMTPD_POLICY_README)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.backend_text import add_field, printable
from elemta.policies.option_checks import endpoint_faults, refuse
from elemta.policy import (
    CONTINUE,
    BackendError,
    Defer,
    Discard,
    Disconnect,
    ILifecycle,
    IMessagePolicy,
    IPolicyPlugin,
    IRcptPolicy,
    Message,
    Quarantine,
    Recipient,
    Reject,
    Services,
    Session,
    Stream,
    Transaction,
    Verdict,
    setting,
)

MAX_ANSWER = 8192
MAX_IDLE = 8  # connections that are kept for the next question
MAX_PREPENDED = 50
_REPLY = re.compile(r"([45])([0-9][0-9])(?:[ ]+(([245])\.[0-9]{1,3}\.[0-9]{1,3}))?(?:[ ]+(.*))?")


@dataclass(frozen=True, slots=True)
class PolicyClientOptions:
    """The keys of [policy.policy-client]."""

    endpoint: str = setting(
        "unix:/run/policyd/policy.sock",
        "Where the policy daemon listens, as a Twisted client endpoint.",
        not_empty=True,
    )


@implementer(IRcptPolicy, IMessagePolicy, ILifecycle)
class PolicyClientPolicy:
    """Asks at each RCPT, and once more at the end of the message."""

    def __init__(self, options: PolicyClientOptions, services: Services) -> None:
        self._endpoint = options.endpoint
        self._services = services
        self._idle: list[Stream] = []
        self._stopped = False
        self._actions = services.metrics.counter("actions_total", "Answers of the daemon.", ("action",))

    async def start(self, predecessor: object) -> None:
        """Nothing to take over: connections are made when they are needed."""

    async def stop(self) -> None:
        self._stopped = True
        while self._idle:
            await self._idle.pop().close()

    async def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:
        instance = _instance(session, transaction)
        action = await self._ask(request(session, transaction, "RCPT", recipient, instance))
        return self._verdict(action, transaction, None)

    async def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:
        for field in transaction.notes.get("prepended", []):
            self._add(message, field)
        instance = _instance(session, transaction)
        action = await self._ask(request(session, transaction, "END-OF-MESSAGE", None, instance))
        return self._verdict(action, transaction, message)

    async def _ask(self, question: bytes) -> str:
        """Ask over a kept connection, or a new one where the daemon closed that meanwhile."""
        while self._idle:
            stream = self._idle.pop()
            if stream.closed or stream.unread:
                # What came without a question must not become the answer about another client.
                await stream.close()
                continue
            try:
                return await self._ask_over(stream, question)
            except BackendError:
                await stream.close()
        return await self._ask_over(await self._services.connect(self._endpoint), question)

    async def _ask_over(self, stream: Stream, question: bytes) -> str:
        kept = False
        try:
            stream.write(question)
            answer = (await stream.read_until(b"\n\n", MAX_ANSWER)).decode("utf-8", "replace")
            action = parse_answer(answer)
            kept = not self._stopped and len(self._idle) < MAX_IDLE
        finally:
            if kept:
                self._idle.append(stream)
            else:
                await stream.close()
        return action

    def _verdict(self, action: str, transaction: Transaction, message: Message | None) -> Verdict:
        word, _, rest = action.partition(" ")
        word, rest = word.upper(), printable(rest.strip())
        known = word in _WORDS or _REPLY.fullmatch(action) is not None
        self._actions.labels(word.lower() if word in _WORDS else "reply" if known else "other").inc()
        if word == "PREPEND":
            self._prepend(rest, transaction, message)
            return CONTINUE
        if word in ("WARN", "INFO"):
            self._services.log.info("the policy daemon says: {text}", text=rest)
            return CONTINUE
        if word in _SETTLED:
            return CONTINUE
        verdict = verdict_of(word, rest, action)
        if verdict is None:
            raise BackendError(f"the policy daemon answered {action[:80]!r}, which is not heeded")
        return verdict

    def _prepend(self, field: str, transaction: Transaction, message: Message | None) -> None:
        name, colon, _ = field.partition(":")
        if not colon or not re.fullmatch(r"[!-9;-~]+", name.strip()):
            return
        if message is not None:
            self._add(message, field)
            return
        prepended = transaction.notes.setdefault("prepended", [])
        if field not in prepended and len(prepended) < MAX_PREPENDED:
            prepended.append(field)

    def _add(self, message: Message, field: str) -> None:
        name, _, value = field.partition(":")
        add_field(message, name.strip(), value.strip(), self._services, "the policy daemon")


_SETTLED = frozenset({"DUNNO", "OK", "PERMIT", "PERMIT_AUTH_DESTINATION"})
_WORDS = _SETTLED | {
    "REJECT", "DEFER", "DEFER_IF_PERMIT", "DEFER_IF_REJECT", "HOLD", "DISCARD", "PREPEND", "WARN", "INFO",
}  # fmt: skip


def verdict_of(word: str, rest: str, action: str) -> Verdict | None:
    """The verdict of an action of Postfix's access(5); None where it has no meaning here."""
    if word == "REJECT":
        return _reply(5, "54", *_enhanced(rest))
    if word in ("DEFER", "DEFER_IF_PERMIT", "DEFER_IF_REJECT"):
        return _reply(4, "50", *_enhanced(rest))
    if word == "HOLD":
        return Quarantine(rest or "the policy daemon")
    if word == "DISCARD":
        return Discard(rest or "the policy daemon")
    match = _REPLY.fullmatch(action)
    if match is None:
        return None
    return _reply(int(match[1]), match[2], match[3], printable(match[5] or ""))


def _enhanced(rest: str) -> tuple[str | None, str]:
    match = re.match(r"([45]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+|$)(.*)", rest)
    return (match[1], match[2]) if match else (None, rest)


def _reply(kind: int, digits: str, enhanced: str | None, text: str) -> Verdict:
    # RFC 5321 §4.2.1: the second digit is 0 to 5; a client takes others for the first digit alone.
    code = int(f"{kind}{digits}" if digits[0] <= "5" else f"{kind}50")
    own = f"{kind}.7.1"
    enhanced = enhanced if enhanced is not None and enhanced.startswith(str(kind)) else own
    if code == 421:
        return Disconnect(text or "Try again later", code=code, enhanced=enhanced)
    if kind == 4:
        return Defer(text or "Try again later", code=code, enhanced=enhanced)
    return Reject(text or "Access denied", code=code, enhanced=enhanced)


def request(
    session: Session, transaction: Transaction, state: str, recipient: Recipient | None, instance: str
) -> bytes:
    """One question: attributes, each a line, and an empty line."""
    tls = session.tls
    # SMTPD_POLICY_README: at the end of a message there is a recipient where the message has only one.
    asked = recipient or (transaction.recipients[0] if len(transaction.recipients) == 1 else None)
    attributes: Iterable[tuple[str, object]] = (
        ("request", "smtpd_access_policy"),
        ("protocol_state", state),
        ("protocol_name", "ESMTP" if session.esmtp else "SMTP"),
        ("client_address", session.client_ip),
        ("client_name", session.reverse_name or "unknown"),
        ("reverse_client_name", session.reverse_name or "unknown"),
        ("client_port", session.client_port),
        ("helo_name", session.helo),
        ("sender", transaction.sender),
        ("recipient", asked.address if asked is not None else ""),
        ("recipient_count", len(transaction.recipients) if recipient is None else 0),
        ("queue_id", transaction.queue_id or ""),
        ("instance", instance),
        ("size", transaction.size or 0),
        ("etrn_domain", ""),
        ("stress", ""),
        ("sasl_method", "PLAIN" if session.user is not None else ""),
        ("sasl_username", session.user or ""),
        ("sasl_sender", ""),
        ("ccert_subject", ""),
        ("ccert_issuer", ""),
        ("ccert_fingerprint", ""),
        ("encryption_protocol", tls.version if tls is not None else ""),
        ("encryption_cipher", tls.cipher if tls is not None else ""),
        ("server_address", session.server_ip or ""),
        ("server_port", session.server_port or ""),
    )
    lines = "".join(f"{name}={printable(str(value))}\n" for name, value in attributes)
    return (lines + "\n").encode("utf-8", "replace")


def _instance(session: Session, transaction: Transaction) -> str:
    """What is the same for all questions about one message."""
    if "instance" not in transaction.notes:
        count = session.notes["messages"] = session.notes.get("messages", 0) + 1
        transaction.notes["instance"] = f"{session.id}.{count}"
    return str(transaction.notes["instance"])


def parse_answer(text: str) -> str:
    """The action of an answer. Raises BackendError where it has none."""
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals and name.strip() == "action" and value.strip():
            return value.strip().replace("\t", " ")
    raise BackendError("the policy daemon's answer has no action")


@implementer(IPlugin, IPolicyPlugin)
class PolicyClientPlugin:
    """Asks an external policy daemon."""

    name = "policy-client"
    contract = "2"
    options = PolicyClientOptions

    def build(self, options: PolicyClientOptions, services: Services) -> PolicyClientPolicy:
        """Raises ConfigError where the endpoint is none."""
        refuse(endpoint_faults("endpoint", options.endpoint))
        return PolicyClientPolicy(options, services)
