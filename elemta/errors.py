"""The error types of Elemta.

What a peer or a message did wrong is a value (a reply, a verdict, an outcome). These exceptions
are for us: configuration that can't be used, a disk that fails, a plugin that is not there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class ElemtaError(Exception):
    """The base of every error that Elemta raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a configuration.

    ``place`` is the file or the environment variable, ``key`` the dotted key (``server.hostname``,
    ``listener[2].tls``; empty for the file as a whole), ``problem`` what was found and what is
    allowed, ``hint`` a nearest key or a remedy (may be empty).
    """

    place: str
    key: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: {self.key}" if self.key else self.place
        return f"{where}: {self.problem}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(ElemtaError):
    """A configuration that can't be used; carries every fault that was found, not only the first.

    ``rest`` is the configuration with a default in the place of each setting that is wrong, for those that
    look for more faults; None where there is none.
    """

    def __init__(self, faults: Sequence[Fault], rest: Any = None) -> None:
        self.faults = tuple(faults)
        self.rest = rest
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def with_more(self, faults: Iterable[Fault]) -> ConfigError:
        """The same, with the faults among these that it has not yet."""
        more = [fault for fault in faults if fault not in self.faults]
        return type(self)([*self.faults, *more])


class FaultCollector:
    """Collects what parts raise that are built one after the other, to raise it together.

    .. code-block:: python

        faults = FaultCollector()
        with faults:
            chain = load_chain(config, services)
        with faults:
            tls = load_context(config.tls)
        faults.check()
    """

    def __init__(self) -> None:
        self._error: ConfigError | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, ConfigError):
            return False
        if self._error is None:
            self._error = error
        elif isinstance(error, PolicyUnavailable):
            self._error = PolicyUnavailable(self._error.with_more(error.faults).faults)
        else:
            self._error = self._error.with_more(error.faults)
        return True

    def check(self) -> None:
        """Raise every fault, if there is any, as ConfigError, or PolicyUnavailable where that was raised."""
        if self._error is not None:
            raise self._error


class PolicyUnavailable(ConfigError):
    """A policy that the chain names can't be found, imported, verified or built; carries every fault, too."""


class SpoolError(ElemtaError):
    """The spool could not do what was asked; nothing that was acknowledged is lost."""


class SpoolFull(SpoolError):
    """There is no space on the spool's disk."""


class NotSigned(SpoolError):
    """A policy that signs failed, and its ``on_error`` keeps the message out of the queue.

    ``refused``: the operator chose to refuse it for good.
    """

    def __init__(self, words: str, *, refused: bool = False) -> None:
        super().__init__(words)
        self.refused = refused


class SpoolLocked(SpoolError):
    """Another process owns this partition of the spool; it is of ``node``, where that is known."""

    def __init__(self, words: str, *, node: str = "") -> None:
        super().__init__(words)
        self.node = node


class NoSpool(SpoolError):
    """There is no spool in this directory, or nothing that is known of it."""


class SpoolFormatError(SpoolError):
    """The spool on disk was written by a newer Elemta, or is not a spool."""


class HistoryError(ElemtaError):
    """The history of messages can't be read or written: no mail depends on it."""


class UnknownPlace(HistoryError):
    """There is no such place in the history to go on behind."""


class NoMailbox(ElemtaError):
    """A recipient has no Maildir, and none may be made for it."""


class MailboxUnknown(ElemtaError):
    """Whether a mailbox exists could not be found out: local trouble, never the client's fault."""


class UnknownMessage(SpoolError):
    """No message in the spool has this queue id."""


class MessageOnHold(SpoolError):
    """The message is on hold, so that it can't be retried: release it instead."""


class NoSender(SpoolError):
    """The message is from the null reverse-path: there is no sender to return it to (RFC 5321 §4.5.5)."""


class AddressSyntaxError(ElemtaError, ValueError):
    """Text that is not a mail address by RFC 5321 §4.1.2."""


class RelayNotGranted(ElemtaError, ValueError):
    """A policy that may not grant relaying tried to add a recipient to which the client may not relay."""


class ProxyHeaderError(ElemtaError):
    """A PROXY protocol header that is malformed, oversized or not allowed."""


class StoreUnavailable(ElemtaError):
    """The store of the limits did not answer in time or at all."""


class StoreUndecided(StoreUnavailable):
    """The store of the limits answers, and says itself that it can't decide: it says nothing of the store."""


class ChannelError(ElemtaError):
    """The process at the other end of a channel did not answer a question."""


class ChannelClosed(ChannelError):
    """The channel is closed: the other process is gone, or one of the two broke the rules of the channel."""


class ChannelTimeout(ChannelError):
    """There was no answer in time. The question may have taken effect."""


class ChannelBusy(ChannelError):
    """So much is under way on the channel that the question was not asked."""


class ChannelRefused(ChannelError):
    """The other process answered that it can't; ``code`` says why in a word."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class TooManyOverrides(ElemtaError):
    """There are as many overrides of limits as there may be."""

    def __init__(self, most: int) -> None:
        super().__init__(f"there are {most} overrides already")


class PushedMeanwhile(ElemtaError):
    """Another set of limits was pushed since the one that this was to take the place of."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} was pushed meanwhile")


class ValkeyFailure(enum.Enum):
    """Why a command to Valkey failed; the values are labels of a metric."""

    DISCONNECTED = "disconnected"
    DEADLINE = "deadline"
    OVERLOADED = "overloaded"
    """Too much is under way already, or Valkey takes no more clients."""
    LOADING = "loading"
    READONLY = "readonly"
    """It is a replica."""
    OOM = "oom"
    BUSY = "busy"
    REDIRECTED = "redirected"
    """A cluster that has no node for the key now, or whose nodes send us around."""
    DENIED = "denied"
    """The password is wrong, or the user may not do this."""
    NOREPLICAS = "noreplicas"
    OTHER = "other"


class ValkeyError(StoreUnavailable):
    """A command to Valkey failed. With ``maybe_done`` it may have been executed all the same."""

    def __init__(self, kind: ValkeyFailure, words: str, *, maybe_done: bool = False) -> None:
        self.kind = kind
        self.maybe_done = maybe_done
        super().__init__(words)


class BackendError(ElemtaError):
    """A service that a policy asks could not be reached, broke off, or did not answer in time."""


class UsersFileError(ElemtaError):
    """A users file that can't be read or has a line that can't be used."""


class CredentialsUnavailable(ElemtaError):
    """Credentials could not be checked in time or at all: local trouble, never the client's fault."""


class ListenFailed(ElemtaError):
    """A listener could not be opened."""


class NoSuchDomain(ElemtaError):
    """DNS says that a name does not exist (NXDOMAIN), or the text can't be a name at all."""


class ResolverTrouble(ElemtaError):
    """DNS gave no usable answer in time: trouble that may pass, and no fact about the name.

    ``local``: what failed may be on this side, such as the name servers or the way to them.
    """

    def __init__(self, text: str, *, local: bool = False) -> None:
        super().__init__(text)
        self.local = local


class PolicyRequestError(ElemtaError):
    """A client of the policy service sent what is no request."""


class ExplanationFailed(ElemtaError):
    """What would happen can't be said now."""


class PeerFailed(ElemtaError):
    """Another daemon did not answer what it was asked; the text says why."""
