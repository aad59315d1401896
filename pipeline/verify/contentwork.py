"""Comparing whole contents with the digests that were recorded of them, while their pieces go by in order. The state of
the content that did not end in the last task is kept.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from manifests import format as fmt
from manifests.columns import Batch
from manifests.errors import DrystoneError, Unreadable
from manifests.ids import NIL
from pipeline.station import Context
from pipeline.verify.findings import WRONG_CONTENT, Finding, PackFindings
from stages.chunk import ContentHasher
from stages.digest import PIECE, FixityCheck

_ZEROS = bytes(PIECE)
_BEYOND = "its extents go beyond its end"


@dataclass(frozen=True)
class WrongDigest:
    """A digest that a content does not have; `name` is empty where the content could not be read or put together."""

    content_id: bytes
    content_kind: int
    size: int
    name: str
    digest: bytes

    @property
    def text(self) -> str:
        """For the way home."""
        return f"{self.content_kind} {self.size} {self.name} {self.digest.hex()}"


def wrong_contents(wrong: list[WrongDigest]) -> Generator[Batch, Any, None]:
    """Reports of wrong digests, none where all are right."""
    found = [Finding(WRONG_CONTENT, chunk_id=each.content_id, reason=each.text) for each in wrong]
    return PackFindings(NIL.bytes, found).batches()


@dataclass
class _OpenContent:
    """The content that is being read."""

    number: int
    check: FixityCheck
    has_holes: bool
    extents: ContentHasher = field(default_factory=ContentHasher)
    offset: int = 0
    trouble: str = ""

    def skip_to(self, offset: int) -> None:
        """Gaps between extents are holes: zeros. Raises Unreadable where the content has none."""
        if offset > self.offset and not self.has_holes:
            raise Unreadable("its extents leave gaps")
        while self.offset < offset:
            count = min(offset - self.offset, len(_ZEROS))
            self.check.update(_ZEROS[:count])
            self.offset += count


class Pieces(Protocol):
    """Where the bytes of some rows come from."""

    def extents(self, first: int, end: int) -> np.ndarray:
        """The rows `first` to `end` (exclusive) as EXTENT_DTYPE."""

    def read(self, first: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """The bytes of these rows, in order, each with its place in the content and valid until the next is asked for.
        Raises DrystoneError."""


class ContentVerifier:
    """Checks contents. Owned by one worker."""

    def __init__(self, context: Context, stage: int) -> None:
        """`stage`: what the time for digests counts as."""
        self._clock, self._stage = context.clock, stage
        self._open: _OpenContent | None = None

    def check(self, batch: Batch, pieces: Pieces) -> list[WrongDigest]:
        """Take the rows of a batch (PIECE_DTYPE or RAW_DTYPE); what is wrong with the contents that end in it."""
        rows, wrong, first = batch.rows, list[WrongDigest](), 0
        ends = (np.flatnonzero(rows["content"][1:] != rows["content"][:-1]) + 1).tolist()
        for end in [*ends, len(rows)]:
            wrong += self._take(batch, pieces, first, end)
            first = end
        return wrong

    def _take(self, batch: Batch, pieces: Pieces, first: int, end: int) -> list[WrongDigest]:
        """Take rows of one content; what is wrong with it, where they are the last."""
        rows, content = batch.rows, self._open
        number, last = int(rows[first]["content"]), rows[end - 1]
        if content is None or content.number != number:
            content = self._open = _OpenContent(
                number, FixityCheck(batch.bytes_of(last, "fixity")), bool(last["has_holes"])
            )
        try:
            if not content.trouble:
                self._read(content, pieces, first, end, int(last["size"]))
                if last["is_last"]:
                    _require_end(content, last)
        except DrystoneError as error:
            content.trouble = str(error)
        if not last["is_last"]:
            return []
        self._open = None
        which = last["content_id"].tobytes(), int(last["content_kind"]), int(last["size"])
        if content.trouble:
            return [WrongDigest(*which, "", b"")]
        return [WrongDigest(*which, *wrong) for wrong in content.check.wrong()]

    def _read(self, content: _OpenContent, pieces: Pieces, first: int, end: int, size: int) -> None:
        content.extents.add_extents(pieces.extents(first, end))
        for offset, data in pieces.read(first, end):
            if offset < content.offset:
                raise Unreadable("its extents overlap")
            if offset > size:  # before all of that is hashed as a hole
                raise Unreadable(_BEYOND)
            self._clock.switch(self._stage)
            content.skip_to(offset)
            content.check.update(data)
            content.offset += len(data)
        self._clock.count(self._stage, end - first, 0)


def _require_end(content: _OpenContent, last: np.void) -> None:
    """Raise Unreadable unless the pieces of a content are those that its id and its size tell."""
    size, kind = int(last["size"]), int(last["content_kind"])
    if content.offset > size:
        raise Unreadable(_BEYOND)
    if kind == fmt.CONTENT_EXTENTS and content.extents.content_id(size) != last["content_id"].tobytes():
        raise Unreadable("its extents are not those of its content id")
    content.skip_to(size)
