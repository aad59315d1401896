"""What a person and a script see meanwhile: a live line on a terminal, plain lines elsewhere, JSON lines on request."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.progress import Progress, Snapshot, bottleneck
from tests.trees import make_tree

COMMAND = str(Path(sys.executable).with_name("drystone"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    subprocess.run([COMMAND, "init", tmp_path / "store"], check=True, capture_output=True)
    make_tree(tmp_path / "tree", 3, 50)
    return tmp_path / "store"


def test_a_terminal_sees_rate_and_bottleneck(store: Path) -> None:
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "-s", store, "ingest", store.with_name("tree")], stdout=subprocess.DEVNULL, stderr=inner
    )
    os.close(inner)
    seen = b""
    while True:
        try:
            piece = os.read(outer, 4096)
        except OSError:  # a pty whose other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(outer)
    assert process.wait() == 0
    assert b"ingest" in seen and b"held by" in seen and b"/s" in seen


def test_no_terminal_sees_no_control_characters(store: Path) -> None:
    done = subprocess.run([COMMAND, "-s", store, "ingest", store.with_name("tree")], capture_output=True, check=True)
    assert b"\x1b" not in done.stderr + done.stdout and b"\r" not in done.stderr


def test_a_script_gets_json_lines_and_a_summary_last(store: Path) -> None:
    command = [COMMAND, "-s", store, "ingest", "--format", "jsonl", store.with_name("tree")]
    lines = [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]
    assert {line["type"] for line in lines} <= {"progress", "item", "summary"}
    summary = lines[-1]
    assert summary["type"] == "summary" and summary["exit_code"] == 0
    assert {"run", "files", "bytes", "new_bytes", "stored_bytes", "parity_bytes", "stages"} <= summary.keys()
    assert {stage["stage"] for stage in summary["stages"]} >= {"read", "chunk", "compress", "encode", "write"}


def test_a_stage_that_ended_long_ago_holds_nothing_up() -> None:
    stages = ("scan", "read", "chunk")
    counters = np.zeros((3, 3, 4), np.uint64)
    assert bottleneck(counters, stages, (0, 1, 2)) == "", "nothing is known yet"
    counters[0, 0, 2] = 800_000  # busy all its life, which was short
    counters[1, 1, 2:] = 35_000_000_000, 0  # the reader waits for its input, which is its work
    counters[1, 2, 2:] = 100_000_000, 0
    counters[2, 2, 2:] = 300_000_000, 20_000_000_000
    assert bottleneck(counters, stages, (0, 1, 2)) == "read"
    counters[2, 2, 2:] = 79_000_000_000, 1_000_000_000
    assert bottleneck(counters, stages, (0, 2)) == "chunk"


def test_a_slow_pipe_is_told_from_slow_work(store: Path) -> None:
    half = "head -c 3000000 /dev/urandom"
    script = f"({half}; sleep 2; {half}) | {COMMAND} -s {store} ingest - --name x"
    table = subprocess.check_output(["sh", "-c", script], text=True)
    busy = {words[0]: int(words[3].rstrip("%")) for line in table.splitlines() if len(words := line.split()) == 5
            and words[4].endswith("%")}  # fmt: skip
    assert busy["read"] > 20 and busy["scan"] < 20 and max(busy, key=busy.__getitem__) == "read", table


@pytest.mark.parametrize("form", ["plain", "json"])
def test_time_left_follows_from_what_is_known(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("pipeline.cli.progress.time.monotonic", lambda: now[0])
    snapshot = Snapshot(files=3, bytes=50 << 20, total=200 << 20, bottleneck="compress")
    progress = Progress("ingest", lambda counters: snapshot, form)
    progress.tick(np.zeros((1, 1, 4), np.uint64))
    assert capsys.readouterr() == ("", ""), "too early to say anything"
    now[0] += 20
    progress.tick(np.zeros((1, 1, 4), np.uint64))
    out, err = capsys.readouterr()
    if form == "json":
        record = json.loads(out)
        assert (record["seconds_left"], record["bytes_per_second"]) == (60.0, (50 << 20) // 20)
    else:
        assert "50.0 MiB of 200.0 MiB" in err and "2.5 MiB/s" in err and "1:00 left" in err and "compress" in err
