"""What a stage was charged, why a limit refused, and how full a limit is."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from elemta.config import Counts, Identity, OnExceed, Rate
from elemta.limits.store import Receipt, Request


class RefusalCause(enum.Enum):
    """Why a limit refused."""

    EXCEEDED = "exceeded"
    IMPOSSIBLE = "impossible"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class LimitRefusal:
    """A limit's refusal.

    ``retry_after`` is the seconds until the same charge would pass if nothing else were charged;
    infinite when the amount alone is more than the limit (``IMPOSSIBLE``), and a guess when the store
    could not be asked (``UNAVAILABLE``) or when it depends on others closing their connections.
    ``per`` and ``rates`` are those of the limit. ``reply_wait`` is the seconds that the reply names: at
    least ``retry_after``, and more where many clients would come at once.
    """

    limit: str
    action: OnExceed
    retry_after: float
    identity: str
    counts: Counts
    cause: RefusalCause = RefusalCause.EXCEEDED
    per: tuple[Identity, ...] = ()
    rates: tuple[Rate, ...] = ()
    reply_wait: float | None = None

    @property
    def delays(self) -> bool:
        """Whether the client is to wait in place of a reply."""
        return self.action is OnExceed.DELAY and self.cause is RefusalCause.EXCEEDED


@dataclass(frozen=True, slots=True)
class Charge:
    """What one stage was charged: receipts, or a refusal and nothing charged.

    ``covered`` are the requests that were not charged because their key was among those charged already.
    """

    receipts: tuple[Receipt, ...] = ()
    refusal: LimitRefusal | None = None
    covered: tuple[Request, ...] = ()

    @property
    def covered_keys(self) -> frozenset[str]:
        """The keys of what was not charged again."""
        return frozenset(request.key for request in self.covered)

    @property
    def of_session(self) -> tuple[Receipt, ...]:
        """The receipts that belong to the connection: never refunded with a transaction."""
        return tuple([receipt for receipt in self.receipts if receipt.request.spec.of_session])

    @property
    def of_transaction(self) -> tuple[Receipt, ...]:
        """The receipts that are given back when the transaction comes to nothing."""
        return tuple([receipt for receipt in self.receipts if not receipt.request.spec.of_session])
