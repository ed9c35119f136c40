"""One connection to Valkey: txredisapi's, with a greeting, a watchdog and a queue of replies of our own.

Importing this installs the reactor, as txredisapi does: only what starts connections may import it.

txredisapi's own way of logging in ends reconnection for good when anything goes wrong in it, so it never
gets to see the password. Its queue of replies makes three Deferreds a command and, when one is cancelled,
searches the whole queue; here each caller that waits for a reply is in a deque, and needs no Deferred.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import hiredis
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from txredisapi import HiredisProtocol, InvalidData, RedisError, ResponseError
from zope.interface import implementer

from elemta.directwrite import write_at_once
from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.address import ServerAddress, ValkeyLogin
from elemta.valkey.resp import Script, Word, kind_of, pack
from elemta.valkey.rights import Rights

if TYPE_CHECKING:
    from elemta.valkey.tls_handshake import ValkeyHandshake

_PING = pack(["PING"])
_ASKING = pack(["ASKING"])
_SILENT_SECONDS = 3
_PIPELINE = 4


class ConnectionLost(RedisError):  # type: ignore[misc]  # txredisapi has no types
    """Stands in for the reply that a closed connection can't give any more."""


class ReplyWaiter(Protocol):
    """A caller that waits for a reply."""

    def replied(self, reply: Any) -> None:
        """The reply; an error is an instance of RedisError. Must not raise."""


class _Later:
    """Waits with a Deferred."""

    __slots__ = ("_connection", "deferred")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.deferred: Deferred[Any] = Deferred()

    def replied(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self.deferred.errback(self._connection.trouble(reply))
        else:
            self.deferred.callback(reply)


class _Ignored:
    """Drop replies without a caller; log only that a right is missing."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def replied(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._connection.trouble(reply)


# What the reader gives when there is no whole reply yet; no reply of RESP2 is one, and that of Debian 12 has
# no other way to say it.
_NOTHING = False


@implementer(IHandshakeListener)
class Connection(HiredisProtocol):  # type: ignore[misc]  # txredisapi has no types
    """Sends frames and gives the replies to the callers that wait, in order.

    ``lost`` is called once when the connection is over. ``waiting`` has all callers whose reply is not there
    yet, in the order of the commands.
    """

    def __init__(self, address: ServerAddress, lost: Callable[[Connection], None]) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.address = address
        self._reader = hiredis.Reader(protocolError=InvalidData, replyError=ResponseError)
        self._lost: Callable[[Connection], None] | None = lost
        self.waiting: deque[ReplyWaiter] = deque()
        self.why = ""
        self._heard = False
        self._silent = 0
        self._closing = False
        self._loading: set[bytes] = set()
        self.rights: Rights | None = None
        self.cannot_load = ""
        self._ignored = _Ignored(self)
        self._secured: Deferred[None] = Deferred()

    # What is asked of it.

    async def greet(
        self, login: ValkeyLogin, handshake: ValkeyHandshake | None, scripts: Iterable[Script], rights: Rights
    ) -> None:
        """Log in, choose the database, leave the scripts there. ValkeyError; TLSRefused before that."""
        self.rights = rights
        if handshake is not None:
            # Nothing is sent, least of all the password, before the server is verified.
            await self._secured
            handshake.check(self.transport.getHandle())
        try:
            hello = await self.execute_command(*login.hello())
        except ValkeyError as trouble:
            # A server that does not know HELLO repeats what it was sent.
            if "unknown command" in str(trouble):
                raise ValkeyError(ValkeyFailure.OTHER, "it does not know the command HELLO") from None
            raise
        about = dict(zip(hello[::2], hello[1::2], strict=False)) if isinstance(hello, list) else {}
        if b"server" not in about:
            raise ValkeyError(ValkeyFailure.OTHER, "it is no Valkey")
        if login.primary and about.get(b"role") not in (None, b"master"):
            raise ValkeyError(ValkeyFailure.READONLY, "it is a replica")
        if login.database:
            await self.execute_command("SELECT", login.database)
        for script in scripts:
            self.load(script)
        # Only now is it known that it answers: HELLO does while the data is loaded.
        if await self.execute_command("PING") != b"PONG":
            raise ValkeyError(ValkeyFailure.OTHER, "it is no Valkey")

    def send(self, frame: bytes, who: ReplyWaiter) -> None:
        """Send one packed command."""
        waiting = self.waiting
        # At once is a system call for each; when there are many, the reactor sends them together.
        if len(waiting) < _PIPELINE:
            waiting.append(who)
            write_at_once(self.transport, frame)
        else:
            waiting.append(who)
            self.transport.write(frame)

    def send_asking(self, frame: bytes, who: ReplyWaiter) -> None:
        """Send one packed command behind an ASKING, with nothing in between."""
        self.waiting.append(self._ignored)
        self.send(_ASKING + frame, who)

    def load(self, script: Script) -> None:
        """Leave a script there, for the commands that are sent after this one."""
        if script.sha not in self._loading:
            self._loading.add(script.sha)
            self.send(pack(["SCRIPT", "LOAD", script.text]), _Loaded(self, self._loading, script.sha))

    def execute_command(self, *words: Word, **options: Any) -> Deferred[Any]:
        """One command, also those that txredisapi has methods for; fails with ValkeyError."""
        if self._lost is None:
            raise ValkeyError(ValkeyFailure.DISCONNECTED, "not connected")
        later = _Later(self)
        self.send(pack(words), later)
        if options.get("post_proc") is not None:
            later.deferred.addCallback(options["post_proc"])
        return later.deferred

    @staticmethod
    def is_lost(error: Exception) -> bool:
        """Whether this was no reply: the connection ended before there was one."""
        return isinstance(error, ConnectionLost)

    def trouble(self, error: Exception) -> ValkeyError:
        """What came instead of a reply."""
        if isinstance(error, ConnectionLost):
            return ValkeyError(ValkeyFailure.DISCONNECTED, str(error), maybe_done=True)
        words = str(error)
        return ValkeyError(kind_of(words), words) if self.rights is None else self.rights.trouble(words)

    def watch(self) -> None:
        """To be called every second: asks for a sign of life, and aborts when there is none."""
        if self._heard or not self.waiting:
            self._silent = 0
        else:
            self._silent += 1
            if self._silent >= _SILENT_SECONDS:
                self.abort("it does not answer")
                return
        self._heard = False
        if not self.waiting:
            self.send(_PING, self._ignored)

    def close(self) -> None:
        """Close when what is under way has its replies."""
        self._closing = True
        if not self.waiting and self._lost is not None:
            self.transport.loseConnection()

    def abort(self, why: str) -> None:
        """Close now; all callers that wait get the error."""
        if self._lost is not None and not self.why:
            self.why = why
            self.transport.abortConnection()

    # What Twisted tells it.

    def connectionMade(self) -> None:
        # Not asked of the transport: that of a Unix socket says that it is TCP, in Twisted 22.4.
        if not self.address.path:
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)

    def handshakeCompleted(self) -> None:
        self._secured.callback(None)

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:  # noqa: ARG002
        self._heard = True
        waiting = self.waiting
        next_reply = self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := next_reply()) is not _NOTHING:
                if not waiting:
                    # Such as "max number of clients reached", which answers no command.
                    self.abort(str(reply) if isinstance(reply, Exception) else "it replied to no command")
                    return
                waiting.popleft().replied(reply)
        except InvalidData as error:
            self.abort(f"it does not speak RESP: {error}")
            return
        if self._closing and not waiting:
            self.transport.loseConnection()

    def connectionLost(self, why: Failure = connectionDone) -> None:
        tell, self._lost = self._lost, None
        self.why = self.why or why.getErrorMessage()
        if tell is not None:
            tell(self)
        if not self._secured.called:
            self._secured.addErrback(_ignore)
            self._secured.errback(ValkeyError(ValkeyFailure.DISCONNECTED, self.why))
        waiting, self.waiting = self.waiting, deque()
        for who in waiting:
            who.replied(ConnectionLost(self.why))


class _Loaded:
    """Waits for the end of a SCRIPT LOAD."""

    __slots__ = ("_connection", "_loading", "_sha")

    def __init__(self, connection: Connection, loading: set[bytes], sha: bytes) -> None:
        self._connection, self._loading, self._sha = connection, loading, sha

    def replied(self, reply: Any) -> None:
        self._loading.discard(self._sha)
        refused = isinstance(reply, Exception) and not isinstance(reply, ConnectionLost)
        # No reason to fail yet: the script may be there already.
        self._connection.cannot_load = str(self._connection.trouble(reply)) if refused else ""


class ConnectionFactory(Factory):
    """Builds one connection for an endpoint."""

    noisy = False

    def __init__(self, address: ServerAddress, lost: Callable[[Connection], None]) -> None:
        self._address, self._lost = address, lost

    def buildProtocol(self, addr: Any) -> Connection:  # noqa: ARG002
        connection = Connection(self._address, self._lost)
        connection.factory = self
        return connection


def _ignore(failure: Failure) -> None:
    """A connection without TLS does not need this."""
