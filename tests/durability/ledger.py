"""What each party said about which message: the ledger that a durability test is judged by."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MARK = re.compile(rb"^X-Durability: (\S+)\r\n", re.MULTILINE)
_TEXT_OCTETS = 1 << 20
_LINE = 74


def _make_text() -> bytes:
    chosen = random.Random(4711)
    lines = []
    for _ in range(_TEXT_OCTETS // (_LINE + 2)):
        line = chosen.randbytes(_LINE // 2).hex()
        # Lines that a careless hop would take for the end of a message, or change.
        odd = chosen.randrange(40)
        if odd < 3:
            line = (".", "..", "." + line[1:])[odd]
        lines.append(line)
    return "\r\n".join(lines).encode() + b"\r\n"


_TEXT = _make_text()


@dataclass(frozen=True, slots=True)
class Message:
    """One message: what goes over the wire (dots not doubled), its recipients, and how it is known again."""

    ident: str
    content: bytes
    recipients: tuple[str, ...]
    digest: bytes

    @classmethod
    def make(cls, ident: str, octets: int, recipients: tuple[str, ...]) -> Message:
        """A message of about so many octets, none like the other."""
        parts = [f"X-Durability: {ident}\r\nFrom: <sender@client.test>\r\nSubject: {ident}\r\n\r\n".encode()]
        while octets > 0:
            start = random.randrange(len(_TEXT))
            start = _TEXT.find(b"\n", start) + 1
            parts.append(_TEXT[start : start + octets])
            octets -= len(parts[-1])
        content = b"".join(parts)
        content = content.rstrip(b"\r\n") + b"\r\n"
        return cls(ident, content, recipients, hashlib.sha256(content).digest())


class Ledger:
    """What clients said and read, and what came out at the other end. For any thread."""

    def __init__(self) -> None:
        self.sent: dict[str, tuple[bytes, tuple[str, ...]]] = {}
        self.acknowledged: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.refused_idents: set[str] = set()
        self.deliveries: Counter[tuple[str, str]] = Counter()
        self.corrupted: list[str] = []
        self.strangers: list[str] = []
        self.complete = False
        self._lock = threading.Lock()

    # The side of the clients

    def sending(self, message: Message) -> None:
        """From here on the message may turn up."""
        with self._lock:
            self.complete = False
            self.sent[message.ident] = (message.digest, message.recipients)

    def answered(self, message: Message, reply: str) -> None:
        """The whole reply to the end of the message, or to what refused it earlier, was read."""
        with self._lock:
            if reply.startswith("250"):
                assert "queued as" in reply, reply
                self.acknowledged.add(message.ident)
            else:
                self.refused[reply[:9]] += 1
                self.refused_idents.add(message.ident)

    def acknowledged_now(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self.acknowledged)

    # The side of the receivers

    def delivered(self, recipient: str, content: bytes) -> None:
        """A whole message came out for this recipient."""
        found = _MARK.search(content)
        with self._lock:
            if found is None or found[1].decode() not in self.sent:
                self.strangers.append(f"{recipient}: {content[:200]!r}")
                return
            ident = found[1].decode()
            digest, recipients = self.sent[ident]
            if hashlib.sha256(content[found.start() :]).digest() != digest:
                self.corrupted.append(f"{ident} for {recipient}: {len(content)} octets")
            elif recipient not in recipients:
                self.strangers.append(f"{ident} for {recipient}, who is none of its recipients")
            else:
                self.deliveries[ident, recipient] += 1

    def take_mail(self, directory: Path, domain: str, chance: float = 1.0) -> None:
        """Be the reader of all Maildirs in ``directory``: take what is new away (some of it, by chance)."""
        for mailbox in directory.iterdir() if directory.is_dir() else ():
            new = mailbox / "new"
            for path in new.iterdir() if new.is_dir() else ():
                if random.random() < chance:
                    self.delivered(f"{mailbox.name}@{domain}", path.read_bytes())
                    path.unlink()

    # The judgement

    def close(self) -> None:
        """All answers are read and all queues empty: what has not come out by now is lost."""
        self.complete = True

    @property
    def in_doubt(self) -> set[str]:
        """Sent, or begun to be, and no answer was read."""
        return set(self.sent) - self.acknowledged - self.refused_idents

    @property
    def duplicates(self) -> int:
        return sum(count - 1 for count in self.deliveries.values())

    def lost(self, idents: Iterable[str] | None = None) -> list[tuple[str, str]]:
        """Acknowledged messages, or those given, that a recipient never got."""
        owed = self.acknowledged if idents is None else idents
        return [
            (ident, recipient)
            for ident in sorted(owed)
            for recipient in self.sent[ident][1]
            if not self.deliveries[ident, recipient]
        ]

    def torn(self) -> list[tuple[str, str]]:
        """Messages that were not promised and that only some of their recipients got."""
        arrived = {ident for ident, _ in self.deliveries}
        return self.lost(self.in_doubt & arrived)

    def judge(self, *, refused_may_arrive: bool = False) -> None:
        """Fail unless every promise was kept, and nothing was made up.

        ``refused_may_arrive``: the daemon was killed before it could take back what it had refused.
        """
        assert self.lost() == []
        assert self.torn() == []
        assert self.corrupted == []
        assert self.strangers == []
        arrived = {ident for ident, _ in self.deliveries}
        assert refused_may_arrive or self.refused_idents & arrived == set()
        assert self.acknowledged

    def report(self, **more: object) -> str:
        arrived = {ident for ident, _ in self.deliveries}
        rows: dict[str, object] = {
            **more,
            "sent": len(self.sent),
            "acknowledged": len(self.acknowledged),
            "refused": ", ".join(f"{count} x {reply}" for reply, count in self.refused.items()) or 0,
            "in doubt": f"{len(self.in_doubt)} ({len(self.in_doubt & arrived)} of them delivered)",
            "delivered": f"{len(arrived)} messages to {len(self.deliveries)} recipients",
            "duplicates": self.duplicates,
            "corrupted": len(self.corrupted),
            "never sent": len(self.strangers),
            "torn": len(self.torn()) if self.complete else "not known",
            "lost": len(self.lost()) if self.complete else "not known, because the test ended early",
        }
        return "\n".join(f"  {name + ' ':.<16} {value}" for name, value in rows.items())
