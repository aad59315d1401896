"""Whether the manifests tell of a pack what its own directory tells: two sums over its blocks and its chunks.

DuckDB makes them for all packs in one pass, whoever has read a directory makes them of that. They are equal where the
rows are, in any order, and as good as always differ where any rows do. They are no proof against somebody who
calculates. What differs is looked at row by row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Odd numbers below 2³², by which columns are told apart.
_BLOCK_FACTORS = {"offset": 0x9E3779B1, "stored": 0x85EBCA77, "raw": 0xC2B2AE3D, "codec": 0x27D4EB2F}
_CHUNK_FACTORS = {"block": 0x9E3779B1, "offset": 0x85EBCA77, "length": 0xC2B2AE3D}
_OFFSET_MASK = (1 << 48) - 1
_ID_HEAD = 6


def _weighted(factors: dict[str, int]) -> str:
    """SQL for the sum of the columns of a row, each times its factor."""
    return " + ".join(f'("{name}"::HUGEINT & {_OFFSET_MASK}) * {factor}' for name, factor in factors.items())


def _sum(weight: str, factors: dict[str, int]) -> str:
    return f"(sum(({weight})::HUGEINT * ({_weighted(factors)}) % {1 << 64}) % {1 << 64})::UBIGINT"


#: SQL: a table of pack_id, block_sum and chunk_sum, out of the views blocks and stored_chunks.
SUMS = f"""
    SELECT coalesce(b.pack_id, c.pack_id) AS pack_id, coalesce(block_sum, 0) AS block_sum,
           coalesce(chunk_sum, 0) AS chunk_sum
    FROM (SELECT pack_id, {_sum("block + 1::HUGEINT", _BLOCK_FACTORS)} AS block_sum
          FROM (SELECT DISTINCT pack_id, block, "offset", stored, raw, codec FROM blocks) GROUP BY pack_id) b
    FULL JOIN (SELECT pack_id, {_sum(f"try_cast('0x' || hex(chunk_id)[1:{2 * _ID_HEAD}] AS UBIGINT)", _CHUNK_FACTORS)}
                   AS chunk_sum
               FROM (SELECT DISTINCT chunk_id, pack_id, block, "offset", length FROM stored_chunks) GROUP BY pack_id) c
      ON b.pack_id = c.pack_id
"""


def directory_sums(blocks: npt.NDArray[np.void], chunks: npt.NDArray[np.void]) -> tuple[int, int]:
    """(block_sum, chunk_sum) of a pack's directory: BLOCK_DTYPE and CHUNK_DTYPE rows."""
    heads = np.zeros((len(chunks), 8), np.uint8)
    heads[:, 8 - _ID_HEAD :] = chunks["id"][:, :_ID_HEAD]
    numbers = np.arange(1, len(blocks) + 1, dtype=np.uint64)
    return (
        _numpy_sum(numbers, blocks, _BLOCK_FACTORS),
        _numpy_sum(heads.view(">u8")[:, 0].astype(np.uint64), chunks, _CHUNK_FACTORS),
    )


def _numpy_sum(weights: npt.NDArray[np.uint64], rows: npt.NDArray[np.void], factors: dict[str, int]) -> int:
    """As `_sum`: NumPy's integers wrap around at 2⁶⁴."""
    total = np.zeros(len(rows), np.uint64)
    for name, factor in factors.items():
        total += (rows[name].astype(np.uint64) & np.uint64(_OFFSET_MASK)) * np.uint64(factor)
    return int((total * weights).sum(dtype=np.uint64))
