"""The stages of an SMTP session at which policies are asked and limits are charged."""

from __future__ import annotations

import enum


class Stage(enum.Enum):
    """In their order. ``LOGIN`` is before a password is looked at, ``AUTH`` after good credentials."""

    CONNECT = "connect"
    HELO = "helo"
    LOGIN = "login"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    MESSAGE = "message"

    # Members are single objects. The hash of `Enum` runs Python code at each look-up in a dictionary.
    __hash__ = object.__hash__
