"""Explains what would happen to a client and its message, by the very session that real clients get.

The session, the backend, the chain's order, the limits' arithmetic and the routes are those of a real
conversation. What they would change is a copy: limits (:mod:`elemta.limits.scratch_store`), the stores of
policies (:mod:`elemta.policy.overlay_store`), the queue (:mod:`elemta.net.dry_spool`) and all metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from itertools import count

from elemta.address import Address
from elemta.config import ListenerTLS
from elemta.daemon.delivery_factory import sign_by
from elemta.daemon.explain_operations import no_listener
from elemta.daemon.explanation import ExplainedRoute, ExplainedStage, Explanation, stage_of
from elemta.daemon.service import Elemta
from elemta.daemon.supposed_client import SupposedClient, path_of
from elemta.delivery.router import RouteChooser, WaitRoute
from elemta.delivery.routes import Route, RouteTable
from elemta.destination_status import DestinationState
from elemta.envelope import Client, Envelope, Recipient
from elemta.limits.explaining_limiter import ExplainingLimiter
from elemta.metrics import NetMetrics
from elemta.net.context import ListenerContext
from elemta.net.dry_spool import DrySpool
from elemta.net.explained_session import Exchange, ExplainedConversation
from elemta.net.factory import ESMTPFactory
from elemta.net.recipients import final_recipients
from elemta.ops.admin_errors import AdminRefusal
from elemta.policy.explained_chain import ExplainedChain
from elemta.smtp import replies
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import EXPLAINED, SessionInfo

MOST_AT_ONCE = 8
"""Explanations that are made at a time: each asks the backends of policies."""

_NUMBERS = count(1)


@dataclass(slots=True)
class _Account:
    """What the stages of one conversation came to so far."""

    chain: ExplainedChain
    limiter: ExplainingLimiter
    stages: list[ExplainedStage] = field(default_factory=list)

    def add(self, name: str, exchange: Exchange) -> bool:
        """Note one exchange; whether the client may go on."""
        answers, self.chain.answers[:] = list(self.chain.answers), []
        self.stages.append(stage_of(name, exchange, answers, self.limiter.take_looks()))
        return exchange.accepted


class Explainer:
    """Explains on one daemon, by what is in force there at the moment."""

    def __init__(self, daemon: Elemta) -> None:
        self._daemon = daemon
        self._under_way = 0

    def factory(self, listener: str | None) -> ESMTPFactory:
        """The listener of this name, or the first. Raises :class:`AdminRefusal`."""
        factories = self._daemon.listeners.factories
        name = listener or next(iter(factories), "")
        if name not in factories:
            raise no_listener(name, factories)
        return factories[name]

    async def explain(self, client: SupposedClient, listener: str | None = None) -> Explanation:
        """What would happen to this client now, at this listener.

        Raises AdminRefusal, or ExplanationFailed where a policy can't be built.
        """
        if self._under_way >= MOST_AT_ONCE:
            problem = "too many explanations are under way"
            raise AdminRefusal(HTTPStatus.SERVICE_UNAVAILABLE, problem, "try again in a moment")
        factory = self.factory(listener)
        refused, context = factory.why_refused(client.ip), factory.context
        if refused is not None or context is None:
            return _of_refused(factory, client, refused)
        shared = self._daemon.shared
        limiter = ExplainingLimiter(context.limiter, shared.fleet.store, shared.runtime.wall)
        chain = ExplainedChain(context.chain, limiter, shared.runtime.reactor)
        self._under_way += 1
        try:
            return await self._hold(client, context, chain, limiter)
        finally:
            self._under_way -= 1
            chain.close()

    async def _hold(
        self,
        client: SupposedClient,
        context: ListenerContext,
        chain: ExplainedChain,
        limiter: ExplainingLimiter,
    ) -> Explanation:
        hooks = chain.delivery_hooks
        spool = DrySpool(context.spool, partial(sign_by, hooks) if hooks.signs else None)
        context = replace(context, chain=chain, limiter=limiter, spool=spool, metrics=NetMetrics())
        conversation = ExplainedConversation(context, self._facts(client, context))
        account = _Account(chain, limiter)
        try:
            await _converse(conversation, client, context, account)
            envelope = _envelope(conversation, spool, context)
            routes = await self._routes(envelope, chain)
            held, discarded = conversation.held, conversation.discarded
        finally:
            conversation.end()
        stages = tuple(account.stages)
        if spool.submitted:
            held = spool.submitted[0].hold_reason
        return Explanation(
            accepted=all(stage.accepted for stage in stages),
            reply=_told(stages),
            listener=context.listener.name,
            ip=str(client.ip),
            stages=stages,
            routes=routes,
            held=held,
            discarded=discarded,
            not_asked=tuple(_not_asked(client, context, stages)),
        )

    def _facts(self, client: SupposedClient, context: ListenerContext) -> SessionInfo:
        name = context.listener.name
        facts = SessionInfo(f"{EXPLAINED}{next(_NUMBERS):x}", client.ip, 0, name)
        facts.hostname = context.server.hostname
        places = [place for each in self._daemon.listeners.smtp if each.name == name for place in each.places]
        if places:
            facts.server_ip, facts.server_port = ip_address(places[0][0]), places[0][1]
        return facts

    async def _routes(self, envelope: Envelope | None, chain: ExplainedChain) -> tuple[ExplainedRoute, ...]:
        mail = self._daemon.components.mail
        if envelope is None or mail is None:
            return ()
        table = RouteTable(mail.routes)
        hooks = chain.delivery_hooks
        choose = RouteChooser(hooks, mail.routes) if hooks.asks else None
        found = []
        for recipient in envelope.recipients:
            chosen = None if choose is None else await choose(envelope, recipient)
            found.append(self._route(recipient, chosen or table.route(recipient.address)))
        return tuple(found)

    def _route(self, recipient: Recipient, route: Route) -> ExplainedRoute:
        address = str(recipient.address)
        if isinstance(route, WaitRoute):
            return ExplainedRoute(address, "", "", "", route.reason, None)
        destination = route.destination(recipient)
        parts = self._daemon.parts
        delivery = None if parts is None else parts.delivery
        if route.hold_reason or delivery is None:
            return ExplainedRoute(address, route.target, destination, "", route.hold_reason, None)
        status = delivery.waits.status(destination)
        if route.stays_in and status.state is DestinationState.OPEN:
            return ExplainedRoute(address, route.target, destination, "", "", None)
        reason = status.error or (f"limit {status.paced_by}" if status.paced_by else "")
        return ExplainedRoute(address, route.target, destination, status.state.value, reason, status.until)


async def _converse(
    conversation: ExplainedConversation,
    client: SupposedClient,
    context: ListenerContext,
    account: _Account,
) -> None:
    """Say what a client would, as far as it gets."""
    if not account.add("connect", await conversation.connect()):
        return
    hello = f"EHLO {client.hello}"
    if not account.add("helo", await conversation.say(hello)):
        return
    if client.user is not None and not await _log_in(conversation, client.user, hello, context, account):
        return
    if client.sender is None or not account.add("mail", await conversation.say(client.mail)):
        return
    for recipient in client.recipients:
        exchange = await conversation.say(f"RCPT TO:{path_of(recipient)}")
        account.add("rcpt", exchange)
        if exchange.closed:
            return
    if not conversation.accepted_recipients:
        return
    if account.add("data", await conversation.say("DATA")) and client.message is not None:
        account.add("message", await conversation.send(client.content()))


async def _log_in(
    conversation: ExplainedConversation,
    user: str,
    hello: str,
    context: ListenerContext,
    account: _Account,
) -> bool:
    if context.session.starttls and conversation.facts.tls is None:
        if not account.add("starttls", await conversation.start_tls()):
            return False
        if not account.add("helo", await conversation.say(hello)):
            return False
    return account.add("auth", await conversation.log_in(user))


def _envelope(
    conversation: ExplainedConversation, spool: DrySpool, context: ListenerContext
) -> Envelope | None:
    """The envelope of the message that would be stored; None where none would."""
    if spool.submitted:
        stored = spool.submitted[0]
        return Envelope(
            "", stored.sender, stored.recipients, stored.received_at, 0, stored.parameters, stored.client
        )
    transaction, facts = conversation.transaction, conversation.facts
    if transaction is None:
        return None
    final = final_recipients(context.domains, transaction.recipients, context.session.max_recipients)
    client = Client(str(facts.client_ip), facts.helo, facts.listener, facts.id, facts.user)
    recipients = () if final is None else final.recipients
    sender: Address = transaction.sender
    return Envelope("", sender, recipients, context.now(), 0, transaction.parameters, client)


def _told(stages: Sequence[ExplainedStage]) -> str:
    """The first refusal, else the last thing that the client reads; lines are joined."""
    refused = [stage for stage in stages if not stage.accepted]
    deciding = refused[0] if refused else stages[-1]
    return "\n".join(deciding.reply)


def _of_refused(
    factory: ESMTPFactory, client: SupposedClient, refused: tuple[Reply, str] | None
) -> Explanation:
    """A client that gets no session at all."""
    reply, reason = refused or (replies.STARTING, "closed")
    # Plain text would be noise to a client that expects a handshake.
    told = () if factory.listener.tls is ListenerTLS.IMPLICIT else (reply,)
    stage = stage_of("connect", Exchange("", told, (reason,), closed=True), (), ())
    return Explanation(
        False, _told((stage,)), factory.listener.name, str(client.ip), (stage,), (), None, False, ()
    )


def _not_asked(
    client: SupposedClient, context: ListenerContext, stages: Sequence[ExplainedStage]
) -> Iterator[str]:
    if not client.helo:
        yield f"no HELO name was given: the client says EHLO {client.hello}"
    if client.user is None and context.session.starttls:
        yield "the client is taken to have no TLS"
    if client.user is not None:
        yield "the password is taken to be right; it was not looked at"
    if not stages[-1].accepted and stages[-1].stage != "rcpt":
        yield f"nothing was asked behind {stages[-1].stage}, as the client gets no further"
    elif client.sender is None:
        yield "no sender was given: nothing was asked from MAIL on"
    elif not client.recipients:
        yield "no recipient was given: nothing was asked from RCPT on"
    elif client.message is None:
        yield "no message was given: nothing was asked at the end of data"
    yield "observers heard nothing, and pauses were not waited for"
