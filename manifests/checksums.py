"""A supplied list of digests, compared with a run's objects while their rows come home.

The list lies in a DuckDB of its own, sorted by the short forms of its paths (longfields.py), and spills to disk; each
batch of objects is joined with it, and as neighbours in a batch are neighbours in the list, only a part of it is looked
at. One byte a line notes whether it was met.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from manifests import format as fmt
from manifests.columns import Batch
from manifests.duck import connect
from manifests.longfields import SHORT, short_form
from manifests.openfolders import OpenFolders
from manifests.runrows import digest_columns
from manifests.tables import fixed_column

LINES_AT_ONCE = 64 << 10
#: Of so many lines the first path is kept: between these the lines of a batch are looked for, by number. DuckDB itself
#: knows only the first 8 bytes of the paths of a part of a table, so it would look at all of them (2 million lines:
#: 0.3 s for each batch).
SAMPLED = 4096
_LISTED = pa.schema([("path", pa.binary()), ("algorithm", pa.string()), ("digest", pa.binary())])


@dataclass(frozen=True)
class ListLine:
    """A line of a list: the object's path in the archive; `algorithm` is a name of fmt.DIGESTS, or empty for 32 bytes
    that are either BLAKE3 or SHA-256."""

    path: bytes
    algorithm: str
    digest: bytes


class ChecksumList:
    """Lines to be compared with objects. Owned by one process; `close`, or leaving the `with`, releases it."""

    def __init__(self, lines: Iterator[ListLine], temp_directory: Path, memory_limit: int) -> None:
        self._folders = OpenFolders()
        room = self._folders.room(temp_directory / "spilled")
        self._connection = connect(memory_limit=memory_limit, threads=1, temp_directory=room, in_order=True)
        execute = self._connection.execute
        execute("CREATE TABLE unsorted (path BLOB, algorithm VARCHAR, digest BLOB)")
        pending: list[ListLine] = []
        for line in lines:
            pending.append(line)
            if len(pending) >= LINES_AT_ONCE:
                self._load(pending)
                pending = []
        self._load(pending)
        execute(
            """
            CREATE TABLE listed AS
            SELECT (row_number() OVER (ORDER BY path) - 1)::UBIGINT AS number, * FROM unsorted ORDER BY path
            """
        )
        execute("DROP TABLE unsorted")
        names = [name for (name,) in execute("SELECT DISTINCT algorithm FROM listed").fetchall()]
        ((count,),) = execute("SELECT count(*) FROM listed").fetchall()
        self._met = np.zeros(count, bool)
        query = f"SELECT path FROM listed WHERE number % {SAMPLED} = 0 ORDER BY number"
        self._samples: list[bytes] = [path for (path,) in execute(query).fetchall()]
        #: What must be computed so that every line can be compared.
        self.digests = tuple(name for name in fmt.DIGESTS if name in names or (name == "sha256" and "" in names))
        self.checked = self.differing = 0

    def __enter__(self) -> ChecksumList:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        self._folders.close()

    def _load(self, lines: list[ListLine]) -> None:
        rows = {name: [getattr(line, name) for line in lines] for name in _LISTED.names}
        rows["path"] = list(map(short_form, rows["path"]))
        self._connection.register("incoming", pa.table(rows, schema=_LISTED))
        self._connection.execute("INSERT INTO unsorted SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def compare(self, batch: Batch, names: Sequence[str]) -> dict[int, list[str]]:
        """The objects of an OBJECT_DTYPE batch that differ from the list: index → digests that differ. `names`: the
        digests that the batch has besides BLAKE3."""
        rows = np.flatnonzero(batch.rows["has_digest"])
        if not len(rows):
            return {}
        read = Batch(batch.rows[rows], batch.heap)
        paths = list(map(short_form, read.all_bytes("path")))
        first = max(0, bisect_left(self._samples, min(paths)) - 1) * SAMPLED
        last = bisect_right(self._samples, max(paths)) * SAMPLED
        columns = {
            "at": pa.array(rows.astype(np.uint32)),
            "path": pa.array(paths, pa.binary()),
            "blake3": fixed_column(read.rows["digest"]),
            **digest_columns(read, names),
        }
        cases = " ".join(f"WHEN '{name}' THEN l.digest = i.{name}" for name in ("blake3", *names))
        either = "WHEN '' THEN l.digest = i.blake3 OR l.digest = i.sha256" if "sha256" in names else ""
        query = f"""
            SELECT i.at, l.number, CASE l.algorithm WHEN '' THEN 'sha256' ELSE l.algorithm END AS algorithm,
                   CASE l.algorithm {cases} {either} ELSE false END AS good
            FROM incoming i JOIN listed l ON l.path = i.path AND l.number BETWEEN {first} AND {last}
        """
        self._connection.register("incoming", pa.table(columns))
        found = self._connection.sql(query).to_arrow_table()
        self._connection.unregister("incoming")
        self._met[found["number"].to_numpy()] = True
        wrong: dict[int, list[str]] = {}
        for at, algorithm, good in zip(*(found[name].to_pylist() for name in ("at", "algorithm", "good")), strict=True):
            if not good:
                wrong.setdefault(at, []).append(algorithm)
        self.checked += len(set(found["at"].to_pylist()))
        self.differing += len(wrong)
        return wrong

    @property
    def count(self) -> int:
        return len(self._met)

    @property
    def missing(self) -> int:
        """Lines of which no object was met so far that could be compared."""
        return int((~self._met).sum())

    def missing_paths(self, limit: int) -> list[bytes]:
        """The first of them; of very long ones the beginning."""
        numbers = np.flatnonzero(~self._met)[:limit].tolist()
        query = "SELECT path FROM listed WHERE number IN (SELECT unnest(?::UBIGINT[])) ORDER BY number"
        return [path[:SHORT] for (path,) in self._connection.execute(query, [numbers]).fetchall()]
