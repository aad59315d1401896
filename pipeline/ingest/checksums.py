"""Lists of digests that an ingest is compared with: reading their lines, and which object each line means.

`HEX  PATH` of sha256sum, md5sum, b3sum and the like, with a tag or without, and `HEX PATH` of BagIt's manifests.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manifests import format as fmt
from manifests.columns import Batch, HeapBuilder
from manifests.errors import UsageError
from manifests.paths import absolute_path
from pipeline.budget import DUCKDB_MEMORY
from pipeline.ingest.below import Below
from pipeline.textfile import beginning
from stages.checklist import Listed, is_blank, parse_line
from stages.digest import SPELLED, join_digests
from stages.scan import OUTSIDE, Source

if TYPE_CHECKING:
    from manifests.checksums import ChecksumList, ListLine

#: Longest line: a path as long as the kernel gives it, every byte escaped, with room to spare.
LONGEST_LINE = 1 << 20
#: Named of the listed paths that no object has.
NAMED_MISSING = 100
_HINT = re.compile(r"(?:^|[^a-z])(blake3|b3|md5|sha1|sha256|sha512)(?:sums?)?(?:[^a-z0-9]|$)")
_BAGIT = re.compile(r"(?:tag)?manifest-[a-z0-9]+\.txt")
_LENGTHS = {16: "md5", 20: "sha1", 64: "sha512"}


@dataclass(frozen=True)
class ChecksumFile:
    """A list as a user names it; `algorithm` is empty where lines and the name of the file are to tell."""

    path: str
    algorithm: str = ""

    @classmethod
    def parse(cls, text: str) -> ChecksumFile:
        """`FILE`, or `ALGORITHM:FILE`."""
        name, colon, path = text.partition(":")
        if colon and path and name.lower() in fmt.DIGESTS:
            return cls(path, name.lower())
        return cls(text)

    @property
    def hint(self) -> str:
        """The algorithm that the file's name tells: `manifest-sha256.txt`, `SHA256SUMS`, `list.b3`; or empty."""
        found = _HINT.search(os.path.basename(self.path).lower())
        return "" if found is None else {"b3": "blake3"}.get(found[1], found[1])

    def algorithm_of(self, line: Listed) -> str | None:
        """The algorithm of a line; empty where it may be BLAKE3 or SHA-256; None where its length fits none."""
        if told := self.algorithm or line.algorithm:
            return told if fmt.DIGESTS[told] == len(line.digest) and line.algorithm in ("", told) else None
        if self.hint and fmt.DIGESTS[self.hint] == len(line.digest):
            return self.hint
        return "" if len(line.digest) == 32 else _LENGTHS.get(len(line.digest))


class Resolver:
    """Which path in the archive a listed path is. This is the rule: it counts from the list's directory; where that
    leads out of the sources, from the only source, or it is a path of the archive already."""

    def __init__(self, file: ChecksumFile, sources: Sequence[Source]) -> None:
        self._folder = os.path.dirname(os.fsencode(absolute_path(file.path)))
        self._all = sources
        self._sources = [source for source in sources if not source.stream]
        self._below = Below(sources)
        self._names = {source.name.partition(b"/")[0] for source in sources}

    def resolve(self, path: bytes) -> bytes:
        """The path in the archive; as it is listed where it is none."""
        try:
            number, below = self._below.find(path, self._folder)
        except OSError:
            return path
        if number != OUTSIDE:
            return self._joined(self._all[number], below)
        normal = os.path.normpath(path)
        first = normal.partition(b"/")[0]
        if len(self._sources) == 1 and len(self._names) == 1 and first not in (b"", b".."):
            source = self._sources[0]
            if first != source.name or os.path.lexists(os.path.join(source.path, normal)):
                return self._joined(source, normal)
        return normal if first in self._names else path

    @staticmethod
    def _joined(source: Source, below: bytes) -> bytes:
        return source.name + b"/" + below if below else source.name


def read_lists(files: Sequence[ChecksumFile], sources: Sequence[Source]) -> Iterator[ListLine]:
    """The lines of all lists. Raises UsageError where a file can't be read or a line makes no sense."""
    for file in files:
        try:
            yield from _read_list(file, sources)
        except OSError as error:
            raise UsageError(f"reading the list {file.path} failed: {error.strerror}") from error


def _read_list(file: ChecksumFile, sources: Sequence[Source]) -> Iterator[ListLine]:
    from manifests.checksums import ListLine

    resolver = Resolver(file, sources)
    is_bag = _BAGIT.fullmatch(os.path.basename(file.path)) is not None
    with open(file.path, "rb") as lines:
        number = 0
        while line := lines.readline(LONGEST_LINE):
            number += 1
            if number == 1:
                line = beginning(line, file.path)
            if is_blank(line):
                continue
            listed = parse_line(line)
            algorithm = None if listed is None else file.algorithm_of(listed)
            if listed is None or algorithm is None:
                raise UsageError(
                    f"{file.path}, line {number}: not a line of a list of {SPELLED.get(file.algorithm, 'digests')}; "
                    "write HEX, two spaces and the path, as sha256sum and b3sum do"
                )
            path = re.sub(rb"%(0[AaDd]|25)", _unquote, listed.path) if is_bag else listed.path
            yield ListLine(resolver.resolve(path), algorithm, listed.digest)


def _unquote(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 16)])


@dataclass(frozen=True)
class ChecksumResult:
    """What comparing a run with lists came to. `checked`: objects that are listed and were read; `differing`: those of
    them that differ, each with an error in its row; `missing`: lines that no object belongs to that was read, the
    first of them named."""

    listed: int
    checked: int
    differing: int
    missing: int
    named_missing: list[bytes]

    @property
    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("listed", "checked", "differing", "missing")}


@dataclass
class Checksums:
    """Marks the objects of a run that differ from the lists. `digests`: those that the run computes besides BLAKE3."""

    listed: ChecksumList
    digests: tuple[str, ...]
    temp_directory: str

    @classmethod
    @contextmanager
    def opened(
        cls, files: Sequence[ChecksumFile], sources: Sequence[Source], digests: Sequence[str]
    ) -> Iterator[Checksums | None]:
        """The lists read, None where there are none. `digests`: what the run was asked for. Raises UsageError."""
        if not files:
            yield None
            return
        from manifests.checksums import ChecksumList  # brings DuckDB along

        with (
            tempfile.TemporaryDirectory(prefix="drystone-lists-") as scratch,
            ChecksumList(read_lists(files, sources), Path(scratch), DUCKDB_MEMORY) as listed,
        ):
            yield cls(listed, join_digests([digests, listed.digests]), scratch)

    def mark(self, batch: Batch) -> Batch:
        """The same OBJECT_DTYPE batch (rows writable), with an error in the rows of objects that differ."""
        wrong = self.listed.compare(batch, self.digests)
        if not wrong:
            return batch
        heap = HeapBuilder()
        heap.add(bytes(batch.heap))
        for row, names in wrong.items():
            trouble = f"its {' and '.join(SPELLED[name] for name in sorted(set(names)))} differs from the list"
            before = batch.bytes_of(batch.rows[row], "error")
            text = b"; ".join(filter(None, (before, trouble.encode())))
            batch.rows["error_at"][row], batch.rows["error_len"][row] = heap.add(text)
        batch.rows["clean"][np.array(list(wrong))] = 0
        return Batch(batch.rows, heap.getvalue())

    def result(self) -> ChecksumResult:
        listed = self.listed
        return ChecksumResult(
            listed.count, listed.checked, listed.differing, listed.missing, listed.missing_paths(NAMED_MISSING)
        )
