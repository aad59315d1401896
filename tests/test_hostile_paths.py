"""A restore writes nothing outside its target, whatever the manifests say and whoever plants links meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest, RestoreResult
from tests.forge import forge_run

INLINE = IngestOptions(inline=True, workers=1)
CONTENT = b"only inside"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds a tree of one directory, one file and one link, away from where its log says it is."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "tree").mkdir()
    (place / "tree" / "file").write_bytes(CONTENT)
    (place / "tree" / "link").symlink_to("file")
    with FileStore.create([place / "store"], cache=place / "cache") as opened:
        assert opened.ingest([str(place / "tree")], options=INLINE).exit_code == 0
    return (place / "store").rename(place / "kept")


@pytest.fixture
def store(kept: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(kept, tmp_path / "store")


def restore(store: Path, to: Path, overwrite: str = "never") -> RestoreResult:
    with FileStore.open(store, cache=store.parent / "cache") as opened:
        return opened.restore("latest", to, request=RestoreRequest("", overwrite, inline=True, workers=1))


def snapshot(place: Path) -> dict[str, bytes | None]:
    """Everything below `place`, by path: bytes of files, None for the rest."""
    return {
        str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(place.rglob("*"))
    }


HOSTILE = [
    b"../escaped", b"tree/../../escaped", b"/escaped", b"//escaped", b"tree//escaped", b"tree/./escaped", b"..", b".",
    b"tree/..", b"", b"tree/", b"a\0b", b"tree/a\0b", b"tree/" + b"x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_hostile_paths_are_named_and_go_nowhere(store: Path, tmp_path: Path, kind: str) -> None:
    def lie(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        honest = next(row for row in rows if row["path"] == b"tree/file")
        content = {} if kind == "file" else {"content_kind": 0, "content_id": None, "digest": None, "size": 0}
        target = b"/etc" if kind == "symlink" else None
        return [*rows, *({**honest, **content, "path": path, "kind": kind, "target": target} for path in HOSTILE)]

    forge_run(store, tmp_path / "cache", lie)
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    result = restore(store, out)
    assert result.exit_code == 3
    assert result.failed == len(HOSTILE)
    assert {path for path, _ in result.failures} == set(HOSTILE)
    assert sorted(os.listdir(tmp_path / "place")) == ["out"]
    assert (out / "tree" / "file").read_bytes() == CONTENT
    assert not [name for name in os.listdir(out) if name != "tree"]
    assert not Path("/escaped").exists()


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink"])
def test_nothing_is_written_through_a_link_of_the_archive_itself(store: Path, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    def lie(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        honest = next(row for row in rows if row["path"] == b"tree/file")
        bare = {**honest, "content_kind": 0, "content_id": None, "digest": None, "size": 0}
        trap = {**bare, "path": b"tree/trap", "kind": "symlink", "target": os.fsencode(outside)}
        prey = {**(honest if kind == "file" else bare), "path": b"tree/trap/prey", "kind": kind, "target": b"x"}
        return [*rows, trap, prey]

    forge_run(store, tmp_path / "cache", lie)
    result = restore(store, tmp_path / "out")
    assert not list(outside.iterdir())
    assert result.exit_code == 3
    assert {path for path, _ in result.failures} <= {b"tree/trap/prey", b"tree/trap"}


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
def test_links_that_lie_in_the_way_are_not_followed(store: Path, tmp_path: Path, overwrite: str) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    out.mkdir()
    (out / "tree").symlink_to(outside)
    before = snapshot(outside)
    result = restore(store, out, overwrite)
    assert snapshot(outside) == before
    if overwrite == "always":
        assert result.exit_code == 0 and not (out / "tree").is_symlink()
        assert (out / "tree" / "file").read_bytes() == CONTENT
        return
    assert result.exit_code == 3 and (out / "tree").is_symlink()
    reasons = dict(result.failures)
    assert reasons[b"tree"].startswith("something that is no directory is in its place and was kept; see --overwrite")
    assert reasons[b"tree/file"] == reasons[b"tree/link"] == "'tree' on its way is no directory; see --overwrite"


def test_a_file_in_the_place_of_a_directory_is_replaced_where_that_is_wanted(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "tree").write_bytes(b"mine")
    assert restore(store, out, "if-changed").exit_code == 3
    assert (out / "tree").read_bytes() == b"mine"
    assert restore(store, out, "always").exit_code == 0
    assert (out / "tree" / "file").read_bytes() == CONTENT


def test_a_file_that_is_a_link_in_the_way_is_replaced_not_followed(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "tree").mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"precious")
    (out / "tree" / "file").symlink_to(tmp_path / "precious")
    assert restore(store, out, "always").exit_code == 0
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (out / "tree" / "file").is_symlink()
    assert (out / "tree" / "file").read_bytes() == CONTENT


def test_links_planted_during_the_restore_are_not_followed(tmp_path: Path) -> None:
    tree, out, outside = tmp_path / "tree", tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    for folder in range(60):
        (tree / f"dir{folder:02}").mkdir(parents=True)
        for number in range(12):
            (tree / f"dir{folder:02}" / f"file{number}").write_bytes(b"%d %d" % (folder, number))
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as opened:
        opened.ingest([str(tree)], options=INLINE)
    stop, planted = threading.Event(), []

    def plant() -> None:
        while not stop.is_set():
            for folder in range(60):
                place = out / "tree" / f"dir{folder:02}"
                try:
                    os.rename(place, f"{place}.moved")
                    os.symlink(outside, place)
                    planted.append(folder)
                except OSError:
                    continue

    planter = threading.Thread(target=plant)
    planter.start()
    try:
        restore(tmp_path / "store", out)
    finally:
        stop.set()
        planter.join()
    assert planted, "no link was planted in time, so nothing was tested"
    assert not list(outside.iterdir())
