"""Where the metrics of a command go. Options are read by this, so Prometheus is not imported here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from manifests.errors import UsageError


class Address(NamedTuple):
    """Where metrics are served. Port 0: a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`PORT`, `ADDR:PORT` or `[ADDR]:PORT`. Raises UsageError."""
        host, _, port = text.rpartition(":")
        if not port.isascii() or not port.isdigit() or int(port) > 65535 or (text.startswith(":") and not host):
            raise UsageError(f"{text!r} is no port; write PORT or ADDR:PORT")
        return cls(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))

    def url(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port}/metrics"


@dataclass(frozen=True)
class Publication:
    """Where the metrics of a command go: each may be None. `directory`: of node-exporter's textfile collector; `push`:
    URL of a Pushgateway."""

    address: Address | None = None
    directory: str | None = None
    push: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what can't work."""
        if self.directory is not None and not os.path.isdir(self.directory):
            raise UsageError(f"--metrics-dir {self.directory} is no directory")
        if self.push is not None and not _is_url(self.push):
            raise UsageError(f"--metrics-push {self.push!r} is no URL; write http://HOST:PORT")


def _is_url(text: str) -> bool:
    """Whether a request can be sent there: a URL is ASCII, without blanks and control characters."""
    plain = text.isascii() and text.isprintable() and " " not in text
    return plain and host_of(text) != "" and urlsplit(text).scheme in ("http", "https")


def host_of(url: str) -> str:
    """Host and port of a URL, without a password that may stand before them; empty where it has none."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or ""
    except ValueError:
        return ""
