"""The fork server: it starts what it is told to, reports every end, and goes when its client goes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import forkserver
from pipeline.errors import ForkServerLost
from pipeline.forkserver import FDS_PER_MESSAGE, WorkerProcess
from pipeline.handles import FdHandle
from tests.conftest import children_of, name_of
from tests.sampling import one_in


def work(arguments: tuple[str, Any]) -> None:
    """What the workers of these tests do."""
    what, value = arguments
    if what == "exit":
        os._exit(value)
    if what == "raise":
        raise ValueError(value)
    if what == "sleep":
        time.sleep(value)
    if what == "where":
        fd = value.detach()
        os.write(fd, repr((os.getcwd(), os.readlink("/proc/self/fd/0"), os.readlink("/proc/self/fd/1"))).encode())
    if what == "sum":
        total = sum(int(os.pread(handle.detach(), 9, 0)) for handle in value)
        os._exit(total % 100)
    if what == "signals":
        os._exit(sum(signal.getsignal(each) == signal.SIG_IGN for each in (signal.SIGINT, signal.SIGTERM)))


def servers() -> list[int]:
    return [pid for pid in children_of(os.getpid()) if name_of(pid) == "drystone-fork"]


def ended(process: WorkerProcess) -> bool:
    return bool(select.select([process.sentinel], [], [], 0)[0])


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_codes(code: int) -> None:
    assert forkserver.start(work, ("exit", code)).wait() == code


def test_an_error_ends_the_process_with_one() -> None:
    assert forkserver.start(work, ("raise", "crooked")).wait() == 1


def test_a_signal_is_told(tmp_path: Path) -> None:
    process = forkserver.start(work, ("sleep", 60))
    assert not ended(process)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_signals_are_ignored_from_the_start() -> None:
    assert forkserver.start(work, ("signals", None)).wait() == 2


def test_workers_are_where_their_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the directory has no name any more; input and output are not theirs."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        read, write = os.pipe()
        if folder == "second":
            (tmp_path / folder).rmdir()
            assert forkserver.start(work, ("exit", 0)).wait() == 0
        else:
            assert forkserver.start(work, ("where", FdHandle(write))).wait() == 0
            assert eval(os.read(read, 1000)) == (str(tmp_path / folder), "/dev/null", "/dev/null")
        os.close(read)
        os.close(write)


def test_as_many_descriptors_as_one_likes(tmp_path: Path) -> None:
    """Linux passes 253 at a time."""
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    one, two = (os.open(tmp_path / name, os.O_RDONLY) for name in ("one", "two"))
    handles = [FdHandle(one)] * FDS_PER_MESSAGE + [FdHandle(two)] * (FDS_PER_MESSAGE - 3) + [FdHandle(one)]
    assert forkserver.start(work, ("sum", handles)).wait() == (250 + 2 * 247 + 1) % 100
    os.close(one)
    os.close(two)


def test_a_server_that_was_killed_is_started_again() -> None:
    forkserver.warm_up()
    (server,) = servers()
    process = forkserver.start(work, ("sleep", 1))
    os.kill(server, signal.SIGKILL)
    time.sleep(0.2)
    assert not ended(process), "the worker lives"
    assert forkserver.start(work, ("exit", 5)).wait() == 5
    assert len(servers()) == 1 and servers() != [server]
    assert process.wait() is None, "nobody knows its exit code"


def test_a_server_that_can_not_start_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    forkserver._server._forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "_BOOTSTRAP", "raise SystemExit('no luck')")
        with pytest.raises(ForkServerLost, match="no worker could be started"):
            forkserver.start(work, ("exit", 0))
    assert "no luck" in capfd.readouterr().err
    assert forkserver.start(work, ("exit", 0)).wait() == 0


def test_a_server_ends_with_its_client() -> None:
    script = "from pipeline import forkserver; forkserver.warm_up(); import os, time; print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        client.stdout.readline()
        (server,) = children_of(client.pid)
        client.kill()
    limit = time.monotonic() + 10
    while name_of(server) == "drystone-fork" or name_of(server).startswith("python"):
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_ctrl_c_while_the_server_starts_says_nothing() -> None:
    """At a terminal it reaches every process; the server is importing, and must not end with a traceback."""
    script = """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: None)
from pipeline import forkserver
forkserver.warm_up()
for _ in range(20):
    os.killpg(0, signal.SIGINT)
    time.sleep(0.01)
assert forkserver.start(print, "not seen").wait() == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, start_new_session=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_program_ends_without_warnings(tmp_path: Path) -> None:
    script = "from pipeline import forkserver; assert forkserver.start(print, 'unseen').wait() == 0"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("how", one_in(3, ["runs", "fails", "is refused", "is stopped"]))
def test_a_command_leaves_no_process_behind(tmp_path: Path, how: str) -> None:
    """Whoever adopts it may never look after it, as the first process of a container."""
    command = Path(sys.executable).with_name("drystone")
    (tmp_path / "file").write_bytes(b"bytes")
    subprocess.run([command, "init", tmp_path / "store"], check=True, capture_output=True)
    words = {"fails": ["--name", "x", "--command", "--", "false"], "is refused": ["--workers", "0", tmp_path / "file"]}
    script = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become ours
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
if sys.argv[1] == "is stopped":
    while not os.path.exists(sys.argv[-1]):
        pass
    process.send_signal(signal.SIGTERM)
process.wait()
try:
    print("left behind", os.waitpid(-1, 0))
except ChildProcessError:
    print("nothing", process.returncode)
"""
    if how == "is stopped":
        words[how] = ["--name", "x", "--command", "--", "sh", "-c", 'echo x > "$0"; exec sleep 60', tmp_path / "began"]
    ingest = [command, "-s", tmp_path / "store", "ingest", "-q", *words.get(how, [tmp_path / "file"])]
    done = subprocess.run(
        [sys.executable, "-c", script, how, *ingest], capture_output=True, text=True, timeout=60, check=True
    )
    code = {"runs": 0, "fails": 1, "is refused": 2, "is stopped": 143}[how]
    assert done.stdout == f"nothing {code}\n"
