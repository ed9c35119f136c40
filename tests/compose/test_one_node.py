"""docker-compose.yml as it is: one node and Valkey; and the image without either."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.compose.clients import greeting, metric, page, send, valkey, wait_for
from tests.compose.engine import Engine, Stack

Show = Callable[[str, str], None]

MAIL = "/var/spool/elemta/mail/example.com/box/new"


@pytest.fixture(scope="module")
def stack(engine: Engine) -> Iterator[Stack]:
    stack = Stack(engine, "docker-compose.yml", "elemta-one")
    try:
        yield stack
    finally:
        stack.down("-v")
    assert engine.run("ps", "--all", "--quiet") == ""
    assert engine.run("volume", "ls", "--quiet") == ""


@pytest.fixture(autouse=True)
def _everything_runs(stack: Stack) -> None:
    """Also where an earlier test failed between taking it down and up again."""
    stack.up()
    wait_until_ready()


def wait_until_ready() -> None:
    wait_for("it is ready", lambda: page(8080, "/readyz")[0] == 200)
    wait_for("it counts in Valkey", lambda: metric(8080, 'elemta_limiter_mode{mode="cluster"') == 1)


def test_it_greets_takes_mail_and_counts(stack: Stack) -> None:
    assert greeting(2525, "198.51.100.2") == "220 mx.example.com ESMTP Elemta"
    assert "queued as" in send(2525, "198.51.100.3", subject="one")
    assert valkey("ZCARD", "elemta:ratelimit:ip:198.51.100.3") == 1
    assert stack.engine.status("healthcheck", "run", stack.container("elemta")) == 0
    assert "node mx" in stack.execute("elemta", "elemtactl", "status")


def test_a_new_container_has_the_queue_of_the_old(stack: Stack, show: Show) -> None:
    send(2525, "198.51.100.4", subject="kept")
    wait_for(
        "it is delivered", lambda: "Subject: kept" in stack.execute("elemta", "sh", "-c", f"cat {MAIL}/*")
    )
    stack.down()
    stack.up()
    wait_until_ready()
    assert "Subject: kept" in stack.execute("elemta", "sh", "-c", f"cat {MAIL}/*")
    show("one node: down and up again, and its queue and Maildirs are there", "2 containers, 1 volume")


def test_a_bad_configuration_ends_with_78_and_says_why(engine: Engine) -> None:
    name = "elemta-bad"
    assert engine.status("run", "--name", name, "--env", "ELEMTA_SPOOL_EXPIRE=never", "elemta") == 78
    try:
        assert "spool.expire" in engine.log(name)
    finally:
        engine.run("rm", "--force", "--volumes", name)


def test_the_image_alone_takes_mail(engine: Engine) -> None:
    """With nothing but ``docker run``."""
    name = "elemta-alone"
    engine.run("run", "--detach", "--name", name, "--publish", "2530:2525", "elemta")
    try:
        wait_for("it is healthy", lambda: engine.status("healthcheck", "run", name) == 0)
        assert greeting(2530, "198.51.100.5").endswith(" ESMTP Elemta")
    finally:
        engine.run("rm", "--force", "--time", "60", "--volumes", name)
