"""The examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import inspect
import io
import shutil
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path

import pytest
from blake3 import blake3

import pipeline
from manifests.config import ECScheme, StoreConfig
from manifests.memory import PLACES
from pipeline.backend import Backend, MediaType, StorageType
from pipeline.ecgroup import ECGroup, ECShard
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.objects.operations import ObjectOperations
from pipeline.objects.refs import Chunk, ChunkRef, IndexStats, ObjectRef
from pipeline.objects.turns import WriteTurns
from pipeline.restore.run import RestoreRequest
from stages.assemble import ByteRange

#: What operations give back.
RESULTS = (
    ObjectRef, ChunkRef, Chunk, ECScheme, ECGroup, ECShard, IndexStats, Backend, StorageType, MediaType, StoreConfig,
)  # fmt: skip


@pytest.fixture(autouse=True)
def memory_places() -> Iterator[None]:
    before = set(PLACES)
    yield
    for location in set(PLACES) - before:
        del PLACES[location]


PURE = [
    "manifests.storage",
    "manifests.config",
    "manifests.backends",
    "pipeline.ecgroup",
    "pipeline.backend",
    "pipeline.objects.refs",
    "pipeline.protocol",
]


@pytest.mark.parametrize("module", PURE)
def test_examples_give_what_they_show(module: str) -> None:
    found = doctest.testmod(import_module(module))
    assert found.attempted and not found.failed


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, and with a store called `archive` that holds it and the object `photos/cat`."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "data").mkdir()
    (folder / "data" / "todo.txt").write_bytes(b"order more stones.\n")
    with FileStore.create([folder / "archive"], cache=folder / "cache") as store, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        store.ingest(["data"], options=IngestOptions(inline=True, workers=1))
        store.put_object("photos/cat", io.BytesIO(b"meow"), content_type="image/jpeg")
    return folder.rename(tmp_path_factory.mktemp("kept") / "examples")  # so that copies of it have no original


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=False)
    modules = ("pipeline.objects.turns", "pipeline.objects.operations", "pipeline.filestore")
    return [each for name in modules for each in finder.find(import_module(name)) if each.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda each: each.name)
def test_examples_of_a_store_give_what_they_show(
    example: doctest.DocTest, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on a store of its own."""
    folder = shutil.copytree(archive, tmp_path / "here", copy_function=shutil.copy2)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    with FileStore.open("archive") as store:
        example.globs |= {
            "store": store, "chunk_id": blake3(b"meow").digest(), "blake3": blake3, "io": io, "Chunk": Chunk,
            "FileStore": FileStore, "ECScheme": ECScheme, "IngestOptions": IngestOptions, "Path": Path,
            "RestoreRequest": RestoreRequest, "ByteRange": ByteRange,
        }  # fmt: skip
        report = io.StringIO()
        result = doctest.DocTestRunner().run(example, out=report.write, clear_globs=False)
    assert result.attempted and not result.failed, report.getvalue()


@pytest.mark.parametrize("kind", [FileStore, ObjectOperations, WriteTurns, *RESULTS], ids=lambda kind: kind.__name__)
def test_all_that_programs_use_is_documented_with_an_example(kind: type) -> None:
    operations = vars(kind).items() if kind in (FileStore, ObjectOperations, WriteTurns) else ()
    texts = {name: inspect.getdoc(getattr(kind, name)) for name, _ in operations if not name.startswith("_")}
    if kind in RESULTS:
        texts[kind.__name__] = kind.__doc__
    assert [name for name, text in texts.items() if ">>> " not in (text or "")] == []
    assert not any("SKIP" in (text or "") for text in texts.values())


def test_the_public_face_is_what_programs_need() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name
    assert {kind.__name__ for kind in RESULTS} < set(pipeline.__all__)
    with pytest.raises(AttributeError):
        pipeline.Nothing  # type: ignore[attr-defined]  # noqa: B018


def test_results_can_not_be_changed() -> None:
    for kind in RESULTS:
        if not issubclass(kind, Enum):
            assert is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
