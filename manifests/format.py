"""Constants of the on-disk format; FORMAT.md defines them, and a test holds the two together.

All integers are little-endian. NumPy dtypes here are packed, so their bytes are the format. They are made when they are
asked for: to import NumPy takes longer than what many commands do.
"""

from __future__ import annotations

import struct
import typing

if typing.TYPE_CHECKING:
    import numpy as np

    BLOCK_DTYPE: np.dtype[np.void]
    CHUNK_DTYPE: np.dtype[np.void]
    EXTENT_DTYPE: np.dtype[np.void]

FORMAT_NAME = "drystone"

# Three flag words instead of a version: unknown incompat → refuse, ro_compat → read only, compat → ignore.
#: Shards may name one of the stores that this one is a copy of.
INCOMPAT_ORIGINS = 0x1
INCOMPAT_KNOWN = INCOMPAT_ORIGINS
#: Of shard records and pack directories.
PACK_INCOMPAT_KNOWN = 0x0
RO_COMPAT_KNOWN = 0x0
COMPAT_KNOWN = 0x0

CHUNK_MAX = 16 << 20
BLOCK_MAX = 64 << 20
PACK_MAX = 4 << 30
SHARDS_MAX = 255

CELL_SIZE = 16 << 10
CELL_DIGEST = 16
SHARD_ALIGN = 64
SLICE_SIZE = 1 << 20
SLICE_DIGEST = 16

# Armoured record: body, BLAKE3 of the body, Reed–Solomon parity of both, one zero byte.
RECORD_BODY = 160
RECORD_DIGEST = 32
RECORD_PARITY = 63
RECORD_SIZE = RECORD_BODY + RECORD_DIGEST + RECORD_PARITY + 1

SHARD_MAGIC = b"DRYSHARD"
PACK_KIND_DATA = 1
#: magic, incompat, ro_compat, compat, store id, pack id, kind, index, k, m, cell size, payload length, shard length,
#: directory stored length, directory raw length, directory codec, digest of the cell table
SHARD_RECORD = struct.Struct("<8sIII16s16sBBBBIQQIIB16s")

DIRECTORY_MAGIC = b"DRYPKDIR"
#: magic, incompat, number of blocks, number of chunks
DIRECTORY_HEAD = struct.Struct("<8sIII")

CODEC_NONE = 0
CODEC_LZ4 = 1
CODEC_ZSTD = 2

CONTENT_NONE = 0  # no content: a directory, a link, an empty file, an object that was not read
CONTENT_CHUNK = 1  # one chunk at offset 0: the content id is the chunk id, and there are no extents rows
CONTENT_EXTENTS = 2  # rows of the extents table
CONTENT_DOMAIN = b"drystone content v1\x00"

KINDS = ("file", "directory", "symlink", "fifo", "chardev", "blockdev", "socket", "stream", "unknown")

#: Whole-content digests and their lengths. BLAKE3 is always there, in the column `digest`; the others are columns of
#: their own name, filled where they were asked for.
DIGESTS = {"blake3": 32, "md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}

TABLES = ("objects", "extents", "chunks", "blocks", "packs", "shards", "scrubs", "tombstones")

_LAYOUTS: dict[str, list[typing.Any]] = {
    # cipher, key epoch, nonce and tag are reserved: zero
    "BLOCK_DTYPE": [
        ("offset", "<u8"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("codec", "u1"),
        ("cipher", "u1"),
        ("key_epoch", "<u4"),
        ("nonce", "u1", (24,)),
        ("tag", "u1", (16,)),
    ],
    "CHUNK_DTYPE": [("id", "u1", (32,)), ("block", "<u4"), ("offset", "<u4"), ("length", "<u4")],
    # what a content id is the hash of
    "EXTENT_DTYPE": [("offset", "<u8"), ("length", "<u4"), ("id", "u1", (32,))],
}


def __getattr__(name: str) -> object:
    if name not in _LAYOUTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import numpy as np

    made = globals()[name] = np.dtype(_LAYOUTS[name])
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAYOUTS})
