"""Packs and shards: directories, payloads, records and cell tables; whole, rotten and lying."""

from __future__ import annotations

import random
import struct
import uuid
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import format as fmt
from manifests.armour import open_record, seal_record
from manifests.config import CodecSpec, ECScheme
from manifests.errors import UnsupportedFormat
from stages.compress import Decoder, Encoder
from stages.errors import DamagedPack, DamagedShard
from stages.pack import PackBuilder, Rows, SealedPack, encode_directory, parse_directory
from stages.shard import (
    CellTable,
    ShardRecord,
    cell_count,
    cell_digest,
    cell_table,
    confirmed,
    data_offset,
    file_size,
    shard_key,
    shard_pieces,
    table_size,
)

# --- pack directories


def directory_of(block_raws: list[int], chunk_lengths: list[list[int]], seed: int = 0) -> tuple[Rows, Rows]:
    """Blocks of these raw lengths, and chunks laid out in them; all other fields are noise."""
    rng = np.random.default_rng(seed)
    blocks = np.frombuffer(rng.bytes(len(block_raws) * fmt.BLOCK_DTYPE.itemsize), fmt.BLOCK_DTYPE).copy()
    count = sum(map(len, chunk_lengths))
    chunks = np.frombuffer(rng.bytes(count * fmt.CHUNK_DTYPE.itemsize), fmt.CHUNK_DTYPE).copy()
    blocks["raw"] = block_raws
    at = 0
    for block, lengths in enumerate(chunk_lengths):
        offset = 0
        for length in lengths:
            chunks["block"][at], chunks["offset"][at], chunks["length"][at] = block, offset, length
            offset += length
            at += 1
    return blocks, chunks


chunk_lengths = st.lists(st.lists(st.integers(1, 5000), max_size=6), max_size=6)


@settings(max_examples=80, deadline=None)
@given(lengths=chunk_lengths, seed=st.integers(0, 1000))
def test_a_directory_parses_to_what_was_encoded(lengths: list[list[int]], seed: int) -> None:
    blocks, chunks = directory_of([sum(block) for block in lengths], lengths, seed)
    raw = encode_directory(blocks, chunks)
    for form in (raw, memoryview(raw), memoryview(bytearray(raw))):
        parsed = parse_directory(form)
        assert parsed[0].tobytes() == blocks.tobytes()
        assert parsed[1].tobytes() == chunks.tobytes()


def test_a_directory_has_the_layout_of_the_format() -> None:
    blocks, chunks = directory_of([300], [[100, 200]])
    raw = encode_directory(blocks, chunks)
    assert raw[:20] == b"DRYPKDIR" + struct.pack("<III", 0, 1, 2)
    assert len(raw) == 20 + 62 + 2 * 44
    assert raw[20 + 12 : 20 + 16] == struct.pack("<I", 300)
    assert raw[82 : 82 + 32] == chunks["id"][0].tobytes()
    assert raw[82 + 44 + 32 :] == struct.pack("<III", 0, 100, 200)


def parse_or_refuse(raw: bytes) -> None:
    """A directory parses to places inside its blocks, or raises DamagedPack; nothing else."""
    try:
        blocks, chunks = parse_directory(raw)
    except DamagedPack:
        return
    assert encode_directory(blocks, chunks) == raw
    for chunk in chunks:
        assert int(chunk["offset"]) + int(chunk["length"]) <= int(blocks["raw"][int(chunk["block"])])


@settings(max_examples=200, deadline=None)
@given(
    lengths=chunk_lengths,
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), max_size=4),
    cut=st.integers(0, 40),
    grown=st.binary(max_size=70),
)
def test_a_damaged_directory_raises_nothing_but_damaged_pack(
    lengths: list[list[int]], edits: list[tuple[int, bytes]], cut: int, grown: bytes
) -> None:
    raw = bytearray(encode_directory(*directory_of([sum(block) for block in lengths], lengths)))
    for at, value in edits:
        at %= len(raw)
        raw[at : at + len(value)] = value[: len(raw) - at]
    parse_or_refuse(bytes(raw))
    parse_or_refuse(bytes(raw[: len(raw) - cut]))
    parse_or_refuse(bytes(raw + grown))


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: b"DRYPKDIR\0\0\0\0" + tail)))
def test_noise_instead_of_a_directory_raises_nothing_but_damaged_pack(raw: bytes) -> None:
    parse_or_refuse(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block", 2),
        ("block", 0xFFFFFFFF),
        ("offset", 201),
        ("length", 301),
        ("offset", 0xFFFFFFFF),
        ("length", 1 << 31),
    ],
)
def test_a_chunk_outside_its_block_is_refused(field: str, value: int) -> None:
    blocks, chunks = directory_of([300, 300], [[100, 200], [300]])
    parse_directory(encode_directory(blocks, chunks))
    chunks[field][1] = value
    with pytest.raises(DamagedPack):
        parse_directory(encode_directory(blocks, chunks))


@pytest.mark.parametrize("head", [b"DRYPKDIX" + bytes(12), b"DRYPKDIR" + struct.pack("<III", 1, 0, 0)])
def test_another_magic_or_an_unknown_flag_is_refused(head: bytes) -> None:
    with pytest.raises(DamagedPack):
        parse_directory(head)


@pytest.mark.parametrize("counts", [(1, 0), (0, 1), (0xFFFFFFFF, 0xFFFFFFFF), (2, 1)])
def test_a_head_that_promises_other_counts_is_refused(counts: tuple[int, int]) -> None:
    raw = encode_directory(*directory_of([300], [[300]]))
    with pytest.raises(DamagedPack):
        parse_directory(b"DRYPKDIR" + struct.pack("<III", 0, *counts) + raw[20:])


# --- packs

ENCODER = Encoder(CodecSpec())
SCHEMES = ["1+0", "1+2", "3+0", "4+2", "10+4"]


def slot_of(seed: int, block_lengths: list[int]) -> tuple[bytes, Rows, Rows]:
    """A slot of stored blocks, two chunks each, as a compressor hands it over."""
    data = np.random.default_rng(seed).bytes(sum(block_lengths))
    halves = [[length // 2, length - length // 2] for length in block_lengths]
    blocks, chunks = directory_of(block_lengths, halves, seed)
    blocks["stored"] = block_lengths
    blocks["codec"] = fmt.CODEC_NONE
    blocks["offset"] = np.cumsum([0, *block_lengths[:-1]])
    return data, blocks, chunks


def check_pack(sealed: SealedPack, scheme: ECScheme, slots: list[tuple[bytes, Rows, Rows]]) -> None:
    payload = bytes(sealed.payload)
    assert len(payload) == scheme.k * scheme.shard_length(sealed.length)
    assert payload[sealed.length :] == bytes(len(payload) - sealed.length), "padding is not zero"
    body = b"".join(data for data, _, _ in slots)
    assert payload[: len(body)] == body
    assert sealed.directory_offset == len(body)
    assert sealed.length == sealed.directory_offset + sealed.directory_stored

    stored = payload[sealed.directory_offset : sealed.length]
    raw = bytes(Decoder().decode(sealed.directory_codec, stored, sealed.directory_raw))
    blocks, chunks = parse_directory(raw)
    assert blocks.tobytes() == sealed.blocks.tobytes()
    assert chunks.tobytes() == sealed.chunks.tobytes()
    assert len(blocks) == sum(len(rows) for _, rows, _ in slots)
    found = [
        payload[int(blocks["offset"][c["block"]]) + int(c["offset"]) :][: int(c["length"])] for c in chunks
    ]  # blocks here are stored as they are, so a chunk can be cut from the payload
    wanted = [
        data[int(rows["offset"][c["block"]]) + int(c["offset"]) :][: int(c["length"])]
        for data, rows, places in slots
        for c in places
    ]
    assert found == wanted
    assert chunks["id"].tobytes() == b"".join(places["id"].tobytes() for _, _, places in slots)


@pytest.mark.parametrize("capacity", [1, 5000, 1 << 20])
@pytest.mark.parametrize("text", SCHEMES)
def test_packs_sealed_one_after_the_other_share_nothing(text: str, capacity: int) -> None:
    """Large packs before small ones, so that what a reused buffer held would show in the padding."""
    scheme, builder = ECScheme.parse(text), PackBuilder(capacity)
    packs = [[[40_000, 3, 70_001], [9000]], [[5]], [[1, 2, 3], [4], [5000]], [[200_000]], [[64]]]
    for number, pack in enumerate(packs):
        slots = [slot_of(100 * number + i, lengths) for i, lengths in enumerate(pack)]
        for i, (data, blocks, chunks) in enumerate(slots):
            builder.add(memoryview(data + b"behind the blocks"), blocks, chunks)
            assert builder.fill == sum(len(body) for body, _, _ in slots[: i + 1])
        sealed = builder.seal(ENCODER, scheme)
        assert builder.fill == 0
        check_pack(sealed, scheme, slots)
        sealed.payload.release()


def test_adding_to_a_pack_leaves_the_callers_rows_alone() -> None:
    builder = PackBuilder(1000)
    data, blocks, chunks = slot_of(1, [100, 200])
    before = blocks.tobytes(), chunks.tobytes()
    for _ in range(3):
        builder.add(memoryview(data), blocks, chunks)
    assert (blocks.tobytes(), chunks.tobytes()) == before


# --- shard files

STORE, PACK = uuid.UUID(int=0x1234 << 64), uuid.UUID("0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeee5f")
PAYLOAD = 300_001
SCHEME = ECScheme(4, 2)
LENGTH = SCHEME.shard_length(PAYLOAD)
DATA = np.random.default_rng(2).bytes(LENGTH)
TABLE = cell_table(memoryview(DATA))
RECORD = ShardRecord(STORE, PACK, 5, SCHEME, PAYLOAD, LENGTH, 1000, 4000, fmt.CODEC_ZSTD, cell_digest(TABLE))
SEALED = RECORD.seal()
FIELDS = [
    *("magic", "incompat", "ro_compat", "compat", "store", "pack", "kind", "index", "k", "m", "cell"),
    *("payload", "length", "stored", "raw", "codec", "table"),
]


def sealed_with(**changes: int | bytes) -> bytes:
    """An honestly armoured record of which these fields lie."""
    values = dict(zip(FIELDS, fmt.SHARD_RECORD.unpack_from(open_record(SEALED)[0]), strict=True))
    assert changes.keys() <= values.keys()
    return seal_record(fmt.SHARD_RECORD.pack(*(values | changes).values()))


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 200),
    m=st.integers(0, 55),
    payload=st.integers(0, fmt.PACK_MAX),
    data=st.data(),
)
def test_a_shard_record_parses_to_what_was_sealed(k: int, m: int, payload: int, data: st.DataObject) -> None:
    scheme = ECScheme(k, m)
    record = ShardRecord(
        data.draw(st.uuids()),
        data.draw(st.uuids()),
        data.draw(st.integers(0, k + m - 1)),
        scheme,
        payload,
        scheme.shard_length(payload),
        data.draw(st.integers(0, payload)),
        data.draw(st.integers(0, fmt.BLOCK_MAX)),
        data.draw(st.sampled_from([fmt.CODEC_NONE, fmt.CODEC_LZ4, fmt.CODEC_ZSTD])),
        data.draw(st.binary(min_size=16, max_size=16)),
    )
    sealed = record.seal()
    assert len(sealed) == fmt.RECORD_SIZE == 256
    assert ShardRecord.parse(sealed) == (record, False)
    assert record.seal() == sealed
    assert record.directory_offset + record.directory_stored == record.payload


def test_the_record_begins_with_its_magic_and_the_store() -> None:
    assert SEALED[:8] == b"DRYSHARD"
    assert SEALED[20:36] == STORE.bytes
    assert SEALED[36:52] == PACK.bytes


@settings(max_examples=40, deadline=None)
@given(rot=st.dictionaries(st.integers(0, 255), st.integers(1, 255), min_size=1, max_size=31))
def test_up_to_31_wrong_bytes_heal(rot: dict[int, int]) -> None:
    rotten = bytearray(SEALED)
    for at, flip in rot.items():
        rotten[at] ^= flip
    record, healed = ShardRecord.parse(bytes(rotten))
    assert record == RECORD
    assert healed == (min(rot) < fmt.RECORD_BODY + fmt.RECORD_DIGEST)


@pytest.mark.parametrize("start", [0, 20, 100, 140, 161, 193, 224])
def test_a_burst_of_31_bytes_heals_wherever_it_strikes(start: int) -> None:
    for burst in (bytes(31), b"\xff" * 31, random.Random(start).randbytes(31)):
        rotten = SEALED[:start] + burst + SEALED[start + 31 :]
        assert ShardRecord.parse(rotten)[0] == RECORD


@settings(max_examples=40, deadline=None)
@given(count=st.integers(32, 256), choose=st.randoms(use_true_random=False))
def test_beyond_31_wrong_bytes_a_record_is_refused_but_never_wrong(count: int, choose: random.Random) -> None:
    rotten = bytearray(SEALED)
    for at in choose.sample(range(256), count):
        rotten[at] ^= choose.randrange(1, 256)
    try:
        record, _ = ShardRecord.parse(bytes(rotten))
    except DamagedShard:
        return
    assert record == RECORD  # all the rot lay in the parity


@pytest.mark.parametrize("count", [32, 40, 100])
def test_a_record_with_too_much_rot_in_its_body_is_refused(count: int) -> None:
    rotten = bytearray(SEALED)
    for at in range(count):
        rotten[at] ^= 1 + at
    with pytest.raises(DamagedShard):
        ShardRecord.parse(bytes(rotten))


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.binary(max_size=600), st.binary(min_size=256, max_size=256)))
def test_noise_instead_of_a_record_raises_nothing_but_damaged_shard(noise: bytes) -> None:
    with pytest.raises(DamagedShard):
        ShardRecord.parse(noise)


@pytest.mark.parametrize("length", [0, 1, 255, 257, 512])
def test_a_record_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(DamagedShard):
        ShardRecord.parse((SEALED + SEALED)[:length])


@pytest.mark.parametrize(
    "lie",
    [
        {"length": LENGTH + 64},
        {"length": LENGTH - 64},
        {"length": 0},
        {"payload": PAYLOAD * 2},
        {"payload": 0},
        {"payload": fmt.PACK_MAX + 1, "length": SCHEME.shard_length(fmt.PACK_MAX + 1)},
        {"payload": (1 << 64) - 1, "length": (1 << 64) - 64},
        {"stored": PAYLOAD + 1},
        {"stored": (1 << 32) - 1},
        {"index": 6},
        {"index": 255},
        {"k": 0},
        {"k": 3},
        {"k": 5},
        {"k": 250, "m": 6},
        {"magic": b"DRYSHARK"},
    ],
    ids=str,
)
def test_lengths_that_do_not_add_up_are_refused(lie: dict[str, int | bytes]) -> None:
    with pytest.raises(DamagedShard):
        ShardRecord.parse(sealed_with(**lie))


@pytest.mark.parametrize("change", [{"incompat": 1}, {"incompat": 1 << 31}, {"cell": 4096}, {"cell": 0}], ids=str)
def test_a_feature_from_the_future_is_unsupported_not_damage(change: dict[str, int | bytes]) -> None:
    with pytest.raises(UnsupportedFormat):
        ShardRecord.parse(sealed_with(**change))


def test_a_compatible_flag_from_the_future_is_ignored() -> None:
    assert ShardRecord.parse(sealed_with(compat=1))[0] == RECORD


def test_of_takes_the_lengths_from_the_sealed_pack() -> None:
    builder = PackBuilder(1000)
    data, blocks, chunks = slot_of(3, [500, 700])
    builder.add(memoryview(data), blocks, chunks)
    sealed = builder.seal(ENCODER, SCHEME)
    length = SCHEME.shard_length(sealed.length)
    for index in range(SCHEME.k):
        shard = sealed.payload[index * length : (index + 1) * length]
        table = cell_table(shard)
        record = ShardRecord.of(STORE, PACK, index, SCHEME, sealed, length, table)
        assert ShardRecord.parse(record.seal()) == (record, False)
        assert confirmed(table, record)
        assert not confirmed(table[:-1] + bytes([table[-1] ^ 1]), record)
        assert record.directory_offset == sealed.directory_offset
        assert (record.payload, record.index, record.kind) == (sealed.length, index, fmt.PACK_KIND_DATA)


@pytest.mark.parametrize("length", [0, 1, 64, fmt.CELL_SIZE - 1, fmt.CELL_SIZE, fmt.CELL_SIZE + 1, 300_032])
def test_the_sizes_add_up_to_the_file(length: int) -> None:
    data = DATA.ljust(length, b"x")[:length] if length > LENGTH else DATA[:length]
    table = cell_table(memoryview(data))
    assert cell_count(length) == (length + 16383) // 16384
    assert len(table) == table_size(length) == 16 * cell_count(length)
    pieces = shard_pieces(replace(RECORD, shard_length=length), table, memoryview(data))
    assert sum(map(len, pieces)) == file_size(length) == 2 * (256 + len(table)) + length
    whole = b"".join(pieces)
    assert whole[data_offset(length) : data_offset(length) + length] == data


def test_a_shard_file_is_a_pure_function_and_readable_from_both_ends() -> None:
    files = [b"".join(shard_pieces(replace(RECORD), cell_table(memoryview(DATA)), memoryview(DATA))) for _ in range(2)]
    assert files[0] == files[1]
    whole, table = files[0], table_size(LENGTH)
    assert ShardRecord.parse(whole[:256]) == ShardRecord.parse(whole[-256:]) == (RECORD, False)
    assert whole[256 : 256 + table] == whole[-256 - table : -256] == TABLE
    assert confirmed(whole[256 : 256 + table], RECORD)


def test_the_shard_key_ends_its_folder_in_the_last_digits_of_the_pack() -> None:
    assert shard_key(PACK, 11) == f"packs/5f/{PACK}.11"


# --- cell tables

CELLS = [DATA[at : at + fmt.CELL_SIZE] for at in range(0, LENGTH, fmt.CELL_SIZE)]
NO_TABLE = b""


def broken_at(table: bytes, number: int) -> bytes:
    at = number * fmt.CELL_DIGEST
    return table[:at] + bytes([table[at] ^ 1]) + table[at + 1 :]


def test_a_table_vouches_for_each_of_its_cells_and_no_other() -> None:
    assert 0 < len(CELLS[-1]) < fmt.CELL_SIZE, "the last cell is meant to be short"
    table = CellTable(TABLE, TABLE)
    for number, cell in enumerate(CELLS):
        assert table.is_good(number, cell)
        assert table.is_good(number, memoryview(cell))
        assert not table.is_good(number, bytes([cell[0] ^ 1]) + cell[1:])
        assert not table.is_good(number, cell[:-1])
        assert not table.is_good(number, cell + b"\0")
        assert not table.is_good((number + 1) % len(CELLS), cell)
        assert not table.is_good(number, b"")


def test_one_whole_copy_of_a_cells_checksum_is_enough() -> None:
    for table in (CellTable(broken_at(TABLE, 1), TABLE), CellTable(TABLE, NO_TABLE), CellTable(NO_TABLE, TABLE)):
        assert all(table.is_good(number, cell) for number, cell in enumerate(CELLS))


def test_a_cell_that_no_copy_vouches_for_is_not_good() -> None:
    table = CellTable(broken_at(TABLE, 1), broken_at(TABLE, 1))
    assert [table.is_good(number, cell) for number, cell in enumerate(CELLS)] == [i != 1 for i in range(len(CELLS))]
    crossed = CellTable(broken_at(TABLE, 0), broken_at(TABLE, 1))
    assert all(crossed.is_good(number, cell) for number, cell in enumerate(CELLS))


def test_a_cell_behind_the_end_of_a_short_table_is_not_good() -> None:
    short = CellTable(TABLE[:24], TABLE[:20])
    assert short.is_good(0, CELLS[0])
    assert not short.is_good(1, CELLS[1])
    whole = CellTable(TABLE, TABLE)
    for cell in (b"", CELLS[0]):
        assert not whole.is_good(len(CELLS), cell)
        assert not CellTable(NO_TABLE, NO_TABLE).is_good(0, cell)
