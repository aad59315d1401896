"""The bench measures what it says that it measures. No test here judges a time that a tool took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.bench import index, limit, reaper
from tests.bench.compare import checked_out, verdict
from tests.bench.datasets import MIB, DataSet, Missing, Places, linux, many_files, tar, text, versions
from tests.bench.goals import GOALS, OURS
from tests.bench.measure import SAMPLING, BenchError, Command, Usage, run, warm_cache
from tests.bench.places import file_system, require_room
from tests.bench.results import WORKS, Results
from tests.bench.rounds import Plan, compare_trees, measure, one_round
from tests.bench.tools import TOOLS, Drystone, Restic, Site, TarZstd, Tool
from tests.trees import make_tree

ROOT = Path(__file__).parents[1]
#: Burns half a second of CPU in a process whose parent and grandparent are dead by then.
ORPHAN = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.1)
        while time.process_time() < 0.5:
            pass
    os._exit(0)
os.wait()
"""
#: Touches as many MiB as its first argument says, in a child; `forks`: pages are shared with so many more.
HOLDER = """
import mmap, os, sys, time
memory = mmap.mmap(-1, int(sys.argv[1]) << 20)
for at in range(0, len(memory), 4096):
    memory[at] = 1
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        sum(memory[at] for at in range(0, len(memory), 4096))
        time.sleep(0.4)
        os._exit(0)
time.sleep(0.4)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
PIECE = b"dry stone wall "


def python(program: str, *arguments: str) -> Command:
    return Command([sys.executable, "-c", program, *arguments])


@pytest.fixture
def drystone() -> Drystone:
    found = Drystone.find()
    assert isinstance(found, Drystone)
    return found


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., Plan]:
    def make(*tools: Tool, works: frozenset[str] = frozenset(WORKS), **more: object) -> Plan:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return Plan(tools, works, 1, scratch, None, 2, **more)  # type: ignore[arg-type]

    return make


def test_time_of_orphans_is_counted() -> None:
    used = run(python(ORPHAN))
    assert used.cpu >= 0.5
    assert used.wall < used.cpu, "the command itself ended long before"
    assert used.pss is None


@pytest.mark.soak
def test_time_of_all_of_drystone_is_counted(tmp_path: Path, drystone: Drystone) -> None:
    """Its compressors run below a fork server that outlives the command; without them it would take a fifth of the
    compression alone."""
    source = tmp_path / "source"
    source.write_bytes(b"".join(text(5 * MIB)))
    started = time.process_time()
    zstandard.ZstdCompressor(level=19).compress(source.read_bytes())
    bare = time.process_time() - started
    site = Site(tmp_path / "store", tmp_path / "back", tmp_path / "cache")
    run(drystone.create(site))
    usual = drystone.ingest(site, source, "a")
    used = run(Command([*usual.arguments, "--compression", "zstd:19"], usual.environment))
    assert used.cpu > bare / 2


def test_memory_of_a_child_is_seen_and_shared_pages_count_once() -> None:
    one = run(python(HOLDER, "64", "1"), sampling=0.02)
    four = run(python(HOLDER, "64", "4"), sampling=0.02)
    for used in (one, four):
        assert used.pss is not None
        assert 64 * MIB < used.pss < 110 * MIB


@pytest.mark.parametrize("turn", [16, -16])
def test_pages_whose_sharing_changes_while_it_looks_count_once(monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    """A child of process 1 takes up pages of it, or lets go of them, at every look."""
    shared = 0 if turn > 0 else 64

    def pss(pid: int) -> int:
        nonlocal shared
        shared += turn
        return 64 - shared // 2 if pid == 1 else shared // 2

    monkeypatch.setattr(reaper, "descendants", lambda root: [1, 2])
    monkeypatch.setattr(reaper, "pss", pss)
    assert reaper.tree_pss(0) <= 64


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (python("import sys; sys.exit('no such thing')"), "exit code 1: no such thing"),
        (Command(["there-is-no-such-program"]), "could not be run"),
        (Command(["bash", "-c", "kill -9 $$"]), "exit code -9"),
    ],
)
def test_commands_that_fail_are_no_measurement(command: Command, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        run(command)


def test_what_feeds_a_command_is_not_counted() -> None:
    writer = f"while time.process_time() < 0.4: pass\nsys.stdout.buffer.write({PIECE!r} * 100000)"
    feed = [sys.executable, "-c", f"import sys, time\n{writer}"]
    used = run(Command(["wc", "-c"], feed=feed))
    assert int(used.output) == len(PIECE) * 100000
    assert used.cpu < 0.3


def test_the_cache_is_warmed_by_reading(tmp_path: Path) -> None:
    def read_so_far() -> int:
        with open("/proc/self/io") as file:
            return int(file.readline().split()[1])  # of this process and the children that it waited for

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(8 * MIB))
    before = read_so_far()
    warm_cache(tmp_path)
    assert read_so_far() - before >= 8 * MIB


def test_limit_does_all_works_and_checks_itself(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", files=30, largest=9_000_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    kernels = limit.Kernels(tree, scratch)
    found = kernels.run()
    assert set(found) == {"ingest", "reread", "unchanged", "restore", "verify"}
    assert set(found["ingest"]) == {"list", "read", "cut", "blake3", "zstd", "parity", "write"}
    assert set(found["unchanged"]) == {"list"}
    assert found["ingest"]["zstd"] > 0
    # What the kernels wrote is the tree: so all of it was read, cut and stored.
    (scratch / "back").rename(tmp_path / "tree-back")
    compare_trees(tree, tmp_path / "tree-back", "limit")


def test_limit_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"".join(text(3 * MIB)))
    kernels = limit.Kernels(source, tmp_path)
    seal = kernels._seal

    def rotten() -> None:
        seal()
        with open(tmp_path / "pack-0" / "0", "r+b") as file:
            file.seek(20_000)
            file.write(b"rot")

    kernels._seal = rotten  # type: ignore[method-assign]
    with pytest.raises(BenchError, match="not what was written"):
        kernels.run()


def test_data_sets_are_what_they_say(tmp_path: Path) -> None:
    pieces = list(text(40 * MIB))
    assert sum(map(len, pieces)) == 40 * MIB
    assert pieces == list(text(40 * MIB)), "the same each time"
    packed = subprocess.run(["zstd", "-3", "-c", "--long=27"], input=b"".join(pieces), capture_output=True, check=True)
    assert 40 * MIB / 8 < len(packed.stdout) < 40 * MIB / 2, "it shrinks, and does not repeat"
    many_files(tmp_path / "many", 2500)
    contents = [path.read_bytes() for path in sorted((tmp_path / "many").glob("*/*"))]
    assert len(contents) == len(set(contents)) == 2500


def test_versions_are_edits_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "size", lambda self, full: 4 * MIB)
    data = versions(Places(tmp_path))
    assert len(data.versions) == 3
    bodies = [(path / "disk.img").read_bytes() for path in (data.path, *data.versions)]
    assert len(set(bodies)) == 4
    assert bodies[0][-MIB:] == bodies[-1][-MIB:], "the end is the same, though it lies elsewhere"
    made = data.path.stat().st_mtime_ns
    assert versions(Places(tmp_path)).path.stat().st_mtime_ns == made, "it is made once"


def test_what_is_missing_is_said_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name, tool in TOOLS.items():
        with pytest.raises(Missing, match=f"^{name.replace('+', '.')}: .*install"):
            tool.find()
    with pytest.raises(Missing, match="--linux"):
        linux(Places(tmp_path, linux=tmp_path / "nowhere"))
    with pytest.raises(Missing, match="--tar"):
        tar(Places(tmp_path, tar=tmp_path))


def test_a_round_does_every_work(tmp_path: Path, drystone: Drystone, make_plan: Callable[..., Plan]) -> None:
    source = tmp_path / "object.bin"
    source.write_bytes(os.urandom(2 * MIB))
    results = Results()
    plan = make_plan(drystone)
    one_round(plan, drystone, DataSet.of("object", source), results, SAMPLING)
    for work in ("ingest", "reread", "restore", "verify", "range", "range-lost"):
        record = results.find("object", work, OURS)
        assert record is not None and record.pss is not None and record.pss > 10 * MIB, work
        assert not record.walls, "a run whose memory was sampled is no measurement of time"
    assert (results.find("object", "unchanged", OURS) is not None) == drystone.skips
    stored = results.at("object", "ingest", OURS).stored
    assert stored is not None and 2 * MIB < stored < 2.1 * MIB, "no parity, one copy of the manifests"
    for work in ("range", "range-lost"):
        read = results.at("object", work, OURS).bytes_read
        assert read is not None and read >= MIB
    assert not list(plan.scratch.iterdir()), "all is removed"


class Broken(TarZstd):
    """Restores nothing."""

    name = "broken"

    def restore(self, site: Site, source: Path, label: str) -> Command:
        return Command(["false"])


def test_a_tool_that_fails_does_not_end_the_bench(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    tree = make_tree(tmp_path / "tree", files=5, largest=1000)
    (tree / "pipe").unlink()
    results = Results()
    plan = make_plan(Broken("tar"), TarZstd("tar"), with_limit=False)
    failed = measure(plan, DataSet.of("tree", tree), results, disk=False)
    assert failed == ["tree: broken: false: exit code 1: it said nothing"]
    sound = results.find("tree", "verify", "tar+zstd")
    assert sound is not None and sound.walls and sound.pss is not None
    assert results.find("tree", "verify", "broken") is None
    assert not list(plan.scratch.iterdir())


def test_a_wrong_restore_is_no_measurement(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", files=10, largest=1000)
    subprocess.run(["cp", "-a", tree, tmp_path / "back"], check=True)
    compare_trees(tree, tmp_path / "back", "cp")
    victim = next(path for path in sorted((tmp_path / "back").rglob("file*")) if path.stat().st_size)
    body = victim.read_bytes()
    victim.write_bytes(bytes([body[0] ^ 1]) + body[1:])
    with pytest.raises(BenchError, match=f"cp restored .*{victim.name} wrongly"):
        compare_trees(tree, tmp_path / "back", "cp")


@pytest.mark.soak
def test_the_smallest_form_writes_table_json_and_plot(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", files=20, largest=20_000)
    out = tmp_path / "out"
    scratch = Path(tempfile.gettempdir())  # sockets below it must have short paths
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.bench", "--tree", tree, "--tool", "drystone", "--work", "restore"),
            *("--rounds", "1", "--no-streams", "--no-scaling", "--no-memory", "--out", out, "--scratch", scratch),
            *("--kept", tmp_path / "kept", "--disk", tmp_path / "disk"),
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    table = (out / "bench.txt").read_text()
    assert table in done.stdout
    assert "first ingest" in table and "restore" in table and "not measured" in table
    document = json.loads((out / "bench.json").read_text())
    assert [record["tool"] for record in document["records"] if record["work"] == "restore"] == ["drystone", "limit"]
    assert len(document["goals"]) == len(GOALS)
    assert document["tools"]["drystone"].startswith("drystone")
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_goals_are_judged_by_medians() -> None:
    results = Results()
    for tool, walls in (("drystone", (1.0, 1.0, 9.0)), ("restic", (4.1, 4.1, 0.1))):
        for wall in walls:
            results.note("linux", "ingest", tool, Usage(wall, wall, None, b""))
        results.at("linux", "ingest", tool).stored = 100 if tool == "drystone" else 110
    verdicts = {goal.text: goal.judge(results) for goal in GOALS}
    assert verdicts["ingest, small files (linux), against restic"] == (pytest.approx(4.1), "reached")
    assert verdicts["stored, small files (linux), part of restic"][1] == "NOT REACHED"
    assert verdicts["restore (tar), against restic"] == (None, "not measured")


def test_comparing_revisions_finds_what_was_lost() -> None:
    results = Results()
    for work, old, new in (("ingest", 1.0, 1.04), ("restore", 1.0, 1.2), ("verify", 1.0, 0.5)):
        results.note("tar", work, "old", Usage(old, old, None, b""))
        results.note("tar", work, "here", Usage(new, new, None, b""))
    shown, lost = verdict(results, "old", "here")
    assert "1.200" in shown and "0.500" in shown
    assert lost == ["tar, restore: 20.0% slower"]
    with pytest.raises(BenchError, match="in common"):
        verdict(Results(), "old", "here")


def test_a_revision_runs_out_of_its_own_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["cp", "-a", *(ROOT / each for each in ("pipeline", "stages", "manifests")), tmp_path], check=True)
    checkout.mkdir()
    for each in ("pipeline", "stages", "manifests"):
        (tmp_path / each).rename(checkout / each)
    app = checkout / "pipeline" / "cli" / "app.py"
    app.write_text(app.read_text().replace("a bulk archiver", "a bulk archiver of another revision"))
    tool = Drystone("drystone", checkout)
    shown = run(
        Command(
            [*tool.create(Site(tmp_path, tmp_path, tmp_path)).arguments[:-2], "--help"], {"PYTHONPATH": str(checkout)}
        )
    )
    assert b"of another revision" in shown.output
    app.write_text("raise RuntimeError('it does not even start')\n")
    with pytest.raises(BenchError, match="does not even start"):
        Drystone("drystone", checkout)


def test_a_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(BenchError, match="no-such-revision can't be checked out"), checked_out("no-such-revision"):
        pass


def test_room_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--scratch"):
        require_room(tmp_path, DataSet("huge", tmp_path, 1, 1 << 60))
    assert file_system(Path("/proc/self")) == "proc"


def test_restic_is_called_as_people_call_it(tmp_path: Path) -> None:
    site = Site(tmp_path / "store", tmp_path / "back", tmp_path / "cache")
    assert str(Restic("restic").verify(site)) == f"restic -q --no-cache -r {tmp_path}/store check --read-data"


@pytest.mark.parametrize("kind", index.KINDS)
def test_indexes_are_measured_at_size(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "LOOKUPS", 20_000)
    index.make_store(tmp_path, 50_000)
    figures = index.measure(tmp_path, kind)
    assert figures["known"] > 0 and figures["new"] > 0
    if kind == "disk":
        assert 20 < figures["bytes_a_chunk"] < 40
