"""Closing sentences claim what was looked at and what is true, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))


def drystone(store: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "-s", store, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and the source of its one run: many files, which take a while to be given back."""
    place = tmp_path_factory.mktemp("words")
    (place / "data").mkdir()
    for number in range(40):
        (place / "data" / f"file-{number}").write_bytes(os.urandom(2 << 20))
    assert subprocess.run([COMMAND, "init", place / "store"], capture_output=True, check=False).returncode == 0
    drystone(place / "store", "ingest", place / "data", "-q")
    return place


def test_a_verification_that_read_nothing_does_not_call_it_whole(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    subprocess.run(["cp", "-a", place / "store", store], check=True)
    for backend in (place / "store").iterdir():  # so that the copy is not taken for one
        backend.rename(backend.with_name("gone-" + backend.name))
    try:
        shard = next(store.glob("backend-*/packs/*/*"))
        mode = shard.stat().st_mode
        shard.chmod(mode | 0o200)
        with open(shard, "r+b") as file:
            file.seek(shard.stat().st_size // 2)
            file.write(b"8 bytes!")
        shown = drystone(store, "verify").stdout
        assert "bytes not read (see --data)" in shown and "whole: " not in shown and "damage" not in shown
        assert "all shards are there" in shown
        assert json.loads(drystone(store, "verify", "--json").stdout)["data"] is False
        assert "all whole" not in drystone(store, "status").stdout
        found = drystone(store, "verify", "--data", code=4)
        assert "1 bad cell," in found.stdout and "nothing is lost" in found.stdout
        assert json.loads(drystone(store, "verify", "--data", "--json", code=4).stdout)["data"] is True
    finally:
        for backend in (place / "store").iterdir():
            backend.rename(backend.with_name(backend.name.removeprefix("gone-")))


def interrupted(store: Path, number: signal.Signals, *words: object) -> subprocess.CompletedProcess[str]:
    """A command that gets a signal when its workers are at work."""
    with subprocess.Popen(
        [COMMAND, "-s", store, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 30
        while time.monotonic() < until and not any(name.startswith("dry-") for name in _names_below(process.pid)):
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _names_below(pid: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    below, names = {pid}, []
    for _ in range(3):
        for own, parent, name in rows:
            if int(parent) in below and int(own) not in below:
                below.add(int(own))
                names.append(name)
    return names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "stands"),
    one_in(
        2,
        [
            (["restore", "--to", "PLACE/back", "--overwrite", "always"], "what was restored stays in PLACE/back"),
            (["verify", "--data"], "nothing of it is noted in the store"),
            (["ingest", "PLACE/data", "--force"], "nothing was committed"),
        ],
        several=True,
    ),
)
def test_an_end_by_a_signal_says_what_is_true_of_it(
    place: Path, tmp_path: Path, words: list[str], stands: str, number: signal.Signals
) -> None:
    runs = drystone(place / "store", "runs").stdout
    ended = interrupted(place / "store", number, *[word.replace("PLACE", str(place)) for word in words])
    assert ended.returncode == 128 + number, "it was over before the signal came"
    assert f"stopped by {number.name}; {stands.replace('PLACE', str(place))}" in ended.stderr
    assert ("committed" in ended.stderr) == (words[0] == "ingest")
    assert drystone(place / "store", "runs").stdout == runs


def test_what_may_be_deleted_is_said_with_what_was_looked_at(place: Path) -> None:
    store = place / "store"
    assert "equal by length, time and attributes: " in drystone(store, "compare", place / "data").stdout
    assert "unless bytes changed" in drystone(store, "compare", place / "data").stdout
    assert "equal: all that is in" in drystone(store, "compare", place / "data", "--data").stdout
