"""Lies: records, frames and manifests that are whole and say what can't be. Only our own errors come out, nothing wrong
is given back, and no lie about a length costs memory."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lz4.block
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests import format as fmt
from manifests.armour import mend_json, open_json, seal_json, seal_line
from manifests.backends import LocalDirectory
from manifests.config import ChunkerSpec, StoreConfig
from manifests.errors import CorruptRecord, DrystoneError, UnsupportedFormat
from manifests.finding import find_backends
from manifests.log import Log
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from stages.compress import Decoder
from stages.errors import DamagedBlock
from tests.forge import lie
from tests.sampling import one_in
from tests.trees import make_tree

INLINE = IngestOptions(inline=True, workers=1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree and a store of it, away from where its log says it is."""
    place = tmp_path_factory.mktemp("lies")
    tree = make_tree(place / "tree", 8, 12, 60_000)
    with FileStore.create([place / "store"], chunker=ChunkerSpec("fastcdc", 4096), cache=place / "cache") as store:
        store.ingest([str(tree)], options=INLINE)
    (place / "store").rename(place / "kept")
    return tree, place / "kept"


# --- records


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(inner, (*path, key))


def with_value(record: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.copy(record)
    changed[path[0]] = with_value(record[path[0]], path[1:], value)
    return changed


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nonsense_in_a_log_record_is_a_corrupt_record(
    kept: tuple[Path, Path], tmp_path: Path, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted((kept[1] / "backend-0/log").iterdir())))
    record, _ = open_json(path.read_bytes())
    lie = with_value(record, data.draw(st.sampled_from(list(paths_in(record)))), data.draw(json_values))
    shutil.rmtree(tmp_path / "log", ignore_errors=True)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / path.name).write_bytes(seal_line(json.dumps(lie).encode()))
    with suppress(UnsupportedFormat):
        log = Log.gather([(0, LocalDirectory(tmp_path))])
        assert len(log.records) + len(log.lost) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.soak
def test_nonsense_in_store_json_and_backend_json(kept: tuple[Path, Path], tmp_path: Path, data: st.DataObject) -> None:
    for name in ("store.json", "backend.json"):
        record, _ = open_json((kept[1] / "backend-0" / name).read_bytes())
        lie = with_value(record, data.draw(st.sampled_from(list(paths_in(record)))), data.draw(json_values))
        (tmp_path / name).write_bytes(seal_line(json.dumps(lie).encode()))
        with suppress(DrystoneError):
            if name == "store.json":
                StoreConfig.from_record(open_json((tmp_path / name).read_bytes())[0], name)
        with suppress(DrystoneError):
            find_backends(tmp_path)


def test_json_nested_without_end_is_a_corrupt_record() -> None:
    with pytest.raises(CorruptRecord):
        open_json(seal_line(b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}"))


@settings(max_examples=80, deadline=None)
@given(noise=st.lists(st.binary(max_size=700), max_size=4), cut=st.integers(0, 700))
def test_noise_never_mends_to_a_record(noise: list[bytes], cut: int) -> None:
    sealed = seal_json({"type": "log", "note": "x" * 300})
    broken = [sealed[:cut] + piece + sealed[cut + len(piece) :] for piece in noise if len(piece) > 60]
    with suppress(CorruptRecord):
        assert mend_json([*noise, *broken]) == {"type": "log", "note": "x" * 300}


# --- frames


def zstd_frame(size: int, body: bytes) -> bytes:
    """A frame that says it holds `size` bytes: magic, single segment with a u64 size, then `body`."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + body


PLAIN = b"stone " * 5000
PACKED = zstandard.ZstdCompressor(level=3).compress(PLAIN)


@pytest.mark.parametrize(
    ("codec", "stored", "raw_length"),
    [
        (fmt.CODEC_ZSTD, zstd_frame(1 << 62, b"\x01\x00\x00"), 1000),
        (fmt.CODEC_ZSTD, zstd_frame(fmt.BLOCK_MAX, b"\x01\x00\x00"), fmt.BLOCK_MAX),
        (fmt.CODEC_ZSTD, zstd_frame(1000, b"\x01\x00\x00"), 1000),
        (fmt.CODEC_ZSTD, PACKED + PACKED, 2 * len(PLAIN)),
        (fmt.CODEC_ZSTD, b"\x50\x2a\x4d\x18\xff\xff\xff\x7f" + PACKED, len(PLAIN)),
        (fmt.CODEC_ZSTD, PACKED, fmt.BLOCK_MAX),
        (fmt.CODEC_ZSTD, PACKED, 0xFFFFFFFF),
        (fmt.CODEC_LZ4, lz4.block.compress(PLAIN, store_size=False), fmt.BLOCK_MAX),
        (fmt.CODEC_LZ4, b"\xff" * 300, 60_000),
        (fmt.CODEC_LZ4, b"", 1),
        (fmt.CODEC_NONE, b"short", fmt.BLOCK_MAX),
    ],
)
def test_a_frame_that_lies_about_its_length_is_a_damaged_block(codec: int, stored: bytes, raw_length: int) -> None:
    with pytest.raises(DamagedBlock):
        Decoder().decode(codec, stored, raw_length)


# --- manifests


MOST64, MOST32 = (1 << 64) - 1, (1 << 32) - 1
LIES = [
    ("packs", "k", 0), ("packs", "k", 255), ("packs", "m", 255), ("packs", "payload", MOST64), ("packs", "payload", 0),
    ("packs", "payload", fmt.PACK_MAX), ("packs", "shard_length", MOST64), ("packs", "shard_length", 0),
    ("blocks", "offset", MOST64), ("blocks", "stored", MOST32), ("blocks", "stored", 0), ("blocks", "raw", MOST32),
    ("blocks", "raw", fmt.BLOCK_MAX), ("blocks", "raw", 0), ("blocks", "codec", 77), ("blocks", "block", 9999),
    ("chunks", "offset", MOST32), ("chunks", "length", MOST32), ("chunks", "length", 0), ("chunks", "block", MOST32),
    ("chunks", "pack_id", b"x"), ("packs", "pack_id", b"y" * 16), ("extents", "offset", 1 << 63),
    ("objects", "size", MOST64), ("objects", "content_kind", 9), ("objects", "content_id", b"short"),
    ("objects", "kind", "door"), ("objects", "kind", "socket"), ("objects", "content_kind", None),
    ("objects", "content_kind", 0), ("objects", "content_kind", 1), ("objects", "content_kind", 2),
    ("objects", "size", lambda old: old + (old > 0)), ("blocks", "raw", lambda old: old + 1),
    ("blocks", "codec", fmt.CODEC_LZ4), ("blocks", "stored", lambda old: old - 1),
    ("blocks", "offset", lambda old: old + 1), ("chunks", "offset", lambda old: old + 1),
    ("extents", "offset", lambda old: old + 1), ("extents", "offset", lambda old: old + (0 < old < 20_000)),
]  # fmt: skip


@pytest.mark.parametrize(("table", "column", "value"), one_in(6, LIES, several=True))
def test_manifests_that_lie(kept: tuple[Path, Path], tmp_path: Path, table: str, column: str, value: Any) -> None:
    """What a lie makes impossible fails by name, and `verify --data` gives the same names; what comes back is right."""
    tree, _ = kept
    shutil.copytree(kept[1], tmp_path / "store")
    lie(tmp_path / "store", table, column, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True, workers=1))
        assert all(reason for _, reason in result.failures)
        named = {path for path, _ in result.failures}
        verified = store.verify(data=True, inline=True, workers=1)
        assert {path for _, path in verified.lost_objects + verified.wrong_objects} == named
        assert result.exit_code == verified.exit_code == 3
        assert named
        store.verify(inline=True, workers=1)
        largest = max((path for path in tree.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        got = b""
        with suppress(DrystoneError):
            for piece in store.open_range(f"latest:tree/{largest.relative_to(tree)}"):
                got += piece
        assert largest.read_bytes().startswith(got)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10, "KiB"
    for path in tree.rglob("*"):
        out = tmp_path / "out" / path.relative_to(tree.parent)
        if os.fsencode(path.relative_to(tree.parent)) not in named:
            assert os.path.lexists(out), "neither restored nor named"
        if path.is_file() and not path.is_symlink() and out.exists():
            assert out.read_bytes() == path.read_bytes()
