"""The tools that are measured, one class each: how to get it, its version, and its command for each work.

All run with their defaults, but for what makes them comparable: borg with zstd,3 and without encryption, restic without
a cache outside of its store. A tool without a command for a work returns None.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.bench.datasets import Missing
from tests.bench.measure import BenchError, Command, tree_bytes

MIB = 1 << 20


@dataclass(frozen=True)
class Site:
    """Where one tool works in one round: its store, where it restores to, and its caches. None exists beforehand."""

    store: Path
    back: Path
    cache: Path


class Tool:
    """A tool. `program`: its path. `runs`: a run is named by a label, a letter each."""

    name: ClassVar[str]
    get: ClassVar[str]
    #: Whether what was stored is on the disk, by fsync, when a command ends.
    syncs: ClassVar[bool] = False

    def __init__(self, program: str) -> None:
        self.program = program

    @classmethod
    def find(cls) -> Tool:
        """The tool beside this Python or on PATH. Raises Missing."""
        beside = Path(sys.executable).with_name(cls.name)
        program = str(beside) if beside.exists() else shutil.which(cls.name)
        if program is None:
            raise Missing(f"{cls.name}: {cls.get}")
        return cls(program)

    def version(self) -> str:
        return _first_line([self.program, "--version"])

    def create(self, site: Site) -> Command | None:
        """An empty store; not measured."""
        return None

    def ingest(self, site: Site, source: Path, label: str) -> Command:
        raise NotImplementedError

    def reread(self, site: Site, source: Path, label: str) -> Command | None:
        """Ingest once more what is stored already; all files are read."""
        return None

    def unchanged(self, site: Site, source: Path, label: str) -> Command | None:
        """Ingest once more what is stored already; what did not change is skipped."""
        return None

    def restore(self, site: Site, source: Path, label: str) -> Command:
        """`site.back` exists."""
        raise NotImplementedError

    def restored(self, site: Site, source: Path) -> Path:
        """Where `source` is after a restore."""
        raise NotImplementedError

    def verify(self, site: Site) -> Command | None:
        """Check all data."""
        return None

    def byte_range(self, site: Site, source: Path, label: str, first: int, last: int) -> Command | None:
        """The bytes `first` to `last` of the object `source` to standard output, by all that the tool has for it: most
        have to write out the whole object."""
        return None

    def bytes_read(self, site: Site, source: Path, first: int, last: int) -> int | None:
        """What the tool says that it reads of its store for `byte_range`."""
        return None

    def stored(self, site: Site) -> int:
        """Bytes of the store, without parity."""
        return tree_bytes(site.store)


class Drystone(Tool):
    name = "drystone"
    get = "pip install -e ."
    syncs = True

    def __init__(self, program: str, checkout: Path | None = None) -> None:
        """`checkout`: of this revision instead of the installed one, by the same Python."""
        super().__init__(program)
        self._call: list[str] = [program]
        self._environment: dict[str, str] = {}
        if checkout is not None:
            self._call = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()"]
            self._environment = {"PYTHONPATH": str(checkout)}
        said = subprocess.run(
            [*self._call, "ingest", "--help"],
            env={**os.environ, **self._environment}, capture_output=True, text=True, cwd="/",
        )  # fmt: skip
        if said.returncode:
            raise BenchError(f"{checkout or program}: drystone does not run: {said.stderr.strip()[-1000:]}")
        self.skips = "--force" in said.stdout

    def _command(self, site: Site, *arguments: str | Path) -> Command:
        return Command(
            [*self._call, "-s", site.store, *arguments], {"DRYSTONE_CACHE": str(site.cache), **self._environment}
        )

    def create(self, site: Site) -> Command:
        return Command([*self._call, "init", site.store], self._environment)

    def ingest(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "ingest", "-q", source)

    def stream(self, site: Site, feed: list[str]) -> Command:
        """Ingest what the command `feed` writes."""
        made = self._command(site, "ingest", "-q", "-", "--name", "stream")
        return Command(made.arguments, made.environment, feed=feed)

    def staged(self, site: Site, source: Path) -> Command:
        """Ingest, with the figures of the stages as JSON on standard output."""
        return self._command(site, "ingest", "--json", source)

    def reread(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "ingest", "-q", *(["--force"] if self.skips else []), source)

    def unchanged(self, site: Site, source: Path, label: str) -> Command | None:
        return self._command(site, "ingest", "-q", source) if self.skips else None

    def restore(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "restore", "-q", "--to", site.back)

    def restored(self, site: Site, source: Path) -> Path:
        return site.back / source.name

    def verify(self, site: Site) -> Command:
        return self._command(site, "verify", "--data", "-q")

    def byte_range(self, site: Site, source: Path, label: str, first: int, last: int) -> Command:
        return self._command(site, "cat", f"latest:{source.name}", "--range", f"{first}-{last}")

    def bytes_read(self, site: Site, source: Path, first: int, last: int) -> int:
        from pipeline.filestore import FileStore
        from pipeline.packreader import ReadFigures
        from stages.assemble import ByteRange

        figures = ReadFigures()
        with FileStore.open(site.store, cache=site.cache) as store:
            for _ in store.open_range(f"latest:{source.name}", ByteRange(first, last), figures):
                pass
        return figures.bytes

    def backends(self, site: Site) -> list[Path]:
        return sorted(path.parent for path in site.store.glob("*/backend.json"))

    def stored(self, site: Site) -> int:
        """All files of the data shards, and all else of one backend."""
        backends = self.backends(site)
        config = json.loads((backends[0] / "store.json").read_text().splitlines()[0])
        k = int(config["scheme"].partition("+")[0])
        shards = [path for each in backends for path in (each / "packs").glob("*/*")]
        data = sum(path.stat().st_size for path in shards if int(path.suffix[1:]) < k)
        packs = backends[0] / "packs"
        return data + tree_bytes(backends[0]) - (tree_bytes(packs) if packs.exists() else 0)


class Restic(Tool):
    name = "restic"
    get = "apt-get install restic"
    syncs = True

    def version(self) -> str:
        return _first_line([self.program, "version"])

    def _command(self, site: Site, *arguments: str | Path) -> Command:
        return Command([self.program, "-q", "--no-cache", "-r", site.store, *arguments], {"RESTIC_PASSWORD": "bench"})

    def create(self, site: Site) -> Command:
        return self._command(site, "init")

    def ingest(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "backup", source)

    def reread(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "backup", "--force", source)

    def unchanged(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "backup", source)

    def restore(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "restore", "latest", "--target", site.back)

    def restored(self, site: Site, source: Path) -> Path:
        return site.back / source.relative_to("/")

    def verify(self, site: Site) -> Command:
        return self._command(site, "check", "--read-data")

    def byte_range(self, site: Site, source: Path, label: str, first: int, last: int) -> Command:
        return self._command(site, "dump", "latest", source)


class Borg(Tool):
    name = "borg"
    get = (
        "pip install 'borgbackup>=1.4,<2', which needs apt-get install gcc python3-dev pkg-config libacl1-dev "
        "libssl-dev liblz4-dev libxxhash-dev libzstd-dev; or an older one by apt-get install borgbackup"
    )
    syncs = True

    def _command(self, site: Site, *arguments: str | Path, folder: Path | None = None) -> Command:
        environment = {
            "BORG_BASE_DIR": str(site.cache),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return Command([self.program, *arguments], environment, folder)

    def create(self, site: Site) -> Command:
        return self._command(site, "init", "-e", "none", site.store)

    def ingest(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "create", "-C", "zstd,3", f"{site.store}::{label}", source)

    def reread(self, site: Site, source: Path, label: str) -> Command:
        options = ["-C", "zstd,3", "--files-cache", "disabled"]
        return self._command(site, "create", *options, f"{site.store}::{label}", source)

    def unchanged(self, site: Site, source: Path, label: str) -> Command:
        return self.ingest(site, source, label)

    def restore(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "extract", f"{site.store}::{label}", folder=site.back)

    def restored(self, site: Site, source: Path) -> Path:
        return site.back / source.relative_to("/")

    def verify(self, site: Site) -> Command:
        return self._command(site, "check", "--verify-data", site.store)

    def byte_range(self, site: Site, source: Path, label: str, first: int, last: int) -> Command:
        return self._command(site, "extract", "--stdout", f"{site.store}::{label}", source.relative_to("/"))


class Casync(Tool):
    name = "casync"
    get = "apt-get install casync"

    def _index(self, site: Site, source: Path, label: str) -> Path:
        return site.store / f"{label}.{'caibx' if source.is_file() else 'caidx'}"

    def create(self, site: Site) -> Command:
        return Command(["mkdir", site.store])

    def ingest(self, site: Site, source: Path, label: str) -> Command:
        chunks = f"--store={site.store}/chunks.castr"
        return Command([self.program, "make", chunks, self._index(site, source, label), source])

    def reread(self, site: Site, source: Path, label: str) -> Command:
        return self.ingest(site, source, label)

    def restore(self, site: Site, source: Path, label: str) -> Command:
        chunks = f"--store={site.store}/chunks.castr"
        return Command([self.program, "extract", chunks, self._index(site, source, label), self.restored(site, source)])

    def restored(self, site: Site, source: Path) -> Path:
        return site.back / source.name


class Zpaq(Tool):
    name = "zpaq"
    get = "apt-get install zpaq"

    def version(self) -> str:
        return _first_line([self.program])

    def _command(self, site: Site, *arguments: str | Path) -> Command:
        return Command([self.program, arguments[0], site.store / "a.zpaq", *arguments[1:]])

    def create(self, site: Site) -> Command:
        return Command(["mkdir", site.store])

    def ingest(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "add", source, "-m1")

    def reread(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "add", source, "-m1", "-force")

    def unchanged(self, site: Site, source: Path, label: str) -> Command:
        return self.ingest(site, source, label)

    def restore(self, site: Site, source: Path, label: str) -> Command:
        return self._command(site, "extract", source, "-to", self.restored(site, source))

    def restored(self, site: Site, source: Path) -> Path:
        return site.back / source.name

    def verify(self, site: Site) -> Command:
        return self._command(site, "extract", "-test")


class TarZstd(Tool):
    """No store: one file for each run, nothing is kept once, nothing is checked but the archive."""

    name = "tar+zstd"
    get = "apt-get install tar zstd"

    @classmethod
    def find(cls) -> Tool:
        if shutil.which("tar") is None or shutil.which("zstd") is None:
            raise Missing(f"{cls.name}: {cls.get}")
        return cls("tar")

    def version(self) -> str:
        return f"{_first_line(['tar', '--version'])}, {_first_line(['zstd', '--version'])}, zstd -3 -T0"

    def _pipe(self, *parts: list[str | Path]) -> Command:
        return Command(["bash", "-o", "pipefail", "-c", " | ".join(shlex.join(map(str, part)) for part in parts)])

    def create(self, site: Site) -> Command:
        return Command(["mkdir", site.store])

    def ingest(self, site: Site, source: Path, label: str) -> Command:
        return self._pipe(
            ["tar", "cf", "-", "-C", source.parent, source.name],
            ["zstd", "-q", "-3", "-T0", "-o", site.store / f"{label}.tar.zst"],
        )

    def restore(self, site: Site, source: Path, label: str) -> Command:
        return self._pipe(["zstd", "-dcq", site.store / f"{label}.tar.zst"], ["tar", "xf", "-", "-C", site.back])

    def restored(self, site: Site, source: Path) -> Path:
        return site.back / source.name

    def verify(self, site: Site) -> Command:
        return Command(["bash", "-c", f"zstd -tq {shlex.quote(str(site.store))}/*.tar.zst"])

    def byte_range(self, site: Site, source: Path, label: str, first: int, last: int) -> Command:
        return self._pipe(["zstd", "-dcq", site.store / f"{label}.tar.zst"], ["tar", "xOf", "-"])


def _first_line(command: list[str]) -> str:
    """What a program prints first, which is its version."""
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().partition("\n")[0].strip("* ")


#: By name, in the order in which they take turns.
TOOLS: dict[str, type[Tool]] = {tool.name: tool for tool in (Drystone, Restic, Borg, Casync, Zpaq, TarZstd)}
