"""What a transport is: its registration, and what its outcomes and its failures come to."""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.config import RouteConfig, RouteTLS, TargetKind, target
from elemta.delivery import DeliverySettings
from elemta.delivery.routes import HoldRoute, MaildirRoute, MxRoute, NextHopRoute, Route, route_of
from elemta.delivery.transport import (
    ConfiguredRoute,
    MessageToDeliver,
    Transport,
    TransportKind,
    transport_of,
)
from elemta.delivery.transports import Transports
from elemta.envelope import Envelope, Recipient
from elemta.errors import SpoolError
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Attempt, Outcome, ReachedStage, Status
from tests.support.runtime import simulated_runtime

TARGETS = {
    TargetKind.SMTP: ("smtp://relay.example:587", NextHopRoute),
    TargetKind.LMTP: ("lmtp://127.0.0.1:24", NextHopRoute),
    TargetKind.LMTP_UNIX: ("lmtp+unix:///run/lmtp", NextHopRoute),
    TargetKind.MX: ("mx:", MxRoute),
    TargetKind.MAILDIR: ("maildir:/var/mail/{domain}/{local}", MaildirRoute),
    TargetKind.HOLD: ("hold:", HoldRoute),
}
BOB, EVE = (Recipient(Address(name, "example.com")) for name in ("bob", "eve"))


@pytest.mark.parametrize("kind", TARGETS)
def test_each_form_of_a_target_leads_to_a_route_that_a_transport_delivers(kind: TargetKind) -> None:
    to, route_type = TARGETS[kind]
    route = route_of(RouteConfig(domains=("*",), to=to, tls=RouteTLS.MAY))
    assert type(route) is route_type
    transport = transport_of(kind)
    assert (transport is None) == (kind is TargetKind.HOLD)
    assert transport is None or transport.route_type is route_type


@pytest.mark.parametrize("kind", TARGETS)
def test_mail_that_stays_on_this_host_has_no_limits_on_the_way_out(kind: TargetKind) -> None:
    route = route_of(RouteConfig(domains=("*",), to=TARGETS[kind][0]))
    leaves = kind not in (TargetKind.MAILDIR, TargetKind.HOLD)
    assert (route.limited_as(route.destination(BOB)) is not None) == leaves


def test_a_new_transport_is_a_class_with_one_method() -> None:
    class Printer(Transport):
        async def deliver(
            self, message: MessageToDeliver[Any], recipients: Sequence[Recipient]
        ) -> Sequence[Outcome]:
            return message.attempt.same_for_all(
                [each.address for each in recipients], Status.DELIVERED, "2.0.0", "printed"
            )

    delivered = _deliver(Printer())
    assert [(each.recipient, each.text) for each in delivered] == [
        (BOB.address, "printed"),
        (EVE.address, "printed"),
    ]
    assert {(each.queue_id, each.route, each.reached) for each in delivered} == {
        ("Q1", "printer:", ReachedStage.ANSWERED)
    }
    Printer().reconfigure(DeliverySettings("me.example"))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("a fault"), "a fault inside Elemta; the log has it"),
        (SpoolError("it is gone"), "the message could not be read here: it is gone"),
    ],
)
def test_what_a_transport_raises_defers_but_for_the_recipients_that_have_the_message(
    error: Exception, text: str
) -> None:
    class Broken(Transport):
        async def deliver(
            self, message: MessageToDeliver[Any], recipients: Sequence[Recipient]
        ) -> Sequence[Outcome]:
            bob = recipients[0].address
            message.attempt.taken[bob] = message.attempt.outcome(bob, Status.DELIVERED, 0, "2.0.0", "")
            raise error

    taken: dict[Address, Outcome] = {}
    delivered = _deliver(Broken(), taken)
    assert {(each.status, each.enhanced, each.text) for each in delivered} == {
        (Status.DEFERRED, "4.3.0", text)
    }
    assert [(address, each.status) for address, each in taken.items()] == [(BOB.address, Status.DELIVERED)]


def test_the_transport_of_the_recipe_appends_to_mboxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    row, text = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    # The row names the module, and its parser takes the form that it shows apart.
    members: dict[str, Any] = {}
    exec(textwrap.dedent(row), vars(target) | {"__builtins__": {}}, members)
    scheme, form, parse, name = members["MBOX"]
    path = f"{tmp_path}/{{domain}}/{{local}}"
    assert form == "mbox:/PATH/{domain}/{local}"
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(text, name, "exec", dont_inherit=True), vars(module))
    config = RouteConfig(domains=("*",), to=f"{scheme}:{path}")
    registered: TransportKind = module.TRANSPORT  # type: ignore[attr-defined]
    route = registered.route(ConfiguredRoute(config, parse(scheme, config.to), frozenset("*")))

    (tmp_path / "example.com").mkdir()
    (tmp_path / "example.com" / "eve").mkdir()  # no file, so that it cannot be written
    content = b"Subject: s\r\n\r\nFrom here\r\n"
    taken: dict[Address, Outcome] = {}
    clock = Clock()
    runtime = simulated_runtime(clock)
    services: Any = SimpleNamespace(threads=runtime.threads.pool("test", 1))
    attempt = Attempt("Q1", route.target, taken, wall=runtime.wall, monotonic=runtime.monotonic)
    envelope = Envelope("Q1", Address("a", "example.org"), (BOB, EVE), 0.0, len(content))
    message = MessageToDeliver(envelope, route, attempt, lambda: succeed(io.BytesIO(content)))
    delivery = Deferred.fromCoroutine(registered.make(services).deliver(message, (BOB, EVE)))
    done: list[Sequence[Outcome]] = []
    delivery.addCallback(done.append)
    for _ in range(4):  # a turn of the reactor for each call in a thread, and some to spare
        clock.advance(0)
    (outcomes,) = done
    assert [each.status for each in outcomes] == [Status.DELIVERED, Status.DEFERRED]
    assert [each.next_hop for each in outcomes] == [
        f"{tmp_path}/example.com/{name}" for name in ("bob", "eve")
    ]
    assert list(taken) == [BOB.address]
    written = (tmp_path / "example.com" / "bob").read_bytes()
    assert written == (
        b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\nReturn-Path: <a@example.org>\n"
        b"Subject: s\n\n>From here\n\n"
    )


def _deliver(transport: Transport, taken: dict[Address, Outcome] | None = None) -> tuple[Outcome, ...]:
    runtime = simulated_runtime(Clock())
    queue: Any = SimpleNamespace(open_content=list)
    pool = runtime.threads.pool("test", 1)
    transports = Transports(runtime, queue, pool, DeliverySettings("me.example"), DeliveryMetrics())
    transports._transports[Route] = transport
    envelope = Envelope("Q1", Address("a", "example.org"), (BOB, EVE), 0.0, 10)
    message: Any = SimpleNamespace(queue_id="Q1", envelope=envelope)
    ways = {Route("printer:", frozenset("*")): (BOB, EVE)}
    done: list[tuple[Outcome, ...]] = []
    Deferred.fromCoroutine(transports.deliver(message, ways, {} if taken is None else taken)).addCallback(
        done.append
    )
    return done[0]
