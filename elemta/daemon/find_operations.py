"""The admin call that finds messages: what became of each, by what a person knows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from elemta.daemon.joined_answers import LONGEST_PLACE, NodeAnswer
from elemta.errors import UnknownPlace
from elemta.history.lives import MessageLife
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Count, Text
from elemta.spool import Spool
from elemta.spool.message_search import MOST_FOUND, MessageSearch

LONGEST_TEXT = 1000


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page of messages, the newest first; ``next`` is the ``after`` of the next page, None at the end.

    ``history`` is false where ``[spool] history`` is 0, so that only queued messages were looked through.
    ``node_id`` is the node that was asked, ``nodes`` are those whose messages were sought.
    """

    node_id: str
    history: bool
    messages: tuple[MessageLife, ...]
    next: str | None
    nodes: tuple[NodeAnswer, ...]


class FindOperations:
    """Finds messages in the history and in the queue of the spools ``own`` and ``others()``."""

    def __init__(self, own: Spool, others: Callable[[], Sequence[Spool]], node_id: str) -> None:
        self._search = MessageSearch(own, others)
        self._node_id = node_id

    @route("GET", "/v1/find")
    async def find(
        self,
        text: Annotated[
            str, Text(LONGEST_TEXT, "text=…: a queue id, a Message-ID, an address, an IP address")
        ],
        limit: Annotated[int, Count(most=MOST_FOUND)] = 20,
        after: Annotated[str, Text(LONGEST_PLACE)] | None = None,
    ) -> FoundPage:
        """What became of messages: by queue id, Message-ID, address, client IP or the next hop's id."""
        try:
            found = await self._search.find(text, limit, after)
        except UnknownPlace as error:
            hint = "after is the next of the page before"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, str(error), hint) from error
        return FoundPage(
            self._node_id, found.history, found.messages, found.next, (NodeAnswer(self._node_id),)
        )
