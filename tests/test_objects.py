"""Objects by key: what is put comes back, whole and by ranges, to one thread and several; all of a batch or nothing.

One file, though long: all of it is about one group of operations on one store.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.config import ChunkerSpec
from manifests.errors import NotFound, ObjectDeleted, Superseded, TooFewBackends, Unreadable, UsageError
from manifests.format import CELL_SIZE, RECORD_SIZE
from pipeline.chunkreader import BlockCache
from pipeline.errors import PipelineError
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.metrics.meters import Count
from pipeline.objects.refs import ObjectRef
from pipeline.objects.request import KEY_MAX, TTL_MAX
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in

Make = Callable[..., FileStore]
INLINE = IngestOptions(inline=True, workers=1)


def noise(size: int, seed: int = 0) -> bytes:
    """Half noise, half repetition, so that chunks and blocks of all sorts come about."""
    chance = random.Random(seed)
    return b"".join(
        chance.randbytes(997) if chance.random() < 0.5 else bytes([chance.randrange(256)]) * 997
        for _ in range(size // 997 + 1)
    )[:size]


class FailingReader:
    """Gives `size` bytes, then fails."""

    def __init__(self, size: int) -> None:
        self.data = io.BytesIO(noise(size, 99))

    def read(self, size: int = -1) -> bytes:
        data = self.data.read(min(size, 1000))
        if not data:
            raise OSError("the line went dead")
        return data


class LyingReader:
    """Says that it gave `count` bytes, and gave none."""

    def __init__(self, count: int | None) -> None:
        self.count = count

    def readinto(self, target: memoryview) -> int | None:
        return self.count

    def read(self, size: int = -1) -> bytes:
        return b""


class ShyReader:
    """Gives a few bytes at a time, and has no readinto."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.data.read(min(size, 777))


def test_an_object_comes_back_with_all_that_was_told(make_store: Make) -> None:
    store, data = make_store(), noise(100_000)
    ref = store.put_object(
        "a/b", io.BytesIO(data), bucket="photos", content_type="image/x", metadata={"who": "mé"}, ttl=3600
    )
    found = store.get_object("a/b", bucket="photos")
    assert found == ref == store.get_object(ref.id)
    assert (found.key, found.bucket, found.size, found.version) == ("a/b", "photos", len(data), found.id)
    assert (found.content_type, found.metadata, found.ttl) == ("image/x", {"who": "mé"}, 3600)
    assert found.etag == hashlib.md5(data).hexdigest() and found.is_latest and found.deleted_ns is None
    assert found.created_ns is not None and abs(found.created_ns - time.time_ns()) < 60e9
    assert store.get_object_data("a/b", bucket="photos").read() == data
    with pytest.raises(NotFound):
        store.get_object("a/b")


@pytest.mark.parametrize("reader", [io.BytesIO, ShyReader])
@pytest.mark.parametrize("size", one_in(2, [0, 1, 1024, 1025, 4 << 20, (4 << 20) + 1]))
def test_objects_of_any_length_come_from_any_reader(make_store: Make, size: int, reader: type) -> None:
    store, data = make_store(pack_size=1 << 20), noise(size, size)
    assert store.put_object("key", reader(data)).size == size
    stream = store.get_object_data("key")
    assert stream.read() == data and stream.read() == b""


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd:1", "zstd:19", None])
def test_each_object_may_have_its_own_compression(make_store: Make, codec: str | None) -> None:
    store = make_store()
    with store.batch():
        for number in range(3):
            store.put_object(f"{codec}/{number}", io.BytesIO(noise(5000, number)), compression=codec)
            store.put_object(f"other/{number}", io.BytesIO(noise(5000, -number - 1)))
    for number in range(3):
        assert store.get_object_data(f"{codec}/{number}").read() == noise(5000, number)
    store.catalog.use("blocks")
    codecs = {row[0] for row in store.catalog.tuples("SELECT DISTINCT codec FROM blocks")}
    assert {"none": 0, "lz4": 1}.get(codec or "", 2) in codecs


def test_what_is_known_is_stored_once_whoever_brings_it(make_store: Make, tmp_path: Path) -> None:
    store, data = make_store(), noise(300_000)
    store.put_object("key", io.BytesIO(data))
    before = store.stats()
    store.put_object("again", io.BytesIO(data))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(data)
    (tmp_path / "tree" / "more").write_bytes(noise(300_000, 1))
    assert store.ingest([str(tmp_path / "tree")], options=INLINE).tally.new_bytes <= 300_000
    store.put_object("more", io.BytesIO(noise(300_000, 1)))
    after = store.stats()
    assert (before.unique, after.unique) == (before.logical, 600_000)
    assert store.get_object_data("again").read() == data


def test_commands_work_on_a_store_with_puts(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    store.put_object("put", io.BytesIO(noise(50_000, 3)))
    assert store.runs() == []
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise(60_000, 4))
    store.ingest([str(tmp_path / "tree")], options=INLINE)
    store.put_object("put too", io.BytesIO(noise(50_000, 5)))
    assert len(store.runs()) == 1
    assert [info.path for info in store.list("", recursive=True)] == [b"tree", b"tree/file"]
    assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert (tmp_path / "out" / "tree" / "file").read_bytes() == noise(60_000, 4)
    assert (store.stats().files, store.stats().logical) == (3, 160_000)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_verification_checks_what_was_put(make_store: Make) -> None:
    store = make_store(scheme="2+1")
    store.put_object("key", io.BytesIO(noise(200_000)))
    for member in list(store.members.present.values())[:2]:
        for key in member.storage.list("packs"):
            Path(member.storage.location, key).write_bytes(b"rot")
    result = store.verify(data=True, inline=True, workers=1)
    assert result.exit_code == 3
    with pytest.raises(Unreadable):
        store.get_object_data("key").read()


def test_a_reader_that_fails_leaves_nothing_visible(make_store: Make) -> None:
    store = make_store()
    for size in (0, 10, 5000, 5 << 20):
        with pytest.raises(OSError, match="line went dead"):
            store.put_object("key", FailingReader(size))
        with pytest.raises(NotFound):
            store.get_object("key")
    assert not store.log.records.keys() - {key for key in store.log.records if ".init." in key}
    with store.batch():
        store.put_object("before", io.BytesIO(noise(3000, 1)))
        for size in (10, 5000, 5 << 20):
            with pytest.raises(OSError, match="line went dead"):
                store.put_object("key", FailingReader(size))
            store.put_object(f"after {size}", io.BytesIO(noise(30_000, size)))
    assert [ref.key for ref in store.list_objects()] == ["after 10", "after 5000", "after 5242880", "before"]
    for size in (10, 5000, 5 << 20):
        assert store.get_object_data(f"after {size}").read() == noise(30_000, size)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_a_batch_counts_as_a_whole_or_not_at_all(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    with store.batch():
        first = store.put_object("one", io.BytesIO(b"1"))
        with pytest.raises(NotFound):
            store.get_object(first.id)
        with pytest.raises(UsageError, match="batch"), store.batch():
            pass
        with pytest.raises(UsageError, match="batch"):
            store.ingest([str(tmp_path)], options=INLINE)
        store.put_object("two", io.BytesIO(noise(100_000)))
    assert store.get_object("one") == first and len(list(store.list_objects())) == 2
    records = len(store.log.records)
    with pytest.raises(RuntimeError), store.batch():
        store.put_object("three", io.BytesIO(noise(2_000_000, 7)))
        raise RuntimeError
    with store.batch():
        pass
    assert len(store.log.records) == records
    store.put_object("four", io.BytesIO(noise(2_000_000, 7)))  # its chunks are in no pack that counts
    assert store.get_object_data("four").read() == noise(2_000_000, 7)
    assert [ref.key for ref in store.list_objects("t")] == ["two"]


def test_small_objects_share_packs(make_store: Make) -> None:
    store = make_store()
    with store.batch():
        for number in range(1500):
            store.put_object(f"{number}", io.BytesIO(number.to_bytes(4, "big") * 50))
    assert store.stats().packs == 1
    assert len(list(store.list_objects())) == 1500
    for number in (0, 1023, 1024, 1499):
        assert store.get_object_data(str(number)).read() == number.to_bytes(4, "big") * 50


def test_deleted_objects_are_gone_at_once_and_other_versions_stay(make_store: Make) -> None:
    store = make_store()
    old = store.put_object("key", io.BytesIO(b"old"))
    new = store.put_object("key", io.BytesIO(b"new"))
    assert [(ref.id, ref.is_latest) for ref in store.list_versions("key")] == [(new.id, True), (old.id, False)]
    assert not store.get_object(old.id).is_latest and store.get_object_data(old.id).read() == b"old"
    gone = store.delete_object("key")
    assert gone.id == new.id and gone.deleted_ns is not None
    for name in ("key", new.id):
        for read in (store.get_object, store.get_object_data, store.delete_object):
            with pytest.raises(ObjectDeleted):
                read(name)
        with pytest.raises(ObjectDeleted):
            store.get_object_range(name, 0, 1)
    assert list(store.list_objects()) == [] and store.get_object_data(old.id).read() == b"old"
    assert [ref.deleted_ns is not None for ref in store.list_versions("key")] == [True, False]
    store.put_object("key", io.BytesIO(b"newest"))
    assert store.get_object_data("key").read() == b"newest"


def test_expired_objects_are_not_found(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    ref = store.put_object("key", io.BytesIO(b"x"), ttl=3600)
    assert store.get_object("key").ttl == 3600 and ref.expires_ns is not None
    monkeypatch.setattr("pipeline.objects.request.now_ns", lambda: ref.expires_ns - 1)
    assert store.get_object(ref.id) == ref
    monkeypatch.setattr("pipeline.objects.request.now_ns", lambda: ref.expires_ns)
    for name in ("key", ref.id):
        with pytest.raises(NotFound, match="expired") as error:
            store.get_object(name)
        assert not isinstance(error.value, ObjectDeleted)
    assert list(store.list_objects()) == []
    assert store.delete_object("key").deleted_ns is not None


def test_a_time_to_live_may_be_over_at_once_and_be_long(make_store: Make) -> None:
    store = make_store()
    with store.batch():
        store.put_object("over", io.BytesIO(b"x"), ttl=0)
        store.put_object("long", io.BytesIO(b"x"), ttl=TTL_MAX)
    with pytest.raises(NotFound, match="expired"):
        store.get_object_range("over", 0, 1)
    ref = store.get_object("long")
    assert ref.ttl == TTL_MAX and ref.created is not None and ref.expires is not None
    assert ref.expires.year - ref.created.year in (200, 201)


@pytest.mark.parametrize(
    "key", ["a\0b", "../../etc/passwd", "/", ".", "a//b", "x" * KEY_MAX, "\U0001f9f1 stone\n", "latest:x"]
)
def test_keys_are_any_text(make_store: Make, tmp_path: Path, key: str) -> None:
    store = make_store()
    ref = store.put_object(key, io.BytesIO(b"x"), metadata={key[:99]: key[:99]})
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as again:
        assert again.get_object(key) == ref and again.get_object_data(key).read() == b"x"
        assert [found.key for found in again.list_objects(key)] == [key]


def test_what_is_told_of_an_object_is_a_value(make_store: Make) -> None:
    store, told = make_store(), {"who": "me"}
    with store.batch():
        ref = store.put_object("key", io.BytesIO(b"x"), metadata=told)
        told["who"] = "you"
        ref.metadata["who"] = "they"  # type: ignore[index]
    found = store.get_object("key")
    assert found.metadata == {"who": "me"}
    assert len({found, store.get_object(found.id)}) == 1
    gone = store.delete_object("key")
    assert gone.deleted is not None and gone.created is not None and gone.deleted >= gone.created


def test_etags_can_be_switched_off(make_store: Make, tmp_path: Path) -> None:
    store = make_store(etags=False)
    assert store.put_object("a", io.BytesIO(b"x")).etag is None
    assert store.put_object("b", io.BytesIO(b"x"), etag=True).etag == hashlib.md5(b"x").hexdigest()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as again:
        assert not again.config.etags and again.get_object("a").etag is None
    assert make_store("other").put_object("a", io.BytesIO(b"x"), etag=False).etag is None


def test_lists_are_by_prefix_and_bucket(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifests.keys.PAGE", 3)
    store = make_store()
    keys = ["a", "a/b", "a/c", "ab", "b", "\U0010ffff", "\U0010ffffx", "é"]
    with store.batch():
        for bucket in ("", "other"):
            for key in keys:
                store.put_object(key, io.BytesIO(key.encode()), bucket=bucket)
    for prefix in ("", "a", "a/", "c", "\U0010ffff"):
        wanted = sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
        assert [ref.key for ref in store.list_objects(prefix, bucket="")] == wanted
        assert [ref.key for ref in store.list_objects(prefix)] == [key for key in wanted for _ in range(2)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": b"bytes"},
        {"key": None},
        {"bucket": None},
        {"content_type": 0},
        {"key": "\ud800"},
        {"key": "x" * (64 << 10) + "x"},
        {"ttl": -1},
        {"ttl": float("nan")},
        {"ttl": float("inf")},
        {"ttl": 1e12},
        {"ttl": "5"},
        {"metadata": {"a": 1}},
        {"metadata": [("a", "b")]},
        {"compression": "gzip"},
        {"compression": 5},
        {"reader": io.StringIO("text")},
        {"reader": b"bytes"},
        {"reader": LyingReader(-1)},
        {"reader": LyingReader(1 << 40)},
        {"reader": LyingReader(None)},
    ],
)
def test_puts_that_make_no_sense_are_refused(make_store: Make, wrong: dict[str, object]) -> None:
    store = make_store()
    with pytest.raises(UsageError):
        store.put_object(**{"key": "key", "reader": io.BytesIO(b"x"), **wrong})  # type: ignore[arg-type]
    assert list(store.list_objects()) == []


# --- reading ---------------------------------------------------------------------------------------------------------


def lose_two_backends(store: Path) -> None:
    for number in (1, 4):
        for path in (store / f"backend-{number}" / "packs").rglob("*.*"):
            path.unlink()


def let_rot(store: Path) -> None:
    """Every shard has bad cells, no row more than two."""
    struck = 0
    for path in store.glob("*/packs/*/*.*"):
        shard, length = int(path.suffix[1:]), path.stat().st_size
        with open(path, "r+b") as file:
            for row in range(shard // 2, max(1, (length - 2 * RECORD_SIZE) // CELL_SIZE), 3):
                file.seek(length // 2 if length < 2 * CELL_SIZE else RECORD_SIZE + row * CELL_SIZE + 5000)
                file.write(os.urandom(40))
                struck += 1
    assert struck > 20


@pytest.fixture(scope="module", params=[lose_two_backends, let_rot])
def many(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FileStore, dict[str, bytes]]]:
    """A store with damage, and objects of all sorts in it, by id."""
    place = tmp_path_factory.mktemp("ranges")
    store = FileStore.create(
        [place / "store"], chunker=ChunkerSpec.parse("fastcdc:1KiB"), pack_size=256 << 10, cache=place / "cache"
    )
    held: dict[str, bytes] = {}
    with store.batch():
        for number, codec in enumerate(("none", "lz4", "zstd:3")):
            data = noise(400_000, number % 2) + noise(400_000, 7)
            held[store.put_object(f"{number}", io.BytesIO(data), compression=codec).id] = data
        held[store.put_object("one chunk", io.BytesIO(b"short")).id] = b"short"
        held[store.put_object("empty", io.BytesIO(b"")).id] = b""
    (place / "tree").mkdir()
    with open(place / "tree" / "sparse", "wb") as file:
        file.truncate(3_000_000)
        for at in (0, 1_000_000, 2_900_000):
            file.seek(at)
            file.write(noise(90_000, at))
    run = store.ingest([str(place / "tree")], options=INLINE).run_id
    row = next(info.row for info in store.list("latest:tree/sparse"))
    held[f"{run}-{row}"] = (place / "tree" / "sparse").read_bytes()
    request.param(place / "store")
    yield store, held
    healed = store.figures.sums().words[Count.HEALED_CELLS]
    assert healed, "the damage was met"
    store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ranges_are_what_a_file_would_give(many: tuple[FileStore, dict[str, bytes]], data: st.DataObject) -> None:
    store, held = many
    name = data.draw(st.sampled_from(sorted(held)))
    whole = held[name]
    near = st.one_of(st.integers(0, len(whole) + 10), st.sampled_from([0, len(whole), max(0, len(whole) - 1)]))
    offset, length = data.draw(near), data.draw(st.one_of(st.integers(0, 5000), near))
    assert store.get_object_range(name, offset, length) == whole[offset : offset + length]
    stream, file = store.get_object_data(name), io.BytesIO(whole)
    for _ in range(3):
        to, size = data.draw(near), data.draw(st.integers(0, 5000))
        whence = data.draw(st.sampled_from([io.SEEK_SET, io.SEEK_END]))
        to = -min(to, len(whole)) if whence == io.SEEK_END else to
        assert stream.seek(to, whence) == file.seek(to, whence)
        assert stream.read(size) == file.read(size) and stream.tell() == file.tell()


def test_streams_are_raw_io(many: tuple[FileStore, dict[str, bytes]]) -> None:
    store, held = many
    name, whole = max(held.items(), key=lambda item: len(item[1]))
    stream = store.get_object_data(name)
    assert stream.readable() and stream.seekable() and not stream.writable() and stream.size == len(whole)
    assert stream.read(None) == whole and stream.read(None) == b""
    with pytest.raises(io.UnsupportedOperation):
        stream.write(b"x")
    assert stream.seek(-7, io.SEEK_END) == stream.seek(0, io.SEEK_CUR) == len(whole) - 7
    assert stream.readall() == whole[-7:] and stream.seek(len(whole) + 9) and stream.read(1) == b""
    taken = array("I", [0] * 5)
    assert stream.seek(3) == 3 and stream.readinto(taken) == 20 and taken.tobytes() == whole[3:23]
    assert stream.seek(0) == 0 and b"".join(io.BufferedReader(stream)) == whole
    for bad in (lambda: stream.read(1), lambda: stream.seek(0), lambda: stream.read_at(0, 1)):
        stream.close()
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(UsageError):
        store.get_object_range(name, -1, 5)
    with pytest.raises(ValueError):
        store.get_object_data(name).seek(-1)
    directory = next(info for info in store.list("latest:tree") if info.kind == "directory")
    with pytest.raises(UsageError, match="directory"):
        store.get_object_data(f"{directory.run}-{directory.row}")
    with pytest.raises(UsageError, match="run"):
        store.delete_object(name)


def test_one_stream_and_one_store_serve_threads_while_puts_go_on(
    many: tuple[FileStore, dict[str, bytes]],
) -> None:
    store, held = many
    names = [name for name in held if len(held[name]) > 100_000]
    streams = {name: store.get_object_data(name) for name in names}
    stop = threading.Event()

    def read(seed: int) -> int:
        chance, count = random.Random(seed), 0
        while not stop.is_set() or not count:
            name = chance.choice(names)
            offset, length = chance.randrange(len(held[name])), chance.randrange(60_000)
            wanted = held[name][offset : offset + length]
            assert streams[name].read_at(offset, length) == wanted
            assert store.get_object_range(name, offset, length) == wanted
            assert store.get_object("one chunk").size == 5
            assert len(list(store.list_objects("o"))) == 1
            assert store.get_index_stats().total_chunks > 0
            count += 1
        return count

    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(read, seed) for seed in range(3)]
        try:
            for number in range(3):
                ref = store.put_object(f"x{number}", io.BytesIO(noise(20_000, number)))
                assert store.get_object_data(ref.id).read() == noise(20_000, number)
            store.delete_object("x0")
        finally:
            stop.set()
        assert all(future.result() for future in futures)


def test_the_cache_of_blocks_is_bounded() -> None:
    cache = BlockCache(1000)
    for number in range(50):
        cache.put((b"pack", number), bytes(300))
        assert cache.size <= 1000
    assert cache.get((b"pack", 49)) is not None and cache.get((b"pack", 40)) is None
    cache.put((b"pack", 50), bytes(5000))
    assert cache.get((b"pack", 50)) is not None and cache.size == 5000
    cache.put((b"pack", 50), bytes(10))
    assert cache.size == 10


# --- faults ----------------------------------------------------------------------------------------------------------

KILLED = """
import io, os, sys
from pathlib import Path
from pipeline.filestore import FileStore
with FileStore.open(sys.argv[1], cache=Path(sys.argv[2])) as store:
    store.put_object("acknowledged", io.BytesIO(b"it is there"))
    with store.batch():
        for number in range(400):
            store.put_object(f"{number}", io.BytesIO(os.urandom(30_000)))
            print(number, flush=True)
"""


def test_what_a_killed_process_had_not_committed_is_not_there(make_store: Make, tmp_path: Path) -> None:
    store = make_store(pack_size=1 << 20)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == b"350":
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    store.put_object("mine", io.BytesIO(b"mine"))  # sees what the other wrote
    assert [ref.key for ref in store.list_objects()] == ["acknowledged", "mine"]
    assert store.get_object_data("acknowledged").read() == b"it is there"
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


HELD = """
import io, sys
from pathlib import Path
from pipeline.filestore import FileStore
with FileStore.open(sys.argv[1], cache=Path(sys.argv[2])) as store:
    store.put_object("half", sys.stdin.buffer)
"""


def test_a_put_that_is_killed_in_the_middle_leaves_no_object(make_store: Make, tmp_path: Path) -> None:
    store, data = make_store(pack_size=1 << 20), noise(12 << 20, 5)
    command = [sys.executable, "-c", HELD, str(tmp_path / "store"), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(data)  # more than a pipe holds, so most of it was taken when this returns
        process.stdin.flush()
        assert list((tmp_path / "store").glob("*/packs/*/*.*")), "packs are there already"
        process.send_signal(signal.SIGKILL)
    store.refresh()
    assert list(store.list_objects()) == [] and store.list_versions("half") == []
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    store.put_object("half", io.BytesIO(data))
    assert store.get_object_data("half").read() == data


def test_two_stores_see_each_others_puts(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache 2") as other:
        store.put_object("key", io.BytesIO(b"first"))
        other.put_object("key", io.BytesIO(b"second"))
        store.put_object("key", io.BytesIO(b"third"))
        versions = [store.get_object_data(ref.id).read() for ref in store.list_versions("key")]
    assert versions == [b"third", b"second", b"first"]


def test_a_batch_that_builds_on_what_was_deleted_meanwhile_is_refused(make_store: Make, tmp_path: Path) -> None:
    from blake3 import blake3

    store = make_store()
    ref = store.put_object("key", io.BytesIO(b"short-lived"))
    chunk = blake3(b"short-lived").digest()
    other = FileStore.open(tmp_path / "store", cache=tmp_path / "cache 2")
    with other, pytest.raises(Superseded), store.batch():
        store.put_object("again", io.BytesIO(b"short-lived"))
        other.delete_object(ref.id)
        other.delete_chunk(chunk)
    store.put_object("again", io.BytesIO(b"short-lived"))
    assert store.get_object_data("again").read() == b"short-lived"


def test_a_batch_with_a_failed_part_is_not_committed_even_if_the_failure_is_passed_over(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    fails = {"left": 1}

    def failing(*_: object) -> object:
        if fails["left"]:
            fails["left"] -= 1
            raise TooFewBackends("made up")
        raise AssertionError("nothing is packed behind a failure")

    with pytest.raises(PipelineError), store.batch():
        monkeypatch.setattr("pipeline.packwriter.PackWriter.add", failing)
        with pytest.raises(TooFewBackends):
            store.put_object("large", io.BytesIO(noise(5 << 20)))
        with pytest.raises(PipelineError):
            store.put_object("larger", io.BytesIO(noise(5 << 20)))
        store.put_object("small", io.BytesIO(b"x"))
    assert fails["left"] == 0
    monkeypatch.undo()
    assert list(store.list_objects()) == []
    store.put_object("large", io.BytesIO(noise(5 << 20)))
    assert store.get_object_data("large").read() == noise(5 << 20)


def test_puts_need_as_many_backends_as_any_writing(make_store: Make, tmp_path: Path) -> None:
    make_store(scheme="2+1").close()
    for number in (0, 1):
        os.rename(tmp_path / "store" / f"backend-{number}", tmp_path / f"away-{number}")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store, pytest.raises(TooFewBackends):
        store.put_object("key", io.BytesIO(b"x"))


def test_queries_have_room_on_disk_also_behind_a_put(make_store: Make) -> None:
    store = make_store()
    first = store.catalog
    store.put_object("key", io.BytesIO(b"x"))
    assert store.catalog.temp_directory != first.temp_directory
    store.catalog.limit_memory(30 << 20)
    store.catalog.execute("CREATE TABLE numbers AS SELECT i, hash(i) AS h FROM range(1_500_000) r(i)")
    assert store.catalog.one("SELECT count(*) AS n FROM (SELECT * FROM numbers ORDER BY h)")["n"] == 1_500_000
    assert store.catalog.temp_directory.exists()
    folder = store.catalog.temp_directory.parent.parent
    store.close()
    assert not list(folder.glob("tmp-*"))


def test_commands_take_ids_of_objects(make_store: Make, tmp_path: Path) -> None:
    store, data = make_store(), noise(30_000)
    put = store.put_object("../a//b", io.BytesIO(data)).id
    (tmp_path / "file").write_bytes(data[:5000])
    archived = f"{store.ingest([str(tmp_path / 'file')], options=INLINE).run_id}-0"

    def run(*words: str) -> bytes:
        command = [str(Path(sys.executable).with_name("drystone")), "-s", str(tmp_path / "store"), *words]
        return subprocess.run(command, check=True, capture_output=True).stdout

    assert run("cat", put) == data and run("cat", archived, "--range", "-5") == data[4995:5000]
    assert run("ls", put, "--format", "csv").splitlines()[1].startswith(b"../a//b,file,30000")
    run("restore", put, "--to", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    assert [info.path for info in store.list(archived)] == [b"file"]
    store.delete_object(put)
    with pytest.raises(ObjectDeleted):
        list(store.open_range(put))
    with pytest.raises(NotFound):
        store.restore(archived, tmp_path / "back")


def test_ids_that_are_none_are_keys(make_store: Make) -> None:
    store = make_store()
    looks = "01890000-0000-7000-8000-000000000001-0"
    with pytest.raises(NotFound):
        store.get_object(looks)
    ref: ObjectRef = store.put_object(looks, io.BytesIO(b"a key"))
    assert store.get_object(looks) == ref
