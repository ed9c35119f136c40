"""Error replies of Valkey, told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from elemta.errors import Trouble

_KINDS = {
    "LOADING": Trouble.LOADING,
    "READONLY": Trouble.READONLY,
    "MASTERDOWN": Trouble.READONLY,
    "OOM": Trouble.OOM,
    "BUSY": Trouble.BUSY,
    "NOREPLICAS": Trouble.NOREPLICAS,
    "CLUSTERDOWN": Trouble.REDIRECTED,
    "TRYAGAIN": Trouble.REDIRECTED,
    "MOVED": Trouble.REDIRECTED,
    "ASK": Trouble.REDIRECTED,
    "NOAUTH": Trouble.DENIED,
    "WRONGPASS": Trouble.DENIED,
    "NOPERM": Trouble.DENIED,
}

_MOVE = re.compile(r"(?:MOVED|ASK) (?P<slot>[0-9]{1,5}) (?P<host>[^ ]*):(?P<port>[0-9]{1,5})(?: .*)?")


def kind_of(words: str) -> Trouble:
    """What an error reply means; its first word says it."""
    kind = _KINDS.get(words.partition(" ")[0])
    if kind is None:
        kind = Trouble.OVERLOADED if "max number of clients" in words else Trouble.OTHER
    return kind


@dataclass(frozen=True, slots=True)
class Move:
    """Another node has the slot. An empty ``host`` is the host of the node that said so."""

    slot: int
    host: str
    port: int


def move_of(words: str) -> Move | None:
    """Where a MOVED or an ASK points to; None for anything else."""
    match = _MOVE.fullmatch(words)
    if match is None or int(match["slot"]) >= 16384:
        return None
    return Move(int(match["slot"]), match["host"], int(match["port"]))
