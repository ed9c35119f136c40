"""The calls of the admin API about spools."""

from __future__ import annotations

from twisted.logger import Logger
from twisted.web import http

from elemta.errors import NoSpool, SpoolLocked
from elemta.ops.admin_calls import AdminCall, AdminRefusal
from elemta.ops.admin_json import Json
from elemta.ops.admin_operations import SpoolOperations, SpoolStatus

_log = Logger()

# PATH_MAX
_LONGEST_PATH = 4096


class SpoolCalls:
    """The spools that this daemon delivers from: its own, and those that it adopted."""

    def __init__(self, spools: SpoolOperations) -> None:
        self._spools = spools

    async def all(self, call: AdminCall) -> Json:
        call.only()
        return {"spools": [_status_json(status) for status in self._spools.all()]}

    async def adopt(self, call: AdminCall) -> Json:
        call.only("directory")
        directory = _directory(call)
        _log.info(
            "an operator started the adoption of a spool", event="admin.spool_adopted", directory=directory
        )
        try:
            return _status_json(await self._spools.adopt(directory))
        except SpoolLocked as error:
            hint = "nothing was changed; it can be adopted when its owner is gone"
            raise AdminRefusal(http.CONFLICT, str(error), hint, {"owner": error.node}) from error
        except NoSpool as error:
            hint = "name the directory that has p0 in it, by its absolute path as the daemon sees it"
            raise AdminRefusal(http.NOT_FOUND, str(error), hint) from error

    async def give_back(self, call: AdminCall) -> Json:
        call.only("directory")
        directory = _directory(call)
        _log.info(
            "an operator ended the adoption of a spool", event="admin.spool_given_back", directory=directory
        )
        try:
            return _status_json(await self._spools.give_back(directory))
        except NoSpool as error:
            raise AdminRefusal(http.NOT_FOUND, str(error), "spool list shows which it has") from error


def _directory(call: AdminCall) -> str:
    directory = call.query.get("directory", "")
    if not directory or len(directory) > _LONGEST_PATH or "\0" in directory:
        raise AdminRefusal(http.BAD_REQUEST, "directory is missing or too long", "an absolute path")
    return directory


def _status_json(status: SpoolStatus) -> Json:
    messages = status.messages
    return {
        "directory": status.directory,
        "state": status.state,
        "reason": status.reason,
        "messages": None if messages is None else sum(messages.values()),
        "states": None if messages is None else {state.value: messages[state] for state in messages},
        "left": list(status.left),
    }
