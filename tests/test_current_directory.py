"""Nothing is imported from the current directory, nor from where temporary files go: they may be a stranger's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipeline.importpath import safe_path

COMMAND = str(Path(sys.executable).with_name("drystone"))
ROOT = Path(__file__).parent.parent

#: Each command, as far as it imports something of its own. They are run in this order, in a directory with `data`.
LINES = [
    ["--version"],
    ["--help"],
    ["init", "{store}"],
    ["ingest", "data", "--metrics-dir", "{out}"],
    ["ingest", "data", "--dry-run"],
    ["ingest", "-", "--name", "stream", "--digest", "md5"],
    ["ingest", "--name", "words", "--command", "--", "echo", "word"],
    ["ingest", "data", "--exclude", "*.o", "--checksums", "{out}/SHA256SUMS"],
    ["runs"],
    ["runs", "--format", "csv"],
    ["ls", "-l"],
    ["stats", "--format", "json"],
    ["digests"],
    ["compare", "latest", "data"],
    ["restore", "latest", "--to", "{out}/back"],
    ["restore", "latest:data/file", "--to", "{out}/part", "--range", "0-1"],
    ["cat", "latest:data/file"],
    ["verify"],
    ["verify", "--data"],
    ["index", "status"],
    ["index", "rebuild", "--kind", "disk"],
    ["status", "--risk"],
    ["backend", "list"],
]

HOSTILE = """
import os
with open({witness!r}, "a") as file:
    file.write("{name}\\n")
os._exit(7)
"""


def run(line: list[str], cwd: Path, place: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    words = [word.format(store=place / "store", out=place / "out") for word in line]
    return subprocess.run(
        [COMMAND, *words],
        cwd=cwd,
        input=b"standard input",
        capture_output=True,
        timeout=60,
        env={**os.environ, "DRYSTONE_STORE": str(place / "store"), **environment},
    )


def furnish(place: Path) -> Path:
    """A directory to work in, with something to archive."""
    folder = place / "stranger"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_bytes(os.urandom(100_000))
    (place / "out").mkdir()
    (place / "out" / "SHA256SUMS").write_text("")
    return folder


def imported(stderr: bytes) -> set[str]:
    """Top-level names in the report of PYTHONPROFILEIMPORTTIME, from all processes of a command."""
    return {name.split(".")[0] for name in re.findall(r"^import time:.*\| +([\w.]+)$", stderr.decode(), re.MULTILINE)}


@cache
def early() -> frozenset[str]:
    """What the console script imports before Drystone has a say."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", "import pipeline.cli"], capture_output=True)
    return frozenset(imported(done.stderr))


@pytest.fixture(scope="module")
def all_imported(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Every top-level module that any process of any command imports."""
    place = tmp_path_factory.mktemp("imported")
    folder = furnish(place)
    names: set[str] = set()
    for line in LINES:
        done = run(line, folder, place, PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode in (0, 3), done.stderr.decode()[-2000:]
        names |= imported(done.stderr)
    assert {"pipeline", "stages", "manifests", "numpy", "duckdb", "socket", "select", "pickle", "queue"} <= names
    return frozenset(names)


def lay_out(folder: Path, names: set[str], witness: Path) -> None:
    """Modules and, in turn, packages of these names that leave a word and end the process."""
    for number, name in enumerate(sorted(names)):
        text = HOSTILE.format(witness=str(witness), name=name)
        if number % 2:
            (folder / f"{name}.py").write_text(text)
        else:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(text)


def hostile_names(all_imported: frozenset[str]) -> set[str]:
    return {*all_imported, *sys.stdlib_module_names, "sitecustomize", "usercustomize", "multiprocessing"}


def assert_all_commands_work(folder: Path, place: Path, witness: Path, **environment: str) -> None:
    for line in LINES:
        done = run(line, folder, place, **environment)
        assert not witness.exists(), f"{line} imported {witness.read_text()}"
        assert done.returncode in (0, 3), (line, done.stderr.decode())


def test_commands_import_nothing_from_the_current_directory(tmp_path: Path, all_imported: frozenset[str]) -> None:
    folder, witness = furnish(tmp_path), tmp_path / "witness"
    lay_out(folder, hostile_names(all_imported), witness)
    assert_all_commands_work(folder, tmp_path, witness, TMPDIR=str(folder))


@pytest.mark.soak
def test_relative_entries_of_pythonpath_are_not_used(tmp_path: Path, all_imported: frozenset[str]) -> None:
    """An empty one is there as soon as a profile says PYTHONPATH=$PYTHONPATH:/opt/lib. What Python imports before
    Drystone's first line is out of reach."""
    folder, witness = furnish(tmp_path), tmp_path / "witness"
    (folder / "lib").mkdir()
    late = sorted(all_imported - early())
    assert {"duckdb", "numpy", "pickle", "socket", "click"} <= set(late)
    lay_out(folder, set(late[::2]), witness)
    lay_out(folder / "lib", set(late[1::2]), witness)
    assert_all_commands_work(folder, tmp_path, witness, PYTHONPATH=":lib:.:/nowhere")


PROGRAM = """
import os, sys
assert sys.path[0] == ""
import pipeline.compare, pipeline.ingest.run, pipeline.restore.run, pipeline.verify.run, manifests.plan
import json, duckdb, pyarrow.parquet, numpy, pathspec, queue, concurrent.futures.thread, uuid, socket, inspect
from pipeline import FileStore
with FileStore.create([{store!r}]) as store:
    store.ingest([{warm!r}])  # everything that this process itself imports
    store.restore("latest", {out!r} + "/warm")
    store.verify(data=True)
from pipeline import forkserver
forkserver._server._forget()  # the next one starts in the stranger's directory
os.chdir({folder!r})
with FileStore.open({store!r}) as store:
    assert store.ingest([{folder!r} + "/data"]).exit_code == 0
    assert store.restore("latest", {out!r} + "/back").exit_code == 0
    assert store.verify(data=True).exit_code == 0
print("done", "OPENBLAS_NUM_THREADS" in os.environ)
"""


def test_workers_of_a_program_import_nothing_from_there(tmp_path: Path, all_imported: frozenset[str]) -> None:
    """An interpreter at its prompt, or a notebook, has the current directory first on its path."""
    folder, witness = furnish(tmp_path), tmp_path / "witness"
    lay_out(folder, hostile_names(all_imported), witness)
    (tmp_path / "clean").mkdir()
    (tmp_path / "warm").write_bytes(b"warm")
    program = PROGRAM.format(
        store=str(tmp_path / "store"), folder=str(folder), out=str(tmp_path / "out"), warm=str(tmp_path / "warm")
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "clean", capture_output=True, timeout=60, env=environment
    )
    assert not witness.exists(), witness.read_text()
    assert done.stdout == b"done False\n", done.stderr.decode()


def test_the_safe_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"lib::{tmp_path}/own")
    kept = ["/nowhere", str(tmp_path / "own"), str(ROOT)]
    monkeypatch.setattr("sys.path", ["", ".", str(tmp_path), f"{tmp_path}/link", f"{tmp_path}/lib", "more", *kept])
    assert safe_path() == kept
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.path", ["", str(ROOT), "/nowhere"])
    assert safe_path() == ["/nowhere", str(ROOT)], "what Drystone is made of comes last, but is there"


def test_an_archived_command_gets_the_users_environment(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DRYSTONE_STORE": str(tmp_path / "store")}
    script = "import json, os, sys; print(json.dumps(dict(os.environ)))"
    for line in (["init", str(tmp_path / "store")], ["ingest", "--name", "x", "--command", "--", sys.executable]):
        more = ["-c", script] if "--command" in line else []
        subprocess.run([COMMAND, *line, *more], env=environment, check=True, capture_output=True)
    shown = subprocess.run([COMMAND, "cat", "latest:x"], env=environment, check=True, capture_output=True)
    assert {name: value for name, value in json.loads(shown.stdout).items() if name != "LC_CTYPE"} == environment
