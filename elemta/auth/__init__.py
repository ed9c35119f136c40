"""Authentication: twisted.cred checkers, the users file, and the slowing down of who guesses."""

from elemta.auth.authenticator import Authenticator

__all__ = ["Authenticator"]
