"""Scripts that run inside Valkey."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script. ``name`` is for logs, ``sha`` by which Valkey knows the text once it was loaded."""

    name: str
    text: str = field(repr=False)
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        # Not for safety: the name that Valkey gives it.
        digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest.encode())

    @classmethod
    def of_package(cls, package: str, path: str) -> Script:
        """The script in a file of a package: ``Script.of_package("elemta.limits", "scripts/take.lua")``."""
        name = path.rpartition("/")[2].removesuffix(".lua")
        return cls(name, files(package).joinpath(path).read_text(encoding="utf-8"))
