"""Memory: all processes of an ingest, a restore and a verification together stay within --memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.budget import DUCKDB_MEMORY
from tests.test_endings import descendants

COMMAND = str(Path(sys.executable).with_name("drystone"))
LIMIT = 600 << 20
#: Writes N times 1 MiB that compresses to a half and holds no chunk twice.
SOURCE = (
    "import os,sys,struct\n"
    "for n in range(int(sys.argv[1])): os.write(1, (os.urandom(512) + struct.pack('<Q', n) * 64) * 1024)"
)


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) << 10
    except (OSError, StopIteration):
        return 0


def peak_of(process: subprocess.Popen[bytes], code: int = 0) -> int:
    """Largest sum of PSS over a process and all below it while it runs; it must end with `code`."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(pss(pid) for pid in [process.pid, *descendants(process.pid)]))
        time.sleep(0.02)
    assert process.returncode == code
    return peak


def run_all(place: Path, mebibytes: int) -> dict[str, int]:
    """Peaks of an ingest of so many MiB from a pipe, a restore and a verification."""
    store = place / "store"
    subprocess.run([COMMAND, "init", store], check=True, capture_output=True)
    feeder = subprocess.Popen([sys.executable, "-c", SOURCE, str(mebibytes)], stdout=subprocess.PIPE)
    ingest = subprocess.Popen([COMMAND, "-s", store, "ingest", "-q", "-", "--name", "stream"], stdin=feeder.stdout)
    assert feeder.stdout is not None
    feeder.stdout.close()
    peaks = {"ingest": peak_of(ingest)}
    assert feeder.wait() == 0
    peaks["restore"] = peak_of(subprocess.Popen([COMMAND, "-s", store, "restore", "-q", "--to", place / "out"]))
    peaks["verify"] = peak_of(subprocess.Popen([COMMAND, "-s", store, "verify", "--data", "-q"]))
    assert (place / "out" / "stream").stat().st_size == mebibytes << 20
    os.unlink(place / "out" / "stream")
    return peaks


def test_peaks_stay_within_the_limit(tmp_path: Path) -> None:
    peaks = run_all(tmp_path, 256)
    assert min(peaks.values()) > 32 << 20, "the measurement saw nothing"
    assert max(peaks.values()) <= LIMIT, peaks


def test_less_memory_is_kept_to(tmp_path: Path) -> None:
    store = tmp_path / "store"
    subprocess.run([COMMAND, "init", store, "--pack-size", "4MiB"], check=True, capture_output=True)
    refused = subprocess.run(
        [COMMAND, "-s", store, "ingest", "-", "--name", "x", "--memory", "64MiB"], capture_output=True, text=True
    )
    assert refused.returncode == 2
    minimum = refused.stderr.rsplit("at least ", 1)[1].strip().replace(" ", "")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(100_000_000))
    limit = int(float(minimum.removesuffix("MiB")) + 1)
    ingest = subprocess.Popen([COMMAND, "-s", store, "ingest", "-q", source, "--memory", f"{limit}MiB"])
    assert peak_of(ingest) <= limit << 20


#: Puts what comes through the pipe, reads it back, and prints the object's size.
PUT = """
import sys
from pathlib import Path
from pipeline import FileStore
with FileStore.create([sys.argv[1]], cache=Path(sys.argv[2])) as store:
    size = store.put_object("stream", sys.stdin.buffer).size
    with store.get_object_data("stream") as stream:
        buffer = bytearray(1 << 20)
        while count := stream.readinto(buffer):
            size -= count
    print(size)
"""


def test_an_object_of_unknown_length_takes_little_memory(tmp_path: Path) -> None:
    mebibytes = 384
    feeder = subprocess.Popen([sys.executable, "-c", SOURCE, str(mebibytes)], stdout=subprocess.PIPE)
    command = [sys.executable, "-c", PUT, str(tmp_path / "store"), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=feeder.stdout, stdout=subprocess.PIPE) as put:
        assert feeder.stdout is not None and put.stdout is not None
        feeder.stdout.close()
        peak = peak_of(put)
        assert put.stdout.read() == b"0\n" and feeder.wait() == 0
    assert 64 << 20 < peak < 500 << 20


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_peaks_do_not_grow_with_the_input(tmp_path: Path) -> None:
    small, large = run_all(tmp_path / "small", 1 << 10), run_all(tmp_path / "large", 8 << 10)
    assert max(large.values()) <= LIMIT
    for name, peak in large.items():
        # DuckDB's tables grow with the chunks until they spill; beyond its limit nothing may.
        assert peak <= small[name] + DUCKDB_MEMORY, (small, large)
