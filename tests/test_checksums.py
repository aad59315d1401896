"""ingest --checksums: what differs from a supplied list is marked in its row, named and counted."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.checksums import ChecksumList, ListLine
from manifests.columns import OBJECT_DTYPE, Batch, HeapBuilder
from manifests.errors import UsageError
from pipeline.filestore import FileStore
from pipeline.ingest.checksums import ChecksumFile, ChecksumResult, Resolver
from pipeline.ingest.run import IngestOptions, IngestResult
from pipeline.restore.run import RestoreRequest
from stages.checklist import format_line, parse_line
from stages.scan import Source
from tests.test_fixity import files_below
from tests.trees import make_tree

MakeStore = Callable[..., FileStore]
COMMAND = str(Path(sys.executable).with_name("drystone"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in a directory of its own."""
    (tmp_path / "from").mkdir()
    return make_tree(tmp_path / "from" / "tree", 8, 12)


def digest(algorithm: str, data: bytes) -> bytes:
    return blake3(data).digest() if algorithm == "blake3" else hashlib.new(algorithm, data).digest()


def lines_of(tree: Path, algorithm: str, begin: bytes = b"") -> list[bytes]:
    """The list of a tree's files, by paths below it, behind `begin`."""
    cut = len(os.fsencode(tree.name)) + 1
    return [
        format_line(digest(algorithm, data), begin + path[cut:]) for path, data in sorted(files_below(tree).items())
    ]


def ingest(store: FileStore, tree: Path, *lists: str, **more: bool) -> tuple[IngestResult, ChecksumResult]:
    files = tuple(map(ChecksumFile.parse, lists))
    options = IngestOptions(**{"inline": True, "workers": 1, "checksums": files, **more})  # type: ignore[arg-type]
    result = store.ingest([str(tree)], options=options)
    assert result.checksums is not None
    return result, result.checksums


@pytest.mark.parametrize(
    ("place", "listed", "expected"),
    [
        ("from/tree/list", b"a/b", b"tree/a/b"),
        ("from/tree/list", b"./a//b", b"tree/a/b"),
        ("from/tree/sub/list", b"../a", b"tree/a"),
        ("from/list", b"tree/a", b"tree/a"),
        ("from/list", b"a", b"tree/a"),
        ("list", b"from/tree/a", b"tree/a"),
        ("else/list", b"a", b"tree/a"),
        ("else/list", b"tree/a", b"tree/a"),
        ("else/list", b"tree/inner", b"tree/tree/inner"),
        ("else/list", b"../../a", b"../../a"),
    ],
)
def test_paths_count_from_the_list_or_from_the_source(
    tmp_path: Path, place: str, listed: bytes, expected: bytes
) -> None:
    tree = tmp_path / "from" / "tree"
    (tree / "tree").mkdir(parents=True)
    (tree / "tree" / "inner").touch()
    resolver = Resolver(ChecksumFile(str(tmp_path / place)), [Source(os.fsencode(tree), b"tree")])
    assert resolver.resolve(listed) == expected
    assert resolver.resolve(os.fsencode(tree / "a")) == b"tree/a"


def test_with_several_sources_a_path_is_one_of_the_archive(tmp_path: Path) -> None:
    sources = [Source(os.fsencode(tmp_path / name), name.encode()) for name in ("one", "other")]
    resolver = Resolver(ChecksumFile(str(tmp_path / "else" / "list")), sources)
    assert resolver.resolve(b"other/a") == b"other/a"
    assert resolver.resolve(b"../one/a") == b"one/a"
    assert resolver.resolve(b"a") == b"a"


def test_comments_and_empty_lines_are_passed_over(make_store: MakeStore, tmp_path: Path, tree: Path) -> None:
    lines = lines_of(tree, "sha256")
    (tmp_path / "list").write_bytes(b"# a comment\n\n" + b"".join(lines))
    result, found = ingest(make_store(), tree, str(tmp_path / "list"))
    assert result.exit_code == 0
    assert found.counts == {"listed": len(lines), "checked": len(lines), "differing": 0, "missing": 0}


@pytest.mark.parametrize(
    ("text", "line", "algorithm"),
    [
        ("list", b"0" * 32, "md5"),
        ("list", b"0" * 40, "sha1"),
        ("list", b"0" * 64, ""),
        ("list", b"0" * 128, "sha512"),
        ("list", b"0" * 30, None),
        ("b3/sums.txt", b"0" * 64, ""),
        ("B3SUMS", b"0" * 64, "blake3"),
        ("x/manifest-sha256.txt", b"0" * 64, "sha256"),
        ("photos.blake3", b"0" * 64, "blake3"),
        ("photos.sha256", b"0" * 32, "md5"),
        ("SHA256:B3SUMS", b"0" * 64, "sha256"),
        ("blake3:list", b"0" * 64, "blake3"),
        ("blake3:list", b"0" * 32, None),
        ("list", b"SHA256 (file) = " + b"0" * 64, "sha256"),
        ("blake3:list", b"SHA256 (file) = " + b"0" * 64, None),
        ("http:list", b"0" * 40, "sha1"),
    ],
)
def test_the_algorithm_is_told_or_found_out(text: str, line: bytes, algorithm: str | None) -> None:
    listed = parse_line(line if b"(" in line else line + b"  file")
    assert listed is not None
    assert ChecksumFile.parse(text).algorithm_of(listed) == algorithm


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_a_digest_of_either_kind_fits(make_store: MakeStore, tmp_path: Path, tree: Path, algorithm: str) -> None:
    lines = lines_of(tree, algorithm)
    (tmp_path / "list").write_bytes(b"".join(lines))
    result, found = ingest(make_store(), tree, str(tmp_path / "list"))
    assert (result.exit_code, found.checked, found.differing) == (0, len(lines), 0)
    other = "sha256" if algorithm == "blake3" else "blake3"
    _, found = ingest(make_store("other"), tree, f"{other}:{tmp_path / 'list'}")
    assert (found.checked, found.differing) == (len(lines), len(lines))


@pytest.mark.parametrize("inline", [True, False])
def test_what_differs_is_marked_and_archived_all_the_same(
    make_store: MakeStore, tmp_path: Path, tree: Path, inline: bool
) -> None:
    contents = files_below(tree)
    victims = [path for path in sorted(contents) if b"file" in path][:3]
    (tree / "void").touch()
    wrong = {os.path.relpath(os.fsdecode(path), "tree") for path in victims} | {"void"}
    lines = [*lines_of(tree, "md5"), format_line(bytes(16), b"nowhere/at all"), format_line(bytes(16), b"empty")]
    flipped = [b"0" * 32 + line[32:] if line[34:-1].decode(errors="replace") in wrong else line for line in lines]
    (tmp_path / "list").write_bytes(b"".join(flipped))
    store = make_store()
    result, found = ingest(store, tree, str(tmp_path / "list"), inline=inline)
    assert result.exit_code == 3
    assert found.counts == {
        "listed": len(lines), "checked": len(lines) - 2, "differing": 4, "missing": 2
    }  # fmt: skip
    assert found.named_missing == [b"tree/empty", b"tree/nowhere/at all"]
    assert store.run().summary["checksums"] == found.counts
    assert store.run().summary["digests"] == ["blake3", "md5"]
    marked = {os.fsdecode(info.path): info.error for info in store.list("", recursive=True) if info.error}
    assert marked == {f"tree/{name}": "its MD5 differs from the list" for name in wrong}
    assert {os.fsdecode(path): reason for path, reason in result.tally.named_errors} == marked
    assert store.restore("", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert files_below(tmp_path / "out" / "tree") == contents | {b"tree/void": b""}


def test_a_bag_is_checked_by_its_manifest(make_store: MakeStore, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    (bag / "data").mkdir(parents=True)
    for name in ("plain", "per%cent", "new\nline"):
        (bag / "data" / name).write_text(name)
    lines = [
        f"{hashlib.sha512(name.encode()).hexdigest()} data/{name.replace('%', '%25').replace(chr(10), '%0A')}\n"
        for name in ("plain", "per%cent", "new\nline")
    ]
    (bag / "manifest-sha512.txt").write_text("".join(lines))
    for source in (bag, bag / "data"):
        result, found = ingest(make_store(f"store-{source.name}"), source, str(bag / "manifest-sha512.txt"))
        assert (result.exit_code, found.checked, found.missing) == (0, 3, 0)


def test_several_lists_are_compared_at_once(make_store: MakeStore, tmp_path: Path, tree: Path) -> None:
    for algorithm in ("md5", "sha1"):
        (tmp_path / algorithm).write_bytes(b"".join(lines_of(tree, algorithm)))
    (tmp_path / "again").write_bytes(format_line(bytes(64), b"file0"))
    result, found = ingest(make_store(), tree, *(str(tmp_path / name) for name in ("md5", "sha1", "again")))
    files = len(files_below(tree))
    assert found.counts == {"listed": 2 * files + 1, "checked": files, "differing": 1, "missing": 0}
    assert result.tally.named_errors == [(b"tree/file0", "its SHA-512 differs from the list")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a line", "line 1"),
        (b"\n00112233  short\n", "line 2"),
        (b"0" * 33 + b"  odd", "line 1"),
        (b"a" * (2 << 20), "line 1"),
        (None, "No such file"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_before_anything_is_read(
    make_store: MakeStore, tmp_path: Path, tree: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    store = make_store()
    with pytest.raises(UsageError, match=words):
        ingest(store, tree, str(tmp_path / "list"))
    assert not store.runs()


def test_the_command_says_what_differs(tmp_path: Path, tree: Path) -> None:
    lines = lines_of(tree, "blake3")
    (tmp_path / "B3SUMS").write_bytes(b"".join(lines[1:]) + format_line(bytes(32), b"gone"))
    subprocess.run([COMMAND, "init", tmp_path / "store"], capture_output=True, check=True)
    command = [COMMAND, "-s", tmp_path / "store", "ingest", tree, "--checksums", tmp_path / "B3SUMS"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "listed, but not archived: tree/gone\n" in done.stderr
    assert f"  checked {len(lines) - 1:>18}  of {len(lines)} listed; 0 differ, 1 not archived\n" in done.stdout
    (tmp_path / "B3SUMS").write_bytes(f"{bytes(32).hex()}  sub/../a\0b/../c\n{bytes(32).hex()}  x\0/\n".encode())
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (3, 2)
    assert done.stderr.endswith("listed, but not archived: tree/x\\x00\n"), done.stderr


@settings(max_examples=60, deadline=None)
@given(
    listed=st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.booleans()), max_size=60),
    asked=st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=30, unique=True),
)
def test_every_line_of_a_batch_is_found(listed: list[tuple[bytes, bool]], asked: list[bytes]) -> None:
    """However lines and batches are ordered, and wherever the parts of a list begin."""
    lines = [ListLine(path, "blake3", bytes(32) if good else b"x" * 32) for path, good in listed]
    rows, heap = np.zeros(len(asked), OBJECT_DTYPE), HeapBuilder()
    rows["path_at"], rows["path_len"] = heap.add_all(asked)
    rows["has_digest"] = 1
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as scratch,
    ):
        patch.setattr("manifests.checksums.SAMPLED", 4)
        with ChecksumList(iter(lines), Path(scratch), 64 << 20) as compared:
            wrong = compared.compare(Batch(rows, heap.getvalue()), ())
            assert {asked[at] for at in wrong} == {path for path, good in listed if path in asked and not good}
            assert compared.missing == sum(path not in asked for path, _ in listed)
            assert compared.checked == len({path for path, _ in listed} & set(asked))
            assert compared.missing_paths(100) == sorted(path for path, _ in listed if path not in asked)
