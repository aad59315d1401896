"""Armour: records that heal themselves.

A binary record is body ‖ BLAKE3(body) ‖ Reed–Solomon parity (reedsolo, 63 bytes: 31 wrong bytes heal) ‖ zero.
A JSON record is two lines: the record in plain JSON, and `{"armour": …}` with the BLAKE3 of the first line and
parity over it, 32 bytes a word of 223, so that `head -1` and DuckDB's `read_json` work on it. What seals records is
imported where it is used (parity.py): who only reads does without NumPy.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import islice, product
from typing import Any

import reedsolo
from blake3 import blake3

from manifests import format as fmt
from manifests.errors import CorruptRecord

JSON_PARITY = 32
_JSON_WORD = 255 - JSON_PARITY
_DIGEST = 32
_PARITY_TEXT = JSON_PARITY * 5 // 4
_BEFORE_DIGEST = b'\n{"armour":{"blake3":"'
_BEFORE_PARITY = b'","rs":"'
_END = b'"}}\n'
#: Mixtures of copies that are tried before a record is given up.
_MENDINGS = 256
_HEX = re.compile(rb"[0-9a-f]{2}")


@cache
def _codec(parity: int) -> Any:
    return reedsolo.RSCodec(parity)


def seal_record(body: bytes) -> bytes:
    """Armoured form of `body` (at most RECORD_BODY bytes, zero-padded): RECORD_SIZE bytes."""
    from manifests.parity import parity_of

    padded = body.ljust(fmt.RECORD_BODY, b"\0")
    sealed = padded + blake3(padded).digest()
    return sealed + parity_of(sealed, fmt.RECORD_PARITY) + b"\0"


def open_record(sealed: bytes, heal: bool = True) -> tuple[bytes, bool]:
    """The body in an armoured record, and whether it had to be healed, which takes some 10 ms. Raises CorruptRecord."""
    if len(sealed) != fmt.RECORD_SIZE:
        raise CorruptRecord(f"record is {len(sealed)} bytes long, not {fmt.RECORD_SIZE}")
    body, digest = sealed[: fmt.RECORD_BODY], sealed[fmt.RECORD_BODY : fmt.RECORD_BODY + fmt.RECORD_DIGEST]
    if blake3(body).digest() == digest:
        return body, False
    if not heal:
        raise CorruptRecord("record is damaged")
    try:
        healed = bytes(_codec(fmt.RECORD_PARITY).decode(sealed[:-1])[0])
    except (reedsolo.ReedSolomonError, ZeroDivisionError, IndexError) as error:
        raise CorruptRecord(f"record is damaged beyond its armour: {error}") from error
    body, digest = healed[: fmt.RECORD_BODY], healed[fmt.RECORD_BODY :]
    if blake3(body).digest() != digest:
        raise CorruptRecord("record is damaged beyond its armour: its digest does not match")
    return body, True


def seal_json(record: dict[str, Any]) -> bytes:
    """Two lines: `record` as JSON, and its armour."""
    return seal_line(json.dumps(record, separators=(",", ":"), sort_keys=True).encode())


def seal_line(line: bytes) -> bytes:
    """`line`, and its armour as a second one of fixed layout: its length follows from that of `line`, so that a reader
    finds every part of a rotten file by the length of the file alone."""
    from manifests.parity import parity_of

    digest = blake3(line).digest()
    message = line + digest
    words = (message[i : i + _JSON_WORD] for i in range(0, len(message), _JSON_WORD))
    parity = b"".join(parity_of(word, JSON_PARITY) for word in words)
    return b"".join((line, _BEFORE_DIGEST, digest.hex().encode(), _BEFORE_PARITY, base64.b85encode(parity), _END))


def _words(length: int) -> int:
    """Code words over a line of `length` bytes and its digest."""
    return -(-(length + _DIGEST) // _JSON_WORD)


def _line_length(size: int) -> int:
    """Length of the line in a sealed file of `size` bytes. Raises CorruptRecord where no line makes such a file."""
    rest = size - len(_BEFORE_DIGEST) - 2 * _DIGEST - len(_BEFORE_PARITY) - len(_END)
    # Each word of the message costs its parity in base 85, so the guess is right but for the rounding.
    guess = rest * _JSON_WORD // (_JSON_WORD + _PARITY_TEXT)
    for length in range(max(0, guess - 2 * _PARITY_TEXT), guess + 2 * _PARITY_TEXT):
        if length + _words(length) * _PARITY_TEXT == rest:
            return length
    raise CorruptRecord(f"a JSON record and its armour are never {size} bytes long; the file was cut or added to")


def _unhex(text: bytes) -> bytes:
    """Bytes of hexadecimal text; what is no such digit counts as 0, and is for the armour to heal."""
    pairs = (text[start : start + 2] for start in range(0, len(text), 2))
    return bytes(int(pair, 16) if _HEX.fullmatch(pair) else 0 for pair in pairs)


def _unbase85(text: bytes) -> bytes:
    """Bytes of base 85 text; groups that are none count as 0, and are for the armour to heal."""
    found = bytearray()
    for start in range(0, len(text), 5):
        try:
            found += base64.b85decode(text[start : start + 5])
        except ValueError:
            found += bytes(4)
    return bytes(found)


class _Sealed:
    """The parts of a sealed file, found by its length alone. Raises CorruptRecord where no line makes such a file."""

    def __init__(self, sealed: bytes) -> None:
        self.length = _line_length(len(sealed))
        self.line = sealed[: self.length]
        at = self.length + len(_BEFORE_DIGEST)
        self.digest = _unhex(sealed[at : at + 2 * _DIGEST])
        at += 2 * _DIGEST + len(_BEFORE_PARITY)
        self._parity = sealed[at : -len(_END)]

    @property
    def is_whole(self) -> bool:
        return bool(blake3(self.line).digest() == self.digest)

    def words(self) -> list[bytes | None]:
        """The words of line ‖ digest, healed; None where one is beyond healing."""
        parity, message = _unbase85(self._parity), self.line + self.digest
        healed: list[bytes | None] = []
        for number, start in enumerate(range(0, len(message), _JSON_WORD)):
            word = message[start : start + _JSON_WORD] + parity[number * JSON_PARITY : (number + 1) * JSON_PARITY]
            try:
                healed.append(bytes(_codec(JSON_PARITY).decode(word)[0]))
            except (reedsolo.ReedSolomonError, ZeroDivisionError, IndexError):
                healed.append(None)
        return healed


def _from_words(words: list[bytes], length: int) -> bytes | None:
    """The line of `length` bytes in healed words, or None where their digest denies it."""
    message = b"".join(words)
    line, digest = message[:length], message[length:]
    return line if blake3(line).digest() == digest else None


def _open_line(sealed: bytes) -> tuple[bytes, bool]:
    """The line in a sealed file, and whether it or its digest had to be healed. Raises CorruptRecord."""
    parts = _Sealed(sealed)
    if parts.is_whole:
        return parts.line, False
    words = [word for word in parts.words() if word is not None]
    if len(words) < _words(parts.length):
        raise CorruptRecord("JSON record is damaged beyond its armour: too many wrong bytes in a word")
    line = _from_words(words, parts.length)
    if line is None:
        raise CorruptRecord("JSON record is damaged beyond its armour: its digest does not match")
    return line, True


def mend_json(copies: Sequence[bytes]) -> dict[str, Any]:
    """The record in armoured copies of one file, each beyond its own armour: each word from a copy that has it. Raises
    CorruptRecord."""
    found: dict[int, list[list[bytes | None]]] = {}
    for sealed in copies:
        try:
            parts = _Sealed(sealed)
        except CorruptRecord:
            continue
        found.setdefault(parts.length, []).append(parts.words())
    for length, copy_words in found.items():
        choices = [
            list(dict.fromkeys(word for word in words if word is not None)) for words in zip(*copy_words, strict=True)
        ]
        # Mostly a single choice a word; a word that was healed wrongly makes a second one.
        for words in islice(product(*choices), _MENDINGS):
            line = _from_words(list(words), length)
            if line is not None:
                return _parse_line(line)
    raise CorruptRecord("its copies together do not make a whole one")


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(f"JSON record is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptRecord("JSON record is not an object")
    return record


def open_json(sealed: bytes) -> tuple[dict[str, Any], bool]:
    """The record in an armoured JSON file, and whether it had to be healed. Raises CorruptRecord."""
    line, healed = _open_line(sealed)
    return _parse_line(line), healed


def is_intact(sealed: bytes) -> bool:
    """Whether every byte of an armoured JSON file is right, its parity too, which takes some ms to tell."""
    try:
        line, healed = _open_line(sealed)
    except CorruptRecord:
        return False
    return not healed and seal_line(line) == sealed
