"""How DuckDB plans: no query of a restore compares every row of a table with every row of another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests.catalog import Catalog
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from stages.assemble import ByteRange

INLINE = IngestOptions(inline=True, workers=1)


def test_no_query_is_a_nested_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1500):
        folder = tmp_path / "tree" / f"dir{number % 40}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(b"%d " % number * 50)
    (tmp_path / "tree" / "large").write_bytes(b"".join(b"%d " % number for number in range(400_000)))
    plans: list[tuple[str, str]] = []
    batches, execute = Catalog.batches, Catalog.execute

    def explain(catalog: Catalog, query: str, parameters: Any) -> None:
        with catalog.connection.cursor() as cursor:
            plans.append((query, str(cursor.execute(f"EXPLAIN {query}", parameters or []).fetchall())))

    def noted_batches(catalog: Catalog, query: str, parameters: Any = None) -> Iterator[Any]:
        explain(catalog, query, parameters)
        return batches(catalog, query, parameters)

    def noted_execute(catalog: Catalog, query: str, parameters: Any = None) -> None:
        if " AS SELECT " in " ".join(query.split()) or " AS WITH " in " ".join(query.split()):
            explain(catalog, query, parameters)
        execute(catalog, query, parameters)

    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
        monkeypatch.setattr(Catalog, "batches", noted_batches)
        monkeypatch.setattr(Catalog, "execute", noted_execute)
        request = RestoreRequest("", inline=True, workers=1)
        assert store.restore("latest", tmp_path / "out", request=request).exit_code == 0
        assert sum(map(len, store.open_range("latest:tree/large", ByteRange(0, 999_999)))) == 1_000_000
        assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    assert len(plans) > 15
    for query, plan in plans:
        for word in ("nested loop", "nested_loop", "cross product", "cross_product", "piecewise", "iejoin"):
            assert word not in plan.lower(), f"{word} in the plan of: {query}"
