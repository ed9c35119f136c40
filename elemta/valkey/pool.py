"""The connections to one server, kept open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineMissed
from twisted.logger import Logger

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.runtime import Runtime
from elemta.valkey.address import CONNECT_SECONDS, ServerAddress, ValkeyLogin, endpoint
from elemta.valkey.resp import Script
from elemta.valkey.rights import Rights
from elemta.valkey.tls import TLS, ValkeyTLSRefused

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection

_log = Logger()

CONNECTIONS = 2
"""A server's connections: one that is used, and one that is open already when the first breaks."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_STEADY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How the connections of a pool are opened. ``scripts`` is shared, and grows with what is run.

    ``prefix`` is what all keys begin with. ``rights`` tells which right a refusal means.
    """

    runtime: Runtime
    login: ValkeyLogin
    tls: TLS | None = None
    scripts: dict[bytes, Script] = field(default_factory=dict)
    prefix: str = ""
    rights: Rights = field(init=False)

    def __post_init__(self) -> None:
        rights = Rights(self.login.username, self.prefix, self.runtime.monotonic)
        object.__setattr__(self, "rights", rights)

    @property
    def reactor(self) -> Any:
        return self.runtime.reactor


class ServerPool:
    """Keeps ``size`` connections to one server: opens them again with full jitter, watches that they answer.

    ``changed`` is called whenever the first connection is there, or the last one no longer is. ``connection``
    is the one to use now, None when there is none.
    """

    def __init__(
        self,
        address: ServerAddress,
        dialling: ConnectionOptions,
        changed: Callable[[ServerPool], None],
        size: int = CONNECTIONS,
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        self._dialling = dialling
        self._changed = changed
        self._ready: list[Connection] = []
        self._links = [ServerLink(self) for _ in range(size)]
        self._last_complaint = ""
        self._kind, self._reason = ValkeyFailure.DISCONNECTED, f"not connected to {address}"

    def start(self) -> None:
        for link in self._links:
            link.dial()

    def stop(self) -> Iterable[Deferred[None]]:
        """Close all connections when their replies are there; one Deferred for each that was open."""
        self._changed = _ignore
        return [over for link in self._links if (over := link.stop()) is not None]

    @property
    def trouble(self) -> ValkeyError:
        """Why there is no connection. New each time: raising it adds a traceback."""
        return ValkeyError(self._kind, self._reason)

    def watch(self) -> None:
        """To be called every second."""
        for connection in tuple(self._ready):
            connection.watch()

    def renew(self, why: str) -> None:
        """Close all connections now and open new ones."""
        for connection in tuple(self._ready):
            connection.abort(why)

    # What its links say.

    def opened(self, connection: Connection) -> None:
        self._last_complaint = ""
        self._ready.append(connection)
        self._choose()

    def closed(self, connection: Connection) -> None:
        if connection in self._ready:
            self._ready.remove(connection)
            self._kind = ValkeyFailure.DISCONNECTED
            self._reason = f"lost the connection to {self.address}: {connection.why}"
            self._choose()

    def failed(self, trouble: ValkeyError) -> None:
        """A try failed. Said once, until something else is the matter."""
        self._kind, self._reason = trouble.kind, f"no connection to {self.address}: {trouble}"
        complaint = f"{trouble.kind} {trouble}"
        if complaint != self._last_complaint and not self._ready:
            self._last_complaint = complaint
            _log.warn(
                "no connection to Valkey",
                event="valkey.unreachable",
                address=str(self.address),
                kind=trouble.kind.value,
                reason=str(trouble),
            )

    def _choose(self) -> None:
        before, self.connection = self.connection, self._ready[0] if self._ready else None
        if (before is None) is not (self.connection is None):
            self._changed(self)

    @property
    def dialling(self) -> ConnectionOptions:
        return self._dialling


class ServerLink:
    """One of a pool's connections: being opened, open, or to be opened again after a pause."""

    def __init__(self, pool: ServerPool) -> None:
        self._pool = pool
        self._reactor = pool.dialling.reactor
        self._connection: Connection | None = None
        self._attempt: Deferred[None] | None = None
        self._pause: Any = None
        self._failures = 0
        self._opened_at = 0.0
        self._over: Deferred[None] | None = None
        self._stopped = False

    def dial(self) -> None:
        """Open the connection."""
        self._pause = None
        self._opened_at = self._reactor.seconds()
        attempt = Deferred.fromCoroutine(self._open())
        self._attempt = attempt
        attempt.addErrback(self._not_opened)

    def stop(self) -> Deferred[None] | None:
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._connection is None:
            if self._attempt is not None:
                self._attempt.cancel()
            return None
        self._over = Deferred()
        if self._attempt is not None:
            self._connection.abort("stopped")
        else:
            self._connection.close()
            # It may have stopped answering.
            timer = self._reactor.callLater(CONNECT_SECONDS, self._connection.abort, "stopped")
            self._over.addCallback(lambda _: timer.cancel() if timer.active() else None)
        return self._over

    async def _open(self) -> None:
        # Installs the reactor.
        from elemta.valkey.connection import ConnectionFactory  # noqa: PLC0415

        dialling = self._pool.dialling
        address = self._pool.address
        handshake = None if dialling.tls is None else dialling.tls.handshake(address.host)
        where = endpoint(self._reactor, address, handshake)
        opening = where.connect(ConnectionFactory(address, self._lost))
        connection = cast("Connection", await opening.addTimeout(CONNECT_SECONDS, self._reactor))
        self._connection = connection
        greeting = connection.greet(dialling.login, handshake, dialling.scripts.values(), dialling.rights)
        try:
            await Deferred.fromCoroutine(greeting).addTimeout(CONNECT_SECONDS, self._reactor)
        except Exception as error:
            connection.abort(str(error) or "it does not answer")
            raise
        if self._connection is None:
            raise ValkeyError(ValkeyFailure.DISCONNECTED, connection.why)
        self._attempt = None
        self._opened_at = self._reactor.seconds()
        self._pool.opened(connection)

    def _not_opened(self, failure: Any) -> None:
        self._attempt = None
        if self._stopped:
            return
        self._pool.failed(_trouble_of(failure.value))
        if self._connection is None:
            self._dial_later()  # else when it is lost, which it will be

    def _lost(self, connection: Connection) -> None:
        opening = self._attempt is not None
        if self._connection is connection:
            self._connection = None
        if self._over is not None:
            self._over.callback(None)
        self._pool.closed(connection)
        if opening or self._stopped:
            return  # the attempt fails, too
        if self._reactor.seconds() - self._opened_at > _STEADY_SECONDS:
            self._failures = 0
        self._dial_later()

    def _dial_later(self) -> None:
        if self._stopped or self._pause is not None:
            return
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures, 10))
        self._failures += 1
        uniform = self._pool.dialling.runtime.randomness.uniform
        self._pause = self._reactor.callLater(uniform(0, longest), self.dial)


def _trouble_of(error: BaseException) -> ValkeyError:
    if isinstance(error, ValkeyError):
        return error
    if isinstance(error, ValkeyTLSRefused):
        return ValkeyError(ValkeyFailure.OTHER, str(error))
    words = "no answer in time" if isinstance(error, DeadlineMissed) else str(error)
    return ValkeyError(ValkeyFailure.DISCONNECTED, words or type(error).__name__)


def _ignore(pool: ServerPool) -> None:
    """The change of a pool that was stopped."""
