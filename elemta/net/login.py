"""One attempt to log in: its turn, the policies, the look at the password, and the reply."""

from __future__ import annotations

from typing import Any

from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.auth.attempt_limiter import AttemptPermit
from elemta.auth.fair_queue import Claim
from elemta.auth.names import MAX_NAME_OCTETS, counted_name
from elemta.deferred_value import value_of
from elemta.errors import CredentialsUnavailable
from elemta.limits.identity import network_identity
from elemta.limits.known_logins import LoginHistory
from elemta.net.context import ListenerContext
from elemta.policy import ChainDecision, Disconnect, LoginOutcome, PolicySession
from elemta.policy.verdicts import reply_of
from elemta.smtp import replies
from elemta.smtp.events import Authenticated, Refuse, Response
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo

_log = Logger()

_BAD = Refuse(replies.AUTH_FAILED, reason="bad credentials")
_CANCELLED = Refuse(replies.AUTH_TROUBLE, reason="the client has left")


class LoginExchange:
    """An attempt of a session's client to log in as ``username``.

    It waits for its turn, the policies are asked, and only then the password is looked at. The policies
    learn how it ended, except where the client left while the password was looked at.
    """

    def __init__(
        self, context: ListenerContext, policies: PolicySession, facts: SessionInfo, username: str
    ) -> None:
        self._context = context
        self._policies = policies
        self._facts = facts
        self._username = username
        self._counted_name = counted_name(username)
        self._network = network_identity(facts.client_ip)
        self._left = False
        self._asking: Deferred[ChainDecision] | None = None

    def leave(self) -> None:
        """The client is gone. If the password was not looked at yet, it won't be."""
        self._left = True
        if self._asking is not None:
            self._asking.cancel()

    async def answer(self, password: bytes) -> Response:
        """The answer to the client. May be cancelled."""
        try:
            turn = await self._context.authenticator.turns.take(self._counted_name, self._network)
        except CredentialsUnavailable as error:
            return self._internal_error(error)
        answer = await self._take(turn, password)
        if answer is _BAD:
            await self._context.authenticator.pause_after_failure(
                self._username, client=str(self._facts.client_ip)
            )
        return answer

    async def _take(self, turn: AttemptPermit, password: bytes) -> Response:
        try:
            if self._left:
                return _CANCELLED
            known = self._context.limiter.known_logins.standing(self._counted_name, self._facts.client_ip)
            standing = await value_of(known)
            if self._left:
                return _CANCELLED
            decision = await self._ask_policies()
            reply = reply_of(decision.verdict)
            if reply is not None:
                return self._refused(decision, reply)
            return await self._look(password, standing)
        finally:
            self._context.authenticator.turns.end(turn)

    async def _ask_policies(self) -> ChainDecision:
        decision = self._policies.ask_login(self._counted_name)
        if not isinstance(decision, Deferred):
            return decision
        self._asking = decision
        try:
            return await decision
        except CancelledError:
            self._ended(LoginOutcome.UNKNOWN)
            raise
        finally:
            self._asking = None

    def _ended(self, outcome: LoginOutcome) -> None:
        self._policies.login_ended(self._counted_name, outcome)

    async def _look(self, password: bytes, standing: LoginHistory) -> Response:
        claim = Claim(self._network, known=standing is not LoginHistory.UNKNOWN)
        try:
            user = await self._context.authenticator.verify(
                self._username, password, client=str(self._facts.client_ip), claim=claim
            )
        except UnauthorizedLogin:
            self._log("bad", self._username)
            self._ended(LoginOutcome.BAD)
            return _BAD
        except CancelledError:
            # The password may have been looked at, so it stays charged.
            raise
        except Exception as error:  # a checker may raise anything; that is local trouble
            self._ended(LoginOutcome.UNKNOWN)
            return self._internal_error(error)
        self._log("good", user)
        self._ended(LoginOutcome.GOOD)
        return Authenticated(user)

    def _refused(self, decision: ChainDecision, reply: Reply) -> Response:
        self._log("refused", self._username, policy=decision.policy, reply=str(reply))
        self._ended(LoginOutcome.UNKNOWN)
        return Refuse(
            reply,
            close=isinstance(decision.verdict, Disconnect),
            reason=f"policy {decision.policy}",
        )

    def _internal_error(self, error: Exception) -> Response:
        self._context.metrics.auth_attempts.labels("error").inc()
        fields: dict[str, Any] = {
            "session_id": self._facts.id,
            "client_ip": str(self._facts.client_ip),
            "user": _shown(self._username),
        }
        if isinstance(error, CredentialsUnavailable):
            _log.error(
                "credentials could not be checked", event="auth.internal_error", problem=str(error), **fields
            )
        else:
            _log.failure(
                "credentials could not be checked", Failure(error), event="auth.internal_error", **fields
            )
        return Refuse(replies.AUTH_TROUBLE, reason="credentials could not be checked")

    def _log(self, outcome: str, user: str, **more: object) -> None:
        self._context.metrics.auth_attempts.labels(outcome).inc()
        _log.info(
            "a client tried to log in",
            event="auth.attempted",
            session_id=self._facts.id,
            client_ip=str(self._facts.client_ip),
            user=_shown(user),
            outcome=outcome,
            **more,
        )


def _shown(name: str) -> str:
    """A user name for the log, as it was typed and not too long; the log escapes it."""
    return name if len(name) <= MAX_NAME_OCTETS else name[:MAX_NAME_OCTETS] + "…"
