"""Reading shard files of disks that fail: around what can't be read, and what is known is not asked for again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from manifests import format as fmt
from manifests.backends import BackendStorage
from manifests.errors import BackendError, KeyNotFound
from pipeline.badmedia import BadMedia, is_everywhere

#: What one unreadable spot costs of a record or a table of checksums, in bytes; of data it is a cell.
SECTOR = 512


@dataclass
class ReadFigures:
    """What reading cost and met. `bad_cells`: (pack, shard) → cells that no checksum vouches for; `healed_cells`: those
    that were decoded from others; `elsewhere`: chunks that came from another place than the first one, which did not
    give them back; `healed_records`: records and tables that armour or their second copy gave back;
    `missing`: shards that no backend holds readably, with the reason; `flaws`: files that are not what they should be,
    of shards that are there; `media`: what can't be read of backends."""

    requests: int = 0
    bytes: int = 0
    healed_cells: int = 0
    healed_records: int = 0
    elsewhere: int = 0
    bad_cells: dict[tuple[uuid.UUID, int], set[int]] = field(default_factory=dict)
    missing: dict[tuple[uuid.UUID, int], str] = field(default_factory=dict)
    flaws: dict[tuple[uuid.UUID, int], str] = field(default_factory=dict)
    media: BadMedia = field(default_factory=BadMedia)


class CarefulReader:
    """Reads ranges of shard files. `figures`: what that cost and met."""

    def __init__(self) -> None:
        self.figures = ReadFigures()

    def read(
        self,
        storage: BackendStorage,
        key: str,
        offset: int,
        length: int,
        finest: int = fmt.CELL_SIZE,
        *,
        at_last: bool = False,
    ) -> bytes:
        """A ranged read, counted. Zeros stand for what can't be read, down to pieces of `finest` bytes, and for what is
        known to be unreadable. Of a shard that was given up nothing is read, unless nothing else is left (`at_last`).
        Raises BackendError where nothing of the range can be read."""
        media, end = self.figures.media, offset + length
        if media.troubles:
            if media.gave_up(storage.location, key) and not at_last:
                raise BackendError(f"{storage.location}/{key} was not read: {media.why(storage.location)}")
            if known := media.known(storage.location, key, offset, end):
                return self._between(storage, key, offset, end, known, finest, at_last)
        found = self._try(storage, key, offset, length)
        if not isinstance(found, BackendError):
            return found
        data = self._around(storage, key, offset, length, found, finest, at_last)
        if data is None:
            raise found
        return data

    def read_straight(self, storage: BackendStorage, key: str, offset: int, length: int) -> bytes | None:
        """A range that can be read in one go; None for any other."""
        media = self.figures.media
        if media.troubles and (
            media.gave_up(storage.location, key) or media.known(storage.location, key, offset, offset + length)
        ):
            return None
        try:
            found = self._try(storage, key, offset, length)
        except KeyNotFound:
            return None
        return None if isinstance(found, BackendError) else found

    def _try(self, storage: BackendStorage, key: str, offset: int, length: int) -> bytes | BackendError:
        """A range, or why it can't be read in one go. Raises KeyNotFound."""
        self.figures.requests += 1
        media = self.figures.media
        try:
            data = storage.read_range(key, offset, length)
        except KeyNotFound:
            raise
        except BackendError as error:
            media.failed(storage.location, key, error)
            return error
        self.figures.bytes += len(data)
        if storage.location in media.troubles:
            media.went_well(storage.location, key)
        return data

    def _around(
        self,
        storage: BackendStorage,
        key: str,
        offset: int,
        length: int,
        error: BackendError,
        finest: int,
        at_last: bool,
    ) -> bytes | None:
        """A range that can't be read in one go, in two; None where nothing of it can be read. Cut at powers of two, so
        that no piece lies in two cells. It ends early where the shard is given up on the way."""
        media = self.figures.media
        if length <= finest:
            media.note(storage.location, key, offset, offset + length)
            return None
        if is_everywhere(error):
            return None
        half = 1 << (length - 1).bit_length() - 1
        pieces: list[bytes | None] = []
        for start, count in ((offset, half), (offset + half, length - half)):
            if media.gave_up(storage.location, key) and not at_last:
                pieces.append(None)
                continue
            found = self._try(storage, key, start, count)
            if isinstance(found, BackendError):
                pieces.append(self._around(storage, key, start, count, found, finest, at_last))
            else:
                pieces.append(found)
        first, second = pieces
        if first is None and second is None:
            return None
        return (bytes(half) if first is None else first) + (bytes(length - half) if second is None else second)

    def _between(
        self,
        storage: BackendStorage,
        key: str,
        offset: int,
        end: int,
        known: list[tuple[int, int]],
        finest: int,
        at_last: bool,
    ) -> bytes:
        """A range of which `known` parts can't be read. Raises BackendError where nothing of it can."""
        data, found = bytearray(end - offset), False
        for start, stop in zip(
            [offset, *(each for _, each in known)], [*(each for each, _ in known), end], strict=True
        ):
            if start < stop:
                try:
                    piece = self.read(storage, key, start, stop - start, finest, at_last=at_last)
                except BackendError:
                    continue
                data[start - offset : start - offset + len(piece)] = piece
                found = True
        if not found:
            raise BackendError(f"reading {storage.location}/{key}: nothing of {offset} to {end} can be read")
        return bytes(data)
