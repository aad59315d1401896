"""Threads on one store: reads and writes at once, batches, closing; and several stores of one process."""

from __future__ import annotations

import io
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from manifests.errors import BackendError, BackendFull, NotFound, TooFewBackends, UsageError
from manifests.localdirectory import LocalDirectory
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.metrics.meters import Count
from pipeline.objects.refs import IndexStats

Make = Callable[..., FileStore]


def data_of(name: str, size: int = 20_000) -> bytes:
    return random.Random(name).randbytes(size)


def recount(store: FileStore) -> IndexStats:
    rows = [row for batch in store.iterate_chunks() for row in batch.to_pylist()]
    return IndexStats(len(rows), sum(row["length"] for row in rows))


def packs_of(store: FileStore) -> set[uuid.UUID]:
    return {uuid.UUID(bytes=pack) for batch in store.iterate_chunks() for pack in batch["pack_id"].to_pylist()}


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_sixteen_threads_put_and_read_at_once(make_store: Make, kind: str) -> None:
    store = make_store(index=kind)
    with store.batch():
        for number in range(8):
            store.put_object(f"old/{number}", io.BytesIO(data_of(f"old/{number}")))

    def work(thread: int) -> None:
        chance = random.Random(thread)
        if thread % 4 == 0:
            store.put_object(f"new/{thread}", io.BytesIO(data_of(f"new/{thread}")))
            store.write_chunk(blake3(b"%d" % thread).digest(), b"%d" % thread)
            assert store.get_object_data(f"new/{thread}").read() == data_of(f"new/{thread}")
        for _ in range(4):
            name, offset, length = f"old/{chance.randrange(8)}", chance.randrange(20_000), chance.randrange(9000)
            assert store.get_object_range(name, offset, length) == data_of(name)[offset : offset + length]

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    assert [ref.key for ref in store.list_objects("new/")] == ["new/0", "new/12", "new/4", "new/8"]
    assert store.get_index_stats() == recount(store)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_what_threads_put_while_a_batch_is_open_goes_with_it(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    with ThreadPoolExecutor(8) as threads, store.batch():
        list(threads.map(lambda name: store.put_object(name, io.BytesIO(data_of(name))), map(str, range(40))))
        assert list(store.list_objects()) == []
    assert len(store.state.batches) == 1
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as again:
        assert len(list(again.list_objects())) == 40
        for name in map(str, range(40)):
            assert again.get_object_data(name).read() == data_of(name)


def test_batches_of_several_threads_follow_one_another(make_store: Make) -> None:
    store = make_store()
    met = threading.Barrier(4)

    def work(thread: int) -> None:
        met.wait()
        with store.batch():
            for number in range(5):
                store.put_object(f"{thread}/{number}", io.BytesIO(data_of(f"{thread}/{number}")))
            with pytest.raises(UsageError, match="batch is open"), store.batch():
                pass
            with pytest.raises(UsageError, match="batch is open"):
                store.write_chunk(blake3(b"x").digest(), b"x")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert [summary["objects"] for summary in store.state.batches] == [5, 5, 5, 5]
    assert len(list(store.list_objects())) == 20


def test_a_reader_that_puts_is_refused(make_store: Make) -> None:
    store = make_store()

    class Putting(io.RawIOBase):
        def readinto(self, buffer: object) -> int:
            store.put_object("inner", io.BytesIO(b"x"))
            raise AssertionError("it was put")

    with pytest.raises(UsageError, match="may not put"):
        store.put_object("outer", Putting())  # type: ignore[arg-type]
    store.put_object("copied", io.BytesIO(data_of("copied")))
    copy = store.put_object("copy", store.get_object_data("copied"))  # type: ignore[arg-type]
    assert copy.etag == store.get_object("copied").etag
    assert [ref.key for ref in store.list_objects()] == ["copied", "copy"]


def test_a_closed_store_does_nothing_and_says_so(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    ref = store.put_object("key", io.BytesIO(b"x"))
    stream = store.get_object_data("key")
    store.close()
    store.close()
    for use in (
        lambda: store.get_object("key"),
        lambda: store.get_chunk(ref.digest or b""),
        lambda: store.get_index_stats(),
        lambda: list(store.list_objects()),
        lambda: list(store.iterate_chunks()),
        lambda: store.put_object("key", io.BytesIO(b"y")),
        lambda: store.delete_object("key"),
        lambda: store.batch().__enter__(),
        lambda: store.refresh(),
        lambda: store.ingest([str(tmp_path)]),
        lambda: store.rebuild_index(),
        lambda: stream.read(),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()
    with pytest.raises(RuntimeError), FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as again:
        raise RuntimeError
    with pytest.raises(UsageError, match="closed"):
        again.get_object("key")


def test_closing_gives_an_open_batch_up(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    with pytest.raises(UsageError, match="nothing of it was committed"), store.batch():
        store.put_object("key", io.BytesIO(b"x"))
        store.close()
        with pytest.raises(UsageError, match="closed"):
            store.put_object("more", io.BytesIO(b"x"))

    class Closing(io.RawIOBase):
        def readinto(self, buffer: object) -> int:
            again.close()
            return 0

    again = FileStore.open(tmp_path / "store", cache=tmp_path / "cache")
    with again, pytest.raises(UsageError, match="nothing of it is committed"):
        again.put_object("key", Closing())  # type: ignore[arg-type]
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as last:
        assert list(last.list_objects()) == [] and last.state.batches == []


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_two_stores_of_one_process_share_a_cache(make_store: Make, tmp_path: Path, kind: str) -> None:
    """LMDB must not open a file twice in a process; an ingest meanwhile builds on the other's index, or on none."""
    store = make_store(index=kind)
    (tmp_path / "file").write_bytes(data_of("file"))
    store.put_object("first", io.BytesIO(data_of("first")))
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as other:
        with store.batch():
            store.put_object("one", io.BytesIO(data_of("one")))
            other.put_object("two", io.BytesIO(data_of("first")))
            other.ingest([str(tmp_path / "file")], options=IngestOptions(inline=True, workers=1))
            store.put_object("first again", io.BytesIO(data_of("first")))
        other.put_object("one again", io.BytesIO(data_of("one")))
        with ThreadPoolExecutor(2) as threads:
            put = lambda use: [use.put_object(f"{id(use)}/{n}", io.BytesIO(data_of(f"{n}"))) for n in range(3)]  # noqa: E731
            list(threads.map(put, (store, other)))
        store.refresh()
        other.refresh()
        assert recount(store) == store.get_index_stats() == other.get_index_stats()
        assert len(list(store.list_objects())) == len(list(other.list_objects())) == 11
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_a_store_sees_what_others_write_when_it_is_asked_to(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    assert store.get_index_stats().total_chunks == 0
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as other:
        other.put_object("key", io.BytesIO(b"x"))
        with pytest.raises(NotFound):
            store.get_object("key")
        store.refresh()
        assert store.get_object("key").size == 1
        other.put_object("more", io.BytesIO(b"more"))
    store.verify(inline=True, workers=1)  # its note must not hide what came in between
    store.put_object("mine", io.BytesIO(b"mine"))
    assert [ref.key for ref in store.list_objects()] == ["key", "mine", "more"]
    assert store.get_index_stats() == recount(store) == IndexStats(3, 9)


def test_a_batch_that_can_not_even_be_given_up_is_no_batch_any_more(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()

    def close(self: object) -> None:
        raise BackendError("made up")

    with pytest.raises(BackendError, match="made up"), store.batch():
        store.put_object("key", io.BytesIO(b"x"))
        monkeypatch.setattr("pipeline.objects.intake.Intake.close", close)
        raise RuntimeError
    monkeypatch.undo()
    store.put_object("other", io.BytesIO(b"x"))
    assert [ref.key for ref in store.list_objects()] == ["other"]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """All disks are full."""

    def write(self: object, key: str, pieces: object) -> None:
        raise BackendFull(f"writing {key}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("manifests.localdirectory.LocalDirectory.write", write)
        yield patch


def test_full_disks_are_read_on_and_written_again_when_there_is_room(
    make_store: Make, request: pytest.FixtureRequest
) -> None:
    store = make_store()
    store.put_object("key", io.BytesIO(data_of("key")))
    patch: pytest.MonkeyPatch = request.getfixturevalue("full")
    for _ in range(2):
        with pytest.raises(BackendFull):
            store.put_object("more", io.BytesIO(data_of("more")))
        assert store.get_object_data("key").read() == data_of("key")
        assert all(store.get_ec_group(pack).can_recover for pack in packs_of(store))
        assert store.status().bears_backends == 2
        with pytest.raises(BackendFull):
            store.write_chunk(blake3(b"x").digest(), b"x")
        result = store.verify(data=True, inline=True, workers=1)
        assert (result.exit_code, result.lost_manifests) == (0, []) and "No space" in result.unnoted
    patch.undo()
    store.put_object("more", io.BytesIO(data_of("more")))
    assert [ref.key for ref in store.list_objects()] == ["key", "more"]
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_backends_that_can_not_be_listed_any_more_are_written_around(
    make_store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, failing = make_store(), ["backend-1"]
    store.put_object("key", io.BytesIO(data_of("key")))
    whole = LocalDirectory.list

    def listing(self: LocalDirectory, prefix: str) -> Iterator[str]:
        if Path(self.location).name in failing:
            raise BackendError(f"listing {self.location}/{prefix} failed: Input/output error")
        return whole(self, prefix)

    monkeypatch.setattr(LocalDirectory, "list", listing)
    with store.batch():
        store.put_object("more", io.BytesIO(data_of("more")))
        failing.append("backend-2")
    assert store.get_object_data("more").read() == data_of("more")
    failing.append("backend-3")
    with pytest.raises(TooFewBackends):
        store.put_object("too much", io.BytesIO(b"x"))
    failing.clear()
    store.put_object("last", io.BytesIO(b"x"))
    assert [ref.key for ref in store.list_objects()] == ["key", "last", "more"]
    assert store.verify(data=True, inline=True, workers=1).exit_code in (0, 4)  # shards that were passed over


def test_reads_of_programs_are_metered(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    store.put_object("key", io.BytesIO(b"brick by brick " * 9000))
    for shard in (tmp_path / "store").glob("*/packs/*/*.0"):
        shard.unlink()
    before = store.figures.sums().words
    assert store.get_object_range("key", 0, 15) == b"brick by brick "
    after = store.figures.sums().words
    assert after[Count.HEALED_CELLS] > before[Count.HEALED_CELLS]
    grown = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if new > old and at not in list(Count)]
    assert len(grown) == 6, "of one block: bytes in and out, time, ratio, a bucket of each histogram"
    assert store.get_object_range("key", 15, 15) == b"brick by brick "
    assert store.figures.sums().words == after, "it was kept"
