"""Where users logged in before, and how often the store is asked about it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from twisted.internet.task import Clock

from elemta.limits import LocalStore
from elemta.limits.known_logins import KNOWN_SECONDS, UNKNOWN_SECONDS, KnownLogins, LoginHistory
from elemta.limits.store import Request, Usage

OFFICE, NEIGHBOUR = ip_address("192.0.2.10"), ip_address("192.0.2.11")


class PeekedStore(LocalStore):
    """Counts how often it was asked."""

    peeks = 0

    def peek(self, requests: Sequence[Request]) -> tuple[Usage, ...]:
        self.peeks += 1
        return super().peek(requests)


def test_the_store_is_asked_once_about_a_login() -> None:
    """The queue of attempts and the limits both want to know; a second later the store is asked again."""
    clock = Clock()
    store = PeekedStore(clock)
    logins = KnownLogins(store, clock.seconds)
    logins.remember("anna", OFFICE)
    for user, standing, seconds in (
        ("anna", LoginHistory.KNOWN_ADDRESS, KNOWN_SECONDS),
        ("berta", LoginHistory.UNKNOWN, UNKNOWN_SECONDS),
    ):
        before = store.peeks
        assert [logins.standing(user, OFFICE) for _ in range(3)] == [standing] * 3
        assert store.peeks == before + 1
        clock.advance(seconds)
        assert logins.standing(user, OFFICE) is standing
        assert store.peeks == before + 2


def test_a_login_counts_at_once_at_a_new_address() -> None:
    clock = Clock()
    logins = KnownLogins(LocalStore(clock), clock.seconds)
    assert logins.standing("anna", OFFICE) is LoginHistory.UNKNOWN
    logins.remember("anna", OFFICE)
    assert logins.standing("anna", OFFICE) is LoginHistory.KNOWN_ADDRESS
    assert logins.standing("anna", NEIGHBOUR) is LoginHistory.KNOWN_NETWORK
    logins.remember("anna", NEIGHBOUR)
    assert logins.standing("anna", NEIGHBOUR) is LoginHistory.KNOWN_ADDRESS
