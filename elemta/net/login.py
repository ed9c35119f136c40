"""One attempt to log in: its turn, its charge, the look at the password, and the reply."""

from __future__ import annotations

from typing import Any

from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.auth.fair_queue import Claim
from elemta.auth.names import MAX_NAME_OCTETS, counted_name
from elemta.auth.turns import Turn
from elemta.errors import CredentialsUnavailable
from elemta.limits.identity import network_identity
from elemta.limits.known_logins import Standing
from elemta.limits.limiter import Charge, LimitRefusal
from elemta.net.terms import Terms
from elemta.policies.limits import verdict_of
from elemta.policy import Disconnect
from elemta.policy.verdicts import reply_of
from elemta.smtp import replies
from elemta.smtp.events import (
    Answer,
    Authenticated,
    Refuse,
)
from elemta.smtp.facts import SessionFacts
from elemta.stage import Stage

_log = Logger()

_BAD = Refuse(replies.AUTH_FAILED, reason="bad credentials")
_NOBODY_WAITS = Refuse(replies.AUTH_TROUBLE, reason="the client has left")


class Login:
    """An attempt of a session's client to log in as ``username``.

    It waits for its turn, is charged as a failure, and only then the password is looked at. The charge is
    given back unless the password was wrong, or may have been: leaving early gives nothing back.
    """

    def __init__(self, terms: Terms, facts: SessionFacts, username: str) -> None:
        self._terms = terms
        self._facts = facts
        self._username = username
        self._counted_name = counted_name(username)
        self._network = network_identity(facts.client_ip)
        self._left = False

    def leave(self) -> None:
        """The client is gone. If the password was not looked at yet, it won't be."""
        self._left = True

    async def answer(self, password: bytes) -> Answer:
        """The answer to the client. May be cancelled."""
        try:
            turn = await self._terms.authenticator.turns.take(self._counted_name, self._network)
        except CredentialsUnavailable as error:
            return self._trouble(error)
        answer = await self._take(turn, password)
        if answer is _BAD:
            await self._terms.authenticator.pause_after_failure(
                self._username, client=str(self._facts.client_ip)
            )
        return answer

    async def _take(self, turn: Turn, password: bytes) -> Answer:
        try:
            if self._left:
                return _NOBODY_WAITS
            known = self._terms.limiter.known_logins.standing(self._counted_name, self._facts.client_ip)
            standing = await known if isinstance(known, Deferred) else known
            charge = self._terms.limiter.charge_login(self._facts, self._counted_name, standing)
            if isinstance(charge, Deferred):
                charge = await charge
            if charge.refusal is not None:
                return self._refused(charge.refusal)
            return await self._look(password, charge, standing)
        finally:
            self._terms.authenticator.turns.end(turn)

    async def _look(self, password: bytes, charge: Charge, standing: Standing) -> Answer:
        terms = self._terms
        claim = Claim(self._network, known=standing is not Standing.STRANGER)
        try:
            user = await terms.authenticator.verify(
                self._username, password, client=str(self._facts.client_ip), claim=claim
            )
        except UnauthorizedLogin:
            self._log("bad", self._username)
            return _BAD
        except CancelledError:
            # The password may have been looked at, so it stays charged.
            raise
        except Exception as error:  # a checker may raise anything; that is local trouble
            terms.limiter.refund(charge.receipts)
            return self._trouble(error)
        self._log("good", user)
        # Only failures are counted; no session waits for that.
        terms.limiter.refund(charge.receipts)
        terms.limiter.known_logins.remember(self._counted_name, self._facts.client_ip)
        return Authenticated(user)

    def _refused(self, refusal: LimitRefusal) -> Answer:
        self._log("refused", self._username, limit=refusal.limit)
        verdict = verdict_of(refusal, Stage.AUTH)
        return Refuse(
            reply_of(verdict) or replies.AUTH_TROUBLE,
            close=isinstance(verdict, Disconnect),
            reason=f"limit {refusal.limit}",
        )

    def _trouble(self, error: Exception) -> Answer:
        self._terms.observer.authenticated("error")
        fields: dict[str, Any] = {
            "session_id": self._facts.id,
            "client_ip": str(self._facts.client_ip),
            "user": _shown(self._username),
        }
        if isinstance(error, CredentialsUnavailable):
            _log.error("credentials could not be checked", event="auth.trouble", problem=str(error), **fields)
        else:
            _log.failure("credentials could not be checked", Failure(error), event="auth.trouble", **fields)
        return Refuse(replies.AUTH_TROUBLE, reason="credentials could not be checked")

    def _log(self, outcome: str, user: str, **more: object) -> None:
        self._terms.observer.authenticated(outcome)
        _log.info(
            "authentication was tried",
            event="auth.tried",
            session_id=self._facts.id,
            client_ip=str(self._facts.client_ip),
            user=_shown(user),
            outcome=outcome,
            **more,
        )


def _shown(name: str) -> str:
    """A user name for the log, as it was typed and not too long; the log escapes it."""
    return name if len(name) <= MAX_NAME_OCTETS else name[:MAX_NAME_OCTETS] + "…"
