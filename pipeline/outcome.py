"""What an ingest or a restore tells of itself: what its stages did, and which objects failed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counters = npt.NDArray[np.uint64]
#: An object's path, and what went wrong with it.
NamedError = tuple[bytes, str]


@dataclass(frozen=True)
class StageFigures:
    """What one stage did, summed over its workers. Times in seconds."""

    stage: str
    workers: int
    items: int
    bytes: int
    busy: float
    waiting: float


def stage_figures(counters: Counters, names: tuple[str, ...], seconds: float) -> list[StageFigures]:
    """Figures by stage from the counters of a run that took `seconds`."""
    figures = []
    for number, name in enumerate(names):
        rows = counters[:, number, :].astype(np.float64)
        workers = int((rows[:, 2] + rows[:, 3] > 0).sum())
        items, size, busy, waiting = rows.sum(axis=0)
        figures.append(StageFigures(name, workers, int(items), int(size), busy / 1e9, waiting / 1e9))
    return figures
