"""What a command writes is archived when it ended well, and only then; it never outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import CommandFailed
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.test_endings import descendants, process_table

COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]


def options(*command: str) -> IngestOptions:
    return IngestOptions(inline=True, workers=1, command=command)


def test_output_is_archived_whole_under_its_name(make_store: MakeStore) -> None:
    store = make_store()
    result = store.ingest([], name="list.txt", options=options("seq", "300000"))
    assert result.exit_code == 0 and result.sources == ["seq"], "arguments may be secrets, and a log is for ever"
    expected = subprocess.check_output(["seq", "300000"])
    assert b"".join(store.open_range("latest:list.txt")) == expected
    (info,) = store.list(recursive=True)
    assert (info.kind, info.size) == ("stream", len(expected))


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("seq 100000; exit 7", "ended with exit code 7"),
        ("seq 100000; kill -9 $$", "was killed by SIGKILL"),
        ("seq 10; exec >&-; sleep 0.3; exit 5", "ended with exit code 5"),  # its output ends first
        ("exit 1", "ended with exit code 1"),
    ],
)
def test_a_command_that_fails_commits_nothing(make_store: MakeStore, script: str, how: str) -> None:
    store = make_store()
    with pytest.raises(CommandFailed, match=f"'sh' {how}") as caught:
        store.ingest([], name="x", options=options("sh", "-c", script))
    assert caught.value.__notes__ == ["nothing was committed"]
    with FileStore.open(store.members.present[0].storage.location) as opened:
        assert not opened.runs()
        assert opened.ingest([], name="x", options=options("seq", "100000")).exit_code == 0
        assert b"".join(opened.open_range("latest:x")) == subprocess.check_output(["seq", "100000"])


def test_the_commit_waits_for_a_command_that_lingers(make_store: MakeStore) -> None:
    store = make_store()
    started = time.monotonic()
    assert store.ingest([], name="x", options=options("sh", "-c", "seq 10; exec >&-; sleep 0.5")).exit_code == 0
    assert time.monotonic() - started >= 0.5


def test_there_is_no_shell(make_store: MakeStore) -> None:
    store = make_store()
    store.ingest([], name="x", options=options("printf", "%s", "$HOME; `id`"))
    assert b"".join(store.open_range("latest:x")) == b"$HOME; `id`"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """A function that starts an ingest of what a shell script writes."""
    FileStore.create([tmp_path / "store"], cache=tmp_path / "cache").close()
    processes: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        line = [COMMAND, "-s", tmp_path / "store", "ingest", "--name", "x", "--command", "--", "sh", "-c", script]
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_errors_pass_through_and_the_exit_code_is_1(started: Callable[[str], subprocess.Popen[str]]) -> None:
    process = started("echo oh dear >&2; exit 3")
    out, messages = process.communicate(timeout=30)
    assert process.returncode == 1 and out == ""
    assert messages.splitlines() == [
        "oh dear",
        "drystone: the command 'sh' ended with exit code 3; nothing was committed",
    ]


@pytest.mark.parametrize(
    "script",
    [
        "cat /dev/zero",  # it writes and writes
        "sleep 1000; true",  # it says nothing, and its child would outlive it
        "trap '' TERM; exec >&-; sleep 1000; true",  # it closed its output, and does not want to go
    ],
)
def test_an_interrupted_run_takes_its_command_along(
    started: Callable[[str], subprocess.Popen[str]], tmp_path: Path, script: str
) -> None:
    process = started(script)
    limit = time.monotonic() + 20
    below: dict[int, str] = {}
    while time.monotonic() < limit and not {"cat", "sleep"} & set(below.values()):
        time.sleep(0.02)
        below = descendants(process.pid)
    own = {pid: name for pid, name in below.items() if name in ("sh", "cat", "sleep")}
    assert own
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=20)
    assert process.returncode == 130, messages
    limit = time.monotonic() + 5
    while (left := [pid for pid, name in own.items() if process_table().get(pid, (0, ""))[1] == name]) and (
        time.monotonic() < limit
    ):
        time.sleep(0.02)  # whoever inherited them has yet to reap them
    assert not left, "its processes are left"
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        assert not store.runs()


def test_a_run_that_fails_ends_its_command(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    hit: list[int] = []

    def full(*_: object) -> int:
        hit.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.ingest.collect.Inflight.note_pack", full)
    with pytest.raises(OSError, match="No space"):
        store.ingest([], name="x", options=options("sh", "-c", "cat /dev/urandom"))
    assert hit
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() in ("sh\n", "cat\n")]
