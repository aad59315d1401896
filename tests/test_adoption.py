"""What a run leaves behind that did not finish: all packs of it are taken over by the next, and its traces go."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manifests import processes
from manifests.armour import open_json, seal_json
from manifests.inflight import JOURNAL_PACKS, Inflight, unfinished
from manifests.processes import ProcessMark
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.ingest.strays import stray_packs
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)
MakeStore = Callable[..., FileStore]
PACK = 1 << 20
#: Packs that a run has stored when it is stopped: more than one journal file takes, fewer than two.
PACKS = JOURNAL_PACKS + 2
DEADLINE = 60.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with FileStore.create([tmp_path / "store"], pack_size=PACK, cache=tmp_path / "cache"):
        pass
    (tmp_path / "source").write_bytes(random.Random(1).randbytes(48 * PACK))
    yield tmp_path


def packs_with_shards(place: Path) -> Counter[str]:
    """How many shards of each pack are there."""
    return Counter(path.name[:36] for path in place.glob("store/backend-*/packs/*/*.[0-9]"))


def whole_packs(place: Path) -> set[str]:
    """Packs of which all shards are there."""
    return {pack for pack, shards in packs_with_shards(place).items() if shards == 6}


def start(place: Path, packs: int = PACKS) -> subprocess.Popen[bytes]:
    """An ingest that has stored so many packs, and waits for more input."""
    line = [COMMAND, "-s", place / "store", "ingest", "-q", "-", "--name", "source"]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write((place / "source").read_bytes())
    process.stdin.flush()
    limit = time.monotonic() + DEADLINE
    while len(whole_packs(place)) < packs or not list(place.glob("store/backend-0/inflight/*/*")):
        assert time.monotonic() < limit, "the run has not begun"
        time.sleep(0.01)
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None and process.stderr is not None
    with process.stdin, process.stderr:
        return process.wait(DEADLINE)


def worker_of(process: subprocess.Popen[bytes], name: str) -> int:
    """The pid of a worker of a run."""
    names = subprocess.run(["ps", "-e", "-o", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in names.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def is_below(pid: int) -> bool:
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return next(int(pid) for pid, _, comm in rows if comm.strip() == name and is_below(int(pid)))


def state_of(place: Path) -> list[tuple[str, int]]:
    done = subprocess.run([COMMAND, "-s", place / "store", "status", "--json"], capture_output=True, check=False)
    record = json.loads(done.stdout)
    return [(run["state"], record["unnamed_packs"]) for run in record["unfinished"]]


def take_over(place: Path, packs: set[str]) -> None:
    """The next ingest stores nothing anew that lies in `packs`, and no trace is left."""
    with FileStore.open(place / "store", cache=place / "cache") as store:
        result = store.ingest([str(place / "source")], options=INLINE)
        assert result.exit_code == 0
        assert result.tally.adopted_packs == len(packs)
        adopted, size = result.tally.adopted_bytes, (place / "source").stat().st_size
        assert adopted >= len(packs) * PACK
        assert size <= result.tally.new_bytes + adopted <= size + PACK
        assert store.restore("latest", place / "out").exit_code == 0
        assert (place / "out" / "source").read_bytes() == (place / "source").read_bytes()
        assert store.verify(data=True, inline=True).exit_code == 0
        assert store.status().unfinished == []
        # A pack that was being written has some of its shards only: nobody can take it over.
        assert store.status().unnamed_packs == len(packs_with_shards(place)) - len(whole_packs(place))
        assert store.ingest([str(place / "source")], options=INLINE).tally.adopted_packs == 0
    assert not list(place.glob("store/backend-*/inflight/*"))


@pytest.mark.parametrize(
    ("number", "code", "state"),
    one_in(
        2,
        [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "stopped"), (signal.SIGKILL, -9, "died")],
        several=True,
    ),
)
def test_a_run_that_is_stopped_leaves_nothing_unadopted(
    place: Path, number: signal.Signals, code: int, state: str
) -> None:
    process = start(place)
    assert [each for each, _ in state_of(place)] == ["running"]
    process.send_signal(number)
    assert end(process) == code
    time.sleep(0.3)  # for workers that were writing
    packs = whole_packs(place)
    assert len(packs) >= PACKS
    [(found, unnamed)] = state_of(place)
    assert (found, unnamed >= len(packs)) == (state, True)
    take_over(place, packs)


def test_packs_are_taken_over_once_also_while_a_backend_is_absent(place: Path) -> None:
    process = start(place)
    process.kill()
    end(process)
    time.sleep(0.3)  # for workers that were writing
    packs = whole_packs(place)
    (place / "store/backend-5").rename(place / "away")
    with FileStore.open(place / "store", cache=place / "cache") as store:
        result = store.ingest([str(place / "source")], options=INLINE)
        assert result.tally.adopted_packs >= len(packs) > 0
        assert store.status().unfinished == []
    assert not list(place.glob("store/backend-*/inflight/*"))
    (place / "away").rename(place / "store/backend-5")
    with FileStore.open(place / "store", cache=place / "cache") as store:
        assert store.ingest([str(place / "source")], options=INLINE).tally.adopted_packs == 0


@pytest.mark.parametrize("worker", one_in(3, ["dry-compress-0", "dry-dedupe", "dry-write-0"]))
def test_a_killed_worker_leaves_nothing_unadopted(place: Path, worker: str) -> None:
    process = start(place)
    os.kill(worker_of(process, worker), signal.SIGKILL)
    assert end(process) == 1
    packs = whole_packs(place)
    assert [state for state, _ in state_of(place)] == ["stopped"]
    take_over(place, packs)


def test_a_run_that_is_stopped_before_its_first_pack_leaves_no_trace(place: Path) -> None:
    (place / "source").write_bytes(b"little")
    process = start(place, packs=0)
    process.send_signal(signal.SIGTERM)
    assert end(process) == 143
    assert state_of(place) == []


def test_a_failed_stage_leaves_nothing_unadopted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.ingest.collect import Collector

    plain = Collector._add_pack

    def fails(self: Collector, *arguments: object) -> None:
        plain(self, *arguments)  # type: ignore[arg-type]
        if self.tally.packs == 3:
            raise RuntimeError("the third pack")

    with FileStore.open(place / "store", cache=place / "cache") as store:
        with monkeypatch.context() as patched, pytest.raises(RuntimeError):
            patched.setattr(Collector, "_add_pack", fails)
            store.ingest([str(place / "source")], options=INLINE)
        [(run, packs)] = store.status().unfinished
        assert (run.state, packs) == ("stopped", 3)
    take_over(place, whole_packs(place))


def test_a_batch_that_is_given_up_is_taken_over(place: Path) -> None:
    data = (place / "source").read_bytes()
    with FileStore.open(place / "store", cache=place / "cache") as store:
        with pytest.raises(KeyError), store.batch():
            store.put_object("key", io.BytesIO(data))
            raise KeyError
        packs = whole_packs(place)
        [(run, _)] = store.status().unfinished
        assert run.state == "stopped" and packs
        assert store.status().unnamed_packs == len(packs)
        result = store.ingest([str(place / "source")], options=INLINE)
        assert result.tally.adopted_packs == len(packs)
        assert store.status().unfinished == []


# --- which runs are over --------------------------------------------------------------------------------------------


def marked(store: FileStore, process: ProcessMark | None) -> str:
    """The state of a run whose marker names `process`."""
    run = uuid.uuid4()
    Inflight(store.members, run).begin()
    for member in store.members.present.values():
        path = Path(member.storage.location) / "inflight" / str(run) / "marker.json"
        record, _ = open_json(path.read_bytes())
        if process is None:
            record = {name: record[name] for name in ("format", "type", "run", "time", "host", "pid")}
        else:
            record |= process.to_record()
        path.write_bytes(seal_json(record))
    (found,) = [each for each in unfinished(store.members)[0] if each.run_id == run]
    return found.state


def test_only_a_process_of_this_machine_is_told_to_be_gone(make_store: MakeStore) -> None:
    store, here = make_store(), ProcessMark.here()
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        alive = replace(here, pid=sleeper.pid, started=_started(sleeper.pid))
        assert marked(store, alive) == "running"
        assert marked(store, replace(alive, started=alive.started - 100)) == "died"  # its number was given again
        assert marked(store, replace(alive, host="elsewhere")) == "unknown"
        sleeper.kill()
        limit = time.monotonic() + DEADLINE
        while alive.is_gone() is not True and time.monotonic() < limit:
            time.sleep(0.01)
        assert marked(store, alive) == "died"  # though nobody has waited for it
    assert marked(store, here) == "running"
    assert marked(store, alive) == "died"
    assert marked(store, replace(alive, host="elsewhere")) == "unknown"
    assert marked(store, replace(alive, machine="0123456789abcdef")) == "unknown"
    assert marked(store, replace(alive, namespace="pid:[1]")) == "unknown"
    assert marked(store, replace(alive, boot="")) == "unknown"
    assert marked(store, replace(alive, pid=0)) == "unknown"
    assert marked(store, replace(alive, pid=1 << 70)) == "unknown"
    assert marked(store, None) == "unknown"
    assert marked(store, replace(here, boot="before")) == ("died" if here.machine else "unknown")
    assert marked(store, replace(here, boot="before", machine="")) == "unknown"
    assert marked(store, replace(here, boot="before", namespace="pid:[4026532000]")) == "unknown"


def test_a_mark_without_the_machines_id_is_told_by_the_boot(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a user who can't read that id, seen by one who can, and the other way round."""
    store, here = make_store(), ProcessMark.here()
    ids = [tmp_path / "machine-id", tmp_path / "dbus-id"]
    ids[1].write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(processes, "MACHINE_IDS", tuple(map(str, ids)))
    second = ProcessMark.here()
    ids[0].write_text(ids[1].read_text())
    assert second.machine == ProcessMark.here().machine != ""
    assert marked(store, replace(second, boot="before")) == "died"
    for mine, theirs in (("", second.machine), (second.machine, "")):
        monkeypatch.setattr(processes, "MACHINE_IDS", tuple(map(str, ids)) if mine else ())
        assert ProcessMark.here().machine == mine
        assert marked(store, replace(here, machine=theirs)) == "running"
        assert marked(store, replace(here, machine=theirs, pid=(1 << 22) - 1)) == "died"
        assert marked(store, replace(here, machine=theirs, started=here.started - 1)) == "died"
        assert marked(store, replace(here, machine=theirs, boot="before")) == "unknown"
        assert marked(store, replace(here, machine=theirs, namespace="pid:[4026532000]")) == "unknown"
        assert marked(store, replace(here, machine=theirs, host="elsewhere")) == "unknown"


def test_processes_of_other_users_are_told_by_root_and_by_themselves(make_store: MakeStore) -> None:
    if os.geteuid():
        pytest.skip("only root can be another user")
    mine, theirs = os.pipe()
    child = os.fork()
    if not child:  # it is nobody from here on
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            here = ProcessMark.here()
            rebooted = replace(here, boot="before").is_gone()
            os.write(theirs, json.dumps([here.to_record(), rebooted]).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(mine) as pipe:
        record, rebooted = json.load(pipe)
    os.waitpid(child, 0)
    mark = ProcessMark.from_record(record)
    assert mark.namespace and mark.started and rebooted is (True if mark.machine else None)
    assert marked(make_store(), mark) == "died"


@pytest.mark.parametrize("private", [["--pid", "--fork", "--mount-proc"], ["--uts"]])
def test_a_container_tells_nothing_of_other_boots(private: list[str]) -> None:
    """One of the same image, with the same name and id, may be at work on another machine."""
    program = (
        "import json; from dataclasses import replace; from manifests.processes import ProcessMark\n"
        "here = ProcessMark.here(); other = replace(here, boot='other')\n"
        "gone = replace(here, pid=(1 << 22) - 1)\n"
        "print(json.dumps([here.machine, other.is_gone(), here.is_gone(), gone.is_gone()]))"
    )
    line = ["unshare", *private, sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, cwd=Path(__file__).parent.parent, timeout=60)
    if b"unshare failed" in done.stderr:
        pytest.skip(f"no namespaces can be made here: {done.stderr.decode()}")
    assert json.loads(done.stdout) == ["", None, False, True]


def _started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_run_of_another_host_keeps_its_traces(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    assert marked(store, replace(ProcessMark.here(), host=f"not-{socket.gethostname()}")) == "unknown"
    (tmp_path / "file").write_bytes(b"x")
    store.ingest([str(tmp_path / "file")], options=INLINE)
    assert [run.state for run, _ in store.status().unfinished] == ["unknown"]


def test_traces_that_cannot_be_read_keep_nobody_from_working(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    marked(store, ProcessMark.here())
    first = Path(store.members.present[0].storage.location) / "inflight"
    for path in [*first.rglob("*")][::-1]:
        path.unlink() if path.is_file() else path.rmdir()
    first.rmdir()
    first.symlink_to(first)  # listing it fails
    (tmp_path / "file").write_bytes(b"x")
    runs, troubles = unfinished(store.members)
    assert len(runs) == 1 and list(troubles) == [0]
    assert any("inflight" in each for each in store.status().troubles)


def test_strays_are_found_by_their_time_and_only_whole(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(pack_size=64 << 10)
    (tmp_path / "noise").write_bytes(random.Random(2).randbytes(300_000))
    store.ingest([str(tmp_path / "noise")], options=INLINE)
    newest = store.runs()[-1].run_id
    everything = {uuid.UUID(path.name[:36]) for path in (tmp_path / "store").glob("backend-0/packs/*/*")}
    assert stray_packs(store.members, newest) == everything
    later = uuid.UUID(int=newest.int + (48 * 3600 * 1000 << 80))
    assert stray_packs(store.members, later) == set()
    gone = next((tmp_path / "store").glob("backend-3/packs/*/*"))
    gone.unlink()
    assert stray_packs(store.members, newest) == everything - {uuid.UUID(gone.name[:36])}
