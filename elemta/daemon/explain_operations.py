"""The admin call that explains what would happen to a client and its message."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Protocol

from elemta.auth.roles import AccessRole
from elemta.daemon.explanation import Explanation
from elemta.daemon.supposed_client import MAX_MESSAGE, MAX_RECIPIENTS, SupposedClient, as_sent
from elemta.ip import IPAddress
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import ClientAddress, Text, Texts

_LONGEST = 1024
# Base64 writes three octets as four.
_MAX_BODY = 2 * MAX_MESSAGE

_Address = Text(_LONGEST, "an address; <> is the null sender")


class Explaining(Protocol):
    """What explains on a daemon."""

    async def explain(self, client: SupposedClient, listener: str | None = None) -> Explanation:
        """What would happen to this client now. Raises AdminRefusal."""


class NothingToExplain:
    """Explains on a daemon that takes no mail."""

    async def explain(self, client: SupposedClient, listener: str | None = None) -> Explanation:  # noqa: ARG002
        raise no_listener(listener or "", ())


def no_listener(name: str, known: Iterable[str]) -> AdminRefusal:
    """There is no listener of this name."""
    names = ", ".join(known)
    if not names:
        problem = "there is no listener, and so no conversation to explain"
        return AdminRefusal(HTTPStatus.NOT_FOUND, problem, "limits show ID says how full limits are")
    return AdminRefusal(HTTPStatus.NOT_FOUND, f"there is no listener {name!r}", f"known: {names}")


class ExplainOperations:
    """Explains on one daemon."""

    def __init__(self, explainer: Explaining) -> None:
        self._explainer = explainer

    @route("POST", "/v1/explain", role=AccessRole.VIEWER, max_body=_MAX_BODY)
    async def explain(
        self,
        *,
        ip: Annotated[IPAddress, ClientAddress()],
        listener: Annotated[str, Text(_LONGEST, "the name of a listener")] | None = None,
        helo: Annotated[str, Text(_LONGEST, "the name of the client")] | None = None,
        user: Annotated[str, Text(_LONGEST, "a user that has logged in")] | None = None,
        from_: Annotated[str, _Address] | None = None,
        to: Annotated[tuple[str, ...], Texts(_Address, MAX_RECIPIENTS)] = (),
        message: Annotated[str, Text(MAX_MESSAGE, "a message with its header")] | None = None,
        message_base64: Annotated[str, Text(2 * MAX_MESSAGE, "the same in base64")] | None = None,
    ) -> Explanation:
        """What would happen to this client and its message now. Changes and counts nothing."""
        client = SupposedClient(ip, helo or "", user, from_, to, _content(message, message_base64))
        return await self._explainer.explain(client, listener)


def _content(message: str | None, encoded: str | None) -> bytes | None:
    if encoded is None:
        content = None if message is None else message.encode()
    elif message is not None:
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "message and message_base64 are the same thing")
    else:
        try:
            content = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, "message_base64 is not base64") from None
    if content is not None and len(content) > MAX_MESSAGE:
        problem = f"a message of more than {MAX_MESSAGE} octets is not explained"
        raise AdminRefusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem)
    return None if content is None else as_sent(content)
