"""Text in JSON records, such that every program can read it.

Names that are not UTF-8 are strings with lone surrogates in Python, which its JSON writes as `\\udce9`; DuckDB and
others refuse the whole record then. So such bytes are escaped, and where the exact path counts it stands beside the
text in base 64.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

from manifests.config import text


def as_text(value: Any) -> Any:
    """A JSON value with what is no text in its strings, and in its keys, escaped as in `\\\\udce9`."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {as_text(key): as_text(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(each) for each in value]
    return value


def path_entries(name: str, path: str) -> dict[str, str]:
    """The entries of a record for a path: `name`, and `<name>_b64` where it is not UTF-8.

    >>> path_entries("location", "/disk\\udce9")
    {'location': '/disk\\\\udce9', 'location_b64': 'L2Rpc2vp'}
    """
    shown = as_text(path)
    if shown == path:
        return {name: path}
    return {name: shown, f"{name}_b64": base64.b64encode(os.fsencode(path)).decode()}


def recorded_path(record: dict[str, Any], name: str) -> str:
    """The path that `path_entries` wrote. Raises KeyError, TypeError, ValueError on nonsense."""
    if f"{name}_b64" not in record:
        return text(record[name])
    try:
        return os.fsdecode(base64.b64decode(text(record[f"{name}_b64"]), validate=True))
    except binascii.Error as error:
        raise ValueError(f"{name}_b64 is not base 64") from error
