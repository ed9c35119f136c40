"""What may stand next in a command line of ``elemtactl``, for the completion of shells.

Words come from the grammar; ids, limits, destinations and plugins from the daemon, which is given a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from elemta.ctl.client import AdminClient
from elemta.ctl.exit_codes import CommandFailed

COMMAND = "__complete"
"""The first argument with which a shell asks; all others are the words of the line up to the cursor."""

SECONDS = 1.0
# How many of a kind are offered.
_MOST = "200"

Ask = Callable[[AdminClient], Iterator[str]]
Connect = Callable[[str | None, str | None], AdminClient]


def candidates(words: Sequence[str], top: argparse.ArgumentParser, client: Connect) -> list[str]:
    """What the last of ``words``, which may be empty, may become; none where the shell knows more.

    ``client`` gives the daemon by the values of ``--config`` and ``--socket``.
    """
    *before, last = words or [""]
    place = _WordPlace(top)
    for word in before:
        place.take(word)
    known = list(place.words())
    ask = place.asks()
    if ask is not None and not last.startswith("-"):
        # A daemon that is not there or slow does not matter for the rest.
        with suppress(CommandFailed):
            known += ask(client(place.values.get("--config"), place.values.get("--socket")))
    return [word for word in dict.fromkeys(known) if word.startswith(last) and word]


class _WordPlace:
    """Where a command line has come to."""

    def __init__(self, top: argparse.ArgumentParser) -> None:
        self.path: tuple[str, ...] = ()
        self.values: dict[str, str] = {}
        self._parser = top
        self._option: argparse.Action | None = None
        self._positional = 0

    def take(self, word: str) -> None:
        if self._option is not None:
            self.values[self._option.option_strings[-1]] = word
            self._option = None
        elif word.startswith("-"):
            name, sign, value = word.partition("=")
            found = self._parser._option_string_actions.get(name)
            self._option = found if found is not None and found.nargs != 0 else None
            if sign and self._option is not None:
                # --config=FILE has its value in it.
                self.take(value)
        elif word in (inside := self._commands()):
            self.path, self._parser, self._positional = (*self.path, word), inside[word], 0
        else:
            self._positional += 1

    def words(self) -> Iterator[str]:
        """The words of the grammar that fit here."""
        if self._option is not None:
            yield from map(str, self._option.choices or ())
            return
        yield from self._commands()
        yield from self._parser._option_string_actions

    def asks(self) -> Ask | None:
        """What the daemon may know for this place."""
        if self._option is not None:
            return _destinations if "--destination" in self._option.option_strings else None
        actions = [
            each
            for each in self._parser._actions
            if not each.option_strings and not isinstance(each, argparse._SubParsersAction)
        ]
        if not actions or (self._positional >= len(actions) and actions[-1].nargs not in ("*", "+")):
            return None
        action = actions[min(self._positional, len(actions) - 1)]
        return _ASKED.get((self.path[:1], action.dest))

    def _commands(self) -> Mapping[str, argparse.ArgumentParser]:
        for action in self._parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}


def _ids(client: AdminClient) -> Iterator[str]:
    return (each["queue_id"] for each in client.get("queue", limit=_MOST)["messages"])


def _destinations(client: AdminClient) -> Iterator[str]:
    return (each["name"] for each in client.get("destinations", limit=_MOST)["destinations"])


def _limits(client: AdminClient) -> Iterator[str]:
    return (each["name"] for each in client.get("limits")["limits"])


def _identities(client: AdminClient) -> Iterator[str]:
    found: Sequence[Mapping[str, Any]] = client.get("limits", "top", count=_MOST)["limits"]
    return (text for each in found for text in (each["identity"], f"{each['limit']}:{each['identity']}"))


def _limits_and_identities(client: AdminClient) -> Iterator[str]:
    yield from _limits(client)
    yield from _identities(client)


def _plugins(client: AdminClient) -> Iterator[str]:
    return (each["name"] for each in client.get("plugins")["plugins"])


def _spools(client: AdminClient) -> Iterator[str]:
    return (each["directory"] for each in client.get("spools")["spools"])


# By the command's first word and the name of the argument.
_ASKED: Mapping[tuple[tuple[str, ...], str], Ask] = {
    (("queue",), "ids"): _ids,
    (("queue",), "id"): _ids,
    (("find",), "text"): _ids,
    (("destinations",), "name"): _destinations,
    (("limits",), "limit"): _limits,
    (("limits",), "name"): _limits,
    (("limits",), "of"): _limits_and_identities,
    (("limits",), "id"): _identities,
    (("limits",), "identity"): _identities,
    (("plugins",), "name"): _plugins,
    (("spool",), "directory"): _spools,
}
