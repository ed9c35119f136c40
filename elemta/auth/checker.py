"""The credentials checker over a users file, and the interface of checkers that block."""

from __future__ import annotations

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import Interface, implementer

from elemta.auth.accounts import AccountsFile
from elemta.auth.users import UsersFile
from elemta.runtime import ProcessRuntime
from elemta.runtime.threads import call_in_reactor_thread_pool


class IBlockingChecker(Interface):
    """A checker that computes or reads while it verifies, and so is called in a thread of Elemta's own.

    A checker that provides it beside ``ICredentialsChecker`` never blocks the reactor and counts
    against the bounded queue of verifications.
    """

    def verify(username: str, password: bytes) -> str | None:
        """The canonical name of the user whose password this is, or None. An exception is local trouble."""


@implementer(ICredentialsChecker, IBlockingChecker)
class AccountsChecker:
    """Checks names and passwords of the console's users, for Elemta's own threads only."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, file: AccountsFile) -> None:
        self._file = file

    def verify(self, username: str, password: bytes) -> str | None:
        return self._file.verify(username, password)

    def requestAvatarId(self, credentials: IUsernamePassword) -> Deferred[bytes | tuple[()]]:  # noqa: ARG002
        raise UnauthorizedLogin


@implementer(ICredentialsChecker, IBlockingChecker)
class UsersChecker:
    """Checks names and passwords against a users file (``elemta-users:PATH``)."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, path: str, runtime: ProcessRuntime) -> None:
        """Read the file at ``path``. Raises :class:`~elemta.errors.UsersFileError`."""
        self.file = UsersFile(path, runtime)

    def verify(self, username: str, password: bytes) -> str | None:
        return self.file.verify(username, password)

    def requestAvatarId(self, credentials: IUsernamePassword) -> Deferred[bytes | tuple[()]]:
        """For other applications of twisted.cred: verifies in the reactor's own thread pool."""
        return call_in_reactor_thread_pool(self._avatar_id, credentials.username, credentials.password)

    def _avatar_id(self, username: bytes | str, password: bytes | str) -> bytes | tuple[()]:
        name = username if isinstance(username, str) else username.decode("utf-8", "replace")
        secret = password if isinstance(password, bytes) else password.encode("utf-8")
        user = self.verify(name, secret)
        if user is None:
            raise UnauthorizedLogin
        return user.encode("utf-8")
