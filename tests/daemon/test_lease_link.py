"""Leases of partitions: a worker's, in the supervisor's Valkey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from elemta.daemon.lease_link import SupervisorScripts, serve_leases
from elemta.daemon.spool_lease import LeaseOwner, SpoolLease
from elemta.errors import StoreUnavailable
from elemta.valkey import Script
from tests.support.channels import ChannelPair
from tests.support.runtime import simulated_runtime


class Valkey:
    """What it was asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[bytes], list[object]]] = []
        self.answer: Deferred[Any] = succeed([])

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Any] = (),
        *,
        deadline: float | None = None,
    ) -> Deferred[Any]:
        self.asked.append((script.name, list(keys), list(args)))
        assert deadline is not None
        return self.answer


OWNER = LeaseOwner("boot", "place", "mx1", "höst")


@pytest.fixture
def ends() -> ChannelPair:
    return ChannelPair(Clock()).open()


def lease_of(ends: ChannelPair, prefix: str = "elemta:") -> SpoolLease:
    runtime = simulated_runtime()
    return SpoolLease(runtime, SupervisorScripts(ends.worker), prefix=prefix, spool_id="1f", owner=OWNER)


def take(ends: ChannelPair, lease: SpoolLease) -> Any:
    """What the worker comes to."""
    found: list[Any] = []
    Deferred.fromCoroutine(lease.take()).addBoth(found.append)
    ends.carry()
    return found[0]


def test_a_worker_takes_and_gives_up_its_lease(ends: ChannelPair) -> None:
    valkey = Valkey()
    serve_leases(ends.supervisor, valkey, "elemta:")
    lease = lease_of(ends)
    assert take(ends, lease) is None
    Deferred.fromCoroutine(lease.give_up())
    ends.carry()
    assert [(name, keys, args[-1]) for name, keys, args in valkey.asked] == [
        ("own", [b"elemta:spool:1f"], "höst"),
        ("disown", [b"elemta:spool:1f"], "boot"),
    ]


def test_another_owner_is_named(ends: ChannelPair) -> None:
    valkey = Valkey()
    valkey.answer = succeed([b"b", b"p", b"mx2", "hö".encode()])
    serve_leases(ends.supervisor, valkey, "elemta:")
    assert take(ends, lease_of(ends)) == LeaseOwner("b", "p", "mx2", "hö")


def test_valkey_that_is_away_is_a_store_that_is_unavailable(ends: ChannelPair) -> None:
    valkey = Valkey()
    valkey.answer = fail(StoreUnavailable("no answer"))
    serve_leases(ends.supervisor, valkey, "elemta:")
    found = take(ends, lease_of(ends))
    assert found.check(StoreUnavailable)
    assert "no answer" in found.getErrorMessage()


def test_nothing_else_can_be_run(ends: ChannelPair) -> None:
    valkey = Valkey()
    serve_leases(ends.supervisor, valkey, "elemta:")
    assert take(ends, lease_of(ends, prefix="other:")).check(StoreUnavailable)
    assert valkey.asked == []
