"""What an action on the queue of the console is about: what its page counted, and as in elemtactl."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest

from elemta.address import Address
from elemta.console.mail_views import ACTIONS
from elemta.ctl.queue import STATES_OF_ALL
from elemta.daemon.queue_answers import MessagePage, QueueEntry
from elemta.daemon.queue_operations import QueueChange, QueueResults
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_json import Count
from elemta.ops.openapi import ApiOperations
from elemta.spool import MessageState
from tests.support.console import Console

STATES = [state for state in MessageState for _ in range(3)]


class Queue:
    """Three messages in each state, two on a page, and what is done to them."""

    def __init__(self) -> None:
        self.messages = {f"{state.name}{place}": state for place, state in enumerate(STATES)}
        self.changed: list[str] = []

    @route("GET", "/v1/queue")
    async def list(
        self,
        state: MessageState | None = None,
        from_: str | None = None,
        to: str | None = None,
        limit: Annotated[int, Count()] = 100,
        after: str | None = None,
    ) -> MessagePage:
        """The messages."""
        assert (to, limit) == (None, 1000)
        chosen = [
            name for name, each in self.messages.items() if state in (None, each) and name > (after or "")
        ]
        chosen = sorted(name for name in chosen if from_ is None or name.endswith(from_))
        return MessagePage(tuple(map(self._entry, chosen[:2])), chosen[1] if len(chosen) > 2 else None)

    def _entry(self, name: str) -> QueueEntry:
        sender, state = Address("a", "b.test"), self.messages[name]
        return QueueEntry(name, state, sender, 1, 1, 9, 0.0, None, 0, None, None, "", "")

    def _change(self, ids: str) -> QueueResults:
        self.changed += ids.split(",")
        return QueueResults(tuple(QueueChange(each, "done") for each in ids.split(",")))

    @route("POST", "/v1/queue/hold")
    async def hold(self, ids: str) -> QueueResults:
        """Hold."""
        return self._change(ids)

    @route("POST", "/v1/queue/release")
    async def release(self, ids: str) -> QueueResults:
        """Release."""
        return self._change(ids)

    @route("POST", "/v1/queue/retry")
    async def retry(self, ids: str) -> QueueResults:
        """Retry."""
        return self._change(ids)

    @route("POST", "/v1/queue/bounce")
    async def bounce(self, ids: str) -> QueueResults:
        """Bounce."""
        return self._change(ids)

    @route("POST", "/v1/queue/delete")
    async def delete(self, ids: str) -> QueueResults:
        """Delete."""
        return self._change(ids)


class Operator:
    """An operator with a browser."""

    def __init__(self, directory: Path) -> None:
        self.queue = Queue()
        api = ApiOperations()
        api.calls = CallTable(self.queue, api)
        self.console = Console(directory, api.calls)
        self.cookie, self.csrf = self.console.log_in("operator")

    def count(self, query: str) -> str:
        """What the page says that an action is about."""
        reply = self.console.ask("GET", f"/queue/act?{query}", cookie=self.cookie)
        found = re.search(r"<h1>\w+ (\d+) messages?\?</h1>", reply.text)
        return found[1] if found else f"{reply.status}"

    def act(self, **fields: str) -> Any:
        return self.console.post("/queue/act", {"csrf": self.csrf, **fields}, cookie=self.cookie)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_about_the_messages_that_it_is_for(operator: Operator, action: str) -> None:
    """A hold of all messages takes no end from those that are on hold, and a retry fails for none of them."""
    wanted = [MessageState(state) for state in STATES_OF_ALL[action] if state] or list(MessageState)
    assert operator.count(f"action={action}") == str(3 * len(wanted))
    assert operator.act(action=action).status == 200
    assert len(operator.queue.changed) == 3 * len(wanted)
    assert {operator.queue.messages[name] for name in operator.queue.changed} == set(wanted)


def test_a_state_that_is_named_is_the_one(operator: Operator) -> None:
    assert operator.count("action=hold&state=quarantine") == "3"
    operator.act(action="hold", state="quarantine", **{"from": " "})
    assert {name.rstrip("0123456789") for name in operator.queue.changed} == {"QUARANTINE"}


@pytest.mark.parametrize("field", ["form", "From", "state_", "after", "limit"])
def test_a_misspelt_filter_does_not_mean_all(operator: Operator, field: str) -> None:
    assert operator.count(f"action=delete&{field}=x") == "400"
    reply = operator.act(action="delete", **{field: "x"})
    assert (reply.status, operator.queue.changed) == (400, [])
    assert "unknown filter" in reply.text
