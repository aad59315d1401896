"""Corruptors of the files of a store, each named for the field that it breaks. All leave k good cells in each row and
one whole copy, or enough of several, of everything else: what they break must heal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from manifests import format as fmt
from manifests.armour import open_json, seal_json
from stages.shard import ShardRecord, data_offset, file_size

Corruptor = Callable[[Path], None]

#: Fields of a shard record with their places, as manifests/FORMAT.md lays them out.
RECORD_FIELDS = {
    "magic": 0, "incompat": 8, "ro_compat": 12, "compat": 16, "store_id": 20, "pack_id": 36, "kind": 52, "index": 53,
    "k": 54, "m": 55, "cell_size": 56, "payload": 60, "shard_length": 68, "directory_stored": 76, "directory_raw": 80,
    "directory_codec": 84, "table_digest": 85, "padding": 120, "digest": 160, "parity": 200, "zero": 255,
}  # fmt: skip


def flip(path: Path, at: int, count: int = 1) -> None:
    """Turn `count` bytes of a file over; `at` below 0 counts from its end."""
    data = bytearray(path.read_bytes())
    for place in range(at, at + count):
        data[place] ^= 0xA5
    path.write_bytes(data)


def lose(path: Path, at: int, count: int = 512) -> None:
    """Zero a sector."""
    data = bytearray(path.read_bytes())
    data[at : at + count] = bytes(len(data[at : at + count]))
    path.write_bytes(data)


def shards(store: Path, index: int | None = None) -> list[Path]:
    """Shard files, by index and pack; those of one index if it is given."""
    found = [path for path in store.glob("*/packs/*/*") if index is None or path.suffix == f".{index}"]
    return sorted(found, key=lambda path: (path.suffix, path.name))


def shard_length(path: Path) -> int:
    return ShardRecord.parse(path.read_bytes()[: fmt.RECORD_SIZE])[0].shard_length


def copies(store: Path, pattern: str) -> list[list[Path]]:
    """Files that lie on all backends, the copies of each, by backend."""
    names = sorted(
        {path.relative_to(path.parents[len(Path(pattern).parts) - 1]) for path in store.glob(f"*/{pattern}")}
    )
    return [sorted(store.glob(f"*/{name}")) for name in names]


def record_field(at: int) -> Corruptor:
    def corrupt(store: Path) -> None:
        for path in shards(store):
            flip(path, at)

    return corrupt


def both_records(count: int, indices: range) -> Corruptor:
    def corrupt(store: Path) -> None:
        for index in indices:
            for path in shards(store, index):
                flip(path, 10, count)
                flip(path, 10 - fmt.RECORD_SIZE, count)

    return corrupt


def in_each_shard(*places: Callable[[int], int]) -> Corruptor:
    """Lose the sectors that begin at `places` in record and tables, each computed from the length of the shard's data;
    what of a sector would lie in the data is spared, for no row would be left with k good cells."""

    def corrupt(store: Path) -> None:
        for path in shards(store):
            length = shard_length(path)
            data = range(data_offset(length), data_offset(length) + length)
            for place in places:
                start = place(length)
                lose(path, start, min(512, data.start - start) if start < data.start else 512)

    return corrupt


def sector_over_two_cells(store: Path) -> None:
    for index in (0, 1):
        for path in shards(store, index):
            lose(path, data_offset(shard_length(path)) + fmt.CELL_SIZE - 200)


def one_cell_each(store: Path) -> None:
    """A flipped byte in every shard file, each in another row where there are as many."""
    for path in shards(store):
        length = shard_length(path)
        index = int(path.suffix[1:])
        flip(path, data_offset(length) + (index * fmt.CELL_SIZE + 77) % length)


def cut(length_left: Callable[[int], int]) -> Corruptor:
    def corrupt(store: Path) -> None:
        for index in (1, 4):
            for path in shards(store, index):
                data = path.read_bytes()
                path.write_bytes(data[: length_left(shard_length(path))])

    return corrupt


def grow(store: Path) -> None:
    for path in shards(store):
        path.write_bytes(path.read_bytes() + b"more" * 1000)


def swap(store: Path) -> None:
    for one, other in zip(shards(store, 0), shards(store, 3), strict=True):
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)


def duplicate(store: Path) -> None:
    for one, other in zip(shards(store, 0), shards(store, 5), strict=True):
        shutil.copyfile(one, other)


def of_another_pack(store: Path) -> None:
    for index in (0, 1):
        paths = shards(store, index)
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)


def of_another_pack_without_records(store: Path) -> None:
    of_another_pack(store)
    both_records(60, range(2))(store)


def of_another_store(store: Path) -> None:
    for path in shards(store, 2):
        data = path.read_bytes()
        record, _ = ShardRecord.parse(data[: fmt.RECORD_SIZE])
        foreign = ShardRecord(**{**record.__dict__, "store_id": record.pack_id}).seal()
        path.write_bytes(foreign + data[fmt.RECORD_SIZE : -fmt.RECORD_SIZE] + foreign)


def zeroed(store: Path) -> None:
    for index in (0, 2):
        for path in shards(store, index):
            path.write_bytes(bytes(path.stat().st_size))


def emptied(store: Path) -> None:
    for path in shards(store, 3):
        path.write_bytes(b"")


def a_rotten_copy_before_a_good_one(store: Path) -> None:
    """Three shards are rotten through where they belong, and whole on another backend."""
    for index in (0, 1, 2):
        for path in shards(store, index):
            other = next(each for each in sorted(store.iterdir()) if each != path.parents[2])
            (other / "packs" / path.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(path, other / "packs" / path.parent.name / path.name)
            length = shard_length(path)
            lose(path, data_offset(length), length)


SHARD_CORRUPTORS: dict[str, Corruptor] = {
    **{f"record {name}": record_field(at) for name, at in RECORD_FIELDS.items()},
    **{f"second record {name}": record_field(at - fmt.RECORD_SIZE) for name, at in list(RECORD_FIELDS.items())[::5]},
    "record, beyond armour": in_each_shard(lambda length: 0),
    "second record, beyond armour": in_each_shard(lambda length: file_size(length) - 256),
    "both records of m shards": both_records(100, range(2)),
    "both records of all shards": both_records(40, range(6)),
    "both records, one sector": in_each_shard(lambda length: 0, lambda length: file_size(length) - 256),
    "table": in_each_shard(lambda length: fmt.RECORD_SIZE),
    "second table": in_each_shard(lambda length: data_offset(length) + length),
    "both tables": in_each_shard(lambda length: fmt.RECORD_SIZE, lambda length: data_offset(length) + length),
    "table and second record": in_each_shard(lambda length: 200, lambda length: file_size(length) - 260),
    "data, one cell of each shard": one_cell_each,
    "data, a sector over two cells": sector_over_two_cells,
    "length, cut in the record": cut(lambda length: 100),
    "length, cut in the table": cut(lambda length: fmt.RECORD_SIZE + 10),
    "length, cut in the data": cut(lambda length: data_offset(length) + length // 2),
    "length, cut in the second table": cut(lambda length: data_offset(length) + length + 3),
    "length, cut in the second record": cut(lambda length: file_size(length) - 1),
    "length, cut to nothing": emptied,
    "length, grown": grow,
    "index, swapped": swap,
    "index, duplicated": duplicate,
    "pack_id, another pack's shard": of_another_pack,
    "pack_id, another pack's shard without records": of_another_pack_without_records,
    "store_id, another store's shard": of_another_store,
    "everything, zeroed": zeroed,
    "everything, with a whole copy elsewhere": a_rotten_copy_before_a_good_one,
}


# --- records and manifests


def on_each_copy(pattern: str, change: Callable[[Path, int], None], left: int = 0) -> Corruptor:
    """Apply `change` (with the number of the copy) to the copies of files, all but the `left` last ones."""

    def corrupt(store: Path) -> None:
        for paths in copies(store, pattern):
            for number, path in enumerate(paths[: len(paths) - left]):
                change(path, number)

    return corrupt


def gone(path: Path, number: int) -> None:
    """Each copy in another way."""
    data = path.read_bytes()
    if number % 4 == 0:
        path.unlink()
    else:
        path.write_bytes((b"", bytes(len(data)), data[:100])[number % 4 - 1])


def a_word_elsewhere(path: Path, number: int) -> None:
    """Beyond armour, in another word in each copy."""
    flip(path, number % 2 * 230, 60)


def foreign_ids(path: Path, number: int) -> None:
    record, _ = open_json(path.read_bytes())
    other = "01890000-0000-7000-8000-000000000001"
    path.write_bytes(seal_json({**record, **{name: other for name in ("store_id", "id", "run") if name in record}}))


def both_identities(store: Path) -> None:
    for name in ("backend.json", "store.json"):
        lose(store / "backend-2" / name, 0, 4096)


def identity_of_another(store: Path) -> None:
    shutil.copyfile(store / "backend-0/backend.json", store / "backend-3/backend.json")


JSON_FILES = {"store.json": "store.json", "backend.json": "backend.json", "log": "log/*.json"}

RECORD_CORRUPTORS: dict[str, Corruptor] = {
    **{
        f"{name} {what}": on_each_copy(pattern, change, left)
        for name, pattern in JSON_FILES.items()
        for what, change, left in (
            ("line", lambda path, number: flip(path, 30 + number), 0),
            ("armour blake3", lambda path, number: flip(path, -path.stat().st_size // 3), 0),
            ("armour rs", lambda path, number: flip(path, -20), 0),
            ("beyond armour on all backends but one", lambda path, number: flip(path, 0, 200), 1),
            ("missing, emptied, zeroed, cut", gone, 1),
            ("of another store", foreign_ids, 5 if name == "backend.json" else 1),
        )
    },
    "backend.json, all beyond armour": on_each_copy("backend.json", lambda path, number: flip(path, 0, 200)),
    "backend.json and store.json of one backend": both_identities,
    "backend.json, that of another backend": identity_of_another,
    "store.json beyond armour, in each copy elsewhere": on_each_copy("store.json", a_word_elsewhere),
    "log beyond armour, in each copy elsewhere": on_each_copy("log/*.ingest.json", a_word_elsewhere),
    "manifest, a byte": on_each_copy("manifests/*/*", lambda path, number: flip(path, 50), 1),
    "manifest missing, emptied, zeroed, cut": on_each_copy("manifests/*/*", gone, 1),
    "manifest grown": on_each_copy("manifests/*/*", lambda path, number: path.write_bytes(path.read_bytes() + b"x"), 1),
}
