"""Stores that say what no honest Drystone would write: runs whose objects were changed behind its back, consistently,
so that digests and log agree."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.ids import new_id
from manifests.log import make_record, write_record
from manifests.schema import SCHEMAS
from manifests.tables import TableWriter, file_name
from pipeline.filestore import FileStore

Row = dict[str, Any]


def forge_run(
    location: Path, cache: Path, change: Callable[[list[Row]], list[Row]], renumber: bool = True
) -> uuid.UUID:
    """Add a run to the store whose objects are those of its latest run as `change` makes them, with numbers of their
    own if they are to `renumber`. Returns its id."""
    with FileStore.open(location, cache=cache) as store:
        latest = store.run("latest")
        rows: list[Row] = []
        for path in store.replicas.paths(store.state.files("objects")):
            rows += [row for row in pq.read_table(path).to_pylist() if row["run"] == latest.run_id.bytes]
        run_id = new_id(store.state.newest)
        forged = [{**row, "run": run_id.bytes} for row in change(rows)]
        if renumber:
            forged = [{**row, "row": number} for number, row in enumerate(forged)]
        table = pa.Table.from_pylist(forged, schema=SCHEMAS["objects"])
        writer = TableWriter("objects")
        writer.append({name: table.column(name).combine_chunks() for name in table.column_names})
        manifest = writer.publish(store.members, file_name(run_id, 0))
        write_record(store.members, make_record(run_id, "ingest", {"run": latest.summary}, [manifest]))
    return run_id
