"""Opening spools: this node's own at the start, and those of other nodes that it adopts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from twisted.internet.base import ReactorBase

from elemta.adoption import Workshop
from elemta.assembly import Lasting
from elemta.config import Config
from elemta.delivery import Delivery
from elemta.ownership import Title
from elemta.spool import Spool, SpoolSettings
from elemta.spool.opening import Permit
from elemta.spool.partition import Partition

_ADOPTED = "which has adopted it"


class SpoolKeys:
    """How spools are opened under one configuration, and by what right."""

    def __init__(self, reactor: ReactorBase, lasting: Lasting, config: Config) -> None:
        self._reactor = reactor
        self._lasting = lasting
        self._config = config

    async def open_own(self, goes_on: Callable[[], bool]) -> tuple[Spool, Title]:
        """This node's spool. SpoolLocked: another has it. SpoolError."""
        title = self._title()

        async def permit(partition: Partition) -> None:
            await title.claim_own(partition, goes_on)

        try:
            return await self._open(Path(self._config.spool.directory), 0, permit), title
        except BaseException:
            await title.leave()
            raise

    def workshop(self, own: Spool, deliver: Callable[[Spool], Delivery]) -> Workshop:
        """What an adoption needs; what blocks is done in a thread of the spool ``own``."""

        def open_adopted(directory: Path, number: int, permit: Permit) -> Awaitable[Spool]:
            return self._open(directory, number, permit, _ADOPTED)

        return Workshop(
            node=self._config.server.node_id,
            title=self._title,
            open=open_adopted,
            deliver=deliver,
            in_thread=own.in_disk_thread,
        )

    def _title(self) -> Title:
        return Title(self._lasting.fleet, self._reactor, self._config.server.node_id)

    async def _open(self, directory: Path, number: int, permit: Permit, how: str = "") -> Spool:
        settings = SpoolSettings(
            directory,
            number,
            node=self._config.server.node_id,
            how=how,
            minimum_free=self._config.spool.minimum_free,
        )
        return await Spool.open(
            settings,
            reactor=self._reactor,
            observer=self._lasting.metrics.spool,
            permit=permit,
            now=self._lasting.clocks.wall,
        )
