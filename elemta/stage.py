"""The stages of an SMTP session at which policies are asked and limits are charged."""

from __future__ import annotations

from elemta.fast_enum import FastEnum


class Stage(FastEnum):
    """In their order. ``LOGIN`` is before a password is looked at, ``AUTH`` after good credentials."""

    CONNECT = "connect"
    HELO = "helo"
    LOGIN = "login"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    MESSAGE = "message"
