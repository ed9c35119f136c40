"""What needs attention: each kind with what an operator has to know, and the worst first."""

from __future__ import annotations

from typing import Any

import pytest

from elemta.certificates import Certificate, certificate_cautions
from elemta.console.attention import SOON_DAYS, attention

WELL: dict[str, Any] = {
    "not_ready": [],
    "valkey": {"trouble": ""},
    "limiter": "cluster",
    "spool": {"healthy": True},
    "certificates": [{"names": ["mx.test"], "days_left": 60}],
    "needs_restart": [],
    "notes": [],
}
NODES: dict[str, Any] = {"complete": True, "nodes": [{"node_id": "a", "state": "serving"}]}
GONE = {"node_id": "b", "state": "gone", "left": False, "seen_ago": 300.0, "queued": 0}
POLICY = {"name": "rspamd", "asked": True, "breaker": "closed", "last_failure": None}


def blocked(name: str, waiting: int, state: str = "blocked") -> dict[str, Any]:
    return {"name": name, "state": state, "waiting": waiting, "last_error": f"no route to {name}"}


def found(
    *destinations: Any, nodes: Any = NODES, chain: Any = (POLICY,), **status: Any
) -> list[tuple[str, str]]:
    return [(each.grave, each.text) for each in attention({**WELL, **status}, nodes, chain, destinations)]


def test_a_node_that_is_well_needs_none() -> None:
    assert found(blocked("x.test", 3, "open"), blocked("y.test", 3, "paused"), blocked("z.test", 0)) == []


@pytest.mark.parametrize(
    ("status", "grave", "words"),
    [
        ({"not_ready": ["draining"]}, "bad", "takes no mail: draining"),
        ({"limiter": "local", "valkey": {"trouble": "refused"}}, "bad", "Valkey is away"),
        ({"spool": {"healthy": False}}, "bad", "disk of the spool"),
        ({"certificates": [{"names": ["mx.test"], "days_left": 13}]}, "warn", "mx.test has 13 days left"),
        ({"certificates": [{"names": ["mx.test"], "days_left": 2}]}, "bad", "mx.test has 2 days left"),
        (
            {"workers": [{"number": 1, "state": "running", "trouble": "its disk has failed"}]},
            "warn",
            "Worker 1 takes no mail: its disk has failed.",
        ),
        (
            {"workers": [{"number": 1, "state": "dead", "trouble": ""}]},
            "warn",
            "Worker 1 does not run: dead.",
        ),
        ({"needs_restart": ["server.node_id"]}, "warn", "restart: server.node_id"),
        ({"notes": [{"key": "tls.ciphers", "problem": "is weak"}]}, "warn", "tls.ciphers: is weak"),
    ],
)
def test_what_is_wrong_with_the_daemon_is_told(status: Any, grave: str, words: str) -> None:
    ((said_grave, text),) = found(**status)
    assert said_grave == grave
    assert words in text


@pytest.mark.parametrize("days", [-2, 0, 9, SOON_DAYS - 1])
def test_a_certificate_that_expires_is_told_once(days: int) -> None:
    certificate = Certificate("tls", "mx.pem", ("mx.test",), "RSA", 0.0, 86400.0 * (30 + days), (), b"")
    now = 86400.0 * 30
    notes = [{"key": each.key, "problem": each.problem} for each in certificate_cautions([certificate], now)]
    assert notes
    left = certificate.days_left(now)
    assert len(found(certificates=[{"names": ["mx.test"], "days_left": left}], notes=notes)) == 1


def test_a_policy_that_answers_no_client_is_told_with_the_reason() -> None:
    failing = {**POLICY, "breaker": "open", "last_failure": {"reason": "no answer within 5 s"}}
    stopped = {**POLICY, "name": "milter", "asked": False}
    assert found(chain=(failing, stopped)) == [
        ("bad", "The policy rspamd answers no client: no answer within 5 s."),
        ("bad", "The policy milter has not started."),
    ]


def test_a_node_that_vanished_lately_is_told_with_its_queue() -> None:
    others = [GONE, {**GONE, "node_id": "c", "queued": 7}, {**GONE, "left": True}, {**GONE, "seen_ago": 1e6}]
    assert found(nodes={**NODES, "nodes": [*NODES["nodes"], *others]}) == [
        ("bad", "The node c vanished 5m ago with 7 messages in its queue."),
        ("warn", "The node b vanished 5m ago."),
    ]


def test_blocked_destinations_are_one_line_with_the_fullest() -> None:
    assert found(blocked("x.test", 3)) == [
        ("warn", "1 destination is blocked, and 3 messages wait: no route to x.test")
    ]
    assert found(blocked("x.test", 3), blocked("y.test", 9)) == [
        (
            "warn",
            "2 destinations are blocked, and 12 messages wait, most of them for y.test: no route to y.test",
        )
    ]


def test_the_worst_comes_first() -> None:
    graves = [grave for grave, _ in found(blocked("x.test", 3), needs_restart=["x"], not_ready=["draining"])]
    assert graves == ["bad", "warn", "warn"]
