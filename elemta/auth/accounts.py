"""The accounts file of the console: users and tokens with their roles, one ``NAME:ROLE:SECRET`` a line.

The secret of a user is a password hash as in a users file. That of a token is ``$sha256$`` and the digest of
its text: it is 32 random octets, beyond any guess. Everything here blocks and belongs in a thread.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from twisted.logger import Logger

from elemta.auth.hashes import PasswordHash, UnusableHash, new_hash, parse_hash
from elemta.auth.names import UnusableName, canonical_name
from elemta.auth.roles import AccessRole
from elemta.auth.users import FileVersion, Users, read_text
from elemta.auth.users_editor import NameTaken, NoSuchUser, delete_user, line_of, put_entry, usable_password
from elemta.errors import UsersFileError
from elemta.runtime import ProcessRuntime, Randomness

HEADER = "# Users and tokens of Elemta's console: NAME:ROLE:SECRET, written by elemtactl user and token\n"
TOKEN_PREFIX = "elemta_"  # noqa: S105 - the beginning of each
TOKEN_OCTETS = 32
RECHECK_SECONDS = 1.0
# The console is no mailbox server: so many lines are a mistake.
MAX_ACCOUNTS = 10_000

_TOKEN_SECRET = re.compile(r"\$sha256\$([0-9a-f]{64})")

_log = Logger()


@dataclass(frozen=True, slots=True)
class Account:
    """A user, or a token where ``digest`` is not empty: its role, and what proves it."""

    name: str
    role: AccessRole
    password: PasswordHash | None = None
    digest: str = ""

    @property
    def scheme(self) -> str:
        return "token" if self.password is None else self.password.scheme


class Accounts:
    """The accounts of one version of the file."""

    def __init__(self, accounts: Sequence[Account], randomness: Randomness) -> None:
        self.users: Mapping[str, Account] = MappingProxyType(
            {each.name: each for each in accounts if each.password is not None}
        )
        self.tokens: Mapping[str, Account] = MappingProxyType(
            {each.digest: each for each in accounts if each.digest}
        )
        hashes = {each.name: each.password for each in accounts if each.password is not None}
        self._passwords = Users(hashes, randomness)

    def verify(self, name: str, password: bytes) -> str | None:
        """The canonical name of the user whose password this is, or None. Blocks."""
        return self._passwords.verify(name, password)

    def of_token(self, text: str) -> Account | None:
        """The token that has this text."""
        return self.tokens.get(token_digest(text))


class AccountsFile:
    """The accounts file at ``path``, which need not be there.

    A version that can't be used is logged once, and the last good one stays in force. Without a good one
    there is no account.
    """

    def __init__(self, path: str, runtime: ProcessRuntime) -> None:
        self.path = path
        self._runtime = runtime
        self._lock = threading.Lock()
        self._version: FileVersion | None = None
        self._looked_at: float | None = None
        self.accounts = Accounts((), runtime.randomness)
        self.broken = False

    @property
    def is_stale(self) -> bool:
        """Whether :meth:`look` would look."""
        now = self._runtime.monotonic()
        return self._looked_at is None or now - self._looked_at >= RECHECK_SECONDS

    def look(self) -> Accounts:
        """The accounts as the file has them now, looked at again at most once a second. Blocks."""
        with self._lock:
            if self.is_stale:
                first, self._looked_at = self._looked_at is None, self._runtime.monotonic()
                self._refresh(first=first)
            return self.accounts

    def verify(self, name: str, password: bytes) -> str | None:
        """The canonical name of the user whose password this is, or None. Blocks."""
        return self.look().verify(name, password)

    def _refresh(self, *, first: bool) -> None:
        version = FileVersion.of(self.path)
        if version == self._version and not first:
            return
        # Taken before the reading: a change during it is then seen the next time.
        self._version = version
        try:
            found = self._read()
        except UsersFileError as error:
            self.broken = True
            _log.error(
                "the accounts of the console can't be used; the last good version stays in force",
                event="console.accounts_broken",
                path=self.path,
                problem=str(error),
            )
            return
        self.broken = False
        self.accounts = Accounts(found, self._runtime.randomness)
        _log.info(
            "the accounts of the console were read",
            event="console.accounts_read",
            path=self.path,
            users=len(self.accounts.users),
            tokens=len(self.accounts.tokens),
        )

    def _read(self) -> tuple[Account, ...]:
        try:
            return read_accounts(self.path)
        except UsersFileError as error:
            # Only a file that is not there has no account: one that can't be looked at may have any.
            if isinstance(error.__cause__, FileNotFoundError):
                return ()
            raise


def read_accounts(path: str) -> tuple[Account, ...]:
    """The accounts in the file at ``path``. Raises :class:`~elemta.errors.UsersFileError`."""
    found: dict[str, Account] = {}
    faults = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            account = parse_account(entry)
        except (UnusableName, UnusableHash) as error:
            faults.append(f"{path}: line {number}: {error}")
            continue
        if account.name in found:
            faults.append(f"{path}: line {number}: {account.name} is there already")
        found[account.name] = account
    if len(found) > MAX_ACCOUNTS:
        faults.append(f"{path}: more than {MAX_ACCOUNTS} accounts")
    if faults:
        raise UsersFileError("\n".join(faults[:20]))
    return tuple(found.values())


def parse_account(entry: str) -> Account:
    """One line. Raises ``UnusableName`` or ``UnusableHash``, which never repeat the secret."""
    parts = [part.strip() for part in entry.split(":")]
    if len(parts) != 3:
        raise UnusableHash("expected NAME:ROLE:SECRET")
    name = canonical_name(parts[0])
    try:
        role = AccessRole(parts[1])
    except ValueError:
        known = ", ".join(each.value for each in AccessRole)
        raise UnusableHash(f"unknown role; known: {known}") from None
    token = _TOKEN_SECRET.fullmatch(parts[2])
    if token is not None:
        return Account(name, role, digest=token[1])
    return Account(name, role, password=parse_hash(parts[2]))


def add_account(
    path: str, name: str, role: AccessRole, password: bytes, *, randomness: Randomness, replace: bool = False
) -> str:
    """Put a user into the file; its canonical name. Raises as :func:`elemta.auth.users_editor.add_user`."""
    canonical = canonical_name(name)
    secret = usable_password(password)
    _refuse_other_kind(path, canonical, token=False)

    def entry() -> str:
        return f"{canonical}:{role.value}:{new_hash(secret, randomness)}"

    put_entry(path, canonical, entry, header=HEADER, replace=replace)
    return canonical


def add_token(path: str, name: str, role: AccessRole, *, randomness: Randomness) -> str:
    """Put a new token into the file; its text, which is kept nowhere. Raises as :func:`add_account`."""
    canonical = canonical_name(name)
    _refuse_other_kind(path, canonical, token=True)
    text = new_token(randomness)
    entry = partial(str, f"{canonical}:{role.value}:$sha256${token_digest(text)}")
    put_entry(path, canonical, entry, header=HEADER, replace=False)
    return text


def _refuse_other_kind(path: str, canonical: str, *, token: bool) -> None:
    lines = read_text(path).splitlines() if os.path.lexists(path) else []
    place = line_of(lines, canonical)
    if place is not None and ("$sha256$" in lines[place]) != token:
        raise NameTaken(f"{path}: {canonical} is the name of a {'user' if token else 'token'}")


def delete_account(path: str, name: str, *, token: bool) -> str:
    """Remove a user, or a token; its canonical name. Raises also ``NoSuchUser``."""
    canonical = canonical_name(name)
    if not any(each.name == canonical and bool(each.digest) == token for each in read_accounts(path)):
        raise NoSuchUser(f"{path}: there is no {'token' if token else 'user'} {canonical}")
    return delete_user(path, canonical)


def new_token(randomness: Randomness) -> str:
    """The text of a new token."""
    octets = randomness.randbytes(TOKEN_OCTETS)
    return TOKEN_PREFIX + base64.urlsafe_b64encode(octets).decode("ascii").rstrip("=")


def token_digest(text: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
