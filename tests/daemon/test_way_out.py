"""Policies and limits on the way out, on a real daemon with real next hops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.sink import Sink
from tests.support.daemon import Daemon

pytestmark = pytest.mark.timeout(300)

MakeDaemon = Callable[..., Daemon]
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"

MODULE = '''
from dataclasses import dataclass
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import implementer
from elemta.policy import (
    CONTINUE, Defer, Hold, IDeliveryObserver, IDeliveryPolicy, IPolicyPlugin, NoSuchDomain, REQUIRED,
    ResolverTrouble, RouteTo, setting,
)


@dataclass(frozen=True)
class Options:
    side: str = setting(REQUIRED, "Where mail for the side route goes.")


@implementer(IDeliveryPolicy, IDeliveryObserver)
class Chooser:
    def __init__(self, options, services):
        self._options = options
        self._log = services.log
        self._resolver = services.resolver
        self._attempts = services.metrics.counter("attempts_total", "Attempts.", ["status"])

    def route(self, envelope, recipient):
        answers = {
            "side": lambda: RouteTo(self._options.side),
            "login": lambda: RouteTo(self._options.side, credentials=("anna", "open-sesame")),
            "held": lambda: Hold("by the policy"),
            "later": lambda: Defer("the policy waits"),
            "hangs": Deferred,
            "asks": lambda: self._ask(recipient),
            "raises": lambda: 1 / 0,
        }
        return answers.get(recipient.local, lambda: CONTINUE)()

    async def _ask(self, recipient):
        try:
            await self._resolver.text("bad name." + recipient.domain)
        except (NoSuchDomain, ResolverTrouble) as error:
            self._log.info("asked", words=type(error).__name__)
        return CONTINUE

    def attempted(self, outcome):
        self._attempts.labels(outcome.status.value).inc()


@implementer(IPlugin, IPolicyPlugin)
class ChooserPlugin:
    """Chooses routes."""
    name = "chooser"
    options = Options

    def build(self, options, services):
        return Chooser(options, services)


chooser = ChooserPlugin()
'''


@pytest.fixture
def sinks() -> Iterator[tuple[Sink, Sink]]:
    with Sink() as front, Sink() as side:
        yield front, side


@pytest.fixture
def node(make_daemon: MakeDaemon, tmp_path: Path, sinks: tuple[Sink, Sink]) -> Daemon:
    front, side = sinks
    plugins = tmp_path / "site" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "chooser_plugin.py").write_text(MODULE)
    return make_daemon(
        '[policies]\nchain = ["limits", "relay", "chooser"]\n'
        f'[policy.chooser]\ntimeout = "500ms"\nside = "smtp://127.0.0.1:{side.port}"\n'
        f'[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{front.port}"\n',
        domains='relay_from = ["127.0.0.0/8"]',
        environ={"PYTHONPATH": str(tmp_path / "site")},
    ).start()


def send(daemon: Daemon, *recipients: str) -> None:
    with daemon.client() as client:
        client.sendmail("alice@example.org", [f"{local}@far.example" for local in recipients], CONTENT)


def show(daemon: Daemon) -> str:
    """All that is in the queue."""
    ids = [line.split()[0] for line in daemon.ctl("queue", "list").stdout.splitlines()[1:]]
    return daemon.ctl("queue", "show", *ids, check=False).stdout if ids else ""


def until(true: Callable[[], object], words: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, words
        time.sleep(0.02)


def test_a_policy_chooses_the_route_of_each_recipient_and_hears_of_attempts(
    node: Daemon, sinks: tuple[Sink, Sink]
) -> None:
    front, side = sinks
    send(node, "usual", "side", "asks", "held", "later")
    until(lambda: side.taken and len(front.by_recipient()) == 2, node.output())
    assert side.by_recipient().keys() == {"side@far.example"}
    assert front.by_recipient().keys() == {"usual@far.example", "asks@far.example"}
    held = node.wait_for("delivery.held")
    assert held["reason"] == "by the policy"
    until(lambda: "<later@far.example> deferred: 4.7.1 the policy waits" in show(node), show(node))
    delivered = r'elemta_plugin_chooser_attempts_total.*status="delivered"'
    until(lambda: node.metric(delivered) == 3, node.get("/metrics"))
    chosen = node.wait_for("policy.route", verdict="route")
    assert (chosen["policy"], chosen["recipient"]) == ("chooser", "side@far.example")


def test_a_login_that_a_policy_chose_in_vain_keeps_no_other_mail_of_its_next_hop_waiting(
    node: Daemon, sinks: tuple[Sink, Sink]
) -> None:
    _, side = sinks
    # The sink offers no AUTH.
    send(node, "login")
    node.wait_for("delivery.attempted", recipient="login@far.example", status="deferred", enhanced="4.7.4")
    send(node, "side")
    until(lambda: side.taken, node.output())
    assert side.by_recipient().keys() == {"side@far.example"}
    assert "sesame" not in node.output() + show(node)


def test_a_policy_that_fails_on_the_way_out_costs_a_wait_and_other_mail_goes(
    node: Daemon, sinks: tuple[Sink, Sink]
) -> None:
    front, _ = sinks
    failures = r'elemta_policy_failures_total.*policy="chooser".*stage="route"'
    for number, local in enumerate(("raises", "hangs"), 1):
        send(node, local)
        until(lambda number=number: node.metric(failures) == number, node.output())
        waits = f"<{local}@far.example> deferred: 4.3.0 Local trouble"
        until(lambda waits=waits: waits in show(node), node.output())
    send(node, "usual")
    until(lambda: front.taken, node.output())
    assert node.metric(failures) == 2
    assert not node.records("bounce.queued")


def test_more_than_the_pace_of_a_destination_waits_and_none_of_it_fails(
    make_daemon: MakeDaemon, sinks: tuple[Sink, Sink]
) -> None:
    slow, free = sinks
    daemon = make_daemon(
        f'[[route]]\ndomains = ["slow.example"]\nto = "smtp://127.0.0.1:{slow.port}"\n'
        f'[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{free.port}"\n'
        '[[limit]]\nname = "pace"\nper = ["destination"]\ncounts = "messages"\nrates = ["3/4s"]\n'
        f'except = ["127.0.0.1:{free.port}"]\n'
        '[[limit]]\nname = "lines"\nper = ["destination"]\ncounts = "open_connections"\nrates = ["1"]\n',
        domains='relay_from = ["127.0.0.0/8"]',
    ).start()
    began = time.monotonic()
    with daemon.client() as client:
        for number in range(7):
            client.sendmail("alice@example.org", [f"bob{number}@slow.example"], CONTENT)
            client.sendmail("alice@example.org", [f"bob{number}@free.example"], CONTENT)
    until(lambda: len(free.taken) == 7, daemon.output())
    assert len(slow.taken) <= 3 or time.monotonic() - began > 4
    daemon.wait_for("delivery.throttled", limit="pace", destination=f"127.0.0.1:{slow.port}")
    until(lambda: len(slow.taken) == 7, daemon.output(), 30)
    assert time.monotonic() - began > 7.5, "seven at three in four seconds take more than eight"
    statuses = {record["status"] for record in daemon.records("delivery.attempted")}
    assert statuses == {"delivered"}
    assert "pace" in daemon.get("/metrics")
