"""Standard streams that are closed, full, read by nobody or not open for what they are used for."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from manifests.errors import UsageError
from pipeline.errors import OutputFailed
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.streams import output
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
CLOSED = {0: "<&-", 1: ">&-", 2: "2>&-"}
COMBINATIONS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
COMMITTED = r"run [0-9a-f]{8} is committed"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with `data` in the `store`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRYSTONE_STORE", str(tmp_path / "store"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "words").write_bytes(b"a dry-stone wall\n" * 40_000)
    with FileStore.create([tmp_path / "store"]) as store:
        assert store.ingest(["data"], options=IngestOptions(inline=True, workers=1)).exit_code == 0
    return tmp_path


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line for bash, in which `drystone` is the command."""
    function = f'drystone() {{ {COMMAND} "$@"; }}; '
    return subprocess.run(["bash", "-c", function + line], capture_output=True, text=True, timeout=60)


def redirected(closed: Iterable[int]) -> str:
    return " ".join(CLOSED[fd] for fd in closed)


@pytest.mark.parametrize("closed", one_in(3, COMBINATIONS), ids=redirected)
def test_commands_with_workers_do_their_work_whatever_is_closed(place: Path, closed: tuple[int, ...]) -> None:
    (place / "data" / "more").write_bytes(os.urandom(300_000))
    for words in ("ingest data", "restore --to back", "verify --data"):
        done = shell(f"drystone {words} {redirected(closed)}")
        assert (done.returncode, done.stderr) == (0, ""), words
        assert bool(done.stdout) == (1 not in closed), words
    for name in ("words", "more"):
        assert (place / "back" / "data" / name).read_bytes() == (place / "data" / name).read_bytes()
    with FileStore.open(place / "store") as store:
        assert len(store.runs()) == 2
        assert store.verify(data=True, inline=True).exit_code == 0


@pytest.mark.parametrize(
    "words",
    one_in(2, [
        "runs", "ls -R", "ls --format parquet", "stats --json", "digests", "status", "index status", "verify", "--help",
        "backend list", "compare latest data", "init new", "backend add new",
        "restore latest:data/words --range 0-9 --to f --overwrite always", "ingest data --dry-run",
        "ingest data --format jsonl", "--version",
    ]),
)  # fmt: skip
def test_all_commands_bear_closed_streams(place: Path, words: str) -> None:
    for closed in ((1,), (0, 1, 2)):
        if words.endswith("new") and closed != (1,):
            words += "er"
        done = shell(f"drystone {words} {redirected(closed)}")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("closed", one_in(2, COMBINATIONS), ids=redirected)
def test_a_failure_keeps_its_code_whatever_is_closed(place: Path, closed: tuple[int, ...]) -> None:
    assert shell(f"drystone cat latest:nothing {redirected(set(closed) - {1})}").returncode == 1
    assert shell(f"drystone ingest nothing {redirected(closed)}").returncode == 1
    assert shell(f"drystone --nonsense {redirected(closed)}").returncode == 2


@pytest.mark.parametrize(
    "words", one_in(2, ["ingest - --name x", "ingest - --name x --dry-run", "ingest --files-from - data"])
)
@pytest.mark.parametrize("redirection", ["<&-", "<&- >&-", "0>written"])
def test_a_closed_input_is_refused_and_no_strangers_file_is_read(place: Path, words: str, redirection: str) -> None:
    done = shell(f"drystone {words} {redirection}")
    assert done.returncode == 2
    assert done.stderr == (
        "drystone: - stands for standard input, which is not open for reading: redirect it, or name a file\n"
    )
    with FileStore.open(place / "store") as store:
        assert len(store.runs()) == 1


def test_a_program_with_a_closed_input_is_refused(place: Path) -> None:
    with FileStore.open(place / "store") as store:
        fd = os.open("data/words", os.O_RDONLY)
        os.close(fd)
        with pytest.raises(UsageError, match="not open for reading"):
            store.ingest(["-"], name="x", options=IngestOptions(inline=True, stream=fd))
        fd = os.open("data/words", os.O_RDONLY)
        assert store.ingest(["-"], name="x", options=IngestOptions(inline=True, stream=fd)).exit_code == 0
        os.close(fd)


def test_an_archived_command_finds_its_streams_open(place: Path) -> None:
    script = "ls -l /proc/self/fd | wc -l; cat; echo hidden >&2"
    done = shell(f"drystone ingest --name x --command -- bash -c '{script}' <&- >&- 2>&-")
    assert done.returncode == 0
    with FileStore.open(place / "store") as store:
        assert (
            b"".join(store.open_range("latest:x")) == b"5\n"
        )  # 0 to 2, the directory that ls reads, and its first line


def test_cat_has_nowhere_to_write_to(place: Path) -> None:
    done = shell("drystone cat latest:data/words >&-")
    assert (done.returncode, done.stderr) == (
        2,
        "drystone: standard output is closed, and cat writes there: redirect it, or use restore --to FILE\n",
    )


def test_a_stream_tells_its_own_failures() -> None:
    with output(os.open("/dev/full", os.O_WRONLY)) as disk, pytest.raises(OutputFailed, match="No space left") as full:
        disk.write(b"x")
    assert (full.value.exit_code, full.value.unread) == (1, False)
    reading, writing = os.pipe()
    os.close(reading)
    with output(writing) as pipe, pytest.raises(OutputFailed, match="Broken pipe") as unread:
        pipe.write(b"x")
    assert (unread.value.exit_code, unread.value.unread) == (141, True)


# --- output that can't be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", one_in(2, ["ingest data", "ingest data -q", "ingest data --json", "ingest data --format jsonl"])
)
def test_a_run_that_is_committed_says_so_though_its_output_failed(place: Path, words: str) -> None:
    full = shell(f"drystone {words} >/dev/full")
    assert full.returncode == 1
    assert re.fullmatch(f"drystone: writing the output failed: No space left on device; {COMMITTED}\n", full.stderr)
    unread = shell(f"drystone {words} | true; exit ${{PIPESTATUS[0]}}")
    with FileStore.open(place / "store") as store:
        assert len(store.runs()) == 3
    if unread.returncode:  # nobody was there any more in time
        assert unread.returncode == 141
        assert re.fullmatch(f"drystone: nobody reads the output any more; {COMMITTED}\n", unread.stderr)
    reading = shell(f"drystone {words} 1<data/words")
    assert reading.returncode == 1
    assert re.fullmatch(f"drystone: writing the output failed: Bad file descriptor; {COMMITTED}\n", reading.stderr)


@pytest.mark.parametrize(
    ("words", "stands"),
    one_in(
        2,
        [
            ("init new", "store [0-9a-f-]{36} is made"),
            ("backend add new", "backend [0-9a-f-]{36} is added"),
            ("index rebuild", "the index is built"),
            ("restore --to back", "all is restored into back"),
            ("restore latest:data/words --range 0-1 --to part", "part holds these bytes"),
            ("verify", "the verification is done, with exit code 0"),
            ("verify --json", "the verification is done, with exit code 0"),
        ],
        several=True,
    ),
)
def test_what_stands_is_said(place: Path, words: str, stands: str) -> None:
    done = shell(f"drystone {words} >/dev/full")
    assert done.returncode == 1
    assert re.fullmatch(f"drystone: writing the output failed: No space left on device; {stands}\n", done.stderr)


@pytest.mark.parametrize("words", ["--help", "cat --help", "--version", "ls", "ls --format parquet"])
def test_the_output_of_any_command_may_fail(place: Path, words: str) -> None:
    done = shell(f"drystone {words} >/dev/full")
    assert (done.returncode, done.stderr) == (1, "drystone: writing the output failed: No space left on device\n")


def test_messages_that_can_not_be_written_stop_nothing(place: Path) -> None:
    os.mkfifo(place / "data" / "pipe")
    (place / "data" / "words").chmod(0)
    for redirection in ("2>/dev/full", "2>&-", "2</dev/null"):
        done = shell(f"drystone ingest data nothing -v {redirection}")
        assert done.returncode == 3 and re.match("run ", done.stdout), done.stdout


def test_an_error_of_the_system_is_not_taken_for_one_of_the_output(place: Path, tmp_path: Path) -> None:
    """Temporary files on a full disk, and a store on one that fails."""
    program = """
import errno, os, sys
from pipeline.cli import app
from pipeline.filestore import FileStore
number, name = int(sys.argv.pop(1)), sys.argv.pop(1)
def fail(self, *_, **__):
    raise OSError(number, os.strerror(number), *([name] if name else []))
FileStore.runs = fail
app.run()
"""

    def run(number: int, name: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(number), name, "runs"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1 and "writing the output" not in done.stderr
        return done.stderr

    assert run(errno.EIO, "/mnt/x") == "drystone: /mnt/x: Input/output error\n"
    assert run(errno.ENOSPC, "") == (
        "drystone: No space left on device, it seems for temporary files, which go to "
        f"{os.environ['TMPDIR']}: make room, or set TMPDIR\n"
    )
    assert run(errno.EPIPE, "/mnt/x") == "drystone: /mnt/x: Broken pipe\n"
    assert run(errno.EBADF, "").endswith("drystone: that is a fault of Drystone's own; please report it\n")


def test_an_error_after_the_commit_says_that_the_run_is_committed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manifests.inflight import Inflight

    def fail(self: Inflight) -> None:
        raise OSError(5, "Input/output error")

    with FileStore.open(place / "store") as store:
        monkeypatch.setattr(Inflight, "end", fail)
        with pytest.raises(OSError) as caught:
            store.ingest(["data"], options=IngestOptions(inline=True))
    (note,) = caught.value.__notes__
    assert re.fullmatch(COMMITTED, note)
    with FileStore.open(place / "store") as store:
        assert store.runs()[-1].short in note


def test_output_to_a_pipe_that_does_not_block_is_written_whole(place: Path) -> None:
    """Another process with the same terminal or pipe may have made it so."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    read: list[bytes] = []

    def take() -> None:
        time.sleep(0.5)
        with open(reading, "rb") as file:
            read.append(file.read())

    taker = threading.Thread(target=take)
    taker.start()
    done = subprocess.run([COMMAND, "cat", "latest:data/words"], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    taker.join()
    assert (done.returncode, done.stderr) == (0, b"")
    assert read == [(place / "data" / "words").read_bytes()]


def test_json_of_a_run_that_nobody_reads_is_whole_elsewhere(place: Path) -> None:
    done = shell("drystone ingest data --json")
    assert json.loads(done.stdout)["type"] == "summary"


@pytest.mark.parametrize(
    "command",
    [["cat", "latest:data/words"], ["restore", "latest:data/words", "--range", "0-", "--to", "/dev/stdout"]],
)
def test_a_pipe_that_does_not_block_gets_all(place: Path, command: list[str]) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen([COMMAND, *command], stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr is not None
        time.sleep(1)  # so that the pipe is full
        with open(read, "rb") as pipe:
            assert pipe.read() == (place / "data" / "words").read_bytes()
        assert process.wait(30) == 0, process.stderr.read()
