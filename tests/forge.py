"""Stores that say what no honest Drystone would write: runs whose objects were changed behind its back, consistently,
so that digests and log agree."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from manifests import format as fmt
from manifests.armour import open_json, seal_json
from manifests.config import ChunkerSpec, ECScheme
from manifests.ids import new_id
from manifests.log import make_record, write_record
from manifests.schema import SCHEMAS
from manifests.tables import TableWriter, file_name
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions

Row = dict[str, Any]


def kept_store(place: Path, tree: Path) -> Path:
    """A store of a tree, in small chunks of equal length, away from where it was made: copies of it are changed."""
    with FileStore.create(
        [place / "store"], scheme=ECScheme(2, 1), chunker=ChunkerSpec("fixed", 4096), cache=place / "cache"
    ) as store:
        store.ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
    return (place / "store").rename(place / "kept")


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


def falsify(store: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Let `change` make other rows of each manifest file of a table, on all backends, with log records that agree."""
    for path in store.glob("backend-*/log/*.ingest.json"):
        record, _ = open_json(path.read_bytes())
        for entry in record["adds"].get(table, ()):
            file = path.parents[1] / "manifests" / table / entry["name"]
            rows = change(pq.read_table(file))
            pq.write_table(rows, file)
            data = file.read_bytes()
            pieces = [data[at : at + fmt.SLICE_SIZE] for at in range(0, len(data), fmt.SLICE_SIZE)]
            slices = b"".join(blake3(piece).digest(fmt.SLICE_DIGEST) for piece in pieces)
            entry.update(size=len(data), rows=len(rows), blake3=blake3(data).hexdigest(), slices=slices.hex())
        path.write_bytes(seal_json(record))


def with_values(rows: pa.Table, column: str, said: list[Any]) -> pa.Table:
    """The rows with other values of a column; ids may have any length."""
    field = rows.schema.field(column)
    kind = pa.binary() if pa.types.is_fixed_size_binary(field.type) else field.type
    values = pa.array(said, pa.string()) if pa.types.is_dictionary(field.type) else pa.array(said, kind)
    return rows.set_column(rows.schema.get_field_index(column), column, values)


def lie(store: Path, table: str, column: str, value: Any) -> None:
    """Let all rows of a table say `value`, or what it makes of what they say, in manifests and log records that
    agree."""

    def change(rows: pa.Table) -> pa.Table:
        olds = rows.column(column).to_pylist()
        return with_values(rows, column, [value(old) if callable(value) else value for old in olds])

    falsify(store, table, change)
