"""Errors of the stages.

DrystoneError
└── StageError            input to a stage that makes no sense
    ├── DamagedBlock      a block does not decompress to what its record says
    ├── DamagedPack       a pack directory that can't be parsed
    ├── DamagedShard      a shard file's record or tables can't be parsed
    └── TooFewPieces      fewer than k pieces to decode from
"""

from __future__ import annotations

from manifests.errors import DrystoneError


class StageError(DrystoneError):
    """Input to a stage makes no sense."""


class DamagedBlock(StageError):
    """A block does not decompress to what its record says."""


class DamagedPack(StageError):
    """A pack directory can't be parsed."""


class DamagedShard(StageError):
    """A shard file's record or tables can't be parsed."""


class TooFewPieces(StageError):
    """Fewer than k pieces of a row are left."""
