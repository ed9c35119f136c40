"""Which Maildirs exist: asked of the file system in threads, with a deadline, and remembered for a moment."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from functools import partial
from threading import Thread
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from elemta.address import Address
from elemta.delivery.maildir import check_root, maildir_path
from elemta.delivery.routes import MaildirRoute
from elemta.errors import MailboxUnknown

#: Seconds.
DEADLINE = 5.0
REMEMBER_FOUND = 30.0
REMEMBER_MISSING = 1.0

THREADS = 2
MOST_WAITING = 1000
MOST_REMEMBERED = 10_000

# Such a name can't be anybody's mailbox.
_NO_NAME = frozenset({errno.ENOENT, errno.ENAMETOOLONG})


class Mailboxes:
    """Tells whether a recipient's Maildir exists. The reactor never waits for the disk."""

    def __init__(self, reactor: Any, clock: Any = None) -> None:
        self._reactor = reactor
        self._clock = reactor if clock is None else clock
        self._pool: ThreadPool | None = None
        self._remembered: OrderedDict[tuple[str, Address], tuple[float, bool]] = OrderedDict()
        self._asked: dict[str, list[Deferred[bool]]] = {}

    def exists(self, route: MaildirRoute, recipient: Address) -> bool | Deferred[bool]:
        """Whether the directory of a recipient's Maildir is there.

        The Deferred fails with :class:`~elemta.errors.MailboxUnknown` where the file system gives no
        answer, or none in :data:`DEADLINE` seconds; so does the call where too many wait already.
        """
        key = (route.target, recipient)
        until, found = self._remembered.get(key, (0.0, False))
        if self._clock.seconds() < until:
            return found
        if len(self._asked) >= MOST_WAITING:
            raise MailboxUnknown(f"{len(self._asked)} Maildirs are being looked for already")
        answer: Deferred[bool] = Deferred()
        answer.addTimeout(DEADLINE, self._clock)
        answer.addCallbacks(self._remember, _in_words, callbackArgs=(key,))
        self._ask(maildir_path(route.template, recipient), route.root, answer)
        return answer

    def forget(self) -> None:
        """Ask anew about every Maildir."""
        self._remembered.clear()

    def stop(self) -> None:
        """End the threads; one that hangs in the file system is left to the end of the process."""
        pool, self._pool = self._pool, None
        if pool is not None and not self._asked:
            pool.stop()

    def _ask(self, directory: str, root: str, answer: Deferred[bool]) -> None:
        waiting = self._asked.setdefault(directory, [])
        waiting.append(answer)
        if len(waiting) > 1:
            return
        if self._pool is None:
            self._pool = ThreadPool(0, THREADS, "elemta-mailboxes")
            # A disk that does not answer must not keep the process from ending.
            self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
            self._pool.start()
        self._pool.callInThread(self._look, directory, root)

    def _look(self, directory: str, root: str) -> None:
        outcome: bool | Failure
        try:
            outcome = stat.S_ISDIR(os.stat(directory).st_mode)
        except OSError as error:
            outcome = self._missing(root) if error.errno in _NO_NAME else Failure()
        self._reactor.callFromThread(self._answer, directory, outcome)

    def _missing(self, root: str) -> bool | Failure:
        """No mailbox, unless the file system with all of them is not there: that says nothing of any."""
        try:
            check_root(root)
        except OSError:
            return Failure()
        return False

    def _answer(self, directory: str, outcome: bool | Failure) -> None:
        for waiting in self._asked.pop(directory):
            # One whose time was up has its answer; Twisted drops this one.
            waiting.callback(outcome)

    def _remember(self, found: bool, key: tuple[str, Address]) -> bool:
        seconds = REMEMBER_FOUND if found else REMEMBER_MISSING
        self._remembered[key] = (self._clock.seconds() + seconds, found)
        self._remembered.move_to_end(key)
        if len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return found


def _in_words(failure: Failure) -> Failure:
    if failure.check(DeferredTimeout, CancelledError) is not None:
        return Failure(MailboxUnknown(f"the file system gave no answer within {DEADLINE:g} s"))
    return Failure(MailboxUnknown(f"the file system gave no answer: {failure.getErrorMessage()}"))
