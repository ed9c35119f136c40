"""The users file: one ``name:hash`` a line, re-read when it changes.

Empty lines and lines that start with ``#`` are left alone. Everything here blocks (disk, hashing)
and belongs in a thread, but for the first reading at the start.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from twisted.logger import Logger

from elemta.auth.hashes import PasswordHash, UnusableHash, parse_hash, placeholder
from elemta.auth.names import MAX_PASSWORD_OCTETS, UnusableName, canonical_name, canonical_password
from elemta.errors import UsersFileError
from elemta.runtime import ProcessRuntime, Randomness

MAX_FILE_OCTETS = 32 * 1024 * 1024
MAX_FAULTS_SHOWN = 20
RECHECK_SECONDS = 1.0

_log = Logger()


class Users:
    """The users of one version of the file."""

    def __init__(self, hashes: Mapping[str, PasswordHash], randomness: Randomness) -> None:
        self.hashes: Mapping[str, PasswordHash] = MappingProxyType(dict(hashes))
        shapes = [known.impostor(randomness) for known in hashes.values()]
        self._impostors: tuple[PasswordHash, ...] = tuple(shapes) or (placeholder(randomness),)
        self._key = randomness.randbytes(16)

    def hash_for(self, name: str) -> PasswordHash:
        """The hash to verify for the canonical ``name``: its own, or an impostor of a known user's cost.

        An unknown name always gets the same impostor, and impostors come in the proportions of the
        file, so neither one answer nor many show which users exist.
        """
        known = self.hashes.get(name)
        if known is not None:
            return known
        drawn = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), key=self._key, digest_size=8).digest()
        return self._impostors[int.from_bytes(drawn, "big") % len(self._impostors)]

    def verify(self, name: str, password: bytes) -> str | None:
        """The canonical user name when ``password`` is that user's, else None. Blocks.

        Exactly one hash is computed whether or not the user exists.
        """
        try:
            canonical = canonical_name(name)
        except UnusableName:
            canonical = ""
        expected = self.hash_for(canonical)
        matched = expected.matches(canonical_password(password[:MAX_PASSWORD_OCTETS]))
        if matched and canonical in self.hashes and len(password) <= MAX_PASSWORD_OCTETS:
            return canonical
        return None


def parse_users(text: str, place: str) -> dict[str, PasswordHash]:
    """The users in ``text``. Raises :class:`UsersFileError` that names ``place`` and every bad line."""
    hashes: dict[str, PasswordHash] = {}
    lines: dict[str, int] = {}
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            name, known = parse_entry(entry)
        except (UnusableName, UnusableHash) as error:
            faults.append(f"{place}: line {number}: {error}")
            continue
        if name in hashes:
            faults.append(f"{place}: line {number}: user {name} is on line {lines[name]} already")
            continue
        hashes[name], lines[name] = known, number
    if faults:
        hidden = len(faults) - MAX_FAULTS_SHOWN
        more = [f"{place}: and {hidden} more bad lines"] if hidden > 0 else []
        raise UsersFileError("\n".join(faults[:MAX_FAULTS_SHOWN] + more))
    return hashes


def parse_entry(entry: str) -> tuple[str, PasswordHash]:
    """Canonical name and hash of one line. Raises :class:`UnusableName` or :class:`UnusableHash`."""
    name, colon, encoded = entry.partition(":")
    if not colon:
        raise UnusableHash("no colon: expected name:hash")
    return canonical_name(name.strip()), parse_hash(encoded.strip())


def read_users(path: str) -> dict[str, PasswordHash]:
    """The users in the file at ``path``. Raises :class:`UsersFileError`."""
    return parse_users(read_text(path), path)


def read_text(path: str) -> str:
    """The text of the users file at ``path``. Raises :class:`UsersFileError`."""
    try:
        with Path(path).open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsersFileError(f"{path}: not a regular file")
            content = file.read(MAX_FILE_OCTETS + 1)
    except FileNotFoundError as error:
        raise UsersFileError(f"{path}: {error.strerror} (elemtactl user add makes it)") from error
    except OSError as error:
        raise UsersFileError(f"{path}: {error.strerror or error}") from error
    if len(content) > MAX_FILE_OCTETS:
        raise UsersFileError(f"{path}: larger than {MAX_FILE_OCTETS // 2**20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsersFileError(f"{path}: line {line}: not UTF-8") from None


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The attributes that differ between two versions of a file."""

    device: int
    inode: int
    modified_ns: int
    changed_ns: int
    size: int

    @classmethod
    def of(cls, path: str) -> FileVersion | None:
        """The version that is there now; None where there is no file."""
        try:
            now = os.stat(path)
        except OSError:
            return None
        return cls(now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size)


class UsersFile:
    """The users file at ``path``, looked at again at most once a second.

    A new version that can't be used is logged once and the last good one stays in force. All methods
    may be called from any thread.
    """

    def __init__(self, path: str, runtime: ProcessRuntime) -> None:
        """Read the file. Raises :class:`UsersFileError`."""
        self.path = path
        self._runtime = runtime
        self._lock = threading.Lock()
        self._version = FileVersion.of(path)
        self._users = Users(read_users(path), runtime.randomness)
        self._looked_at = runtime.monotonic()

    def users(self) -> Users:
        """The users as the file has them now, or had them when it could last be used."""
        with self._lock:
            now = self._runtime.monotonic()
            if now - self._looked_at >= RECHECK_SECONDS:
                self._looked_at = now
                self._refresh()
            return self._users

    def verify(self, name: str, password: bytes) -> str | None:
        """The canonical user name when ``password`` is that user's, else None."""
        return self.users().verify(name, password)

    def _refresh(self) -> None:
        version = FileVersion.of(self.path)
        if version == self._version:
            return
        # Taken before the reading: a change during it is then seen the next time.
        self._version = version
        try:
            self._users = Users(read_users(self.path), self._runtime.randomness)
        except UsersFileError as error:
            _log.error(
                "the users file changed and can't be used; the last good version stays in force",
                event="auth.users_file_broken",
                path=self.path,
                problem=str(error),
            )
            return
        _log.info(
            "the users file was read again",
            event="auth.users_file_read",
            path=self.path,
            users=len(self._users.hashes),
        )
