"""How blocks are cut: what is stored in one stays small enough to be read for a byte range."""

from __future__ import annotations

import random
from pathlib import Path

from manifests import format as fmt
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.packreader import ReadFigures
from stages.assemble import ByteRange
from stages.compress import BLOCK_LARGEST, BLOCK_TARGET

MIB = 1 << 20


def test_a_mebibyte_costs_at_most_three_also_where_compressibility_jumps(tmp_path: Path) -> None:
    chance = random.Random(5)
    pieces = []
    for _ in range(6):
        pieces.append(b"brick by brick, row by row, " * (5 * MIB // 28))
        pieces.append(chance.randbytes(chance.randint(3 * MIB, 6 * MIB)))
    data = b"".join(pieces)
    (tmp_path / "object").write_bytes(data)
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        store.ingest([str(tmp_path / "object")], options=IngestOptions(inline=True, workers=1))
        store.catalog.use("blocks")
        for block in store.catalog.rows("SELECT raw, stored, codec FROM blocks"):
            assert block["raw"] <= BLOCK_LARGEST + MIB
            assert block["stored"] <= 3 * BLOCK_TARGET // 2 or block["codec"] == fmt.CODEC_NONE
        most = 0
        for start in range(0, len(data) - MIB, 999_983):
            figures = ReadFigures()
            text = ByteRange(start, start + MIB - 1)
            assert b"".join(store.open_range("latest:object", text, figures)) == data[start : start + MIB]
            most = max(most, figures.bytes)
        assert most <= 3 * MIB
