"""Progress on standard error: a live line on a terminal, plain lines now and then or JSON lines on request."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.counts import counted
from manifests.sizes import format_size
from pipeline.printing import flush, warn

Counters = npt.NDArray[np.uint64]
PLAIN_SECONDS = 10.0
JSON_SECONDS = 1.0


@dataclass(frozen=True)
class Snapshot:
    """How far an operation is. `total` bytes is 0, and `bottleneck` empty, while nobody knows."""

    files: int
    bytes: int
    total: int
    bottleneck: str

    @property
    def share(self) -> float:
        return min(1.0, self.bytes / self.total) if self.total else 0.0


def bottleneck(counters: Counters, stages: tuple[str, ...], among: tuple[int, ...]) -> str:
    """The stage whose workers were at work for the largest part of the time so far; empty while that is not known. Time
    counts for a stage also where it ended long ago."""
    busy, waiting = counters[:, :, 2].astype(float), counters[:, :, 3].astype(float)
    together = busy + waiting
    elapsed = together.sum(axis=1).max(initial=0.0)
    if not elapsed:
        return ""
    workers = np.maximum(1, (together > 0).sum(axis=0))
    return max((busy[:, stage].sum() / (elapsed * workers[stage]), stages[stage]) for stage in among)[1]


class Progress:
    """Shows snapshots while an operation runs. `form`: live, plain, json or none. Use as a context manager."""

    def __init__(self, what: str, read: Callable[[Counters], Snapshot], form: str) -> None:
        self._what = what
        self._read = read
        self._form = form
        self._started = self._last = time.monotonic()
        self._live: Any = None
        self._task: Any = None

    @classmethod
    def choose(
        cls, what: str, read: Callable[[Counters], Snapshot], *, quiet: bool, output: str, verbose: bool = False
    ) -> Progress:
        """The form that fits: none when quiet, JSON with `jsonl`, live on a terminal; elsewhere plain lines where
        `verbose`, else none: a mail from cron is read for its summary."""
        if quiet:
            return cls(what, read, "none")
        if output == "jsonl":
            return cls(what, read, "json")
        if sys.stderr.isatty():
            return cls(what, read, "live")
        return cls(what, read, "plain" if verbose else "none")

    def __enter__(self) -> Progress:
        if self._form == "live":
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._live = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task(self._what, total=None, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tick(self, counters: Counters) -> None:
        """Show how far it is; called a few times a second."""
        if self._form == "none":
            return
        now = time.monotonic()
        if self._form == "live":
            snapshot = self._read(counters)
            self._live.update(
                self._task, total=snapshot.total or None, completed=snapshot.bytes, text=self._text(snapshot, now)
            )
            return
        if now - self._last < (JSON_SECONDS if self._form == "json" else PLAIN_SECONDS):
            return
        self._last = now
        snapshot = self._read(counters)
        if self._form == "json":
            self._json(snapshot, now)
        else:
            warn(f"{self._what}: {self._text(snapshot, now)}")

    def _left(self, snapshot: Snapshot, now: float) -> float | None:
        if not snapshot.bytes or not snapshot.total:
            return None
        return max(0.0, (now - self._started) * (snapshot.total / snapshot.bytes - 1))

    def _text(self, snapshot: Snapshot, now: float) -> str:
        rate = snapshot.bytes / max(now - self._started, 1e-9)
        of = f" of {format_size(snapshot.total)}" if snapshot.total else ""
        text = f"{counted(snapshot.files, 'file')}, {format_size(snapshot.bytes)}{of}, {format_size(rate)}/s"
        left = self._left(snapshot, now)
        if left is not None:
            text += f", {int(left) // 60}:{int(left) % 60:02} left"
        return f"{text}, held by {snapshot.bottleneck}" if snapshot.bottleneck else text

    def _json(self, snapshot: Snapshot, now: float) -> None:
        from pipeline.cli.output import emit_json

        elapsed = now - self._started
        emit_json(
            "progress",
            {
                "files": snapshot.files,
                "bytes": snapshot.bytes,
                "total_bytes": snapshot.total or None,
                "bytes_per_second": int(snapshot.bytes / max(elapsed, 1e-9)),
                "seconds": round(elapsed, 3),
                "seconds_left": self._left(snapshot, now),
                "bottleneck": snapshot.bottleneck or None,
            },
        )
        flush()
