"""Deliveries for tests of operations on destinations: what the test says of each, and what was asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from elemta.destination_status import OPEN, DestinationState, DestinationStatus

PAUSED = DestinationStatus(DestinationState.PAUSED)


@dataclass
class Pauses:
    """What is paused, in memory."""

    names: list[str] = field(default_factory=list)

    async def add(self, name: str) -> None:
        self.names.append(name)

    async def remove(self, name: str) -> None:
        self.names.remove(name)


@dataclass
class Destined:
    """A node's only delivery. Mail goes to ``known``; ``said`` is how a destination does."""

    known: tuple[str, ...] = ("example.org", "smtp://hop.test:25")
    said: dict[str, DestinationStatus] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    pauses: Pauses = field(default_factory=Pauses)

    @property
    def deliveries(self) -> tuple[Destined]:
        return (self,)

    @property
    def waits(self) -> Destined:
        return self

    @property
    def commands(self) -> Destined:
        return self

    def status(self, name: str) -> DestinationStatus:
        return PAUSED if name in self.pauses.names else self.said.get(name, OPEN)

    def destination_of(self, name: str) -> str | None:
        return name if name in self.known else None

    def route_of(self, name: str) -> str:
        return name if "/" in name else "mx:"

    def probe(self, name: str, first_due: float = 0.0) -> None:
        self.asked.append(("probe", name))

    def pause(self, names: list[str]) -> None:
        self.asked += [("pause", name) for name in names]

    def resume(self, name: str, first_due: float = 0.0) -> None:
        self.asked.append(("resume", name))
