"""Every column of every manifest table with every kind of nonsense in it, in files whose checksums are right, read by
every command: no fault of Drystone's own, no wrong bytes, nothing outside the target; all other objects come back, and
`verify --data` names the objects that a restore names."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from manifests.errors import DrystoneError, Unreadable
from manifests.schema import COLUMNS
from pipeline.cli import app
from pipeline.filestore import FileStore
from pipeline.restore.run import RestoreRequest, RestoreResult
from pipeline.verify.run import VerifyResult
from stages.assemble import ByteRange
from tests.forge import falsify, kept_store, with_values
from tests.sampling import one_in

REQUEST = RestoreRequest("", inline=True, workers=1)
INTEGERS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
#: Tables that objects are made by.
TABLES = ("objects", "extents", "chunks", "blocks", "packs", "shards")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("senseless")
    tree = place / "tree"
    (tree / "folder").mkdir(parents=True)
    for number in range(3):
        (tree / f"small{number}").write_bytes(b"%06d" % number * 500)
        (tree / "folder" / f"large{number}").write_bytes(b"".join(b"%d.%06d" % (number, line) for line in range(9_000)))
    with open(tree / "sparse", "wb") as file:
        file.write(b"head" * 3_000)
        file.truncate(1 << 18)
    (tree / "empty").touch()
    (tree / "link").symlink_to("small0")
    os.link(tree / "small1", tree / "twin")
    os.mkfifo(tree / "fifo")
    with suppress(OSError):
        os.setxattr(tree / "small2", "user.note", b"a note")
    return tree, kept_store(place, tree)


def nonsense_of(kind: str) -> Iterator[Any]:
    """Values of a column of a type that make no sense, or might not."""
    yield None
    if bits := INTEGERS.get(kind):
        yield from sorted({value for value in (0, 1, 77, 1 << 31, 1 << 32, 1 << 63) if value < 1 << bits})
        yield (1 << bits) - 1
    elif kind == "int64":
        yield from (0, 1, -1, 1 << 32, -(1 << 63), (1 << 63) - 1)
    elif kind == "bool":
        yield from (False, True)
    elif kind.startswith("binary"):
        yield from (b"", b"\0", b"x", b"\xff" * 32, b"d/../../evil", b"/evil", b"d//x", b"..", b"n\0l", b"x" * 70_000)
    else:
        yield from ("", "\0", "file", "directory", "fifo", "chardev", "\udcff", "x" * 70_000)


def of_one(name: str) -> Callable[[pa.Table], int]:
    """The number of the row of one object; of tables of other things the first row."""

    def find(rows: pa.Table) -> int:
        if "path" not in rows.column_names:
            return 0
        return next(n for n, path in enumerate(rows.column("path").to_pylist()) if path.endswith(name.encode()))

    return find


def not_utf8(rows: pa.Table, column: str) -> pa.Table:
    """The rows with text that is no UTF-8, which no honest writer writes."""
    count = len(rows)
    offsets = pa.py_buffer(b"".join((2 * n).to_bytes(4, "little") for n in range(count + 1)))
    values = pa.StringArray.from_buffers(count, offsets, pa.py_buffer(b"\xff\xfe" * count))
    return rows.set_column(rows.schema.get_field_index(column), column, values)


def says(rows: pa.Table, column: str, value: Any, victim: Callable[[pa.Table], int] | None) -> pa.Table:
    if value == "\udcff":
        return not_utf8(rows, column)
    said = rows.column(column).to_pylist()
    for number in range(len(said)) if victim is None else [victim(rows)]:
        said[number] = value
    return with_values(rows, column, said)


def of_another_type(rows: pa.Table, column: str) -> pa.Table:
    kind = rows.schema.field(column).type
    other = pa.string() if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else pa.int64()
    values = pa.array(["7"] * len(rows) if other == pa.string() else [-1] * len(rows), other)
    return rows.set_column(rows.schema.get_field_index(column), column, values)


def rotated(rows: pa.Table, column: str) -> pa.Table:
    """Each row with what the next one says."""
    said = rows.column(column).to_pylist()
    return with_values(rows, column, said[1:] + said[:1])


def lies() -> Iterator[tuple[str, str, str, Callable[[pa.Table], pa.Table]]]:
    """(table, column, what is done to it, that as a function)."""
    for table in TABLES:
        for column, kind, _ in COLUMNS[table]:
            for value in nonsense_of(kind):
                shown = repr(value)[:20]
                yield table, column, f"all {shown}", lambda rows, c=column, v=value: says(rows, c, v, None)
                for name in ("large1", "small1", "link", "folder") if table == "objects" else ("",):
                    yield (
                        table, column, f"{name} {shown}",
                        lambda rows, c=column, v=value, n=name: says(rows, c, v, of_one(n)),
                    )  # fmt: skip
            if column != "content_id":  # which is all that is known of a file of one chunk: it would be another file
                yield table, column, "rotated", lambda rows, c=column: rotated(rows, c)
            yield table, column, "another type", lambda rows, c=column: of_another_type(rows, c)
            yield table, column, "missing", lambda rows, c=column: rows.drop_columns([c])
        yield table, "", "each twice", lambda rows: pa.concat_tables([rows, rows])


LIES = list(lies())
#: A number without a factor in common with the lengths of the lists within, so that the sample has some of each.
STEP = 401


@pytest.mark.parametrize(("table", "column", "what", "change"), one_in(STEP, LIES, several=True))
def test_nonsense_in_a_manifest(
    kept: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    table: str,
    column: str,
    what: str,
    change: Callable[[pa.Table], pa.Table],
) -> None:
    tree, place = kept
    shutil.copytree(place, tmp_path / "store")
    falsify(tmp_path / "store", table, change)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        restored, failure = restore(store, tmp_path / "out")
        renamed = column in ("path", "target")  # to what may be one
        assert_nothing_wrong(tree, tmp_path / "out" / "tree", None if renamed else restored)
        assert set(os.listdir(tmp_path)) <= {"store", "cache", "out"}
        verified, complaint = verify(store)
        if table != "shards":  # they say where shards were put first, which no restore asks
            assert_agree(restored, failure, verified, complaint)
        assert_ranges_right(store, tree)
        with suppress(DrystoneError):
            comparison = store.compare("latest", tree, data=True)
            differences = list(comparison)
            senseless = {path for path, _ in store.senseless("latest")}
            assert senseless <= {difference.path for difference in differences}
            assert not senseless or not comparison.may_be_deleted
        assert_objects_readable(store, tree)
    assert_commands_end_well(tmp_path, tree, capfd)


def restore(store: FileStore, to: Path) -> tuple[RestoreResult | None, str]:
    try:
        return store.restore("latest", to, request=REQUEST), ""
    except DrystoneError as error:
        return None, str(error)


def verify(store: FileStore) -> tuple[VerifyResult | None, str]:
    try:
        return store.verify(data=True, inline=True, workers=1), ""
    except DrystoneError as error:
        return None, str(error)


def assert_nothing_wrong(tree: Path, out: Path, restored: RestoreResult | None) -> None:
    """All that was restored is what was archived, and all that was not is named."""
    named = {path for path, _ in restored.failures} if restored else set()
    assert all(reason and "\n" not in reason for _, reason in restored.failures) if restored else True
    whole = restored is not None and not restored.lost_manifests and not any(path in (b"", b"?") for path in named)
    for path in sorted(tree.rglob("*")):
        copy, label = out / path.relative_to(tree), b"tree/" + os.fsencode(path.relative_to(tree))
        if copy.is_symlink() or path.is_symlink():
            if restored is not None and os.path.lexists(copy):
                assert os.readlink(copy) == os.readlink(path) or label in named
        elif copy.is_file() and path.is_file() and copy.stat().st_size:
            assert copy.read_bytes() == path.read_bytes(), f"{path.name} is another"
        elif copy.exists():
            assert stat.S_IFMT(copy.stat().st_mode) == stat.S_IFMT(path.stat().st_mode) or label in named
        below = any(label.startswith(folder + b"/") for folder in named)
        if whole and not below and label not in named:
            assert os.path.lexists(copy), f"{path.name} is neither restored nor named"


def assert_agree(restored: RestoreResult | None, failure: str, verified: VerifyResult | None, complaint: str) -> None:
    if restored is None:
        assert "\n" not in failure, failure
        assert verified is None or verified.exit_code == 3, failure
        return
    # What the target's file system can't keep is no matter of the manifests.
    named = {path: reason for path, reason in restored.failures if "the file system keeps" not in reason}
    if named or restored.lost_manifests:
        assert verified is None or verified.exit_code == 3, restored.failures
    if verified is not None and not restored.lost_manifests and not verified.lost_manifests:
        told = {path for _, path in verified.lost_objects + verified.wrong_objects}
        # Other names of a hardlinked object fail with it. A verification names the beginning of a long path.
        own = {path[:1024] for path, reason in named.items() if path != b"?" and "hardlink" not in reason}
        assert own <= {path[:1024] for path in told}
        assert bool(named) == bool(told), (named, told)
        for (_, path), reason in verified.wrong_reasons.items():
            if "extended attribute" not in reason and path in named:
                assert named[path] == reason


def assert_ranges_right(store: FileStore, tree: Path) -> None:
    """No byte comes out that does not belong there: the end of a whole content raises where a digest is another."""
    for name in ("folder/large1", "small1", "sparse", "empty"):
        content = (tree / name).read_bytes()
        for byte_range in (None, ByteRange.parse("1000-5999")):
            try:
                got = b"".join(store.open_range(f"latest:tree/{name}", byte_range))
            except DrystoneError as error:
                assert "\n" not in str(error)
                continue
            assert got == (content if byte_range is None else content[1000:6000])


def assert_objects_readable(store: FileStore, tree: Path) -> None:
    with suppress(DrystoneError):
        for info in list(store.list("latest", recursive=True)):
            path = tree.parent / os.fsdecode(info.path.replace(b"\0", b"?"))
            with suppress(DrystoneError), store.get_object_data(f"{info.run}-{info.row}") as stream:
                data = stream.read()
                assert not os.path.isfile(path) or data == path.read_bytes() or info.nonsense


def assert_commands_end_well(place: Path, tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each command that reads manifests ends with one of its codes, without a traceback."""
    os.environ["DRYSTONE_CACHE"] = str(place / "cache")
    store = ["-s", str(place / "store")]
    commands = [
        ["ls", "-R"], ["ls", "-R", "-l"], *(["ls", "-R", "--format", each] for each in ("jsonl", "csv")),
        ["stats"], ["stats", "--json"], ["digests"], ["cat", "latest:tree/small1"], ["compare", "latest", str(tree)],
        ["verify"], ["runs"], ["status"], ["ingest", str(tree), "--workers", "1", "-q"],
    ]  # fmt: skip
    capfd.readouterr()
    for command in commands:
        code = app._run([*store, *command])
        said = capfd.readouterr()
        assert code in (0, 1, 3, 4), command
        assert "Traceback" not in said.err, command
        assert "fault of Drystone" not in said.err, (command, said.err)


#: Object → what the manifests say of it, column and value; and the reason that is given.
SENSELESS: dict[str, tuple[str, Any, str]] = {
    "folder/large0": ("size", 1 << 63, "no size that a file has"),
    "folder/large1": ("size", 0, "a content and the size 0"),
    "folder/large2": ("size", None, "no size that a file has"),
    "small0": ("size", (1 << 64) - 1, "no size that a file has"),
    "small1": ("row", None, "no number that an object has"),
    "twin": ("user_name", "\0", "a zero byte in the name"),
    "sparse": ("holes", b"short", "holes that end in the middle of a number"),
    "link": ("target", b"n\0l", "a target that no symlink has"),
    "empty": ("path", b"tree/../../evil", "a path that no archived tree has"),
    "fifo": ("path", None, "a path that no archived tree has"),
}


def test_objects_of_which_the_manifests_make_no_sense_are_named_by_all(kept: tuple[Path, Path], tmp_path: Path) -> None:
    tree, place = kept
    shutil.copytree(place, tmp_path / "store")

    def change(rows: pa.Table) -> pa.Table:
        for name, (column, value, _) in SENSELESS.items():
            if column != "path":
                rows = says(rows, column, value, of_one(name))
        rows = says(rows, "path", SENSELESS["empty"][1], of_one("empty"))
        fifo = rows.column("kind").to_pylist().index("fifo")
        return says(rows, "path", None, lambda _: fifo)

    falsify(tmp_path / "store", "objects", change)
    expected = {
        b"tree/" + os.fsencode(name): reason for name, (column, _, reason) in SENSELESS.items() if column != "path"
    } | {b"tree/../../evil": SENSELESS["empty"][2], b"": SENSELESS["fifo"][2]}
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.restore("latest", tmp_path / "out", request=REQUEST)
        reasons = dict(store.senseless("latest"))
        assert {path: reasons[path].endswith(reason) for path, reason in expected.items()} == dict.fromkeys(
            expected, True
        )
        assert dict(result.failures) == reasons
        verified = store.verify(data=True, inline=True, workers=1)
        assert {path: reason for (_, path), reason in verified.wrong_reasons.items()} == reasons
        assert (result.exit_code, verified.exit_code) == (3, 3)
        listed = {info.path: info.trouble for info in store.list("latest", recursive=True)}
        assert {path: listed[path] for path in reasons} == reasons
        for name in ("folder/large0", "folder/large1", "folder/large2", "small0", "small1", "sparse"):
            for byte_range in (None, ByteRange.parse("0-99")):
                with pytest.raises(Unreadable, match=SENSELESS[name][2]):
                    list(store.open_range(f"latest:tree/{name}", byte_range))
        comparison = store.compare("latest", tree, data=True)
        assert set(reasons) <= {difference.path for difference in comparison}
        assert not comparison.may_be_deleted
        assert {path for path, _ in store.digests("latest")} == {b"tree/small2"}
    assert (tmp_path / "out/tree/small2").read_bytes() == (tree / "small2").read_bytes()
    assert sorted(os.listdir(tmp_path / "out/tree")) == ["folder", "small2"]


@pytest.mark.parametrize(
    "change", [lambda rows: rows.drop_columns(["path"]), lambda rows: of_another_type(rows, "size")]
)
def test_a_file_without_the_columns_of_its_table_is_named(
    kept: tuple[Path, Path], tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    tree, place = kept
    shutil.copytree(place, tmp_path / "store")
    falsify(tmp_path / "store", "objects", change)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        for reads in (
            lambda: store.restore("latest", tmp_path / "out", request=REQUEST),
            lambda: list(store.list("latest", recursive=True)),
            lambda: store.find("latest:tree/small0"),
            lambda: store.compare("latest", tree),
            lambda: store.stats(),
        ):
            with pytest.raises(
                Unreadable, match=r"^manifests/objects/[-0-9a-f]+\.parquet: it has no column path|is of type"
            ):
                reads()
        verified = store.verify(data=True, inline=True, workers=1)
        assert verified.exit_code == 3
        assert len(verified.lost_manifests) == 1


def test_a_run_that_lacks_objects_is_named(kept: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    falsify(tmp_path / "store", "objects", lambda rows: rows.slice(0, len(rows) - 1))
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.restore("latest", tmp_path / "out", request=REQUEST)
        verified = store.verify(data=True, inline=True, workers=1)
    assert (result.exit_code, verified.exit_code) == (3, 3)
    assert result.lost_manifests == verified.lost_manifests
    assert "the manifests have" in result.lost_manifests[0]
