"""What many small puts cost, beside writing as many files.

    python -m tests.bench.puts [--count 10000] [--size 4096] [--rounds 3] [--place DIR]

Files are written, and at the end each is made durable, and the directory. Puts go into one batch, by its end durable on
all backends, with parity. Prints the best of the rounds.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tempfile
import time
from pathlib import Path

from pipeline.filestore import FileStore


def write_files(folder: Path, contents: list[bytes]) -> float:
    began = time.perf_counter()
    folder.mkdir()
    for number, data in enumerate(contents):
        (folder / str(number)).write_bytes(data)
    for path in (*folder.iterdir(), folder):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.perf_counter() - began


def put_objects(place: Path, contents: list[bytes]) -> tuple[float, float]:
    """Seconds for one batch, and seconds for one object alone."""
    with FileStore.create([place / "store"], cache=place / "cache") as store:
        began = time.perf_counter()
        with store.batch():
            for number, data in enumerate(contents):
                store.put_object(f"key/{number}", io.BytesIO(data))
        took, began = time.perf_counter() - began, time.perf_counter()
        store.put_object("alone", io.BytesIO(contents[0] + b"x"))
        return took, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", default=None)
    options = parser.parse_args()
    files, puts, single = [], [], []
    for seed in range(options.rounds):
        chance = random.Random(seed)
        contents = [chance.randbytes(options.size) for _ in range(options.count)]
        with tempfile.TemporaryDirectory(dir=options.place) as scratch:
            files.append(write_files(Path(scratch, "files"), contents))
            batch, alone = put_objects(Path(scratch), contents)
            puts.append(batch)
            single.append(alone)
    ratio = min(puts) / min(files)
    print(f"{options.count} files of {options.size} bytes, each made durable: {min(files):.2f} s")
    print(
        f"{options.count} puts in a batch: {min(puts):.2f} s, {ratio:.2f} times as long; one alone: {min(single):.3f} s"
    )


if __name__ == "__main__":
    main()
