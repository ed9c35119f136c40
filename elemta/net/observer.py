"""The observer of listeners and sessions, for the metrics."""

from __future__ import annotations

from typing import Protocol


class NetObserver(Protocol):
    """Facts of the listeners and sessions, for counting. Implementations never raise and never block."""

    def connection_opened(self, listener: str) -> None: ...

    def connection_closed(self, listener: str, seconds: float) -> None: ...

    def connection_refused(self, listener: str, reason: str) -> None: ...

    def health_check(self, listener: str) -> None: ...

    def replied(self, verb: str, code: int) -> None: ...

    def message_accepted(self, listener: str, size: int) -> None: ...

    def message_refused(self, stage: str, policy: str, transient: bool) -> None: ...

    def tls_started(self, version: str) -> None: ...

    def authenticated(self, outcome: str) -> None: ...


class NullNetObserver:
    """Counts nothing."""

    def connection_opened(self, listener: str) -> None:
        pass

    def connection_closed(self, listener: str, seconds: float) -> None:
        pass

    def connection_refused(self, listener: str, reason: str) -> None:
        pass

    def health_check(self, listener: str) -> None:
        pass

    def replied(self, verb: str, code: int) -> None:
        pass

    def message_accepted(self, listener: str, size: int) -> None:
        pass

    def message_refused(self, stage: str, policy: str, transient: bool) -> None:
        pass

    def tls_started(self, version: str) -> None:
        pass

    def authenticated(self, outcome: str) -> None:
        pass
