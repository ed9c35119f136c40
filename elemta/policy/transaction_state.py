"""What policies make of one transaction: the view of each, what they publish, and what they say of it."""

from __future__ import annotations

from functools import partial
from typing import Any

from elemta.address import Address
from elemta.history.events import VerdictNote
from elemta.policy.asking import ChainDecision
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.results import Results
from elemta.policy.runner import PolicyRunner
from elemta.policy.views import Transaction
from elemta.smtp.session_info import SessionInfo
from elemta.smtp.session_info import TransactionInfo as TransactionFacts


class TransactionState:
    """The state of one transaction: each policy's view, what they published, the reasons to hold it."""

    __slots__ = ("board", "client", "discarded", "facts", "held", "noted", "relay", "results", "views")

    def __init__(
        self, facts: TransactionFacts, client: SessionInfo, relay: RelayPermission, results: Results
    ) -> None:
        self.facts = facts
        self.client = client
        self.relay = relay
        self.results = Results(results)
        self.board: dict[tuple[str, str], Any] = {}
        self.views: dict[PolicyRunner, Transaction] = {}
        self.held: tuple[str, ...] = ()
        self.noted: tuple[VerdictNote, ...] = ()
        self.discarded: ChainDecision | None = None

    def of(self, runner: PolicyRunner) -> Transaction:
        view = self.views.get(runner)
        if view is None:
            view = Transaction(
                self.facts,
                runner.name,
                self.board,
                observed=runner.observed,
                may_receive=partial(self._may_receive, runner.grants_relaying),
                results=self.results,
            )
            self.views[runner] = view
        return view

    def _may_receive(self, granted: bool, recipient: Address) -> bool:
        """Whether a policy may add this recipient: relaying is granted where it is for RCPT, too."""
        return granted or self.relay.allows(self.client, recipient)
