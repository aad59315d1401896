"""Schemas of the manifest tables; each column says in its metadata what it holds.

Ids are fixed-size binaries. `objects` is keyed by (run, row), `extents` by (content_id, offset), `chunks` by
(chunk_id, pack_id), `blocks` by (pack_id, block), `packs` by pack_id, `shards` by (pack_id, shard), `scrubs` by
(time, pack_id, shard). Readers drop rows with equal keys.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

ID16 = pa.binary(16)
ID32 = pa.binary(32)

_COLUMNS: dict[str, list[tuple[str, Any, str]]] = {
    "objects": [
        ("run", ID16, "run that archived the object"),
        ("row", pa.uint64(), "number of the object within the run, in reading order"),
        ("path", pa.binary(), "path below the run's root, raw bytes, '/' between parts"),
        ("kind", pa.dictionary(pa.int8(), pa.string()), "file, directory, symlink, fifo, …"),
        ("size", pa.uint64(), "length of the content in bytes"),
        ("content_kind", pa.uint8(), "0 no content, 1 one chunk, 2 rows of the extents table"),
        ("content_id", ID32, "chunk id (content_kind 1) or digest over the extents (2), null for none"),
        (
            "digest",
            ID32,
            "BLAKE3-256 of the whole content, null for none, or where it is the content_id (content_kind 1)",
        ),
        ("md5", pa.binary(16), "MD5 of the whole content, null where it was not asked for"),
        ("sha1", pa.binary(20), "SHA-1 of the whole content, null where it was not asked for"),
        ("sha256", pa.binary(32), "SHA-256 of the whole content, null where it was not asked for"),
        ("sha512", pa.binary(64), "SHA-512 of the whole content, null where it was not asked for"),
        ("target", pa.binary(), "target of a symlink, null for others"),
        ("mode", pa.uint32(), "st_mode"),
        ("uid", pa.uint32(), "owner"),
        ("gid", pa.uint32(), "group"),
        ("user_name", pa.dictionary(pa.int32(), pa.string()), "name of the owner on the source machine, null if none"),
        ("group_name", pa.dictionary(pa.int32(), pa.string()), "name of the group on the source machine, null if none"),
        ("mtime_ns", pa.int64(), "modification time, ns since 1970"),
        ("ctime_ns", pa.int64(), "change time, ns since 1970"),
        ("device", pa.uint64(), "st_dev"),
        ("inode", pa.uint64(), "st_ino"),
        ("links", pa.uint32(), "st_nlink: names that the object had, in the archive or not"),
        ("rdev", pa.uint64(), "device number of a device node, null for others"),
        ("xattrs", pa.binary(), "extended attributes, packed as below, null for none"),
        ("holes", pa.binary(), "holes of a sparse file: offset u64 and length u64 of each, in order, null for none"),
        ("error", pa.string(), "why the object is incomplete, null when it is whole"),
        ("clean", pa.bool_(), "the file was quiet while and 2 s before it was read, so stat tells whether it changed"),
    ],
    "extents": [
        ("content_id", ID32, "the content"),
        ("offset", pa.uint64(), "place of the chunk in the content, bytes"),
        ("length", pa.uint32(), "length of the chunk, bytes"),
        ("chunk_id", ID32, "the chunk"),
    ],
    "chunks": [
        ("chunk_id", ID32, "BLAKE3-256 of the plain bytes"),
        ("pack_id", ID16, "pack that holds it"),
        ("block", pa.uint32(), "block within the pack"),
        ("offset", pa.uint32(), "place in the decompressed block, bytes"),
        ("length", pa.uint32(), "length, bytes"),
    ],
    "blocks": [
        ("pack_id", ID16, "pack"),
        ("block", pa.uint32(), "number within the pack"),
        ("offset", pa.uint64(), "place in the pack's payload, bytes"),
        ("stored", pa.uint32(), "length as stored, bytes"),
        ("raw", pa.uint32(), "length decompressed, bytes"),
        ("codec", pa.uint8(), "0 none, 1 lz4 block, 2 zstd frame"),
    ],
    "packs": [
        ("pack_id", ID16, "pack"),
        ("run", ID16, "run that wrote it"),
        ("kind", pa.uint8(), "1 data"),
        ("k", pa.uint8(), "data shards"),
        ("m", pa.uint8(), "parity shards"),
        ("payload", pa.uint64(), "blocks and directory, bytes"),
        ("shard_length", pa.uint64(), "data bytes of each shard"),
        ("directory_offset", pa.uint64(), "place of the directory in the payload"),
        ("directory_stored", pa.uint32(), "length of the directory as stored"),
        ("directory_raw", pa.uint32(), "length of the directory decompressed"),
        ("directory_codec", pa.uint8(), "codec of the directory"),
        ("blocks", pa.uint32(), "number of blocks"),
        ("chunks", pa.uint32(), "number of chunks"),
        ("raw", pa.uint64(), "sum of the blocks' decompressed lengths"),
    ],
    "shards": [
        ("pack_id", ID16, "pack"),
        ("shard", pa.uint8(), "index: 0 to k−1 data, then parity"),
        ("backend", pa.uint16(), "number of the backend where it was first put"),
        ("size", pa.uint64(), "length of the shard file, bytes"),
        ("present", pa.bool_(), "whether it was written; false where the backend failed during the run"),
    ],
    "scrubs": [
        ("time", pa.int64(), "when, ns since 1970"),
        ("pack_id", ID16, "pack"),
        ("shard", pa.uint8(), "index of the shard"),
        ("backend", pa.uint16(), "number of the backend it was found on"),
        ("bad_cells", pa.uint32(), "cells whose checksum failed"),
        ("missing", pa.bool_(), "the shard was not there"),
    ],
}

SCHEMAS: dict[str, Any] = {
    table: pa.schema([pa.field(name, kind, metadata={"doc": doc}) for name, kind, doc in columns])
    for table, columns in _COLUMNS.items()
}

#: Tables of which files of earlier versions have other columns: what they lack reads as null.
CHANGED_TABLES = ("objects",)

#: Columns that repeat, so that a dictionary pays; ids of chunks do not.
DICTIONARY_COLUMNS: dict[str, list[str]] = {
    "objects": ["run", "kind", "user_name", "group_name", "mode", "uid", "gid", "device", "content_kind", "error"],
    "extents": ["content_id"],
    "chunks": ["pack_id"],
    "blocks": ["pack_id", "codec"],
    "packs": ["run"],
    "shards": ["pack_id"],
    "scrubs": ["pack_id"],
}

KEYS: dict[str, tuple[str, ...]] = {
    "objects": ("run", "row"),
    "extents": ("content_id", "offset"),
    "chunks": ("chunk_id", "pack_id"),
    "blocks": ("pack_id", "block"),
    "packs": ("pack_id",),
    "shards": ("pack_id", "shard"),
    "scrubs": ("time", "pack_id", "shard"),
}
