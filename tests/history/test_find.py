"""What is found of messages that a spool took: by any of their names, with all that became of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.delivery.notices import return_to_sender
from elemta.errors import UnknownPlace
from elemta.history.events import VerdictNote
from elemta.message.notice import NoticeSettings
from elemta.outcome import Status
from elemta.spool import HoldCause, Spool
from elemta.spool.message_search import MessageSearch
from elemta.spool.waits import KnownWaits, Wait, next_attempt_of
from tests.history.lives import AT, HEAD, KEEP, find, outcome, settle, submission, take
from tests.support.waiting import pause

DELIVERED, DEFERRED, FAILED = Status.DELIVERED, Status.DEFERRED, Status.FAILED


@ensureDeferred
async def test_a_message_is_found_by_each_of_its_names(open_spool: Any) -> None:
    spool = await open_spool(keep_history=KEEP, node="mx1")
    queue_id = await take(spool, "bob@example.test", "Jörg@BÜCHER.test", user="anna")
    reply = "2.0.0 Ok: queued as 4XyzABCdef"
    await settle(spool, queue_id, outcome(queue_id, "bob@example.test", DELIVERED, reply, code=250))
    await settle(spool, queue_id, outcome(queue_id, "Jörg@BÜCHER.test", DELIVERED, "saved"))
    assert (await spool.stats()).total == 0
    for text in (
        queue_id, queue_id.lower(), "<One@client.test>", "one@CLIENT.test", "anna@client.test",
        "ANNA@client.test", "<bob@EXAMPLE.test>", " 192.0.2.7 ", "4XyzABCdef", "::ffff:192.0.2.7",
        "jörg@bücher.test", "JÖRG@xn--bcher-kva.test", "anna",
    ):  # fmt: skip
        page = await find(spool, text)
        (life,) = page.messages
        assert (life.queue_id, life.node_id, life.state, page.next) == (queue_id, "mx1", "ended", None), text
    assert (life.subject, life.message_id) == ("café", "<One@client.test>")
    bob, jorg = life.recipients
    assert (bob.address, bob.status, bob.remote_id) == ("bob@example.test", "delivered", "4XyzABCdef")
    assert (jorg.status, jorg.text) == ("delivered", "saved")
    attempt = life.attempts[0]
    assert (attempt.text, attempt.code, attempt.next_hop) == (reply, 250, "mx.example.test[192.0.2.9]")
    assert (attempt.end, attempt.seconds, life.attempt_count) == ("delivered", 0.25, 2)
    for text in ("other@client.test", "192.0.2.8", "x", "<>", "client.test", "ok:", "2.0.0"):
        assert (await find(spool, text)).messages == ()


@ensureDeferred
async def test_an_address_in_quotes_finds_its_message(open_spool: Any) -> None:
    """As a listing shows it; and by what the quotes mean."""
    spool = await open_spool(keep_history=KEEP)
    names = ("q u", "a,b", "<d>", 'say "hi"', "back\\slash", "plain")
    taken = {name: await take(spool, f"{name}@example.test") for name in names}
    for name, queue_id in taken.items():
        quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for text in (f"{quoted}@example.test", f"<{quoted}@EXAMPLE.test>", f"{name}@example.test"):
            assert [life.queue_id for life in (await find(spool, text)).messages] == [queue_id], text


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("2.0.0 Ok: queued as 0ABC0ABC0ABC0ABC0A", "0abc0abc0abc0abc0a"),
        ("OK id=1rABcd-0001Xy-2Z", "1rABcd-0001Xy-2Z"),
        ("2.6.0 <x@y> [InternalId=88510, Hostname=EX1] Queued mail for delivery", "88510"),
        ("2.0.0 41NB1aXx012345 Message accepted for delivery", "41NB1aXx012345"),
        ("2.0.0 OK  1700000000 d2e1a72fcca58-6c 3si12 - gsmtp", "d2e1a72fcca58-6c"),
        ("ok 1700000000 qp 12345", "12345"),
        ("Ok 0100018c-aaaa-bbbb-000000", "0100018c-aaaa-bbbb-000000"),
        ("2.0.0 Ok: queued as bcdfghjk", "bcdfghjk"),
    ],
)  # fmt: skip
@ensureDeferred
async def test_what_other_servers_call_a_message_finds_it(open_spool: Any, reply: str, name: str) -> None:
    spool = await open_spool(keep_history=KEEP)
    queue_id = await take(spool)
    await settle(spool, queue_id, outcome(queue_id, "bob@example.test", DELIVERED, reply, code=250))
    (life,) = (await find(spool, name)).messages
    assert life.queue_id == queue_id


@ensureDeferred
async def test_a_queued_message_is_shown_as_the_queue_has_it(open_spool: Any) -> None:
    spool = await open_spool(keep_history=KEEP)
    queue_id = await take(spool, "bob@example.test", "eve@example.test")
    (life,) = (await find(spool, queue_id)).messages
    assert (life.state, [each.status for each in life.recipients]) == ("active", ["pending", "pending"])
    later = outcome(queue_id, "eve@example.test", DEFERRED, "try later", code=451)
    await settle(spool, queue_id, outcome(queue_id, "bob@example.test", DELIVERED), later)
    (life,) = (await find(spool, "one@client.test")).messages
    assert (life.state, life.next_attempt_at) == ("deferred", 1_700_000_600.0)
    assert [each.status for each in life.recipients] == ["delivered", "pending"]
    assert (life.recipients[1].code, life.attempts[1].next_attempt_at) == (451, 1_700_000_600.0)
    await spool.hold(queue_id, "let me look")
    (life,) = (await find(spool, queue_id)).messages
    assert (life.state, life.hold_reason, life.next_attempt_at) == ("hold", "let me look", None)
    await spool.release(queue_id)
    await spool.delete(queue_id)
    (life,) = (await find(spool, queue_id)).messages
    assert (life.state, [each.status for each in life.recipients]) == ("ended", ["delivered", "deleted"])
    assert [(each.action, each.reason) for each in life.changes] == [
        ("hold", "let me look"), ("release", ""), ("delete", "")
    ]  # fmt: skip


class DestinationDown:
    """A delivery in which each destination is down until a moment."""

    def wait(self, destination: str, part: tuple[str, int]) -> Wait | None:
        return Wait("its destination is down: refused", AT + 90.0)

    def known_waits(self) -> KnownWaits:
        return KnownWaits()


@pytest.mark.parametrize("history", [KEEP, 0.0])
@ensureDeferred
async def test_what_is_found_stands_as_the_queue_lists_it(open_spool: Any, history: float) -> None:
    """Mail that waits for its destination is deferred, though it was never tried; a verdict is no hold."""
    spool = await open_spool(keep_history=history)
    waiting = await take(spool, "bob@example.test")
    kept = await take(spool, "carl@example.test", hold_reason="spam", hold=HoldCause.QUARANTINE)
    spool.waits = DestinationDown()
    for queue_id, wanted in (
        (waiting, ("deferred", AT + 90.0, "its destination is down: refused")),
        (kept, ("quarantine", None, "spam")),
    ):
        (life,) = (await find(spool, queue_id)).messages
        assert (life.state, life.next_attempt_at, life.reason) == wanted
        record = await spool.show(queue_id)
        assert (record.state.value, next_attempt_of(record)) == wanted[:2]


@ensureDeferred
async def test_what_policies_said_and_why_a_message_is_held_are_kept(open_spool: Any) -> None:
    spool = await open_spool(keep_history=KEEP)
    note = VerdictNote("message", "rspamd", "quarantine", "spam", "", False)
    queue_id = await take(spool, verdicts=(note,), hold_reason="spam", hold=HoldCause.QUARANTINE)
    (life,) = (await find(spool, queue_id)).messages
    (verdict,) = life.verdicts
    assert (verdict.policy, verdict.stage, verdict.reason) == ("rspamd", "message", "spam")
    (change,) = life.changes
    assert (change.action, change.by, change.reason) == ("hold", "quarantine", "spam")


@ensureDeferred
async def test_the_newest_come_first_page_by_page(open_spool: Any) -> None:
    spool = await open_spool(keep_history=KEEP)
    ids = []
    for number in range(25):
        # In several records and segments.
        ids.append(await take(spool))
        if number % 7 == 0:
            await find(spool, "x")
            spool.history._store._end_current()
    seen: list[str] = []
    after = None
    while True:
        page = await find(spool, "anna@client.test", 4, after)
        assert len(page.messages) <= 4
        seen += [life.queue_id for life in page.messages]
        if page.next is None:
            break
        after = page.next
    assert seen == ids[::-1]
    for wrong in ("x", "0:x", "0:1.2.3", "99999:1.1", "1.1"):
        with pytest.raises(UnknownPlace):
            await find(spool, "anna@client.test", 4, wrong)


@pytest.mark.parametrize(
    ("count", "attempts"), [(60, 60), pytest.param(1000, 100, marks=pytest.mark.campaign)]
)
@ensureDeferred
async def test_many_recipients_and_attempts_are_bounded(open_spool: Any, count: int, attempts: int) -> None:
    spool = await open_spool(keep_history=KEEP, history=5)
    everyone = [f"user{number}@d{number % 50}.example.test" for number in range(count)]
    queue_id = await take(spool, *everyone)
    for attempt in range(attempts):
        # As hostile as next hops can be: each reply is another one, and long.
        said = [outcome(queue_id, each, DEFERRED, f"{each} {attempt} " + "x" * 2000) for each in everyone]
        await settle(spool, queue_id, *said)
    await settle(spool, queue_id, *(outcome(queue_id, each, DELIVERED, f"as Q{each}") for each in everyone))
    (life,) = (await find(spool, everyone[-1])).messages
    assert (life.recipient_count, len(life.recipients)) == (count, count)
    assert {each.status for each in life.recipients} == {"delivered"}
    assert life.attempt_count == count * (attempts + 1)
    assert len(life.attempts) <= 100
    assert any("outcomes of attempts are not recorded" in cut for cut in life.cut)
    rows = spool.history._store._current._all("SELECT sum(length(data)) FROM record")
    assert rows[0][0] < 1_000_000


@ensureDeferred
async def test_without_history_the_queue_is_looked_through(open_spool: Any) -> None:
    spool = await open_spool(keep_history=0.0)
    queue_id = await take(spool)
    for text in (queue_id, "anna@client.test", "BOB@example.test"):
        page = await find(spool, text)
        assert [life.queue_id for life in page.messages] == [queue_id]
        assert not page.history
    assert (await find(spool, "one@client.test")).messages == ()
    assert not list((spool.settings.directory / "p0" / "history").glob("*.db"))


# Random lives


class Life:
    """What happens to one message, by a test that remembers all of it."""

    def __init__(self, spool: Spool, random: Random, number: int) -> None:
        self.spool, self.random, self.number = spool, random, number
        count = random.choice([1, 1, 1, 2, 5])
        self.recipients = [f"r{each}.{number}@example.test" for each in range(count)]
        self.status = dict.fromkeys(self.recipients, "pending")
        self.attempts: list[tuple[str, str]] = []
        self.changes: list[str] = []
        self.queue_id = ""

    @property
    def pending(self) -> list[str]:
        return [each for each, status in self.status.items() if status == "pending"]

    async def begin(self) -> None:
        head = HEAD.replace(b"One", b"n%d" % self.number)
        self.queue_id = await take(
            self.spool, *self.recipients, head=head, sender=f"s{self.number}@client.test"
        )

    async def go_on(self) -> None:
        if not self.pending:
            return
        act = self.random.choice(["attempt", "attempt", "attempt", "hold", "release", "delete"])
        if act == "attempt":
            await self.attempt()
        elif act == "delete" and self.random.random() < 0.3:
            await self.spool.delete(self.queue_id)
            self.status.update(dict.fromkeys(self.pending, "deleted"))
            self.changes.append("delete")
        elif act in ("hold", "release"):
            await getattr(self.spool, act)(self.queue_id)
            self.changes.append(act)

    async def attempt(self) -> None:
        said = []
        for each in self.random.sample(self.pending, self.random.randint(1, len(self.pending))):
            status = self.random.choice(list(Status))
            reason = self.random.choice(["", "expired"]) if status is FAILED else ""
            text = self.random.choice(["a", "b"])
            said.append(replace(outcome(self.queue_id, each, status, text), reason=reason))
            self.attempts.append((each, status.value))
            if status is not DEFERRED:
                self.status[each] = "delivered" if status is DELIVERED else reason or "failed"
        await settle(self.spool, self.queue_id, *said)

    async def check(self) -> None:
        names = [f"{first}{self.number}@client.test" for first in "sn"]
        for text in (self.queue_id, self.recipients[-1], *names):
            (life,) = (await find(self.spool, text)).messages
            assert life.queue_id == self.queue_id
        assert {each.address: each.status for each in life.recipients} == self.status
        shown = [(to, each.status) for each in life.attempts for to in each.recipients]
        assert Counter(shown) == Counter(self.attempts)
        assert [change.action for change in life.changes] == self.changes
        assert (life.state == "ended") == (not self.pending)
        assert life.attempt_count == len(self.attempts)
        assert life.cut == ()


@pytest.mark.parametrize("seed", range(3))
@ensureDeferred
async def test_what_is_found_equals_what_happened(open_spool: Any, seed: int) -> None:
    random = Random(seed)
    spool = await open_spool(keep_history=KEEP)
    lives = [Life(spool, random, number) for number in range(12)]
    for life in lives:
        await life.begin()
    for turn in range(80):
        await random.choice(lives).go_on()
        if turn % 10 == 9:
            # Written, so that what follows is in other records, and now and then in other segments.
            await find(spool, "x")
            if turn % 20 == 19:
                spool.history._store._end_current()
        if turn == 40:
            await spool.close()
            spool = await open_spool(keep_history=KEEP)
            for life in lives:
                life.spool = spool
    for life in lives:
        await life.check()


@ensureDeferred
async def test_a_discarded_message_is_found_by_the_id_that_its_client_got(open_spool: Any) -> None:
    spool = await open_spool(keep_history=KEEP)
    queue_id = spool.begin().queue_id
    note = VerdictNote("message", "trap", "discard", "spamtrap")
    spool.keep_discarded(queue_id, 1000, submission("bob@example.test", verdicts=(note,)))
    for text in (queue_id, "bob@example.test", "one@client.test"):
        (life,) = (await find(spool, text)).messages
        assert (life.queue_id, life.state, life.size) == (queue_id, "ended", 1000)
        assert [each.status for each in life.recipients] == ["discarded"]
        assert life.verdicts[0].reason == "spamtrap"


@ensureDeferred
async def test_adopted_spools_are_searched_behind_the_own_one(open_spool: Any, tmp_path: Path) -> None:
    own = await open_spool(keep_history=KEEP, node="mx1")
    other = await open_spool(tmp_path / "other", keep_history=KEEP, node="mx2")
    ids = [await take(spool) for spool in (own, own, own, other, other)]
    search = MessageSearch(own, lambda: [other])
    seen: list[tuple[str, str]] = []
    after = None
    for _ in range(10):
        page = await search.find("anna@client.test", 2, after)
        seen += [(life.node_id, life.queue_id) for life in page.messages]
        after = page.next
        if after is None:
            break
    nodes = ["mx1"] * 3 + ["mx2"] * 2
    assert seen == list(zip(nodes, [*ids[2::-1], *ids[:2:-1]], strict=True))


@ensureDeferred
async def test_what_was_queued_before_there_was_a_history_is_found(open_spool: Any) -> None:
    spool = await open_spool()
    queue_id = await take(spool, "bob@example.test", "eve@example.test")
    said = [outcome(queue_id, "eve@example.test", DEFERRED, "later")]
    await settle(spool, queue_id, outcome(queue_id, "bob@example.test", DELIVERED, "as 4Xyz1"), *said)
    large = await take(spool, head=HEAD.replace(b"One", b"Two") + b"x" * 100_000)
    await spool.close()
    spool = await open_spool(keep_history=KEEP)
    for _ in range(200):
        page = await find(spool, "two@client.test")
        if page.messages:
            break
        # Steps are some milliseconds apart.
        await pause(0.01)
    assert [life.queue_id for life in page.messages] == [large]
    (life,) = (await find(spool, "one@client.test")).messages
    assert (life.subject, life.state) == ("café", "deferred")
    assert [each.status for each in life.recipients] == ["delivered", "pending"]
    assert [each.status for each in life.attempts] == ["delivered", "deferred"]
    assert [each.queue_id for each in (await find(spool, "4xyz1")).messages] == [queue_id]


@ensureDeferred
async def test_what_can_not_be_kept_does_not_keep_others_from_it(open_spool: Any) -> None:
    spool = await open_spool(keep_history=KEEP)
    await take(spool, verdicts=("no note",))
    queue_id = await take(spool)
    assert [life.queue_id for life in (await find(spool, "anna@client.test")).messages] == [queue_id]


@ensureDeferred
async def test_a_bounced_message_and_the_notice_about_it_are_found(open_spool: Any) -> None:
    spool = await open_spool(keep_history=KEEP)
    queue_id = await take(spool)
    await return_to_sender(spool, queue_id, NoticeSettings("mx1.example.test"), lambda: AT + 60)
    (life,) = (await find(spool, queue_id)).messages
    assert (life.state, life.recipients[0].status) == ("ended", "bounced")
    notice, first = (await find(spool, "anna@client.test")).messages
    assert first.queue_id == queue_id
    assert (notice.sender, notice.state, notice.client.listener) == ("", "active", "bounce")
    assert notice.subject
    assert [each.queue_id for each in (await find(spool, notice.message_id)).messages] == [notice.queue_id]
