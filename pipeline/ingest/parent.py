"""What a run need not read again: its parent is chosen, and what that knows of files is put where readers look it up.

Only what the dedupe index vouches for goes in: home asks the dedupe station for all chunks of each file, before the
first file is read. So a chunk that is lost, or about to go, is read and stored again.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from manifests import format as fmt
from manifests.choice import find_run
from manifests.columns import Batch
from manifests.errors import UsageError
from manifests.log import Run, State
from manifests.parent import CANDIDATE_ROWS, ContentSet, Ids, ParentFiles
from manifests.recorded import log_text
from pipeline import messages
from pipeline.arena import Message
from pipeline.station import Acquire, Context, Steps, Until
from stages.parent import Comparison, ParentWriter
from stages.scan import Source

#: Ids in one question to the dedupe station; the answers fit into its verdict slots (topology.py).
ASKED = CANDIDATE_ROWS
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ParentOptions:
    """`run`: a run to be the parent, empty for the latest of the same host and sources; `force`: read everything;
    `comparison`: what must be equal for a file to be passed over."""

    run: str = ""
    force: bool = False
    comparison: Comparison = field(default_factory=Comparison)


def choose_parent(
    state: State, options: ParentOptions, host: str, sources: tuple[Source, ...], listed: bool
) -> Run | None:
    """The run whose files need not be read again where they are unchanged; None where there is none. A run that ignored
    more than this one does is none: its rows vouch for less. Raises NotFound, UsageError."""
    if options.force:
        if options.run:
            raise UsageError("--force reads everything, so --parent has no use with it: give one of them")
        return None
    ignored = set(options.comparison.ignored)
    if options.run:
        run = find_run(state.runs, options.run)
        more = set(run.summary.get("ignored", ())) - ignored
        if more:
            flags = " and ".join(f"--ignore-{name}" for name in sorted(more))
            raise UsageError(f"run {run.short} was made with {flags}: give that, too, or choose another parent")
        return run
    if all(source.stream for source in sources):
        return None
    wanted = sorted((log_text(source.path), log_text(source.name)) for source in sources)
    for run in reversed(state.runs):
        summary = run.summary
        if (
            summary.get("host") == host
            and sorted(zip(summary.get("sources", ()), summary.get("names", ()), strict=False)) == wanted
            and bool(summary.get("listed")) == listed
            and ignored.issuperset(summary.get("ignored", ()))
        ):
            return run
    return None


class ParentBuilder:
    """Fills the file of a ParentTable while the workers start. Owned by home: `steps` runs in the station that knows
    the ids, `answer` in the one that takes what comes from dedupe."""

    def __init__(self, files: ParentFiles, file: BinaryIO, readers: int) -> None:
        self._files = files
        self.file = file
        self._readers = readers
        self._writer = ParentWriter(file)
        self._open: deque[Callable[[Mask], None]] = deque()

    @classmethod
    @contextmanager
    def opened(cls, files: ParentFiles, readers: int) -> Iterator[ParentBuilder]:
        """With an unnamed file, which goes at the end."""
        with tempfile.TemporaryFile(prefix="drystone-parent-") as file:
            yield cls(files, file, readers)

    def answer(self, known: Mask) -> None:
        """Which of the ids of the oldest open question are known."""
        self._open.popleft()(known)

    def ask(self, context: Context) -> Steps:
        """Ask for the chunks of all candidates. The dedupe station must know all ids by now."""
        contents = ContentSet(self._files.contents())
        seen, lacking = np.zeros(len(contents), bool), np.zeros(len(contents), bool)
        for numbers, ids in self._files.extents(contents):
            seen[numbers] = True
            yield from self._ask(context, ids, _Note(lacking, numbers))
        yield Until(lambda: not self._open)
        for batch in self._files.candidates():
            kinds = batch.rows["content_kind"]
            usable = kinds == fmt.CONTENT_NONE
            in_extents = np.flatnonzero(kinds == fmt.CONTENT_EXTENTS)
            numbers = contents.find(batch.rows["content_id"][in_extents])
            usable[in_extents] = (numbers >= 0) & seen[numbers] & ~lacking[numbers] if len(contents) else False
            single = np.flatnonzero(kinds == fmt.CONTENT_CHUNK)
            write = _Write(self._writer, batch, usable, single)
            if len(single):
                yield from self._ask(context, batch.rows["content_id"][single], write)
            else:
                write(np.zeros(0, bool))

    def finish(self, context: Context) -> Steps:
        """Wait for the last answer and let the readers begin."""
        yield Until(lambda: not self._open)
        self._writer.finish()
        for reader in range(self._readers):
            context.send(f"parent/{reader}", Message(messages.PARENT))

    def _ask(self, context: Context, ids: Ids, then: Callable[[Mask], None]) -> Steps:
        slot = yield Acquire("known")
        with context.slot("known", slot) as view:
            view[: ids.nbytes] = ids.tobytes()
        context.seal("known", slot)
        self._open.append(then)
        context.send("known", Message(messages.WANTED, slot, amount=len(ids)))


@dataclass(frozen=True)
class _Note:
    """Note which contents, of those `numbers` whose chunks were asked for, lack one."""

    lacking: Mask
    numbers: npt.NDArray[np.int64]

    def __call__(self, known: Mask) -> None:
        self.lacking[self.numbers[~known]] = True


@dataclass(frozen=True)
class _Write:
    """Write of a batch what is usable: by what is known of its rows `single`, and what was known before."""

    writer: ParentWriter
    batch: Batch
    usable: Mask
    single: npt.NDArray[np.int64]

    def __call__(self, known: Mask) -> None:
        self.usable[self.single] = known
        self.writer.add(Batch(self.batch.rows[self.usable], self.batch.heap))
