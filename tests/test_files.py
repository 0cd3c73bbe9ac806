"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from btard.files import complete_file, unfinished, write_file


def test_a_file_is_written_with_its_folder_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "folder" / "file.txt"
    write_file(file, "ü\n")
    write_file(file.with_name("other"), b"\xff")
    assert file.read_bytes() == b"\xc3\xbc\n" and file.with_name("other").read_bytes() == b"\xff"
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["file.txt", "other"]


@pytest.mark.parametrize("shared", [False, True])
def test_who_is_interrupted_leaves_what_was_there(tmp_path: Path, shared: bool) -> None:
    file = tmp_path / "file"
    write_file(file, "before")
    with pytest.raises(ZeroDivisionError), complete_file(file, shared=shared) as temporary:
        temporary.write_text("half" if 1 // 0 else "")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "file"
    unfinished(file).write_text("half of something longer")
    write_file(file, "whole")
    assert file.read_text() == "whole" and list(tmp_path.iterdir()) == [file]


def test_two_that_write_the_same_file_leave_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    with complete_file(file, shared=True) as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        write_file(file, "theirs", shared=True)
        assert file.read_text() == "theirs"
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


def test_a_private_file_is_its_owners_alone_at_any_time(tmp_path: Path) -> None:
    file = tmp_path / "key"
    unfinished(file).write_text("what was readable for all")
    old = os.umask(0o022)
    try:
        with complete_file(file, private=True) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        write_file(tmp_path / "other", "")
        assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o644
    finally:
        os.umask(old)


def test_a_name_comes_after_the_bytes_and_before_the_folder_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "file", []

    def wait(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "bytes"
        seen.append((kind, os.fstat(descriptor).st_size if kind == "bytes" else None, file.exists()))

    monkeypatch.setattr(os, "fsync", wait)
    write_file(file, "12345")
    assert seen == [("bytes", 5, False), ("folder", None, True)]


def test_a_full_disk_is_an_oserror_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())
