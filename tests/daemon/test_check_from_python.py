"""The client in Python that docs/postfix.md shows, against the admin API on its socket."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.ctl.test_main import Daemon, daemon

__all__ = ["daemon"]
PAGE = Path(__file__).parents[2] / "docs" / "postfix.md"


@ensureDeferred
async def test_the_client_of_the_page_gets_the_answers_of_the_limits(daemon: Daemon) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    client: dict[str, Any] = {}
    exec(code.partition("print(")[0], client)

    def ask(**about: Any) -> Any:
        return client["check"]("connect", path=daemon.socket, **about)

    answers = [await deferToThread(ask, ip="192.0.2.1") for _ in range(4)]
    assert [answer["admitted"] for answer in answers] == [True, True, True, False]
    assert (answers[3]["limit"], answers[3]["identity"]) == ("ip", "192.0.2.1")
