"""What stands in the way of a restore: kept or replaced as told, on disk before it is replaced, and counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.errors import BackendError
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore import run
from pipeline.restore.run import RestoreRequest, RestoreResult
from stages import target
from stages.targetfolders import TargetFolders
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)
NAMES = ("one", "two", "folder/three", "folder/large")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("overwrite")
    (place / "tree" / "folder").mkdir(parents=True)
    for name in NAMES:
        (place / "tree" / name).write_bytes(name.encode() * (700_000 if "large" in name else 10))
    with FileStore.create([place / "store"], cache=place / "cache") as store:
        assert store.ingest([str(place / "tree")], options=INLINE).exit_code == 0
    return place


def restore(place: Path, to: Path, overwrite: str = "never", fsync: bool | None = None) -> RestoreResult:
    with FileStore.open(place / "store", cache=place / "cache") as opened:
        return opened.restore("latest", to, request=RestoreRequest("", overwrite, inline=True, workers=1, fsync=fsync))


def in_the_way(out: Path) -> None:
    for name in NAMES:
        (out / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / "tree" / name).write_bytes(b"in the way")


@pytest.mark.parametrize("fsync", one_in(2, [None, True, False]))
@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
def test_what_is_replaced_is_on_disk_before_and_all_is_in_the_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: str, fsync: bool | None
) -> None:
    out, synced = tmp_path / "out", list[tuple[str, bool]]()

    def old() -> bool:
        """Whether all that was in the way still is."""
        return all((out / "tree" / name).read_bytes() == b"in the way" for name in NAMES)

    monkeypatch.setattr(target, "sync_file_system", lambda fd: synced.append(("before", old())))
    monkeypatch.setattr(run, "sync_file_system", lambda fd: synced.append(("end", old())))
    in_the_way(out)
    result = restore(place, out, overwrite, fsync)
    replaced = overwrite != "never"
    assert result.replaced == (len(NAMES) if replaced else 0)
    assert result.exit_code == (0 if replaced else 3)
    if fsync is False:
        assert not synced
    elif replaced:
        assert synced[0] == ("before", True) and synced[-1] == ("end", False)
    else:
        assert synced == ([("end", True)] if fsync else [])
    synced.clear()
    restore(place, tmp_path / "new", overwrite, fsync)
    assert [when for when, _ in synced] == (["end"] if fsync else [])


def test_where_the_disk_fails_nothing_is_replaced(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    in_the_way(tmp_path / "out")
    monkeypatch.setattr(target, "sync_file_system", fail)
    result = restore(place, tmp_path / "out", "always")
    assert result.exit_code == 3 and result.replaced == 0
    assert result.files == 0, "what was kept counts as restored"
    assert {reason for _, reason in result.failures} == {"bringing it to disk failed: Input/output error"}
    assert all((tmp_path / "out" / "tree" / name).read_bytes() == b"in the way" for name in NAMES)
    monkeypatch.setattr(run, "sync_file_system", fail)
    with pytest.raises(BackendError, match="to disk failed: Input/output error; look after that file system"):
        restore(place, tmp_path / "new", fsync=True)


def test_what_appears_meanwhile_is_kept_whatever_may_be_replaced(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that somebody makes after the directories were listed, and before the restore comes to it."""
    for overwrite in ("never", "if-changed", "always"):
        out = tmp_path / overwrite
        (out / "tree").mkdir(parents=True)
        make = TargetFolders.make

        def meanwhile(self: TargetFolders, path: bytes, *, replace: bool, out: Path = out) -> None:
            make(self, path, replace=replace)  # noqa: B023
            if path == b"tree":
                (out / "tree" / "one").write_bytes(b"precious")

        with monkeypatch.context() as patch:
            patch.setattr(TargetFolders, "make", meanwhile)
            result = restore(place, out, overwrite)
        assert result.exit_code == 3
        ((path, reason),) = result.failures
        assert path == b"tree/one" and reason.startswith("something got its name while this restore was at work")
        assert (out / "tree" / "one").read_bytes() == b"precious"
        assert (out / "tree" / "two").read_bytes() == (place / "tree" / "two").read_bytes()


def test_a_directory_in_the_place_of_a_file_is_kept(place: Path, tmp_path: Path) -> None:
    for overwrite in ("never", "if-changed", "always"):
        out = tmp_path / overwrite
        (out / "tree" / "one" / "precious").mkdir(parents=True)
        result = restore(place, out, overwrite)
        assert result.exit_code == 3
        assert [path for path, _ in result.failures] == [b"tree/one"]
        assert (result.files, result.failed) == (len(NAMES) - 1, 1)
        assert result.bytes == sum((place / "tree" / name).stat().st_size for name in NAMES if name != "one")
        assert (out / "tree" / "one" / "precious").is_dir()
        assert "was kept" in result.failures[0][1]


def test_what_is_in_place_already_is_counted_and_not_called_verified(place: Path, tmp_path: Path) -> None:
    line = [COMMAND, "-s", place / "store", "restore", "--to", tmp_path / "out"]
    first = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert first.returncode == 0 and "every chunk verified" in first.stdout
    again = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert "verified" not in again.stdout
    assert "in place already, by size and time: 4 files, 8.0 MiB; their bytes were not compared" in again.stdout


@pytest.mark.parametrize("kind", ["file", "fifo", "dangling"])
def test_a_target_that_is_no_directory_is_refused_and_stays(place: Path, tmp_path: Path, kind: str) -> None:
    to = tmp_path / "to"
    if kind == "file":
        to.write_bytes(b"mine")
    elif kind == "fifo":
        os.mkfifo(to)
    else:
        to.symlink_to("nowhere")
    with pytest.raises(BackendError, match="is no directory; name one to restore into"):
        restore(place, to, "always")
    assert os.listdir(tmp_path) == ["to"]
