"""Changes a users file: one writer at a time, whole or not at all, comments kept."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from elemta.auth.hashes import PasswordHash, new_hash
from elemta.auth.names import MAX_PASSWORD_OCTETS, canonical_name, canonical_password
from elemta.auth.users import parse_users, read_text
from elemta.errors import UsersFileError
from elemta.runtime import Randomness

NEW_FILE_MODE = 0o640
HEADER = "# Users of Elemta: one NAME:HASH a line, written by elemtactl user\n"


class DuplicateUser(UsersFileError):
    """The user is in the file already."""


class NameTaken(UsersFileError):
    """The name is that of an account of another kind: of a token, or of a user."""


class NoSuchUser(UsersFileError):
    """The user is not in the file."""


def add_user(path: str, name: str, password: bytes, *, randomness: Randomness, replace: bool = False) -> str:
    """Put ``name`` with a new hash into the file, which is made when it is not there; the canonical name.

    Raises :class:`~elemta.auth.names.UnusableName`, :class:`DuplicateUser` unless ``replace``,
    ``ValueError`` for a password that no client could use, :class:`~elemta.errors.UsersFileError`,
    ``OSError``.
    """
    canonical = canonical_name(name)
    secret = usable_password(password)
    put_entry(
        path, canonical, lambda: f"{canonical}:{new_hash(secret, randomness)}", header=HEADER, replace=replace
    )
    return canonical


def put_entry(path: str, canonical: str, make: Callable[[], str], *, header: str, replace: bool) -> None:
    """Put the line that ``make`` makes for this name into the file. A new file begins with ``header``.

    Raises :class:`DuplicateUser` unless ``replace``, :class:`~elemta.errors.UsersFileError`, ``OSError``.
    """
    with _locked(path):
        lines = (read_text(path) if os.path.lexists(path) else header).splitlines()
        place = line_of(lines, canonical)
        if place is not None and not replace:
            raise DuplicateUser(f"{path}: user {canonical} is there already")
        if place is None:
            lines.append(make())
        else:
            lines[place] = make()
        _write(path, lines)


def delete_user(path: str, name: str) -> str:
    """Remove ``name`` from the file; its canonical form. Raises also :class:`NoSuchUser`."""
    canonical = canonical_name(name)
    with _locked(path):
        lines = read_text(path).splitlines()
        place = line_of(lines, canonical)
        if place is None:
            raise NoSuchUser(f"{path}: there is no user {canonical}")
        del lines[place]
        _write(path, lines)
    return canonical


def list_users(path: str) -> Mapping[str, PasswordHash]:
    """The users in the file. Raises :class:`~elemta.errors.UsersFileError`."""
    return parse_users(read_text(path), path)


def usable_password(password: bytes) -> bytes:
    """``password`` as it is hashed. Raises ``ValueError`` with the reason why no login could use it."""
    if not password:
        raise ValueError("the password is empty")
    if len(password) > MAX_PASSWORD_OCTETS:
        raise ValueError(f"the password is longer than {MAX_PASSWORD_OCTETS} octets")
    if b"\0" in password:
        # RFC 4616 §2: NUL separates the fields of AUTH PLAIN
        raise ValueError("the password contains NUL, which AUTH PLAIN can't transmit")
    return canonical_password(password)


def line_of(lines: Sequence[str], canonical: str) -> int | None:
    """Where the user's line is. A bad line may be repaired with an editor, never silently passed over."""
    for place, line in enumerate(lines):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            name = canonical_name(entry.partition(":")[0].strip())
        except ValueError:
            continue
        if name == canonical:
            return place
    return None


@contextmanager
def _locked(path: str) -> Iterator[None]:
    # The directory, since the file itself is replaced.
    directory = os.open(Path(path).resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _write(path: str, lines: Sequence[str]) -> None:
    """Replace the file as a whole, keeping owner and mode; a crash leaves the old file or the new one."""
    # A symbolic link stays one: what it points to is replaced.
    target = Path(path).resolve()
    content = "".join(f"{line}\n" for line in lines).encode("utf-8")
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            _give_as(file.fileno(), target)
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _give_as(descriptor: int, target: Path) -> None:
    try:
        old = target.stat()
    except FileNotFoundError:
        # The daemon has to read it: it gets the group of the directory, which packages give to the daemon.
        group = target.parent.stat().st_gid
        with suppress(PermissionError):
            os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, NEW_FILE_MODE)
        return
    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)
