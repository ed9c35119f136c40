"""The admin calls about spools: this node's own, and those of other nodes that it adopts."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from twisted.logger import Logger

from elemta.daemon.adoption import SpoolStatus
from elemta.daemon.adoption_registry import AdoptionRegistry
from elemta.errors import NoSpool
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Text

_log = Logger()

# PATH_MAX
_LONGEST_PATH = 4096
_Directory = Annotated[str, Text(_LONGEST_PATH, "an absolute path", r"[^\0]+")]


@dataclass(frozen=True, slots=True)
class SpoolListing:
    """The spools that are delivered from, the node's own first."""

    spools: tuple[SpoolStatus, ...]


class SpoolOperations:
    """Shows, adopts and gives back spools."""

    def __init__(self, adoptions: AdoptionRegistry) -> None:
        self._adoptions = adoptions

    @route("GET", "/v1/spools")
    async def list(self) -> SpoolListing:
        """The spools that are delivered from."""
        return SpoolListing(tuple(self._adoptions.all()))

    @route("POST", "/v1/spools/adopt")
    async def adopt(self, directory: _Directory) -> SpoolStatus:
        """Deliver what is in another node's spool, until it is empty."""
        _log.info(
            "an operator started the adoption of a spool", event="admin.spool_adopted", directory=directory
        )
        try:
            return await self._adoptions.adopt(directory)
        except NoSpool as error:
            hint = "name the directory that has p0 in it, by its absolute path as the daemon sees it"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, str(error), hint) from error

    @route("POST", "/v1/spools/give-back")
    async def give_back(self, directory: _Directory) -> SpoolStatus:
        """Stop delivering from a spool that was adopted, and let its node have it."""
        _log.info(
            "an operator ended the adoption of a spool", event="admin.spool_given_back", directory=directory
        )
        return await self._adoptions.give_back(directory)
