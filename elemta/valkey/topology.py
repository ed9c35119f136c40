"""Which servers there are, and which of them has a key: the part that differs between the kinds of set-up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from elemta.errors import ValkeyError
from elemta.valkey.address import ServerAddress
from elemta.valkey.pool import ConnectionOptions, ServerPool
from elemta.valkey.resp import Move

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection


class Topology(ABC):
    """The servers behind one URL. ``review`` is called whenever ``up`` may have changed."""

    clustered = False

    def __init__(self, dialling: ConnectionOptions, review: Callable[[], None]) -> None:
        self._dialling = dialling
        self._review = review

    @property
    @abstractmethod
    def up(self) -> bool:
        """Whether every key has a primary that answers."""

    @property
    @abstractmethod
    def primaries(self) -> Sequence[ServerPool]:
        """The primaries that are known."""

    @property
    @abstractmethod
    def trouble(self) -> ValkeyError:
        """Why it is not up."""

    @abstractmethod
    def connection(self, key: bytes | None) -> Connection | None:
        """A connection to the primary of a key; None when there is none now."""

    @abstractmethod
    def start(self) -> None:
        """Begin to connect."""

    @abstractmethod
    def stop(self) -> Iterable[Deferred[None]]:
        """Close every connection; a Deferred for each that is still open."""

    @abstractmethod
    def watch(self) -> None:
        """To be called every second."""

    def redirected(self, move: Move, said_by: Connection, *, for_good: bool) -> Connection | None:  # noqa: ARG002
        """A connection to where a server sends us, if there is one already."""
        return None

    def doubt(self) -> None:  # noqa: B027  # there is nothing to doubt about one server
        """The servers are not what we think they are: look again soon."""

    def distrust(self, connection: Connection, words: str) -> None:
        """A server said that it is not, or no longer, what it is used as: begin anew with it."""
        for pool in self.primaries:
            if pool.address == connection.address:
                pool.renew(words)
        connection.abort(words)


class Single(Topology):
    """One server, always at the same address."""

    def __init__(
        self, address: ServerAddress, dialling: ConnectionOptions, review: Callable[[], None]
    ) -> None:
        super().__init__(dialling, review)
        self._pool = ServerPool(address, dialling, lambda _: review())

    @property
    def up(self) -> bool:
        return self._pool.connection is not None

    @property
    def primaries(self) -> Sequence[ServerPool]:
        return (self._pool,)

    @property
    def trouble(self) -> ValkeyError:
        return self._pool.trouble

    def connection(self, key: bytes | None) -> Connection | None:  # noqa: ARG002
        return self._pool.connection

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> Iterable[Deferred[None]]:
        return self._pool.stop()

    def watch(self) -> None:
        self._pool.watch()
