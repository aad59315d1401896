"""Stores, caches and temporary files in folders whose names mean something to a library: partitions, patterns, URLs,
bytes that are not text. Whatever they are called, every command gives what it gives elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from manifests.config import ChunkerSpec, ECScheme
from manifests.openfolders import OpenFolders
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from stages.assemble import ByteRange
from tests.sampling import one_in
from tests.trees import describe, make_tree

COMMAND = str(Path(sys.executable).with_name("drystone"))
ROOT = Path(__file__).parents[1]
README_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
INLINE = IngestOptions(inline=True, workers=1, digests=("md5",))
#: What DuckDB or pyarrow could take a folder's name for.
PARTITIONS = [
    "offset=0", "length=0", "chunk_id=x", "path=a", "run=1", "row=7", "size=3", "kind=fifo", "content_id=__NULL__",
    "block=0", "stored=1", "pack_id=y", "shard=0", "mtime_ns=0", "mode=0", "error=no", "xattrs=z",
]  # fmt: skip
PATTERNS = ["a*b", "**", "q?q", "[ab]", "[!a]", "a[b", "{a,b}", "back\\slash", "\\*"]
URLS = ["file:x", "file:", "s3:", "http:", "gs:", "hf:", "memory"]
TEXTS = ["qu'o\"te", "new\nline", " space ", "%20", "$HOME", "~", "@", "a;b", "-s", "é", "x.parquet", "\udce9t", "\x01"]
ODD = [*PARTITIONS, *PATTERNS, *URLS, *TEXTS]


def answers(store: FileStore, tree: Path, out: Path) -> dict[str, Any]:
    """What all that reads manifests says of the store's first run, and what it restores."""
    run = str(store.runs()[0].run_id)
    largest = max((path for path in tree.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    name = f"{run}:tree/{largest.relative_to(tree)}"
    restored = store.restore(run, out, request=RestoreRequest("", inline=True, workers=1))
    verified = store.verify(data=True, inline=True, workers=1)
    compared = store.compare(run, tree, data=True)
    index = store.rebuild_index("disk")
    assert index.chunks is not None
    return {
        "list": list(store.list(run, recursive=True)),
        "digests": list(store.digests(run, "md5")),
        "range": b"".join(store.open_range(name, ByteRange.parse("5000-250000"))),
        "restore": (restored.files, restored.bytes, restored.failures, describe(out / "tree")),
        "verify": (verified.exit_code, verified.packs, verified.checked_bytes, verified.damaged_shards),
        "compare": ([*compared], compared.equal),
        "stats": (store.stats().chunks, store.stats().unique, store.stats().packs),
        "status": store.status().bears_backends,
        "index": (index.chunks.entries, index.chunks.bytes, index.chunks.condition),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A tree, a place with a store of it, and what the store says there."""
    place = tmp_path_factory.mktemp("plain")
    tree = make_tree(place / "tree", 5, 25)
    with FileStore.create(
        [place / "at" / "store"], chunker=ChunkerSpec("fastcdc", 16384), pack_size=512 << 10, cache=place / "cache"
    ) as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
        found = answers(store, tree, place / "out")
    assert found["restore"][3] == describe(tree)
    assert (found["verify"][0], found["compare"][1], found["status"]) == (0, True, 2)
    return tree, place / "at", found


@pytest.mark.parametrize("name", one_in(8, ODD), ids=ascii)
def test_a_store_gives_the_same_whatever_the_folders_above_it_are_called(
    plain: tuple[Path, Path, dict[str, Any]], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, at, expected = plain
    odd = tmp_path / name
    (odd / "tmp").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(odd / "tmp"))
    at.rename(odd / "at")
    try:
        with FileStore.open(odd / "at" / "store", cache=odd / "cache") as store:
            assert answers(store, tree, odd / "out") == expected
            again = store.ingest([str(tree)], options=INLINE)
            assert (again.exit_code, again.tally.new_bytes) == (0, 0)
    finally:
        (odd / "at").rename(at)


SCRIPT = """
set -e
drystone init s3:/store
drystone -s s3:/store ingest -q data --digest md5
drystone -s s3:/store ingest -q data --digest md5 --checksums list
drystone -s s3:/store ls -R
drystone -s s3:/store digests
drystone -s s3:/store restore -q --to out
drystone -s s3:/store verify --data -q
drystone -s s3:/store compare -q data --data
drystone -s s3:/store status > /dev/null
drystone -s s3:/store index rebuild --kind disk > /dev/null
drystone -s s3:/store ingest -q data --digest md5
drystone -s s3:/store cat latest:data/file
"""


@pytest.mark.parametrize("name", one_in(5, ["size=0", "a*b[c]?", "b\\s", "\udce9t", "'\n\""]), ids=ascii)
def test_commands(tmp_path: Path, name: str) -> None:
    """Real processes: everything lies below the folder, temporary files and the cache, too, and the store's own path
    begins like a URL."""
    odd = tmp_path / name
    (odd / "data").mkdir(parents=True)
    (odd / "tmp").mkdir()
    (odd / "home").mkdir()
    (odd / "data" / "file").write_bytes(b"stone on stone")
    (odd / "list").write_text(f"{hashlib.md5(b'stone on stone').hexdigest()}  file\n")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "DRYSTONE_CACHE"},
        "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}",
        "HOME": str(odd / "home"),
        "TMPDIR": str(odd / "tmp"),
        "XDG_CACHE_HOME": str(odd / "cache"),
    }
    done = subprocess.run(["sh", "-c", SCRIPT], cwd=odd, env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [b"stone on stone"]), done.stderr
    assert (odd / "out" / "data" / "file").read_bytes() == b"stone on stone"
    assert sorted(os.listdir(odd)) == ["cache", "data", "home", "list", "out", "s3:", "tmp"], "nothing else is made"
    assert not os.listdir(odd / "home"), "DuckDB keeps nothing there"


@pytest.mark.parametrize("name", one_in(2, ["size=0", "a*b[c]?", "plain", "\udce9t"]), ids=ascii)
def test_without_proc_plain_places_work_and_others_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    odd = tmp_path / name
    odd.mkdir()
    subprocess.run([COMMAND, "init", odd / "store"], check=True, capture_output=True)
    (odd / "file").write_bytes(b"stone on stone")
    subprocess.run([COMMAND, "-s", odd / "store", "ingest", "-q", odd / "file"], check=True, capture_output=True)
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("mounting over /proc takes root")
    done = subprocess.run([*hidden, COMMAND, "-s", odd / "store", "cat", "latest:file"], capture_output=True)
    if name in ("plain", "size=0"):
        assert (done.returncode, done.stdout) == (0, b"stone on stone"), done.stderr
    else:
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
        assert b"mount /proc" in done.stderr


def test_a_folder_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_bytes(b"%d" % number)
        if number == 1:
            folders = OpenFolders()
            first = folders.name(tmp_path / "folder" / "file")
            assert folders.name(tmp_path / "folder" / "other").rpartition("/")[0] == first.rpartition("/")[0]
            (tmp_path / "folder").rename(tmp_path / "before")
    second = folders.name(tmp_path / "folder" / "file")
    assert (Path(first).read_bytes(), Path(second).read_bytes()) == (b"1", b"2")
    folders.close()
    folders.close()
    assert not Path(first).exists()


#: What reads files by path in DuckDB and pyarrow, and the one place of each.
READERS = re.compile(
    r"read_(parquet|json|csv|blob|ndjson)\w*\(|parquet_(scan|schema|metadata)\(|\bATTACH\b|\bCOPY\b|duckdb\.connect"
    r"|FROM '|ParquetFile|OSFile|read_table|pyarrow\.(dataset|fs)|memory_map|glob\('"
)
PLACES = {"manifests/duck.py", "manifests/known.py"}


def test_nothing_reads_files_but_by_the_one_way() -> None:
    found = set()
    for package in ("manifests", "stages", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            if READERS.search(path.read_text()):
                found.add(str(path.relative_to(ROOT)))
    assert found == PLACES
    assert len(READERS.findall((ROOT / "manifests/known.py").read_text())) == 2, "ParquetFile of an OSFile"


def test_the_readme_query_shows_paths_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = [b"numbers", b"more numbers \xe9", "é numbers".encode()]
    for name in names:
        (tmp_path / "data" / os.fsdecode(name)).write_bytes(name)
    with FileStore.create([tmp_path / "archive"], cache=tmp_path / "cache") as store:
        store.ingest([str(tmp_path / "data")], options=INLINE)
    (block,) = (block for block in README_BLOCKS if "import duckdb" in block)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = {"data/numbers", "data/more numbers \\xE9", "data/é numbers"}
    assert {line.rpartition(" file ")[0] for line in done.stdout.splitlines()} == shown


def test_records_of_a_store_whose_path_is_not_utf8_are_text(tmp_path: Path) -> None:
    """DuckDB reads them, and the store is found again where they say that it was."""
    place = tmp_path / "caf\udce9"
    roots = [place / "a", tmp_path / "b" / "\udce9", tmp_path / "c"]
    with FileStore.create(roots, scheme=ECScheme(2, 1), cache=tmp_path / "cache") as store:
        store.add_backend(place / "new", domain="shelf \udce9")
    for path in (roots[2] / "log").iterdir():
        for line in path.read_bytes().splitlines():
            duckdb.execute("SELECT ?::JSON", [line.decode()]).fetchall()
    with FileStore.open(roots[2], cache=tmp_path / "cache") as store:
        assert [backend.present for backend in store.list_backends()] == [True] * 4
        assert {info.location for info in store.members.all} == {*map(str, roots), str(place / "new")}


@pytest.mark.parametrize("document", ["README.md", "manifests/FORMAT.md"])
def test_the_documents_let_nothing_be_guessed(document: str) -> None:
    text = (ROOT / document).read_text()
    calls = re.findall(r"read_(?:parquet|json)\w*\((?:[^()]|\([^()]*\))*\)", text)
    assert calls
    assert all("hive_partitioning = false" in call for call in calls), calls
    assert not re.search(r"FROM '", text), "a file without options"
    assert not re.search(r"(?<!try\()\bdecode\(path\)", text), "that fails for a path that is not UTF-8"
