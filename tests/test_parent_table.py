"""The table in which paths of an earlier run are looked up."""

from __future__ import annotations

import os
import random
import tempfile

import numpy as np
import pytest

import stages.parent as parent
from manifests.columns import OBJECT_DTYPE, Batch, HeapBuilder
from stages.parent import Comparison, ParentTable, ParentWriter, path_hashes


def batch_of(files: list[tuple[bytes, int]]) -> Batch:
    """Rows of files: path, and the number that all else of a row follows from."""
    rows, heap = np.zeros(len(files), OBJECT_DTYPE), HeapBuilder()
    rows["path_at"], rows["path_len"] = heap.add_all([path for path, _ in files])
    for name in ("size", "mtime_ns", "ctime_ns", "inode"):
        rows[name] = [number for _, number in files]
    return Batch(rows, heap.getvalue())


def table_of(files: list[tuple[bytes, int]], block: int, comparison: Comparison) -> ParentTable:
    with tempfile.TemporaryFile() as file:
        writer = ParentWriter(file)
        for start in range(0, len(files), block):
            writer.add(batch_of(files[start : start + block]))
        writer.finish()
        return ParentTable(os.dup(file.fileno()), comparison)


def found(table: ParentTable, batch: Batch) -> dict[bytes, int]:
    """Path → size of the rows that the table holds for rows of the batch that are unchanged."""
    paths = batch.all_bytes("path")
    pairs = table.unchanged(batch, np.arange(len(paths)), paths)
    return {
        paths[number]: int(row["size"])
        for numbers, known in pairs
        for number, row in zip(numbers, known.rows, strict=True)
    }


def some_files(count: int, chance: random.Random) -> list[tuple[bytes, int]]:
    names = {chance.randbytes(chance.randint(1, 40)).replace(b"\0", b"/") for _ in range(count)}
    return [(name, number) for number, name in enumerate(sorted(names))]


def test_every_path_is_found_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several segments and blocks, of which few are kept."""
    monkeypatch.setattr(parent, "SEGMENT_ROWS", 100)
    monkeypatch.setattr(parent, "KEPT_BLOCKS", 2)
    monkeypatch.setattr(parent, "KEPT_INDEX", 0)
    chance = random.Random(1)
    files = some_files(1000, chance)
    table = table_of(files, 30, Comparison())
    try:
        chance.shuffle(files)
        for start in range(0, len(files), 64):
            part = files[start : start + 64]
            assert found(table, batch_of([*part, (b"not there", 1)])) == dict(part)
    finally:
        table.close()


@pytest.mark.parametrize("name", ["size", "mtime_ns", "ctime_ns", "inode"])
def test_what_differs_is_not_found(name: str) -> None:
    files = some_files(20, random.Random(2))
    ignoring = Comparison(inode=name != "inode", ctime=name != "ctime_ns")
    for comparison, wanted in ((Comparison(), 19), (ignoring, 19 if name in ("size", "mtime_ns") else 20)):
        table = table_of(files, 7, comparison)
        try:
            batch = batch_of(files)
            batch.rows[name][5] += 1
            assert len(found(table, batch)) == wanted
        finally:
            table.close()


def test_equal_hashes_of_different_paths_take_nothing_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "path_hashes", lambda batch: np.full(len(batch.rows), 7, np.uint64))
    files = [(name, 1) for name, _ in some_files(50, random.Random(3))]
    table = table_of(files, 10, Comparison())
    try:
        assert found(table, batch_of(files)).items() <= dict(files).items()
    finally:
        table.close()


def test_hashes_tell_paths_apart_wherever_they_lie() -> None:
    chance = random.Random(4)
    files = some_files(20_000, chance)
    files += [(bytes([byte]) * length, 0) for byte in (0, 1, 255) for length in range(1, 40)]
    paths = list({path for path, _ in files})
    hashes = path_hashes(batch_of([(path, 0) for path in paths]))
    assert len(np.unique(hashes)) == len(paths)
    chance.shuffle(files)
    again = path_hashes(batch_of(files))
    assert (
        dict(zip(paths, hashes.tolist(), strict=True)).items()
        >= {path: value for (path, _), value in zip(files, again.tolist(), strict=True)}.items()
    )
    assert len(path_hashes(batch_of([]))) == 0


def test_an_empty_table_holds_nothing() -> None:
    table = table_of([], 1, Comparison())
    try:
        assert found(table, batch_of([(b"a", 1)])) == {}
    finally:
        table.close()
