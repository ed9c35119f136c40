"""The page of explain asks for what was typed, and what leads to it asks for what the client said."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from elemta.auth.roles import AccessRole
from elemta.daemon.joined_answers import NodeAnswer
from elemta.daemon.session_operations import RefusalListing
from elemta.net.recent_refusals import ClientRefusal
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Text, Texts
from elemta.ops.openapi import ApiOperations
from tests.console.test_pages import Document
from tests.support.console import TOKENS, Console

SENDERS = ("", '"a b"@c.test', None)


class Explained:
    """Keeps what it is asked, and refuses it; three clients were refused before."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    @route("POST", "/v1/explain", role=AccessRole.VIEWER)
    async def explain(
        self,
        *,
        ip: str,
        listener: str | None = None,
        helo: str | None = None,
        user: str | None = None,
        from_: str | None = None,
        to: Annotated[tuple[str, ...], Texts(Text(1024), 100)] = (),
    ) -> None:
        """Explain."""
        given = {"ip": ip, "listener": listener, "helo": helo, "user": user, "from": from_, "to": to}
        self.asked.append({name: value for name, value in given.items() if value})
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "enough")

    @route("GET", "/v1/refused")
    async def refused(
        self,
        policy: str | None = None,
        limit: str | None = None,
        client: str | None = None,
        count: str | None = None,
    ) -> RefusalListing:
        """What was refused."""
        refusals = tuple(
            ClientRefusal(
                at=0.0,
                session_id="s",
                client_ip="192.0.2.1",
                listener="mx",
                helo="c.test",
                user=None,
                verb="RCPT",
                sender=sender,
                recipient='"x,y"@d.test',
                reply="550 no",
                policy="p",
                limit=None,
                reason="",
            )
            for sender in SENDERS
        )
        return RefusalListing(refusals, 3, (NodeAnswer("mx1"),))


class Viewer:
    """A viewer."""

    def __init__(self, directory: Path) -> None:
        self.explained = Explained()
        api = ApiOperations()
        api.calls = CallTable(self.explained, api)
        self._console = Console(directory, api.calls)

    def get(self, path: str) -> str:
        return self._console.ask("GET", path, token=TOKENS["viewer"]).text


@pytest.fixture
def viewer(tmp_path: Path) -> Viewer:
    return Viewer(tmp_path)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("a@b.test", ("a@b.test",)),
        (" a@b.test,c@d.test  e@f.test ,", ("a@b.test", "c@d.test", "e@f.test")),
        ('"a b"@c.test, "d,e"@f.test', ('"a b"@c.test', '"d,e"@f.test')),
        (r'"a\" ,b"@c.test x@y.test', (r'"a\" ,b"@c.test', "x@y.test")),
        ('"a b@c.test', ('"a', "b@c.test")),
        ("<a@b.test>", ("<a@b.test>",)),
        (",", None),
        ("", None),
    ],
)
def test_recipients_are_taken_apart_between_addresses(
    viewer: Viewer, typed: str, wanted: tuple[str, ...] | None
) -> None:
    viewer.get(f"/explain?{urlencode({'ip': '192.0.2.1', 'from': '<>', 'to': typed})}")
    assert viewer.explained.asked == [{"ip": "192.0.2.1", "from": "<>", **({"to": wanted} if wanted else {})}]


def test_what_was_refused_leads_to_its_own_explanation(viewer: Viewer) -> None:
    """A bounce, whose sender is empty, is no client that has named no sender."""
    page = Document(viewer.get("/refused"))
    links = [each["href"] for each in page.of("a") if each.get("href", "").startswith("/explain?")]
    asked = [parse_qs(urlsplit(link).query) for link in links]
    assert [each.get("from") for each in asked] == [["<>"], ['"a b"@c.test'], None]
    for link in links:
        viewer.get(link)
    assert [each.get("from") for each in viewer.explained.asked] == ["<>", '"a b"@c.test', None]
    assert {each["to"] for each in viewer.explained.asked} == {('"x,y"@d.test',)}
