"""Schemas of the manifest tables; each column says in its metadata what it holds.

Ids are fixed-size binaries. `objects` is keyed by (run, row), `extents` by (content_id, offset), `chunks` by
(chunk_id, pack_id), `blocks` by (pack_id, block), `packs` by pack_id, `shards` by (pack_id, shard), `scrubs` by
(time, pack_id, shard), `tombstones` by (chunk_id, pack_id). Readers drop rows with equal keys.

Types are FORMAT.md's, which spells a dictionary of strings as string. `SCHEMAS`, as pyarrow has them, is made when it
is asked for: who only reads tables with DuckDB does without pyarrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    SCHEMAS: dict[str, Any]

#: Table → columns: name, type, what it holds.
COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    "objects": [
        ("run", "binary(16)", "run that archived the object"),
        ("row", "uint64", "number of the object within the run, in reading order"),
        ("path", "binary", "path below the run's root, raw bytes, '/' between parts"),
        ("kind", "dictionary(int8)", "file, directory, symlink, fifo, …"),
        ("size", "uint64", "length of the content in bytes"),
        ("content_kind", "uint8", "0 no content, 1 one chunk, 2 rows of the extents table"),
        ("content_id", "binary(32)", "chunk id (content_kind 1) or digest over the extents (2), null for none"),
        (
            "digest",
            "binary(32)",
            "BLAKE3-256 of the whole content, null for none, or where it is the content_id (content_kind 1)",
        ),
        ("md5", "binary(16)", "MD5 of the whole content, null where it was not asked for"),
        ("sha1", "binary(20)", "SHA-1 of the whole content, null where it was not asked for"),
        ("sha256", "binary(32)", "SHA-256 of the whole content, null where it was not asked for"),
        ("sha512", "binary(64)", "SHA-512 of the whole content, null where it was not asked for"),
        ("target", "binary", "target of a symlink, null for others"),
        ("mode", "uint32", "st_mode"),
        ("uid", "uint32", "owner"),
        ("gid", "uint32", "group"),
        ("user_name", "dictionary(int32)", "name of the owner on the source machine, null if none"),
        ("group_name", "dictionary(int32)", "name of the group on the source machine, null if none"),
        ("mtime_ns", "int64", "modification time, ns since 1970"),
        ("ctime_ns", "int64", "change time, ns since 1970"),
        ("device", "uint64", "st_dev"),
        ("inode", "uint64", "st_ino"),
        ("links", "uint32", "st_nlink: names that the object had, in the archive or not"),
        ("rdev", "uint64", "device number of a device node, null for others"),
        ("xattrs", "binary", "extended attributes, packed as below, null for none"),
        ("holes", "binary", "holes of a sparse file: offset u64 and length u64 of each, in order, null for none"),
        ("error", "string", "why the object is incomplete, null when it is whole"),
        ("clean", "bool", "the file was quiet while and 2 s before it was read, so stat tells whether it changed"),
        ("bucket", "string", "bucket that the object was put into, empty for none; null where a run archived it"),
        ("etag", "string", "tag as object stores have it: MD5 of the content in hexadecimal, null where not asked for"),
        ("content_type", "string", "media type that was told when the object was put, null for none"),
        ("metadata", "string", "what the user noted of the object, a JSON object of strings, null for nothing"),
        ("created_ns", "int64", "when the object was put, ns since 1970; null where a run archived it"),
        ("expires_ns", "int64", "from when on it is not found any more, ns since 1970, null for never"),
    ],
    "extents": [
        ("content_id", "binary(32)", "the content"),
        ("offset", "uint64", "place of the chunk in the content, bytes"),
        ("length", "uint32", "length of the chunk, bytes"),
        ("chunk_id", "binary(32)", "the chunk"),
    ],
    "chunks": [
        ("chunk_id", "binary(32)", "BLAKE3-256 of the plain bytes"),
        ("pack_id", "binary(16)", "pack that holds it"),
        ("block", "uint32", "block within the pack"),
        ("offset", "uint32", "place in the decompressed block, bytes"),
        ("length", "uint32", "length, bytes"),
    ],
    "blocks": [
        ("pack_id", "binary(16)", "pack"),
        ("block", "uint32", "number within the pack"),
        ("offset", "uint64", "place in the pack's payload, bytes"),
        ("stored", "uint32", "length as stored, bytes"),
        ("raw", "uint32", "length decompressed, bytes"),
        ("codec", "uint8", "0 none, 1 lz4 block, 2 zstd frame"),
    ],
    "packs": [
        ("pack_id", "binary(16)", "pack"),
        ("run", "binary(16)", "run that wrote it, or record of kind put or receive"),
        ("kind", "uint8", "1 data"),
        ("k", "uint8", "data shards"),
        ("m", "uint8", "parity shards"),
        ("payload", "uint64", "blocks and directory, bytes"),
        ("shard_length", "uint64", "data bytes of each shard"),
        ("directory_offset", "uint64", "place of the directory in the payload"),
        ("directory_stored", "uint32", "length of the directory as stored"),
        ("directory_raw", "uint32", "length of the directory decompressed"),
        ("directory_codec", "uint8", "codec of the directory"),
        ("blocks", "uint32", "number of blocks"),
        ("chunks", "uint32", "number of chunks"),
        ("raw", "uint64", "sum of the blocks' decompressed lengths"),
    ],
    "shards": [
        ("pack_id", "binary(16)", "pack"),
        ("shard", "uint8", "index: 0 to k−1 data, then parity"),
        ("backend", "uint16", "number of the backend where it was first put"),
        ("size", "uint64", "length of the shard file, bytes"),
        ("present", "bool", "whether it was written; false where the backend failed during the run"),
    ],
    "scrubs": [
        ("time", "int64", "when, ns since 1970"),
        ("pack_id", "binary(16)", "pack"),
        ("shard", "uint8", "index of the shard; null where the pack as a whole could not be read"),
        ("backend", "uint16", "number of the backend it was found on"),
        ("bad_cells", "uint32", "cells whose checksum failed"),
        ("missing", "bool", "the shard was not there"),
    ],
    "tombstones": [
        ("chunk_id", "binary(32)", "the chunk"),
        ("pack_id", "binary(16)", "pack whose copy of it is deleted"),
        ("length", "uint32", "length of the chunk, bytes"),
        ("time", "int64", "when, ns since 1970"),
    ],
}

#: Table → columns that files of earlier versions lack: they read as null.
LATER_COLUMNS: dict[str, tuple[str, ...]] = {
    "objects": (
        *("md5", "sha1", "sha256", "sha512"),
        *("bucket", "etag", "content_type", "metadata", "created_ns", "expires_ns"),
    ),
}

#: Columns that repeat, so that a dictionary pays; ids of chunks do not.
DICTIONARY_COLUMNS: dict[str, list[str]] = {
    "objects": [
        "run",
        "kind",
        "user_name",
        "group_name",
        "mode",
        "uid",
        "gid",
        "device",
        "content_kind",
        "error",
        "bucket",
        "content_type",
    ],
    "extents": ["content_id"],
    "chunks": ["pack_id"],
    "blocks": ["pack_id", "codec"],
    "packs": ["run"],
    "shards": ["pack_id"],
    "scrubs": ["pack_id"],
    "tombstones": ["pack_id"],
}

KEYS: dict[str, tuple[str, ...]] = {
    "objects": ("run", "row"),
    "extents": ("content_id", "offset"),
    "chunks": ("chunk_id", "pack_id"),
    "blocks": ("pack_id", "block"),
    "packs": ("pack_id",),
    "shards": ("pack_id", "shard"),
    "scrubs": ("time", "pack_id", "shard"),
    "tombstones": ("chunk_id", "pack_id"),
}

_BINARY = re.compile(r"binary\((\d+)\)")
_DICTIONARY = re.compile(r"dictionary\((\w+)\)")
_DUCKDB = {
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "int64": "BIGINT",
    "bool": "BOOLEAN",
}


def duckdb_type(kind: str) -> str:
    """What DuckDB calls the type of a column."""
    return _DUCKDB.get(kind, "BLOB" if kind.startswith("binary") else "VARCHAR")


def duckdb_columns(table: str) -> str:
    """The columns of a table as DuckDB declares them."""
    return ", ".join(f'"{name}" {duckdb_type(kind)}' for name, kind, _ in COLUMNS[table])


def misfit(table: str, found: Mapping[str, str]) -> str:
    """Why a file with these columns (name → type, as duckdb_type has it) is none of a table; empty where it is. This is
    the rule."""
    if not found:
        return "it is no Parquet file"
    optional = LATER_COLUMNS.get(table, ())
    for name, kind, _ in COLUMNS[table]:
        wanted = duckdb_type(kind)
        if name not in found:
            if name not in optional:
                return f"it has no column {name}, as each file of table {table} does"
        elif found[name] != wanted:
            return f"its column {name} is of type {found[name] or 'of its own'}, not {wanted}"
    return ""


def arrow_columns(schema: Any) -> dict[str, str]:
    """Name → type, as duckdb_type has it, of the columns of an Arrow schema; an empty type for what no table has."""
    return {field.name: _duckdb_name(field.type) for field in schema}


def _duckdb_name(kind: Any) -> str:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind):
        return "BLOB"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "VARCHAR"
    return _DUCKDB.get(str(kind), "")


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    if match := _BINARY.fullmatch(kind):
        return pa.binary(int(match[1]))
    if match := _DICTIONARY.fullmatch(kind):
        return pa.dictionary(pa.type_for_alias(match[1]), pa.string())
    return pa.type_for_alias(kind)


def _schemas() -> dict[str, Any]:
    import pyarrow as pa

    return {
        table: pa.schema([pa.field(name, _arrow_type(kind), metadata={"doc": doc}) for name, kind, doc in columns])
        for table, columns in COLUMNS.items()
    }


def __getattr__(name: str) -> object:
    if name != "SCHEMAS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = _schemas()
    return made
