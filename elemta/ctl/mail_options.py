"""The command line of ``sendmail``, in the forms that existing programs use."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final


class UsageFault(Exception):
    """A command line that can't be understood."""


class SendmailMode(enum.Enum):
    """What the command is asked to do."""

    SUBMIT = "submit"
    SMTP = "smtp"
    QUEUE = "queue"
    ALIASES = "aliases"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class SendmailOptions:
    """A command line. ``sender`` None: the calling user; ``ret``, ``notify``, ``envid``: RFC 3461."""

    mode: SendmailMode = SendmailMode.SUBMIT
    from_header: bool = False
    dots: bool = True
    sender: str | None = None
    full_name: str = ""
    ret: str = ""
    notify: str = ""
    envid: str = ""
    recipients: tuple[str, ...] = ()


USED: Final[tuple[tuple[str, str], ...]] = (
    ("-t", "take recipients from To, Cc and Bcc (or the Resent- fields) too; Bcc is removed"),
    ("-i, -oi", "a line with a single dot does not end the message"),
    ("-f ADDRESS, -r ADDRESS", "the sender of the envelope, which gets bounces; <> gets none"),
    ("-F NAME", "the full name in a From field, where there is none"),
    ("-N CONDITIONS", "when the sender gets a notice: never, or some of success,failure,delay"),
    ("-R AMOUNT", "what of the message is returned: full or hdrs"),
    ("-V ID", "the envelope id that stands in such notices"),
    ("-bs", "speak SMTP on standard input and output"),
    ("-bp", "list the queue, like mailq: runs elemtactl queue list"),
    ("-bi, -I", "nothing, like newaliases: there are no aliases to compile"),
    ("-bm", "take a message from standard input, which is the default"),
    ("--version", "show the version"),
)
"""The options that do something, and what; the manual page is written from here."""

_IGNORED: Final = "GUcnmvxL"
_WITH_VALUE: Final = "fFrNRVBCehLopOXAbqd"
_OPTIONAL_VALUE: Final = "qd"
_MODES: Final = {
    "s": SendmailMode.SMTP,
    "p": SendmailMode.QUEUE,
    "i": SendmailMode.ALIASES,
    "m": SendmailMode.SUBMIT,
}
_NAMES: Final = {"mailq": SendmailMode.QUEUE, "newaliases": SendmailMode.ALIASES}
# RFC 3461 §4.4: xtext
_ENVID: Final = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2}){1,100}")
_CONDITIONS: Final = ("NEVER", "SUCCESS", "FAILURE", "DELAY")


def read_options(argv: Sequence[str]) -> SendmailOptions:
    """The options of a command line whose first word is the program's name. Raises UsageFault."""
    options = SendmailOptions(mode=_NAMES.get(PurePath(argv[0]).name if argv else "", SendmailMode.SUBMIT))
    recipients: list[str] = []
    words = iter(argv[1:])
    for word in words:
        if word == "--":
            recipients += words
        elif word == "--version":
            options = replace(options, mode=SendmailMode.VERSION)
        elif word in ("--help", "-"):
            raise UsageFault("man elemta-sendmail says which options there are")
        elif not word.startswith("-"):
            recipients.append(word)
        else:
            for letter, value in _letters(word[1:], words):
                options = _apply(options, letter, value)
    options = replace(options, recipients=tuple(recipients))
    if options.mode is SendmailMode.SUBMIT and not recipients and not options.from_header:
        raise UsageFault("no recipient: name some, or use -t to take them from the message")
    return options


def _letters(cluster: str, words: Iterator[str]) -> Iterator[tuple[str, str]]:
    """The options that stand together behind one dash, the last of them with its value if it has one."""
    while cluster:
        letter, cluster = cluster[0], cluster[1:]
        if letter not in _WITH_VALUE:
            yield letter, ""
            continue
        if not cluster and letter not in _OPTIONAL_VALUE:
            value = next(words, None)
            if value is None:
                raise UsageFault(f"-{letter} wants a value")
            cluster = value
        yield letter, cluster
        return


def _apply(options: SendmailOptions, letter: str, value: str) -> SendmailOptions:
    match letter:
        case "t":
            options = replace(options, from_header=True)
        case "f" | "r":
            options = replace(options, sender=value)
        case "F":
            options = replace(options, full_name=value)
        case "b":
            if value not in _MODES:
                raise UsageFault(f"-b{value} is not for this program")
            options = replace(options, mode=_MODES[value])
        case "I":
            options = replace(options, mode=SendmailMode.ALIASES)
        case "i" | "o":
            # -oem, -odb and many more say nothing here
            options = replace(options, dots=False) if value in ("", "i") else options
        case "N" | "R" | "V":
            options = _notice(options, letter, value)
        case _ if letter not in _IGNORED and letter not in _WITH_VALUE:
            raise UsageFault(f"-{letter} is no option of this program")
    return options


def _notice(options: SendmailOptions, letter: str, value: str) -> SendmailOptions:
    upper = value.upper()
    if letter == "R":
        if upper not in ("FULL", "HDRS"):
            raise UsageFault(f"-R {value}: must be full or hdrs")
        return replace(options, ret=upper)
    if letter == "V":
        if not _ENVID.fullmatch(value):
            raise UsageFault(f"-V {value}: must be up to 100 printable characters, others as +XX")
        return replace(options, envid=value)
    conditions = upper.split(",")
    alone = "NEVER" in conditions and len(conditions) > 1
    if alone or not all(condition in _CONDITIONS for condition in conditions):
        raise UsageFault(f"-N {value}: must be never, or some of success,failure,delay")
    return replace(options, notify=upper)
