"""Armour: records that heal themselves.

A binary record is body ‖ BLAKE3(body) ‖ Reed–Solomon parity (reedsolo, 63 bytes: 31 wrong bytes heal) ‖ zero.
A JSON record is two lines: the record in plain JSON, and `{"armour": …}` with the BLAKE3 of the first line and
parity over it, 32 bytes a word of 223, so that `head -1` and DuckDB's `read_json` work on it.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

import reedsolo
from blake3 import blake3

from manifests import format as fmt
from manifests.errors import CorruptRecord

JSON_PARITY = 32
_JSON_WORD = 255 - JSON_PARITY


@cache
def _codec(parity: int) -> Any:
    return reedsolo.RSCodec(parity)


def seal_record(body: bytes) -> bytes:
    """Armoured form of `body` (at most RECORD_BODY bytes, zero-padded): RECORD_SIZE bytes."""
    padded = body.ljust(fmt.RECORD_BODY, b"\0")
    sealed = padded + blake3(padded).digest()
    return bytes(_codec(fmt.RECORD_PARITY).encode(sealed)) + b"\0"


def open_record(sealed: bytes) -> tuple[bytes, bool]:
    """The body in an armoured record, and whether it had to be healed. Raises CorruptRecord."""
    if len(sealed) != fmt.RECORD_SIZE:
        raise CorruptRecord(f"record is {len(sealed)} bytes long, not {fmt.RECORD_SIZE}")
    body, digest = sealed[: fmt.RECORD_BODY], sealed[fmt.RECORD_BODY : fmt.RECORD_BODY + fmt.RECORD_DIGEST]
    if blake3(body).digest() == digest:
        return body, False
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
    line = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    codec = _codec(JSON_PARITY)
    digest = blake3(line).digest()
    message = line + digest
    words = (message[i : i + _JSON_WORD] for i in range(0, len(message), _JSON_WORD))
    parity = b"".join(bytes(codec.encode(word))[len(word) :] for word in words)
    armour = {"armour": {"blake3": digest.hex(), "rs": base64.b85encode(parity).decode(), "length": len(line)}}
    return line + b"\n" + json.dumps(armour, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _heal_line(line: bytes, armour_line: bytes) -> bytes | None:
    try:
        armour = json.loads(armour_line)["armour"]
        digest, parity = bytes.fromhex(armour["blake3"]), base64.b85decode(armour["rs"])
        length = int(armour["length"])
    except (ValueError, KeyError, TypeError):
        return None
    if len(line) != length:
        return None
    codec, message, healed = _codec(JSON_PARITY), line + digest, bytearray()
    for number, start in enumerate(range(0, len(message), _JSON_WORD)):
        word = message[start : start + _JSON_WORD] + parity[number * JSON_PARITY : (number + 1) * JSON_PARITY]
        try:
            healed += codec.decode(word)[0]
        except (reedsolo.ReedSolomonError, ZeroDivisionError, IndexError):
            return None
    line, digest = bytes(healed[:length]), bytes(healed[length:])
    return line if blake3(line).digest() == digest else None


def open_json(sealed: bytes) -> tuple[dict[str, Any], bool]:
    """The record in an armoured JSON file, and whether it had to be healed. Raises CorruptRecord.

    A rotten byte may turn into a newline or eat one, so the border between the lines is looked for from the end.
    """
    border = sealed.rfind(b'\n{"armour":')
    line, armour_line = (sealed[:border], sealed[border + 1 :]) if border >= 0 else (sealed, b"")
    try:
        digest = json.loads(armour_line)["armour"]["blake3"]
        intact = blake3(line).hexdigest() == digest
    except (ValueError, KeyError, TypeError):
        intact = False
    healed = line if intact else _heal_line(line, armour_line)
    if healed is None:
        # The armour alone may be rotten; whether the record is whole then, only another copy can say.
        raise CorruptRecord("JSON record is damaged beyond its armour")
    record = json.loads(healed)
    if not isinstance(record, dict):
        raise CorruptRecord("JSON record is not an object")
    return record, not intact
