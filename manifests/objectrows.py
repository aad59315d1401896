"""Objects on their way into OBJECT_DTYPE batches, collected column by column: a call for each directory, not for each
file, is what a scan of many small files can afford."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from manifests import format as fmt
from manifests.columns import OBJECT_DTYPE, Batch, HeapBuilder
from manifests.fitting import put

#: Rows of a batch, and bytes of their paths, and of their other variable fields. With an error of MISFIT_MOST bytes for
#: each row besides, a batch fits into a slot.
BATCH_ROWS = 2048
BATCH_HEAP = 256 << 10
#: Longest path of an object. What lies deeper in a tree is not archived, and is said to be too deep.
PATH_MOST = BATCH_HEAP
#: No name is longer on any file system.
_NAME_MOST = 4096
_FILE, _UNKNOWN = fmt.KINDS.index("file"), fmt.KINDS.index("unknown")
#: Where a stat_result has what goes into a column: by position where it can be, which is the faster way.
_STAT_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("mode", itemgetter(stat.ST_MODE)),
    ("uid", itemgetter(stat.ST_UID)),
    ("gid", itemgetter(stat.ST_GID)),
    ("links", itemgetter(stat.ST_NLINK)),
    ("mtime_ns", attrgetter("st_mtime_ns")),
    ("ctime_ns", attrgetter("st_ctime_ns")),
    ("device", itemgetter(stat.ST_DEV)),
    ("inode", itemgetter(stat.ST_INO)),
    ("rdev", attrgetter("st_rdev")),
    ("size", itemgetter(stat.ST_SIZE)),
]
#: What stands for the stat of an object that has none.
_NOTHING = os.stat_result((0,) * 10, dict.fromkeys(("st_mtime_ns", "st_ctime_ns", "st_rdev"), 0))


class ObjectRows:
    """Rows on their way into batches. Owned by one process; who fills it takes `batches` now and then."""

    def __init__(self) -> None:
        self._first = 0
        self._heap = 0
        self._clear()

    def _clear(self) -> None:
        self._paths: list[bytes] = []
        self._sources: list[int] = []
        self._kinds: list[int] = []
        self._infos: list[os.stat_result] = []
        self._folder_devices: list[int] = []
        self._folder_inodes: list[int] = []
        self._extras: dict[str, dict[int, bytes]] = {"target": {}, "error": {}, "xattrs": {}}

    def add(
        self,
        path: bytes,
        source: int,
        kind: int,
        info: os.stat_result | None = None,
        folder: tuple[int, int] = (0, 0),
        **extras: bytes,
    ) -> None:
        """One object, with its variable fields. `folder`: device and inode of the directory that it was found in. Of
        one whose path is too long, the beginning of the path is recorded, and that as its error."""
        if len(path) > PATH_MOST:
            extras = {"error": b"its path of %d bytes is cut here; at most %d are archived" % (len(path), PATH_MOST)}
            path, kind, info = path[:PATH_MOST], _UNKNOWN, None
        number = len(self._paths)
        for name, value in extras.items():
            if value:
                self._extras[name][number] = value
                self._heap += len(value)
        self._heap += len(path)
        self._paths.append(path)
        self._sources.append(source)
        self._kinds.append(kind)
        self._infos.append(_NOTHING if info is None else info)
        self._folder_devices.append(folder[0])
        self._folder_inodes.append(folder[1])

    def add_files(self, paths: list[bytes], source: int, infos: list[os.stat_result], folder: tuple[int, int]) -> None:
        """Regular files of one directory, which has this device and inode."""
        if paths and len(paths[0]) > PATH_MOST - _NAME_MOST:
            for path, info in zip(paths, infos, strict=True):
                self.add(path, source, _FILE, info, folder)
            return
        if paths:
            self._heap += len(paths[0]) * len(paths)  # about
        self._paths += paths
        self._infos += infos
        self._sources += [source] * len(paths)
        self._kinds += [_FILE] * len(paths)
        self._folder_devices += [folder[0]] * len(paths)
        self._folder_inodes += [folder[1]] * len(paths)

    def batches(self, everything: bool = False) -> Iterator[Batch]:
        """What fills batches; with `everything` the rest, too."""
        if not everything and len(self._paths) < BATCH_ROWS and self._heap < BATCH_HEAP:
            return
        start, count = 0, len(self._paths)
        sizes = list(accumulate(map(len, self._paths), initial=0))
        extras = sorted((number, len(value)) for column in self._extras.values() for number, value in column.items())
        while start < count:
            end = min(start + BATCH_ROWS, bisect_right(sizes, sizes[start] + BATCH_HEAP) - 1)
            taken = 0
            for number, size in extras:
                if start <= number < end:
                    taken += size
                    if taken > BATCH_HEAP:
                        end = number
                        break
            end = max(end, start + 1)
            if end == count and not everything and end - start < BATCH_ROWS // 2:
                break
            yield self._batch(start, end)
            start = end
        self._keep(start)

    def _keep(self, start: int) -> None:
        """Forget the rows before `start`."""
        paths, sources, kinds, infos, extras = self._paths, self._sources, self._kinds, self._infos, self._extras
        devices, inodes = self._folder_devices, self._folder_inodes
        self._first += start
        self._clear()
        self._paths, self._sources = paths[start:], sources[start:]
        self._kinds, self._infos = kinds[start:], infos[start:]
        self._folder_devices, self._folder_inodes = devices[start:], inodes[start:]
        for name, column in extras.items():
            self._extras[name] = {number - start: value for number, value in column.items() if number >= start}
        self._heap = sum(len(value) for column in self._extras.values() for value in column.values())
        self._heap += sum(map(len, self._paths))

    def _batch(self, start: int, end: int) -> Batch:
        count = end - start
        rows = np.zeros(count, OBJECT_DTYPE)
        rows["row"] = np.arange(self._first + start, self._first + end)
        rows["kind"], rows["source"] = self._kinds[start:end], self._sources[start:end]
        rows["folder_device"], rows["folder_inode"] = self._folder_devices[start:end], self._folder_inodes[start:end]
        infos, errors = self._infos[start:end], self._extras["error"]
        for column, get in _STAT_COLUMNS:
            try:
                rows[column] = np.fromiter(map(get, infos), OBJECT_DTYPE[column], count)
            except OverflowError:
                for number, text in put(rows, column, range(count), list(map(get, infos))).items():
                    if start + number not in errors:
                        errors[start + number] = text.encode()
                        rows["misfit"][number] = 1
        rows["size"][rows["kind"] != _FILE] = 0
        heap = HeapBuilder()
        rows["path_at"], rows["path_len"] = heap.add_all(self._paths[start:end])
        for name, values in self._extras.items():
            if values:
                some = [values.get(number, b"") for number in range(start, end)]
                rows[f"{name}_at"], rows[f"{name}_len"] = heap.add_all(some)
        return Batch(rows, heap.getvalue())
