"""A console for tests: its listener on transports in memory, with a user of each role and tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from elemta.auth.accounts import AccountsFile, token_digest
from elemta.auth.authenticator import Authenticator
from elemta.auth.checker import AccountsChecker
from elemta.auth.hashes import Scrypt, _scrypt
from elemta.config import AuthConfig, ResourcesConfig
from elemta.console.access import ConsoleAccess
from elemta.console.first_token import FirstToken
from elemta.console.site import ConsoleSite
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.ops.admin_calls import CallTable
from tests.support.runtime import simulated_runtime

HOST = "mx1.example.org"
PASSWORD = "correct horse"
TOKENS = {role: f"elemta_token-of-the-{role}" for role in ("viewer", "operator", "limiter")}


def cheap_hash(password: str) -> str:
    salt = b"12345678"
    return str(Scrypt(4, 1, 1, salt, _scrypt(password.encode(), salt, 4, 1, 1, octets=32)))


def accounts() -> str:
    users = "".join(f"{role}:{role}:{cheap_hash(PASSWORD)}\n" for role in ("viewer", "operator"))
    tokens = "".join(f"t-{role}:{role}:$sha256${token_digest(text)}\n" for role, text in TOKENS.items())
    return users + tokens


class ReadersTransport(StringTransport):
    """A transport with Twisted's bound of what it keeps, and a reader that may stand still."""

    bufferSize = 65536

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "192.0.2.1", 4000))
        self.aborted = False
        self.protocol: Any = None

    def abortConnection(self) -> None:
        self.aborted = True
        self.loseConnection()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Console:
    """The site with these calls; ``directory`` has the accounts and the first token."""

    directory: Path
    calls: CallTable
    file: str = field(default_factory=accounts)
    auth: AuthConfig = field(default_factory=AuthConfig)

    def __post_init__(self) -> None:
        self.runtime = simulated_runtime(wall=lambda: 1_700_000_000.0)
        self.clock: Any = self.runtime.reactor
        self.path = self.directory / "console-users"
        if self.file:
            self.path.write_text(self.file)
        self.limiter = Limiter(rules_from_config(ResourcesConfig(), (), self.auth), LocalStore(self.clock))
        self.accounts = AccountsFile(str(self.path), self.runtime)
        self.access = ConsoleAccess(
            self.runtime,
            self.accounts,
            FirstToken(self.directory, self.runtime.randomness),
            authenticator=Authenticator([AccountsChecker(self.accounts)], self.runtime),
            limiter=lambda: self.limiter,
            hostnames=(HOST,),
        )
        self.site = ConsoleSite(self.clock)
        self.wait_for(Deferred.fromCoroutine(self.access.start()))
        self.site.open(self.calls, self.access, self.runtime.wall, self.state)
        self.site.doStart()

    async def state(self) -> Any:
        return {"state": "serving"}

    def wait_for(self, deferred: Deferred[Any]) -> None:
        done: list[Any] = []
        deferred.addCallback(done.append)
        for _ in range(20):
            self.clock.advance(0)
        assert done

    def connect(self, request: bytes) -> ReadersTransport:
        """Send octets on a connection of their own."""
        transport = ReadersTransport()
        protocol: Any = self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4000))
        transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(request)
        return transport

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        token: str = "",
        cookie: str = "",
        seconds: float = 0.0,
        **headers: str,
    ) -> Reply:
        """The reply to one request; ``seconds`` pass before it is looked at."""
        given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if token:
            given["authorization"] = f"Bearer {token}"
        if cookie:
            given["cookie"] = f"elemta_session={cookie}"
        if body:
            given["content-length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
        transport = self.connect("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)
        for _ in range(20):
            if transport.disconnecting:
                break
            self.clock.advance(0)
        self.clock.advance(seconds)
        transport.protocol.connectionLost(Failure(ConnectionDone()))
        head, _, found = transport.value().partition(b"\r\n\r\n")
        assert head, f"no answer to {method} {path}"
        status, *rest = head.decode().split("\r\n")
        pairs = (line.partition(":") for line in rest)
        return Reply(int(status.split()[1]), {name.lower(): text.strip() for name, _, text in pairs}, found)

    def post(self, path: str, fields: dict[str, str], **more: Any) -> Reply:
        """Send a form."""
        body = urlencode(fields).encode()
        return self.ask("POST", path, body=body, content_type="application/x-www-form-urlencoded", **more)

    def log_in(self, username: str, password: str = PASSWORD) -> tuple[str, str]:
        """The cookie and the CSRF token of a new session."""
        reply = self.post("/login", {"username": username, "password": password})
        assert reply.status == 303, reply.text
        cookie = reply.headers["set-cookie"].partition("=")[2].partition(";")[0]
        return cookie, self.ask("GET", "/v1/session", cookie=cookie).json["csrf"]


def harmless(calls: CallTable) -> CallTable:
    """The same calls, which do nothing but for that about the caller."""

    async def nothing(**_: object) -> None:
        return None

    table = CallTable()
    table.calls = tuple(
        call if call.path == "/v1/session" else replace(call, operation=nothing) for call in calls.calls
    )
    table._by_fit = sorted(table.calls, key=lambda call: [each.startswith("{") for each in call.segments])
    return table
