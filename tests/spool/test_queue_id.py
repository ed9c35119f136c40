"""Queue ids never repeat, sort by time, and are safe wherever they end up."""

from __future__ import annotations

import re
from random import Random

from elemta.runtime import ProcessRuntime
from elemta.spool.queue_id import QueueIds, row_key


def test_ids_grow_with_time_also_when_the_clock_stands_still_or_steps_back():
    moments = iter([1.7e9, 1.7e9, 1.7e9 + 1e-7, 1.6e9, 1.7e9 + 1, *[1.7e9 + 1] * 100])
    ids = QueueIds(lambda: next(moments), Random(1))
    made = [ids.next() for _ in range(105)]
    assert made == sorted(made)
    assert len({row_key(queue_id) for queue_id in made}) == len(made)


def test_two_nodes_with_the_same_clock_do_not_meet():
    one, two = (QueueIds(lambda: 1.7e9, ProcessRuntime.of_system().fast_randomness()) for _ in range(2))
    assert not {one.next() for _ in range(10_000)} & {two.next() for _ in range(10_000)}


def test_ids_are_short_and_safe_in_file_names_of_any_case():
    ids = QueueIds(lambda: 1.7e9, Random(1))
    for _ in range(1000):
        queue_id = ids.next()
        assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{18}", queue_id)
        assert queue_id == queue_id.upper()


def test_what_is_no_id_has_no_row():
    assert row_key("") is None
    assert row_key("0" * 17) is None
    assert row_key("0" * 19) is None
    assert row_key("u" * 18) is None
    assert row_key("Z" * 18) == (1 << 60) - 1
    assert row_key("0" * 11 + "1" + "0" * 6) == 1
