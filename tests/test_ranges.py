"""Byte ranges, as HTTP writes them."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import UsageError
from stages.assemble import ByteRange, chunk_is_good


@pytest.mark.parametrize(
    ("text", "offset", "length"),
    [
        ("0-0", 0, 1),
        ("0-99", 0, 100),
        ("0-", 0, 1000),
        ("100-", 100, 900),
        ("999-", 999, 1),
        ("999-999", 999, 1),
        ("990-5000", 990, 10),
        ("0-999", 0, 1000),
        ("0-1000", 0, 1000),
        ("-1", 999, 1),
        ("-500", 500, 500),
        ("-1000", 0, 1000),
        ("-5000", 0, 1000),
        (" 5-6 ", 5, 2),
        ("007-008", 7, 2),
        (f"1-{1 << 70}", 1, 999),
    ],
)
def test_a_range_of_an_object_of_1000_bytes(text: str, offset: int, length: int) -> None:
    assert ByteRange.parse(text).resolve(1000) == (offset, length)


@pytest.mark.parametrize("text", ["1000-", "1000-1000", "1001-2000", f"{1 << 70}-"])
def test_a_range_that_begins_past_the_end_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        ByteRange.parse(text).resolve(1000)


NO_RANGES = [
    "",
    "-",
    " ",
    "5",
    "a-b",
    "1-2-3",
    "--5",
    "5-4",
    "1-0",
    "1,2",
    "0-1,3-4",
    "+1-2",
    "0x1-2",
    "1.0-2",
    "1 - 2",
]


@pytest.mark.parametrize("text", [*NO_RANGES, "bytes=0-1", "1:2", "1_0-20"])
def test_what_is_no_range_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        ByteRange.parse(text)


@pytest.mark.parametrize(
    "text", ["9" * 5000 + "-", "-" + "9" * 5000, "0-" + "9" * 5000], ids=["first", "suffix", "last"]
)
def test_an_absurdly_long_number_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        ByteRange.parse(text)


@pytest.mark.parametrize("text", ["0-", "0-9", "-5"])
def test_an_empty_object_has_an_empty_beginning_and_end(text: str) -> None:
    assert ByteRange.parse(text).resolve(0) == (0, 0)


@pytest.mark.parametrize("text", ["1-", "1-5"])
def test_an_empty_object_has_nothing_further_in(text: str) -> None:
    with pytest.raises(UsageError):
        ByteRange.parse(text).resolve(0)


@given(first=st.none() | st.integers(0, 60), last=st.none() | st.integers(0, 60), size=st.integers(1, 50))
def test_a_range_holds_the_bytes_that_http_means(first: int | None, last: int | None, size: int) -> None:
    data = bytes(range(size))
    text = f"{'' if first is None else first}-{'' if last is None else last}"
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        with pytest.raises(UsageError):
            ByteRange.parse(text)
        return
    asked = ByteRange.parse(text)
    if first is None:
        assert last is not None
        wanted = data[-last:] if last else b""
    elif first >= size:
        with pytest.raises(UsageError):
            asked.resolve(size)
        return
    else:
        wanted = bytes(byte for byte in data if byte >= first and (last is None or byte <= last))
    offset, length = asked.resolve(size)
    assert 0 <= offset <= offset + length <= size
    assert data[offset : offset + length] == wanted


@given(st.binary(max_size=200), st.integers(0, 255), st.integers(0, 31))
def test_a_chunk_is_good_only_under_its_own_id(data: bytes, byte: int, at: int) -> None:
    identity = blake3(data).digest()
    assert chunk_is_good(identity, data)
    assert chunk_is_good(identity, memoryview(data))
    assert not chunk_is_good(identity, data + bytes([byte]))
    assert not chunk_is_good(identity[:at] + bytes([identity[at] ^ 1]) + identity[at + 1 :], data)
    assert not chunk_is_good(identity[:at], data)
