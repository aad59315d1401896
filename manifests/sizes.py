"""The one parser of sizes (`32MiB`, `4k`, `1.5 GB`) and their one way of being printed."""

from __future__ import annotations

import re

from manifests.errors import UsageError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power


def parse_size(text: str) -> int:
    """Bytes in `text`: KiB, MiB … are powers of 1024, as are bare K, M …; kB, MB … are powers of 1000."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"{text!r} is not a size; write it as 4096, 128KiB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]


def format_size(count: float) -> str:
    """`count` bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"
