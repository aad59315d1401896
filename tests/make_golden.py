"""Makes a golden store: small, with everything that this version can keep, frozen for all later ones to read. It is an
adopted copy of another one, whose shards it has.

    python -m tests.make_golden NAME

writes tests/golden/NAME.tar.xz, which holds the store, and in `expected.json` what must come back, run by run. Run it
as root, for device nodes and the like; on a file system that knows extended attributes and holes. A golden store is
never made again: a new version that keeps more gets another one.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import struct
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from blake3 import blake3

from manifests.config import ChunkerSpec, CodecSpec, ECScheme
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.objects.refs import ObjectRef
from tests.trees import data_map, describe, link_groups

GOLDEN = Path(__file__).parent / "golden"
INLINE = {"inline": True, "workers": 1}
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 7, 0xFFFFFFFF), (2, 5, 1234), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
)


def make_everything(tree: Path) -> None:
    """A tree with every kind of object and attribute that this version keeps."""
    chance = random.Random(20)
    (tree / "folder" / "deep").mkdir(parents=True)
    (tree / "text").write_text("".join(f"line {number}\n" for number in range(4000)))
    (tree / "noise").write_bytes(chance.randbytes(90_000))
    shutil.copy(tree / "noise", tree / "folder" / "the same noise")
    (tree / "empty").touch()
    (tree / "folder" / "small").write_bytes(b"x")
    os.link(tree / "text", tree / "folder" / "deep" / "another name")
    os.symlink("folder/small", tree / "link")
    os.symlink("/nowhere/at all", tree / "folder" / "dangling")
    os.mkfifo(tree / "fifo", 0o622)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "disk", stat.S_IFBLK | 0o640, os.makedev(7, 200))
    with open(tree / "sparse", "wb") as file:
        file.truncate(1_000_000)
        file.seek(500_000)
        file.write(chance.randbytes(20_000))
    with open(tree / "hole", "wb") as file:
        file.truncate(300_000)
    for name in (b"not utf-8 \xff\xfe", b"new\nline", b"n" * 255):
        (Path(os.fsdecode(os.fsencode(tree) + b"/folder/" + name))).write_bytes(name)
    os.setxattr(tree / "text", "user.note", b"of the text")
    os.setxattr(tree / "folder", "user.binary", bytes(range(256)))
    os.setxattr(tree / "folder", "system.posix_acl_default", ACL)
    os.setxattr(tree / "folder" / "small", "system.posix_acl_access", ACL)
    for number, (name, mode) in enumerate((("noise", 0o4751), ("empty", 0o000), ("folder/small", 0o2640))):
        os.chown(tree / name, 1000 + number, 2000 + number)
        (tree / name).chmod(mode)
    os.setxattr(tree / "noise", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
    for number, path in enumerate(sorted(tree.rglob("*"), reverse=True)):
        os.utime(path, ns=(1, 1_700_000_000_123_456_789 + number), follow_symlinks=False)
    os.utime(tree, ns=(1, 1_699_999_999_987_654_321))


def expectation(tree: Path) -> dict[str, Any]:
    """What `describe` and its kin say of a tree, as JSON: hexadecimal for bytes."""
    objects = {}
    for path, (mode, owner, mtime, device, attributes, content) in describe(tree).items():
        objects[path.hex()] = {
            "mode": mode,
            "owner": owner,
            "mtime_ns": mtime,
            "device": device,
            "xattrs": {name: value.hex() for name, value in attributes.items()},
            "content": None if content is None else content.hex() if len(content) <= 64 else _digest(content),
        }
    sparse = {name: data_map(tree / name) for name in ("sparse", "hole") if (tree / name).exists()}
    return {"objects": objects, "links": sorted(sorted(group) for group in link_groups(tree)), "data": sparse}


def put_everything(store: FileStore) -> dict[str, Any]:
    """Put objects of all sorts, delete one, and receive and delete chunks; what is to be said of each object, by id."""
    chance, held = random.Random(22), dict[str, bytes]()
    with store.batch():
        for key, size in (("empty", 0), ("small", 100), ("large", 60_000), ("old", 10), ("gone", 10)):
            data = chance.randbytes(size)
            ref = store.put_object(key, io.BytesIO(data), bucket="b", content_type="x/y", metadata={"size": str(size)})
            held[ref.id] = data
    held[store.put_object("old", io.BytesIO(b"new"), bucket="b", ttl=3_000_000_000, compression="lz4").id] = b"new"
    store.delete_object("gone", bucket="b")
    for data in (b"a chunk that stays", b"a chunk that goes"):
        store.write_chunk(blake3(data).digest(), data)
    store.delete_chunk(blake3(b"a chunk that goes").digest())
    refs = [ref for key in ("empty", "small", "large", "old", "gone") for ref in store.list_versions(key, bucket="b")]
    return {ref.id: {**describe_object(ref), "content": _digest(held[ref.id])} for ref in refs}


def describe_object(ref: ObjectRef) -> dict[str, Any]:
    """An object as JSON."""
    described = {**vars(ref), "digest": None if ref.digest is None else ref.digest.hex()}
    return {**described, "metadata": dict(ref.metadata)}


def _digest(content: bytes) -> str:
    return "blake3:" + blake3(content).hexdigest()


def main(name: str) -> int:
    target = GOLDEN / f"{name}.tar.xz"
    if target.exists():
        print(f"{target} is there already; a golden store is never made again", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        place = Path(scratch)
        tree = place / "tree"
        make_everything(tree)
        runs = []
        with FileStore.create(
            [place / "store"],
            scheme=ECScheme(2, 1),
            chunker=ChunkerSpec("fastcdc", 8 << 10),
            pack_size=256 << 10,
            cache=place / "cache",
        ) as store:
            digests = ("md5", "sha1", "sha256", "sha512")
            options = IngestOptions(host="golden", tags={"made": "once"}, digests=digests, **INLINE)  # type: ignore[arg-type]
            store.ingest([str(tree)], options=options)
            runs.append(expectation(tree))
            (tree / "text").write_text("changed\n" * 3000)
            (tree / "folder" / "dangling").unlink()
            options = IngestOptions(host="golden", codec=CodecSpec("lz4"), **INLINE)  # type: ignore[arg-type]
            store.ingest([str(tree)], options=options)
            runs.append(expectation(tree))
        shutil.copytree(place / "store", place / "copy")
        with FileStore.open(place / "copy", cache=place / "cache", adopt_copy=True) as store:
            (tree / "noise2").write_bytes(random.Random(21).randbytes(50_000))
            options = IngestOptions(host="golden", codec=CodecSpec("none"), **INLINE)  # type: ignore[arg-type]
            store.ingest([str(tree)], options=options)
            runs.append(expectation(tree))
            objects = put_everything(store)
        (place / "expected.json").write_text(json.dumps({"runs": runs, "objects": objects}, indent=1))
        with tarfile.open(target, "w:xz") as archive:
            archive.add(place / "copy", "store")
            archive.add(place / "expected.json", "expected.json")
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
