"""A cache is disposable: full, in the way, somebody else's or not there at all, it costs time and never a command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from manifests.diskindex import DATA_FILE, DiskIndex
from manifests.ownfile import ForeignFile, open_own, read_own, write_own
from manifests.scratch import Scratch
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]
INLINE = IngestOptions(inline=True, workers=1)
#: Ingests with an index that is built even where it can't fit, and says what came of it.
INGEST_AND_BUILD = """
import sys
from pathlib import Path
from manifests import indexcache
indexcache.LEAST_BYTES = indexcache.ROW_BYTES = 0
from manifests.errors import DrystoneError
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
with FileStore.open(sys.argv[1], cache=Path(sys.argv[3])) as store:
    result = store.ingest([sys.argv[2]], options=IngestOptions(inline=True, workers=1))
    print(result.exit_code, result.index_trouble)
    try:
        store.rebuild_index()
    except DrystoneError as error:
        print(error)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(os.urandom(500_000))
    return tmp_path / "source"


@pytest.fixture
def store(make_store: MakeStore, source: Path) -> FileStore:
    store = make_store(index="disk")
    store.ingest([str(source)], options=INLINE)
    store.ingest([str(source)], options=INLINE)  # the index and the memory of what was checked are there
    return store


def drystone(store: Path, cache: Path, *words: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "-s", store, *words],
        env={**os.environ, "DRYSTONE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# --- no room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", one_in(2, [0, 8, 12, 24, 28, 48, 96]))
def test_a_cache_without_room_for_the_index_is_done_without(
    store: FileStore, source: Path, tmp_path: Path, free: int
) -> None:
    """LMDB writes into a mapping, and a page that has no room kills the process. `free` KiB of a tmpfs are."""
    place = tmp_path / "mount"
    place.mkdir()
    script = f"""
        mount -t tmpfs -o size=400k none {place} || exit 77
        head -c {(400 - free) * 1024} /dev/zero > {place}/fill
        exec {sys.executable} -c '{INGEST_AND_BUILD}' {tmp_path / "store"} {source} {place}
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs a mount namespace")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("0 ") and second.startswith("building the dedupe index failed: ")
    for line in (first, second):
        assert f"{place}/" in line and "No space left on device; the dedupe index takes about" in line
        assert "run it again" not in line and "set DRYSTONE_CACHE" in line


def test_a_file_system_that_is_too_small_is_not_filled_up(
    store: FileStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manifests.indexcache.LEAST_BYTES", 1 << 60)
    store.replicas.cache.rename(tmp_path / "aside")
    result = store.ingest([str(source)], options=INLINE)
    assert "No space left on device; the dedupe index takes about" in result.index_trouble
    assert result.exit_code == 0 and len(list((store.replicas.cache / "index" / "chunks").iterdir())) == 1


# --- something else has the name -------------------------------------------------------------------------------------


@contextmanager
def a_socket(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(path.parent, os.O_PATH)
        listening.bind(f"/proc/self/fd/{here}/{path.name}")  # a path of any length
        os.close(here)
        yield


@contextmanager
def in_place_of(path: Path, kind: str) -> Iterator[None]:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        other = path.parent / "elsewhere"
        os.mkfifo(other)
        path.symlink_to(other)
    if kind == "socket":
        with a_socket(path):
            yield
    else:
        yield


@pytest.mark.parametrize("kind", one_in(3, ["fifo", "socket", "directory", "link"]))
@pytest.mark.parametrize(
    "name", one_in(2, ["checked.json", "current.json", "lock", DATA_FILE, "lock.mdb", "generation"])
)
def test_what_is_no_file_of_ones_own_holds_nobody_up(
    store: FileStore, source: Path, tmp_path: Path, name: str, kind: str
) -> None:
    folder = store.replicas.cache / "index" / "chunks"
    (generation,) = (path for path in folder.iterdir() if path.is_dir())
    path = {
        "checked.json": store.replicas.cache / name,
        "current.json": folder / name,
        "lock": folder / name,
        "generation": generation,
    }.get(name, generation / name)
    store.close()
    (source / "more").write_bytes(os.urandom(50_000))
    with in_place_of(path, kind):
        for words in (("index", "status"), ("ingest", source, "-q")):
            done = drystone(tmp_path / "store", tmp_path / "cache", *words, timeout=30)
            assert done.returncode == 0 and "[Errno" not in done.stderr and "Traceback" not in done.stderr
        done = drystone(tmp_path / "store", tmp_path / "cache", "index", "rebuild", timeout=30)
        assert done.returncode == 0, done.stderr
    if name == "generation":
        return  # another one is there beside it
    assert not path.is_fifo() and not path.is_socket() and not path.is_symlink(), "it made room"


def test_a_file_of_another_user_is_not_opened(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    (tmp_path / "file").write_bytes(b"theirs")
    os.chown(tmp_path / "file", 4242, 4242)
    with pytest.raises(ForeignFile, match="another user's"):
        read_own(tmp_path / "file")
    write_own(tmp_path / "file", b"ours")
    assert read_own(tmp_path / "file") == b"ours"
    os.chown(tmp_path / "file", 4242, 4242)
    os.chown(tmp_path, 4242, 4242)  # as on a file system that gives all files one owner
    assert read_own(tmp_path / "file") == b"ours"


def test_a_device_is_not_even_opened(tmp_path: Path) -> None:
    for path in ("/dev/null", "/dev/tty"):
        with pytest.raises(ForeignFile, match="no regular file"):
            open_own(path, os.O_RDWR)


def test_an_index_has_room_for_its_readers_before_it_is_opened(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path / "index")
    assert (tmp_path / "index" / "lock.mdb").stat().st_blocks * 512 >= 8192
    index.close()


# --- no cache at all -------------------------------------------------------------------------------------------------


def as_a_user_without_a_home(*words: str | Path, temp: Path) -> subprocess.CompletedProcess[str]:
    """In a mount namespace whose password database is empty."""
    unset = {"HOME", "DRYSTONE_CACHE", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    # What systemd knows of root is asked for, too, unless another list of sources says otherwise.
    script = """
        for name in passwd nsswitch.conf; do
            test ! -e /etc/$name || mount --bind /dev/null /etc/$name || exit 77
        done
        exec "$@"
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", COMMAND, *words],
        env={**environment, "TMPDIR": str(temp)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs a mount namespace")
    return done


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_user_without_a_home_does_without_caches(source: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    (place / "temp").mkdir(parents=True)

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        done = as_a_user_without_a_home(*words, temp=place / "temp")
        assert done.returncode == 0, done.stderr
        return done

    run("init", place / "store", "--index", kind)
    told = run("-s", place / "store", "ingest", "-q", source).stderr
    assert told.count("has no home directory to keep caches in; set DRYSTONE_CACHE") == (kind == "disk")
    for file in (place / "store").glob("backend-*/manifests/objects/*.parquet"):
        number = int(file.parents[2].name[-1])
        data = bytearray(file.read_bytes())
        data[20 + number] ^= 0xFF  # each copy is rotten in another place
        file.write_bytes(data)
    assert run("-s", place / "store", "restore", "--to", place / "out").stderr == ""
    assert (place / "out/source/file").read_bytes() == (source / "file").read_bytes()
    for words in (("verify",), ("ls", "-R"), ("stats",), ("status",), ("compare", source)):
        done = as_a_user_without_a_home("-s", place / "store", *words, temp=place / "temp")
        assert "home directory" not in done.stderr and "Traceback" not in done.stderr
    if kind == "disk":
        done = as_a_user_without_a_home("-s", place / "store", "index", "rebuild", temp=place / "temp")
        assert done.returncode == 1
        assert "has no home directory to keep caches in; set DRYSTONE_CACHE" in done.stderr
        assert done.stderr.count("\n") == 1
        run("-s", place / "store", "index", "rebuild", "--kind", "memory")
    assert not os.listdir(place / "temp")


def test_without_a_cache_queries_have_room_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_bytes(b"in the way")
    dead = tmp_path / "drystone-tmp-0123456789abcdef"
    dead.mkdir()
    for cache in (None, tmp_path / "file" / "cache"):
        scratch = Scratch(cache)
        scratch.folder().mkdir()
        assert not dead.exists(), "its process died"
        assert [path.name[:13] for path in sorted(tmp_path.iterdir())] == ["drystone-tmp-", "file"]
        scratch.close()
    assert os.listdir(tmp_path) == ["file"]
