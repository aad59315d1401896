"""The same as pictures (PNG): bars for all works and tools, and curves for what grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.results import LIMIT, WORKS, Results
from tests.bench.special import FILES, MEMORY, STREAM
from tests.bench.tools import MIB


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_works(results: Results, path: Path) -> None:
    """Wall time of each work, a panel for each data set; the limit is a bar like the others."""
    pyplot = _pyplot()
    names = results.data()
    tools = list(dict.fromkeys(record.tool for record in results.all() if record.work in WORKS))
    colours = {tool: "black" if tool == LIMIT else f"C{number}" for number, tool in enumerate(tools)}
    figure, axes = pyplot.subplots(len(names), 1, figsize=(11, 4 * len(names)), squeeze=False, layout="constrained")
    for axis, name in zip(axes[:, 0], names, strict=True):
        works = [work for work in WORKS if any(record.walls for record in results.of(name, work))]
        width = 0.85 / len(tools)
        for number, tool in enumerate(tools):
            found = [(at, results.find(name, work, tool)) for at, work in enumerate(works)]
            bars = [(at + number * width, record.wall) for at, record in found if record is not None and record.wall]
            axis.bar([at for at, _ in bars], [wall for _, wall in bars], width, label=tool, color=colours[tool])
        axis.set_xticks([at + 0.4 for at in range(len(works))], [WORKS[work].replace(", ", ",\n") for work in works])
        axis.tick_params(axis="x", labelsize="small")
        axis.set_yscale("log")
        axis.set_ylabel("seconds, less is better")
        axis.set_title(name)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def plot_series(results: Results, path: Path) -> bool:
    """Memory, and time for each byte and file, as the input grows. Returns False where nothing of it was measured."""
    pyplot = _pyplot()
    panels = [(name, records) for name in (MEMORY, STREAM, FILES) if (records := results.of_series(name))]
    if not panels:
        return False
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, (name, records) in zip(axes[0], panels, strict=True):
        sizes = [int(record.work) for record in records]
        if name == MEMORY:
            axis.plot(sizes, [(record.pss or 0) / MIB for record in records], "o-")
            axis.set_ylabel("peak MiB")
        else:
            scale, unit = (1e9, "GB") if name == STREAM else (1e3, "1000 files")
            walls = [(record.wall or 0.0) / size * scale for record, size in zip(records, sizes, strict=True)]
            axis.plot(sizes, walls, "o-")
            axis.set_ylabel(f"seconds for 1 {unit}")
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title(name)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True
