"""The SASL mechanisms PLAIN and LOGIN as exchanges without I/O (RFC 4954 §4, RFC 4616)."""

from __future__ import annotations

import base64
import binascii
import unicodedata
from dataclasses import dataclass

from elemta.smtp import replies
from elemta.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the server says next, in base64."""

    text: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login: what a client has said in the end, or says to a next hop."""

    username: str
    password: bytes

    def __repr__(self) -> str:
        return "Credentials(...)"


Step = Challenge | Credentials | Reply


class PlainMechanism:
    """One exchange of PLAIN (RFC 4616 §2)."""

    def start(self) -> Step:
        return Challenge("")

    def respond(self, response: bytes) -> Step:
        parts = response.split(b"\0")
        if len(parts) != 3:
            return replies.AUTH_MALFORMED
        authorization, username, password = parts
        # RFC 4616 §2: acting for another user is not supported
        if authorization and _folded(authorization) != _folded(username):
            return replies.AUTH_FAILED
        return _credentials(username, password)


class LoginMechanism:
    """One exchange of LOGIN, which no RFC describes: name, then password."""

    def __init__(self) -> None:
        self._username: bytes | None = None

    def start(self) -> Step:
        return Challenge("VXNlcm5hbWU6")

    def respond(self, response: bytes) -> Step:
        if self._username is None:
            self._username = response
            return Challenge("UGFzc3dvcmQ6")
        return _credentials(self._username, response)


Mechanism = PlainMechanism | LoginMechanism

MECHANISMS: dict[str, type[PlainMechanism] | type[LoginMechanism]] = {
    "PLAIN": PlainMechanism,
    "LOGIN": LoginMechanism,
}


def decode_response(text: bytes) -> bytes | None:
    """The octets of a line of base64; None when it is not exactly that."""
    # RFC 4954 §4: base64 as of RFC 4648 §4, padding and all, nothing else in the line
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _credentials(username: bytes, password: bytes) -> Step:
    try:
        name = username.decode("utf-8")
    except UnicodeDecodeError:
        return replies.AUTH_MALFORMED
    if not name or any(char < " " or char == "\x7f" for char in name) or b"\0" in password:
        return replies.AUTH_MALFORMED
    if not password:
        # No user has an empty password, whatever a checker would say of it.
        return replies.AUTH_FAILED
    return Credentials(name, password)


def _folded(name: bytes) -> str:
    """A user name in the form in which two are compared."""
    return unicodedata.normalize("NFC", name.decode("utf-8", "backslashreplace").lower())
