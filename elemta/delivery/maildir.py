"""Final delivery to Maildirs: synced before it counts, under names that nobody outside can choose."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from elemta.address import Address
from elemta.delivery.routes import Placeholder
from elemta.domains import canonical_domain
from elemta.errors import SpoolError

_CHUNK = 64 * 1024
_LONGEST_PART = 200
_REMEMBERED = 10_000
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-+=@.")
_sync_data = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True, slots=True)
class Drop:
    """One file to be made: in the Maildir ``directory``, called ``name``, beginning with ``prefix``."""

    directory: str
    name: str
    prefix: bytes


def path_part(text: str) -> str:
    """Text of an address as one safe part of a path.

    ASCII letters become lower case. What is neither letter, digit nor one of ``_-+=@.`` is written as
    the ``%XX`` of its UTF-8 octets, and so is a dot at the start; a long text ends in its hash. Texts
    that differ in more than the case of ASCII letters never get the same part.
    """
    lowered = re.sub("[A-Z]+", lambda match: match[0].lower(), text)
    safe = "".join(char if char in _SAFE else _percent(char) for char in lowered)
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if 0 < len(safe) <= _LONGEST_PART:
        return safe
    # "%Z" never begins a percent-encoded octet, so that no other text leads here.
    digest = hashlib.sha256(lowered.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe[: _LONGEST_PART - 70]}%Z{digest}"


def maildir_path(template: Sequence[str | Placeholder], recipient: Address) -> str:
    """The Maildir of a recipient."""
    parts = {Placeholder.DOMAIN: canonical_domain(recipient.domain), Placeholder.LOCAL: recipient.local}
    return "".join(part if isinstance(part, str) else path_part(parts[part]) for part in template)


def file_name(queue_id: str, recipient: Address, received_at: float, hostname: str) -> str:
    """The unique name of a message for a recipient: the same at every attempt.

    So a delivery that was repeated after a crash takes the place of the first one as long as no reader
    has moved that, instead of standing beside it.
    """
    who = hashlib.blake2s(str(recipient).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    host = re.sub("[^A-Za-z0-9.-]", "_", hostname) or "localhost"
    return f"{int(received_at)}.Q{queue_id}R{who}.{host}"


class MaildirWriter:
    """Writes messages into Maildirs. Blocks: to be called in a thread, from any number of them."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def write(self, content: BinaryIO, size: int, drops: Sequence[Drop]) -> list[OSError | SpoolError | None]:
        """Make every drop of one message; for each the error, or None once it is on stable storage.

        ``content`` is read from its start for each drop and must have ``size`` octets.
        """
        errors: list[OSError | SpoolError | None] = []
        for drop in drops:
            try:
                content.seek(0)
                self._drop(content, size, drop)
            except (OSError, SpoolError) as error:
                errors.append(error)
            else:
                errors.append(None)
        return errors

    def _drop(self, content: BinaryIO, size: int, drop: Drop) -> None:
        if drop.directory not in self._known:
            self._make(drop.directory)
        try:
            self._place(content, size, drop)
        except FileNotFoundError:
            # Somebody removed the Maildir since it was last seen.
            self._known.discard(drop.directory)
            self._make(drop.directory)
            content.seek(0)
            self._place(content, size, drop)

    def _place(self, content: BinaryIO, size: int, drop: Drop) -> None:
        temporary = f"{drop.directory}/tmp/{drop.name}"  # noqa: S108 - a part of every Maildir
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            try:
                _write(descriptor, drop.prefix)
                _copy(content, size, descriptor)
                # The data first, then the name: a name in new/ never stands for half a message.
                _sync_data(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, f"{drop.directory}/new/{drop.name}")
        except (OSError, SpoolError):
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_directory(f"{drop.directory}/new")

    def _make(self, directory: str) -> None:
        """Make the Maildir and every directory above it that is missing, durably."""
        for name in ("tmp", "new", "cur"):
            _make_directory(f"{directory}/{name}")
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known.add(directory)


def _percent(char: str) -> str:
    return "".join(f"%{octet:02X}" for octet in char.encode("utf-8", "surrogatepass"))


def _make_directory(path: str) -> None:
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_directory(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    # Whoever made it, its name must be on the disk before anything in it counts.
    _sync_directory(parent)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(content: BinaryIO, size: int, descriptor: int) -> None:
    copied = 0
    while chunk := content.read(_CHUNK):
        _write(descriptor, chunk)
        copied += len(chunk)
    if copied != size:
        raise SpoolError(f"the stored message has {copied} octets of {size}")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
