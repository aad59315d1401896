"""JSON records in armour: readable by `head -1`, healed when rotten, refused beyond that, never wrong."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import reedsolo
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manifests import format as fmt
from manifests.armour import JSON_PARITY, open_json, open_record, seal_json, seal_line, seal_record
from manifests.errors import CorruptRecord
from manifests.parity import parity_of

WORD = 223  # bytes of the message that 32 bytes of parity protect
PROMISE = 16  # wrong bytes a word that heal

RECORD: dict[str, Any] = {
    "type": "ingest",
    "id": "0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee",
    "note": 'näh\n{"armour":"nor this"}\\',
    "adds": [{"path": f"manifests/chunks/{i}.parquet", "blake3": "ab" * 32, "size": i * 1000} for i in range(5)],
}
SEALED = seal_json(RECORD)
BORDER = SEALED.index(b"\n")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
records = st.dictionaries(st.text(max_size=8), values, max_size=6)


def open_or_refuse(sealed: bytes, truth: dict[str, Any]) -> bool:
    """Whether the record opened. It may be refused, with CorruptRecord; it may not be another one."""
    try:
        record, _ = open_json(sealed)
    except CorruptRecord:
        return False
    assert record == truth
    return True


def rot_each_word(sealed: bytes, count: int, choose: random.Random) -> bytes:
    """`count` wrong bytes in every word of the first line (as many as it has, in a short one)."""
    rotten, border = bytearray(sealed), sealed.index(b"\n")
    for start in range(0, border, WORD):
        places = range(start, min(start + WORD, border))
        for at in choose.sample(places, min(count, len(places))):
            rotten[at] ^= choose.randrange(1, 256)
    return bytes(rotten)


@settings(max_examples=50, deadline=None)
@given(records)
@example({})
@example({"a": '\n{"armour":{}}\n'})
def test_what_was_sealed_opens(record: dict[str, Any]) -> None:
    sealed = seal_json(record)
    assert open_json(sealed) == (record, False)
    assert sealed.count(b"\n") == 2
    assert sealed.endswith(b"\n")
    first, second, _ = sealed.split(b"\n")
    assert json.loads(first) == record
    assert list(json.loads(second)) == ["armour"]
    assert json.loads(second)["armour"]["blake3"] == blake3(first).hexdigest()


def test_equal_records_have_equal_bytes() -> None:
    assert seal_json(dict(reversed(RECORD.items()))) == SEALED


def test_head_shows_the_record(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_bytes(SEALED)
    head = subprocess.run(["head", "-1", file], check=True, capture_output=True).stdout
    assert json.loads(head) == RECORD


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, PROMISE), choose=st.randoms(use_true_random=False))
def test_rot_up_to_the_promise_in_every_word_heals(count: int, choose: random.Random) -> None:
    assert open_json(rot_each_word(SEALED, count, choose)) == (RECORD, True)


@pytest.mark.parametrize("value", [b"\n", b"\0", b'"', b"}", b"\xff"])
def test_a_burst_heals_wherever_in_the_first_line_it_strikes(value: bytes) -> None:
    for start in range(0, BORDER - PROMISE, 41):
        rotten = SEALED[:start] + value * PROMISE + SEALED[start + PROMISE :]
        assert open_json(rotten) == (RECORD, True)


@settings(max_examples=40, deadline=None)
@given(record=records, choose=st.randoms(use_true_random=False))
def test_records_of_any_length_heal(record: dict[str, Any], choose: random.Random) -> None:
    rotten = rot_each_word(seal_json(record), PROMISE, choose)
    assert open_json(rotten) == (record, True)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(PROMISE + 1, WORD), choose=st.randoms(use_true_random=False))
def test_rot_beyond_the_promise_is_refused(count: int, choose: random.Random) -> None:
    with pytest.raises(CorruptRecord):
        open_json(rot_each_word(SEALED, count, choose))


SMALL = {"type": "fence", "run": "0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee", "count": 3}


@pytest.mark.parametrize("part", ["record", "border", "armour"])
def test_a_single_rotten_byte_anywhere_in_the_file_heals(part: str) -> None:
    """The armour line is as likely to rot as the record. Every copy of a record may have one rotten byte, so no single
    one may cost a copy: not in the record, not in the newline, not in the armour."""
    sealed = seal_json(SMALL)
    border = sealed.index(b"\n")
    places = {"record": range(border), "border": [border], "armour": range(border + 1, len(sealed))}[part]
    lost = []
    for place in places:
        for flip in (0x01, 0x80):
            rotten = bytearray(sealed)
            rotten[place] ^= flip
            if not open_or_refuse(bytes(rotten), SMALL):
                lost.append((place - border, hex(flip)))
    assert lost == []


def test_rot_that_looks_like_the_border_heals() -> None:
    mark = b'\n{"armour":'
    assert len(mark) <= PROMISE
    assert open_json(SEALED[:50] + mark + SEALED[50 + len(mark) :]) == (RECORD, True)


def test_a_healed_record_that_its_digest_does_not_confirm_is_refused() -> None:
    """Reed–Solomon may heal too much rot to another valid word; only the BLAKE3 inside tells. Made here by hand."""
    line, digest = b'{"a":1}', blake3(b'{"a":2}').digest()
    parity = bytes(reedsolo.RSCodec(255 - WORD).encode(line + digest))[len(line + digest) :]
    armour = {"armour": {"blake3": digest.hex(), "rs": base64.b85encode(parity).decode()}}
    with pytest.raises(CorruptRecord):
        open_json(line + b"\n" + json.dumps(armour, separators=(",", ":")).encode() + b"\n")

    body, digest = b"x" * fmt.RECORD_BODY, blake3(b"y" * fmt.RECORD_BODY).digest()
    with pytest.raises(CorruptRecord):
        open_record(bytes(reedsolo.RSCodec(fmt.RECORD_PARITY).encode(body + digest)) + b"\0")


def test_rotten_parity_does_not_matter_while_the_record_is_whole() -> None:
    start = SEALED.index(b'"rs":"') + len(b'"rs":"')
    for length in (1, 40, 100):
        rotten = SEALED[:start] + b"A" * length + SEALED[start + length :]
        assert open_json(rotten)[0] == RECORD


def test_a_wrong_digest_digit_heals() -> None:
    start = SEALED.index(b'"blake3":"', BORDER) + len(b'"blake3":"')
    for at in range(start, start + 64, 9):
        digit = b"0" if SEALED[at : at + 1] != b"0" else b"1"
        assert open_json(SEALED[:at] + digit + SEALED[at + 1 :]) == (RECORD, True)


def test_a_record_without_any_trustworthy_armour_is_refused() -> None:
    """Without a digest nobody knows whether the record is whole, however well it parses."""
    for tail in (b"", b"\n", b"\n{}\n", b'\n{"armour":{}}\n', b'\n{"armour":null}\n', b'\n{"armour":{"blake3":1}}\n'):
        with pytest.raises(CorruptRecord):
            open_json(SEALED[:BORDER] + tail)


def test_another_records_armour_is_refused() -> None:
    other = seal_json(RECORD | {"note": RECORD["note"] + "!"})
    with pytest.raises(CorruptRecord):
        open_json(SEALED[: BORDER + 1] + other[other.index(b"\n") + 1 :])


@pytest.mark.parametrize("line", [b"hello", b"", b"[1]", b"3", b'"text"', b"null", b"\xff\xfe", b'{"a":1', b'{"a":1}x'])
def test_a_well_armoured_line_that_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(CorruptRecord):
        open_json(seal_line(line))


@settings(max_examples=200, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SEALED)), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=6
    )
)
def test_cut_spliced_and_overwritten_files_are_refused_or_right(edits: list[tuple[int, int, bytes]]) -> None:
    rotten = SEALED
    for at, cut, new in edits:
        rotten = rotten[:at] + new + rotten[at + cut :]
    open_or_refuse(rotten, RECORD)


@settings(max_examples=100, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(SEALED) - 1), st.integers(1, 255)), min_size=1, max_size=40))
def test_flipped_bytes_anywhere_are_refused_or_healed(flips: list[tuple[int, int]]) -> None:
    rotten = bytearray(SEALED)
    for at, flip in flips:
        rotten[at] ^= flip
    open_or_refuse(bytes(rotten), RECORD)


armours = st.fixed_dictionaries(
    {},
    optional={
        "blake3": values | st.binary(max_size=34).map(bytes.hex),
        "rs": values | st.text("0123456789abcdefXYZ!#", max_size=120),
    },
)


@settings(max_examples=250, deadline=None)
@given(line=st.binary(max_size=300), armour=armours | values, tail=st.binary(max_size=3))
def test_noise_raises_nothing_but_corrupt_record(line: bytes, armour: Any, tail: bytes) -> None:
    for sealed in (line, line + b'\n{"armour":' + json.dumps(armour).encode() + b"}" + tail):
        with pytest.raises(CorruptRecord):
            open_json(sealed)


# --- binary records


@settings(max_examples=40, deadline=None)
@given(
    body=st.binary(max_size=fmt.RECORD_BODY), rot=st.dictionaries(st.integers(0, 255), st.integers(1, 255), max_size=31)
)
def test_a_binary_record_heals_up_to_31_bytes(body: bytes, rot: dict[int, int]) -> None:
    rotten = bytearray(seal_record(body))
    for at, flip in rot.items():
        rotten[at] ^= flip
    opened, healed = open_record(bytes(rotten))
    assert opened == body.ljust(fmt.RECORD_BODY, b"\0")
    assert healed == any(at < fmt.RECORD_BODY + fmt.RECORD_DIGEST for at in rot)


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=300) | st.binary(min_size=256, max_size=256))
def test_noise_is_no_binary_record(noise: bytes) -> None:
    with pytest.raises(CorruptRecord):
        open_record(noise)


@pytest.mark.parametrize("parity", [fmt.RECORD_PARITY, JSON_PARITY])
def test_parity_is_the_one_that_reedsolo_encodes(parity: int) -> None:
    chance = random.Random(parity)
    for length in (1, 2, 100, 255 - parity):
        message = chance.randbytes(length)
        assert parity_of(message, parity) == bytes(reedsolo.RSCodec(parity).encode(message))[length:]
