"""Writes the notices that docs/delivery.md shows, as Elemta sends them.

python docs/generate_dsn.py           writes them into docs/delivery.md
python docs/generate_dsn.py --check   fails when they are stale
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from generated_file import write_or_check

from elemta.address import Address
from elemta.delivery.bounces import notices_for
from elemta.envelope import Envelope, MailParameters, Recipient
from elemta.message.dsn import build_dsn, examine
from elemta.message.notice import NoticeKind, NoticeSettings
from elemta.outcome import Outcome, Status

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "delivery.md"

BEGIN = "<!-- a {} notice, by docs/generate_dsn.py -->\n"
END = "<!-- end of the notice -->\n"

RECEIVED_AT = 1_769_860_800.0
HOUR = 3600.0
BOB = Recipient(Address("bob", "example.com"), orcpt="rfc822;bob@example.com")
CAROL = Recipient(Address("carol", "example.net"))
MESSAGE = b"""\
Received: from laptop.example.org ([192.0.2.7])
\tby mx1.example.org (Elemta) with ESMTPSA id 2CmXq07DRb3;
\tSat, 31 Jan 2026 12:00:00 +0000
From: Alice <alice@example.org>
To: bob@example.com, carol@example.net
Subject: Lunch on Monday?
Date: Sat, 31 Jan 2026 12:59:58 +0100
Message-ID: <7f3a91@laptop.example.org>

At one, at the usual place.
""".replace(b"\n", b"\r\n")


def failed() -> tuple[Recipient, Outcome, float]:
    """A next hop that refuses the recipient, two seconds after the message came."""
    at = RECEIVED_AT + 2
    text = "<bob@example.com>: Recipient address rejected: User unknown"
    next_hop = "mail.example.com[192.0.2.25]:25"
    outcome = Outcome("2CmXq07DRb3", BOB.address, Status.FAILED, text, "mx:", next_hop, at, 0.4, 550, "5.1.1")
    return BOB, outcome, at


def delayed() -> tuple[Recipient, Outcome, float]:
    """A next hop that can't be reached, after the four hours of ``warn_after``."""
    at = RECEIVED_AT + 4 * HOUR
    text = "no connection to mail.example.net[198.51.100.25]:25: no answer in 30 s"
    next_hop = "mail.example.net:25"
    outcome = Outcome(
        "2CmXq07DRb3", CAROL.address, Status.DEFERRED, text, "mx:", next_hop, at, 30, 0, "4.4.1"
    )
    return CAROL, outcome, at


def dsn(kind: NoticeKind) -> bytes:
    """The whole DSN that an outcome leads to; only its random boundary is a chosen one."""
    recipient, outcome, at = failed() if kind is NoticeKind.FAILURE else delayed()
    sender = Address("alice", "example.org")
    envelope = Envelope(
        "2CmXq07DRb3", sender, (BOB, CAROL), RECEIVED_AT, len(MESSAGE), MailParameters(envid="lunch-1")
    )
    settings = NoticeSettings("mx1.example.org")
    (notice,) = notices_for(envelope, [recipient], [outcome], now=at, settings=settings)
    built = build_dsn(
        notice,
        settings,
        examine(io.BytesIO(MESSAGE), whole=settings.returns_whole(notice)),
        queue_id="2CmXqLx5Tk1" if kind is NoticeKind.FAILURE else "2CmXv9Qe8w2",
        boundary="d41f7c0a5be86329",
    )
    return built.header + b"".join(built.chunks())


def render(page: str) -> str:
    """The page with the notices of today."""
    for kind in (NoticeKind.FAILURE, NoticeKind.DELAY):
        before, begin, rest = page.partition(BEGIN.format(kind.value))
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise SystemExit(f"docs/delivery.md has no place for a {kind.value} notice")
        shown = dsn(kind).decode("utf-8").replace("\r\n", "\n").strip("\n")
        page = f"{before}{begin}```text\n{shown}\n```\n{end}{after}"
    return page


def main(arguments: list[str]) -> int:
    return write_or_check({TARGET: render(TARGET.read_text(encoding="utf-8"))}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
