"""Comparing a run with a directory: what is missing, changed, or extra there. Reads only.

The directory is walked as for an ingest, so both sides are described by the same code; extended attributes of files,
which an ingest reads with their bytes, are read beside. The bytes of files are compared by their digests, in threads,
which hash outside the interpreter's lock.
"""

from __future__ import annotations

import datetime
import os
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3

from manifests.catalog import Catalog
from manifests.columns import Batch, cut_batch, with_fields
from manifests.compare import SideBySide
from manifests.errors import CorruptRecord, NotFound, UsageError
from manifests.log import Run, State
from manifests.longfields import LongFields
from manifests.objects import list_objects, no_such_object
from manifests.recorded import log_text
from manifests.sizes import format_size
from manifests.store import Members
from manifests.xattrs import FOR_EVERYBODY, UnreadXattrs, unpack_xattrs
from pipeline.budget import DEFAULT_MEMORY, DUCKDB_MEMORY, available_cores
from pipeline.ingest.sources import find_place
from pipeline.presence import look_around
from stages.digest import read_pieces
from stages.scan import KIND, Source, scan
from stages.sourcefolders import SourceFolders

#: Files that one thread hashes in one go: up to so many, of so many bytes.
LOT_FILES, LOT_BYTES = 64, 64 << 20
#: Extended attributes that are held at a time, in bytes.
XATTRS_AT_ONCE = 4 << 20
#: What a comparison takes besides DuckDB: interpreter, libraries, pieces of files that are hashed.
COMPARE_MEMORY = 164 << 20
VERDICTS = ("missing", "changed", "extra", "incomplete", "unreadable")


@dataclass(frozen=True)
class Difference:
    """Something that differs. `verdict`, one of VERDICTS: missing from the directory; changed; extra in it, so not in
    the archive; incomplete in the archive; unreadable in the directory. `what`: what differs, for people."""

    path: bytes
    verdict: str
    what: tuple[str, ...]


@dataclass
class Comparison:
    """A comparison under way: iterate over it once for the differences, by path; the counts are whole then. `place`:
    what the directory was compared with, a path of the archive, empty for the whole run; `owner`: whether owners, and
    attributes that only root sees and sets, are compared; `doubt`: what is known of the archive that no object can be
    named for, and because of which nothing may be deleted. Sizes in bytes."""

    side: SideBySide
    place: bytes
    data: bool
    owner: bool
    doubt: str = ""
    objects: int = 0
    hashed_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Difference]:
        for row in self.side.differences(self.owner):
            what = tuple(_what(row, self.owner))
            if row["verdict"] == "changed" and not what:
                continue  # attributes differ that only root sees
            self.counts[row["verdict"]] += 1
            yield Difference(row["path"], row["verdict"], what)

    @property
    def equal(self) -> bool:
        return not self.counts and not self.doubt

    @property
    def may_be_deleted(self) -> bool:
        """Whether all that the directory holds is in the archive as it is, and nothing of that is known to be lost."""
        return not self.counts.keys() - {"missing"} and not self.doubt

    @property
    def exit_code(self) -> int:
        return 0 if self.equal else 3


def _what(row: dict[str, Any], owner: bool) -> Iterator[str]:
    if row["reason"]:
        yield str(row["reason"])
    if row["found_kind"] is None or row["kind"] is None or row["senseless"]:
        return
    if row["kind"] != row["found_kind"]:
        yield f"kind {row['kind']} → {row['found_kind']}"
        return
    if row["kind"] == "file" and row["size"] != row["found_size"]:
        yield f"size {row['size']} → {row['found_size']}"
    if row["mtime_ns"] != row["found_mtime_ns"]:
        yield f"mtime {_time(row['mtime_ns'])} → {_time(row['found_mtime_ns'])}"
    modes = [stat.S_IMODE(int(str(row[name]))) for name in ("mode", "found_mode")]
    if modes[0] != modes[1]:
        yield f"mode {modes[0]:04o} → {modes[1]:04o}"
    for name in ("uid", "gid") if owner else ():
        if row[name] != row[f"found_{name}"]:
            yield f"{name} {row[name]} → {row[f'found_{name}']}"
    if row["target"] != row["found_target"]:
        yield f"target {row['target']!r} → {row['found_target']!r}"
    if row["kind"] in ("chardev", "blockdev") and row["rdev"] != row["found_rdev"]:
        yield f"device {row['rdev']} → {row['found_rdev']}"
    if row["verdict"] == "changed" and row["xattrs"] != row["found_xattrs"]:
        yield from _xattrs(row["xattrs"] or b"", row["found_xattrs"] or b"", owner)
    if row["link"] != row["found_link"]:
        yield f"hardlinks {row['link'] or 'none'} → {row['found_link'] or 'none'}"


def _time(ns: int) -> str:
    """As RFC 3339 in UTC, to the nanosecond where it is no whole second: times that differ look different."""
    seconds, rest = divmod(int(ns), 10**9)
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return moment.isoformat() + (f".{rest:09}" if rest else "") + "Z"


def _xattrs(archived: bytes, found: bytes, owner: bool) -> Iterator[str]:
    """What differs between packed extended attributes."""
    try:
        was, now = unpack_xattrs(archived), unpack_xattrs(found)
    except CorruptRecord as error:
        yield f"extended attributes in the archive: {error}"
        return
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name) and (owner or name.startswith(FOR_EVERYBODY)):
            how = "is missing" if name not in now else "is extra" if name not in was else "differs"
            yield f"extended attribute {name.decode(errors='backslashreplace')} {how}"


def compare(
    members: Members,
    state: State,
    catalog: Catalog,
    run: Run,
    path: bytes,
    directory: str,
    long_fields: LongFields,
    *,
    data: bool = False,
    memory: int = DEFAULT_MEMORY,
) -> Comparison:
    """Compare the objects at and below `path` of a run with `directory`; with an empty path see `_sources`. `data`:
    read the files and compare their BLAKE3; `memory`: bytes; `long_fields` is the comparison's as long as it lives.
    What of the run is lost, by manifests, listings of the backends that answer and notes of verifications, is
    incomplete. Raises NotFound where there is no such object or directory, UsageError with the least `memory`."""
    if memory < COMPARE_MEMORY + DUCKDB_MEMORY:
        least = format_size(COMPARE_MEMORY + DUCKDB_MEMORY)
        raise UsageError(f"--memory {format_size(memory)} is too little for a comparison, which needs {least}")
    catalog.limit_memory(memory - COMPARE_MEMORY)
    place = find_place(directory)
    if place.trouble:
        raise NotFound(f"there is no directory {directory}: {place.trouble}")
    here = place.path
    side = SideBySide(catalog, run.run_id, path, long_fields)
    if not side.count:
        raise no_such_object(catalog, run.run_id, path)
    sources = [Source(here, path)] if path else _sources(catalog, run, here)
    compared = path or (sources[0].name if len(sources) == 1 and sources[0].path == here else b"")
    if not compared:
        _add_strays(side, {source.name for source in sources}, here)
    look_around(members, state, catalog)[0].losses()
    side.mark_lost()
    comparison = Comparison(side, compared, data, os.geteuid() == 0, _doubt(state, run))
    walked = [source for source in sources if os.path.lexists(source.path)]
    with closing(SourceFolders([source.path for source in walked])) as folders:
        for batch in scan(walked):
            for part in _with_xattrs(batch, walked, folders):
                side.add_found(part)
            comparison.objects += len(batch.rows)
    if data:
        _compare_data(comparison, sources)
    return comparison


def _doubt(state: State, run: Run) -> str:
    """What the last verification of all data found wrong with a run that was there then."""
    last = next((each for each in reversed(state.verifications) if each.data), None)
    if last is None or not last.wrong or run.run_id.int > last.record_id.int:
        return ""
    if last.wrong_runs and str(run.run_id) not in last.wrong_runs:
        return ""
    return f"the verification of {last.time} found objects that are not what was recorded; see: drystone verify --data"


def _sources(catalog: Catalog, run: Run, here: bytes) -> list[Source]:
    """What a directory is, compared with a whole run. This is the rule: where the run has one source and the directory
    is the place that it was archived from, it is this source. Else, where it holds the base of each source, it is what
    `restore --to` it would have made. Else, with one source, it is this source."""
    bases = [info for info in list_objects(catalog, run.run_id, b"", recursive=False) if not info.nonsense]
    names = [info.path for info in bases]
    inside = [Source(os.path.join(here, name), name) for name in names]
    if len(bases) != 1 or (bases[0].kind != "directory" and os.path.isdir(here)):
        return inside
    is_origin = run.summary.get("sources", []) == [log_text(here)]
    if not is_origin and os.path.lexists(inside[0].path):
        return inside
    return [Source(here, names[0])]


def _add_strays(side: SideBySide, names: set[bytes], here: bytes) -> None:
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name not in names:
                    side.add_stray(entry.name)
    except OSError as error:
        raise NotFound(f"listing {os.fsdecode(here)}: {error.strerror}; give a directory that can be read") from error


def _with_xattrs(batch: Batch, sources: list[Source], folders: SourceFolders) -> Iterator[Batch]:
    """Scanned objects (OBJECT_DTYPE) with the extended attributes of files, too, in parts of some MiB of them; no file
    is opened for them."""
    found, errors, held, first = dict[int, bytes](), dict[int, bytes](), 0, 0
    paths, origins = batch.all_bytes("path"), batch.rows["source"].tolist()
    devices, inodes = batch.rows["folder_device"].tolist(), batch.rows["folder_inode"].tolist()
    for number in np.flatnonzero(batch.rows["kind"] == KIND["file"]).tolist():
        below = paths[number][len(sources[origins[number]].name) + 1 :]
        try:
            packed = folders.xattrs(origins[number], below, (devices[number], inodes[number]))
        except OSError as error:
            errors[number - first] = f"reading its extended attributes failed: {error.strerror}".encode()
            packed = error.others if isinstance(error, UnreadXattrs) else b""
        if packed:
            found[number - first] = packed
            held += len(packed)
        if held >= XATTRS_AT_ONCE:
            part = cut_batch(batch, first, number + 1)
            yield with_fields(part, {"xattrs": found, "error": errors})
            found, errors, held, first = {}, {}, 0, number + 1
    rest = cut_batch(batch, first, len(batch.rows)) if first else batch
    yield with_fields(rest, {"xattrs": found, "error": errors}) if found or errors else rest


def _compare_data(comparison: Comparison, sources: list[Source]) -> None:
    """Hash the files that have the same length on both sides."""
    names, roots = [source.name for source in sources], [source.path for source in sources]

    def place(path: bytes) -> tuple[int, bytes]:
        number = next(at for at, name in enumerate(names) if path == name or path.startswith(name + b"/"))
        return number, path[len(names[number]) + 1 :]

    def check(lot: list[tuple[bytes, int, bytes | None]]) -> tuple[list[tuple[bytes, str, str]], int]:
        with closing(SourceFolders(roots)) as folders:
            looked = [(path, *_trouble(folders, *place(path), digest)) for path, _, digest in lot]
        return [each[:3] for each in looked if each[1]], sum(size for *_, size in looked)

    with ThreadPoolExecutor(min(8, available_cores()), "hash") as threads:
        for files in comparison.side.files():
            for wrong, size in threads.map(check, _lots(files)):
                comparison.side.add_wrong(wrong)
                comparison.hashed_bytes += size


def _lots(files: list[tuple[bytes, int, bytes | None]]) -> Iterator[list[tuple[bytes, int, bytes | None]]]:
    first = taken = 0
    for number, (_, size, _) in enumerate(files):
        if number > first and (number - first >= LOT_FILES or taken + size > LOT_BYTES):
            yield files[first:number]
            first, taken = number, 0
        taken += size
    yield files[first:]


def _trouble(folders: SourceFolders, source: int, below: bytes, digest: bytes | None) -> tuple[str, str, int]:
    """Verdict and reason, empty where the bytes of a file are those of the archive; and how many of them were read."""
    if digest is None:
        return "changed", "the archive has no digest of it", 0
    size = 0
    try:
        fd = folders.open(source, below)
        try:
            hasher = blake3()
            for piece in read_pieces(fd):
                hasher.update(piece)
                size += len(piece)
        finally:
            os.close(fd)
    except OSError as error:
        return "unreadable", f"reading it failed: {error.strerror}", size
    return ("", "", size) if hasher.digest() == digest else ("changed", "its bytes differ", size)
