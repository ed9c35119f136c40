"""A primary that Sentinels know: found by asking them, and changed when they say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.config.valkey_url import ValkeyURL
from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.address import ServerAddress, ValkeyLogin
from elemta.valkey.pool import ConnectionOptions, ServerPool
from elemta.valkey.resp import pack
from elemta.valkey.topology import Topology

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection

_log = Logger()

_ASK_SECONDS = 0.5


class Sentinel(Topology):
    """Asks every Sentinel of the URL all the time, and connects to the primary of the latest election.

    An answer counts for as long as the Sentinel that gave it is connected. When they differ, as during an
    election, the one with the highest epoch is right. Whether that server is a primary it says itself, when
    the connection is opened.
    """

    def __init__(self, url: ValkeyURL, dialling: ConnectionOptions, review: Callable[[], None]) -> None:
        super().__init__(dialling, review)
        self._service = url.service
        login = ValkeyLogin(url.sentinel_username, url.sentinel_password, name=dialling.login.name)
        of_sentinels = replace(dialling, login=login, scripts={})
        self._sentinels = [
            ServerPool(ServerAddress(*host), of_sentinels, self._sentinel_changed, size=1)
            for host in url.hosts
        ]
        self._question = pack(["SENTINEL", "MASTER", url.service])
        self._answers: dict[ServerPool, tuple[int, ServerAddress]] = {}
        self._refusal = ""
        self._primary: ServerPool | None = None
        self._leaving: list[Deferred[None]] = []
        self._asking = LoopingCall(self._ask_all)
        self._asking.clock = dialling.reactor

    @property
    def up(self) -> bool:
        return self._primary is not None and self._primary.connection is not None

    @property
    def primaries(self) -> Sequence[ServerPool]:
        return () if self._primary is None else (self._primary,)

    @property
    def trouble(self) -> ValkeyError:
        if self._primary is not None:
            return self._primary.trouble
        if self._refusal:
            return ValkeyError(ValkeyFailure.OTHER, f"a Sentinel says: {self._refusal}")
        return self._sentinels[0].trouble

    def connection(self, key: bytes | None) -> Connection | None:  # noqa: ARG002
        return None if self._primary is None else self._primary.connection

    def start(self) -> None:
        for sentinel in self._sentinels:
            sentinel.start()
        self._asking.start(_ASK_SECONDS, now=False)

    def stop(self) -> Iterable[Deferred[None]]:
        if self._asking.running:
            self._asking.stop()
        pools = (*self._sentinels, *self.primaries)
        self._primary = None
        return [*self._leaving, *(over for pool in pools for over in pool.stop())]

    def watch(self) -> None:
        for pool in (*self._sentinels, *self.primaries):
            pool.watch()

    def distrust(self, connection: Connection, words: str) -> None:
        super().distrust(connection, words)
        self._ask_all()

    def _ask_all(self) -> None:
        for sentinel in self._sentinels:
            connection = sentinel.connection
            if connection is not None and not connection.waiting:
                connection.send(self._question, _SentinelReply(self, sentinel))

    def _sentinel_changed(self, sentinel: ServerPool) -> None:
        if sentinel.connection is None:
            self._answers.pop(sentinel, None)
        else:
            self._ask_all()

    def _primary_changed(self, primary: ServerPool) -> None:
        if primary.connection is None:
            self._ask_all()
        self._review()

    def answered(self, sentinel: ServerPool, reply: Any) -> None:
        """What a Sentinel says about the primary."""
        if isinstance(reply, Exception):
            self._answers.pop(sentinel, None)
            connection = sentinel.connection
            self._refused(sentinel, str(reply if connection is None else connection.trouble(reply)))
            return
        try:
            found = _primary_of(reply)
        except (KeyError, ValueError, TypeError, AttributeError):
            return
        self._answers[sentinel] = found
        self._use(max(self._answers.values(), key=lambda answer: answer[0])[1])

    def _refused(self, sentinel: ServerPool, words: str) -> None:
        if sentinel.connection is None or words == self._refusal:
            return
        self._refusal = words
        _log.warn(
            "a Sentinel names no primary",
            event="valkey.sentinel_refused",
            address=str(sentinel.address),
            service=self._service,
            reason=words,
        )

    def _use(self, address: ServerAddress) -> None:
        if not self._asking.running or (self._primary is not None and self._primary.address == address):
            return
        before = self._primary
        _log.info(
            "the Sentinels name a primary",
            event="valkey.primary_changed",
            address=str(address),
            before=str(before.address) if before is not None else "",
        )
        self._refusal = ""
        self._primary = ServerPool(address, self._dialling, self._primary_changed)
        if before is not None:
            self._leaving = [over for over in self._leaving if not over.called]
            self._leaving.extend(before.stop())
        self._primary.start()
        self._review()


class _SentinelReply:
    """Waits for what a Sentinel says."""

    __slots__ = ("_asker", "_sentinel")

    def __init__(self, asker: Sentinel, sentinel: ServerPool) -> None:
        self._asker, self._sentinel = asker, sentinel

    def replied(self, reply: Any) -> None:
        self._asker.answered(self._sentinel, reply)


def _primary_of(reply: Any) -> tuple[int, ServerAddress]:
    """The epoch and the address in the reply to SENTINEL MASTER."""
    known = dict(zip(reply[::2], reply[1::2], strict=True))
    return int(known[b"config-epoch"]), ServerAddress(known[b"ip"].decode("ascii"), int(known[b"port"]))
