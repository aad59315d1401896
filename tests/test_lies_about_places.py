"""Manifests that place other bytes where an object's should be. Ids and digests judge, never a place: what comes back
is right, or it is named and nothing comes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import DrystoneError
from pipeline.filestore import FileStore
from pipeline.restore.run import RestoreRequest
from tests.forge import Row, forge_run, kept_store, lie

REQUEST = RestoreRequest("", inline=True, workers=1)
Change = Callable[[list[Row]], list[Row]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of small files of one length, which share blocks, and of larger ones of many chunks, and the tree."""
    place = tmp_path_factory.mktemp("places")
    tree = place / "tree"
    tree.mkdir()
    for number in range(6):
        (tree / f"small{number}").write_bytes(b"%06d" % number * 500)
        (tree / f"large{number}").write_bytes(b"".join(b"%d.%06d" % (number, line) for line in range(20_000)))
    with open(tree / "sparse", "wb") as file:
        file.write(b"head" * 10_000)
        file.truncate(1 << 20)
        file.seek(1 << 20)
        file.write(b"tail" * 10_000)
    (tree / "zeros").touch()
    with open(tree / "zeros", "ab") as file:
        file.truncate(1 << 20)
    return tree, kept_store(place, tree)


def named_like(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if name.encode() in row["path"]]


def exchanged(*columns: str, among: str) -> Change:
    """The rows of objects whose name has `among`, each with these columns of the next one."""

    def change(rows: list[Row]) -> list[Row]:
        some = named_like(rows, among)
        values = [{name: row[name] for name in columns} for row in some]
        for row, other in zip(some, values[1:] + values[:1], strict=True):
            row.update(other)
        return rows

    return change


def with_values(among: str, **values: Any) -> Change:
    def change(rows: list[Row]) -> list[Row]:
        for row in named_like(rows, among):
            row.update(values)
        return rows

    return change


def one_number(rows: list[Row]) -> list[Row]:
    for row in named_like(rows, "small"):
        row["row"] = 3
    return rows


def one_inode(rows: list[Row]) -> list[Row]:
    """All large files as names of one object, by what is not checked; their digests tell them apart."""
    some = named_like(rows, "large")
    for row in some:
        row.update(links=6, inode=77, content_id=some[0]["content_id"], mtime_ns=0)
    return rows


def swapped(offset: int) -> int:
    """The first two extents of each content exchanged."""
    return {0: 4096, 4096: 0}.get(offset, offset)


LIES: dict[str, Callable[[Path, Path], object]] = {
    "chunks lie at the place of another": lambda store, cache: lie(store, "chunks", "offset", 0),
    "extents in another order": lambda store, cache: lie(store, "extents", "offset", swapped),
    "contents exchanged": lambda store, cache: forge_run(store, cache, exchanged("content_id", among="large")),
    "no digests, and other extents": lambda store, cache: (
        lie(store, "extents", "offset", swapped), lie(store, "objects", "digest", None)
    ),
    "one number for several objects": lambda store, cache: forge_run(store, cache, one_number, renumber=False),
    "one inode for several objects": lambda store, cache: forge_run(store, cache, one_inode),
    "a longer file": lambda store, cache: forge_run(
        store, cache, with_values("small", size=1 << 16, holes=(3000).to_bytes(8, "little") * 2)
    ),
    "nothing but holes": lambda store, cache: forge_run(
        store, cache,
        with_values("sparse", content_kind=0, digest=None, holes=bytes(8) + (1_088_576).to_bytes(8, "little")),
    ),
    "a hole where there is data": lambda store, cache: forge_run(
        store, cache, with_values("sparse", holes=bytes(8) + (1_088_576).to_bytes(8, "little"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_what_comes_back_is_right_or_named(kept: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    tree, _ = kept
    shutil.copytree(kept[1], tmp_path / "store")
    LIES[name](tmp_path / "store", tmp_path / "cache")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.restore("latest", tmp_path / "out", request=REQUEST)
        named = {path for path, _ in result.failures}
        for path in tree.iterdir():
            out, label = tmp_path / "out" / "tree" / path.name, b"tree/" + path.name.encode()
            if label not in named:
                assert out.read_bytes() == path.read_bytes(), f"{path.name} is another, and nobody says so"
            got = b""
            try:
                for piece in store.open_range(f"latest:tree/{path.name}"):
                    got += piece
            except DrystoneError:
                continue
            assert got == path.read_bytes() or label in named
        verified = store.verify(data=True, inline=True, workers=1)
        assert {path for _, path in verified.lost_objects + verified.wrong_objects} == named
        assert (result.exit_code, verified.exit_code) == ((3, 3) if named else (0, 0))
        assert bool(named) == (name != "a hole where there is data")
