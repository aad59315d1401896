"""Running stations to their end: by worker processes, or inline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arena import Layout
from pipeline.inline import run_inline
from pipeline.signalwatch import QueryWatch, SignalWatch
from pipeline.station import Context, Station
from pipeline.supervisor import Supervisor, WorkerSpec

Counters = npt.NDArray[np.uint64]
Home = Mapping[str, Callable[[Context], Station]]


def run_stations(
    layout: Layout,
    workers: list[WorkerSpec],
    home: Home,
    *,
    inline: bool,
    signals: SignalWatch,
    cleanup: tuple[Callable[[], None], ...] = (),
    on_tick: Callable[[Counters], None] | None = None,
    queries: QueryWatch | None = None,
) -> Counters:
    """Run `workers` and the `home` stations until all are done; returns the counters, workers first, then home. Raises
    what Supervisor.run raises; inline, what a station raises."""
    if not inline:
        return Supervisor(layout, workers, signals=signals, cleanup=cleanup, on_tick=on_tick, queries=queries).run(home)
    stations: dict[str, tuple[Callable[..., Station], Any]] = {
        spec.name: (spec.station, spec.options) for spec in workers
    }
    stations |= {f"home-{name}": (_without_options(make), None) for name, make in home.items()}
    return run_inline(replace(layout, workers=len(stations)), stations, on_tick)


def _without_options(make: Callable[[Context], Station]) -> Callable[[Context, Any], Station]:
    return lambda context, _: make(context)
