"""Cutting bytes into content-defined chunks, and naming them.

FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems",
IEEE TPDS 2020) by pyfastcdc, minimum = average / 4, maximum = average × 4; or pieces of fixed length. A chunk's id is
the BLAKE3-256 of its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from pyfastcdc import FastCDC

from manifests import format as fmt
from manifests.config import ChunkerSpec

Lengths = list[int]


class Chunker:
    """Cuts buffers by `spec`. Reusable, keeps nothing between calls, not for several threads at once."""

    def __init__(self, spec: ChunkerSpec, seed: int) -> None:
        self.spec = spec
        self._cut = _ALGORITHMS[spec.algorithm](spec, seed)

    def cut(self, data: memoryview, final: bool) -> Lengths:
        """Lengths of the chunks of `data`, from its start. Unless `final`, the bytes behind the last sure boundary
        (at most `spec.maximum`) are left out: cutting again from there, with more data behind, gives the same chunks
        as cutting everything at once."""
        if final and len(data) <= self.spec.minimum:
            return [len(data)] if len(data) else []
        lengths = self._cut(data)
        if not final and lengths:
            lengths.pop()
        return lengths


def _fastcdc(spec: ChunkerSpec, seed: int) -> Callable[[memoryview], Lengths]:
    cutter = FastCDC(spec.size, min_size=spec.minimum, max_size=spec.maximum, seed=seed)
    return lambda data: [chunk.length for chunk in cutter.cut_buf(data)]


def _fixed(spec: ChunkerSpec, seed: int) -> Callable[[memoryview], Lengths]:
    def cut(data: memoryview) -> Lengths:
        whole, rest = divmod(len(data), spec.size)
        return [spec.size] * whole + ([rest] if rest else [])

    return cut


_ALGORITHMS: dict[str, Callable[[ChunkerSpec, int], Callable[[memoryview], Lengths]]] = {
    "fastcdc": _fastcdc,
    "fixed": _fixed,
}


def chunk_id(data: bytes | memoryview) -> bytes:
    """The id of a chunk: BLAKE3-256 of its plain bytes."""
    return blake3(data).digest()


def chunk_ids(data: memoryview, lengths: Lengths) -> list[bytes]:
    """Ids of chunks that lie one after the other in `data`."""
    ids, at = [], 0
    for length in lengths:
        ids.append(chunk_id(data[at : at + length]))
        at += length
    return ids


class ContentHasher:
    """Ids of one content while it goes by: the content id over its extents, and the digest over its bytes.

    Content id = BLAKE3(domain tag ‖ per extent: offset u64, length u32, chunk id ‖ size u64). The size comes last,
    because a stream's is known only then.
    """

    def __init__(self) -> None:
        self._extents: Any = blake3(fmt.CONTENT_DOMAIN)
        self._bytes: Any = blake3()

    def add_bytes(self, data: memoryview) -> None:
        """Add bytes of the content to its digest."""
        self._bytes.update(data)

    def add_extents(self, extents: npt.NDArray[np.void]) -> None:
        """Add extents to the content id: rows with the fields of EXTENT_DTYPE, of which others are left out."""
        hashed = np.empty(len(extents), fmt.EXTENT_DTYPE)
        for name in hashed.dtype.names or ():
            hashed[name] = extents[name]
        self._extents.update(hashed.tobytes())

    def content_id(self, size: int) -> bytes:
        self._extents.update(size.to_bytes(8, "little"))
        digest: bytes = self._extents.digest()
        return digest

    def digest(self) -> bytes:
        digest: bytes = self._bytes.digest()
        return digest
