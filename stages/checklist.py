"""Lists of digests as b3sum and the tools of GNU coreutils print and check them: `HEX  PATH`, a line for each file.

In a name that holds a backslash, a newline or a carriage return these are escaped, and the line begins with a
backslash. Read are also lines with a tag, `SHA256 (PATH) = HEX`, and those of BagIt's manifests (RFC 8493, 2.1.3),
`HEX PATH`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from manifests import format as fmt

_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_UNESCAPES = {escaped: char for char, escaped in _ESCAPES.items()}
_PLAIN = re.compile(rb"([0-9a-fA-F]+)(?:  | \*|[ \t]+)(.+)", re.DOTALL)
_TAGGED = re.compile(rb"([A-Z0-9]+) \((.+)\) = ([0-9a-fA-F]+)", re.DOTALL)


class Listed(NamedTuple):
    """A line of a list. `algorithm` is a name of fmt.DIGESTS, or empty where the line does not say it."""

    algorithm: str
    digest: bytes
    path: bytes


def format_line(digest: bytes, path: bytes) -> bytes:
    """The line of a file."""
    escaped = re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], path)
    mark = b"\\" if escaped != path else b""
    return mark + digest.hex().encode() + b"  " + escaped + b"\n"


def parse_line(line: bytes) -> Listed | None:
    """What a line says, None where it makes no sense."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    escaped = line.startswith(b"\\")
    body = line[escaped:]
    algorithm, hexed, path = "", b"", b""
    if tagged := _TAGGED.fullmatch(body):
        algorithm, path, hexed = tagged[1].decode().lower(), tagged[2], tagged[3]
    elif plain := _PLAIN.fullmatch(body):
        hexed, path = plain[1], plain[2]
    if not path or len(hexed) % 2 or (algorithm and fmt.DIGESTS.get(algorithm) != len(hexed) // 2):
        return None
    if escaped:
        if re.search(rb"\\(?![\\nr])", re.sub(rb"\\\\", b"", path)):
            return None
        path = re.sub(rb"\\[\\nr]", lambda found: _UNESCAPES[found[0]], path)
    return Listed(algorithm, bytes.fromhex(hexed.decode()), path)


def is_blank(line: bytes) -> bool:
    """Whether a line of a list is empty or a comment."""
    return not line.strip() or line.startswith(b"#")
