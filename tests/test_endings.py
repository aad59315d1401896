"""Endings of a run: drained, interrupted, killed, failed. Each ends soon and leaves nothing but a usable store."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.inflight import JOURNAL_PACKS
from pipeline.arena import FREE, Arena
from pipeline.errors import PipelineError, StageFailed
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.inline import run_inline
from pipeline.restore.run import RestoreRequest
from pipeline.signalwatch import SignalWatch
from pipeline.station import Acquire, Context, Station, Take
from pipeline.supervisor import Supervisor, WorkerSpec
from pipeline.topology import FanShape
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

COMMAND = str(Path(sys.executable).with_name("drystone"))
DEADLINE = 10.0


INLINE = IngestOptions(inline=True, workers=1)
#: Small packs, so that little data is many of them.
PACK = 1 << 20


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree, and a store with one run of it, away from where its log says it is."""
    place = tmp_path_factory.mktemp("endings")
    tree = make_tree(place / "tree", 1, 30)
    with FileStore.create([place / "store"], pack_size=PACK, cache=place / "cache") as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    (place / "store").rename(place / "kept")
    return tree, place / "kept"


@pytest.fixture
def tree(kept: tuple[Path, Path]) -> Path:
    return kept[0]


@pytest.fixture
def store(tmp_path: Path, kept: tuple[Path, Path]) -> Path:
    """A store with one run in it."""
    return shutil.copytree(kept[1], tmp_path / "store")


def process_table() -> dict[int, tuple[int, str]]:
    """Parent and name of every process."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            name = text[text.index("(") + 1 : text.rindex(")")]
            found[int(entry)] = (int(text[text.rindex(")") + 2 :].split()[1]), name)
    return found


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid`, by id, with their names."""
    table = process_table()
    below: dict[int, str] = {}
    wave = {pid}
    while wave:
        wave = {child for child, (parent, _) in table.items() if parent in wave}
        below |= {child: table[child][1] for child in wave}
    return below


#: Writes new data, 25 MB/s at most and for 40 s at most: every worker has to do, and no test that fails fills the disk.
FEEDER = """
import os, time
for _ in range(8000):
    os.write(1, os.urandom(1 << 17))
    time.sleep(0.005)
"""


class Endless:
    """An ingest from a pipe that does not end, so that every worker is alive for as long as the test wants."""

    def __init__(self, store: Path, *more: str) -> None:
        reading, self._feed = os.pipe()
        command = [COMMAND, "-s", str(store), "ingest", "-", "--name", "endless", *more]
        self.process = subprocess.Popen(
            command, stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        os.close(reading)
        self.feeder = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", FEEDER],
            stdout=self._feed,
            stderr=subprocess.DEVNULL,
        )
        os.close(self._feed)

    def workers(self) -> dict[str, int]:
        """Worker name → pid, once all are there and data is flowing."""
        limit = time.monotonic() + DEADLINE
        while time.monotonic() < limit:
            found = {name[4:]: pid for pid, name in descendants(self.process.pid).items() if name.startswith("dry-")}
            if {"scan", "read-0", "dedupe", "write-0"} <= found.keys() | {"scan"} and "compress-0" in found:
                time.sleep(0.3)  # let data flow
                return found
            time.sleep(0.02)
        raise AssertionError("the workers did not start")

    def end(self) -> tuple[int, str]:
        """Exit code and messages, within the deadline."""
        try:
            _, messages = self.process.communicate(timeout=DEADLINE)
        finally:
            self.close()
        return self.process.returncode, messages

    def close(self) -> None:
        for process in (self.process, self.feeder):
            if process.poll() is None:
                process.kill()
            process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def endless(store: Path) -> Iterator[Endless]:
    run = Endless(store)
    yield run
    run.close()


def assert_clean(below: dict[int, str], store: Path, tree: Path, place: Path) -> None:
    """No process of the run is left, no run is half visible, and the store works."""
    limit = time.monotonic() + DEADLINE
    while (left := {pid: name for pid, name in below.items() if process_table().get(pid, (0, ""))[1] == name}) and (
        time.monotonic() < limit
    ):
        time.sleep(0.02)
    assert not left, f"processes are left: {left}"
    assert not list(store.rglob(".tmp-*")), "temporary files are left"
    with FileStore.open(store, cache=place / "cache") as opened:
        assert len(opened.runs()) == 1
        assert opened.ingest([str(tree)], options=INLINE).exit_code == 0
        assert opened.restore("latest", place / "out", request=RestoreRequest("", inline=True)).exit_code == 0
        assert opened.verify(data=True, inline=True).exit_code == 0
    assert_equal_trees(tree, place / "out" / tree.name)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(endless: Endless, store: Path, tree: Path, tmp_path: Path, number: int, code: int) -> None:
    endless.workers()
    below = descendants(endless.process.pid)
    endless.process.send_signal(number)
    exit_code, messages = endless.end()
    assert exit_code == code
    assert signal.Signals(number).name in messages and "nothing was committed" in messages
    assert_clean(below, store, tree, tmp_path)


def test_interrupted_by_the_terminal_all_at_once(endless: Endless, store: Path, tree: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the group; still the supervisor alone decides."""
    endless.workers()
    below = descendants(endless.process.pid)
    for pid in [*below, endless.process.pid]:  # the supervisor last, for it ends the others
        os.kill(pid, signal.SIGINT)
    exit_code, messages = endless.end()
    assert exit_code == 130, messages
    assert_clean(below, store, tree, tmp_path)


@pytest.mark.parametrize("worker", one_in(2, ["read-0", "dedupe", "compress-0", "write-0"]))
def test_a_worker_is_killed(endless: Endless, store: Path, tree: Path, tmp_path: Path, worker: str) -> None:
    victim = endless.workers()[worker]
    below = descendants(endless.process.pid)
    os.kill(victim, signal.SIGKILL)
    exit_code, messages = endless.end()
    assert exit_code == 1
    assert re.search(rf"worker {worker} was killed by SIGKILL", messages), messages
    if worker == "read-0":
        assert "standard input" in messages
    assert_clean(below, store, tree, tmp_path)


def test_the_scanner_is_killed(store: Path, tmp_path: Path, tree: Path) -> None:
    big = tmp_path / "big"
    for folder in range(300):
        (big / str(folder)).mkdir(parents=True)
        for number in range(40):
            (big / str(folder) / str(number)).write_bytes(os.urandom(3000))
    process = subprocess.Popen(
        [COMMAND, "-s", store, "ingest", big, "--compression", "zstd:19"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + DEADLINE
    victims: list[int] = []
    while not victims and time.monotonic() < limit:
        victims = [pid for pid, name in descendants(process.pid).items() if name == "dry-scan"]
    below = descendants(process.pid)
    os.kill(victims[0], signal.SIGKILL)
    _, messages = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "worker scan was killed by SIGKILL" in messages
    assert_clean(below, store, tree, tmp_path)


def test_the_supervisor_is_killed(endless: Endless, store: Path, tree: Path, tmp_path: Path) -> None:
    endless.workers()
    below = descendants(endless.process.pid)
    endless.process.kill()
    exit_code, _ = endless.end()
    assert exit_code == -signal.SIGKILL
    assert_clean(below, store, tree, tmp_path)


def test_a_killed_restore_leaves_no_unfinished_names(store: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    for number in range(8):
        (big / str(number)).write_bytes(os.urandom(10_000_000))
    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        opened.ingest([str(big)], options=INLINE)
    process = subprocess.Popen([COMMAND, "-s", store, "restore", "-q", "--to", tmp_path / "out"])
    limit = time.monotonic() + DEADLINE
    while not list(tmp_path.glob("out/.drystone-restore-*/objects/part-*")) and time.monotonic() < limit:
        time.sleep(0.005)
    below = descendants(process.pid)
    process.kill()
    process.wait()
    while any(pid in process_table() for pid in below) and time.monotonic() < limit + DEADLINE:
        time.sleep(0.02)
    assert below and not any(pid in process_table() for pid in below)
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in left if path.read_bytes() != (big / path.name).read_bytes()]
    assert not list((tmp_path / "out").glob(".drystone-restore-*"))


# --- the supervisor with stations of the tests' own ------------------------------------------------------------------


def failing_station(context: Context, options: object) -> Station:
    context.at("the third brick")
    yield Take(("plan/0",))
    raise ValueError("crooked")


def home_station(context: Context) -> Station:
    from pipeline.arena import Message

    slot = yield Acquire("plan")
    context.seal("plan", slot)
    context.send("plan/0", Message(1, slot))
    yield Take(("reports/0",))


def test_an_error_in_a_stage_names_stage_item_and_cause() -> None:
    shape = FanShape("restore", 1, 1, 0)
    spec = WorkerSpec(name="mason-0", station=failing_station, options=None, rings=("plan/0",), pools=("plan",))
    with SignalWatch() as signals, pytest.raises(StageFailed, match="mason-0 at the third brick: crooked") as caught:
        Supervisor(shape.layout(), [spec], signals=signals).run({"home": home_station})
    assert "ValueError: crooked" in str(caught.value.__cause__)
    assert "failing_station" in str(caught.value.__cause__)


def relay_station(context: Context, options: object) -> Station:
    while True:
        _, message = yield Take(("plan/0",))
        context.release("plan", message.slot) if message.kind else None
        if not message.kind:
            break
    from pipeline.arena import Message

    context.send("reports/0", Message(0))


def test_drained_leaves_every_slot_free() -> None:
    from pipeline.arena import Message

    shape = FanShape("restore", 1, 1, 0)
    states: list[bytes] = []

    def home(context: Context) -> Station:
        for _ in range(1000):
            slot = yield Acquire("plan")
            context.seal("plan", slot)
            context.send("plan/0", Message(1, slot))
        context.send("plan/0", Message(0))
        yield Take(("reports/0",))
        states.append(bytes(context.arena.state("plan")))

    spec = WorkerSpec(
        name="relay-0", station=relay_station, options=None, rings=("plan/0", "reports/0"), pools=("plan",)
    )
    with SignalWatch() as signals:
        Supervisor(shape.layout(), [spec], signals=signals).run({"home": home})
    assert set(states[0]) == {FREE}


def test_stations_that_wait_for_one_another_are_told_so_inline() -> None:
    shape = FanShape("restore", 1, 1, 0)
    with pytest.raises(PipelineError, match="wait for one another"):
        run_inline(shape.layout(), {"relay": (relay_station, None)})


def test_an_arena_gives_its_memory_back() -> None:
    shape = FanShape("restore", 1, 1, 0)
    fd = Arena.create_fd(shape.layout())
    arena = Arena(shape.layout(), fd)
    arena.touch("plan", 0)
    os.close(fd)
    arena.close()
    with open("/proc/self/maps") as maps:
        assert "drystone-arena" not in maps.read()


def test_inline_runs_give_their_memory_back_at_once(kept: tuple[Path, Path], tmp_path: Path) -> None:
    """Not when somebody collects garbage."""
    shutil.copytree(kept[1], tmp_path / "store")
    gc.collect()
    gc.disable()
    try:
        with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as opened:
            opened.ingest([str(kept[0])], options=INLINE)
            opened.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True))
            opened.verify(data=True, inline=True)
            with open("/proc/self/maps") as maps:
                assert "drystone-arena" not in maps.read()
    finally:
        gc.enable()


def test_what_a_killed_run_made_durable_is_not_stored_again(store: Path, tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(48 * PACK))
    command = [COMMAND, "-s", store, "ingest", "-q", "-", "--name", "source"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(source.read_bytes())
        process.stdin.flush()
        limit = time.monotonic() + DEADLINE
        while not list(store.glob("backend-0/inflight/*/journal-*.json")) and time.monotonic() < limit:
            time.sleep(0.005)
        process.kill()
    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        assert len(opened.runs()) == 1
        result = opened.ingest([str(source)])
        assert result.tally.adopted_packs >= JOURNAL_PACKS
        assert result.tally.new_bytes + result.tally.adopted_bytes >= 48 * PACK
        assert result.tally.new_bytes <= 41 * PACK
        assert opened.restore("latest", tmp_path / "out").exit_code == 0
        assert opened.verify(data=True, inline=True).exit_code == 0
        assert (tmp_path / "out" / "source").read_bytes() == source.read_bytes()
        assert opened.ingest([str(tree)], options=INLINE).tally.adopted_packs == 0
