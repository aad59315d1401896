"""The summary of an ingest: what somebody wants to know who reads it in a mail from cron."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.progress import Progress
from tests.test_bad_input import drystone


@pytest.fixture
def place(tmp_path: Path) -> Path:
    drystone("init", tmp_path / "store")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"stone" * 1000)
    return tmp_path


def test_a_mail_from_cron_says_all_that_matters_and_nothing_else(place: Path) -> None:
    done = drystone("-s", place / "store", "ingest", place / "source", "--exclude", "x")
    assert done.stderr == "", "cron would mail it"
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"run [0-9a-f]{8}", lines[0])
    assert lines[1].split() == ["of", str(place / "source"), "on", socket.gethostname()]
    assert re.fullmatch(r"  began +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z, took \d+\.\d s", lines[2])
    assert lines[-2:] == [
        "safe: any 2 of 6 backends may be lost, and all comes back",
        "exit code 0: done, nothing was skipped",
    ]


@pytest.mark.parametrize(
    ("gone", "safe"), [(1, "any 1 of 6 backends may be lost"), (2, "none of 6 backends may be lost")]
)
def test_it_says_how_safe_it_is_now_and_why_things_were_skipped(place: Path, gone: int, safe: str) -> None:
    drystone("-s", place / "store", "ingest", "-q", place / "source")
    if gone == 1:  # with two gone nothing new would be taken
        (place / "source" / "new").write_bytes(b"brick")
    for number in range(gone):
        shutil.rmtree(place / "store" / f"backend-{number}")
    for name in ("one", "two"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(place / "source" / name))
    done = drystone("-s", place / "store", "ingest", place / "source", code=3)
    assert safe in done.stdout and "exit code 3: done, but items were skipped" in done.stdout
    assert re.search(r"^ +2  sockets are not archived$", done.stdout, re.MULTILINE)
    assert done.stderr.count("short of redundancy") == gone
    record = json.loads(drystone("-s", place / "store", "ingest", place / "source", "--json", code=3).stdout)
    assert (record["backends"], record["backends_that_may_be_lost"]) == (6, 2 - gone)
    assert record["skipped_reasons"] == {"sockets are not archived": 2}
    assert record["sources"] == [str(place / "source")] and record["began"].endswith("Z")


@pytest.mark.parametrize(
    ("quiet", "output", "verbose", "form"),
    [(False, "table", False, "none"), (False, "table", True, "plain"), (True, "table", True, "none"),
     (False, "jsonl", False, "json")],
)  # fmt: skip
def test_progress_without_a_terminal_is_for_those_who_ask(quiet: bool, output: str, verbose: bool, form: str) -> None:
    progress = Progress.choose("ingest", lambda counters: None, quiet=quiet, output=output, verbose=verbose)  # type: ignore[arg-type,return-value]
    assert progress._form == form


def test_programs_are_told_that_data_is_lost(place: Path) -> None:
    """No number says so: that none may be lost is another thing."""
    drystone("-s", place / "store", "ingest", "-q", place / "source")
    for number in range(6):
        shutil.rmtree(place / "store" / f"backend-{number}" / "packs")
    drystone("-s", place / "store", "verify", "-q", code=3)
    command = [Path(sys.executable).with_name("drystone"), "-s", place / "store", "status", "--json"]
    status = json.loads(subprocess.run(command, capture_output=True).stdout)
    assert (status["backends_that_may_be_lost"], status["domains_that_may_be_lost"]) == (None, None)
    (place / "other").mkdir()
    record = json.loads(drystone("-s", place / "store", "ingest", place / "other", "--json").stdout)
    assert (record["backends_that_may_be_lost"], record["packs_lack_shards"]) == (None, True)
