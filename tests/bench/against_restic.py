"""Ingest, restore and stored bytes against restic, A B A B in one run, source in the page cache, store on tmpfs.

    python -m tests.bench.against_restic SOURCE [SOURCE…] [--rounds 3] [--scratch /dev/shm]

Needs `restic` (Debian: apt-get install restic). Prints medians and ratios for each source, and JSON with `--json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DRYSTONE = str(Path(sys.executable).with_name("drystone"))


#: Memory to be touched before each timed command; set from the sources.
warm_bytes = 0


def warm_memory(scratch: str) -> None:
    """Write and remove a file, so that the pages of tmpfs are there: on a virtual machine memory that was not used for
    a while costs three times as much on its first use, whoever uses it."""
    piece = bytes(8 << 20)
    with tempfile.TemporaryFile(dir=scratch) as file:
        for _ in range(warm_bytes // len(piece)):
            file.write(piece)


def timed(command: list[str]) -> float:
    """Wall seconds of a command, on warm memory. Raises CalledProcessError."""
    warm_memory(os.environ["TMPDIR"])
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def tree_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def drystone_round(source: str, scratch: Path) -> dict[str, float]:
    """One ingest and one restore by Drystone: seconds, and data bytes before parity with one backend's manifests."""
    store, back = scratch / "drystone", scratch / "drystone-back"
    subprocess.run([DRYSTONE, "init", str(store)], check=True, capture_output=True)
    figures = {
        "ingest": timed([DRYSTONE, "-s", str(store), "ingest", "-q", source]),
        "restore": timed([DRYSTONE, "-s", str(store), "restore", "-q", "--to", str(back)]),
        "verify": timed([DRYSTONE, "-s", str(store), "verify", "--data", "-q"]),
    }
    stats = json.loads(subprocess.check_output([DRYSTONE, "-s", str(store), "stats", "--json"]))
    figures["stored"] = stats["stored"] + stats["manifests"]
    shutil.rmtree(store)
    shutil.rmtree(back)
    return figures


def restic_round(source: str, scratch: Path) -> dict[str, float]:
    """The same by restic."""
    store, back = scratch / "restic", scratch / "restic-back"
    restic = ["restic", "-q", "--no-cache", "-r", str(store)]
    subprocess.run([*restic, "init"], check=True, capture_output=True)
    figures = {
        "ingest": timed([*restic, "backup", source]),
        "restore": timed([*restic, "restore", "latest", "--target", str(back)]),
        "verify": timed([*restic, "check", "--read-data"]),
        "stored": tree_bytes(store / "data") + tree_bytes(store / "index") + tree_bytes(store / "snapshots"),
    }
    shutil.rmtree(store)
    shutil.rmtree(back)
    return figures


def compare(source: str, rounds: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Medians by tool, and the ratios restic / Drystone (for stored bytes Drystone / restic)."""
    subprocess.run(["tar", "cf", "/dev/null", source], check=False, stderr=subprocess.DEVNULL)
    tools: dict[str, Callable[[str, Path], dict[str, float]]] = {"drystone": drystone_round, "restic": restic_round}
    collected: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    for _ in range(rounds):
        for tool, one_round in tools.items():
            collected[tool].append(one_round(source, scratch))
    medians = {
        tool: {name: statistics.median(figures[name] for figures in some) for name in some[0]}
        for tool, some in collected.items()
    }
    ours, theirs = medians["drystone"], medians["restic"]
    ratios = {name: theirs[name] / ours[name] for name in ("ingest", "restore", "verify")}
    return {**medians, "ratio": {**ratios, "stored": ours["stored"] / theirs["stored"]}}


def main() -> int:
    global warm_bytes
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", default="/dev/shm")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("restic") is None:
        print("restic is missing; on Debian: apt-get install restic", file=sys.stderr)
        return 1
    os.environ["RESTIC_PASSWORD"] = "bench"
    with tempfile.TemporaryDirectory(prefix="drystone-bench-", dir=options.scratch) as scratch:
        os.environ["DRYSTONE_CACHE"] = f"{scratch}/cache"
        os.environ["TMPDIR"] = scratch
        for source in options.sources:
            place = Path(source)
            warm_bytes = (place.stat().st_size if place.is_file() else tree_bytes(place)) * 3 // 2
            result = compare(os.path.abspath(source), options.rounds, Path(scratch))
            if options.json:
                print(json.dumps({"source": source, **result}))
                continue
            print(source)
            print(f"  {'':<10} {'ingest s':>10} {'restore s':>10} {'verify s':>10} {'stored MiB':>11}")
            for name, row in result.items():
                stored = row["stored"] if name == "ratio" else row["stored"] / (1 << 20)
                cells = f"{row['ingest']:>10.2f} {row['restore']:>10.2f} {row['verify']:>10.2f} {stored:>11.2f}"
                print(f"  {name:<10} {cells}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
