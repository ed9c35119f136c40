"""Maildirs: names that no client chooses, and nothing that counts before it is synced."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import Address
from elemta.delivery.maildir import (
    MaildirDelivery,
    MaildirJob,
    MaildirWriter,
    file_name,
    maildir_path,
    path_part,
)
from elemta.delivery.routes import Placeholder
from elemta.errors import NoMailbox, SpoolError
from tests.support.post import files

TEMPLATE = ("/m/", Placeholder.DOMAIN, "/", Placeholder.LOCAL)


def job(*directories: Path, content: bytes = b"hello\r\n", name: str = "1.Q1R1.h") -> MaildirJob:
    drops = [MaildirDelivery(str(directory), name, b"Return-Path: <>\r\n") for directory in directories]
    return MaildirJob(io.BytesIO(content), len(content), drops)


@pytest.mark.parametrize(
    ("local", "part"),
    [
        ("bob", "bob"),
        ("Bob.Smith+tag", "bob.smith+tag"),
        ("..", "%2E."),
        (".", "%2E"),
        (".hidden", "%2Ehidden"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("a/b", "a%2Fb"),
        ("a\x00b", "a%00b"),
        ("a%2Fb", "a%252fb"),
        ("a b\n", "a%20b%0A"),
        ("jösé", "j%C3%B6s%C3%A9"),
        ("{local}", "%7Blocal%7D"),
    ],
)
def test_a_local_part_becomes_one_safe_part_of_a_path(local: str, part: str) -> None:
    assert path_part(local) == part


@given(st.text(max_size=400))
def test_no_local_part_leaves_its_place(local: str) -> None:
    part = path_part(local)
    assert part not in ("", ".", "..")
    assert part.isascii()
    assert "/" not in part
    assert "\x00" not in part
    assert not part.startswith(".")
    assert len(part) <= 200
    assert maildir_path(TEMPLATE, Address(local, "example.com")) == f"/m/example.com/{part}"


texts = st.text(st.characters(codec="utf-8") | st.sampled_from("%2EFZz./A"), max_size=300)


def folded(text: str) -> str:
    return "".join(char.lower() if char.isascii() else char for char in text)


@given(texts, texts)
def test_two_local_parts_never_share_a_directory_unless_they_differ_by_case_alone(
    one: str, other: str
) -> None:
    assert (path_part(one) == path_part(other)) == (folded(one) == folded(other))


def test_long_local_parts_that_begin_alike_stay_apart() -> None:
    assert path_part("x" * 300 + "a") != path_part("x" * 300 + "b")


@pytest.mark.parametrize("domain", ["[IPv6:2001:db8::1]", "..", "a/b", "xn--mnchen-3ya.example"])
def test_a_hostile_domain_is_one_safe_part_too(domain: str) -> None:
    assert maildir_path(TEMPLATE, Address("x", domain)).count("/") == 3
    assert "/../" not in maildir_path(TEMPLATE, Address("x", domain))


def test_a_domain_has_one_directory_in_every_spelling() -> None:
    spellings = [Address("x", domain) for domain in ("MÜNCHEN.example", "xn--mnchen-3ya.example")]
    assert len({maildir_path(TEMPLATE, address) for address in spellings}) == 1


def test_a_message_lies_in_new_with_its_return_path_and_is_nobody_elses(tmp_path: Path) -> None:
    box = tmp_path / "a" / "b" / "box"
    assert MaildirWriter().write([job(box)]) == [[None]]
    (path,) = files(tmp_path)
    assert path == box / "new" / "1.Q1R1.h"
    assert path.read_bytes() == b"Return-Path: <>\r\nhello\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (tmp_path / "a", tmp_path / "a" / "b", box, box / "new", box / "tmp", box / "cur"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_same_delivery_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        assert MaildirWriter().write([job(tmp_path / "box")]) == [[None]]
    assert len(files(tmp_path)) == 1


def test_what_a_crash_left_in_tmp_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "box" / "tmp").mkdir(parents=True)
    (tmp_path / "box" / "tmp" / "1.Q1R1.h").write_bytes(b"x" * 100)
    assert MaildirWriter().write([job(tmp_path / "box")]) == [[None]]
    (path,) = files(tmp_path)
    assert path.read_bytes() == b"Return-Path: <>\r\nhello\r\n"


def test_a_removed_maildir_is_made_again(tmp_path: Path) -> None:
    writer = MaildirWriter()
    assert writer.write([job(tmp_path / "box")]) == [[None]]
    (tmp_path / "box").rename(tmp_path / "moved")
    assert writer.write([job(tmp_path / "box")]) == [[None]]
    assert len(files(tmp_path / "box")) == 1


def test_a_link_in_tmp_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "box" / "tmp").mkdir(parents=True)
    (tmp_path / "box" / "tmp" / "1.Q1R1.h").symlink_to(target)
    ((error,),) = MaildirWriter().write([job(tmp_path / "box")])
    assert isinstance(error, OSError)
    assert target.read_bytes() == b"precious"


def test_a_truncated_message_is_not_delivered(tmp_path: Path) -> None:
    short = MaildirJob(io.BytesIO(b"half"), 8, [MaildirDelivery(str(tmp_path / "box"), "n", b"")])
    ((error,),) = MaildirWriter().write([short])
    assert isinstance(error, SpoolError)
    assert files(tmp_path) == []


def test_one_bad_drop_does_not_spoil_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    errors = MaildirWriter().write(
        [job(tmp_path / "a", tmp_path / "file", tmp_path / "b"), job(tmp_path / "c")]
    )
    assert [[error is None for error in part] for part in errors] == [[True, False, True], [True]]
    assert len(files(tmp_path)) == 4


def test_a_large_message_is_copied_whole(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    assert MaildirWriter().write([job(tmp_path / "box", content=content)]) == [[None]]
    assert files(tmp_path)[0].read_bytes() == b"Return-Path: <>\r\n" + content


class Calls:
    """The system calls in order, and one of them that fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "", code: int = errno.EIO) -> None:
        self.made: list[str] = []
        for name in ("open", "write", "fdatasync", "fsync", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), fails, code))
        monkeypatch.setattr("elemta.delivery.maildir._sync_data", os.fdatasync)

    def _wrapped(self, name, real, fails, code):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            self.made.append(name)
            if name == fails:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call


def test_the_data_are_synced_before_the_name_and_the_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = MaildirWriter()
    writer.write([job(tmp_path / "box", name="first")])
    calls = Calls(monkeypatch)
    assert writer.write([job(tmp_path / "box", name="a"), job(tmp_path / "box", name="b")]) == [
        [None],
        [None],
    ]
    one = ["open", "write", "fdatasync", "rename"]
    assert calls.made == [*one, *one, "open", "fsync"]


def test_every_directory_that_is_made_is_synced_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    MaildirWriter().write([job(tmp_path / "a" / "box")])
    made = "".join({"mkdir": "m", "fsync": "s"}.get(call, "") for call in calls.made)
    assert made == "ms" * 5 + "s"


@pytest.mark.parametrize("fails", ["open", "write", "fdatasync", "rename", "fsync", "mkdir"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failure_of_any_call_is_reported_and_leaves_nothing_in_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, code: int
) -> None:
    with monkeypatch.context() as patch:
        Calls(patch, fails, code)
        ((error,),) = MaildirWriter().write([job(tmp_path / "box")])
    assert isinstance(error, OSError)
    assert error.errno == code
    assert files(tmp_path) == [] if fails != "fsync" else all("new" in path.parts for path in files(tmp_path))


def test_the_name_of_a_file_is_unique_for_message_and_recipient_and_stays_the_same() -> None:
    names = {
        file_name(queue_id, Address(local, "example.com"), 1.9, "host/../x")
        for queue_id in ("A", "B")
        for local in ("bob", "Bob", "eve")
        for _ in range(2)
    }
    assert len(names) == 6
    assert all("/" not in name and ":" not in name and name.startswith("1.Q") for name in names)


def test_a_maildir_that_may_not_be_made_is_no_mailbox(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    content = io.BytesIO(b"x\r\n")
    drop = MaildirDelivery(str(tmp_path / "bob"), "1.Q1R1.h", b"", make=False, root=str(tmp_path))
    ((error,),) = MaildirWriter().write([MaildirJob(content, 3, [drop])])
    assert isinstance(error, NoMailbox)
    assert os.listdir(tmp_path) == ["other"]


@pytest.mark.parametrize("name", ["here", "not-here"])
def test_while_the_root_of_all_maildirs_is_empty_nothing_is_said_of_one(tmp_path: Path, name: str) -> None:
    """As while a file system is not mounted."""
    (tmp_path / "here").mkdir()
    root = tmp_path / name
    drop = MaildirDelivery(str(root / "bob"), "1.Q1R1.h", b"", make=False, root=str(root))
    ((error,),) = MaildirWriter().write([MaildirJob(io.BytesIO(b"x\r\n"), 3, [drop])])
    assert isinstance(error, FileNotFoundError)


def test_a_maildir_that_is_removed_is_not_made_again_where_it_may_not_be(tmp_path: Path) -> None:
    (tmp_path / "bob").mkdir()
    (tmp_path / "other").mkdir()
    writer = MaildirWriter()
    drop = MaildirDelivery(str(tmp_path / "bob"), "1.Q1R1.h", b"", make=False, root=str(tmp_path))
    ((error,),) = writer.write([MaildirJob(io.BytesIO(b"x\r\n"), 3, [drop])])
    assert error is None
    shutil.rmtree(tmp_path / "bob")
    ((error,),) = writer.write([MaildirJob(io.BytesIO(b"x\r\n"), 3, [drop])])
    assert isinstance(error, NoMailbox)
