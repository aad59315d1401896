"""Settings of a store: schemes, chunkers, codecs, the store record, and sizes as people write them."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import format as fmt
from manifests.config import ChunkerSpec, CodecSpec, ECScheme, StoreConfig
from manifests.errors import CorruptRecord, UnsupportedFormat, UsageError
from manifests.sizes import format_size, parse_size

# --- schemes


@pytest.mark.parametrize(
    ("text", "k", "m"),
    [("4+2", 4, 2), ("", 4, 2), ("1+0", 1, 0), ("1+1", 1, 1), ("10+4", 10, 4), ("3+0", 3, 0), ("200+55", 200, 55)],
)
def test_a_scheme_is_data_plus_parity_and_4_2_where_none_is_given(text: str, k: int, m: int) -> None:
    scheme = ECScheme.parse(text)
    assert (scheme.k, scheme.m, scheme.total_shards) == (k, m, k + m)
    assert ECScheme.parse(str(scheme)) == scheme


NO_SCHEMES = ["0+2", "0+0", "4", "4+", "+2", "200+100", "255+1", "-4+2", "4+-2", "4 + 2", " 4+2", "4+2\n", "4-2"]


@pytest.mark.parametrize("text", [*NO_SCHEMES, "4+2+1", "a+b", "4.0+2", "99999+1", "9" * 5000 + "+1"])
def test_what_is_no_scheme_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        ECScheme.parse(text)


@given(k=st.integers(1, 255), payload=st.integers(0, fmt.PACK_MAX))
def test_shards_are_equal_parts_rounded_up_to_64(k: int, payload: int) -> None:
    length = ECScheme(k, 0).shard_length(payload)
    assert length % 64 == 0
    assert k * length >= payload
    assert k * (length - 64) < payload or length == 0


def test_shard_lengths_by_hand() -> None:
    lengths = [ECScheme(4, 2).shard_length(payload) for payload in (0, 1, 256, 257, 32 << 20)]
    assert lengths == [0, 64, 64, 128, 8 << 20]


# --- chunkers


@pytest.mark.parametrize(
    ("text", "algorithm", "size", "minimum", "maximum"),
    [
        ("fastcdc:128KiB", "fastcdc", 128 << 10, 32 << 10, 512 << 10),
        ("fastcdc", "fastcdc", 128 << 10, 32 << 10, 512 << 10),
        ("fastcdc:4MiB", "fastcdc", 4 << 20, 1 << 20, fmt.CHUNK_MAX),
        ("fastcdc:256", "fastcdc", 256, 64, 1024),
        ("fixed:16MiB", "fixed", fmt.CHUNK_MAX, fmt.CHUNK_MAX, fmt.CHUNK_MAX),
        ("fixed:64", "fixed", 64, 64, 64),
    ],
)
def test_a_chunker_is_an_algorithm_and_a_size(text: str, algorithm: str, size: int, minimum: int, maximum: int) -> None:
    spec = ChunkerSpec.parse(text)
    assert (spec.algorithm, spec.size, spec.minimum, spec.maximum) == (algorithm, size, minimum, maximum)
    assert ChunkerSpec.parse(str(spec)) == spec


NO_CHUNKERS = ["", ":", "rabin", "rabin:4KiB", "fastcdc:", "fastcdc:0", "fastcdc:255", "fastcdc:5MiB", "fastcdc:x"]


@pytest.mark.parametrize("text", [*NO_CHUNKERS, "fixed:63", "fixed:17MiB", "fixed:-1", "FASTCDC", "fastcdc:4KiB:1"])
def test_what_is_no_chunker_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        ChunkerSpec.parse(text)


# --- codecs


@pytest.mark.parametrize(
    ("text", "name", "shown"),
    [
        ("none", "none", "none"),
        ("lz4", "lz4", "lz4"),
        ("zstd", "zstd", "zstd:3"),
        ("zstd:1", "zstd", "zstd:1"),
        ("zstd:22", "zstd", "zstd:22"),
    ],
)
def test_a_codec_is_a_name_and_for_zstd_a_level(text: str, name: str, shown: str) -> None:
    codec = CodecSpec.parse(text)
    assert (codec.name, str(codec)) == (name, shown)
    assert CodecSpec.parse(str(codec)) == codec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gzip",
        "zstd:",
        "zstd:0",
        "zstd:23",
        "zstd:-1",
        "zstd:x",
        "zstd:1.5",
        "zstd:²",
        "zstd:" + "9" * 5000,
        "lz4:1",
        "none:",
        "ZSTD",
    ],
)
def test_what_is_no_codec_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        CodecSpec.parse(text)


# --- the store record

CONFIG = StoreConfig(uuid.UUID("0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"), 12345)

configs = st.builds(
    StoreConfig,
    store_id=st.uuids(),
    seed=st.integers(0, 2**63 - 1),
    scheme=st.builds(ECScheme, st.integers(1, 200), st.integers(0, 55)),
    chunker=st.builds(ChunkerSpec, st.just("fastcdc"), st.integers(256, 4 << 20))
    | st.builds(ChunkerSpec, st.just("fixed"), st.integers(64, 16 << 20)),
    codec=st.sampled_from(["none", "lz4", "zstd:1", "zstd:22"]).map(CodecSpec.parse),
    pack_size=st.integers(64 << 10, 1 << 30),
    ro_compat=st.integers(0, 2**32 - 1),
    compat=st.integers(0, 2**32 - 1),
)


@settings(max_examples=60)
@given(configs)
def test_a_store_record_reads_back_as_it_was_written(config: StoreConfig) -> None:
    record = json.loads(json.dumps(config.to_record()))
    assert StoreConfig.from_record(record, "here") == config


def test_a_store_record_is_plain_to_read() -> None:
    assert CONFIG.to_record() == {
        "format": "drystone",
        "type": "store",
        "flags": {"incompat": 0, "ro_compat": 0, "compat": 0},
        "store_id": "0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee",
        "seed": 12345,
        "scheme": "4+2",
        "chunker": "fastcdc:131072",
        "codec": "zstd:3",
        "pack_size": 32 << 20,
    }


@pytest.mark.parametrize("flag", [2, 4, 1 << 31])
def test_an_unknown_incompat_flag_is_refused(flag: int) -> None:
    record = replace(CONFIG, incompat=flag).to_record()
    with pytest.raises(UnsupportedFormat, match=f"here.*{flag:#x}"):
        StoreConfig.from_record(record, "here")


def test_an_unknown_incompat_flag_is_seen_before_what_it_changes() -> None:
    """A store of the future may hold settings that make no sense to this version."""
    record = replace(CONFIG, incompat=2).to_record() | {"chunker": {"new": True}, "scheme": "lrc:4+2+2"}
    with pytest.raises(UnsupportedFormat):
        StoreConfig.from_record(record, "here")


def test_an_unknown_ro_compat_flag_makes_the_store_read_only_and_a_compat_flag_nothing() -> None:
    def read_only(**flags: int) -> bool:
        return StoreConfig.from_record(replace(CONFIG, **flags).to_record(), "here").read_only  # type: ignore[arg-type]

    assert not read_only()
    assert not read_only(compat=1 << 31)
    assert read_only(ro_compat=1)
    assert read_only(ro_compat=1 << 31)


def test_unknown_keys_of_a_later_version_do_no_harm() -> None:
    assert StoreConfig.from_record(CONFIG.to_record() | {"later": 1}, "here") == CONFIG


@pytest.mark.parametrize("key", sorted(CONFIG.to_record()))
@pytest.mark.parametrize("value", [None, [], {}, "", "x", 1.5, float("inf"), -1], ids=repr)
def test_nonsense_in_a_store_record_is_a_corrupt_record(key: str, value: Any) -> None:
    with pytest.raises(CorruptRecord, match="here"):
        StoreConfig.from_record(CONFIG.to_record() | {key: value}, "here")


@pytest.mark.parametrize("key", sorted(CONFIG.to_record()))
def test_a_store_record_that_lacks_a_key_is_corrupt(key: str) -> None:
    record = CONFIG.to_record()
    del record[key]
    with pytest.raises(CorruptRecord):
        StoreConfig.from_record(record, "here")


@pytest.mark.parametrize("change", [{"format": "tar"}, {"type": "backend"}, {"pack_size": 1}, {"pack_size": 2 << 30}])
def test_a_store_record_out_of_bounds_is_corrupt(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecord):
        StoreConfig.from_record(CONFIG.to_record() | change, "here")


@pytest.mark.parametrize("seed", [-1, 1 << 63, 1 << 64])
def test_a_seed_that_the_chunker_does_not_take_is_refused_with_the_record(seed: int) -> None:
    with pytest.raises(CorruptRecord):
        StoreConfig.from_record(CONFIG.to_record() | {"seed": seed}, "here")


@pytest.mark.parametrize("pack_size", [0, -1, (64 << 10) - 1, (1 << 30) + 1])
def test_a_pack_size_out_of_bounds_is_a_usage_error(pack_size: int) -> None:
    with pytest.raises(UsageError):
        replace(CONFIG, pack_size=pack_size)


def test_another_codec_changes_nothing_else() -> None:
    assert CONFIG.with_codec(None) is CONFIG
    assert CONFIG.with_codec(CodecSpec("lz4")) == replace(CONFIG, codec=CodecSpec("lz4"))


# --- sizes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7b", 7),
        ("4k", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("4kb", 4000),
        ("32MiB", 32 << 20),
        ("32M", 32 << 20),
        ("1.5GB", 1_500_000_000),
        ("1.5 GB", 1_500_000_000),
        (" 1.5GiB ", 3 << 29),
        ("2TiB", 2 << 40),
        ("1P", 1 << 50),
        ("1EiB", 1 << 60),
        ("18014398509481985", (1 << 54) + 1),
        ("16777217GiB", ((1 << 24) + 1) << 30),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "KiB", "-1", "+1", "1.", ".5", "1,5", "1e3", "1KiBs", "1 2", "0x10", "1_000", "1zb", "½", "nan"],
)
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400 + ".5", "9" * 5000 + "KiB"], ids=["plain", "fraction", "unit"])
def test_an_absurdly_long_number_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.text(alphabet="0123456789.kKmMiIbB eE+-_", max_size=12))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except UsageError:
        assert not text.isdecimal()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (32 << 20, "32.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 40, "3.0 TiB"),
        (7 << 50, "7.0 PiB"),
        (2 << 60, "2048.0 PiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_size(count) == text


@given(st.integers(0, 1 << 59))
def test_a_printed_size_reads_back_as_about_the_same(count: int) -> None:
    assert abs(parse_size(format_size(count)) - count) <= max(0.06 * count, 0)
