"""Live SMTP conversations for an operator that watches: those with clients, and those with next hops.

While nothing watches, a conversation has no :class:`TracedConversation`, and each command costs the look at
one attribute. A watch keeps a bounded number of lines: one that is not read loses the oldest, counts them,
and ends after :data:`UNREAD_SECONDS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from elemta.ip import IPAddress, IPNetwork

MOST_WATCHES = 4
"""Watches at a time."""

MOST_LINES = 2000
"""Lines that wait for the reader of one watch."""

LONGEST_LINE = 1000
"""Characters of a line."""

UNREAD_SECONDS = 30.0
"""A watch that is not read for so long ends."""

_RECENT = 50
"""Lines of a conversation from before it matched."""

_MOST_FOLLOWED = 1000


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One line of a conversation, ``at`` seconds since the epoch.

    ``direction`` is ``in`` for a client's conversation with this host, and ``out`` for one with a next hop.
    ``sent_by`` is ``client`` or ``server``, the one that speaks; empty for a note.
    """

    at: float
    direction: str
    conversation: str
    peer: str
    sent_by: str
    text: str


class TraceWatch:
    """What one operator watches: conversations of ``network``, those with a recipient in ``domain``, or all.

    With ``only_one`` it ends with the first conversation that it shows.
    """

    def __init__(self, network: IPNetwork | None, domain: str | None, *, only_one: bool, now: float) -> None:
        self.ended = False
        self.read_at = now
        self._network = network
        self._domain = None if domain is None else domain.lower()
        self._only_one = only_one
        self._lines: deque[TraceLine] = deque()
        self._lost = 0
        self._followed: dict[TracedConversation, None] = {}
        self._wake: Callable[[], object] | None = None

    def take(self, most: int, now: float) -> tuple[list[TraceLine], int]:
        """Up to so many lines, and how many were lost since the last call."""
        self.read_at = now
        lines = [self._lines.popleft() for _ in range(min(most, len(self._lines)))]
        lost, self._lost = self._lost, 0
        return lines, lost

    @property
    def waiting(self) -> int:
        """Lines that can be taken."""
        return len(self._lines)

    def call_when_ready(self, wake: Callable[[], object] | None) -> None:
        """Call ``wake`` once, when there is a line or the end."""
        self._wake = wake

    def heard(self, conversation: TracedConversation, line: TraceLine) -> None:
        """A conversation went on."""
        if conversation in self._followed:
            self._keep(line)
        elif not self.ended and self._wants(conversation):
            self._followed[conversation] = None
            for each in conversation.recent:
                self._keep(each)

    def left(self, conversation: TracedConversation) -> None:
        """A conversation is over."""
        if self._followed.pop(conversation, conversation) is None and self._only_one:
            self.end()

    def end(self) -> None:
        """Nothing more is shown."""
        self.ended = True
        self._followed.clear()
        self._tell()

    def _wants(self, conversation: TracedConversation) -> bool:
        if len(self._followed) >= (1 if self._only_one else _MOST_FOLLOWED):
            return False
        network, domain = self._network, self._domain
        if network is not None and (conversation.peer is None or conversation.peer not in network):
            return False
        return domain is None or domain in conversation.domains

    def _keep(self, line: TraceLine) -> None:
        if len(self._lines) >= MOST_LINES:
            self._lines.popleft()
            self._lost += 1
        self._lines.append(line)
        self._tell()

    def _tell(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()


class TracedConversation:
    """One conversation while something watches. ``domains`` are those of its recipients so far."""

    def __init__(
        self, hub: ConversationTrace, direction: str, name: str, peer: IPAddress | None, shown: str
    ) -> None:
        self._hub = hub
        self._direction = direction
        self._name = name
        self._shown = shown
        self.peer = peer
        self.domains: dict[str, None] = {}
        self.recent: deque[TraceLine] = deque(maxlen=_RECENT)

    def said(self, by_client: bool, text: str) -> None:
        """A side said a line."""
        self._add("client" if by_client else "server", text)

    def note(self, text: str) -> None:
        """Something happened that is no line."""
        self._add("", text)

    def recipient(self, domain: str) -> None:
        """A recipient in this domain is about to be named."""
        if len(self.domains) < _MOST_FOLLOWED:
            self.domains[domain.lower()] = None

    def ended(self) -> None:
        """It is over."""
        self.note("the connection is closed")
        for watch in self._hub.watches:
            watch.left(self)

    def _add(self, sent_by: str, text: str) -> None:
        hub = self._hub
        if not hub.watches:
            return
        line = TraceLine(hub.wall(), self._direction, self._name, self._shown, sent_by, text[:LONGEST_LINE])
        self.recent.append(line)
        hub.heard(self, line)


class ConversationTrace:
    """The watches of this node. ``wall`` gives seconds since the epoch, ``seconds`` a steady clock."""

    def __init__(self, wall: Callable[[], float], seconds: Callable[[], float]) -> None:
        self.wall = wall
        self._seconds = seconds
        self.watches: tuple[TraceWatch, ...] = ()

    def watch(
        self, network: IPNetwork | None = None, domain: str | None = None, *, only_one: bool = False
    ) -> TraceWatch | None:
        """A new watch; None where there are :data:`MOST_WATCHES` already."""
        self._end_unread()
        if len(self.watches) >= MOST_WATCHES:
            return None
        made = TraceWatch(network, domain, only_one=only_one, now=self._seconds())
        self.watches = (*self.watches, made)
        return made

    def take(self, watch: TraceWatch, most: int) -> tuple[list[TraceLine], int]:
        """Up to so many lines of a watch, and how many were lost before them."""
        return watch.take(most, self._seconds())

    def end(self, watch: TraceWatch) -> None:
        """A watch is not wanted any more."""
        watch.end()
        self.watches = tuple(each for each in self.watches if each is not watch)

    def conversation(
        self, direction: str, name: str, peer: IPAddress | None, shown: str
    ) -> TracedConversation | None:
        """The conversation for the watches; None while there are none."""
        return TracedConversation(self, direction, name, peer, shown) if self.watches else None

    def heard(self, conversation: TracedConversation, line: TraceLine) -> None:
        self._end_unread()
        for watch in self.watches:
            watch.heard(conversation, line)

    def _end_unread(self) -> None:
        oldest = self._seconds() - UNREAD_SECONDS
        for watch in self.watches:
            if watch.read_at < oldest:
                self.end(watch)
