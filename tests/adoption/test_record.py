"""What a node remembers of the spools that it adopted."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from elemta.errors import SpoolError
from elemta.spool import Disk
from elemta.spool.partition import AdoptedSpools
from tests.adoption.left import left_behind, spools
from tests.durability.ledger import Ledger
from tests.support.daemon import Daemon


class Full(Disk):
    """Fails where a file is to be synced."""

    def sync_file(self, descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no room")


def test_it_says_what_was_written_last_and_nothing_at_first(tmp_path: Path) -> None:
    record = AdoptedSpools(tmp_path)
    assert record.read() == ()
    record.write([tmp_path / "ä b", Path("/shared/mx1")])
    assert AdoptedSpools(tmp_path).read() == (tmp_path / "ä b", Path("/shared/mx1"))
    record.write([])
    assert record.read() == ()
    assert (tmp_path / "adopted").stat().st_mode & 0o777 == 0o600


def test_a_record_that_cannot_be_written_is_what_it_was(tmp_path: Path) -> None:
    AdoptedSpools(tmp_path).write([Path("/shared/mx1")])
    with pytest.raises(SpoolError, match=r"can't be written: .*no room"):
        AdoptedSpools(tmp_path, Full()).write([])
    assert AdoptedSpools(tmp_path).read() == (Path("/shared/mx1"),)


@pytest.mark.parametrize("content", ["", "{}", '["/shared", 1]', "\xff"])
def test_a_record_that_is_none_is_told_apart_from_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "adopted").write_bytes(content.encode("latin-1"))
    with pytest.raises(SpoolError, match="adopted"):
        AdoptedSpools(tmp_path).read()


@pytest.mark.campaign
@pytest.mark.timeout(300)
def test_a_node_with_a_damaged_record_works_and_adopts_nothing_over_it(tmp_path: Path) -> None:
    shared, another = tmp_path / "shared", tmp_path / "another"
    for directory in (shared, another):
        left_behind(directory, Ledger(), 1, hold="kept")
    node = Daemon(tmp_path / "node")
    record = node.spool / "adopted"
    try:
        node.start()
        node.ctl("spool", "adopt", str(shared))
        node.kill()
        before = record.read_text()
        record.write_text("damaged")
        node.start()
        refused = node.ctl("spool", "adopt", str(another), check=False)
        assert refused.returncode == 1
        assert "adopted can't be read" in refused.stderr
        assert record.read_text() == "damaged"
        # Once it is repaired, or removed, and the node restarted, what it names is adopted again.
        node.kill()
        record.write_text(before)
        node.start()
        node.wait_for("spool.adopted", seconds=60)
        assert spools(node)[str(shared)]["messages"] == 1
    finally:
        node.kill()
