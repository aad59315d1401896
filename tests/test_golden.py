"""Golden stores: made once by some version, and read by all that come after. And the format's fingerprint: what is on
disk does not change by accident."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from manifests import format as fmt
from manifests.armour import seal_json, seal_record
from manifests.errors import NotFound, ObjectDeleted
from manifests.schema import SCHEMAS
from manifests.xattrs import pack_xattrs
from pipeline.filestore import FileStore
from pipeline.restore.run import RestoreRequest
from stages.pack import encode_directory
from tests.make_golden import GOLDEN, describe_object, expectation

STORES = sorted(path.name.removesuffix(".tar.xz") for path in GOLDEN.glob("*.tar.xz"))


def unpacked(name: str, place: Path) -> dict[str, Any]:
    """Unpack a golden store below `place`; what is expected of it, run by run."""
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
        archive.extractall(place, filter="data")
    expected: dict[str, Any] = json.loads((place / "expected.json").read_text())
    return expected


def test_there_are_golden_stores() -> None:
    assert {"adopted", "before-digests", "fidelity", "objects"} <= set(STORES)


@pytest.mark.parametrize("lost", [None, 0, 1, 2])
def test_a_golden_store_comes_back_as_it_was(tmp_path: Path, lost: int | None) -> None:
    expected = unpacked("fidelity", tmp_path)["runs"]
    if lost is not None:
        shutil.rmtree(tmp_path / "store" / f"backend-{lost}")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        runs = store.runs()
        assert len(runs) == len(expected)
        for run, wanted in zip(runs, expected, strict=True):
            out = tmp_path / f"out-{run.run_id}"
            result = store.restore(str(run.run_id), out, request=RestoreRequest("", inline=True, workers=1))
            if os.geteuid() != 0:
                continue  # owners and nodes are for root
            assert (result.exit_code, result.failures) == (0, [])
            found = json.loads(json.dumps(expectation(out / "tree")))
            for path, described in wanted["objects"].items():
                assert found["objects"].get(path) == described, bytes.fromhex(path)
            assert found == wanted
        assert store.verify(data=True, inline=True, workers=1).exit_code == (0 if lost is None else 4)


@pytest.mark.parametrize("name", ["objects", "adopted"])
def test_objects_of_a_golden_store_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    expected = unpacked(name, tmp_path)["objects"]
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        found = {
            ref.id: describe_object(ref)
            for key in {wanted["key"] for wanted in expected.values()}
            for ref in store.list_versions(key, bucket="b")
        }
        for identity, wanted in expected.items():
            content = wanted.pop("content")
            assert found.pop(identity) == wanted
            if wanted["deleted_ns"] is None:
                assert "blake3:" + blake3(store.get_object_data(identity).read()).hexdigest() == content
            else:
                with pytest.raises(ObjectDeleted):
                    store.get_object_data(identity)
        assert not found
        assert store.get_chunk_data(blake3(b"a chunk that stays").digest()) == b"a chunk that stays"
        with pytest.raises(NotFound):
            store.get_chunk_data(blake3(b"a chunk that goes").digest())
        assert store.verify(data=True, inline=True, workers=1).exit_code == 0


@pytest.mark.parametrize("name", STORES)
def test_a_golden_store_can_be_added_to(tmp_path: Path, name: str) -> None:
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    location = next(path.parent for path in tmp_path.rglob("backend.json")).parent
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").write_bytes(b"of a newer version")
    with FileStore.open(location, cache=tmp_path / "cache") as store:
        before = len(store.runs())
        assert store.ingest([str(tmp_path / "new")]).exit_code == 0
        assert len(store.runs()) == before + 1
        assert store.verify(data=True, inline=True, workers=1).exit_code == 0
        assert b"".join(store.open_range("latest:new/file")) == b"of a newer version"


def fingerprint() -> str:
    """A digest over all that the format is made of: constants, layouts of records, columns, and samples of what the
    writers make."""
    facts: list[str] = []
    for name in dir(fmt):
        value = getattr(fmt, name)
        if name.isupper() and not name.startswith("_"):
            layout = value.format if isinstance(value, struct.Struct) else getattr(value, "descr", value)
            facts.append(f"{name}={layout!r}")
    for table, schema in SCHEMAS.items():
        facts += [f"{table}.{field.name}: {field.type}" for field in schema]
    chunks = np.zeros(2, fmt.CHUNK_DTYPE)
    chunks["length"] = 5, 7
    blocks = np.zeros(1, fmt.BLOCK_DTYPE)
    blocks["raw"] = 12
    samples = [
        seal_record(b"a record"),
        seal_json({"a": "record", "number": 1}),
        encode_directory(blocks, chunks),
        pack_xattrs({b"user.a": b"1", b"user.b": b""}),
    ]
    facts += [sample.hex() for sample in samples]
    return blake3("\n".join(facts).encode()).hexdigest()


def test_the_format_did_not_change_by_accident() -> None:
    assert fingerprint() == (GOLDEN / "fingerprint").read_text().strip(), (
        "The on-disk format changed. If that was not meant, undo it. If it was: say in manifests/FORMAT.md what is "
        "new; set a flag where older versions must not read or write it; make sure that all stores in tests/golden are "
        "still read; add one with what is new (python -m tests.make_golden NAME); and write the new fingerprint to "
        f"tests/golden/fingerprint: {fingerprint()}"
    )
