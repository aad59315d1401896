"""Erasure coding: parity of a pack's shards, and rows decoded from any k of k+m pieces.

Systematic Reed–Solomon over GF(2^8) with a Cauchy matrix (Blömer et al. 1995, as ISA-L's gf_gen_cauchy1_matrix makes
it: parity row i, column j is 1 / ((k + i) xor j)), polynomial 0x11d, position by position. The library is pyeclib with
isa_l_rs_cauchy. Shards hold bare code words; the library's 80-byte fragment headers are stripped, and put back for
decoding from those of an encoding of zeros of the same length, which they equal. The library takes `bytes` only, and
decodes wrong bytes from a bad piece without a word: whoever calls has checked the pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pyeclib.ec_iface import ECDriver, ECDriverError

from manifests import format as fmt
from manifests.config import ECScheme
from stages.errors import StageError, TooFewPieces

_HEADER = 80
#: Bytes of each shard that one call encodes: fragments of this length come from memory that malloc reuses, longer ones
#: from fresh pages (64 KiB: 4200 MB/s, 256 KiB: 690 MB/s).
STRIPE = 64 << 10


class ErasureCoder:
    """Encodes and decodes by one scheme. Not for several threads at once."""

    def __init__(self, scheme: ECScheme) -> None:
        self.scheme = scheme
        self._driver: Any = (
            ECDriver(k=scheme.k, m=scheme.m, ec_type="isa_l_rs_cauchy") if scheme.m else None  # m = 0: plain slices
        )
        self._headers = lru_cache(maxsize=8)(self._make_headers)

    def _make_headers(self, length: int) -> list[bytes]:
        fragments = self._driver.encode(bytes(self.scheme.k * length))
        if len(fragments[0]) != _HEADER + length:
            raise StageError(
                f"the erasure library turned {length} bytes into {len(fragments[0])}; 80 more are expected"
            )
        return [fragment[:_HEADER] for fragment in fragments]

    def parity(self, payload: memoryview, shard_length: int, target: memoryview) -> None:
        """Parity of `payload` (k × shard_length bytes, zero-padded) into `target` (m × shard_length bytes)."""
        k, m = self.scheme.k, self.scheme.m
        if not m:
            return
        for start in range(0, shard_length, STRIPE):
            end = min(start + STRIPE, shard_length)
            pieces = [payload[i * shard_length + start : i * shard_length + end] for i in range(k)]
            fragments = self._driver.encode(b"".join(pieces))
            for i in range(m):
                target[i * shard_length + start : i * shard_length + end] = memoryview(fragments[k + i])[_HEADER:]

    def decode(self, pieces: Mapping[int, bytes]) -> list[bytes]:
        """The k data pieces from any k pieces of one sub-range of a row, given by shard index; all of one length, a
        multiple of 64. Raises TooFewPieces."""
        k = self.scheme.k
        if any(not 0 <= index < self.scheme.total_shards for index in pieces):
            raise StageError(f"a scheme of {self.scheme} has no shards {sorted(pieces)}")
        if len(pieces) < k:
            raise TooFewPieces(f"{len(pieces)} of the {k} pieces needed are left")
        lengths = {len(piece) for piece in pieces.values()}
        length = lengths.pop()
        if lengths or not length or length % fmt.SHARD_ALIGN:
            raise StageError("pieces of a row must be of one length, a multiple of 64")
        if all(index in pieces for index in range(k)):
            return [bytes(pieces[index]) for index in range(k)]
        headers = self._headers(length)
        chosen = sorted(pieces)[:k]
        try:
            whole = self._driver.decode([headers[index] + pieces[index] for index in chosen])
        except ECDriverError as error:
            raise StageError(f"the erasure library failed: {error}") from error
        return [whole[index * length : (index + 1) * length] for index in range(k)]
