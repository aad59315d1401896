"""Restoring into a directory whose owner moves things about meanwhile: nothing outside of it is ever touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.attributes import Attributes, change_mode, set_attributes_by_name
from stages.errors import StageError
from stages.staging import Exchanged, Staging
from stages.target import Target, TargetOptions
from tests.sampling import one_in

FILE = Attributes(stat.S_IFREG | 0o644, os.geteuid(), os.getegid(), 10**18, 4)
FIFO = Attributes(stat.S_IFIFO | 0o666, os.geteuid(), os.getegid(), 10**18)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Staging]:
    (tmp_path / "out").mkdir()
    made = Staging(str(tmp_path / "out"))
    yield made
    made.close()


def options(staging: Staging, *, fresh: bool = True) -> TargetOptions:
    root = os.path.dirname(staging.path)
    return TargetOptions(
        root, staging.objects, staging.identity, 0, "never", owner=True, fresh=fresh, passes_on=False, durable=False
    )


@pytest.mark.parametrize("level", ["path", "objects"])
@pytest.mark.parametrize("other", one_in(2, ["directory", "link", "nothing"]))
def test_another_staging_directory_in_place_of_ours_is_refused(
    staging: Staging, tmp_path: Path, level: str, other: str
) -> None:
    ours = Path(getattr(staging, level))
    ours.rename(tmp_path / "moved")
    (tmp_path / "theirs" / "objects").mkdir(parents=True)
    if other == "directory":
        (tmp_path / "theirs").rename(ours)
    elif other == "link":
        ours.symlink_to(tmp_path / "theirs")
    with pytest.raises(StageError, match=r"restoring into .*/out failed: another directory took the place of obj"):
        Target(options(staging), "restore-0")
    assert not list(tmp_path.rglob("restore-0"))


def test_what_is_moved_after_it_was_opened_is_worked_in_on(staging: Staging, tmp_path: Path) -> None:
    target = Target(options(staging), "restore-0")
    try:
        Path(staging.path).rename(tmp_path / "moved")
        (Path(staging.objects) / "restore-0").mkdir(parents=True)
        (Path(staging.objects) / "restore-0" / "new").symlink_to(tmp_path / "victim")
        (tmp_path / "victim").write_bytes(b"precious")
        (tmp_path / "victim").chmod(0o600)
        assert target.write_whole(b"file", [b"ours"], FILE) == ""
        assert target.make_node(b"fifo", FIFO, 0) == ""
    finally:
        target.close()
    assert (tmp_path / "out" / "file").read_bytes() == b"ours"
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o600
    assert (tmp_path / "victim").read_bytes() == b"precious"


@needs_root
def test_a_directory_of_somebody_else_is_not_worked_in(staging: Staging) -> None:
    theirs = Path(staging.objects) / "restore-0"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(StageError, match="took the place of restore-0"):
        Target(options(staging), "restore-0")
    assert not os.listdir(theirs)


@needs_root
def test_a_staging_directory_that_is_exchanged_while_it_is_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def exchanged(path: str, mode: int = 0o777, **how: int) -> None:
        make(path, mode, **how)
        if os.path.basename(path).startswith(".drystone-restore-"):
            os.rename(path, tmp_path / "moved")
            make(path, 0o777)
            os.chown(path, 12345, 12345)

    monkeypatch.setattr(os, "mkdir", exchanged)
    with pytest.raises(Exchanged):
        Staging(str(tmp_path))
    assert os.listdir(tmp_path) == ["moved"] and not os.listdir(tmp_path / "moved")


def test_listings_are_written_through_no_link(staging: Staging, tmp_path: Path) -> None:
    target = Target(options(staging, fresh=False), "home")
    try:
        Path(staging.path).rename(tmp_path / "moved")
        target.folders.note_standing()
    finally:
        target.close()
    assert any(path.name.startswith("listing-") for path in (tmp_path / "moved" / "objects").iterdir())
    assert not os.path.lexists(staging.path)


@pytest.mark.parametrize("way", ["mode", "attributes"])
def test_a_mode_is_set_through_no_link(tmp_path: Path, way: str) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "victim").chmod(0o600)
    (tmp_path / "new").symlink_to("victim")
    os.mkfifo(tmp_path / "fifo")
    folder = os.open(tmp_path, os.O_PATH)
    try:
        if way == "mode":
            with pytest.raises(OSError, match="Too many levels"):
                change_mode(folder, b"new", 0o666)
            change_mode(folder, b"fifo", 0o604)
        else:
            assert "its mode could not be set" in set_attributes_by_name(folder, b"new", FIFO, False)
            assert set_attributes_by_name(folder, b"fifo", FIFO._replace(mode=stat.S_IFIFO | 0o604), False) == ""
    finally:
        os.close(folder)
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "fifo").stat().st_mode) == 0o604
