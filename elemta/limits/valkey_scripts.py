"""What is said to Valkey: the scripts, the keys, and the specs of limits as the scripts read them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from elemta.limits.store import LimitSpec, Request
from elemta.limits.window import LOG_LIMIT, Bound
from elemta.valkey import Script

_FOLDER = files("elemta.limits").joinpath("scripts")
_GLOB = str.maketrans({sign: f"\\{sign}" for sign in "*?[]\\"})


def _script(flags: str, *parts: str) -> Script:
    texts = [_FOLDER.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("counters", *parts)]
    return Script(parts[-1], "\n".join([f"#!lua{flags}", *texts]))


# Without allow-oom a full server refuses before anything is charged. What gives back frees memory.
ACQUIRE = _script("", "acquire")
CANCEL = _script(" flags=allow-oom", "takeback", "cancel")
RETURN = _script(" flags=allow-oom", "takeback", "return")
RENEW = _script(" flags=allow-oom", "renew")
PEEK = _script(" flags=no-writes,allow-oom", "look", "peek")
SERIES = _script(" flags=no-writes,allow-oom", "look", "series")


@dataclass(frozen=True, slots=True)
class Definition:
    """A limit's spec in a script's words.

    ``order`` are the bounds' places in the spec, in the order in which the scripts count them: those that
    keep an exact log, then those in sub-buckets. ``spec`` is kept so that its ``id`` stays its own.
    """

    spec: LimitSpec
    words: bytes
    order: tuple[int, ...]
    in_buckets: bool

    @classmethod
    def of(cls, spec: LimitSpec) -> Definition:
        log = [place for place, bound in enumerate(spec.bounds) if _in_log(bound)]
        buckets = [place for place, bound in enumerate(spec.bounds) if not _in_log(bound)]
        # The script takes bounds of one window that stand together for one series.
        buckets.sort(key=lambda place: spec.bounds[place].window)
        numbers = [int(spec.binding), -1 if spec.leases is None else spec.leases]
        for places in (log, buckets):
            numbers.append(len(places))
            for place in places:
                numbers += (spec.bounds[place].limit, spec.bounds[place].window)
        return cls(spec, b" ".join(b"%d" % number for number in numbers), (*log, *buckets), bool(buckets))


class Definitions:
    """The definitions of the specs in use, found by the identity of the object: specs are slow to hash."""

    _MOST = 4096  # after so many reloads

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, Definition] = {}

    def of(self, spec: LimitSpec) -> Definition:
        known = self._known.get(id(spec))
        if known is None:
            if len(self._known) >= self._MOST:
                self._known.clear()
            known = self._known[id(spec)] = Definition.of(spec)
        return known


class Keys:
    """The names of keys. In a cluster the identity is the hash tag, unless the prefix has one already.

    Keys of one tag are on one server, and only they can be in one call; without a cluster all are.
    """

    __slots__ = ("_tagged", "prefix")

    def __init__(self, prefix: str, *, clustered: bool) -> None:
        self.prefix = prefix
        self._tagged = clustered and not _has_tag(prefix)

    def of(self, request: Request) -> bytes:
        if self._tagged:
            return f"{self.prefix}{request.spec.name}:{{{request.identity}}}".encode()
        return f"{self.prefix}{request.spec.name}:{request.identity}".encode()

    def tag(self, request: Request) -> str:
        """What the keys that can be asked for together have in common."""
        return request.identity if self._tagged else ""

    def note(self, name: str, tag: str) -> bytes:
        """The key of a note about one call; no limit's name begins like this."""
        return f"{self.prefix}~{name}{{{tag}}}".encode() if tag else f"{self.prefix}~{name}".encode()

    def identity(self, spec: LimitSpec, key: bytes) -> str | None:
        """Whose key this is, if it is one of this limit."""
        start = f"{self.prefix}{spec.name}:"
        name = key.decode("utf-8", "replace").removesuffix("~")
        if not name.startswith(start):
            return None
        name = name.removeprefix(start)
        return name.removeprefix("{").removesuffix("}") if self._tagged else name

    def pattern(self, spec: LimitSpec) -> bytes:
        """The glob that matches all keys of a limit."""
        return f"{self.prefix}{spec.name}:".translate(_GLOB).encode() + b"*"


def _in_log(bound: Bound) -> bool:
    return bound.grain == 1 and bound.limit <= LOG_LIMIT


def _has_tag(prefix: str) -> bool:
    _, opened, rest = prefix.partition("{")
    tag, closed, _ = rest.partition("}")
    return bool(opened and closed and tag)
