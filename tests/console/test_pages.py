"""The pages as a browser gets them, with mail that carries what harms a page; no browser is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from elemta import __version__
from elemta.console.pages import READ
from tests.support.hostile_fleet import SCRIPT, HostileFleet

VOID = {"meta", "link", "input", "br", "img", "path", "rect"}
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
# What the templates have. Everything else came from mail.
ELEMENTS = set(
    re.findall(
        r"\w+",
        "a b body br button caption code dd details div dl dt fieldset figcaption figure footer form h1 h2 "
        "head header html input label legend li link main meta meter nav ol option p path pre rect script "
        "section select small span summary svg table tbody td textarea th thead time title tr ul",
    )
)


class Document(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileFleet]:
    fleet = HostileFleet(tmp_path_factory.mktemp("pages"))
    try:
        fleet.fill()
        yield fleet
    finally:
        fleet.close()


def check(text: str, path: str) -> Document:
    """Nothing of what mail carries is more than text, and nothing is asked of another host."""
    found = HIDDEN.search(text)
    assert found is None, (path, text[max(0, found.start() - 80) : found.end() + 20])
    page = Document(text)
    assert {tag for tag, _ in page.elements} <= ELEMENTS, path
    assert len(page.of("script")) == 1, path
    assert len(page.of("h1")) == 1, path
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (path, tag)
        for name in ("href", "src", "action", "formaction"):
            assert attributes.get(name, "/").startswith(("/", "#", "?")), (path, tag)
            assert not attributes.get(name, "/").startswith("//"), (path, tag)
    return page


def test_hostile_mail_is_text_on_every_page(fleet: HostileFleet) -> None:
    shown = 0
    paths = fleet.paths()
    visited = {re.sub(r"/messages/[^/?]+", "/messages/{id}", path.partition("?")[0]) for path in paths}
    assert set(READ) <= visited
    for path in paths:
        status, text = fleet.page(path)
        assert status == (404 if path.startswith("/nowhere") else 200), (path, text)
        assert len(text) < 2_000_000, path
        page = check(text, path)
        assert f"Elemta {__version__} · " in page.text, path
        shown += SCRIPT in page.text
    assert shown > 10


def test_a_viewer_sees_the_same_pages_without_actions(fleet: HostileFleet) -> None:
    for path in fleet.paths():
        status, text = fleet.page(path, "viewer")
        if path.startswith(("/limits/push", "/limits/rollback")):
            assert status == 403, path
            continue
        assert status == (404 if path.startswith("/nowhere") else 200), (path, text)
        forms = [form for form in check(text, path).of("form") if form.get("method") == "post"]
        assert {form["action"] for form in forms} <= {"/logout"}, path


def test_each_field_and_button_has_a_name_that_is_read_out(fleet: HostileFleet) -> None:
    for path in fleet.paths():
        page = check(fleet.page(path)[1], path)
        assert [each for each in page.of("meter") if not each.get("aria-label")] == [], path
        assert [each for each in page.of("svg") if not each.get("aria-label")] == [], path
        assert [each for each in page.of("nav") if not each.get("aria-label")] == [], path


def test_the_overview_has_a_picture_of_the_traffic_and_the_same_in_words(fleet: HostileFleet) -> None:
    page = check(fleet.page("/")[1], "/")
    words = [each["aria-label"] for each in page.of("svg")]
    assert len(words) == 2
    assert words[0].startswith("Last hour: 6 accepted, ")
    assert words[1].startswith("Last 24 hours: 6 accepted, ")
    assert [each for each in page.of("path") if each["class"] == "k-accepted"]


def test_the_board_counts_what_a_limit_would_have_refused_today(fleet: HostileFleet) -> None:
    limits = {each["name"]: each for each in fleet.call("/v1/limits")["limits"]}
    assert limits["mail-per-sender"]["today"] == {"admitted": 5, "observed": 2}
    text = " ".join(check(fleet.page("/limits")[1], "/limits").text.split())
    assert "would have refused 2 of 7" in text


def test_the_policies_say_how_fast_they_answer_and_why_one_fails(fleet: HostileFleet) -> None:
    found = {each["name"]: each for each in fleet.call("/v1/policies")["policies"]}
    assert list(found) == ["limits", "clamav", "relay"]
    (message,) = found["clamav"]["stages"]
    assert message["failures"] == {"error": 6}
    rcpt = {each["stage"]: each for each in found["relay"]["stages"]}["rcpt"]
    assert rcpt["answers"] >= 6
    assert 0 < rcpt["p50"] <= rcpt["p95"]
    assert "error 6" in check(fleet.page("/policies")[1], "/policies").text


# Where tables become lists, on a phone, it would be a name without a value.
BARE_CELL = re.compile(r'<td data-h="[^"]+"(?![^>]*class="(?:n )?e")[^>]*>\s*(?=<td|</tr)')


def test_a_cell_without_content_says_that_it_is_empty(fleet: HostileFleet) -> None:
    explained = "/explain?ip=192.0.2.66&helo=a.example&from=a@b.example&to=c@d.example"
    bare = {(path, *BARE_CELL.findall(fleet.page(path)[1])) for path in [*fleet.paths(), explained]}
    assert [found for found in sorted(bare) if len(found) > 1] == []


def test_a_network_leads_to_the_addresses_in_it(fleet: HostileFleet) -> None:
    path = "/limits/networks?limit=mail-per-ip"
    for network in ("127.0.0.0/8", "127.0.0.0/16", "127.0.0.0/24"):
        link = f"{path.partition('&')[0]}&within={network.replace('/', '%2F')}"
        page = check(fleet.page(path)[1], path)
        links = [each["href"].replace("/limits/networks?", "") for each in page.of("a")]
        assert link.partition("?")[2] in [each.replace("127.0.0.0/", "127.0.0.0%2F") for each in links]
        path = link
    page = check(fleet.page(path)[1], path)
    assert "/limits?id=mail-per-ip%3A127.0.0.1" in [each["href"] for each in page.of("a")]


JUNK = (
    "%00",
    "%FF",
    "-1",
    "9" * 30,
    "1e9",
    "10.0.0.0/99",
    "::/0",
    "%0D%0Ax:y",
    "%E2%80%AE",
    "a" * 900,
    "%22%3E%3Cb%3E",
)
FIELDS = (
    "id",
    "limit",
    "within",
    "version",
    "text",
    "after",
    "from",
    "state",
    "older_than",
    "client",
    "offset",
    "ip",
    "to",
)


@pytest.mark.parametrize("junk", JUNK)
def test_no_field_of_an_address_is_a_fault_of_the_console(fleet: HostileFleet, junk: str) -> None:
    queue_id = fleet.queue_ids("hold.test")[0]
    query = "&".join(f"{field}={junk}" for field in FIELDS)
    for path in READ:
        for uri in (f"{path}?{query}", *(f"{path}?{field}={junk}" for field in FIELDS[:4])):
            status, text = fleet.page(uri.replace("{id}", queue_id))
            assert status in (200, 400, 404, 409), (uri, text)
            check(text, uri)
        if "{id}" in path:
            status, text = fleet.page(path.replace("{id}", junk))
            assert status in (200, 400, 404), (path, text)
