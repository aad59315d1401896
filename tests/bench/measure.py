"""Measuring one command: wall time, CPU time and peak memory of its whole process tree, on warm memory and warm cache.

Times and memory come from different runs: looking at memory costs CPU, and would be billed to the command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

REAPER = Path(__file__).with_name("reaper.py")
#: Seconds between two looks at the memory of a process tree.
SAMPLING = 0.02
_PIECE = bytes(8 << 20)


class BenchError(Exception):
    """A command failed or did something else than it should, so there is nothing to measure."""


@dataclass(frozen=True)
class Command:
    """What is to be run. `environment` comes on top of ours; `feed`: another command, outside of the measured tree,
    whose standard output becomes this one's standard input."""

    arguments: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    feed: Sequence[str] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.arguments))


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds of wall and CPU; `pss` in bytes where it was sampled; its standard output."""

    wall: float
    cpu: float
    pss: int | None
    output: bytes

    def __add__(self, other: Usage) -> Usage:
        """Of two commands, one after the other."""
        most = None if self.pss is None or other.pss is None else max(self.pss, other.pss)
        return Usage(self.wall + other.wall, self.cpu + other.cpu, most, self.output + other.output)


def run(command: Command, sampling: float = 0.0) -> Usage:
    """Run a command to its end. Raises BenchError when its exit code is not 0 or it leaves processes behind."""
    environment = {**os.environ, **command.environment}
    with ExitStack() as stack:
        report = stack.enter_context(tempfile.NamedTemporaryFile("r", prefix="bench-report-"))
        output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        source: int = subprocess.DEVNULL
        feeder = None
        if command.feed:
            feeder = stack.enter_context(subprocess.Popen(command.feed, stdout=subprocess.PIPE))
            assert feeder.stdout is not None
            source = feeder.stdout.fileno()
        reaper = [sys.executable, "-I", "-S", str(REAPER), report.name, str(sampling)]
        process = subprocess.Popen(
            [*reaper, *map(str, command.arguments)],
            stdin=source, stdout=output, stderr=errors, cwd=command.folder, env=environment,
        )  # fmt: skip
        if feeder is not None and feeder.stdout is not None:
            feeder.stdout.close()  # the command alone holds the pipe, so the feeder ends with it
        process.wait()
        output.seek(0)
        errors.seek(0)
        said = errors.read()[-2000:].decode(errors="replace").strip()
        if process.returncode:
            raise BenchError(f"{command}: could not be run: {said}")
        found = json.load(report)
        if found["code"]:
            raise BenchError(f"{command}: exit code {found['code']}: {said or 'it said nothing'}")
        if found["left"]:
            raise BenchError(f"{command}: left {found['left']} processes behind")
        return Usage(found["wall"], found["user"] + found["system"], found["pss"], output.read())


def warm_memory(scratch: Path, size: int) -> None:
    """Write `size` bytes to a file and remove it, so that the pages of tmpfs are there: on a virtual machine memory
    that was not used for a while costs three times as much on its first use, whoever uses it. Raises OSError."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        for at in range(0, size, len(_PIECE)):
            file.write(_PIECE[: size - at])


def warm_cache(path: Path) -> None:
    """Bring all files at or below `path` into the page cache, by reading them. (tar notices that it writes to
    /dev/null, and reads nothing.) Raises BenchError."""
    done = subprocess.run(["find", path, "-type", "f", "-exec", "cat", "{}", "+"], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise BenchError(f"reading {path} failed")


def tree_bytes(root: Path) -> int:
    """Bytes of all regular files below `root`, or of the file `root`."""
    if root.is_file():
        return root.stat().st_size
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(root)
        for name in names
        if not os.path.islink(os.path.join(folder, name))
    )
