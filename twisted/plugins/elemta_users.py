"""``elemta-users:PATH`` for everything that takes strcred descriptions; light until it is used."""

from __future__ import annotations

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import ICheckerFactory, InvalidAuthArgumentString
from twisted.plugin import IPlugin
from zope.interface import implementer


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
        from elemta.auth.checker import UsersChecker  # noqa: PLC0415 - twistd imports every dropin

        if not argstring.strip():
            raise InvalidAuthArgumentString("elemta-users needs a path: elemta-users:/etc/elemta/users")
        return UsersChecker(argstring)


elemtaUsers = UsersCheckerFactory()
