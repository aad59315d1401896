"""The catalog: an in-memory DuckDB over a store's checked manifest files.

Each table of manifests/schema.py is a view of the same name without duplicate keys where that matters: `chunks` has
the copies that are alive, `objects` those that are not deleted; `stored_chunks` and `stored_objects` have them all.
`unreadable` has the packs that verifications could not read. `runs` is a view over the log. Results are streamed,
memory is limited, and what does not fit goes to `temp_directory`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from manifests import format as fmt
from manifests.duck import columns_of, connect, reading
from manifests.errors import DrystoneError, Unreadable
from manifests.ids import short_id, split_object_id
from manifests.limits import LimitReached, denied
from manifests.log import ManifestFile, State
from manifests.openfolders import OpenFolders
from manifests.places import ALIVE
from manifests.replicas import Replicas
from manifests.schema import COLUMNS, LATER_COLUMNS, duckdb_columns, misfit
from manifests.sense import NONSENSE

BATCH_ROWS = 16 << 10
#: Tables whose view leaves something out, and the view of all their rows.
ALL = {"chunks": "stored_chunks", "objects": "stored_objects"}
_STOPPED = "querying the manifests was stopped"
#: The columns of a view, where they are not just its table's: a digest that is the content id is not written twice.
_COLUMNS = {
    "objects": f"""
        * REPLACE (
            CASE WHEN content_kind = {fmt.CONTENT_CHUNK} THEN coalesce(digest, content_id) ELSE digest END AS digest)
    """
}
#: Conditions of views that leave rows out: a row that can't be true counts as none.
_TRUE = {
    "extents": '"offset" IS NOT NULL AND length IS NOT NULL AND chunk_id IS NOT NULL',
    "blocks": """
        octet_length(pack_id) = 16 AND block IS NOT NULL AND "offset" IS NOT NULL AND stored IS NOT NULL
        AND raw IS NOT NULL AND codec IS NOT NULL
    """,
    "packs": """
        octet_length(pack_id) = 16 AND k IS NOT NULL AND m IS NOT NULL AND payload IS NOT NULL
        AND shard_length IS NOT NULL
    """,
    "shards": "octet_length(pack_id) = 16 AND shard IS NOT NULL",
}
#: Columns beside them: `nonsense` says of which objects the manifests make no sense (sense.py).
_JUDGED = {"objects": f"{NONSENSE} AS nonsense"}

#: What DuckDB says where what it spills finds no room.
_NO_ROOM = ("max_temp_directory_size", "No space left on device")


class Catalog:
    """Queries over one store state. Owned by one process; `close` releases DuckDB's memory. `temp_directory` is made by
    DuckDB when it needs it, and is the caller's to remove. `replicas`: where the manifest files come from; `folders`
    names them, and stays the caller's."""

    def __init__(
        self,
        state: State,
        replicas: Replicas,
        folders: OpenFolders,
        *,
        memory_limit: int,
        threads: int,
        temp_directory: Path,
    ) -> None:
        self._state = state
        self.replicas = replicas
        self._made: set[str] = set()
        self.lost: list[str] = []
        self._lacking: set[str] = set()
        self.temp_directory = temp_directory
        self._folders = folders
        #: Connections that queries run on, of any thread, one for each query; `stop` ends them.
        self._running: list[duckdb.DuckDBPyConnection] = []
        self._stopped = False
        self.connection = connect(
            memory_limit=memory_limit, threads=threads, temp_directory=folders.room(temp_directory), in_order=False
        )

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """End all queries, those under way and those that begin before `go_on`: they raise DrystoneError. For any
        thread; what begins at the very moment may be missed, so it is to be called again until all have ended."""
        self._stopped = True
        for connection in list(self._running):
            with suppress(duckdb.Error):  # it has ended just now
                connection.interrupt()

    def go_on(self) -> None:
        """Let queries run again."""
        self._stopped = False

    def _require_going(self) -> None:
        if self._stopped:
            raise DrystoneError(_STOPPED)

    @contextmanager
    def _querying(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """While a query runs on `connection`. Raises DrystoneError for whatever goes wrong with it."""
        self._running.append(connection)
        try:
            self._require_going()
            yield
        except (DrystoneError, LimitReached):
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and str(error) == "Query interrupted":
                raise KeyboardInterrupt from error  # so DuckDB puts it when a signal's handler raises
            self._require_going()
            if isinstance(error, duckdb.Error):
                limit = denied(error)
                if limit is not None:
                    raise LimitReached(f"querying the manifests: {limit}") from error
                if any(text in str(error) for text in _NO_ROOM):
                    place = self.temp_directory.parent
                    raise DrystoneError(
                        f"querying the manifests takes more room on disk than there is in {place}: make room there, or "
                        "set DRYSTONE_CACHE to another directory"
                    ) from error
                raise DrystoneError(f"querying the manifests failed: {error}") from error
            raise
        finally:
            self._running.remove(connection)

    def limit_memory(self, size: int) -> None:
        """Let DuckDB have `size` bytes; beyond, it spills."""
        self.execute(f"SET memory_limit = '{size // 1024}KiB'")

    def close(self) -> None:
        self.connection.close()

    def use(self, *tables: str, spare: bool = False) -> None:
        """Make views of these tables, checking the files behind them. Raises Unreadable where one of them is lost; with
        `spare` it is noted in `lost` instead, and the others are used: for who names what then is missing."""
        for table in tables:
            if table in self._made:
                continue
            paths, name = self._paths(table), ALL.get(table, table)
            if paths:
                rows = self.reading(table, paths)
            else:
                self.execute(f"CREATE TABLE no_{table} ({duckdb_columns(table)})")
                rows = f"SELECT * FROM no_{table}"
            view = f"SELECT {_COLUMNS.get(table, '*')} FROM ({rows}) WHERE {_TRUE.get(table, 'true')}"
            if judged := _JUDGED.get(table):
                view = f"SELECT *, {judged} FROM ({view})"
            self.execute(f"CREATE VIEW {name} AS {view}")
            self._made.add(table)
            if table == "chunks":
                self._bury()
            elif table == "objects":
                self._leave_out_deleted()
        if self.lost and not spare:
            raise Unreadable("; ".join(self.lost))

    def short_runs(self, which: uuid.UUID | None = None) -> list[str]:
        """Of runs, or of one, those of which the manifests have fewer objects than their records tell of, as sentences;
        none where files of objects are lost, which says it already."""
        self.use("objects", spare=True)
        if "objects" in self._lacking:
            return []
        condition, parameters = ("true", []) if which is None else ("run = ?", [which.bytes])
        counts = dict(self.tuples(f"SELECT run, count(*) FROM objects WHERE {condition} GROUP BY run", parameters))
        found = []
        for run in self._state.runs:
            told = [run.summary.get(name) for name in ("files", "directories", "others")]
            archived = sum(number for number in told if type(number) is int)
            there = counts.get(run.run_id.bytes, 0)
            if there < archived and which in (None, run.run_id):
                found.append(f"run {short_id(run.run_id)}: the manifests have {there:,} of its {archived:,} objects")
        return found

    def _paths(self, table: str) -> list[str]:
        """Checked paths of the files of a table. Those that are lost, or have not its columns, are noted."""
        found = dict[str, ManifestFile]()
        for file in self._state.files(table):
            self._require_going()
            try:
                found[self.replicas.path(file)] = file
            except Unreadable as error:
                self._lose(table, str(error))
        new = [path for path, file in found.items() if not self.replicas.fits(path, file)]
        columns = self._columns_by_path(new)
        for path in new:
            if reason := misfit(table, columns[path]):
                self._lose(table, f"{found.pop(path).key}: {reason}")
            else:
                self.replicas.note_fit(path, found[path])
        self.replicas.save()
        return list(found)

    def _lose(self, table: str, reason: str) -> None:
        self.lost.append(reason)
        self._lacking.add(table)

    def _bury(self) -> None:
        """Make the view of the chunks that are alive, and the table `unreadable`."""
        self.use_unreadable()
        self.use("tombstones", spare=True)
        rule = ALIVE if self._state.files("tombstones") else ""
        self.execute(f"CREATE VIEW chunks AS SELECT * FROM {ALL['chunks']} {rule}")

    def use_unreadable(self) -> None:
        """Make the table `unreadable`, of the packs that verifications could not read; `is_loss`: something was lost
        with them, or with others."""
        if "unreadable" in self._made:
            return
        self._made.add("unreadable")
        self.execute("CREATE TABLE unreadable (pack_id BLOB, is_loss BOOLEAN)")
        for noted in self._state.noted():
            for file in noted.adds:
                try:
                    path = self.replicas.path(file)
                except Unreadable:
                    continue  # then any copy is as good as the others, until somebody reads it
                self.execute(
                    "INSERT INTO unreadable "
                    f"SELECT pack_id, ? FROM ({self.reading('scrubs', [path])}) WHERE shard IS NULL",
                    [noted.found_loss],
                )
        self.replicas.save()

    def note_unreadable(self, packs: Sequence[bytes], *, is_loss: bool, anew: bool) -> None:
        """Let these packs be known as unreadable from now on; the others as before or, `anew`, none."""
        self.use_unreadable()
        if anew:
            self.execute("DELETE FROM unreadable")
        self.execute("INSERT INTO unreadable SELECT unnest(?::BLOB[]), ?", [list(packs), is_loss])

    def _leave_out_deleted(self) -> None:
        """Make the view of the objects that are not deleted."""
        condition = ""
        if self._state.deleted:
            self.execute("CREATE TABLE deleted_objects (run BLOB, row UBIGINT)")
            ids = [split_object_id(text) for text in self._state.deleted]
            self.execute(
                "INSERT INTO deleted_objects SELECT unnest(?::BLOB[]), unnest(?::UBIGINT[])",
                [[run.bytes for run, _ in ids], [row for _, row in ids]],
            )
            condition = "ANTI JOIN deleted_objects USING (run, row)"
        self.execute(f"CREATE VIEW objects AS SELECT * FROM {ALL['objects']} {condition}")

    def reading(self, table: str, paths: Sequence[str]) -> str:
        """A query for all rows of some checked files; columns that old ones lack are null. Files of each age are read
        by themselves: with DuckDB's union_by_name every query would open every file before it reads one (1,000 files:
        0.11 s instead of 0.01 for one row)."""
        names = [self._folders.name(path) for path in paths]
        now = tuple(name for name, _, _ in COLUMNS[table])
        columns = self._columns_of(names) if table in LATER_COLUMNS else {}
        ages: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            there = columns.get(name, now)
            ages.setdefault(tuple(each for each in now if each in there), []).append(name)
        parts = [reading(table, listed, age) for age, listed in ages.items()]
        if set(ages) != {now}:
            self.execute(f"CREATE TABLE IF NOT EXISTS no_{table} ({duckdb_columns(table)})")
            parts.append(f"SELECT * FROM no_{table}")
        return " UNION ALL BY NAME ".join(parts)

    def _columns_by_path(self, paths: list[str]) -> dict[str, dict[str, str]]:
        """Path → columns (name → type) of files; none of what is no Parquet file."""
        names = [self._folders.name(path) for path in paths]
        try:
            columns = self._columns_of(names) if names else {}
        except DrystoneError:
            self._require_going()
            if len(paths) == 1:
                return {paths[0]: {}}
            return {path: columns for each in paths for path, columns in self._columns_by_path([each]).items()}
        return {path: columns.get(name, {}) for path, name in zip(paths, names, strict=True)}

    def _columns_of(self, names: list[str]) -> dict[str, dict[str, str]]:
        """Name → columns (name → type) of Parquet files."""
        columns: dict[str, dict[str, str]] = {}
        for name, column, kind in self.tuples(columns_of(names)):
            columns.setdefault(name, {})[column] = kind
        return columns

    def use_all(self) -> None:
        """Make all views, `runs` too: what a notebook starts with."""
        self.use(*COLUMNS)
        if "runs" in self._made:
            return
        self.execute("CREATE TABLE runs (run BLOB, id VARCHAR, time VARCHAR, summary VARCHAR)")
        for run in self._state.runs:
            row = [run.run_id.bytes, str(run.run_id), run.time, json.dumps(run.summary)]
            self.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", row)
        self._made.add("runs")

    def _make_table(self, name: str, content: Any) -> None:
        """A table with this content, which cursors see, too."""
        with self._querying(self.connection):
            self.connection.register("incoming", content)
            self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
            self.connection.unregister("incoming")

    def replace(self, name: str, schema: Any) -> None:
        """A new, empty table of this name."""
        self.execute(f"DROP TABLE IF EXISTS {name}")
        self._make_table(name, schema.empty_table())

    def append(self, name: str, rows: Any) -> None:
        """Add an Arrow table to a table that `replace` made."""
        with self._querying(self.connection):
            self.connection.register("incoming", rows)
            self.connection.execute(f"INSERT INTO {name} SELECT * FROM incoming")
            self.connection.unregister("incoming")

    def execute(self, query: str, parameters: object = None) -> None:
        """A statement without a result, as one that makes a table. Raises DrystoneError."""
        with self._querying(self.connection):
            self.connection.execute(query, parameters)

    def tuples(self, query: str, parameters: list[Any] | dict[str, Any] | None = None) -> Iterator[tuple[Any, ...]]:
        """Result rows, streamed, and without pyarrow; several results may be under way."""
        with self._cursor(query, parameters) as cursor:
            while rows := cursor.fetchmany(BATCH_ROWS):
                self._require_going()
                yield from rows

    def rows(self, query: str, parameters: list[Any] | None = None) -> Iterator[dict[str, Any]]:
        """Result rows as dicts, as `tuples` gives them."""
        with self._cursor(query, parameters) as cursor:
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(BATCH_ROWS):
                self._require_going()
                for row in rows:
                    yield dict(zip(names, row, strict=True))

    @contextmanager
    def _cursor(self, query: str, parameters: list[Any] | dict[str, Any] | None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor over a query's result. Raises DrystoneError, also for what goes wrong while rows are fetched."""
        with self.connection.cursor() as cursor, self._querying(cursor):
            yield cursor.execute(query, parameters or [])

    def one(self, query: str, parameters: list[Any] | None = None) -> dict[str, Any]:
        """The only result row."""
        return next(self.rows(query, parameters))

    def batches(self, query: str, parameters: list[Any] | None = None) -> Iterator[Any]:
        """Result as Arrow record batches, streamed; several results may be under way."""
        with self.connection.cursor() as cursor, self._querying(cursor):
            relation = cursor.sql(query, params=parameters or [])
            if relation is not None:
                for batch in relation.to_arrow_reader(BATCH_ROWS):
                    self._require_going()
                    yield batch


def path_filter(path: bytes) -> tuple[str, list[Any]]:
    """SQL condition and parameters for `path` and all below it; everything when it is empty."""
    if not path:
        return "true", []
    return "(path = ? OR (path > ? AND path < ?))", [path, path + b"/", path + b"0"]
