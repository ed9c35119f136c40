"""How the admin API says no: one exception, and the answer to every error that an operation may raise."""

from __future__ import annotations

from http import HTTPStatus

from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as OutOfTime

from elemta.errors import (
    ExplanationFailed,
    HistoryError,
    MessageOnHold,
    NoSender,
    NoSpool,
    PushedMeanwhile,
    SpoolError,
    SpoolLocked,
    StoreUnavailable,
    TooManyOverrides,
    UnknownMessage,
)


class AdminRefusal(Exception):
    """An answer other than 200: the status, what is wrong, what to do about it, and further keys."""

    def __init__(self, status: HTTPStatus, error: str, hint: str = "", **more: object) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.more = more

    @property
    def content(self) -> dict[str, object]:
        return {"error": self.error, "hint": self.hint, **self.more}


def refusal_of(error: BaseException | None) -> AdminRefusal:
    """The answer to an error. What is not known here is 500, and its text is for the log only."""
    if isinstance(error, AdminRefusal):
        return error
    return _about_the_request(error) or _about_the_daemon(error)


_IN_THEIR_WORDS: tuple[tuple[type[Exception], HTTPStatus, str], ...] = (
    (NoSpool, HTTPStatus.NOT_FOUND, "spool list shows which it has"),
    (PushedMeanwhile, HTTPStatus.CONFLICT, "look at what it changed, and push again"),
    (TooManyOverrides, HTTPStatus.CONFLICT, "remove one, or wait until one has ended"),
)


def _about_the_request(error: BaseException | None) -> AdminRefusal | None:
    if isinstance(error, UnknownMessage):
        return AdminRefusal(
            HTTPStatus.NOT_FOUND, "no message has this queue id", "it may be delivered by now"
        )
    if isinstance(error, MessageOnHold):
        return AdminRefusal(HTTPStatus.CONFLICT, "the message is on hold", "release it instead")
    if isinstance(error, NoSender):
        return AdminRefusal(
            HTTPStatus.CONFLICT,
            "the sender is <>: there is no address for a notice",
            "delete it, or hold it",
        )
    if isinstance(error, SpoolLocked):
        hint = "nothing was changed; it can be adopted when its owner is gone"
        return AdminRefusal(HTTPStatus.CONFLICT, str(error), hint, owner=error.node)
    for kind, status, hint in _IN_THEIR_WORDS:
        if isinstance(error, kind):
            return AdminRefusal(status, str(error), hint)
    return None


def _about_the_daemon(error: BaseException | None) -> AdminRefusal:
    unavailable = HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, StoreUnavailable):
        return AdminRefusal(unavailable, f"the limits could not be asked: {error}", "see the log")
    if isinstance(error, SpoolError):
        return AdminRefusal(unavailable, f"the spool could not do it: {error}", "see the log")
    if isinstance(error, ExplanationFailed):
        return AdminRefusal(unavailable, str(error), "see the log")
    if isinstance(error, HistoryError):
        return AdminRefusal(unavailable, f"the history can't be read: {error}", "see the log")
    # What is cancelled is a call that missed its deadline: so it reads for the audit log.
    if isinstance(error, OutOfTime | CancelledError):
        return AdminRefusal(HTTPStatus.GATEWAY_TIMEOUT, "no answer in time", "it may still be carried out")
    return AdminRefusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error", "see the log")
