"""Access to the console: logins, tokens, sessions, and what protects them from other sites."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address

from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.auth.accounts import Accounts, AccountsFile
from elemta.auth.authenticator import Authenticator
from elemta.auth.fair_queue import Claim
from elemta.auth.names import counted_name
from elemta.auth.roles import AccessRole, Caller
from elemta.console.first_token import FirstToken
from elemta.console.sessions import ConsoleSession, ConsoleSessions
from elemta.deferred_value import value_of
from elemta.errors import CredentialsUnavailable
from elemta.ip import IPAddress
from elemta.limits import Limiter
from elemta.limits.charge import LimitRefusal
from elemta.limits.identity import network_identity
from elemta.limits.known_logins import LoginHistory
from elemta.limits.rules import LoginAttempt
from elemta.ops import audit
from elemta.ops.admin import AdminRequest
from elemta.ops.admin_errors import AdminRefusal
from elemta.runtime import Runtime, WorkerPool
from elemta.runtime.periodic_task import start_periodic_task

COOKIE = b"elemta_session"
LISTENER = "console"
"""The name of the console in the limits of failed logins."""

FIRST_TOKEN_ACTOR = "first-token"  # noqa: S105 - a name
# How often the accounts are looked at for a first user while there is none, in seconds
_WATCH_SECONDS = 1.0
_READING = frozenset({b"GET", b"HEAD"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")

_log = Logger()


class LoginRefused(Exception):
    """A login that was refused; ``retry_after`` is in seconds where a limit refused it."""

    def __init__(self, status: HTTPStatus, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_after = retry_after


class ConsoleAccess:
    """Identifies the callers of the console's listener.

    ``limiter`` gives the limits in force: those of failed logins hold here, too, and in the whole fleet.
    """

    def __init__(
        self,
        runtime: Runtime,
        accounts: AccountsFile,
        first_token: FirstToken,
        *,
        authenticator: Authenticator,
        limiter: Callable[[], Limiter],
        hostnames: Iterable[str],
    ) -> None:
        self._accounts = accounts
        self._first_token = first_token
        self._authenticator = authenticator
        self._limiter = limiter
        self._hostnames = frozenset(
            {"localhost", socket.gethostname().lower(), *(name.lower().rstrip(".") for name in hostnames)}
        )
        self.sessions = ConsoleSessions(runtime)
        self._reactor = runtime.reactor
        # While there is no user: the first one ends the first token, though no request comes.
        self._watch: LoopingCall | None = None
        self._threads: WorkerPool = runtime.threads.pool("elemta-console", 1)

    async def start(self) -> None:
        """Read the accounts, and make the first token where there is no user."""
        self._authenticator.start()
        self._threads.start()
        await self.refresh()
        if self._first_token.is_valid:
            self._watch = start_periodic_task(self._reactor, _WATCH_SECONDS, self._look_for_first_user)

    async def _look_for_first_user(self) -> None:
        await self.refresh()
        if not self._first_token.is_valid:
            self._end_watch()

    def _end_watch(self) -> None:
        if self._watch is not None and self._watch.running:
            self._watch.stop()

    async def stop(self) -> None:
        """End the threads."""
        self._end_watch()
        await self._authenticator.stop()
        await self._threads.join()

    # What other sites may not do

    def check_origin(self, request: AdminRequest) -> None:
        """Refuse a request that a browser sends for another site.

        Raises :class:`AdminRefusal`: 400 for a Host that is not this one, 403 for an Origin that is not.
        A name of another domain may lead here (DNS rebinding); an address is no name.
        """
        hosts = request.requestHeaders.getRawHeaders(b"host", [])
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        if not self._is_own(host):
            problem = "the Host of the request is no name of this host"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, "use [server] hostname, or an address")
        for origin in request.requestHeaders.getRawHeaders(b"origin", []):
            # RFC 6454 §6.1; the scheme is another one where a proxy ends TLS.
            if origin.decode("latin-1").partition("://")[2].lower() != host.lower():
                raise AdminRefusal(HTTPStatus.FORBIDDEN, "the Origin of the request is another site")

    def _is_own(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().rstrip(".")
        if name in self._hostnames or name.endswith(".localhost"):
            return True
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    # Callers

    async def identify(self, request: AdminRequest) -> Caller:
        """The caller of an API call. Raises :class:`AdminRefusal`: 401, or 403 without the CSRF token."""
        caller = await self.caller(request)
        if caller is None:
            hint = "Authorization: Bearer TOKEN, or a session of the console"
            raise AdminRefusal(HTTPStatus.UNAUTHORIZED, "no valid credentials", hint)
        if caller.csrf is not None and request.method not in _READING:
            self.check_csrf(request, caller, request.header(b"x-csrf-token") or "")
        return caller

    async def caller(self, request: AdminRequest) -> Caller | None:
        """The caller by its token or its session; None without valid ones."""
        accounts = await self.refresh()
        authorization = request.header(b"authorization")
        if authorization is not None:
            return self._of_token(authorization, accounts)
        session = self.session(request)
        return None if session is None else self._of_session(session, accounts)

    def session(self, request: AdminRequest, *, used: bool = True) -> ConsoleSession | None:
        """The session of the request's cookie, which counts as used unless a page refreshed itself."""
        cookie = request.getCookie(COOKIE)
        if cookie is None:
            return None
        used = used and request.header(b"x-refresh") is None
        return self.sessions.find(cookie.decode("ascii", "replace"), used=used)

    def still_valid(self, request: AdminRequest) -> bool:
        """Whether the credentials of an earlier request still are, by the accounts as they were last read."""
        accounts = self._accounts.accounts
        authorization = request.header(b"authorization")
        if authorization is not None:
            return self._of_token(authorization, accounts) is not None
        session = self.session(request, used=False)
        return session is not None and self._of_session(session, accounts) is not None

    def log_out(self, request: AdminRequest, caller: Caller) -> None:
        """End the session of the request."""
        cookie = request.getCookie(COOKIE)
        if cookie is not None:
            self.sessions.end(cookie.decode("ascii", "replace"))
            audit.change_made(caller, "logout", "console")

    def check_csrf(self, request: AdminRequest, caller: Caller, token: str) -> None:
        """Refuse a change that is not asked for by one of the console's own pages."""
        session = self.session(request)
        if session is None or not session.accepts(token):
            problem = "the CSRF token is missing or wrong"
            asked = f"{request.method.decode('ascii', 'replace')} {request.path.decode('ascii', 'replace')}"
            audit.change_refused(caller, "request", asked, status=HTTPStatus.FORBIDDEN, problem=problem)
            raise AdminRefusal(HTTPStatus.FORBIDDEN, problem, "GET /v1/session has it, for X-CSRF-Token")

    def _of_token(self, authorization: str, accounts: Accounts) -> Caller | None:
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        if self._first_token.matches(text):
            return Caller(FIRST_TOKEN_ACTOR, AccessRole.OPERATOR)
        account = accounts.of_token(text.strip())
        return None if account is None else Caller(f"token:{account.name}", account.role)

    def _of_session(self, session: ConsoleSession, accounts: Accounts) -> Caller | None:
        if session.actor == FIRST_TOKEN_ACTOR:
            valid = self._first_token.is_valid
            return Caller(session.actor, AccessRole.OPERATOR, session.csrf) if valid else None
        account = accounts.users.get(session.actor)
        # A session ends with its user, and with the password.
        if account is None or str(account.password) != session.proof:
            return None
        return Caller(account.name, account.role, session.csrf)

    async def refresh(self) -> Accounts:
        """The accounts as the file has them now, or had them a second ago."""
        if self._accounts.is_stale:
            return await self._threads.call(self._look_now)
        return self._accounts.accounts

    def _look_now(self) -> Accounts:
        accounts = self._accounts.look()
        if accounts.users:
            if self._first_token.is_valid or self._first_token.path.exists():
                self._first_token.end()
        elif not self._first_token.is_valid and not self._accounts.broken:
            # A file that can't be read is no reason to open another way in.
            self._first_token.provide()
        return accounts

    # Logins

    async def log_in(self, request: AdminRequest, username: str, password: bytes) -> str:
        """The cookie of a new session. Raises :class:`LoginRefused`, after a delay for a wrong password."""
        ip = client_ip(request)
        await self.refresh()
        try:
            actor, proof = await self._verify(username, password, ip)
        except UnauthorizedLogin:
            _log_login(username, ip, "bad")
            await self._authenticator.pause_after_failure(username, client=str(ip))
            raise LoginRefused(HTTPStatus.UNAUTHORIZED, "The name or the password is wrong.") from None
        except CredentialsUnavailable as error:
            _log.error(
                "credentials of the console could not be checked",
                event="console.login_failed",
                client_ip=str(ip),
                problem=str(error),
            )
            text = "The password can't be checked now. Try again in a moment."
            raise LoginRefused(HTTPStatus.SERVICE_UNAVAILABLE, text) from None
        _log_login(actor, ip, "good", self._role_of(actor))
        cookie, _ = self.sessions.begin(actor, proof)
        return cookie

    def _role_of(self, actor: str) -> str:
        account = self._accounts.accounts.users.get(actor)
        return AccessRole.OPERATOR.value if account is None else account.role.value

    async def _verify(self, username: str, password: bytes, ip: IPAddress) -> tuple[str, str]:
        """The actor, and what proved it."""
        counted, network = counted_name(username), network_identity(ip)
        turn = await self._authenticator.turns.take(counted, network)
        try:
            limiter = self._limiter()
            standing = await value_of(limiter.known_logins.standing(counted, ip))
            attempt = LoginAttempt(ip, LISTENER, "", None)
            # Charged before the password is looked at, as for SMTP: never more failures than the limit.
            charge = await value_of(limiter.charge_login(attempt, counted))
            if charge.refusal is not None:
                _log_login(username, ip, "refused")
                raise _too_many(charge.refusal)
            try:
                proof = await self._look_at_password(username, password, ip, standing)
            except (UnauthorizedLogin, CancelledError):
                # The password may have been looked at, so it stays charged.
                raise
            except Exception:
                # Whatever it is, it is no guess.
                await value_of(limiter.refund(charge.receipts))
                raise
            await value_of(limiter.refund(charge.receipts))
            if proof[0] != FIRST_TOKEN_ACTOR:
                limiter.remember_login(attempt, counted)
            return proof
        finally:
            self._authenticator.turns.end(turn)

    async def _look_at_password(
        self, username: str, password: bytes, ip: IPAddress, standing: LoginHistory
    ) -> tuple[str, str]:
        if self._first_token.matches(password.decode("utf-8", "replace")):
            return FIRST_TOKEN_ACTOR, ""
        claim = Claim(network_identity(ip), known=standing is not LoginHistory.UNKNOWN)
        user = await self._authenticator.verify(username, password, client=str(ip), claim=claim)
        account = self._accounts.accounts.users.get(user)
        if account is None:
            raise UnauthorizedLogin
        return user, str(account.password)


def client_ip(request: AdminRequest) -> IPAddress:
    """The address of the client; loopback where it has none, as on a Unix socket."""
    try:
        found = ip_address(getattr(request.getClientAddress(), "host", ""))
    except ValueError:
        return IPv4Address("127.0.0.1")
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def _too_many(refusal: LimitRefusal) -> LoginRefused:
    text = "Too many failed logins. Try again later."
    return LoginRefused(HTTPStatus.TOO_MANY_REQUESTS, text, refusal.retry_after)


def _log_login(user: str, ip: IPAddress, outcome: str, role: str = "") -> None:
    _log.info(
        "a client tried to log in to the console",
        event="audit.login_attempted",
        actor=user[:255],
        role=role,
        action="login",
        target="console",
        client_ip=str(ip),
        outcome=outcome,
    )
