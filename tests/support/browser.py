"""Chromium without a window, through chromedriver: WebDriver over HTTP, and Chromium's own commands."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
AVAILABLE = bool(CHROMIUM and DRIVER)
# https://www.w3.org/TR/webdriver2/#keyboard-actions
KEYS = {"TAB": "\ue004", "ENTER": "\ue007", "SPACE": " "}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class BrowserFailed(AssertionError):
    """The browser did not do it."""


def _start_driver(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A chromedriver that runs, and its port.

    It takes any free port of IPv6, and ends where another program has the same of IPv4: try again then.
    """
    assert DRIVER
    found = "started successfully on port "
    deadline = time.monotonic() + 60
    while True:
        with log.open("wb") as output:
            driver = subprocess.Popen([DRIVER, "--port=0"], stdout=output, stderr=subprocess.STDOUT)
        while driver.poll() is None and time.monotonic() < deadline:
            if found in (said := log.read_text()):
                return driver, said.partition(found)[2].partition(".")[0]
            time.sleep(0.05)
        driver.kill()
        driver.wait()
        assert time.monotonic() < deadline, log.read_text()


class Browser:
    """One window. ``directory`` gets the profile."""

    def __init__(self, directory: Path) -> None:
        assert DRIVER
        assert CHROMIUM
        self._driver, port = _start_driver(directory / "chromedriver.log")
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": CHROMIUM,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={directory / 'profile'}",
            ],
        }
        asked = {
            "capabilities": {
                "alwaysMatch": {
                    "browserName": "chrome",
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                }
            }
        }
        session = self._call("POST", "/session", asked)["sessionId"]
        self._base += f"/session/{session}"

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.kill()
            self._driver.wait()

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            self._base + path, data, {"content-type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise BrowserFailed(error.read().decode()[:2000]) from error

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._call("GET", "/url"))

    @property
    def source(self) -> str:
        return str(self._call("GET", "/source"))

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def find(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """Press and let go a key, such as ``TAB`` or ``ENTER``."""
        value = KEYS[key]
        strokes = [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def tab_to(self, selector: str, most: int = 200) -> None:
        """Press TAB until what has the focus is this; it has to be seen that it has the focus."""
        quoted = json.dumps(selector)
        for _ in range(most):
            self.press("TAB")
            if self.run(f"return document.activeElement.matches({quoted})"):
                outline = self.run("return getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"{selector}: nothing shows the focus"
                return
        raise BrowserFailed(f"{selector} is not reached with {most} TABs")

    def text(self, selector: str = "main") -> str:
        return str(self._call("GET", f"/element/{self.find(selector)}/text"))

    def wait_for(self, text: str, selector: str = "main") -> str:
        """The text of an element, once it has this in it: a page may come after the click."""
        deadline = time.monotonic() + 60
        while True:
            try:
                found = self.text(selector)
            except BrowserFailed:
                found = ""
            if text in found:
                return found
            assert time.monotonic() < deadline, f"{text!r} is not in {found!r}"
            time.sleep(0.05)

    def problems(self) -> list[str]:
        """What the console of the browser has logged since the last look."""
        return [each["message"] for each in self._call("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The URLs that were asked for since the last look."""
        entries = self._call("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(each["message"])["message"] for each in entries]
        sent = [each for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [str(each["params"]["request"]["url"]) for each in sent]

    def show_as(self, width: int, scheme: str) -> None:
        """The width of the window in CSS pixels, and ``light`` or ``dark``."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def picture(self, path: Path, width: int, most: int) -> None:
        """Write a picture of the page from its top, at most so many pixels high."""
        whole = self.run("return Math.ceil(document.body.getBoundingClientRect().height)")
        clip = {"x": 0, "y": 0, "width": width, "height": min(whole, most), "scale": 1}
        answer = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))
