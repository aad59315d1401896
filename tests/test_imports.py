"""What is imported where: commands begin fast, and workers live without what only the supervisor needs."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions

COMMAND = str(Path(sys.executable).with_name("drystone"))
OURS = ("manifests", "pipeline", "stages")


def imported(*line: str) -> set[str]:
    """Names of the modules that a Python command imports, besides what each interpreter here begins with."""
    return _imported(*line) - _imported("-c", "pass")


@cache
def _imported(*command: str) -> set[str]:
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, check=True)
    return {
        entry.rpartition("|")[2].strip()
        for entry in done.stderr.decode().splitlines()
        if entry.startswith("import time:")
    }


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] in OURS}


def foreign(modules: set[str]) -> set[str]:
    """Packages that are neither ours nor Python's; `org` is Jython's, which Python's own copy.py looks for."""
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {*OURS, "org"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a file of many chunks."""
    place = tmp_path_factory.mktemp("imports")
    (place / "file").write_bytes(b"".join(number.to_bytes(8, "big") for number in range(200_000)))
    with FileStore.create([place / "store"], cache=place / "cache") as made:
        made.ingest([str(place / "file")], options=IngestOptions(inline=True, workers=1))
    return place / "store"


def test_help_imports_click_and_little_else() -> None:
    modules = imported(COMMAND, "--help")
    assert foreign(modules) == {"click"}
    assert ours(modules) == {
        *("pipeline", "pipeline.cli", "pipeline.cli.app", "pipeline.importpath", "pipeline.printing"),
        *("pipeline.errors", "pipeline.streams", "pipeline.budget", "pipeline.cli.options"),
        *("manifests", "manifests.errors", "manifests.escapes", "manifests.limits", "manifests.oserrors"),
        "manifests.sizes",
    }


def test_help_of_a_command_imports_no_operation() -> None:
    for command in ("ingest", "restore", "verify", "cat"):
        modules = imported(COMMAND, command, "--help")
        assert foreign(modules) <= {"click", "blake3"}, command
        assert not [name for name in modules if name.startswith(("pipeline.ingest", "pipeline.restore"))], command


def test_listing_runs_needs_the_log_alone(store: Path) -> None:
    modules = imported(COMMAND, "-s", str(store), "runs")
    assert foreign(modules) == {"click", "blake3", "reedsolo"}
    assert "manifests.log" in modules and "manifests.catalog" not in modules
    assert not [name for name in modules if name.startswith("stages")]


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (("ls", "-l"), set[str]()),
        (("digests",), set[str]()),
        (("cat", "latest:file", "--range", "100000-900000"), {"zstandard", "lz4"}),
    ],
)
def test_reading_commands_do_without_numpy_and_pyarrow(store: Path, line: tuple[str, ...], more: set[str]) -> None:
    duckdb = foreign(imported("-c", "import duckdb"))
    modules = imported(COMMAND, "-s", str(store), *line)
    assert foreign(modules) == {"click", "blake3", "reedsolo"} | duckdb | more
    assert not {"numpy", "pyarrow"} & foreign(modules)
    assert not [name for name in modules if name.startswith(("pipeline.ingest", "pipeline.restore", "multiprocessing"))]


def test_a_program_gets_the_store_without_its_operations() -> None:
    modules = imported("-c", "from pipeline import FileStore")
    assert "pipeline.filestore" in modules
    assert not {"duckdb", "pyarrow", "numpy"} & foreign(modules)


def test_an_ingest_without_lists_does_without_duckdb(store: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    modules = imported(COMMAND, "-s", str(store), "ingest", str(tmp_path / "new"))
    assert "pyarrow" in modules
    assert not {"duckdb", "rich", "pathspec"} & foreign(modules)
    assert not {"numpy.ma", "pyarrow.compute"} & modules


def test_a_restore_needs_nothing_of_an_ingest(store: Path, tmp_path: Path) -> None:
    modules = imported(COMMAND, "-s", str(store), "restore", "--to", str(tmp_path / "out"))
    assert "manifests.plan" in modules
    assert not {"pipeline.ingest.run", "pipeline.ingest.collect", "numpy.ma", "pyarrow.compute"} & modules


def test_prometheus_is_imported_by_who_publishes(store: Path, tmp_path: Path) -> None:
    line = (COMMAND, "-s", str(store), "verify")
    assert not {"prometheus_client", "http"} & imported(*line)
    assert "prometheus_client" in imported(*line, "--metrics-dir", str(tmp_path))


def test_workers_and_their_fork_server_import_what_stations_need() -> None:
    modules = imported("-c", "import pipeline.stations")
    codecs = {"blake3", "lz4", "pyeclib", "pyeclib_c", "reedsolo", "zstandard"}
    assert foreign(modules) == {"numpy", *codecs} | foreign(imported("-c", "import pyfastcdc"))
    supervisors = {
        *("manifests.catalog", "manifests.log", "manifests.store", "manifests.tables", "manifests.replicas"),
        *("pipeline.filestore", "pipeline.cli", "pipeline.ingest.run", "pipeline.restore.run", "pipeline.verify.run"),
    }
    assert not supervisors & modules
    assert not {name for name in modules if name.startswith("pipeline.metrics")} & {
        *("pipeline.metrics.figures", "pipeline.metrics.collector", "pipeline.metrics.publish")
    }
    assert not {"asyncio", "http", "unittest", "email", "ssl", "importlib.metadata"} & modules
