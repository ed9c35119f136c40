"""The pages in Chromium, with mail that carries what harms a page in every field that a sender controls."""

from __future__ import annotations

import json
import os
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from elemta.console.pages import MENU
from tests.support.browser import AVAILABLE, Browser
from tests.support.console import PASSWORD
from tests.support.hostile_fleet import SCRIPT, HostileFleet
from tests.support.valkey import eventually

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="there is no chromium and chromedriver")

# `make console-test` gets it.
AXE = os.environ.get("ELEMTA_AXE", "")
VIEWS = [(1280, "light"), (400, "dark")]
WIDTHS = [*VIEWS, (760, "light")]


class Shown:
    """A node with such mail and a browser that is logged in."""

    def __init__(self, directory: Path) -> None:
        self.fleet = HostileFleet(directory)
        try:
            self.fleet.fill()
            self.browser = Browser(directory)
        except BaseException:
            self.fleet.close()
            raise
        self.browser.show_as(*VIEWS[0])
        self.daemon = self.fleet.daemon
        self.open("/queue")
        self.browser.type("[name=username]", "operator")
        self.browser.type("[name=password]", PASSWORD)
        self.browser.click("button")
        self.browser.wait_for("Queue")

    def close(self) -> None:
        try:
            self.browser.close()
        finally:
            self.fleet.close()

    def open(self, path: str) -> None:
        self.browser.open(self.fleet.base + path)

    def check(self) -> None:
        """Nothing ran, nothing was complained about, no other host was asked, nothing is too wide."""
        assert self.browser.run("return window.harmed") is None
        assert [each for each in self.browser.problems() if "status of 4" not in each] == []
        hosts = {urlsplit(url).netloc for url in self.browser.requests() if url.startswith("http")}
        assert hosts <= {urlsplit(self.fleet.base).netloc}
        width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.browser.run(width) <= 0

    def press(self, selector: str) -> None:
        """Reach a thing by the keyboard from where the focus is, and press it."""
        self.browser.tab_to(selector)
        self.browser.press("ENTER")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    shown = Shown(tmp_path_factory.mktemp("browser"))
    yield shown
    shown.close()


def test_the_login_leads_to_the_console(shown: Shown) -> None:
    assert urlsplit(shown.browser.url).path == "/"
    shown.browser.wait_for("Queue")


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_every_page_shows_hostile_mail_as_text(shown: Shown, width: int, scheme: str) -> None:
    shown.browser.show_as(width, scheme)
    shown.open("/")
    menu = shown.browser.run("return [...document.querySelectorAll('nav a')].map(each => each.pathname)")
    assert menu == [each[0] for each in MENU]
    for path in shown.fleet.paths():
        shown.open(path)
        assert shown.browser.run("return document.querySelectorAll('h1').length") == 1, path
        shown.check()


@pytest.mark.skipif(not AXE, reason="ELEMTA_AXE does not name axe.min.js: make console-test")
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_axe_finds_no_violation_on_any_page(shown: Shown, width: int, scheme: str) -> None:
    axe = Path(AXE).read_text()
    shown.browser.show_as(width, scheme)
    found: dict[str, Any] = {}
    for path in shown.fleet.paths():
        shown.open(path)
        shown.browser.run(axe)
        violations = shown.browser.run("return axe.run().then(found => found.violations)")
        for each in violations:
            nodes = [node["html"][:200] for node in each["nodes"][:3]]
            found.setdefault(f"{each['id']}: {each['help']}", []).append((path, nodes))
    assert found == {}


@pytest.mark.skipif(not AXE, reason="ELEMTA_AXE does not name axe.min.js: make console-test")
def test_axe_finds_no_violation_at_the_login(shown: Shown, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    try:
        browser.open(shown.fleet.base + "/login")
        browser.run(Path(AXE).read_text())
        assert browser.run("return axe.run().then(found => found.violations)") == []
    finally:
        browser.close()


def test_the_first_tab_skips_the_menu(shown: Shown) -> None:
    shown.open("/queue")
    shown.browser.press("TAB")
    assert shown.browser.run("return document.activeElement.className") == "skip"
    shown.browser.press("ENTER")
    assert shown.browser.run("return document.activeElement.id") == "main"


def test_a_message_is_released_and_held_by_the_keyboard(shown: Shown) -> None:
    path = f"/messages/{shown.fleet.queue_ids('hold.test')[0]}"
    shown.open(path)
    shown.press(f"form[action='{path}/release'] button")
    shown.browser.wait_for("is released")
    shown.open(path)
    if shown.browser.run(f"return document.querySelector(\"form[action='{path}/hold']\") !== null"):
        shown.browser.tab_to("[name=reason]")
        shown.browser.type("[name=reason]", SCRIPT)
        shown.press(f"form[action='{path}/hold'] button")
        shown.browser.wait_for("is on hold")
        assert SCRIPT in shown.browser.text()
    shown.check()


@pytest.fixture
def waiting(shown: Shown) -> Iterator[str]:
    """A message of its own that waits, with a megabyte of what harms a page in each field of its sender's."""
    queue_id = shown.fleet.send_long("hop.test", 7)
    shown.fleet.attempts(queue_id)
    yield queue_id
    shown.fleet.call("/v1/queue/delete", {"ids": queue_id})


def test_a_message_is_tried_again_by_the_keyboard(shown: Shown, waiting: str) -> None:
    before = shown.fleet.attempts(waiting)
    shown.open(f"/messages/{waiting}")
    shown.press(f"form[action='/messages/{waiting}/retry'] button")
    shown.browser.wait_for("is tried now")
    assert SCRIPT in shown.browser.text()
    shown.check()
    eventually(lambda: shown.fleet.attempts(waiting) > before, "it was tried again")


@pytest.mark.parametrize(
    ("action", "words", "ended"),
    [("bounce", "is given up; its sender gets a notice", "bounced"), ("delete", "is deleted", "deleted")],
)
def test_a_message_is_given_up_or_removed_by_the_keyboard_after_a_second_look(
    shown: Shown, waiting: str, action: str, words: str, ended: str
) -> None:
    path = f"/messages/{waiting}"
    button = f"form[action='{path}/{action}'] button"
    shown.open(path)
    assert shown.browser.run(f'return document.querySelector("{button}").checkVisibility()') is False
    shown.press(f"details:has([action='{path}/{action}']) > summary")
    shown.press(button)
    shown.browser.wait_for(words)
    shown.check()
    life = eventually(
        lambda: [each for each in shown.fleet.ended(waiting) if each["state"] == "ended"], "it has ended"
    )
    assert [each["status"] for each in life[0]["recipients"]] == [ended]
    with pytest.raises(urllib.error.HTTPError):
        shown.fleet.call(f"/v1/queue/{waiting}")
    # What is left of it is text, too.
    shown.open(path)
    assert SCRIPT in shown.browser.text()
    shown.check()


def test_a_destination_is_probed_by_the_keyboard(shown: Shown, waiting: str) -> None:
    assert shown.fleet.attempts(waiting)
    before = shown.fleet.refused_by_hop
    shown.open("/destinations")
    shown.press("form[action='/destinations/probe'] button")
    shown.browser.wait_for("An attempt is made now")
    shown.check()
    eventually(lambda: shown.fleet.refused_by_hop > before, "the next hop was asked")


def test_a_destination_is_paused_and_resumed_by_the_keyboard(shown: Shown) -> None:
    shown.open("/destinations")
    shown.press("form[action='/destinations/pause'] button")
    shown.browser.wait_for("is paused")
    shown.press("form[action='/destinations/resume'] button")
    shown.browser.wait_for("goes on")
    shown.check()


def test_an_action_on_a_filter_shows_the_count_first(shown: Shown) -> None:
    queue_id = shown.fleet.queue_ids("hop.test")[-1]
    shown.open("/queue?to=@hop.test&state=deferred")
    shown.press("button[value=delete]")
    shown.browser.wait_for("Delete 1 message?")
    shown.press("main form button")
    shown.browser.wait_for("Delete: 1 message")
    shown.open("/queue")
    assert queue_id not in shown.browser.text()
    shown.check()


def test_a_set_of_limits_is_checked_and_pushed_by_the_keyboard(shown: Shown) -> None:
    shown.open("/limits")
    shown.press("a[href='/limits/push']")
    shown.browser.wait_for("Push limits to the fleet")
    area = "textarea[name=toml]"
    good = shown.browser.run(f"return document.querySelector('{area}').value")
    bad = good.replace("60/1h", f"60/1h {SCRIPT}").replace('"helo"', f'"{SCRIPT}"') + "[nonsense]\n"
    shown.browser.run(f"document.querySelector('{area}').value = {json.dumps(bad)}")
    shown.press("main form button")
    for words in ("nothing was changed", "limit[2].per", "limit[3].rates", "nonsense"):
        shown.browser.wait_for(words)
    shown.check()
    assert shown.browser.run(f"return document.querySelector('{area}').value") == bad

    # More than one has passed.
    stricter = good.replace("60/1h", "1/1h")
    shown.browser.run(f"document.querySelector('{area}').value = {json.dumps(stricter)}")
    shown.browser.tab_to("[name=note]")
    shown.browser.type("[name=note]", SCRIPT)
    shown.press("main form button")
    text = shown.browser.wait_for("Push these limits?")
    assert "mail-per-ip 127.0.0.1" in text
    assert not shown.browser.run(f"return document.querySelector('{area}').matches(':read-write')")
    shown.check()
    shown.press("button[formaction='/limits/push/edit']")
    shown.browser.wait_for("Push limits to the fleet")
    shown.browser.run(f"document.querySelector('{area}').value = {json.dumps(good)}")
    shown.press("main form button")
    shown.browser.wait_for("Push these limits?")
    shown.press("main form button")
    text = shown.browser.wait_for("The limits are pushed")
    assert SCRIPT in text
    shown.check()


def test_a_limit_is_overridden_from_the_board_and_reset_by_the_keyboard(shown: Shown) -> None:
    shown.open("/limits?limit=mail-per-ip")
    shown.press("a[href*='id=mail-per-ip'][href$='#override']")
    shown.browser.wait_for("Overrides")
    assert (
        shown.browser.run("return document.querySelector('#override [name=identity]').value") == "127.0.0.1"
    )
    assert shown.browser.run("return document.querySelector('#override [name=limit]').value") == "mail-per-ip"
    shown.browser.tab_to("#override [name=rates]")
    shown.browser.type("#override [name=rates]", "500/1h")
    shown.browser.tab_to("#override [name=for]")
    shown.browser.type("#override [name=for]", "2h")
    shown.browser.tab_to("#override [name=note]")
    shown.browser.type("#override [name=note]", SCRIPT)
    shown.press("#override button")
    shown.browser.wait_for("The override is in force")
    assert "500/1h" in shown.browser.text()
    shown.press("form[action='/limits/override/remove'] button")
    shown.browser.wait_for("The override is removed")
    shown.open("/limits?limit=mail-per-ip")
    shown.press("form[action='/limits/reset'] button")
    shown.browser.wait_for("The limit is reset")
    shown.check()


def test_pushed_limits_are_rolled_back_after_a_look(shown: Shown) -> None:
    shown.open("/limits")
    shown.press("a[href='/limits/rollback?version=1']")
    shown.browser.wait_for("Roll back to version 1?")
    assert "mail-per-ip" in shown.browser.text("dl")
    shown.press("main form button")
    shown.browser.wait_for("The limits are pushed again")
    shown.browser.wait_for("rollback to version 1")
    shown.check()


def test_a_node_is_reloaded_drained_and_back(shown: Shown) -> None:
    shown.open("/")
    shown.press("form[action='/daemon/reload'] button")
    shown.browser.wait_for("was read again")
    for action, words in (("drain", "takes no new session"), ("undrain", "takes sessions again")):
        if action == "drain":
            shown.press(".actions summary")
        shown.press(f"form[action='/daemon/{action}'] button")
        shown.browser.wait_for(words)
    text = shown.daemon.config.read_text()
    shown.daemon.config.write_text(text + "\n[nonsense]\n")
    shown.open("/")
    shown.press("form[action='/daemon/reload'] button")
    shown.browser.wait_for("nonsense")
    shown.daemon.config.write_text(text)
    shown.check()


def test_a_live_page_renews_itself(shown: Shown) -> None:
    shown.open("/sessions")
    shown.browser.run("document.querySelector('h1').textContent = 'stale'")
    # The daemon's next event comes within a second.
    shown.browser.wait_for("Sessions", "h1")
    shown.check()
