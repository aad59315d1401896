"""Paths and extended attributes of any length: every command copes with many of them, and keeps to its memory."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.checksums import ChecksumList, ListLine
from manifests.columns import OBJECT_DTYPE, Batch, HeapBuilder
from manifests.config import ECScheme
from manifests.longcolumns import short_form_of
from manifests.longfields import SHORT, LongFields, read_fields, short_form
from manifests.tables import ROW_GROUP_BYTES, TableWriter
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.sampling import one_in
from tests.test_memory import peak_of

COMMAND = str(Path(sys.executable).with_name("drystone"))
MEBIBYTE = 1 << 20


def test_records_come_back_and_their_places_are_never_zero() -> None:
    records = [(b"p" * n, b"", b"x" * (n % 7), b"h" * 3) for n in (1, 1024, 300_000)]
    with LongFields() as fields:
        places = [fields.add(record) for record in records]
        assert min(places) > 0
        for place, record in [*zip(places, records, strict=True)][::-1]:
            assert fields.read(place) == read_fields(fields.fd, place) == record


@pytest.mark.parametrize("length", [0, 1, SHORT - 1, SHORT, SHORT + 1, 70_000])
def test_short_forms_are_the_same_in_sql_and_sort_like_fields(length: int) -> None:
    value, other = random.Random(length).randbytes(length), random.Random(7).randbytes(5000)
    query = f"SELECT {short_form_of('v')} FROM (SELECT ?::BLOB AS v)"
    assert duckdb.execute(query, [value]).fetchall() == [(short_form(value),)]
    assert duckdb.execute(query, [None]).fetchall() == [(None,)]
    assert (short_form(value) < short_form(other)) == (value < other)
    assert len(short_form(value)) <= SHORT + 32
    assert (short_form(value) == value) == (length <= SHORT)


def test_row_groups_hold_some_mebibytes_whatever_a_row_has(tmp_path: Path) -> None:
    writer = TableWriter("objects")
    for _ in range(20):
        writer.append({"row": np.arange(50, dtype=np.uint64), "xattrs": pa.array([bytes(60_000)] * 50, pa.binary())})
    assert writer.is_full
    _, pieces = writer.finish("x")
    (tmp_path / "file").write_bytes(b"".join(map(bytes, pieces)))
    metadata = pq.ParquetFile(tmp_path / "file").metadata
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(rows) == 1000
    assert max(rows) * 60_000 < ROW_GROUP_BYTES + 50 * 60_000


@pytest.fixture
def attributes() -> Iterator[Path]:
    """A directory on a file system whose files may have 60 KB of extended attributes."""
    for parent in ("/dev/shm", tempfile.gettempdir(), str(Path.cwd())):
        folder = Path(tempfile.mkdtemp(prefix="drystone-test-", dir=parent))
        try:
            os.setxattr(folder, "user.large", bytes(60_000))
        except OSError:
            shutil.rmtree(folder)
            continue
        yield folder
        shutil.rmtree(folder)
        return
    pytest.skip("no file system here takes 60 KB of extended attributes")


@pytest.fixture
def deep(tmp_path: Path, levels: int) -> Iterator[Path]:
    """A tree of many levels of 50 bytes, with many files at the bottom."""
    here = os.getcwd()
    os.mkdir(tmp_path / "deep")
    os.chdir(tmp_path / "deep")
    for level in range(levels):
        name = f"{level:050d}"
        os.mkdir(name)
        os.chdir(name)
    for number in range(400):
        Path(f"file{number}").write_bytes(b"%d" % number)
    os.link("file0", "linked")
    os.chdir(here)
    yield tmp_path / "deep"
    subprocess.run(["rm", "-rf", tmp_path / "deep", tmp_path / "out"], check=True)


def run(store: Path, *arguments: object, limit: int, code: int = 0) -> bytes:
    """What a command writes, which must not take more memory than `limit` MiB."""
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([COMMAND, "-s", store, *map(str, arguments)], stdout=out)
        peak = peak_of(process, code)
        assert peak < limit * MEBIBYTE, f"{arguments}: {peak // MEBIBYTE} MiB"
        out.seek(0)
        return out.read()


@pytest.mark.parametrize("count", one_in(2, [400, 2500]))  # limits of memory tell with many only
def test_files_with_large_attributes(attributes: Path, tmp_path: Path, count: int) -> None:
    tree, chance = attributes / "tree", random.Random(1)
    tree.mkdir()
    for number in range(count):
        (tree / f"{number}").write_bytes(b"%d" % number)
        os.setxattr(tree / f"{number}", "user.large", chance.randbytes(60_000))
    with FileStore.create([tmp_path / "store"], scheme=ECScheme(1, 0), cache=tmp_path / "cache") as made:
        made.ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
    store, least = tmp_path / "store", "--memory=400MiB"
    assert run(store, "ingest", tree, "-q", limit=600)
    run(store, "restore", "latest:tree/7", "--to", attributes / "one", "-q", least, limit=400)
    assert os.getxattr(attributes / "one" / "7", "user.large") == os.getxattr(tree / "7", "user.large")
    run(store, "restore", "--to", attributes / "out", "-q", least, limit=400)
    run(store, "compare", tree, "-q", "--memory=300MiB", limit=300)
    os.setxattr(attributes / "out" / "tree" / "8", "user.large", bytes(60_000))
    os.removexattr(attributes / "out" / "tree" / "9", "user.large")
    told = run(store, "compare", "latest:tree", attributes / "out" / "tree", "--memory=300MiB", limit=300, code=3)
    assert [line.split(maxsplit=2) for line in told.splitlines()[:2]] == [
        [b"changed", b"tree/8", b"extended attribute user.large differs"],
        [b"changed", b"tree/9", b"extended attribute user.large is missing"],
    ]
    assert len(run(store, "ls", "-R", limit=300).splitlines()) == count + 1
    run(store, "verify", "--data", "-q", limit=600)


@pytest.mark.parametrize("levels", one_in(2, [300, 1200]))
def test_a_deep_tree(deep: Path, tmp_path: Path, levels: int) -> None:
    with FileStore.create([tmp_path / "store"], scheme=ECScheme(1, 0), cache=tmp_path / "cache") as made:
        made.ingest([str(deep)], options=IngestOptions(inline=True, workers=1))
    store, bottom = tmp_path / "store", "deep/" + "/".join(f"{level:050d}" for level in range(levels))
    listed = run(store, "ls", "-R", limit=300).splitlines()
    assert len(listed) == 1 + levels + 401
    assert f"{bottom}/file399".encode() in listed
    digests = run(store, "digests", limit=300).splitlines()
    assert len(digests) == 401
    assert digests[-1].endswith(f"{bottom}/file399".encode()) or f"{bottom}/".encode() in digests[-1]
    run(store, "restore", "--to", tmp_path / "out", "-q", "--memory=400MiB", limit=400)
    run(store, "compare", "latest:deep", tmp_path / "out" / "deep", "--data", "-q", "--memory=300MiB", limit=300)
    run(store, "verify", "--data", "-q", limit=600)
    here = os.getcwd()
    os.chdir(tmp_path / "out")
    for part in bottom.split("/"):
        os.chdir(part)
    Path("file7").write_bytes(b"8")
    os.unlink("file9")
    os.unlink("linked")
    Path("extra").touch()
    os.chdir(here)
    command = ("compare", "latest:deep", tmp_path / "out" / "deep", "--data", "-q", "--memory=300MiB")
    told = {
        (verdict, path.removeprefix(bottom.encode()))
        for verdict, path, *_ in map(bytes.split, run(store, *command, limit=300, code=3).splitlines())
    }
    changed = {(b"changed", b"/file7"), (b"missing", b"/file9"), (b"missing", b"/linked"), (b"extra", b"/extra")}
    assert changed <= told
    assert told - changed <= {(b"changed", b""), (b"changed", b"/file0")}, "the directory's time, and the other name"
    assert run(store, "ingest", deep, "-q", limit=600)
    assert run(store, "cat", f"latest:{bottom}/file7", limit=300) == b"7"


def test_a_list_of_digests_with_long_paths(tmp_path: Path) -> None:
    paths = [b"a/" * 40_000 + b"%d" % number for number in range(3)]
    lines = [ListLine(path, "blake3", bytes(32)) for path in paths]
    rows, heap = np.zeros(2, OBJECT_DTYPE), HeapBuilder()
    rows["path_at"], rows["path_len"] = heap.add_all(paths[:2])
    rows["has_digest"], rows["digest"][1] = 1, 7
    with ChecksumList(iter(lines), tmp_path, 96 << 20) as listed:
        assert listed.compare(Batch(rows, heap.getvalue()), ()) == {1: ["blake3"]}
        assert (listed.checked, listed.missing) == (2, 1)
        assert listed.missing_paths(5) == [paths[2][:SHORT]]
