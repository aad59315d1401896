"""Digests of whole contents: computed at ingest for every kind of content, read from stores of all ages."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from manifests.errors import UsageError
from manifests.fixity import FIXITY, parse_fixity
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from stages.chunk import ContentHasher
from stages.digest import ALGORITHMS, SPREAD, FixityCheck, parse_digests
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

MakeStore = Callable[..., FileStore]
GOLDEN = Path(__file__).parent / "golden"
MORE = ("md5", "sha1", "sha256", "sha512")
INLINE = IngestOptions(inline=True, workers=1)


def digests_of(store: FileStore, run: str = "latest") -> dict[bytes, tuple[bytes | None, ...]]:
    """Path → BLAKE3, MD5, SHA-1, SHA-256 and SHA-512 as the manifests have them."""
    store.catalog.use("objects")
    rows = store.catalog.rows(
        "SELECT path, digest, md5, sha1, sha256, sha512 FROM objects WHERE run = ? AND kind IN ('file', 'stream')",
        [store.run(run).run_id.bytes],
    )
    return {row["path"]: tuple(row[name] for name in ("digest", *MORE)) for row in rows}


def expected_digests(data: bytes) -> tuple[bytes, ...]:
    return (blake3(data).digest(), *(hashlib.new(name, data).digest() for name in MORE))


def files_below(root: Path) -> dict[bytes, bytes]:
    """Path in the archive → content of each regular file of a source."""
    top = os.fsencode(root)
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    found[os.fsencode(root.name) + path[len(top) :]] = file.read()
    return found


@pytest.mark.parametrize("inline", [True, False])
def test_every_content_carries_the_digests_of_its_bytes(make_store: MakeStore, tmp_path: Path, inline: bool) -> None:
    tree = make_tree(tmp_path / "tree", 2, 40)
    # Longer than a data slot, so that it goes by in several.
    (tree / "large").write_bytes(os.urandom(5_000_000))
    store = make_store()
    options = IngestOptions(inline=inline, workers=1, digests=MORE)
    contents = {path: expected_digests(data) for path, data in files_below(tree).items()}
    # The second run finds all contents in the store; they have digests all the same.
    for _ in range(2):
        assert store.ingest([str(tree)], options=options).exit_code == 0
        assert digests_of(store) == contents


def test_a_stream_carries_its_digests(make_store: MakeStore, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "input").write_bytes(data)
    store = make_store()
    with open(tmp_path / "input", "rb") as file:
        options = IngestOptions(inline=True, digests=("sha256",), stream=file.fileno())
        store.ingest(["-"], name="dump", options=options)
    found = digests_of(store)[b"dump"]
    assert found == (blake3(data).digest(), None, None, hashlib.sha256(data).digest(), None)


def test_only_what_was_asked_for_is_there(make_store: MakeStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 2, 10)
    store = make_store()
    store.ingest([str(tree)], options=INLINE)
    assert all(found[0] and found[1:] == (None,) * 4 for found in digests_of(store).values())


def test_a_fixity_leaves_out_what_the_chunk_id_says(make_store: MakeStore, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    contents = {b"tree/empty": b"", b"tree/one": b"one chunk", b"tree/many": os.urandom(100_000)}
    for path, data in contents.items():
        (tmp_path / os.fsdecode(path)).write_bytes(data)
    store = make_store()
    store.ingest([str(tree)], options=IngestOptions(inline=True, digests=("sha256",)))
    store.catalog.use("objects")
    found = store.catalog.rows(f"SELECT path, {FIXITY} AS fixity FROM objects")
    rows = {row["path"]: parse_fixity(row["fixity"]) for row in found}
    assert rows.pop(b"tree") == []
    for path, data in contents.items():
        names = ["blake3", "sha256"] if path == b"tree/many" else ["sha256"]
        by_name = dict(zip(("blake3", *MORE), expected_digests(data), strict=True))
        assert rows[path] == [(name, by_name[name]) for name in names]


@pytest.mark.parametrize("inline", one_in(2, [True, False]))
@pytest.mark.parametrize("wrong", ["BLAKE3", "SHA-256"])
def test_a_content_that_is_not_what_was_recorded_gets_no_name(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool, wrong: str
) -> None:
    sizes = {"empty": 0, "one-chunk": 900, "one-block": 90_000, "many": 2_500_000}
    if not inline:
        sizes["large"] = SPREAD + 1
    store = store_of_wrong_digests(make_store, monkeypatch, tmp_path / "tree", sizes, wrong)
    # For one chunk, the chunk's id is the BLAKE3.
    bad = {"one-block", "many", "large"} & sizes.keys() if wrong == "BLAKE3" else set(sizes)
    result = store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=inline, workers=1))
    assert result.exit_code == 3
    assert {os.path.basename(path).decode() for path, _ in result.failures} == bad
    assert all(reason.startswith(f"its {wrong} is not") for _, reason in result.failures)
    assert {path.name for path in (tmp_path / "out" / "tree").iterdir()} == sizes.keys() - bad
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tree"]


@pytest.mark.parametrize("names", [("blake3",), ("blake3", *MORE), ("sha256",)])
def test_a_large_file_is_hashed_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    data = os.urandom(2_500_000)
    (tmp_path / "file").write_bytes(data)
    by_name = dict(zip(("blake3", *MORE), expected_digests(data), strict=True))
    fixity = b"".join(bytes([list(by_name).index(name)]) + by_name[name] for name in names)
    with open(tmp_path / "file", "r+b") as file:
        for spread in (1, SPREAD):
            monkeypatch.setattr("stages.digest.SPREAD", spread)
            check = FixityCheck(fixity)
            check.read(file.fileno())
            assert check.trouble() == ""
        os.pwrite(file.fileno(), b"another byte", 2_000_000)
        for spread in (1, SPREAD):
            monkeypatch.setattr("stages.digest.SPREAD", spread)
            check = FixityCheck(fixity)
            check.read(file.fileno())
            assert [name for name, _ in check.wrong()] == list(names)


def store_of_wrong_digests(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, tree: Path, sizes: dict[str, int], wrong: str
) -> FileStore:
    """A store of random files, with BLAKE3 and SHA-256, of which `wrong` suffered as from a flipped bit in memory."""
    tree.mkdir()
    for name, size in sizes.items():
        (tree / name).write_bytes(os.urandom(size))
    with monkeypatch.context() as patch:
        if wrong == "BLAKE3":
            patch.setattr(ContentHasher, "digest", lambda hasher: bytes(32))
        else:
            patch.setitem(ALGORITHMS, "sha256", lambda: hashlib.sha256(b"something else"))
        store = make_store(pack_size=1 << 20)
        store.ingest([str(tree)], options=IngestOptions(inline=True, digests=("sha256",)))
    return store


@pytest.fixture
def old_store(tmp_path: Path) -> Iterator[FileStore]:
    """A store of two runs from before there were columns for more digests."""
    with tarfile.open(GOLDEN / "before-digests.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    with FileStore.open(tmp_path / "old" / "store", cache=tmp_path / "cache") as store:
        yield store


def test_manifests_of_all_ages_are_read_together(old_store: FileStore, tmp_path: Path) -> None:
    contents = {b"tree/empty": b"", b"tree/small.txt": b"small\n", b"tree/more.txt": b"more\n"}
    contents[b"tree/numbers.txt"] = "".join(f"{number}\n" for number in range(1, 12001)).encode()
    old = {path: (blake3(data).digest(), None, None, None, None) for path, data in contents.items()}
    assert digests_of(old_store) == old
    tree = make_tree(tmp_path / "new", 4, 10)
    old_store.ingest([str(tree)], options=IngestOptions(inline=True, digests=MORE))
    assert digests_of(old_store) == {path: expected_digests(data) for path, data in files_below(tree).items()}
    first, second = (str(run.run_id) for run in old_store.runs()[:2])
    assert digests_of(old_store, second) == old
    assert len(digests_of(old_store, first)) == 3
    for run in (first, second, "latest"):
        request = RestoreRequest("", inline=True, workers=1)
        assert old_store.restore(run, tmp_path / "out" / run, request=request).exit_code == 0
    assert (tmp_path / "out" / second / "tree" / "numbers.txt").read_bytes() == contents[b"tree/numbers.txt"]
    assert_equal_trees(tree, tmp_path / "out" / "latest" / "new")
    assert old_store.verify(data=True, inline=True, workers=1).exit_code == 0


@pytest.mark.parametrize("text", ["sha256,md5", "MD5,SHA-256", " md5 , sha256,blake3"])
def test_names_of_digests_are_read(text: str) -> None:
    assert parse_digests(text) == ("md5", "sha256")


@pytest.mark.parametrize("text", ["", ",", "sha3", "sha256,crc32"])
def test_unknown_digests_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="sha512"):
        parse_digests(text)
