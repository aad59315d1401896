"""A file system in memory that lacks what FAT, network and other file systems lack, over the kernel's FUSE protocol.

For tests: it folds or normalises names, keeps times coarsely, knows no links, as it is told. It runs in a process of
its own; mounting takes root. The numbers are those of <linux/fuse.h>, protocol 7.31.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)
_HEAD = struct.Struct("<IIQQIIIHH")
_NOREPLACE = 1
_ROOT = 1
_DETACH = 2
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENODEV, errno.ENXIO)
#: Seconds in which a server says something, and ends.
WAIT = 30


@contextlib.contextmanager
def odd_file_system(place: Path, *lacks: str) -> Iterator[Path]:
    """A mounted file system below `place`, with: `case` (R is r), `nfd` (names are decomposed when stored), `nolink`,
    `nosymlink`, `noflags` (renameat2 takes none), `coarse` (times of 2 s), `nomode` (modes can't be changed),
    `nofsyncdir` (directories can't be synced);
    or that fails: `flush` (closing a file fails), `full` (closing one of more than 100,000 bytes does), `nosync` (fsync
    fails); or `hides` (a deleted file has another name until it is closed, as with NFS)."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting a FUSE file system takes root and /dev/fuse")
    point = place / "odd"
    point.mkdir()
    program = [sys.executable, "-m", "tests.oddfs", str(point), *lacks]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as server:
        said = ""
        try:
            said = first_line(server)
            if said.startswith("refused: "):
                pytest.skip(f"the kernel mounts no FUSE file system here: {said.removeprefix('refused: ')}")
            assert said == "mounted", "the server of the FUSE file system broke before it had mounted it"
            yield point
        finally:
            busy = unmounted(point)
            if said != "mounted" or busy:
                server.kill()
            try:
                server.wait(WAIT)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
        assert not busy, "descriptors of the target are still open"


def first_line(server: subprocess.Popen[bytes]) -> str:
    """What a program says first; empty where it says nothing for long."""
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], WAIT)
    return server.stdout.readline().decode().rstrip("\n") if ready else ""


def unmounted(point: Path) -> bool:
    """Unmount what is mounted at `point`, if anything is, whoever uses it. Returns whether it was in use."""
    if not os.path.ismount(point):
        return False
    busy = bool(_LIBC.umount2(os.fsencode(point), 0))
    if busy:
        _LIBC.umount2(os.fsencode(point), _DETACH)
    return busy


@dataclass
class Node:
    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    links: int = 1
    mtime: int = 0
    data: bytearray = field(default_factory=bytearray)
    #: Stored name and inode by the name as it is compared.
    names: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    #: How often it is open, and the directory in which it is hidden and as what, once it is deleted.
    opened: int = 0
    hidden: tuple[int, bytes] | None = None


class Refused(Exception):
    """Answered with an error number."""


class Server:
    def __init__(self, fd: int, lacks: set[str]) -> None:
        self.fd = fd
        self.lacks = lacks
        self.nodes = {_ROOT: Node(_ROOT, stat.S_IFDIR | 0o755, 0, 0, links=2)}
        self.next = _ROOT + 1
        self.handlers: dict[int, Callable[[int, bytes, int, int], bytes | None]] = {
            1: self.lookup, 3: self.getattr, 4: self.setattr, 5: self.readlink, 6: self.symlink, 8: self.mknod,
            9: self.mkdir, 10: self.unlink, 11: self.rmdir, 12: self.rename, 13: self.link, 14: self.open,
            15: self.read, 16: self.write, 17: self.statfs, 18: self.release, 20: self.fsync, 25: self.flush,
            26: self.init,
            27: self.open, 28: self.readdir, 29: self.nothing, 30: self.fsyncdir, 35: self.create, 38: self.nothing,
            45: self.rename2,
        }  # fmt: skip

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.fd, (1 << 17) + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            _, opcode, unique, nodeid, uid, gid, _, _, _ = _HEAD.unpack_from(request)
            if opcode in (2, 36, 42):  # forget, interrupt, batch forget: no answer
                continue
            try:
                handler = self.handlers.get(opcode)
                if handler is None:
                    raise Refused(errno.ENOSYS)
                answer, number = handler(nodeid, request[_HEAD.size :], uid, gid) or b"", 0
            except Refused as refusal:
                answer, number = b"", refusal.args[0]
            with contextlib.suppress(FileNotFoundError):  # whoever asked was interrupted
                os.write(self.fd, struct.pack("<IiQ", 16 + len(answer), -number, unique) + answer)

    # --- names -------------------------------------------------------------------------------------------------------

    def key(self, name: bytes) -> bytes:
        text = name.decode(errors="surrogateescape")
        if "case" in self.lacks:
            text = text.casefold()
        if "nfd" in self.lacks:
            text = unicodedata.normalize("NFD", text)
        return text.encode(errors="surrogateescape")

    def stored(self, name: bytes) -> bytes:
        if "nfd" not in self.lacks:
            return name
        return unicodedata.normalize("NFD", name.decode(errors="surrogateescape")).encode(errors="surrogateescape")

    def find(self, folder: int, name: bytes) -> Node:
        entry = self.nodes[folder].names.get(self.key(name))
        if entry is None:
            raise Refused(errno.ENOENT)
        return self.nodes[entry[1]]

    def add(self, folder: int, name: bytes, node: Node) -> None:
        if self.key(name) in self.nodes[folder].names:
            raise Refused(errno.EEXIST)
        self.nodes[folder].names[self.key(name)] = (self.stored(name), node.ino)
        self.touch(self.nodes[folder])

    def make(self, folder: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Node:
        node = Node(self.next, mode, uid, gid, rdev, 2 if stat.S_ISDIR(mode) else 1)
        self.add(folder, name, node)
        self.next += 1
        self.nodes[node.ino] = node
        self.touch(node)
        return node

    def touch(self, node: Node, ns: int | None = None) -> None:
        step = 2 * 10**9 if "coarse" in self.lacks else 1
        node.mtime = (time.time_ns() if ns is None else ns) // step * step

    # --- answers -----------------------------------------------------------------------------------------------------

    @staticmethod
    def attributes(node: Node) -> bytes:
        size = len(node.data)
        seconds, ns = divmod(node.mtime, 10**9)
        return struct.pack(
            "<QQQqqqIIIIIIIIII", node.ino, size, -(-size // 512), seconds, seconds, seconds, ns, ns, ns,
            node.mode, node.links, node.uid, node.gid, node.rdev, 4096, 0,
        )  # fmt: skip

    def entry(self, node: Node) -> bytes:
        return struct.pack("<QQQQII", node.ino, 0, 0, 0, 0, 0) + self.attributes(node)

    def init(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        readahead = struct.unpack_from("<III", body)[2]
        return struct.pack("<IIIIHHII", 7, 31, readahead, 0, 16, 12, 1 << 17, 1).ljust(64, b"\0")

    def nothing(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        return None

    def lookup(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return self.entry(self.find(nodeid, body.rstrip(b"\0")))

    def getattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self.attributes(self.nodes[nodeid])

    def setattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        valid, _, _, size, _, _, mtime, _, _, mtime_ns, _, mode, _, new_uid, new_gid, _ = struct.unpack_from(
            "<IIQQQqqqIIIIIIII", body
        )
        node = self.nodes[nodeid]
        if valid & 1:
            if "nomode" in self.lacks and mode & 0o777 != node.mode & 0o777:
                raise Refused(errno.EPERM)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.uid = new_uid if valid & 2 else node.uid
        node.gid = new_gid if valid & 4 else node.gid
        if valid & 8:
            node.data = node.data[:size] + bytes(max(0, size - len(node.data)))
        if valid & (32 | 256):
            self.touch(node, None if valid & 256 else mtime * 10**9 + mtime_ns)
        return struct.pack("<QII", 0, 0, 0) + self.attributes(node)

    def readlink(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return bytes(self.nodes[nodeid].data)

    def symlink(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        if "nosymlink" in self.lacks:
            raise Refused(errno.EPERM)
        name, target, _ = body.split(b"\0", 2)
        node = self.make(nodeid, name, stat.S_IFLNK | 0o777, uid, gid)
        node.data += target
        return self.entry(node)

    def mknod(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        mode, rdev = struct.unpack_from("<II", body)
        return self.entry(self.make(nodeid, body[16:].rstrip(b"\0"), mode, uid, gid, rdev))

    def mkdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        mode = struct.unpack_from("<I", body)[0]
        mode = 0o755 if "nomode" in self.lacks else mode & 0o7777
        return self.entry(self.make(nodeid, body[8:].rstrip(b"\0"), stat.S_IFDIR | mode, uid, gid))

    def unlink(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        name = body.rstrip(b"\0")
        node = self.find(nodeid, name)
        if "hides" in self.lacks and node.opened:
            node.hidden = (nodeid, hidden := b".hidden%d" % node.ino)
            self.add(nodeid, hidden, node)
        else:
            node.links -= 1
        del self.nodes[nodeid].names[self.key(name)]

    def rmdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        name = body.rstrip(b"\0")
        if self.find(nodeid, name).names:
            raise Refused(errno.ENOTEMPTY)
        del self.nodes[nodeid].names[self.key(name)]

    def rename(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        self.move(nodeid, struct.unpack_from("<Q", body)[0], body[8:], 0)

    def rename2(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        if "noflags" in self.lacks:
            raise Refused(errno.ENOSYS)
        folder, flags, _ = struct.unpack_from("<QII", body)
        self.move(nodeid, folder, body[16:], flags)

    def move(self, source: int, target: int, names: bytes, flags: int) -> None:
        old, new, _ = names.split(b"\0", 2)
        node = self.find(source, old)
        before, after = self.nodes[source].names, self.nodes[target].names
        there = after.get(self.key(new))
        if there is not None:
            if flags & _NOREPLACE:
                raise Refused(errno.EEXIST)
            if there[1] == node.ino:
                return
            self.nodes[there[1]].links -= 1
        # As FAT and ext4 do, an entry that is taken over keeps the name that it was made with.
        after[self.key(new)] = (there[0] if there is not None else self.stored(new), node.ino)
        del before[self.key(old)]

    def link(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        if "nolink" in self.lacks:
            raise Refused(errno.EPERM)
        node = self.nodes[struct.unpack_from("<Q", body)[0]]
        self.add(nodeid, body[8:].rstrip(b"\0"), node)
        node.links += 1
        return self.entry(node)

    def flush(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        if "flush" in self.lacks:
            raise Refused(errno.EIO)
        if "full" in self.lacks and len(self.nodes[nodeid].data) > 100_000:
            raise Refused(errno.EDQUOT)

    def fsync(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        if "nosync" in self.lacks:
            raise Refused(errno.EIO)

    def release(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        node = self.nodes[nodeid]
        node.opened -= 1
        if node.hidden is not None and not node.opened:
            folder, name = node.hidden
            self.nodes[folder].names.pop(self.key(name), None)

    def open(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self.nodes[nodeid].opened += not stat.S_ISDIR(self.nodes[nodeid].mode)
        return struct.pack("<QII", 0, 0, 0)

    def create(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        mode = struct.unpack_from("<IIII", body)[1]
        mode = 0o755 if "nomode" in self.lacks else mode & 0o7777
        node = self.make(nodeid, body[16:].rstrip(b"\0"), stat.S_IFREG | mode, uid, gid)
        node.opened = 1
        return self.entry(node) + struct.pack("<QII", 0, 0, 0)

    def read(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self.nodes[nodeid].data[offset : offset + size])

    def write(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        node, data = self.nodes[nodeid], body[40 : 40 + size]
        if len(node.data) < offset:
            node.data += bytes(offset - len(node.data))
        node.data[offset : offset + size] = data
        self.touch(node)
        return struct.pack("<II", size, 0)

    def statfs(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return struct.pack("<QQQQQIIII", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0).ljust(
            80, b"\0"
        )

    def fsyncdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        if "nofsyncdir" in self.lacks:
            raise Refused(errno.EINVAL)

    def readdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        entries = [(b".", nodeid), (b"..", _ROOT), *self.nodes[nodeid].names.values()]
        for number, (name, ino) in enumerate(entries[offset:], int(offset) + 1):
            kind = stat.S_IFMT(self.nodes[ino].mode) >> 12
            entry = struct.pack("<QQII", ino, number, len(name), kind) + name
            entry = entry.ljust(-(-len(entry) // 8) * 8, b"\0")
            if len(found) + len(entry) > size:
                break
            found += entry
        return found


def main(point: str, *lacks: str) -> None:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if _LIBC.mount(b"odd", os.fsencode(point), b"fuse.odd", 0, options):
            raise OSError(number := ctypes.get_errno(), os.strerror(number))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        print(f"refused: {error.strerror}", flush=True)
        return
    print("mounted", flush=True)
    Server(fd, set(lacks)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
