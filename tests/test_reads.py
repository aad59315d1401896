"""What a read costs: a byte range reads the blocks that hold it, in one or two ranged reads each."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.config import ChunkerSpec
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.packreader import ReadFigures
from stages.assemble import ByteRange

SIZE = 24_000_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A store that holds one large object of repeats, zeros and noise, and the object's bytes."""
    place = tmp_path_factory.mktemp("large")
    chance = random.Random(1)
    noise = chance.randbytes(SIZE // 3)
    data = noise + bytes(SIZE // 6) + noise[: SIZE // 6] + b"brick by brick " * (SIZE // 45)
    (place / "object").write_bytes(data)
    with FileStore.create([place / "store"], chunker=ChunkerSpec("fastcdc", 64 << 10), cache=place / "cache") as store:
        store.ingest([str(place / "object")], options=IngestOptions(inline=True, workers=1))
    return place / "store", data


def read(store: FileStore, text: str, figures: ReadFigures | None = None) -> bytes:
    return b"".join(store.open_range("latest:object", ByteRange.parse(text), figures))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, SIZE - 30), length=st.integers(1, 3_000_000))
def test_ranges_are_right(
    large: tuple[Path, bytes], tmp_path_factory: pytest.TempPathFactory, start: int, length: int
) -> None:
    location, data = large
    with FileStore.open(location, cache=location.parent / "cache") as store:
        assert read(store, f"{start}-{start + length - 1}") == data[start : start + length]


def test_open_ends_and_suffixes(large: tuple[Path, bytes]) -> None:
    location, data = large
    with FileStore.open(location, cache=location.parent / "cache") as store:
        assert read(store, f"{len(data) - 7}-") == data[-7:]
        assert read(store, "-500") == data[-500:]
        assert read(store, "0-") == data


def test_a_range_reads_only_the_blocks_that_hold_it(large: tuple[Path, bytes]) -> None:
    location, data = large
    with FileStore.open(location, cache=location.parent / "cache") as store:
        for start in (0, 1_000_000, 5_000_001, SIZE // 3 + 17, SIZE - 1_100_000):
            figures = ReadFigures()
            assert read(store, f"{start}-{start + 999_999}", figures) == data[start : start + 1_000_000]
            assert figures.requests <= 8, "two blocks, each in two shards at most, and each shard's head once"
            assert figures.bytes <= 3 << 20


def test_a_range_with_two_backends_gone_reads_k_pieces(large: tuple[Path, bytes], tmp_path: Path) -> None:
    location, data = large
    copy = shutil.copytree(location, tmp_path / "copy")
    aside = location.rename(location.with_name("aside"))
    try:
        for index in (0, 1):  # the backends of the pack's first two data shards
            shard = next(copy.glob(f"*/packs/*/*.{index}"))
            shutil.rmtree(shard.parent.parent.parent)
        with FileStore.open(copy, cache=tmp_path / "cache") as store:
            figures = ReadFigures()
            for start in range(0, SIZE - 100_000, 1_500_000):
                assert read(store, f"{start}-{start + 99_999}", figures) == data[start : start + 100_000]
            assert figures.healed_cells
            assert figures.bytes <= 16 * 4 * (2 << 20)
    finally:
        aside.rename(location)


def test_cat_and_restore_write_the_same_range(large: tuple[Path, bytes], tmp_path: Path) -> None:
    location, data = large
    command = [str(Path(sys.executable).with_name("drystone")), "-s", str(location)]
    shown = subprocess.run([*command, "cat", "latest:object", "--range", "100-99999"], check=True, capture_output=True)
    assert shown.stdout == data[100:100_000]
    target = tmp_path / "part"
    subprocess.run(
        [*command, "restore", "latest:object", "--range", "100-99999", "--to", target], check=True, capture_output=True
    )
    assert target.read_bytes() == data[100:100_000]
    whole = subprocess.run([*command, "cat", "latest:object"], check=True, capture_output=True)
    assert whole.stdout == data
