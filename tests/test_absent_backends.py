"""Backends that do not answer are named by whoever reads, and so is all that can't be given back without them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)
#: More than a restore names unless told to.
FILES = 1200
LOST = "3 of its 6 shards are on backends that answer, and 4 are needed"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("absent")
    (place / "data").mkdir()
    noise = random.Random(7)
    for number in range(FILES):
        (place / "data" / f"{number:04}").write_bytes(noise.randbytes(700))
    (place / "data" / "large").write_bytes(noise.randbytes(5_000_000))  # several blocks, and noted once
    with FileStore.create([place / "store"], cache=place / "cache", pack_size=1 << 20) as store:
        assert store.ingest([str(place / "data")], options=INLINE).exit_code == 0
    return place


def without(place: Path, numbers: str) -> list[str]:
    """Take some backends away. Returns where they were."""
    places = [place / "store" / f"backend-{number}" for number in numbers]
    for each in places:
        each.rename(place / each.name)
    return [str(each) for each in places]


def holders(place: Path) -> str:
    """The backends with the first data shards of the first pack, in which the small files lie."""
    shards = {path: path.stat().st_size for path in place.glob("store/backend-*/packs/*/*.[012]")}
    return "".join(sorted(path.parts[-4][-1] for path, size in shards.items() if size == max(shards.values())))


@pytest.fixture(autouse=True)
def put_back(place: Path) -> object:
    yield
    for each in place.glob("backend-*"):
        each.rename(place / "store" / each.name)


def drystone(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRYSTONE_STORE": "store", "DRYSTONE_CACHE": str(place / "cache")}
    return subprocess.run(
        [COMMAND, *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("numbers", ["4", "15"])
def test_a_restore_without_some_backends_says_so(place: Path, tmp_path: Path, numbers: str) -> None:
    places = without(place, numbers)
    done = drystone(place, "restore", "--to", str(tmp_path / "out"))
    assert done.returncode == 0 and f"restored {FILES + 1:,} files" in done.stdout, done.stderr
    assert f"into {tmp_path / 'out'} in" in done.stdout and "every chunk verified" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "not answer" in line]
    verb = "does" if len(places) == 1 else "do"
    assert line.startswith(f"{len(places)} of 6 backends {verb} not answer: {', '.join(places)}; ") and "-s" in line


def test_what_is_lost_without_them_is_named_once_and_all_of_it(place: Path, tmp_path: Path) -> None:
    places = without(place, holders(place))
    done = drystone(place, "restore", "--to", str(tmp_path / "out"))
    assert done.returncode == 3 and "every chunk verified" not in done.stdout
    lost = [line for line in done.stderr.splitlines() if line.startswith("not restored whole: ")]
    assert len(lost) == 1000 and all(LOST in line for line in lost)
    assert sum(", ".join(places) in line for line in done.stderr.splitlines()) == 1
    summary = json.loads(drystone(place, "restore", "--to", str(tmp_path / "json"), "--json").stdout)
    assert summary["troubles"] == [f"{each}: it does not answer" for each in places]
    failed, restored = summary["failed"], summary["files"]
    assert failed + restored == FILES + 1 and failed > 1000, "each object counts once"
    assert f"… and {failed - 1000:,} more; drystone restore -v names all" in done.stderr
    assert f"NOT restored whole: {failed:,} objects, named above" in done.stdout
    verbose = drystone(place, "restore", "--to", str(tmp_path / "all"), "-v").stderr.splitlines()
    named = {line.split(": ")[1] for line in verbose if line.startswith("not restored whole: ")}
    lines = drystone(place, "restore", "--to", str(tmp_path / "lines"), "--format", "jsonl").stdout.splitlines()
    items = [each for each in map(json.loads, lines) if each["type"] == "item"]
    assert len(named) == len(items) == failed and named == {each["path"] for each in items}
    assert "data/large" in named


def test_the_bytes_of_one_object(place: Path, tmp_path: Path) -> None:
    places = without(place, holders(place))
    done = drystone(place, "cat", "latest:data/large")
    assert done.returncode == 1
    told, error = done.stderr.splitlines()
    assert told.startswith(f"3 of 6 backends do not answer: {', '.join(places)}; ")
    assert LOST in error
    back = Path(places[0])
    (place / back.name).rename(back)
    done = drystone(place, "restore", "latest:data/large", "--range", "0-9", "--to", str(tmp_path / "part"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["troubles"] == [f"{each}: it does not answer" for each in places[1:]]


def test_all_backends_are_there_and_nothing_is_said(place: Path, tmp_path: Path) -> None:
    done = drystone(place, "restore", "latest:data/0007", "--to", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"restored 1 file, 700 B into {tmp_path} in ")
    again = drystone(place, "restore", "latest:data/0007", "--to", str(tmp_path)).stdout.splitlines()
    assert again[0].startswith(f"restored 0 files, 0 B into {tmp_path} in ") and "verified" not in again[0]
    assert again[1] == "in place already, by size and time: 1 file, 700 B; their bytes were not compared"


@pytest.mark.parametrize("more", [(), ("--range", "0-3")])
def test_a_dash_is_no_target(place: Path, more: tuple[str, ...]) -> None:
    done = drystone(place, "restore", "latest:data/0001", "--to", "-", *more)
    assert done.returncode == 2 and "drystone cat" in done.stderr and "./-" in done.stderr
    assert not (place / "-").exists()
    done = drystone(place, "restore", "latest:data/0001", "--to", "./-", *more)
    assert done.returncode == 0 and (place / "-").exists()
    for each in place.glob("-/*"):
        each.unlink()
    (place / "-").rmdir() if (place / "-").is_dir() else (place / "-").unlink()
