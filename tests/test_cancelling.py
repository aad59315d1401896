"""A restore that plans and a verification that reads manifests end when they are told to, or when a worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manifests.errors import DrystoneError
from pipeline.errors import StageFailed
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from pipeline.signalwatch import SignalWatch
from pipeline.station import Acquire, Context, Station, Take
from pipeline.supervisor import Supervisor, WorkerSpec
from pipeline.topology import FanShape
from pipeline.worker import MESSAGE_MOST
from tests.sampling import one_in
from tests.test_endings import descendants, process_table

MakeStore = Callable[..., FileStore]
#: Ends promptly: what is told to end within this time, in seconds, on a machine that has other things to do.
PROMPTLY = 5.0
#: Runs for an hour unless it is interrupted.
ENDLESS = "CREATE OR REPLACE TABLE endless AS SELECT count(*) FROM range(100000000000) a WHERE sqrt(a.range) > 3"

#: A command of which a step takes for ever: a query of DuckDB's, streamed or not, or reading files.
SLOW = """
import sys, time
from manifests import catalog, contents, inspect, plan
from pipeline.verify import run as verify_run
from pipeline.restore import run as restore_run

def endless(catalog):
    print("begun", flush=True)
    catalog.execute({endless!r})

def streamed(catalog):
    print("begun", flush=True)
    for _ in catalog.batches("SELECT a.range FROM range(100000000000) a WHERE a.range % 100000000000 = 1"):
        pass

def files(members, log, state, check):
    print("begun", flush=True)
    while True:
        check()
        time.sleep(0.01)
        yield from ()

step, *line = sys.argv[1:]
if step == "plan":
    plan.RestorePlan.locate = lambda self, others: endless(self._catalog)
elif step == "stream":
    plan.RestorePlan.locate = lambda self, others: streamed(self._catalog)
elif step == "attributes":
    restore_run._finish_folders = lambda plan, target: endless(plan._catalog)
elif step == "contents":
    contents.ContentsPlan.__init__ = lambda self, catalog, others: endless(catalog)
elif step == "packs":
    verify_run.packs = lambda catalog, dtype: endless(catalog)
elif step == "manifests":
    verify_run.bad_copies = files
from pipeline.cli.app import run
run(line)
"""
RESTORE = ("plan", "stream", "attributes")
VERIFY = ("contents", "packs", "manifests")


@pytest.fixture
def store(make_store: MakeStore, tmp_path: Path) -> Iterator[FileStore]:
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    (tmp_path / "tree" / "folder" / "file").write_bytes(os.urandom(100_000))
    made = make_store()
    made.ingest([str(tmp_path / "tree")], options=IngestOptions(inline=True))
    yield made


def begin(step: str, place: Path) -> subprocess.Popen[str]:
    """A command that has come to the step that does not end."""
    line = ["verify", "--data", "-q"] if step in VERIFY else ["restore", "--to", str(place / "out"), "-q"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(endless=ENDLESS), step, "-s", str(place / "store"), *line],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    return process


def end(process: subprocess.Popen[str], below: dict[int, str]) -> tuple[int, str]:
    """Exit code and messages; no process is left."""
    began = time.monotonic()
    try:
        _, messages = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - began < PROMPTLY, messages
    limit = time.monotonic() + PROMPTLY
    while (left := {pid: name for pid, name in below.items() if process_table().get(pid, (0, ""))[1] == name}) and (
        time.monotonic() < limit
    ):
        time.sleep(0.02)
    assert not left, f"processes are left: {left}"
    assert "Traceback" not in messages
    return process.returncode, messages


@pytest.mark.parametrize("step", [*RESTORE, *VERIFY])
@pytest.mark.parametrize(("number", "code"), one_in(2, [(signal.SIGINT, 130), (signal.SIGTERM, 143)], several=True))
def test_a_signal_ends_it(store: FileStore, tmp_path: Path, step: str, number: signal.Signals, code: int) -> None:
    process = begin(step, tmp_path)
    below = descendants(process.pid)
    process.send_signal(number)
    found, messages = end(process, below)
    assert (found, signal.Signals(number).name in messages) == (code, True), messages
    if step in RESTORE:
        assert not list((tmp_path / "out").glob(".*")), "its staging directory is left"


@pytest.mark.parametrize("step", one_in(2, ["plan", "stream", "contents", "packs"]))
def test_the_death_of_a_worker_ends_it(store: FileStore, tmp_path: Path, step: str) -> None:
    process = begin(step, tmp_path)
    below: dict[int, str] = {}
    limit = time.monotonic() + PROMPTLY
    while not (victims := [pid for pid, name in below.items() if name.startswith("dry-")]):
        assert time.monotonic() < limit, "no worker began"
        below = descendants(process.pid)
    os.kill(victims[0], signal.SIGKILL)
    found, messages = end(process, below)
    assert found == 1 and "was killed by SIGKILL" in messages, messages


@pytest.mark.parametrize("inline", [True, False])
def test_a_program_goes_on_after_it_was_interrupted(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool
) -> None:
    request = RestoreRequest("", inline=inline)
    with monkeypatch.context() as patched:
        patched.setattr("manifests.plan.RestorePlan.locate", lambda plan, *_: plan._catalog.execute(ENDLESS))
        timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        try:
            with pytest.raises(DrystoneError, match="stopped by SIGINT"):
                store.restore("latest", tmp_path / "out", request=request)
        finally:
            timer.cancel()
        assert time.monotonic() - began < PROMPTLY
    assert store.restore("latest", tmp_path / "again", request=request).exit_code == 0
    assert store.verify(data=True, inline=inline).exit_code == 0


def test_other_threads_leave_signals_alone(store: FileStore, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[int] = []

    def work() -> None:
        found.append(store.restore("latest", tmp_path / "out", request=RestoreRequest("")).exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0] and signal.getsignal(signal.SIGINT) is before


def test_a_listing_that_is_interrupted_says_so(store: FileStore, tmp_path: Path) -> None:
    """A command without workers has Python's own handler, whose exception DuckDB puts in its own words."""
    program = (
        "from manifests import objects\n"
        f"objects.list_objects = lambda catalog, *_: print('begun', flush=True) or catalog.execute({ENDLESS!r})\n"
        f"from pipeline.cli.app import run; run(['-s', {str(tmp_path / 'store')!r}, 'ls'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code, messages = end(process, {})
    assert code == 130, messages


# --- failures of any size -------------------------------------------------------------------------------------------


def loud_station(context: Context, options: int) -> Station:
    yield Take(("plan/0",))
    context.at("the third brick")
    raise ValueError("begins " + "x" * options + " ends")


def home_station(context: Context) -> Station:
    from pipeline.arena import Message

    slot = yield Acquire("plan")
    context.seal("plan", slot)
    context.send("plan/0", Message(1, slot))
    yield Take(("reports/0",))


@pytest.mark.parametrize("size", [0, 60_000, 5_000_000])
def test_a_failure_of_any_size_is_reported(size: int) -> None:
    shape = FanShape("restore", 1, 1, 0)
    spec = WorkerSpec(name="mason-0", station=loud_station, options=size, rings=("plan/0",), pools=("plan",))
    began = time.monotonic()
    with SignalWatch() as signals, pytest.raises(StageFailed) as caught:
        Supervisor(shape.layout(), [spec], signals=signals).run({"home": home_station})
    assert time.monotonic() - began < 2 * PROMPTLY
    text = str(caught.value)
    assert text.startswith("mason-0 at the third brick: begins x" if size else "mason-0 at the third brick: begins")
    assert text.endswith(" ends") and len(text) <= MESSAGE_MOST + 200
    assert "ValueError" in str(caught.value.__cause__) and "loud_station" in str(caught.value.__cause__)
