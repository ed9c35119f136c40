"""Which identities an operator can make an override for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import Clock

from elemta.auth.roles import AccessRole, Caller
from elemta.config import Counts, Identity, LimitConfig, Rate, ResourcesConfig
from elemta.daemon.override_operations import OverrideOperations
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.limits.override_registry import LocalOverrides
from elemta.ops.admin_errors import AdminRefusal
from elemta.runtime import Runtime

ADMIN = Caller("admin", AccessRole.OPERATOR)


@pytest.fixture
def operations() -> OverrideOperations:
    limits = [
        LimitConfig(" ".join(each.value for each in per) or "all", per, Counts.CONNECTIONS, (Rate(5, 60.0),))
        for per in ((Identity.IP,), (Identity.USER,), (Identity.HELO,), (Identity.USER, Identity.IP), ())
    ]
    clock = Clock()
    rules = rules_from_config(ResourcesConfig(max_requests_per_window=0), limits)
    registry = LocalOverrides(Runtime.of(clock))
    components: Any = SimpleNamespace(limiter=Limiter(rules, LocalStore(clock), overrides=registry.overrides))
    fleet: Any = SimpleNamespace(overrides=registry)
    return OverrideOperations(lambda: components, fleet)


@pytest.mark.parametrize(
    ("limit", "text", "identity"),
    [
        ("ip", "::ffff:192.0.2.7", "192.0.2.7"),
        ("ip", "::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("ip", " 192.0.2.7/32 ", "192.0.2.7/32"),
        ("ip", "2001:DB8:0:0::/32", "2001:db8::/32"),
        ("user ip", "10.0.0.0/8", "10.0.0.0/8"),
        ("user ip", "Anna|::ffff:192.0.2.7", "anna|192.0.2.7"),
        ("user", "CN=anna/192.0.2.0", None),
        ("user", "10.0.0.0/8", ""),
        ("helo", "2001:db8::/32", ""),
        ("all", "0.0.0.0/0", ""),
        ("ip", "192.0.2.1/24", ""),
    ],
)
@ensureDeferred
async def test_a_network_is_taken_where_clients_are_counted_and_in_any_spelling(
    operations: OverrideOperations, limit: str, text: str, identity: str | None
) -> None:
    made = operations.make(limit=limit, identity=text, for_=60.0, caller=ADMIN, exempt=True)
    if identity == "":
        with pytest.raises(AdminRefusal):
            await made
        assert (await operations.in_force()).overrides == ()
        return
    override = await made
    assert identity is None or override.identity == identity
    assert (await operations.remove(limit, text)).overrides == ()
