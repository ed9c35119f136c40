"""The pages in Chromium, with mail that carries what harms a page in every field that a sender controls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from elemta.console.pages import MENU
from tests.support.browser import AVAILABLE, Browser
from tests.support.console import PASSWORD, accounts
from tests.support.daemon import Daemon

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="there is no chromium and chromedriver")

SCRIPT = "<script>window.harmed=1</script><img src=x onerror=window.harmed=1>"
TURNED = "\u202egro.elpmaxe\u202c"
TABLES = """
[[route]]
domains = ["hold.test"]
to = "hold:"
[[limit]]
name = "mail-per-sender"
per = ["sender"]
counts = "messages"
rates = ["2/1h"]
mode = "observe"
[[limit]]
name = "helo"
per = ["helo"]
counts = "messages"
rates = ["2/1h"]
mode = "observe"
"""


class Shown:
    """A daemon with such mail and a browser that is logged in."""

    def __init__(self, directory: Path) -> None:
        users = directory / "console-users"
        users.write_text(accounts())
        self.daemon = Daemon(directory / "node", TABLES, domains='relay_from = ["127.0.0.0/8"]')
        text = self.daemon.config.read_text()
        console = f'[console]\nendpoint = "tcp:0:interface=127.0.0.1"\nusers = "{users}"'
        self.daemon.config.write_text(text.replace('[console]\nendpoint = ""', console))
        self.daemon.start()
        self.base = "http://" + self.daemon.wait_for("daemon.ready")["console"][0]
        self.send()
        self.browser = Browser(directory)
        self.browser.open(self.base + "/queue")
        self.browser.type("[name=username]", "operator")
        self.browser.type("[name=password]", PASSWORD)
        self.browser.click("button")
        self.browser.wait_for("Queue")

    def close(self) -> None:
        self.browser.close()
        self.daemon.kill()

    def send(self) -> None:
        with self.daemon.client() as client:
            client.ehlo(SCRIPT.replace(" ", "/"))
            for number in (5, 6, 7):
                client.mail(f'"{SCRIPT}{number}"@evil.test')
                client.rcpt('"<b>o</b>"@hold.test')
                head = f"Subject: {SCRIPT} {TURNED}\r\nX-Long: {'long ' * 40_000}\r\nX-CR: {SCRIPT}\r\n"
                assert client.data(f"{head}\r\n{SCRIPT}\r\n".encode())[0] == 250

    def open(self, path: str) -> None:
        self.browser.open(self.base + path)

    @property
    def ids(self) -> list[str]:
        rows = "return [...document.querySelectorAll('td .id')].map(each => each.textContent)"
        return [str(each) for each in self.browser.run(rows)]

    def check(self) -> None:
        """Nothing ran, nothing was complained about, no other host was asked, nothing is too wide."""
        assert self.browser.run("return window.harmed") is None
        assert [each for each in self.browser.problems() if "status of 4" not in each] == []
        hosts = {urlsplit(url).netloc for url in self.browser.requests() if url.startswith("http")}
        assert hosts <= {urlsplit(self.base).netloc}
        width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.browser.run(width) <= 0


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    shown = Shown(tmp_path_factory.mktemp("browser"))
    yield shown
    shown.close()


def test_the_login_leads_to_the_console(shown: Shown) -> None:
    assert urlsplit(shown.browser.url).path == "/"
    shown.browser.wait_for("Queue")


@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_shows_hostile_mail_as_text(shown: Shown, width: int) -> None:
    shown.browser.show_as(width, "dark" if width == 400 else "light")
    shown.open("/")
    menu = shown.browser.run("return [...document.querySelectorAll('nav a')].map(each => each.pathname)")
    assert len(menu) > 5
    assert set(menu) <= {each[0] for each in MENU}
    shown.open("/queue")
    message = f"/messages/{shown.ids[0]}"
    has_content = shown.browser.run(
        "return fetch('/v1/openapi.json').then(it => it.text()).then(it => it.includes('/content'))"
    )
    more = [f"{message}/content", f"{message}/content?whole=1"] if has_content else []
    for path in (*menu, message, *more, "/queue/act?action=delete&from=*evil.test", "/nowhere"):
        shown.open(path)
        assert shown.browser.run("return document.querySelectorAll('h1').length") == 1, path
        shown.check()
    assert shown.browser.run("return document.querySelectorAll('main b, main img, main script').length") == 0


def test_a_message_is_released_and_held_by_its_buttons(shown: Shown) -> None:
    shown.open("/queue")
    path = f"/messages/{shown.ids[0]}"
    shown.open(path)
    shown.browser.click(f"form[action='{path}/release'] button")
    shown.browser.wait_for("is released")
    shown.open(path)
    if shown.browser.run(f"return document.querySelector(\"form[action='{path}/hold']\") !== null"):
        shown.browser.type("[name=reason]", SCRIPT)
        shown.browser.click(f"form[action='{path}/hold'] button")
        shown.browser.wait_for("is on hold")
        assert SCRIPT in shown.browser.text()
    shown.check()


def test_an_action_on_a_filter_shows_the_count_first(shown: Shown) -> None:
    shown.open('/queue?from=*5"@*')
    shown.browser.click("button[value=delete]")
    shown.browser.wait_for("Delete 1 message?")
    shown.browser.click("main form button")
    shown.browser.wait_for("Delete: 1 message")
    shown.open("/queue")
    assert len(shown.ids) == 2
    shown.check()


def test_a_node_is_reloaded_drained_and_back(shown: Shown) -> None:
    shown.open("/")
    shown.browser.click("form[action='/daemon/reload'] button")
    shown.browser.wait_for("was read again")
    for action, words in (("drain", "takes no new session"), ("undrain", "takes sessions again")):
        if action == "drain":
            shown.browser.click(".actions summary")
        shown.browser.click(f"form[action='/daemon/{action}'] button")
        shown.browser.wait_for(words)
    text = shown.daemon.config.read_text()
    shown.daemon.config.write_text(text + "\n[nonsense]\n")
    shown.open("/")
    shown.browser.click("form[action='/daemon/reload'] button")
    shown.browser.wait_for("nonsense")
    shown.daemon.config.write_text(text)
    shown.check()


def test_a_live_page_renews_itself(shown: Shown) -> None:
    shown.open("/sessions")
    shown.browser.run("document.querySelector('h1').textContent = 'stale'")
    # The daemon's next event comes within a second.
    shown.browser.wait_for("Sessions", "h1")
    shown.check()
