"""The parser of ``elemtactl``'s command line: argparse, with faults that name what was probably meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from elemta.config.values import nearest

_INVALID_CHOICE = re.compile(r"invalid choice: '(?P<found>[^']*)' \(choose from (?P<known>.*)\)$", re.DOTALL)
_WORD = re.compile(r"[\w-]+")


class CommandGrammar(argparse.ArgumentParser):
    """A parser of a command, or of a group of commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does; but a command itself refuses what it does not know, and shows its own usage."""
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            unknown = " ".join(rest)
            self.error(f"unrecognized arguments: {unknown}{self._hint(rest)}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Show the usage and what is wrong, and exit with 2."""
        choice = _INVALID_CHOICE.search(message)
        if choice is not None:
            message += _did_you_mean(choice["found"], _WORD.findall(choice["known"]))
        elif message.endswith("arguments are required: COMMAND"):
            message += f" (one of {', '.join(sorted(self._commands()))})"
        super().error(message)

    def _commands(self) -> Iterator[str]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices

    def _hint(self, unknown: Sequence[str]) -> str:
        """For the first option that is not known; an argument too many has none."""
        option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        return "" if option is None else _did_you_mean(option, list(self._option_string_actions))


def _did_you_mean(found: str, known: Sequence[str]) -> str:
    match = nearest(found, known)
    return "" if match is None else f" (did you mean {match}?)"
