"""Verifies credentials: twisted.cred checkers in order, with a deadline, off the reactor's thread."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from functools import partial

from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import InvalidAuthType, findCheckerFactories, findCheckerFactory
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elemta.auth.attempt_limiter import AttemptLimiter
from elemta.auth.checker import IBlockingChecker
from elemta.auth.fair_queue import Claim
from elemta.auth.names import MAX_NAME_OCTETS, counted_name
from elemta.auth.slowdown import Slowdown
from elemta.auth.threads import HashingThreads
from elemta.config import AuthConfig
from elemta.errors import ConfigError, CredentialsUnavailable, Fault
from elemta.runtime import ProcessRuntime, Runtime

DEADLINE_SECONDS = 10.0

_log = Logger()


class Authenticator:
    """Asks the checkers in order; the first that knows the user with this password decides.

    Nothing runs until :meth:`start`: it is built before twistd forks.
    """

    def __init__(
        self,
        checkers: Sequence[ICredentialsChecker],
        runtime: Runtime,
        *,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        """``deadline`` is for all checkers together, in seconds."""
        self._checkers = tuple(checkers)
        self._clock: IReactorTime = runtime.reactor
        self._deadline = deadline
        self._threads = HashingThreads(runtime.threads)
        self._slowdown = Slowdown(self._clock)
        self.turns = AttemptLimiter(self._clock)
        self._pauses: dict[IDelayedCall, None] = {}
        self._stopping = False
        self._has_heir = False

    @classmethod
    def from_config(
        cls, config: AuthConfig, runtime: Runtime, *, source: str = "configuration"
    ) -> Authenticator:
        """The checkers of ``[auth] checkers``; ``source`` is the file that the faults name.

        Raises :class:`~elemta.errors.ConfigError` with every fault.
        """
        return cls(load_checkers(config.checkers, runtime, source), runtime)

    @property
    def enabled(self) -> bool:
        """Whether there is any checker: without one AUTH is not offered."""
        return bool(self._checkers)

    def start(self) -> None:
        """Start the threads. A second call does nothing."""
        self._stopping = False
        if self.enabled:
            self._threads.start()

    async def stop(self) -> None:
        """Answer what is under way, without the waits after failures, and end the threads.

        One that has an heir does nothing and goes on to answer: sessions that began before a reload ask it.
        """
        if self._has_heir:
            return
        self._stopping = True
        for pause in tuple(self._pauses):
            pause.reset(0)
        await self._threads.stop()

    def inherit(self, previous: Authenticator) -> None:
        """Take over threads, turns and counts of failures from ``previous``, before the start of this one.

        A reload resets no delay, and ends no verification that is under way.
        """
        self._slowdown = previous._slowdown
        self._threads = previous._threads
        self.turns = previous.turns
        self._pauses = previous._pauses
        previous._has_heir = True

    async def verify(
        self, username: str, password: bytes, *, client: str = "", claim: Claim | None = None
    ) -> str:
        """The canonical name of the user whose credentials these are.

        ``client`` is the client's IP address, and ``claim`` has the client that wants a place in the queue.
        Raises ``UnauthorizedLogin`` for bad credentials, and
        :class:`~elemta.errors.CredentialsUnavailable` when no checker could decide in time.
        """
        user = await self._ask_in_time(username, password, claim or Claim())
        self._slowdown.succeeded(client, counted_name(username))
        return user

    async def pause_after_failure(self, username: str, *, client: str = "") -> None:
        """Wait before the reply to a failure: 1, 2, 4… up to 10 seconds.

        Each failure in a row of this client and user waits longer.
        """
        await self._pause(self._slowdown.failed(client, counted_name(username)))

    async def _ask_in_time(self, username: str, password: bytes, claim: Claim) -> str:
        answer = Deferred.fromCoroutine(self._ask(username, password, claim))
        answer.addTimeout(self._deadline, self._clock)
        try:
            return await answer
        except OutOfTime:
            raise CredentialsUnavailable(f"no answer within {self._deadline:g} seconds") from None

    async def _ask(self, username: str, password: bytes, claim: Claim) -> str:
        if not _sane(username):
            raise UnauthorizedLogin
        trouble: BaseException | None = None
        for checker in self._checkers:
            try:
                return await self._ask_one(checker, username, password, claim)
            except (CancelledError, CredentialsUnavailable):
                # Out of time or overloaded: the next checker would have no more of either.
                raise
            except UnauthorizedLogin:
                continue
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                # A foreign checker may raise anything: only its own answer is lost.
                _log.failure(
                    "a credentials checker failed",
                    event="auth.checker_failed",
                    checker=type(checker).__name__,
                )
                trouble = error
        if trouble is not None:
            raise CredentialsUnavailable("a checker failed and no other one knew the user") from trouble
        raise UnauthorizedLogin

    async def _ask_one(
        self, checker: ICredentialsChecker, username: str, password: bytes, claim: Claim
    ) -> str:
        if IBlockingChecker.providedBy(checker):
            known = await self._threads.run(partial(checker.verify, username, password), claim)
            if known is None:
                raise UnauthorizedLogin
            return known
        credentials = UsernamePassword(username.encode("utf-8"), password)
        avatar: object = await maybeDeferred(checker.requestAvatarId, credentials)
        user = avatar.decode("utf-8") if isinstance(avatar, bytes) else avatar
        # twisted.cred's ANONYMOUS is an empty tuple: an anonymous user is no user here
        if not isinstance(user, str) or not user:
            raise UnauthorizedLogin
        return user

    async def _pause(self, seconds: float) -> None:
        over: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(0 if self._stopping else seconds, over.callback, None)
        self._pauses[call] = None
        try:
            await over
        finally:
            self._pauses.pop(call, None)


def load_checkers(
    descriptions: Sequence[str], runtime: ProcessRuntime, source: str = "configuration"
) -> tuple[ICredentialsChecker, ...]:
    """The checkers that strcred descriptions such as ``elemta-users:/etc/elemta/users`` name.

    Raises :class:`~elemta.errors.ConfigError` with a fault for each one that can't be had. A fault
    never repeats what stands behind the colon, which may be a password.
    """
    checkers: list[ICredentialsChecker] = []
    faults: list[Fault] = []
    for index, description in enumerate(descriptions, start=1):
        kind = description.partition(":")[0]
        key = f"auth.checkers[{index}]"
        try:
            checker = _make_checker(description, runtime)
        except InvalidAuthType:
            faults.append(Fault(source, key, f"no kind of checker is called {kind!r}", _nearest_kind(kind)))
        except Exception as error:  # the factory may be foreign
            faults.extend(Fault(source, key, line) for line in (str(error) or repr(error)).splitlines())
        else:
            if IUsernamePassword not in checker.credentialInterfaces:
                faults.append(
                    Fault(
                        source, key, f"{kind} takes no user name with a password, and AUTH has nothing else"
                    )
                )
            checkers.append(_with_octets(checker))
    if faults:
        raise ConfigError(faults)
    return tuple(checkers)


def _make_checker(description: str, runtime: ProcessRuntime) -> ICredentialsChecker:
    """As ``twisted.cred.strcred.makeChecker``; our own kinds also get the runtime."""
    kind, _, argument = description.partition(":")
    factory = findCheckerFactory(kind)
    make = getattr(factory, "generateCheckerWith", None)
    checker: ICredentialsChecker
    checker = factory.generateChecker(argument) if make is None else make(argument, runtime)
    return checker


def _with_octets(checker: ICredentialsChecker) -> ICredentialsChecker:
    """Twisted's ``memory:`` keeps text where credentials, and all other checkers, have octets."""
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        checker.users = {_octets(name): _octets(password) for name, password in checker.users.items()}
    return checker


def _octets(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")


def _nearest_kind(kind: str) -> str:
    factories = findCheckerFactories()
    known = sorted({str(factory.authType) for factory in factories})
    near = difflib.get_close_matches(kind, known, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"known: {', '.join(known)}"


def _sane(username: str) -> bool:
    if not username or len(username.encode("utf-8", "replace")) > MAX_NAME_OCTETS:
        return False
    # RFC 4616 §2: no NUL; a name has no other control character either
    return not any(unicodedata.category(char) in ("Cc", "Cs") for char in username)
