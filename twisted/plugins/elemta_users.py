"""``elemta-users:PATH`` for everything that takes strcred descriptions; light until it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import ICheckerFactory, InvalidAuthArgumentString
from twisted.plugin import IPlugin
from zope.interface import implementer

if TYPE_CHECKING:
    from elemta.runtime import ProcessRuntime


@implementer(ICheckerFactory, IPlugin)
class UsersCheckerFactory:
    """Makes checkers over a users file, as ``elemtactl user`` writes it."""

    authType = "elemta-users"
    authHelp = (
        "Checks user names and passwords against a file with one NAME:HASH a line, where HASH is an\n"
        "argon2id ($argon2id$...) or scrypt ($scrypt$...) hash. `elemtactl user add NAME` writes it.\n"
        "The file is read again when it changes."
    )
    argStringFormat = "Location of the users file."
    credentialInterfaces = (IUsernamePassword,)

    def generateChecker(self, argstring: str) -> ICredentialsChecker:
        from elemta.runtime import ProcessRuntime  # noqa: PLC0415 - twistd imports every dropin

        return self.generateCheckerWith(argstring, ProcessRuntime.of_system())

    def generateCheckerWith(self, argstring: str, runtime: ProcessRuntime) -> ICredentialsChecker:
        """The same with the clock and the randomness of the application."""
        from elemta.auth.checker import UsersChecker  # noqa: PLC0415 - as above

        if not argstring.strip():
            raise InvalidAuthArgumentString("elemta-users needs a path: elemta-users:/etc/elemta/users")
        return UsersChecker(argstring, runtime)


elemtaUsers = UsersCheckerFactory()
