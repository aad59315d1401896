"""Files that did not change since the parent run: their rows take over what that run learned of their contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manifests.columns import Batch
from pipeline.handles import FdHandle
from stages.parent import Comparison, ParentTable
from stages.scan import KIND, Source
from stages.sourcefolders import SourceFolders


@dataclass(frozen=True)
class CarryOptions:
    """`table`: the file of a ParentTable, complete when home says so."""

    table: FdHandle
    comparison: Comparison


_VARIABLE = ("xattrs", "holes", "digests")
#: Number of a row → its extended attributes, holes and digests, where it has any.
Carried = dict[int, tuple[bytes, bytes, bytes]]


class Carrier:
    """Marks unchanged files in batches of rows. Owned by one reader; `close` it."""

    def __init__(self, options: CarryOptions, sources: Sequence[Source], folders: SourceFolders) -> None:
        self._table = ParentTable(options.table.detach(), options.comparison)
        self._sources = sources
        self._folders = folders

    def close(self) -> None:
        self._table.close()

    def carry(self, batch: Batch, paths: Sequence[bytes]) -> Carried:
        """Fill in the rows (writable) of files that are unchanged, and mark them; nothing is opened. What they have in
        variable fields is returned."""
        rows = batch.rows
        files = np.flatnonzero((rows["kind"] == KIND["file"]) & (rows["error_len"] == 0))
        carried: Carried = {}
        for numbers, known in self._table.unchanged(batch, files, paths):
            recorded = known.rows
            fields = {name: known.all_bytes(name) for name in _VARIABLE if recorded[f"{name}_len"].any()}
            touched = rows["ctime_ns"][numbers] != recorded["ctime_ns"]
            if touched.any():  # the change time is ignored, and with it whether attributes changed
                fields["xattrs"] = fields.get("xattrs", [b""] * len(numbers))
                failed = []
                for at in np.flatnonzero(touched).tolist():
                    try:
                        fields["xattrs"][at] = self._read_xattrs(rows, paths, int(numbers[at]))
                    except OSError:
                        failed.append(at)  # whoever reads the file will say it
                keep = np.delete(np.arange(len(numbers)), failed)
                numbers, recorded = numbers[keep], recorded[keep]
                fields = {name: [values[at] for at in keep.tolist()] for name, values in fields.items()}
            for name in ("content_kind", "content_id", "digest", "has_digest"):
                rows[name][numbers] = recorded[name]
            rows["clean"][numbers] = rows["unchanged"][numbers] = 1
            if fields:
                empty = [b""] * len(numbers)
                columns = [fields.get(name, empty) for name in _VARIABLE]
                carried |= {
                    number: values
                    for number, values in zip(numbers.tolist(), zip(*columns, strict=True), strict=True)
                    if any(values)
                }
        return carried

    def _read_xattrs(self, rows: npt.NDArray[np.void], paths: Sequence[bytes], number: int) -> bytes:
        row = rows[number]
        source, folder = int(row["source"]), (int(row["folder_device"]), int(row["folder_inode"]))
        return self._folders.xattrs(source, paths[number][len(self._sources[source].name) + 1 :], folder)
