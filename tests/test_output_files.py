"""A file that a user named is written as a shell would, and nothing is lost by it: what is there is kept unless it may
be replaced, and what is no regular file is written into."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manifests.errors import BackendError
from pipeline.errors import OutputKept
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.outfile import OutputOptions, output_file
from stages.naming import Namer, _link, _reserve
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))
CONTENT = b"".join(b"%07d\n" % number for number in range(50_000))
PART = CONTENT[8:24]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")


BLOB: list[str] = []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("outputs")
    (place / "tree").mkdir()
    (place / "tree" / "file").write_bytes(CONTENT)
    (place / "tree" / "secret").write_bytes(CONTENT)
    (place / "tree" / "secret").chmod(0o600)
    with FileStore.create([place / "store"], cache=place / "cache") as made:
        BLOB[:] = [made.put_object("blob", io.BytesIO(b"bytes of an object")).id]
        assert made.ingest([str(place / "tree")], options=IngestOptions(inline=True, workers=1)).exit_code == 0
    return place / "store"


def restore(
    store: Path, to: str | Path, *more: str, of: str = "file", **how: object
) -> subprocess.CompletedProcess[bytes]:
    line = [COMMAND, "-s", str(store), "restore", f"latest:tree/{of}", "--range", "8-23", "--to", str(to), *more]
    return subprocess.run(line, capture_output=True, timeout=60, **how)  # type: ignore[call-overload, no-any-return]


# --- no regular file -------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_device_is_written_into(store: Path, tmp_path: Path, through_a_link: bool) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this root may make no devices")
    to = device
    if through_a_link:
        to = tmp_path / "link"
        to.symlink_to("null")
    done = restore(store, to)
    assert done.returncode == 0, done.stderr
    assert stat.S_ISCHR(device.stat().st_mode)
    assert to.is_symlink() == through_a_link
    assert sorted(os.listdir(tmp_path)) == sorted({"null", to.name})


def test_a_full_device_is_an_error_that_names_it(store: Path) -> None:
    done = restore(store, "/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"drystone: writing /dev/full failed: No space left on device\n"


@pytest.mark.parametrize("overwrite", ["never", "always"])
def test_a_fifo_is_written_into(store: Path, tmp_path: Path, overwrite: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_bytes()))
    reader.start()
    done = restore(store, fifo, "--overwrite", overwrite)
    reader.join(20)
    assert done.returncode == 0, done.stderr
    assert found == [PART]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_socket_is_refused_and_stays(store: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        done = restore(store, tmp_path / "socket", "--overwrite", "always")
        assert done.returncode == 2
        assert b"is a socket" in done.stderr
        assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)


@pytest.mark.parametrize("name", one_in(2, ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"]))
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_output_by_name_is_written_into_where_it_stands(
    store: Path, tmp_path: Path, name: str, kind: str
) -> None:
    if name == "link":
        name = str(tmp_path / "link")
        os.symlink("/dev/stdout", name)
    line = [COMMAND, "-s", store, "restore", "latest:tree/file", "--range", "8-23", "--to", name]
    if kind == "pipe":
        done = subprocess.run(line, capture_output=True, timeout=60)
        written = done.stdout
    else:
        out = tmp_path / "out"
        out.write_bytes(b"before ")
        with open(out, "ab") as file:
            done = subprocess.run(line, stdout=file, stderr=subprocess.PIPE, timeout=60)
        written = out.read_bytes().removeprefix(b"before ")
    assert done.returncode == 0, done.stderr
    assert written == PART
    assert b"wrote 16 bytes" in done.stderr


def test_a_descriptor_that_was_handed_over_is_written_into_and_others_are_refused(store: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        done = restore(store, f"/dev/fd/{writer}", pass_fds=(writer,))
    finally:
        os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == PART
    assert done.returncode == 0, done.stderr
    for number in (3, 5, 200):
        done = restore(store, f"/dev/fd/{number}")
        assert done.returncode == 2
        assert done.stderr == f"drystone: /dev/fd/{number}: nothing is open as descriptor {number}\n".encode()


# --- regular files ---------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(store: Path, tmp_path: Path) -> None:
    to = tmp_path / "file"
    to.write_bytes(b"mine")
    to.chmod(0o640)
    for more in ((), ("--overwrite", "never")):
        done = restore(store, to, *more)
        assert done.returncode == 3
        assert (
            done.stderr.decode()
            == f"drystone: {to} is there already and was kept; nothing was written; see --overwrite\n"
        )
        assert to.read_bytes() == b"mine"
    inode = to.stat().st_ino
    assert restore(store, to, "--overwrite", "if-changed").returncode == 0
    assert to.read_bytes() == PART and to.stat().st_ino != inode
    assert stat.S_IMODE(to.stat().st_mode) == 0o640
    inode = to.stat().st_ino
    done = restore(store, to, "--overwrite", "if-changed")
    assert (done.returncode, to.stat().st_ino) == (0, inode)
    assert b"holds these bytes already" in done.stdout
    to.write_bytes(b"mine")
    assert restore(store, to, "--overwrite", "always").returncode == 0
    assert to.read_bytes() == PART
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("overwrite", ["never", "always"])
def test_a_link_is_followed_and_what_it_leads_to_is_protected(store: Path, tmp_path: Path, overwrite: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("there/file")
    done = restore(store, tmp_path / "link", "--overwrite", overwrite)
    assert done.returncode == (3 if overwrite == "never" else 0)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == (b"mine" if overwrite == "never" else PART)


def test_a_dangling_link_leads_to_the_new_file(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there/file")
    done = restore(store, tmp_path / "link")
    assert done.returncode == 1
    assert b"No such file or directory" in done.stderr
    (tmp_path / "there").mkdir()
    assert restore(store, tmp_path / "link").returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == PART


@pytest.mark.parametrize("name", one_in(2, ["", ".", "there", "there/", "new/", "link/", "there/."]))
def test_what_is_or_shall_be_a_directory_is_no_place_for_a_file(store: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    done = restore(store, name, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]
    assert not os.listdir(tmp_path / "there")


def test_a_link_before_dots_leads_where_the_kernel_goes(store: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    assert restore(store, tmp_path / "link" / ".." / "part").returncode == 0
    assert (tmp_path / "a" / "part").read_bytes() == PART
    assert not (tmp_path / "part").exists()


def test_a_whole_object_by_its_id_goes_the_same_way(store: Path, tmp_path: Path) -> None:
    line = [COMMAND, "-s", store, "restore", BLOB[0], "--to", tmp_path / "blob"]
    assert subprocess.run(line, timeout=60).returncode == 0
    assert (tmp_path / "blob").read_bytes() == b"bytes of an object"
    (tmp_path / "blob").write_bytes(b"mine")
    assert subprocess.run(line, capture_output=True, timeout=60).returncode == 3
    assert (tmp_path / "blob").read_bytes() == b"mine"


def test_a_range_is_not_open_to_more_people_than_its_object(store: Path, tmp_path: Path) -> None:
    os.umask(0o022)
    assert restore(store, tmp_path / "secret", of="secret").returncode == 0
    assert restore(store, tmp_path / "file").returncode == 0
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


# --- how it is done --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
@pytest.mark.parametrize("what", ["file", "link", "fifo"])
def test_what_appears_at_the_last_moment_is_kept(tmp_path: Path, overwrite: str, what: str) -> None:
    to = tmp_path / "file"
    with pytest.raises(OutputKept), output_file(str(to), OutputOptions(overwrite=overwrite)) as out:
        out.write(b"ours")
        if what == "file":
            to.write_bytes(b"theirs")
        elif what == "link":
            to.symlink_to("nowhere")
        else:
            os.mkfifo(to)
    if what == "file":
        assert to.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("way", [_link, _reserve])
def test_names_are_never_taken_where_the_kernel_has_no_way_of_its_own(tmp_path: Path, way: object) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    namer = Namer()
    namer._ways = [way]  # type: ignore[list-item]
    try:
        (tmp_path / "temp").write_bytes(b"ours")
        (tmp_path / "file").write_bytes(b"theirs")
        with pytest.raises(FileExistsError):
            namer.name(folder, b"temp", folder, b"file")
        assert (tmp_path / "file").read_bytes() == b"theirs"
        namer.name(folder, b"temp", folder, b"new")
        assert (tmp_path / "new").read_bytes() == b"ours"
        os.symlink("x", tmp_path / "temp")
        namer.name(folder, b"temp", folder, b"link")
        assert os.readlink(tmp_path / "link") == "x"
        assert sorted(os.listdir(tmp_path)) == ["file", "link", "new"]
    finally:
        os.close(folder)


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / ".drystone-range-1").write_bytes(b"somebody else's")
    with pytest.raises(ZeroDivisionError), output_file(str(tmp_path / "file"), OutputOptions()) as out:
        out.write(b"ours")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == [".drystone-range-1"]


@pytest.mark.parametrize("to", ["file", "fifo"])
def test_an_error_of_something_else_is_not_blamed_on_the_output(tmp_path: Path, to: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="a cache") as raised, output_file(str(tmp_path / to), OutputOptions()) as out:
            out.write(b"ours")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a cache")
    finally:
        os.close(reader)
    assert raised.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["fifo"]


@needs_root
def test_an_error_of_the_output_names_it(tmp_path: Path) -> None:
    """An output that can't be opened, written, and given its name."""
    full = tmp_path / "full"
    os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    with pytest.raises(BackendError, match=f"writing {full} failed: "), output_file(str(full), OutputOptions()) as out:
        out.write(b"ours")
    inner = tmp_path / "inner"
    inner.mkdir()
    with (
        pytest.raises(BackendError, match=f"writing {inner}/file failed: "),
        output_file(str(inner / "file"), OutputOptions()) as out,
    ):
        out.write(b"ours")
        (inner / "file").mkdir()
        inner.rename(tmp_path / "moved")
        shutil.rmtree(tmp_path / "moved")
    with (
        pytest.raises(BackendError, match=r"writing .*none/file failed"),
        output_file(f"{tmp_path}/none/file", OutputOptions()),
    ):
        pass


def test_a_fifo_that_is_read_slowly_gets_all(tmp_path: Path) -> None:
    to, data = tmp_path / "fifo", os.urandom(200_000)
    os.mkfifo(to)
    program = "import sys, time; file = open(sys.argv[1], 'rb'); time.sleep(0.5); sys.stdout.buffer.write(file.read())"
    with subprocess.Popen([sys.executable, "-c", program, to], stdout=subprocess.PIPE) as reader:
        with output_file(str(to), OutputOptions(overwrite="always")) as out:
            out.write(data)
        assert reader.communicate(timeout=30)[0] == data


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys, time\n"
        "from pipeline.outfile import OutputOptions, output_file\n"
        "from pipeline.cli.app import exit_code_of\n"
        "try:\n"
        "    with output_file(sys.argv[1], OutputOptions()) as out:\n"
        "        out.write(b'ours'); print('begun', flush=True); time.sleep(60)\n"
        "except BaseException as error:\n"
        "    sys.exit(exit_code_of(error))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "file"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"begun\n"
        assert os.listdir(tmp_path) != []
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert os.listdir(tmp_path) == []
