"""Figures as Prometheus metrics. Whoever asks gets what was counted so far; nothing is kept in between."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pipeline.metrics.figures import StoreFigures, Sums
from pipeline.metrics.meters import Count, Histogram, blocks_of, requests_of

PREFIX = "drystone_"
LAST_SUCCESS = PREFIX + "command_last_success_timestamp_seconds"

#: Which counter is which `operation` of drystone_chunk_operations_total.
_CHUNK_OPERATIONS = {
    "create": Count.CREATED,
    "deduplicate": Count.DEDUPLICATED,
    "delete": Count.DELETED,
    "receive": Count.RECEIVED,
}
Labels = tuple[str, ...]


@dataclass
class CommandFigures:
    """A command: how it ended, and when it last ended with exit code 0, in seconds since 1970. `seconds` and
    `exit_code` are None while it runs, `last_success` where nobody knows of any."""

    name: str
    exit_code: int | None = None
    last_success: float | None = None
    seconds: float | None = None
    _began: float = field(default_factory=time.monotonic)

    def end(self, exit_code: int) -> None:
        self.exit_code, self.seconds = exit_code, time.monotonic() - self._began
        if exit_code == 0:
            self.last_success = time.time()

    def elapsed(self) -> float:
        """Seconds that it took, or has taken so far."""
        return time.monotonic() - self._began if self.seconds is None else self.seconds


class StoreCollector(Collector):
    """All metrics of a store and of the command that uses it. What is not known has no sample; where there is one for
    each backend or codec, it is left out until something was counted."""

    def __init__(self, figures: StoreFigures, command: CommandFigures | None = None, *, named: bool = False) -> None:
        """`named`: all samples bear the command's name, so that those of several commands can stand side by side."""
        self._figures = figures
        self._command = command
        self._labels = {"command": command.name} if command is not None and named else {}

    def collect(self) -> Iterator[Metric]:
        for family in self._families():
            if self._labels:
                family.samples = [each._replace(labels=self._labels | each.labels) for each in family.samples]
            yield family

    def _families(self) -> Iterator[Metric]:
        held, sums = self._figures.held, self._figures.sums()
        chunks, size = (None, None) if held is None else held
        yield _gauge("chunks", "Chunks that the store holds, by its log.", chunks)
        yield _gauge("chunks_bytes", "Plain bytes of all chunks of the store, by its log.", size)
        yield _counters(
            "chunk_operations",
            "Chunks that were stored for the first time, known already, deleted, taken from another store.",
            ("operation",),
            (((name,), sums.words[which]) for name, which in _CHUNK_OPERATIONS.items()),
        )
        yield _counter("chunk_dedupe_hits", "Chunks that were known already.", sums.words[Count.DEDUPLICATED])
        yield from _stage_metrics(sums)
        yield from _block_metrics(sums)
        yield from self._backend_metrics(sums)
        repaired, cells, records = (
            sums.words[each] for each in (Count.REPAIRED_SHARDS, Count.HEALED_CELLS, Count.HEALED_RECORDS)
        )
        yield _counter("shards_repaired", "Shards that were written anew.", repaired)
        yield _counter("cells_healed", "Cells that were decoded from others while reading.", cells)
        yield _counter(
            "records_healed", "Shard records and tables that their second copy or armour gave back.", records
        )
        if self._command is not None:
            yield from _command_metrics(self._command)

    def _backend_metrics(self, sums: Sums) -> Iterator[Metric]:
        backends = self._figures.backends
        info = GaugeMetricFamily(
            f"{PREFIX}backend_info",
            "1 for each backend of the store.",
            labels=("backend", "type", "location", "domain"),
        )
        for each in backends.values():
            info.add_metric((str(each.backend_id), each.type, each.location, each.domain), 1)
        yield info
        requests = [
            ((str(backends[each.backend].backend_id), each.operation), each)
            for each in requests_of(sums.words)
            if sum(each.seconds.buckets) and each.backend in backends
        ]
        labels = ("backend", "operation")
        yield _counters(
            "backend_operations",
            "Requests to backends; look is for sizes, existence and room.",
            labels,
            ((key, sum(each.seconds.buckets)) for key, each in requests),
        )
        yield _counters(
            "backend_errors",
            "Requests to backends that failed; that a key is absent is no failure.",
            labels,
            ((key, each.errors) for key, each in requests),
        )
        yield _counters(
            "backend_bytes", "Bytes read from backends and written to them.", labels,
            ((key, each.bytes) for key, each in requests if each.operation in ("read", "write")),
        )  # fmt: skip
        yield _histograms(
            "backend_operation_duration_seconds", "How long requests to backends took.", labels,
            ((key, each.seconds) for key, each in requests),
        )  # fmt: skip


def registry_of(
    figures: StoreFigures, command: CommandFigures | None = None, *, named: bool = False
) -> CollectorRegistry:
    """A registry that holds nothing but a StoreCollector: the process's default one is left alone."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StoreCollector(figures, command, named=named))
    return registry


def _stage_metrics(sums: Sums) -> Iterator[Metric]:
    labels, stages = ("operation", "stage"), sums.stages.items()
    items = ((key, each.items) for key, each in stages)
    yield _counters("stage_items", "Items that a stage has done.", labels, items)
    sizes = ((key, each.bytes) for key, each in stages)
    yield _counters("stage_bytes", "Bytes that a stage has done.", labels, sizes)
    busy = ((key, each.busy_ns / 1e9) for key, each in stages)
    yield _counters("stage_busy_seconds", "Time that the workers of a stage worked.", labels, busy)
    waiting = ((key, each.waiting_ns / 1e9) for key, each in stages)
    yield _counters("stage_waiting_seconds", "Time that they waited for input or room.", labels, waiting)
    depth = GaugeMetricFamily(
        f"{PREFIX}queue_depth", "Messages that wait, or are being worked on.", labels=("operation", "queue")
    )
    for key, waits in sums.queues.items():
        depth.add_metric(key, waits)
    yield depth


def _block_metrics(sums: Sums) -> Iterator[Metric]:
    blocks = [((each.codec, each.direction), each) for each in blocks_of(sums.words) if sum(each.seconds.buckets)]
    labels = ("algorithm", "direction")
    into = ((key, each.bytes_in) for key, each in blocks)
    yield _counters("compression_in_bytes", "Bytes that were to be compressed or decompressed.", labels, into)
    out = ((key, each.bytes_out) for key, each in blocks)
    yield _counters("compression_out_bytes", "Bytes that came of it.", labels, out)
    skipped = ((key, each.skipped) for key, each in blocks)
    yield _counters("compression_skipped", "Blocks that are stored as they are.", labels, skipped)
    ratios = ((key, each.ratios) for key, each in blocks)
    yield _histograms("compression_ratio", "Plain bytes of a block for each stored one.", labels, ratios)
    seconds = ((key, each.seconds) for key, each in blocks)
    yield _histograms("compression_duration_seconds", "How long a block took.", labels, seconds)


def _command_metrics(command: CommandFigures) -> Iterator[Metric]:
    values = (
        ("command_duration_seconds", "How long the command took, or has taken so far.", command.elapsed()),
        ("command_exit_code", "Exit code of the command.", command.exit_code),
        (LAST_SUCCESS.removeprefix(PREFIX), "When the command last ended with exit code 0.", command.last_success),
    )
    for name, text, value in values:
        family = GaugeMetricFamily(PREFIX + name, text, labels=("command",))
        if value is not None:
            family.add_metric((command.name,), value)
        yield family


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _counters(name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _histograms(
    name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, Histogram]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for key, each in values:
        bounds = [*map(floatToGoString, each.bounds), "+Inf"]
        family.add_metric(key, list(zip(bounds, accumulate(each.buckets), strict=True)), each.total)
    return family
