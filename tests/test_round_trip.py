"""What goes in comes out: trees, chunkers, codecs, schemes; inline and by worker processes; every allowed loss."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.config import ChunkerSpec, CodecSpec, ECScheme
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
SCHEMES = ("1+0", "1+2", "2+1", "4+2", "10+4")
MakeStore = Callable[..., FileStore]


def restore_inline(store: FileStore, to: Path, selection: str = "latest") -> int:
    """Restore in this process; the exit code."""
    return store.restore(selection, to, request=RestoreRequest("", inline=True, workers=1)).exit_code


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    files=st.integers(0, 25),
    scheme=st.sampled_from(SCHEMES),
    chunker=st.sampled_from(["fastcdc:256", "fastcdc:4KiB", "fastcdc:128KiB", "fixed:64", "fixed:5000"]),
    codec=st.sampled_from(["none", "lz4", "zstd:1", "zstd:3"]),
    pack_size=st.sampled_from([64 << 10, 1 << 20]),
)
def test_a_tree_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    files: int,
    scheme: str,
    chunker: str,
    codec: str,
    pack_size: int,
) -> None:
    place = tmp_path_factory.mktemp("round")
    tree = make_tree(place / "tree", seed, files, largest=60_000)
    with FileStore.create(
        [place / "store"],
        scheme=ECScheme.parse(scheme),
        chunker=ChunkerSpec.parse(chunker),
        codec=CodecSpec.parse(codec),
        pack_size=pack_size,
        cache=place / "cache",
    ) as store:
        result = store.ingest([str(tree)], options=INLINE)
        assert result.exit_code == 0
        assert restore_inline(store, place / "out") == 0
        assert_equal_trees(tree, place / "out" / "tree")
        assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    shutil.rmtree(place)


@pytest.mark.parametrize("codec", one_in(2, ["none", "lz4", "zstd:3"]))
def test_workers_give_back_what_workers_took(make_store: MakeStore, tmp_path: Path, codec: str) -> None:
    tree = make_tree(tmp_path / "tree", 3, 120, largest=3_000_000)
    store = make_store(codec=CodecSpec.parse(codec), pack_size=1 << 20)
    assert store.ingest([str(tree)]).exit_code == 0
    result = store.restore("latest", tmp_path / "out")
    assert result.exit_code == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")
    assert store.verify(data=True).exit_code == 0


def test_inline_and_workers_give_the_same_objects_extents_and_chunks(make_store: MakeStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 5, 100, largest=2_000_000)
    store = make_store("one")
    other = make_store("other")
    object.__setattr__(other.config, "seed", store.config.seed)  # cuts depend on it
    store.ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
    other.ingest([str(tree)], options=IngestOptions(workers=3))
    assert rows_of(store) == rows_of(other)


def rows_of(store: FileStore) -> tuple[object, ...]:
    """Objects, extents and chunk ids of a store, without what differs from run to run."""
    store.catalog.use_all()
    queries = (
        "SELECT row, path, kind, size, content_kind, content_id, digest, mode, mtime_ns FROM objects ORDER BY row",
        'SELECT content_id, "offset", length, chunk_id FROM extents ORDER BY ALL',
        "SELECT chunk_id, length FROM chunks ORDER BY ALL",
    )
    found = tuple(store.catalog.connection.execute(query).fetchall() for query in queries)
    assert all(found)
    return found


@pytest.fixture(scope="module")
def six_backends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree and a store of it over six backends."""
    return _filled(tmp_path_factory, "4+2")


def _filled(factory: pytest.TempPathFactory, scheme: str) -> tuple[Path, Path]:
    place = factory.mktemp("filled")
    tree = make_tree(place / "tree", 9, 40)
    with FileStore.create(
        [place / "store"], scheme=ECScheme.parse(scheme), chunker=ChunkerSpec("fastcdc", 4096), pack_size=128 << 10,
        cache=place / "cache",
    ) as store:  # fmt: skip
        store.ingest([str(tree)], options=INLINE)
    return tree, place / "store"


@pytest.mark.parametrize("lost", one_in(2, itertools.combinations(range(6), 2)))
def test_any_two_of_six_backends_may_be_lost(
    six_backends: tuple[Path, Path], tmp_path: Path, lost: tuple[int, int]
) -> None:
    tree, store = six_backends
    check_loss(tree, store, lost, tmp_path)


def check_loss(tree: Path, store: Path, lost: tuple[int, ...], place: Path) -> None:
    """Restore from a copy of `store` without the backends `lost`."""
    width = len(str(len(list(store.iterdir())) - 1))
    gone = {f"backend-{number:0{width}}" for number in lost}
    copy = place / "copy"
    shutil.copytree(store, copy, ignore=lambda folder, names: gone & set(names))
    store.rename(place / "aside")  # nothing may be found at the recorded places
    try:
        with FileStore.open(copy, cache=place / "cache") as opened:
            assert len(opened.members.absent()) == len(gone)
            assert restore_inline(opened, place / "out") == 0
            assert opened.verify(data=True, inline=True, workers=1).exit_code == 4
    finally:
        (place / "aside").rename(store)
    assert_equal_trees(tree, place / "out" / "tree")


@pytest.mark.parametrize("scheme", ["1+2", "2+1"])
def test_every_loss_of_small_schemes(tmp_path_factory: pytest.TempPathFactory, scheme: str) -> None:
    tree, store = _filled(tmp_path_factory, scheme)
    parsed = ECScheme.parse(scheme)
    for count in range(1, parsed.m + 1):
        for lost in itertools.combinations(range(parsed.total_shards), count):
            check_loss(tree, store, lost, tmp_path_factory.mktemp("loss"))


def test_losses_of_ten_plus_four(tmp_path_factory: pytest.TempPathFactory) -> None:
    tree, store = _filled(tmp_path_factory, "10+4")
    for lost in ((0, 1, 2, 3), (10, 11, 12, 13), (0, 5, 9, 13), (3, 7, 8, 12)):
        check_loss(tree, store, lost, tmp_path_factory.mktemp("loss"))


def test_more_losses_than_parity_name_what_is_gone(six_backends: tuple[Path, Path], tmp_path: Path) -> None:
    tree, store = six_backends
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    for number in (0, 2, 3):
        shutil.rmtree(copy / f"backend-{number}")
    store.rename(tmp_path / "aside")
    try:
        with FileStore.open(copy, cache=tmp_path / "cache") as opened:
            result = opened.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True))
            check = opened.verify(data=True, inline=True)
            presence = opened.verify()
    finally:
        (tmp_path / "aside").rename(store)
    assert result.exit_code == 3 and check.exit_code == 3
    assert check.lost_object_count > 0
    whole = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file() and not path.is_symlink()}
    failed = {Path(path.decode(errors="surrogateescape")).relative_to("tree") for path, _ in result.failures}
    back = {path.relative_to(tmp_path / "out" / "tree") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    back = {path for path in back if not (tmp_path / "out" / "tree" / path).is_symlink()}
    assert failed and back
    assert failed | back == whole and not failed & back
    assert {path for _, path in check.lost_objects} == {path for path, _ in result.failures}
    assert {path for _, path in presence.lost_objects} == {path for path, _ in result.failures}
    for path in back:
        assert (tree / path).read_bytes() == (tmp_path / "out" / "tree" / path).read_bytes()


def test_what_is_stored_already_is_not_stored_again(make_store: MakeStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 11)
    store = make_store()
    first = store.ingest([str(tree)], options=INLINE)
    again = store.ingest([str(tree)], options=IngestOptions(workers=2))
    assert first.tally.new_bytes > 0
    assert (again.tally.new_chunks, again.tally.packs) == (0, 0)
    assert again.tally.bytes == first.tally.bytes
    store.catalog.use_all()
    twice = 'SELECT count(*) FROM extents GROUP BY content_id, "offset" HAVING count(*) > 1'
    assert store.catalog.connection.execute(twice).fetchall() == []
    assert restore_inline(store, tmp_path / "out") == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")


def test_a_restore_does_not_depend_on_where_query_batches_end(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(200):  # files of several chunks, many to a block
        (tree / f"{number:03}").write_bytes(f"{number}".encode() * 9_000)
    store = make_store(chunker="fixed:1000")
    store.ingest([str(tree)], options=INLINE)
    monkeypatch.setattr("manifests.catalog.BATCH_ROWS", 7)
    monkeypatch.setattr("manifests.plan.CROWDED_BYTES", 20_000)
    monkeypatch.setattr("pipeline.restore.plan.TASK_BYTES", 30_000)
    assert restore_inline(store, tmp_path / "out") == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")


def test_a_path_of_a_run_is_restored_by_its_own_name(make_store: MakeStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 2)
    (tree / "some" / "deep").mkdir(parents=True)
    (tree / "some" / "deep" / "file").write_bytes(b"found")
    (tree / "some" / "deeper").write_bytes(b"another, whose name begins the same")
    store = make_store()
    store.ingest([str(tree)], options=INLINE)
    assert restore_inline(store, tmp_path / "folder", "latest:tree/some/deep") == 0
    assert_equal_trees(tree / "some" / "deep", tmp_path / "folder" / "deep")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["deep"]
    assert restore_inline(store, tmp_path / "file", "latest:tree/some/deep/file") == 0
    assert (tmp_path / "file" / "file").read_bytes() == b"found"


def test_digests_are_those_of_b3sum(make_store: MakeStore, tmp_path: Path) -> None:
    from blake3 import blake3

    tree = make_tree(tmp_path / "tree", 21)
    store = make_store()
    store.ingest([str(tree)], options=INLINE)
    seen = 0
    for info in store.list(recursive=True):
        if info.kind == "file":
            with open(tmp_path / info.path.decode(errors="surrogateescape"), "rb") as file:
                assert info.digest == blake3(file.read()).digest()
            seen += 1
    assert seen > 50
