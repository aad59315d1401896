"""What is left out of an ingest: patterns as git has them, caches, large files, other file systems; and dry runs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.config import ECScheme
from manifests.errors import UsageError
from pipeline.cli.app import cli
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from stages.scan import Source, scan
from stages.select import CACHE_SIGNATURE, REASONS, Selection, SelectOptions
from tests.test_bad_input import drystone, tree_state

MakeStore = Callable[..., FileStore]
NAMES = ["a", "b.o", "build", "keep.o", "x y", "#c#", "new\nline.o", "line.o\n"]


def names(root: Path, options: SelectOptions) -> set[bytes]:
    """Paths below `root` of all but directories that a scan finds."""
    found = set()
    for batch in scan([Source(os.fsencode(root), b"top")], Selection(options)):
        assert not batch.rows["error_len"].any()
        for path, mode in zip(batch.all_bytes("path"), batch.rows["mode"].tolist(), strict=True):
            if not os.path.isdir(os.fsencode(root.parent) + b"/" + path) and mode:
                found.add(path[4:])
    return found


def git_keeps(root: Path, patterns: list[str]) -> set[bytes]:
    """Paths that git would take up: an oracle for patterns."""
    (root.parent / "patterns").write_bytes(b"".join(os.fsencode(line) + b"\n" for line in patterns))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--others", f"--exclude-from={root.parent / 'patterns'}"],
        cwd=root,
        env={"GIT_DIR": str(root.parent / "git"), "GIT_WORK_TREE": str(root), "PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
    ).stdout
    return {path for path in listed.split(b"\0") if path}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of the same few names on three levels, with a git directory beside it."""
    root = tmp_path_factory.mktemp("select") / "top"
    chance = random.Random(3)
    folders = [root]
    for folder in folders:
        folder.mkdir()
        for name in NAMES:
            if len(folder.relative_to(root).parts) < 2 and chance.random() < 0.3:
                folders.append(folder / name)
            else:
                (folder / name).write_bytes(b"1")
    (root / "link").symlink_to("build")
    with open(os.fsencode(root) + b"/not-utf8-\xff.o", "wb") as file:
        file.write(b"1")
    subprocess.run(["git", "init", "-q", "--bare", root.parent / "git"], check=True)
    return root


piece = st.sampled_from(
    ["a", "b.o", "build", "keep.o", "*.o", "*", "**", "?", "[ab]*", "x y", "??.o", "[#]*", "*e*", "link"]
)
pattern = st.builds(
    lambda sign, lead, parts, tail: sign + lead + "/".join(parts) + tail,
    st.sampled_from(["", "", "", "!", "**/"]),
    st.sampled_from(["", "", "/"]),
    st.lists(piece, min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
)


@settings(max_examples=200, deadline=None)
@given(patterns=st.lists(pattern, min_size=1, max_size=4))
def test_patterns_mean_what_they_mean_to_git(tree: Path, patterns: list[str]) -> None:
    assert names(tree, SelectOptions(tuple(patterns))) == git_keeps(tree, patterns)


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["*.o"], {"a", "sub/a", "sub/c"}),
        (["*.o", "!keep.o"], {"a", "keep.o", "sub/a", "sub/c"}),
        (["!keep.o", "*.o"], {"a", "sub/a", "sub/c"}),
        (["/a"], {"keep.o", "sub/a", "sub/c", "sub/x.o"}),
        (["sub"], {"a", "keep.o"}),
        (["sub/", "!sub/a"], {"a", "keep.o"}),
        (["sub/*", "!sub/a"], {"a", "keep.o", "sub/a"}),
        (["sub/**", "!sub/a"], {"a", "keep.o", "sub/a"}),
        (["x.o", "!sub"], {"a", "keep.o", "sub/a", "sub/c"}),
        (["a/"], {"a", "keep.o", "sub/a", "sub/c", "sub/x.o"}),
        (["*"], set()),
        (["top"], {"a", "keep.o", "sub/a", "sub/c", "sub/x.o"}),
    ],
)
def test_patterns_count_from_the_source(tmp_path: Path, patterns: list[str], kept: set[str]) -> None:
    (tmp_path / "top" / "sub").mkdir(parents=True)
    for name in ("a", "keep.o", "sub/a", "sub/c", "sub/x.o"):
        (tmp_path / "top" / name).touch()
    assert names(tmp_path / "top", SelectOptions(tuple(patterns))) == {name.encode() for name in kept}


def test_names_that_are_no_text_are_matched(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for name in (b"\xff.o", b"\xff.c", b"new\nline.o", b"gone\n", b"gone", b"\xc3\xa4"):
        with open(os.fsencode(top) + b"/" + name, "wb"):
            pass
    assert names(top, SelectOptions(("*.o", "gone"))) == {b"\xff.c", b"gone\n", b"\xc3\xa4"}
    assert names(top, SelectOptions((os.fsdecode(b"\xff.*"), "?", "new*", "gone\n"))) == {b"gone"}


@pytest.mark.parametrize("text", ["", "   ", "#c", "/", "[z-a]", "!"])
def test_a_pattern_that_would_match_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="pattern"):
        Selection(SelectOptions(("*.o", text)))


def counted(options: SelectOptions, *sources: Path) -> tuple[set[bytes], dict[str, list[int]]]:
    """Paths that a scan finds, and what it leaves out."""
    selection = Selection(options)
    found: set[bytes] = set()
    for batch in scan([Source(os.fsencode(path), os.fsencode(path.name)) for path in sources], selection):
        found.update(batch.all_bytes("path"))
    return found, {reason: counts for reason, counts in zip(REASONS, selection.counts, strict=True) if counts[0]}


def test_caches_keep_their_tag_and_lose_their_content(tmp_path: Path) -> None:
    for name, tag in (("cache", CACHE_SIGNATURE + b"\nmore"), ("fake", b"Signature: none"), ("top", b"")):
        (tmp_path / "top" / name / "deep").mkdir(parents=True)
        (tmp_path / "top" / name / "deep" / "file").write_bytes(b"1")
        (tmp_path / "top" / name / "CACHEDIR.TAG").write_bytes(tag)
    (tmp_path / "top" / "linked").mkdir()
    (tmp_path / "top" / "linked" / "CACHEDIR.TAG").symlink_to("../cache/CACHEDIR.TAG")
    os.mkfifo(tmp_path / "top" / "CACHEDIR.TAG")
    found, left_out = counted(SelectOptions(caches=True), tmp_path / "top")
    below = {path for path in found if path.startswith(b"top/cache")}
    assert below == {b"top/cache", b"top/cache/CACHEDIR.TAG"}
    assert {b"top/fake/deep/file", b"top/top/deep/file", b"top/linked/CACHEDIR.TAG"} <= found
    assert left_out == {"cache": [1, 0]}
    assert b"top/cache/deep/file" in counted(SelectOptions(one_file_system=True), tmp_path / "top")[0]


def test_large_files_are_left_out_and_sources_are_not(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    for name, size in (("small", 1000), ("large", 1001)):
        (tmp_path / "top" / name).write_bytes(bytes(size))
    (tmp_path / "named").write_bytes(bytes(5000))
    found, left_out = counted(SelectOptions(larger_than=1000), tmp_path / "top", tmp_path / "named")
    assert found == {b"top", b"top/small", b"named"}
    assert left_out == {"size": [1, 1001]}


def in_namespace(script: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a script where it may mount."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", script],
        cwd=place,
        env={**os.environ, "PATH": path, "DRYSTONE_STORE": str(place / "store")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_other_file_systems_are_mount_points_without_content(tmp_path: Path) -> None:
    FileStore.create([tmp_path / "store"], cache=tmp_path / "cache").close()
    (tmp_path / "top" / "disk").mkdir(parents=True)
    (tmp_path / "top" / "here").write_bytes(b"1")
    done = in_namespace(
        "mount -t tmpfs none top/disk; touch top/disk/there; drystone ingest -x top >&2; drystone ls -R", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["top", "top/here", "top/disk"]
    assert "1  on other file systems" in done.stderr


def test_a_directory_that_is_mounted_below_itself_is_named_and_not_entered(tmp_path: Path) -> None:
    FileStore.create([tmp_path / "store"], cache=tmp_path / "cache").close()
    (tmp_path / "top" / "loop").mkdir(parents=True)
    (tmp_path / "top" / "file").write_bytes(b"1")
    done = in_namespace("mount --bind top top/loop; drystone ingest top >&2 || echo $?; drystone ls -R", tmp_path)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["3", "top", "top/file"], done.stderr
    assert len(lines) == 4 and lines[3].startswith("top/loop  [it loops")


def test_the_backends_of_the_store_itself_stay_out(tmp_path: Path) -> None:
    """Inside a source they are left out, also where they are mounted once more or listed; they and what lies in them
    are no sources."""
    FileStore.create([tmp_path / "top" / "store"], scheme=ECScheme(2, 1), cache=tmp_path / "cache").close()
    (tmp_path / "top" / "again").mkdir()
    (tmp_path / "top" / "file").write_bytes(b"1")
    (tmp_path / "behind").symlink_to("top/store/backend-1")
    ingest = "drystone -s top/store ingest"
    done = in_namespace(
        f"mount --bind top/store/backend-2 top/again; {ingest} top --json; drystone -s top/store ls -R; "
        f"printf 'store/backend-0/log\nfile\n' | {ingest} top --files-from - --json; drystone -s top/store ls -R; "
        f"{ingest} top --dry-run -v",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    backends = [f"top/store/backend-{number}" for number in range(3)]
    assert json.loads(lines[0])["left_out"] == {"store": {"objects": 4, "bytes": 0}}
    assert lines[1:8] == ["top", "top/file", "top/again", "top/store", *backends]
    assert json.loads(lines[8])["left_out"] == {"store": {"objects": 1, "bytes": 0}}
    assert lines[9:13] == ["top", "top/file", "top/store", backends[0]]
    assert sum(line.startswith("left out, contents of this store's backends: top/") for line in lines[13:]) == 4
    with FileStore.open(tmp_path / "top" / "store", cache=tmp_path / "cache") as store:
        for source in ("top/store/backend-0", "top/store/backend-1/log", "behind/store.json"):
            for ingest_or_survey in (store.ingest, store.survey):
                with pytest.raises(UsageError, match="a store is not archived into itself"):
                    ingest_or_survey([str(tmp_path / source)])
        behind = store.ingest([str(tmp_path / "behind")], options=IngestOptions(inline=True))
        assert (behind.exit_code, behind.tally.others) == (0, 1), "a link is archived as a link"


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an empty store, and the tree `top`."""
    FileStore.create([tmp_path / "store"], cache=tmp_path / "cache").close()
    (tmp_path / "top" / "build").mkdir(parents=True)
    for name in ("a.o", "keep.o", "b.c", "build/x", "#c#"):
        (tmp_path / "top" / name).write_bytes(name.encode())
    return tmp_path


def listed(place: Path) -> list[str]:
    """Paths of the latest run, by row."""
    with FileStore.open(place / "store", cache=place / "cache") as store:
        return [info.path.decode() for info in store.list(recursive=True)]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--exclude", "*.o", "--include", "keep.o", "--exclude", "/build"], ["#c#", "b.c", "keep.o"]),
        (["--include", "keep.o", "--exclude", "*.o", "--exclude=#c#"], ["b.c", "build", "build/x"]),
        (["--include", "a.o", "--exclude-from", "list"], ["#c#", "b.c"]),
    ],
)
def test_the_last_pattern_on_the_command_line_decides(place: Path, arguments: list[str], kept: list[str]) -> None:
    (place / "list").write_bytes(b"# objects\n*.o\n\nbuild/\r\n")
    drystone("-s", place / "store", "ingest", "top", *arguments, cwd=place)
    assert listed(place) == ["top", *(f"top/{name}" for name in kept)]


def test_what_is_left_out_is_counted_in_summary_and_log(place: Path) -> None:
    arguments = ["--exclude", "*.o", "--exclude", "build", "--json"]
    summary = json.loads(drystone("-s", place / "store", "ingest", "top", *arguments, cwd=place).stdout)
    assert summary["left_out"] == {"pattern": {"objects": 3, "bytes": 9}}
    (run,) = json.loads(drystone("-s", place / "store", "runs", "--json").stdout)
    assert run["left_out"] == {"pattern": 3}


def test_a_dry_run_says_what_the_run_does_and_touches_nothing(place: Path) -> None:
    store = place / "store"
    before = tree_state(store)
    folders = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    ingest = ["-s", store, "ingest", "top", "--exclude", "*.o"]
    assert "no such source" in drystone("-s", store, "ingest", "absent", "-n", code=1, cwd=place).stderr
    assert "absent: No such file" in drystone(*ingest, "absent", "-n", code=3, cwd=place).stderr
    lines = drystone(*ingest, "--dry-run", "--format", "jsonl", cwd=place).stdout.splitlines()
    *items, summary = map(json.loads, lines)
    assert [(item["path"], item["left_out"]) for item in items] == [("top/a.o", "pattern"), ("top/keep.o", "pattern")]
    shown = drystone(*ingest, "-n", "-v", cwd=place).stdout
    assert "left out, by pattern: top/keep.o" in shown and "would archive" in shown
    assert tree_state(store) == before and {path: path.stat().st_mtime_ns for path in store.rglob("*")} == folders
    real = json.loads(drystone(*ingest, "--json", cwd=place).stdout)
    same = ("files", "directories", "others", "bytes", "left_out", "skipped", "exit_code")
    assert {key: summary[key] for key in same} == {key: real[key] for key in same}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["top", "--exclude", "/"], "is no pattern"),
        (["top", "--include", "!x"], "--exclude x"),
        (["top", "--exclude-from", "absent"], "absent: No such file"),
        (["top", "--exclude-larger-than", "big"], "not a size"),
        (["top", "-0"], "--files-from"),
        (["top", "other", "--files-from", "list"], "one source"),
        (["top/b.c", "--files-from", "list"], "no directory"),
        (["--files-from", "absent"], "absent"),
        (["--command"], "--command needs one"),
        (["--command", "--", "true"], "needs a name"),
        (["--name", "x", "--command", "--", "no-such-command"], "no such command"),
        (["--name", "x", "--command", "--files-from", "list", "true"], "stands alone"),
        (["top", "--name", ""], "--as/--name is empty"),
        (["-", "--as", "/x"], "'/x' is no name"),
        (["top", "--as", "x/"], "'x/' is no name"),
        (["top", "--as", ".."], "'..' is no name"),
        (["top", "--as", "."], "'.' is no name"),
        (["top", "--as", "ä" * 128], "1 to 255 bytes"),
        (["--files-from", "list", "--as", "a/b"], "'a/b' is no name"),
        (["top", "top/b.c", "--as", "x"], "for one source; here are 2"),
        ([], "at least one source"),
    ],
)
def test_options_that_make_no_sense_touch_nothing(
    place: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree_state(place)
    monkeypatch.chdir(place)
    with pytest.raises((UsageError, click.UsageError), match=words):
        cli.main(["-s", str(place / "store"), "ingest", *arguments], standalone_mode=False)
    assert tree_state(place) == before


@pytest.mark.parametrize("name", ["a/b", "x\0y", "..", "/"])
def test_a_program_can_give_no_such_name_either(make_store: MakeStore, place: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name"):
        make_store("other").ingest([str(place / "top")], name=name)


def test_left_out_counts_come_from_workers_too(make_store: MakeStore, place: Path) -> None:
    store = make_store("other")
    options = IngestOptions(select=SelectOptions(("*.o", "build"), larger_than=2), workers=2)
    assert store.ingest([str(place / "top")], options=options).left_out == {"pattern": (3, 9), "size": (2, 6)}
