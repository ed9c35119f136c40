"""One request for a page: its caller, what it gave, and the calls that answer it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from elemta.auth.roles import AccessRole, Caller
from elemta.console.access import COOKIE
from elemta.ops.admin import AdminExchange
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Json

MAX_FIELDS = 64
_HTML = "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered: a document, or where to go."""

    status: int
    body: bytes = b""
    content_type: str = _HTML
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def redirect(cls, path: str, *headers: tuple[bytes, bytes]) -> Answer:
        """Go to another page."""
        # RFC 9110 §15.4.4
        return cls(HTTPStatus.SEE_OTHER, headers=((b"location", path.encode("ascii", "replace")), *headers))

    def send(self, exchange: AdminExchange) -> None:
        """Send it, unless the client left."""
        exchange.send_octets(self.body, self.status, self.content_type, self.headers)


@dataclass(frozen=True, slots=True)
class Page:
    """A template and its values, beside those that all pages have."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = HTTPStatus.OK


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of a caller that is known. ``parts`` are from the path."""

    calls: CallTable
    caller: Caller
    path: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    parts: Mapping[str, str]

    @property
    def operates(self) -> bool:
        """Whether the caller may change something."""
        return self.caller.role.may(AccessRole.OPERATOR)

    def takes(self, method: str, path: str, name: str) -> bool:
        """Whether there is such a call, and it takes a parameter of this name."""
        calls = [call for call in self.calls.calls if (call.method, call.path) == (method, path)]
        return any(each.name == name for call in calls for each in call.parameters)

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """What the API says to this caller. Raises :class:`AdminRefusal`, or what the operation raises."""
        return await self._ask("GET", path, query)

    async def post(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Have a change made."""
        return await self._ask("POST", path, query)

    async def post_document(self, path: str, content: Mapping[str, Json]) -> Any:
        """Have a change made, by more than fits into a URI."""
        body = json.dumps(content, ensure_ascii=False).encode()
        return await self.calls.answer("POST", path, body, "application/json", caller=self.caller)

    async def delete(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Have something removed."""
        return await self._ask("DELETE", path, query)

    async def _ask(self, method: str, path: str, query: Mapping[str, str] | None) -> Json:
        given = {name: value for name, value in (query or {}).items() if value}
        uri = f"{path}?{urlencode(given)}" if given else path
        return await self.calls.answer(method, uri, caller=self.caller)


def silent_nodes(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The nodes whose part, or some of it, is not in an answer."""
    return [node for node in answer.get("nodes", ()) if node["problem"]]


def own_node(answer: Mapping[str, Any]) -> str:
    """The node that was asked; empty where the answer names none."""
    nodes = answer.get("nodes") or ({"node_id": ""},)
    return str(nodes[0]["node_id"])


def segment(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


def fields(text: str) -> dict[str, str]:
    """The fields of a query or a form. Raises :class:`AdminRefusal`."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "the form is malformed") from None
    return dict(pairs)


def session_cookie(value: str, *, secure: bool) -> tuple[bytes, bytes]:
    """The header that sets the cookie of a session, or removes it where ``value`` is empty."""
    end = "" if value else "; Max-Age=0"
    flags = f"; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}{end}"
    return b"set-cookie", COOKIE + b"=" + (value + flags).encode("ascii")
