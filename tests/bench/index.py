"""Dedupe indexes at size: bytes a chunk, look-ups a second, private memory, and what an ingest takes with each kind.

    python -m tests.bench.index --chunks 10000000 --work /var/tmp/bench

Makes a store whose manifests name so many random chunks (without packs, which ingest does not ask for), then lets each
kind, in a process of its own, load them, look up and add, and at last ingests the same files with each kind in turn.
Memory is anonymous memory (RssAnon), read 200 times a second: the page cache counts nowhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from manifests.config import ChunkerSpec, CodecSpec, ECScheme
from manifests.ids import new_id
from manifests.indexcache import IndexCache
from manifests.known import count_rows, known_chunks
from manifests.log import make_record, write_record
from manifests.tables import TableWriter, constant_id, file_name
from pipeline.filestore import FileStore
from pipeline.ingest.overlay import OverlayIndex
from pipeline.ingest.run import IngestOptions
from stages.dedupe import MemoryIndex

FILE_ROWS = 512 << 10
LOOKUPS = 1_000_000
BATCH = 4096
PACK = uuid.UUID("01890000-0001-7000-8000-0000000000ab")
KINDS = ("memory", "disk")


def random_ids(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 64, (count, 4), dtype=np.uint64).view(np.uint8)


def make_store(folder: Path, chunks: int) -> None:
    """A store whose manifests name `chunks` chunks, sorted by id in each file as ingest does."""
    scheme, chunker, codec = ECScheme(1, 0), ChunkerSpec("fastcdc", 16 << 10), CodecSpec("zstd", 1)
    with FileStore.create(
        [folder / "store"], scheme=scheme, chunker=chunker, codec=codec, cache=folder / "cache"
    ) as store:
        record_id, files = new_id(store.state.newest), []
        for number, start in enumerate(range(0, chunks, FILE_ROWS)):
            ids = random_ids(min(FILE_ROWS, chunks - start), number)
            ids = ids[np.argsort(ids[:, :8].copy().view(">u8").ravel())]
            writer = TableWriter("chunks", "chunk_id")
            for at in range(0, len(ids), 64 << 10):
                part = ids[at : at + (64 << 10)]
                zeros = np.zeros(len(part), np.uint32)
                columns = {"chunk_id": part, "pack_id": constant_id(PACK, len(part)), "block": zeros, "offset": zeros}
                writer.append({**columns, "length": zeros + np.uint32(128 << 10)})
            files.append(writer.publish(store.members, file_name(record_id, number)))
        write_record(store.members, make_record(record_id, "compact", {}, files))


def private_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield int(child)
        yield from descendants(int(child))


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """While it runs: the most private memory of this process or, with `worker`, of the worker so called; and the CPU
    seconds of all workers together."""

    def __init__(self, worker: str = "") -> None:
        self.most = 0
        self._worker = worker
        self._cpu: dict[int, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def cpu(self) -> float:
        return sum(self._cpu.values())

    def _look(self) -> None:
        if not self._worker:
            self.most = max(self.most, private_bytes(os.getpid()))
            return
        for pid in descendants(os.getpid()):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            if name.startswith("dry-"):
                self._cpu[pid] = max(self._cpu.get(pid, 0.0), cpu_seconds(pid))
            if name == self._worker:
                self.most = max(self.most, private_bytes(pid))

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            self._look()

    def __enter__(self) -> Watch:
        self._own = time.process_time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._cpu[os.getpid()] = time.process_time() - self._own


@contextmanager
def took(figures: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    figures[name] = time.monotonic() - began


def measure(folder: Path, kind: str) -> dict[str, float]:
    """Load, look up and add, in this process."""
    figures: dict[str, float] = {}
    with FileStore.open(folder / "store", cache=folder / "cache") as store:
        chunks = count_rows(store.state, "chunks")
        store.replicas.paths(store.state.files("chunks"))
        known = random_ids(min(FILE_ROWS, chunks), 0)
        known = known[np.random.default_rng(5).integers(0, len(known), LOOKUPS)]
        batches = {"known": known, "new": random_ids(LOOKUPS, 10**6)}
        before = private_bytes(os.getpid())
        index: MemoryIndex | OverlayIndex
        with Watch() as peak:
            if kind == "memory":
                memory = MemoryIndex(chunks)
                with took(figures, "load"):
                    for rows in known_chunks(store.state, store.replicas, []):
                        memory.put_batch(rows["id"], rows["length"])
                index, figures["bytes_a_chunk"] = memory, memory.touched_bytes / chunks
            else:
                cache = IndexCache(folder / "cache" / str(store.config.store_id), "chunks")
                with took(figures, "build"):
                    usable = cache.bring_up_to_date(store.state, store.replicas, lambda: None)
                usable.close()
                with took(figures, "load"):
                    cache.bring_up_to_date(store.state, store.replicas, lambda: None).close()
                    assert usable.folder is not None
                    index = OverlayIndex(usable.folder)
                figures["bytes_a_chunk"] = (usable.folder / "data.mdb").stat().st_size / chunks
        figures["peak_loading"] = peak.most - before
        with Watch() as peak:
            for name, ids in batches.items():
                with took(figures, name):
                    added = sum(
                        int(index.put_batch(ids[at : at + BATCH], np.ones(len(ids[at : at + BATCH]), np.uint32)).sum())
                        for at in range(0, LOOKUPS, BATCH)
                    )
                assert added == (0 if name == "known" else LOOKUPS)
                figures[name] = LOOKUPS / figures[name]
        figures["peak_using"] = peak.most - before
        index.close()
    return figures


def measure_ingest(folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Ingests of files that are all new, with each kind in turn, in worker processes."""
    found: dict[str, dict[str, list[float]]] = {kind: {"seconds": [], "cpu": [], "dedupe": []} for kind in KINDS}
    source = folder / "source"
    for turn in range(rounds):
        for kind in KINDS:
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            words = np.random.default_rng(turn * 2 + KINDS.index(kind)).integers(97, 105, 512 << 20, dtype=np.uint8)
            for number in range(4096):
                (source / f"{number}").write_bytes(words[number << 17 : (number + 1) << 17])
            with FileStore.open(folder / "store", cache=folder / "cache") as store:
                if store.state.index != kind:
                    store._choose_index(kind)
                if kind == "disk":  # what the other kind's run added is added here, outside the measurement
                    store.ingest([__file__], options=IngestOptions(workers=1))
                with Watch("dry-dedupe") as watch:
                    result = store.ingest([str(source)], options=IngestOptions(host="bench"))
                found[kind]["seconds"].append(result.seconds)
                found[kind]["cpu"].append(watch.cpu)
                found[kind]["dedupe"].append(watch.most)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, required=True, help="Directory to work in; made, and removed at the end.")
    parser.add_argument("--rounds", type=int, default=3, help="Ingests of 512 MiB with each kind.")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.work, given.measure)))
        return
    given.work.mkdir(parents=True)
    try:
        make_store(given.work, given.chunks)
        print(f"{given.chunks:,} chunks in the manifests")
        for kind in KINDS:
            line = [sys.executable, "-m", "tests.bench.index", "--work", str(given.work), "--measure", kind]
            figures = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
            built = f"built in {figures['build']:.1f} s, " if "build" in figures else ""
            memory = [f"{figures[name] / 2**20:.0f} MiB" for name in ("peak_loading", "peak_using")]
            print(
                f"{kind}: {figures['bytes_a_chunk']:.1f} bytes a chunk; {built}ready in {figures['load']:.2f} s; "
                f"{figures['known']:,.0f} known and {figures['new']:,.0f} new chunks/s; "
                f"private memory at most {memory[0]} while loading, {memory[1]} in use"
            )
        for kind, lists in measure_ingest(given.work, given.rounds).items():
            print(
                f"ingest of 512 MiB with {kind}: {statistics.median(lists['seconds']):.2f} s "
                f"(each: {', '.join(f'{value:.2f}' for value in sorted(lists['seconds']))}), "
                f"{statistics.median(lists['cpu']):.2f} s of CPU, "
                f"dedupe worker at most {max(lists['dedupe']) / 2**20:.0f} MiB private"
            )
    finally:
        shutil.rmtree(given.work)


if __name__ == "__main__":
    main()
