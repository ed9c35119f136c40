"""The faults of one configuration, gathered while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from elemta.config.redaction import shown
from elemta.config.values import Unacceptable
from elemta.errors import ConfigError, Fault

_T = TypeVar("_T")


class Faults:
    """Gathers faults. ``places`` names the environment variable of each key that one has set."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.places: dict[str, str] = {}
        self._faults: list[Fault] = []

    def add(self, key: str, problem: str, hint: str = "") -> None:
        """Note what is wrong with a key."""
        self._faults.append(Fault(self.place_of(key), key, problem, hint))

    def add_found(self, key: str, found: object, problem: str, hint: str = "") -> None:
        """Note what is wrong with what was found at a key; the text has no secrets."""
        self.add(key, f"found {shown(key, found)}: {problem}", hint)

    def add_value(self, key: str, found: object, error: ValueError) -> None:
        """Note that a key has a value that it can't have."""
        if isinstance(error, Unacceptable):
            self.add_found(key, found, error.problem, error.hint)
        else:
            self.add_found(key, found, str(error))

    def add_variable(self, name: str, problem: str, hint: str = "") -> None:
        """Note what is wrong with an environment variable that sets no key."""
        self._faults.append(Fault(name, "", problem, hint))

    @property
    def any(self) -> bool:
        """Whether a fault was noted."""
        return bool(self._faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def extend(self, faults: Iterable[Fault]) -> None:
        self._faults.extend(faults)

    def place_of(self, key: str) -> str:
        """The file, or the environment variable, that the key's value is from."""
        return self.places.get(key, self.place)

    def within(self, prefix: str) -> bool:
        """Whether a fault was found at this key or below it."""
        return any(
            fault.key == prefix or fault.key.startswith((f"{prefix}.", f"{prefix}["))
            for fault in self._faults
        )

    def unless_any(self, read: _T | None) -> _T:
        """What was read. Raises ConfigError with all that was found, if anything was."""
        if self._faults:
            raise ConfigError(self._faults)
        if read is None:
            raise RuntimeError(f"{self.place}: nothing was read, and no fault was noted")
        return read
