"""manifests/FORMAT.md and the code say the same: byte tables, constants, columns, JSON keys, and the worked example.

The last part follows the document's recipe on a real store with DuckDB, plain file reads and zstd alone.

One file, though long: the parser of the document's tables and the example built from the code serve every test here.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import uuid
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from blake3 import blake3

from manifests import format as fmt
from manifests.armour import JSON_PARITY, open_json, seal_json, seal_record
from manifests.config import ChunkerSpec, CodecSpec, ECScheme, StoreConfig
from manifests.creation import create
from manifests.inflight import Inflight
from manifests.opening import open_store
from manifests.placement import Room, Seat, place
from manifests.replicas import Replicas
from manifests.schema import KEYS, SCHEMAS
from manifests.scratch import Scratch
from manifests.store import Members
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions, ingest
from stages.chunk import ContentHasher, chunk_id
from stages.compress import Encoder
from stages.erasure import ErasureCoder
from stages.pack import PackBuilder, SealedPack, encode_directory
from stages.scan import Source
from stages.shard import (
    ShardRecord,
    cell_table,
    data_offset,
    file_size,
    shard_key,
    shard_pieces,
    table_size,
)

DOCUMENT = Path(fmt.__file__).with_name("FORMAT.md")
Row = dict[str, str]

# --- reading the document --------------------------------------------------------------------------------------------


@cache
def text() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def section(title: str) -> str:
    """What stands under the heading `title`, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text(), re.M | re.S)
    assert found, f"FORMAT.md has no section {title!r}"
    return found[1]


def table(title: str, number: int = 0) -> list[Row]:
    """Table `number` of a section; backticks fall away."""
    tables = re.findall(r"(?:^\|.*\n)+", section(title), re.M)
    assert number < len(tables), f"section {title!r} has {len(tables)} tables"
    lines = [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")] for line in tables[number].splitlines()
    ]
    head, _, *body = lines
    assert body and all(len(row) == len(head) for row in body), f"a row of {title!r} has too many or too few cells"
    return [dict(zip(head, row, strict=True)) for row in body]


def fences(kind: str) -> list[str]:
    """Contents of the code blocks marked `kind`."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", text(), re.M | re.S)


def fence(kind: str) -> str:
    found = fences(kind)
    assert len(found) == 1, f"FORMAT.md has {len(found)} code blocks {kind!r}"
    return found[0]


def layout(title: str) -> list[tuple[str, int, int]]:
    """(name, offset, size) of a byte table."""
    return [(row["name"], int(row["offset"]), int(row["size"])) for row in table(title)]


def dtype_layout(dtype: np.dtype[Any]) -> list[tuple[str, int, int]]:
    assert dtype.fields is not None and dtype.names is not None
    return [(name, dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in dtype.names]


def struct_sizes(pattern: str) -> list[int]:
    """Sizes of the fields of a `struct` pattern without padding."""
    assert pattern.startswith("<")
    width = {"B": 1, "H": 2, "I": 4, "Q": 8}
    sizes: list[int] = []
    for count, code in re.findall(r"(\d*)([a-zA-Z])", pattern):
        sizes += [int(count or 1)] if code == "s" else [width[code]] * int(count or 1)
    return sizes


def assert_covers(fields: list[tuple[str, int, int]], size: int) -> None:
    """Fields lie one after the other, without gap or overlap, and fill `size` bytes."""
    at = 0
    for name, offset, length in fields:
        assert offset == at, f"{name} is said to lie at {offset}, but {at} bytes stand before it"
        at += length
    assert at == size


def hexdump(data: bytes) -> str:
    """As `hexdump -C` prints it, without folding equal lines."""
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        left, right = piece[:8].hex(" "), piece[8:].hex(" ")
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{at:08x}  {left:<23}  {right:<23}  |{shown}|\n")
    return "".join(lines)


# --- the worked example ----------------------------------------------------------------------------------------------

STORE_ID = uuid.UUID("01890000-0000-7000-8000-000000000001")
PACK_ID = uuid.UUID("01890000-0001-7000-8000-0000000000ab")
CHUNKS = (b"Dry stone walls ", b"need no mortar.\n")
CONFIG = StoreConfig(STORE_ID, 42, ECScheme(2, 1), ChunkerSpec("fixed", 64), CodecSpec("none"), 1 << 20)


@dataclass(frozen=True)
class Example:
    """The pack of the worked example."""

    sealed: SealedPack
    directory: bytes
    shards: list[bytes]
    data: list[bytes]


@cache
def example() -> Example:
    """One block of two chunks, stored with codec none, scheme 2+1."""
    scheme, raw = CONFIG.scheme, b"".join(CHUNKS)
    blocks, chunks = np.zeros(1, fmt.BLOCK_DTYPE), np.zeros(len(CHUNKS), fmt.CHUNK_DTYPE)
    blocks["stored"] = blocks["raw"] = len(raw)
    blocks["codec"] = fmt.CODEC_NONE
    for number, chunk in enumerate(CHUNKS):
        chunks[number]["id"] = np.frombuffer(chunk_id(chunk), np.uint8)
        chunks[number]["offset"], chunks[number]["length"] = sum(map(len, CHUNKS[:number])), len(chunk)
    builder = PackBuilder(1 << 10)
    builder.add(memoryview(raw), blocks, chunks)
    sealed = builder.seal(Encoder(CONFIG.codec), scheme)
    length = scheme.shard_length(sealed.length)
    parity = bytearray(scheme.m * length)
    ErasureCoder(scheme).parity(sealed.payload, length, memoryview(parity))
    whole = bytes(sealed.payload) + bytes(parity)
    data = [whole[index * length : (index + 1) * length] for index in range(scheme.total_shards)]
    shards = []
    for index, piece in enumerate(data):
        cells = cell_table(memoryview(piece))
        record = ShardRecord.of(STORE_ID, PACK_ID, index, scheme, sealed, length, cells)
        shards.append(b"".join(shard_pieces(record, cells, memoryview(piece))))
    return Example(sealed, encode_directory(blocks, chunks), shards, data)


def example_content_id() -> bytes:
    hasher, extents = ContentHasher(), np.zeros(len(CHUNKS), fmt.EXTENT_DTYPE)
    for number, chunk in enumerate(CHUNKS):
        extents[number]["offset"], extents[number]["length"] = sum(map(len, CHUNKS[:number])), len(chunk)
        extents[number]["id"] = np.frombuffer(chunk_id(chunk), np.uint8)
    hasher.add_extents(extents)
    return hasher.content_id(sum(map(len, CHUNKS)))


def example_blocks() -> dict[str, str]:
    """Code block → what it must hold."""
    made = example()
    blocks = {"hex shard 0": hexdump(made.shards[0]), "hex directory": hexdump(made.directory)}
    blocks |= {f"hex data of shard {index}": hexdump(made.data[index]) for index in (1, 2)}
    blocks["json store.json"] = seal_json(CONFIG.to_record()).decode()
    return blocks


@pytest.mark.parametrize("kind", sorted(example_blocks()))
def test_the_worked_example_shows_what_the_code_makes(kind: str) -> None:
    assert fence(kind) == example_blocks()[kind]


def test_the_explained_bytes_of_the_example_are_its_bytes() -> None:
    record, directory = table("The record of shard 0"), table("The directory")
    for rows, data in ((record, example().shards[0]), (directory, example().directory)):
        for row in rows:
            at, shown = int(row["offset"]), bytes.fromhex(row["bytes"])
            assert data[at : at + len(shown)] == shown, row
    explained = [(int(row["offset"]), len(bytes.fromhex(row["bytes"]))) for row in record]
    assert explained == [(offset, size) for _, offset, size in layout("Shard record")]


def test_the_ids_and_sums_of_the_example_are_right() -> None:
    values = {row["name"]: row["value"] for row in table("Its ids and lengths")}
    made = example()
    assert values == {
        "store id": str(STORE_ID),
        "pack id": str(PACK_ID),
        "chunk 0": chunk_id(CHUNKS[0]).hex(),
        "chunk 1": chunk_id(CHUNKS[1]).hex(),
        "content id": example_content_id().hex(),
        "payload": str(made.sealed.length),
        "shard length": str(CONFIG.scheme.shard_length(made.sealed.length)),
        "shard file": str(len(made.shards[0])),
        "key of shard 0": shard_key(PACK_ID, 0),
        "backends of shards 0, 1, 2": ", ".join(map(str, _placement(3))),
    }


def _placement(backends: int) -> list[int]:
    return place(CONFIG.scheme, [Seat(n, "") for n in range(backends)], PACK_ID, dict.fromkeys(range(backends), Room()))


def multiply(a: int, b: int) -> int:
    """Product in GF(2^8) modulo 0x11d, by shift and reduce."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def inverse(a: int) -> int:
    return next(b for b in range(1, 256) if multiply(a, b) == 1)


def test_the_lost_shard_of_the_example_decodes_by_the_formula_of_the_document() -> None:
    lost, left, parity = example().data
    c0, c1 = inverse(2 ^ 0), inverse(2 ^ 1)
    assert bytes(multiply(inverse(c0), p ^ multiply(c1, d)) for d, p in zip(left, parity, strict=True)) == lost
    for row in table("Decoding it"):
        at = int(row["position"])
        assert [int(row[name], 16) for name in ("d0", "d1", "p")] == [lost[at], left[at], parity[at]]


@pytest.mark.parametrize("scheme", [ECScheme(2, 1), ECScheme(4, 2)], ids=str)
def test_the_matrices_of_the_document_are_those_of_the_coder(scheme: ECScheme) -> None:
    """Position j of data piece j holds a one, so position j of parity piece i is the matrix entry."""
    payload = bytearray(scheme.k * 64)
    for j in range(scheme.k):
        payload[j * 64 + j] = 1
    parity = bytearray(scheme.m * 64)
    ErasureCoder(scheme).parity(memoryview(payload), 64, memoryview(parity))
    shown = [bytes.fromhex(line.partition(":")[2]) for line in fence(f"matrix {scheme}").splitlines()]
    assert shown == [bytes(parity[i * 64 : i * 64 + scheme.k]) for i in range(scheme.m)]


# --- constants and byte tables ---------------------------------------------------------------------------------------


def test_every_constant_has_its_value_in_the_document() -> None:
    shown = {row["name"]: ast.literal_eval(row["value"]) for row in table("Constants")}
    scalars = {
        name: value for name, value in vars(fmt).items() if name.isupper() and isinstance(value, int | bytes | str)
    }
    assert shown == scalars


def test_codecs_and_content_kinds_are_those_of_the_document() -> None:
    codecs = {row["name"]: int(row["code"]) for row in table("Codecs")}
    assert codecs == {"none": fmt.CODEC_NONE, "lz4": fmt.CODEC_LZ4, "zstd": fmt.CODEC_ZSTD}
    kinds = [int(row["content_kind"]) for row in table("Contents")]
    assert kinds == [fmt.CONTENT_NONE, fmt.CONTENT_CHUNK, fmt.CONTENT_EXTENTS]
    assert [row["kind"] for row in table("Kinds of objects")] == list(fmt.KINDS)


def test_the_armoured_record_is_laid_out_as_documented() -> None:
    fields = layout("Armoured record")
    assert_covers(fields, fmt.RECORD_SIZE)
    assert [size for _, _, size in fields] == [fmt.RECORD_BODY, fmt.RECORD_DIGEST, fmt.RECORD_PARITY, 1]
    body = bytes(range(fmt.RECORD_BODY))
    sealed = seal_record(body)
    assert sealed[: fmt.RECORD_BODY] == body
    assert sealed[160:192] == blake3(body).digest()
    assert sealed[255] == 0


def _syndromes(word: bytes, parity: int) -> list[int]:
    """The word as a polynomial, highest power first, at 2^0 … 2^(parity−1): all zero for a code word."""
    found, point = [], 1
    for _ in range(parity):
        value = 0
        for byte in word:
            value = multiply(value, point) ^ byte
        found.append(value)
        point = multiply(point, 2)
    return found


def test_the_armour_is_the_code_that_the_document_defines() -> None:
    assert _syndromes(example().shards[0][: fmt.RECORD_SIZE - 1], fmt.RECORD_PARITY) == [0] * fmt.RECORD_PARITY
    line, armour = seal_json(CONFIG.to_record()).splitlines()
    shown = ast.literal_eval(armour.decode())["armour"]
    assert set(shown) == {row["key"] for row in table("JSON records")}
    parity = _base85(shown["rs"])
    message = line + bytes.fromhex(shown["blake3"])
    assert len(line) + 98 + 40 * (-(-(len(line) + 32) // 223)) == len(seal_json(CONFIG.to_record()))
    assert shown["blake3"] == blake3(line).hexdigest()
    words = [message[at : at + 255 - JSON_PARITY] for at in range(0, len(message), 255 - JSON_PARITY)]
    assert len(words) == 2 and len(parity) == len(words) * JSON_PARITY
    for number, word in enumerate(words):
        code = word + parity[number * JSON_PARITY : (number + 1) * JSON_PARITY]
        assert _syndromes(code, JSON_PARITY) == [0] * JSON_PARITY


def _base85(shown: str) -> bytes:
    """By the alphabet in the document: five digits, the highest first, are four bytes, the highest first."""
    alphabet = fence("base85").strip()
    assert len(alphabet) == 85
    groups = (shown[at : at + 5] for at in range(0, len(shown), 5))
    numbers = (sum(alphabet.index(digit) * 85 ** (4 - place) for place, digit in enumerate(group)) for group in groups)
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def test_the_shard_record_is_laid_out_as_documented() -> None:
    fields = layout("Shard record")
    assert_covers(fields, fmt.SHARD_RECORD.size)
    assert [size for _, _, size in fields] == struct_sizes(fmt.SHARD_RECORD.format)


def test_the_fields_of_a_shard_record_hold_what_their_names_say() -> None:
    """All values differ, so two fields that were swapped would show."""
    scheme = ECScheme(200, 11)
    length = scheme.shard_length(0x1234567)
    record = ShardRecord(
        STORE_ID, PACK_ID, 9, scheme, 0x1234567, length, 0x5432, 0x98765, fmt.CODEC_ZSTD, b"0123456789abcdef"
    )
    sealed = record.seal()
    expected: dict[str, int | bytes] = {
        "magic": fmt.SHARD_MAGIC,
        "incompat": 0,
        "ro_compat": 0,
        "compat": 0,
        "store_id": STORE_ID.bytes,
        "pack_id": PACK_ID.bytes,
        "kind": fmt.PACK_KIND_DATA,
        "index": 9,
        "k": 200,
        "m": 11,
        "cell_size": fmt.CELL_SIZE,
        "payload": 0x1234567,
        "shard_length": length,
        "directory_stored": 0x5432,
        "directory_raw": 0x98765,
        "directory_codec": fmt.CODEC_ZSTD,
        "table_digest": b"0123456789abcdef",
    }
    fields = layout("Shard record")
    assert [name for name, _, _ in fields] == list(expected)
    for name, offset, size in fields:
        held = sealed[offset : offset + size]
        value = expected[name]
        assert (held if isinstance(value, bytes) else int.from_bytes(held, "little")) == value, name


def test_the_shard_file_is_laid_out_as_documented() -> None:
    rows = table("Shard file")
    for length in (64, fmt.CELL_SIZE, fmt.CELL_SIZE + 64, 8 << 20):
        names = {"L": length, "T": table_size(length)}
        at, places = 0, {}
        for row in rows:
            assert _evaluate(row["offset"], names) == at, row
            places.setdefault(row["name"], at)
            at += _evaluate(row["size"], names)
        assert at == file_size(length)
        assert places["data"] == data_offset(length)
    assert [row["name"] for row in rows] == ["record", "cell table", "data", "cell table", "record"]


def _evaluate(formula: str, names: dict[str, int]) -> int:
    """A sum of terms like `256`, `T` and `2T`."""
    total = 0
    for term in formula.split("+"):
        found = re.fullmatch(r"(\d*)([A-Z]?)", term.strip())
        assert found, formula
        total += int(found[1] or 1) * (names[found[2]] if found[2] else 1)
    return total


@pytest.mark.parametrize(
    ("title", "dtype"),
    [("BLOCK record", fmt.BLOCK_DTYPE), ("CHUNK record", fmt.CHUNK_DTYPE), ("EXTENT record", fmt.EXTENT_DTYPE)],
)
def test_array_records_are_laid_out_as_documented(title: str, dtype: np.dtype[Any]) -> None:
    assert layout(title) == dtype_layout(dtype)
    assert_covers(layout(title), dtype.itemsize)


def test_the_directory_head_is_laid_out_as_documented() -> None:
    fields = layout("Pack directory")
    assert_covers(fields, fmt.DIRECTORY_HEAD.size)
    assert [size for _, _, size in fields] == struct_sizes(fmt.DIRECTORY_HEAD.format)
    raw = encode_directory(np.zeros(3, fmt.BLOCK_DTYPE), np.zeros(7, fmt.CHUNK_DTYPE))
    held = {name: raw[offset : offset + size] for name, offset, size in fields}
    assert held["magic"] == fmt.DIRECTORY_MAGIC
    assert int.from_bytes(held["incompat"], "little") == 0
    assert int.from_bytes(held["blocks"], "little") == 3
    assert int.from_bytes(held["chunks"], "little") == 7


# --- manifest tables -------------------------------------------------------------------------------------------------


def _spelled(kind: Any) -> str:
    if pa.types.is_fixed_size_binary(kind):
        return f"binary({kind.byte_width})"
    return "string" if pa.types.is_dictionary(kind) else str(kind)


def test_the_tables_are_those_of_the_document() -> None:
    shown = {row["table"]: tuple(part.strip() for part in row["key"].split(",")) for row in table("Manifest tables")}
    assert shown == KEYS
    assert tuple(shown) == fmt.TABLES == tuple(SCHEMAS)


@pytest.mark.parametrize("name", fmt.TABLES)
def test_each_column_is_in_the_document_and_no_other(name: str) -> None:
    shown = [(row["column"], row["type"], row["meaning"]) for row in table(f"Table {name}")]
    made = [(field.name, _spelled(field.type), field.metadata[b"doc"].decode()) for field in SCHEMAS[name]]
    assert shown == made


# --- a real store ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealStore:
    """A store of three backends with one run, and the bytes of photos/cat.jpg that it archived."""

    root: Path
    members: Members
    content: bytes

    @property
    def first(self) -> Path:
        return self.root / "backend-0"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RealStore:
    place = tmp_path_factory.mktemp("format")
    content = np.random.default_rng(5).integers(0, 64, 300_000, np.uint8).tobytes() + bytes(100_000)
    photos = place / "photos"
    (photos / "small").mkdir(parents=True)
    (photos / "cat.jpg").write_bytes(content)
    (photos / "small" / "note").write_bytes(b"one chunk\n")
    (photos / "empty").touch()
    config = StoreConfig(
        uuid.uuid4(), 7, ECScheme(2, 1), ChunkerSpec("fixed", 64 << 10), CodecSpec("zstd", 3), 64 << 10
    )
    create(config, [place / "store"])
    members, _, state = open_store(place / "store")
    sources = (Source(os.fsencode(photos), b"photos"),)
    options = IngestOptions(inline=True, workers=1, tags={"a": "b"})
    ingest(members, state, Replicas(members, None, Scratch(None)), sources, options)
    (place / "store" / "backend-2").rename(place / "store" / "disk")
    with FileStore.open(place / "store", cache=place / "cache") as opened:
        opened.add_backend(place / "store" / "backend-3", domain="attic")
        opened.remove_backend(place / "store" / "backend-3")
        opened.put_object("key", io.BytesIO(b"an object"), bucket="b", metadata={"c": "d"}, ttl=3600)
        opened.write_chunk(chunk_id(b"a chunk"), b"a chunk")
        opened.delete_chunk(chunk_id(b"a chunk"))
        opened.delete_object("key", bucket="b")
        opened.verify()
    return RealStore(place / "store", members, content)


def keys_of(title: str, number: int = 0) -> set[str]:
    return {row["key"] for row in table(title, number)}


def record_at(path: Path) -> dict[str, Any]:
    return open_json(path.read_bytes())[0]


def test_json_records_have_the_keys_of_the_document(store: RealStore) -> None:
    log = {path.name.split(".")[1]: record_at(path) for path in sorted((store.first / "log").iterdir())}
    assert set(log) == {"init", "ingest", "backend", "move", "scrub", "put", "receive", "delete"}
    common = keys_of("Log records")
    written = set(record_at(store.first / "store.json"))
    assert written == keys_of("store.json") - {"etags", "origins"}
    assert "etags" in replace(CONFIG, etags=False).to_record()
    assert "origins" in CONFIG.copied_as(uuid.uuid4()).to_record()
    assert set(record_at(store.first / "backend.json")) == keys_of("backend.json")
    assert set(log["init"]) == common | {"backends", "index"}
    assert set(log["ingest"]) == common | {"run"}
    keys = keys_of("Records of kind init") - {"location_b64"}  # only where the path is not UTF-8
    assert {key for entry in log["init"]["backends"] for key in entry} == keys
    assert set(log["move"]) == common | {"places"}
    assert [set(entry) for entry in log["move"]["places"]] == [keys_of("Records of kind move") - {"location_b64"}]
    changes = [record_at(path) for path in (store.first / "log").glob("*.backend.json")]
    assert set().union(*changes) - common == keys_of("Records of kind backend")
    assert all(len(set(change) - common) == 1 for change in changes)
    assert set(log["scrub"]) == common | {"scrub"}
    assert set(log["scrub"]["scrub"]) == keys_of("Records of kind scrub")
    assert set(log["ingest"]["run"]) == keys_of("Records of kind ingest")
    for kind in ("put", "receive"):
        assert set(log[kind]) == common | {kind}
        assert set(log[kind][kind]) == keys_of("Records of kind put")
    assert set(log["delete"]) == common | {"objects", "bytes"}
    entries = [entry for table_entries in log["ingest"]["adds"].values() for entry in table_entries]
    assert {key for entry in entries for key in entry} == keys_of("Manifest files")
    for record in (log["init"], log["ingest"], record_at(store.first / "store.json")):
        assert set(record["flags"]) == {"incompat", "ro_compat", "compat"}


def test_the_records_of_a_copy_have_the_keys_of_the_document(store: RealStore, tmp_path: Path) -> None:
    shutil.copytree(store.first.parent, tmp_path / "copy")
    origin = record_at(store.first / "store.json")["store_id"]
    FileStore.open(tmp_path / "copy", cache=tmp_path / "cache", adopt_copy=True).close()
    first = tmp_path / "copy" / "backend-0"
    record = record_at(next((first / "log").glob("*.adopt.json")))
    assert set(record) == keys_of("Log records") | keys_of("Records of kind adopt")
    assert record["flags"]["incompat"] == fmt.INCOMPAT_ORIGINS
    keys = keys_of("Records of kind init") - {"location_b64"} | {"from", "copied"}
    assert {key for entry in record["identities"] for key in entry} == keys
    settings = record_at(first / "store.json")
    assert settings["flags"]["incompat"] == fmt.INCOMPAT_ORIGINS
    assert (settings["origins"], settings["store_id"]) == ([origin], record["store_id"])


def test_traces_of_a_run_have_the_keys_of_the_document(tmp_path: Path) -> None:
    run = uuid.uuid4()
    inflight = Inflight(create(CONFIG, [tmp_path / "other"]), run)
    inflight.begin()
    inflight.note_pack(PACK_ID)
    inflight.flush()
    folder = tmp_path / "other" / "backend-0" / "inflight" / str(run)
    assert set(record_at(folder / "marker.json")) == keys_of("Traces of a run", 0)
    assert set(record_at(folder / "journal-00000000.json")) == keys_of("Traces of a run", 1)


def test_every_file_of_a_store_is_in_the_tree_of_the_document(store: RealStore) -> None:
    tree = fence("tree")
    patterns = [line.split()[0] for line in tree.splitlines() if line.strip()]
    replaced = {"<id>": "[0-9a-f-]{36}", "<run>": "[0-9a-f-]{36}", "<pack>": "[0-9a-f-]{36}", "<kind>": "[a-z]+"}
    replaced |= {"<xy>": "[0-9a-f]{2}", "<i>": r"\d+", "<n>": r"\d+", "<table>": "[a-z]+", "<number>": r"\d{8}"}
    regexes = []
    for pattern in patterns:
        regex = re.escape(pattern)
        for name, meaning in replaced.items():
            regex = regex.replace(re.escape(name), meaning)
        regexes.append(regex)
    for path in store.first.rglob("*"):
        if path.is_file():
            key = str(path.relative_to(store.first))
            assert any(re.fullmatch(regex, key) for regex in regexes), f"{key} is not in the tree"


def _documented_queries(backend: Path) -> duckdb.DuckDBPyConnection:
    """A connection in which the document's SQL ran."""
    connection = duckdb.connect(":memory:")
    for block in fences("sql"):
        for statement in block.split(";\n"):
            if statement.strip():
                connection.execute(statement.replace("/mnt/backend-0", str(backend)))
    return connection


def _read_range(store: RealStore, key: str, seek: int, count: int) -> bytes:
    """A range of a shard from whichever backend holds the file."""
    path = next(path for backend in sorted(store.root.iterdir()) if (path := backend / key).exists())
    with open(path, "rb") as file:
        file.seek(seek)
        return file.read(count)


def test_a_file_is_restored_with_the_document_alone(store: RealStore) -> None:
    with _documented_queries(store.first) as connection:
        for key, size, digest in connection.execute("SELECT key, size, blake3 FROM files").fetchall():
            data = (store.first / key).read_bytes()
            assert (len(data), blake3(data).hexdigest()) == (size, digest)
        blocks: dict[tuple[str, int], bytes] = {}
        columns = "pack, block, codec, raw, key, seek, count"
        parts = connection.execute(f"SELECT {columns} FROM reads ORDER BY pack, block, shard").fetchall()
        shape = {(pack, block): (codec, raw) for pack, block, codec, raw, *_ in parts}
        for pack, block, _, _, key, seek, count in parts:
            blocks[pack, block] = blocks.get((pack, block), b"") + _read_range(store, key, int(seek), int(count))
        for place, (codec, raw) in shape.items():
            if codec == 2:
                blocks[place] = zstandard.ZstdDecompressor().decompress(blocks[place])
            assert len(blocks[place]) == raw
        assert any(codec == 2 for codec, _ in shape.values())
        size, digest = connection.execute("SELECT size, digest FROM wanted").fetchall()[0]
        restored = bytearray(size)
        names = "file_offset, chunk_id, place, length, pack, block"
        for offset, identity, at, length, pack, block in connection.execute(f"SELECT {names} FROM places").fetchall():
            chunk = blocks[pack, block][at : at + length]
            assert blake3(chunk).digest() == identity
            restored[offset : offset + length] = chunk
    assert bytes(restored) == store.content
    assert blake3(restored).digest() == digest


def test_the_documents_queries_take_nothing_from_the_names_of_folders(store: RealStore, tmp_path: Path) -> None:
    odd = tmp_path / "offset=0" / "length=1" / "chunk_id=x" / "json=1" / "size=0"
    shutil.copytree(store.first, odd)
    with _documented_queries(store.first) as plain, _documented_queries(odd) as below:
        for query in ("SELECT * FROM places ORDER BY file_offset", "SELECT * FROM wanted"):
            assert below.execute(query).fetchall() == plain.execute(query).fetchall()


def test_the_content_id_of_a_real_file_is_that_of_the_document(store: RealStore) -> None:
    """BLAKE3 of the tag, the extents, and the size at the end."""
    with _documented_queries(store.first) as connection:
        identity, size = connection.execute("SELECT content_id, size FROM wanted").fetchall()[0]
        rows = connection.execute(
            'SELECT "offset", length, chunk_id FROM extents WHERE content_id = ? ORDER BY 1', [identity]
        ).fetchall()
    assert len(rows) > 1
    parts = [offset.to_bytes(8, "little") + length.to_bytes(4, "little") + chunk for offset, length, chunk in rows]
    tag = b"drystone content v1\0"
    assert blake3(tag + b"".join(parts) + size.to_bytes(8, "little")).digest() == identity
