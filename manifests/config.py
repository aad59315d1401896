"""What a store is made with, once and for ever: the content of store.json."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from manifests import format as fmt
from manifests.errors import CorruptRecord, UnsupportedFormat, UsageError
from manifests.sizes import format_size, parse_size

#: Kinds of dedupe indexes (manifests/index.py).
INDEX_KINDS = ("memory", "disk")
DEFAULT_INDEX = "memory"


def require_index_kind(kind: str) -> None:
    """Raises UsageError where there is no such kind of index."""
    if kind not in INDEX_KINDS:
        raise UsageError(f"no index of kind {kind!r}; there are {' and '.join(INDEX_KINDS)}")


@dataclass(frozen=True)
class ECScheme:
    """k data and m parity shards a pack; any m may be lost.

    >>> scheme = ECScheme.parse("4+2")
    >>> scheme.fault_tolerance, scheme.overhead, scheme.min_backends
    (2, 1.5, 6)
    """

    k: int = 4
    m: int = 2

    def __post_init__(self) -> None:
        if self.k < 1 or self.m < 0 or self.k + self.m > fmt.SHARDS_MAX:
            raise UsageError(
                f"scheme {self.k}+{self.m}: at least 1 data shard, and at most {fmt.SHARDS_MAX} shards in all"
            )

    @classmethod
    def parse(cls, text: str) -> ECScheme:
        """`4+2` → 4 data and 2 parity shards; the empty string is the default, 4+2."""
        if not text:
            return cls()
        match = re.fullmatch(r"(\d{1,4})\+(\d{1,4})", text)
        if match is None:
            raise UsageError(f"{text!r} is not a scheme; write data+parity, as in 4+2")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"

    @property
    def total_shards(self) -> int:
        return self.k + self.m

    @property
    def overhead(self) -> float:
        """Bytes on disk for a byte of payload: 1.5 for 4+2."""
        return self.total_shards / self.k

    @property
    def fault_tolerance(self) -> int:
        """Shards of a pack that may be lost, and backends where each holds one."""
        return self.m

    @property
    def min_backends(self) -> int:
        """Backends from which on no backend holds two shards of a pack."""
        return self.total_shards

    def shard_length(self, payload: int) -> int:
        """Bytes of each shard of a pack of `payload` bytes: ceil(payload / k) rounded up to 64. This is the rule."""
        each = -(-payload // self.k)
        return -(-each // fmt.SHARD_ALIGN) * fmt.SHARD_ALIGN


def shards_per_backend(scheme: ECScheme, backends: int) -> int:
    """Shards of a pack that one backend holds at most, and that go with it when it is lost."""
    return -(-scheme.total_shards // backends)


def survives_another_loss(scheme: ECScheme, backends: int, held: Sequence[int]) -> bool:
    """Whether a pack, of whose shards each backend holds so many as `held` says, survives the loss of one more of the
    `backends` that the store puts shards on. Where losing one takes more shards than there is parity, there was nothing
    to spare from the start, and k shards are enough. This is the rule for what may be committed."""
    spare = max(held, default=0) if scheme.m >= shards_per_backend(scheme, backends) else 0
    return sum(held) - spare >= scheme.k


@dataclass(frozen=True)
class ChunkerSpec:
    """How streams are cut. `algorithm` fastcdc: `size` is the average; fixed: the length of every piece. In bytes.

    >>> spec = ChunkerSpec.parse("fastcdc:64KiB")
    >>> spec.minimum, spec.maximum
    (16384, 262144)
    """

    algorithm: str = "fastcdc"
    size: int = 128 << 10

    def __post_init__(self) -> None:
        if self.algorithm not in ("fastcdc", "fixed"):
            raise UsageError(f"chunker {self.algorithm!r} is not known; there are fastcdc and fixed")
        low, high = (256, fmt.CHUNK_MAX // 4) if self.algorithm == "fastcdc" else (64, fmt.CHUNK_MAX)
        if not low <= self.size <= high:
            raise UsageError(f"chunker size {self.size}: {self.algorithm} takes {low} to {high} bytes")

    @classmethod
    def parse(cls, text: str) -> ChunkerSpec:
        """`fastcdc:128KiB` or `fixed:4MiB`."""
        algorithm, colon, size = text.partition(":")
        return cls(algorithm, parse_size(size)) if colon else cls(algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.size}"

    def describe(self) -> str:
        """The same for people: `fastcdc:128KiB`."""
        return f"{self.algorithm}:{format_size(self.size).replace('.0 ', '').replace(' ', '')}"

    @property
    def minimum(self) -> int:
        """Files shorter than this are one chunk, uncut."""
        return self.size // 4 if self.algorithm == "fastcdc" else self.size

    @property
    def maximum(self) -> int:
        return self.size * 4 if self.algorithm == "fastcdc" else self.size


@dataclass(frozen=True)
class CodecSpec:
    """A compression codec: none, lz4 or zstd with its level (1 to 22).

    >>> CodecSpec.parse("zstd:19"), str(CodecSpec.parse("lz4"))
    (CodecSpec(name='zstd', level=19), 'lz4')
    """

    name: str = "zstd"
    level: int = 3

    def __post_init__(self) -> None:
        if self.name not in ("none", "lz4", "zstd"):
            raise UsageError(f"codec {self.name!r} is not known; there are none, lz4 and zstd:LEVEL")
        if self.name == "zstd" and not 1 <= self.level <= 22:
            raise UsageError(f"zstd level {self.level}: 1 to 22")

    @classmethod
    def parse(cls, text: str) -> CodecSpec:
        """`none`, `lz4`, `zstd` or `zstd:LEVEL`."""
        name, colon, level = text.partition(":")
        if colon and (name != "zstd" or not re.fullmatch(r"[0-9]{1,3}", level)):
            raise UsageError(f"{text!r} is not a codec; write none, lz4 or zstd:LEVEL")
        return cls(name, int(level) if colon else 3)

    def __str__(self) -> str:
        return f"zstd:{self.level}" if self.name == "zstd" else self.name


#: Seeds that the chunker takes.
SEEDS = 1 << 63


def whole_number(value: Any) -> int:
    """A JSON number that is an integer. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def truth(value: Any) -> bool:
    """A JSON truth value. Raises TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def text(value: Any) -> str:
    """A JSON string that is not empty. Raises TypeError."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is not a text")
    return value


@dataclass(frozen=True)
class StoreConfig:
    """Immutable settings of a store. `pack_size` is the payload after which a pack is sealed, in bytes; `seed` turns
    the chunker's table, so that chunk lengths tell nothing across stores; `etags`: objects that are put get an MD5,
    which runs at 780 MB/s, unless the put says otherwise; `origins`: the stores that this one is a copy of, which its
    older shards name.

    >>> config = StoreConfig(uuid.UUID(int=1), seed=7, scheme=ECScheme(2, 1))
    >>> config.scheme.overhead, str(config.codec), config.pack_size >> 20
    (1.5, 'zstd:3', 32)
    """

    store_id: uuid.UUID
    seed: int
    scheme: ECScheme = ECScheme()
    chunker: ChunkerSpec = ChunkerSpec()
    codec: CodecSpec = CodecSpec()
    pack_size: int = 32 << 20
    etags: bool = True
    origins: tuple[uuid.UUID, ...] = ()
    incompat: int = 0
    ro_compat: int = 0
    compat: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed {self.seed}: 0 to {SEEDS - 1}")
        if not 64 << 10 <= self.pack_size <= 1 << 30:
            raise UsageError(f"pack size {self.pack_size}: 64 KiB to 1 GiB")

    @property
    def shard_stores(self) -> frozenset[uuid.UUID]:
        """The ids that its shards may name as their store."""
        return frozenset({self.store_id, *self.origins})

    def copied_as(self, store_id: uuid.UUID) -> StoreConfig:
        """The settings of a copy that gets an id of its own."""
        origins = (*self.origins, self.store_id)
        return replace(self, store_id=store_id, origins=origins, incompat=self.incompat | fmt.INCOMPAT_ORIGINS)

    @property
    def read_only(self) -> bool:
        """Whether a newer version made the store in a way that this one may read but not write."""
        return bool(self.ro_compat & ~fmt.RO_COMPAT_KNOWN)

    def with_codec(self, codec: CodecSpec | None) -> StoreConfig:
        return self if codec is None else replace(self, codec=codec)

    def to_record(self) -> dict[str, Any]:
        return {
            "format": fmt.FORMAT_NAME,
            "type": "store",
            "flags": {"incompat": self.incompat, "ro_compat": self.ro_compat, "compat": self.compat},
            "store_id": str(self.store_id),
            "seed": self.seed,
            "scheme": str(self.scheme),
            "chunker": str(self.chunker),
            "codec": str(self.codec),
            "pack_size": self.pack_size,
            **({} if self.etags else {"etags": False}),
            **({"origins": [str(each) for each in self.origins]} if self.origins else {}),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], where: str) -> StoreConfig:
        """Read store.json's record. Raises UnsupportedFormat on an unknown incompat flag, CorruptRecord on nonsense."""
        try:
            if record["format"] != fmt.FORMAT_NAME or record["type"] != "store":
                raise CorruptRecord(f"{where}: not a store record")
            flags = record["flags"]
            unknown = whole_number(flags["incompat"]) & ~fmt.INCOMPAT_KNOWN
            if unknown:
                raise UnsupportedFormat(
                    f"{where}: the store uses a feature unknown to this version "
                    f"(incompat flag {unknown:#x}); use a newer drystone"
                )
            return cls(
                store_id=uuid.UUID(text(record["store_id"])),
                seed=whole_number(record["seed"]),
                scheme=ECScheme.parse(text(record["scheme"])),
                chunker=ChunkerSpec.parse(text(record["chunker"])),
                codec=CodecSpec.parse(text(record["codec"])),
                pack_size=whole_number(record["pack_size"]),
                etags=truth(record.get("etags", True)),
                origins=tuple(uuid.UUID(text(each)) for each in record.get("origins", ())),
                incompat=whole_number(flags["incompat"]),
                ro_compat=whole_number(flags["ro_compat"]),
                compat=whole_number(flags["compat"]),
            )
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise CorruptRecord(f"{where}: the store record makes no sense: {error!r}") from error
