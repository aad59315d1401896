"""The parity of armour, made by NumPy: reading a record that is whole needs none of it.

It is what reedsolo encodes, bit for bit, but reedsolo takes a millisecond for it, and each shard has a record.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import reedsolo


@cache
def _products() -> npt.NDArray[np.uint8]:
    """Products in reedsolo's field, GF(2^8) by 0x11d: 256 × 256."""
    logs, powers, order = reedsolo.init_tables()
    log = np.array(logs, np.int64)
    table: npt.NDArray[np.uint8] = np.array(powers, np.uint8)[(log[:, None] + log) % order]
    table[0], table[:, 0] = 0, 0
    return table


@cache
def _place_parities(parity: int) -> npt.NDArray[np.uint8]:
    """The parity of a 1 at each place of a message, counted from its end: places × parity bytes. Each is the one before
    times x, and x^parity is what reedsolo makes of the last place."""
    first = np.frombuffer(bytes(reedsolo.RSCodec(parity).encode(b"\1"))[1:], np.uint8)
    rows = [first]
    for _ in range(254 - parity):
        shifted = np.append(rows[-1][1:], np.uint8(0))
        rows.append(shifted ^ _products()[rows[-1][0], first])
    return np.array(rows)


def parity_of(message: bytes, parity: int) -> bytes:
    """The `parity` bytes for a message of up to 255 − parity. The code is linear, so they are a sum over the message's
    bytes."""
    values = np.frombuffer(message, np.uint8)[::-1]
    places = _place_parities(parity)[: len(values)]
    sums: npt.NDArray[np.uint8] = np.bitwise_xor.reduce(_products()[values[:, None], places], axis=0)
    return sums.tobytes()
