"""The milter protocol: packets, what they mean, and what may be left out. No input or output here.

The protocol is that of Sendmail's libmilter, version 6. A packet is a length of four octets, a command of
one, and its data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntFlag

VERSION = 6
MAX_PACKET = 1024 * 1024
BODY_CHUNK = 65535
MAX_FIELD = 65535
"""Octets of the data of one packet that libmilter reads; it ends the connection at a larger one."""


class MilterError(Exception):
    """The milter sent what the protocol does not know."""


class Action(IntFlag):
    """What a milter may ask to change (SMFIF)."""

    ADD_HEADERS = 0x01
    CHANGE_BODY = 0x02
    ADD_RECIPIENT = 0x04
    DELETE_RECIPIENT = 0x08
    CHANGE_HEADERS = 0x10
    QUARANTINE = 0x20
    CHANGE_SENDER = 0x40
    ADD_RECIPIENT_ARGUMENTS = 0x80


ALL_ACTIONS = Action(0xFF)


class Step(IntFlag):
    """What a milter does not want to be sent, and what it does not answer (SMFIP)."""

    NO_CONNECT = 0x01
    NO_HELO = 0x02
    NO_MAIL = 0x04
    NO_RCPT = 0x08
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_END_OF_HEADERS = 0x40
    NO_ANSWER_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    REJECTED_RECIPIENTS = 0x800
    NO_ANSWER_CONNECT = 0x1000
    NO_ANSWER_HELO = 0x2000
    NO_ANSWER_MAIL = 0x4000
    NO_ANSWER_RCPT = 0x8000
    NO_ANSWER_DATA = 0x10000
    NO_ANSWER_UNKNOWN = 0x20000
    NO_ANSWER_END_OF_HEADERS = 0x40000
    NO_ANSWER_BODY = 0x80000
    LEADING_SPACE = 0x100000


# Rejected recipients and unknown commands are not told, so these two are not offered.
OFFERED_STEPS = Step(0x1FFFFF) & ~Step.REJECTED_RECIPIENTS


class MilterStage(Enum):
    """The stages of a conversation: command, what suppresses it, what suppresses its answer."""

    CONNECT = (b"C", Step.NO_CONNECT, Step.NO_ANSWER_CONNECT)
    HELO = (b"H", Step.NO_HELO, Step.NO_ANSWER_HELO)
    MAIL = (b"M", Step.NO_MAIL, Step.NO_ANSWER_MAIL)
    RCPT = (b"R", Step.NO_RCPT, Step.NO_ANSWER_RCPT)
    DATA = (b"T", Step.NO_DATA, Step.NO_ANSWER_DATA)
    HEADER = (b"L", Step.NO_HEADERS, Step.NO_ANSWER_HEADER)
    END_OF_HEADERS = (b"N", Step.NO_END_OF_HEADERS, Step.NO_ANSWER_END_OF_HEADERS)
    BODY = (b"B", Step.NO_BODY, Step.NO_ANSWER_BODY)
    END_OF_MESSAGE = (b"E", Step(0), Step(0))

    @property
    def command(self) -> bytes:
        return self.value[0]

    def is_sent(self, steps: Step) -> bool:
        return not steps & self.value[1]

    def is_answered(self, steps: Step) -> bool:
        return not steps & self.value[2]


class MilterAnswer(Enum):
    """What a milter decides."""

    CONTINUE = b"c"
    ACCEPT = b"a"
    REJECT = b"r"
    DEFER = b"t"
    DISCARD = b"d"
    REPLY = b"y"
    SKIP = b"s"
    CONNECTION_FAILED = b"f"


@dataclass(frozen=True, slots=True)
class MilterDecision:
    """An answer; ``reply`` is the text of :attr:`Answer.REPLY`."""

    answer: MilterAnswer
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides agreed on."""

    version: int
    actions: Action
    steps: Step


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Add a field behind the last one."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class InsertHeader:
    """Insert a field so that it is number ``index``; 0 is above all."""

    index: int
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class ChangeHeader:
    """Replace field number ``index`` of a name, counted from 1; an empty value removes it."""

    index: int
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    """One piece of a new body."""

    piece: bytes


@dataclass(frozen=True, slots=True)
class ChangeSender:
    address: str


@dataclass(frozen=True, slots=True)
class AddRecipient:
    address: str


@dataclass(frozen=True, slots=True)
class DeleteRecipient:
    address: str


@dataclass(frozen=True, slots=True)
class MilterHold:
    """Put the message into quarantine."""

    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Still at work."""


Modification = (
    AddHeader
    | InsertHeader
    | ChangeHeader
    | ReplaceBody
    | ChangeSender
    | AddRecipient
    | DeleteRecipient
    | MilterHold
)

_NEEDED_ACTION = {
    AddHeader: Action.ADD_HEADERS,
    InsertHeader: Action.ADD_HEADERS,
    ChangeHeader: Action.CHANGE_HEADERS,
    ReplaceBody: Action.CHANGE_BODY,
    ChangeSender: Action.CHANGE_SENDER,
    AddRecipient: Action.ADD_RECIPIENT | Action.ADD_RECIPIENT_ARGUMENTS,
    DeleteRecipient: Action.DELETE_RECIPIENT,
    MilterHold: Action.QUARANTINE,
}


def is_allowed(change: Modification, agreed: Action) -> bool:
    """Whether the milter said at the start that it would make such changes."""
    return bool(_NEEDED_ACTION[type(change)] & agreed)


def packet(command: bytes, data: bytes = b"") -> bytes:
    return struct.pack("!I", len(data) + 1) + command + data


def packet_length(prefix: bytes) -> int:
    """The length of what follows the four octets."""
    (length,) = struct.unpack("!I", prefix)
    if not 1 <= length <= MAX_PACKET:
        raise MilterError(f"a packet of {length} octets")
    return int(length)


def text(value: str) -> bytes:
    """A string of the protocol: it ends in NUL, so it has none."""
    return value.encode("utf-8", "surrogateescape").replace(b"\0", b"") + b"\0"


def options_packet() -> bytes:
    return packet(b"O", struct.pack("!III", VERSION, ALL_ACTIONS, OFFERED_STEPS))


def read_options(command: bytes, data: bytes) -> Negotiated:
    """The milter's answer to our options."""
    if command != b"O" or len(data) < 12:
        raise MilterError("the milter does not negotiate")
    version, actions, steps = struct.unpack("!III", data[:12])
    if not 2 <= version <= VERSION:
        raise MilterError(f"the milter speaks version {version}")
    if Action(actions & 0xFF) != actions & ~0x100 or steps & ~int(OFFERED_STEPS):
        raise MilterError("the milter wants what was not offered")
    return Negotiated(version, Action(actions & 0xFF), Step(steps))


def macros_packet(stage: MilterStage, macros: dict[str, str]) -> bytes:
    data = b"".join(text(name) + text(value) for name, value in macros.items() if value)
    return packet(b"D", stage.command + data)


def connect_data(name: str, ip: str, port: int, *, is_ipv6: bool) -> bytes:
    address = f"IPv6:{ip}" if is_ipv6 else ip
    return text(name) + (b"6" if is_ipv6 else b"4") + struct.pack("!H", port) + text(address)


def header_data(name: bytes, value: bytes, steps: Step) -> bytes:
    """A field. Without LEADING_SPACE one blank behind the colon is left out; line ends are LF.

    What does not fit into a packet is left out.
    """
    value = value.removesuffix(b"\r\n").replace(b"\r\n", b"\n")
    if not steps & Step.LEADING_SPACE:
        value = value.removeprefix(b" ")
    shown = name.replace(b"\0", b"")[: MAX_FIELD // 2] + b"\0" + value.replace(b"\0", b"")
    return shown[: MAX_FIELD - 1] + b"\0"


def header_packets(fields: Iterable[tuple[bytes, bytes]], steps: Step) -> bytes:
    """A packet for each field."""
    return b"".join(
        packet(MilterStage.HEADER.command, header_data(name, value, steps)) for name, value in fields
    )


def _strings(data: bytes, least: int) -> list[bytes]:
    parts = data.split(b"\0")
    if len(parts) <= least or not data.endswith(b"\0"):
        raise MilterError("a string of the milter has no end")
    return parts[:-1]


def _number_and_strings(data: bytes) -> tuple[int, list[bytes]]:
    if len(data) < 4:
        raise MilterError("a number of the milter is cut")
    (number,) = struct.unpack("!I", data[:4])
    return number, _strings(data[4:], 2)


def _name(value: bytes) -> str:
    if not re.fullmatch(rb"[!-9;-~]{1,998}", value):
        raise MilterError("the name of a field has octets that none may have")
    return value.decode("ascii")


def _value(value: bytes) -> str:
    """A field's value as a message carries it: each further line is folded. Without a blank in front."""
    lines = re.split(rb"\r?\n", value.replace(b"\0", b""))
    first, rest = lines[0], [line for line in lines[1:] if line.strip()]
    folded = [line if line.startswith((b" ", b"\t")) else b"\t" + line for line in rest]
    # With LEADING_SPACE the blank behind the colon is the milter's; it is written anyway.
    return b"\r\n".join([first.removeprefix(b" "), *folded]).decode("utf-8", "surrogateescape")


def _address(data: bytes) -> str:
    return _strings(data, 1)[0].decode("utf-8", "replace").strip().removeprefix("<").removesuffix(">")


def read_answer(  # noqa: PLR0911, C901 - one case for each packet of the protocol
    command: bytes, data: bytes
) -> MilterDecision | Modification | Progress:
    """What a packet of the milter says. Raises :class:`MilterError`."""
    if command == b"p":
        return Progress()
    if command == b"y":
        return MilterDecision(MilterAnswer.REPLY, _strings(data, 1)[0].decode("utf-8", "replace"))
    if command in _ANSWERS:
        return MilterDecision(_ANSWERS[command])
    if command == b"h":
        name, value = _strings(data, 2)[:2]
        return AddHeader(_name(name), _value(value))
    if command in (b"i", b"m"):
        index, (name, value, *_) = _number_and_strings(data)
        kind = InsertHeader if command == b"i" else ChangeHeader
        return kind(index, _name(name), _value(value))
    if command == b"b":
        return ReplaceBody(data)
    if command == b"e":
        return ChangeSender(_address(data))
    if command in (b"+", b"2"):
        return AddRecipient(_address(data))
    if command == b"-":
        return DeleteRecipient(_address(data))
    if command == b"q":
        return MilterHold(_strings(data, 1)[0].decode("utf-8", "replace"))
    raise MilterError(f"an unknown packet {command!r}")


_ANSWERS = {answer.value: answer for answer in MilterAnswer if answer is not MilterAnswer.REPLY}
