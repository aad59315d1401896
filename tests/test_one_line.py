"""Small mistakes at the door: one good line each."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.troubles import together
from tests.sampling import one_in

COMMAND = str(Path(sys.executable).with_name("drystone"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "data" / "logs").mkdir(parents=True)
    for name in ("a", "logs/b"):
        (tmp_path / "data" / name).write_text(name)
    assert drystone(tmp_path, "init", "store").returncode == 0
    return tmp_path


def drystone(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words],
        cwd=place,
        env={**os.environ, "DRYSTONE_STORE": "store", "DRYSTONE_CACHE": str(place / "cache"), **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on standard error."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    return line


MARKS = {
    "none": ("", "utf-8"),
    "mark": ("\ufeff", "utf-8"),
    "16": ("\ufeff", "utf-16-le"),
    "16 be": ("\ufeff", "utf-16-be"),
}
MARKS |= {"16 bare": ("", "utf-16-le"), "16 be bare": ("", "utf-16-be"), "32": ("\ufeff", "utf-32-le")}


@pytest.mark.parametrize("ends", one_in(2, ["\r\n", "\n"]))
@pytest.mark.parametrize("how", one_in(2, MARKS))
def test_a_pattern_file_of_any_editor(place: Path, how: str, ends: str) -> None:
    mark, encoding = MARKS[how]
    (place / "patterns").write_bytes(f"{mark}logs{ends}# ünï{ends}".encode(encoding))
    done = drystone(place, "ingest", "data", "--dry-run", "-v", "--exclude-from", "patterns")
    if how in ("none", "mark"):
        assert "left out, by pattern: data/logs" in done.stdout and done.returncode == 0
    else:
        line = said(done, 2)
        assert "patterns" in line and "UTF-16" in line and "write it as UTF-8" in line


@pytest.mark.parametrize("how", one_in(3, MARKS))
def test_a_list_of_paths_of_any_editor(place: Path, how: str) -> None:
    mark, encoding = MARKS[how]
    (place / "list").write_bytes(f"{mark}logs/b\n".encode(encoding))
    done = drystone(place, "ingest", "data", "-q", "--files-from", "list")
    if how in ("none", "mark"):
        assert done.returncode == 0 and done.stderr == ""
        assert drystone(place, "ls", "-R").stdout.splitlines()[-1] == "data/logs/b"
    else:
        line = said(done, 2)
        assert "list" in line and "UTF-16" in line and "write it as UTF-8" in line


def test_a_list_that_find_made_has_no_mark_but_names(place: Path) -> None:
    name = "\ufeffmarked"
    (place / "data" / name).write_text("x")
    done = subprocess.run(
        [COMMAND, "-s", "store", "ingest", "data", "-q", "-0", "--files-from", "-"],
        cwd=place, input=f"{name}\0".encode(), capture_output=True, check=True,
    )  # fmt: skip
    assert done.stderr == b""


def test_a_list_of_digests_may_begin_with_a_mark(place: Path) -> None:
    digest = hashlib.sha256(b"a").hexdigest()
    (place / "data" / "SHA256SUMS").write_text(f"\ufeff{digest}  a\n", encoding="utf-8")
    done = drystone(place, "ingest", "data", "--checksums", "data/SHA256SUMS")
    assert done.returncode == 0 and "1  of 1 listed; 0 differ" in done.stdout, done.stdout + done.stderr
    (place / "data" / "SHA256SUMS").write_bytes(f"\ufeff{digest}  a\n".encode("utf-16-le"))
    assert "data/SHA256SUMS is UTF-16" in said(drystone(place, "ingest", "data", "--checksums", "data/SHA256SUMS"), 2)


@pytest.mark.parametrize(
    ("pattern", "why"),
    one_in(3, [
        ("PLACE/data/logs", "count from the source: write /logs"),
        ("PLACE/data/logs/*.b", "count from the source: write /logs/*.b"),
        ("PLACE/data", "it is a source"),
        ("PLACE/data/", "it is a source"),
        ("/etc/passwd", "not from /"),
        ("./logs", "no path holds . or .."),
        ("logs/../a", "no path holds . or .."),
        ("/logs", ""), ("/logs/", ""), ("logs", ""), ("/l*", ""), ("/none", ""), ("*.log", ""), ("logs/**", ""),
    ], several=True),
)  # fmt: skip
def test_a_pattern_that_can_match_nothing_is_said(place: Path, pattern: str, why: str) -> None:
    pattern = pattern.replace("PLACE", str(place))
    for words in (["--exclude", pattern], ["--exclude", "x", "--include", pattern]):
        done = drystone(place, "ingest", "data", "--dry-run", *words)
        if why:
            assert f"the pattern {pattern} can match nothing" in said(done, 0) and why in done.stderr
        else:
            assert done.stderr == ""


@pytest.mark.parametrize("kind", ["file", "fifo", "nothing", "socket"])
def test_what_is_no_store(place: Path, kind: str) -> None:
    if kind == "file":
        (place / "it").write_text("x")
    elif kind == "fifo":
        os.mkfifo(place / "it")
    elif kind == "socket":
        (place / "it").symlink_to("data/a")
    line = said(drystone(place, "-s", "it", "ls"), 1)
    assert f"no store at {place}/it: " in line and "name the directory of a store" in line
    assert ("that is no directory" in line) == (kind != "nothing")


def test_a_store_that_can_only_be_read_is_one_line(place: Path) -> None:
    assert drystone(place, "ingest", "data", "-q").returncode == 0
    script = f"""
        mkdir ro; mount -t tmpfs none ro; cp -a store ro/; mv store gone; mount -o remount,ro ro
        export DRYSTONE_STORE=ro/store
        {COMMAND} ls || exit 90
        {COMMAND} ingest data; echo $?
        {COMMAND} index rebuild --kind disk; echo $?
        {COMMAND} backend remove ro/store/backend-0; echo $?
        {COMMAND} verify -q; echo $?
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        cwd=place, env={**os.environ, "DRYSTONE_CACHE": str(place / "cache")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["data", "1", "1", "1", "0"], done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and all(line.count("Read-only file system") == 1 for line in lines), done.stderr
    assert "and likewise on 5 more; nothing was committed" in lines[0]
    assert "not noted in the store" in lines[3]


def test_reasons_are_grouped_by_their_cause() -> None:
    reasons = [
        "writing /a/k: Read-only",
        "writing /b/k: Read-only",
        "reading /c/k: I/O error",
        "writing /d/k: Read-only",
    ]
    assert together(reasons) == "writing /a/k: Read-only, and likewise on 2 more; reading /c/k: I/O error"
    assert together([]) == "" and together(["it does not answer"]) == "it does not answer"


@pytest.mark.parametrize(
    ("word", "near"),
    one_in(2, [
        ("ingset", "ingest"), ("RUNS", "runs"), ("restroe", "restore"), ("backup", "ingest"), ("snapshots", "runs"),
        ("check", "verify"), ("extract", "restore"), ("xyzzy", "")], several=True),
)  # fmt: skip
def test_a_mistyped_command_suggests_the_near_one(place: Path, word: str, near: str) -> None:
    line = said(drystone(place, word), 2)
    assert line.startswith(f"drystone: No such command '{word}'.") and line.endswith("See: drystone --help")
    assert (f"Did you mean '{near}'?" in line) == bool(near) == ("Did you mean" in line)
    assert "Did you mean 'list'?" in said(drystone(place, "backend", "lits"), 2)


@pytest.mark.parametrize("words", one_in(2, [["latest:nothing"], ["ffff"], ["latest:data/a", "--range", "9-"]]))
def test_a_restore_that_gives_nothing_leaves_no_directory(place: Path, words: list[str]) -> None:
    assert drystone(place, "ingest", "data", "-q").returncode == 0
    (place / "kept").mkdir()
    for to, left in (("new", False), ("new/below/it", False), ("kept", True), ("kept/new", False)):
        done = drystone(place, "restore", *words, "--to", to)
        if (place / to).is_dir() and "--range" in words:
            continue
        said(done, 2 if "--range" in words else 1)
        assert (place / to).exists() == left and not (place / "new").exists() and (place / "kept").exists()


def test_paths_are_their_bytes_in_a_locale_that_knows_no_utf8(place: Path) -> None:
    (place / "Grüße").mkdir()
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(["mv", "store", "störe"], cwd=place, check=True)
    odd["DRYSTONE_STORE"] = "störe"
    for words in (["ingest", "Grüße", "-q"], ["ls"], ["restore", "--to", "zurück"], ["status"], ["compare", "Grüße"]):
        done = drystone(place, *words, **odd)
        assert done.returncode in ((0, 4) if words == ["status"] else (0,)), done.stderr
    assert drystone(place, "ls", "--format", "csv", DRYSTONE_STORE="störe").stdout.splitlines()[1].startswith("Grüße,")
    assert (place / "zurück" / "Grüße").is_dir()
