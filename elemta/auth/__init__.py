"""Authentication: twisted.cred checkers, the users file, and the delays for wrong passwords."""

from elemta.auth.authenticator import Authenticator

__all__ = ["Authenticator"]
