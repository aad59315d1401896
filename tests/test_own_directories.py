"""Nothing that a user names as a target is written into the store's own directories, by whatever name they are reached;
and what an ingest leaves out of them is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.errors import UsageError
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store whose run holds what collides with its own files, were it restored beside or into a backend."""
    tree = tmp_path / "data" / "backend-0"
    (tree / "log").mkdir(parents=True)
    for name in ("store.json", "backend.json", "log/mine"):
        (tree / name).write_text("not the store's\n")
    (tmp_path / "data" / "other").write_text("harmless\n")
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        assert store.ingest([str(tmp_path / "data")], options=INLINE).exit_code == 0
    (tmp_path / "link").symlink_to("store/backend-3")
    (tmp_path / "link.json").symlink_to("store/backend-0/store.json")
    return tmp_path


def files_of(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def drystone(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRYSTONE_STORE": "store", "DRYSTONE_CACHE": str(place / "cache")}
    return subprocess.run(
        [COMMAND, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


IN_A_BACKEND = ["store/backend-0", "store/backend-5/packs/../new/deep", "store/backend-1/log", "link", "link/new"]


@pytest.mark.parametrize("overwrite", one_in(2, ["always", "never"]))
@pytest.mark.parametrize("to", IN_A_BACKEND)
def test_no_tree_is_restored_into_a_backend(place: Path, to: str, overwrite: str) -> None:
    before = files_of(place / "store")
    done = drystone(place, "restore", "latest:data/backend-0/log", "--to", to, "--overwrite", overwrite)
    assert done.returncode == 2 and "the backend" in done.stderr and not done.stdout, done.stderr
    assert files_of(place / "store") == before


@pytest.mark.parametrize(
    "to", one_in(2, ["store/backend-0/store.json", "store/backend-0/new", "link/part", "link.json"])
)
def test_no_range_is_written_into_a_backend(place: Path, to: str) -> None:
    before = files_of(place / "store")
    done = drystone(place, "restore", "latest:data/other", "--range", "0-3", "--to", to, "--overwrite", "always")
    assert done.returncode == 2 and "lies in, the backend" in done.stderr, done.stderr
    assert files_of(place / "store") == before


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
def test_a_name_that_collides_with_a_backend_is_left_out(place: Path, overwrite: str) -> None:
    before = files_of(place / "store")
    (place / "above").mkdir()
    (place / "store").rename(place / "above" / "data")
    store = place / "above" / "data"
    with FileStore.open(store, cache=place / "cache") as opened:
        request = RestoreRequest("", overwrite, inline=True, workers=1)
        result = opened.restore("latest", place / "above", request=request)
    assert result.exit_code == 3 and result.files == 1
    assert (store / "other").read_text() == "harmless\n"
    assert {path for path, _ in result.failures} == {
        b"data/backend-0",
        b"data/backend-0/log",
        *(b"data/backend-0/" + name for name in (b"store.json", b"backend.json", b"log/mine")),
    }
    assert all("the backend" in reason and "of this store is in its place" in reason for _, reason in result.failures)
    after = {path.relative_to(store): data for path, data in files_of(store).items() if path.name != "other"}
    assert after == {path.relative_to(place / "store"): data for path, data in before.items()}


def test_metrics_go_into_no_backend(place: Path) -> None:
    before = files_of(place / "store")
    done = drystone(place, "ingest", "data", "--metrics-dir", "link")
    assert done.returncode == 2 and done.stderr.startswith("drystone: --metrics-dir link is, or lies in, the backend")
    assert files_of(place / "store") == before, "nothing was archived, and no metrics were written"


def test_the_directory_around_the_backends_may_be_written_into(place: Path) -> None:
    with FileStore.open(place / "store", cache=place / "cache") as opened:
        request = RestoreRequest("", inline=True, workers=1)
        assert opened.restore("latest:data/other", place / "store" / "back", request=request).exit_code == 0
    assert (place / "store" / "back" / "other").read_text() == "harmless\n"


def test_an_ingest_says_that_it_leaves_its_own_store_out(place: Path) -> None:
    done = drystone(place, "ingest", ".", "--as", "all")
    assert done.returncode == 0 and "contents of this store's backends" in done.stdout, done.stderr
    with FileStore.open(place / "store", cache=place / "cache") as opened:
        assert not [info for info in opened.list("latest:all/store/backend-0", recursive=True) if info.kind == "file"]
        with pytest.raises(UsageError, match="a store is not archived into itself"):
            opened.ingest([str(place / "link") + "/"], options=INLINE)


@pytest.mark.parametrize("part", one_in(2, ["packs", "packs/*", "log", "manifests", "manifests/objects", "."]))
def test_a_part_of_a_backend_that_is_mounted_elsewhere_is_left_out_too(place: Path, part: str) -> None:
    """In a mount namespace of its own. As a source, and as a target, it is refused."""
    (place / "tree" / "deep" / "mounted").mkdir(parents=True)
    script = f"""
        mount --make-rprivate / || exit 77
        mount --bind "$(ls -d store/backend-0/{part} | head -n 1)" tree/deep/mounted || exit 77
        {COMMAND} ingest tree || exit 1
        {COMMAND} ls -R latest:tree
        {COMMAND} ingest tree/deep/mounted && exit 2
        {COMMAND} restore latest --to tree/deep/mounted/new && exit 3
        exit 0
    """
    environment = {**os.environ, "DRYSTONE_STORE": "store", "DRYSTONE_CACHE": str(place / "cache")}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("mounting takes root")
    assert done.returncode == 0, done.stderr
    assert "contents of this store's backends" in done.stdout
    assert "mounted" in done.stdout and "mounted/" not in done.stdout
    assert (
        "a store is not archived into itself" in done.stderr
        and "where nothing but the store itself writes" in done.stderr
    )
