"""How many readers and writers a compressor needs, from what the last like run saw.

Each stage's busy time, summed over its workers, is what it would cost one worker. So where a run is bounded by the
cores, workers in the proportion of these times are all busy, and no stage holds up the others. How many there are of
each kind matters on many cores only: there is at least one of each.
"""

from __future__ import annotations

from collections.abc import Sequence

from manifests.log import Run
from pipeline.topology import Mix

#: Below so many seconds of compression a run says little.
_ENOUGH = 1.0


def observed_mix(runs: Sequence[Run], host: str, codec: str) -> Mix | None:
    """What the latest run of this host with this codec saw; None where there is none that tells."""
    for run in reversed(runs):
        busy = run.summary.get("busy")
        if busy and run.summary.get("host") == host and run.summary.get("compression") == codec:
            compressing = busy["compress"]
            if compressing < _ENOUGH:
                continue
            reading, writing = busy["read"] + busy["chunk"], busy["encode"] + busy["write"]
            return Mix(reading / compressing, writing / compressing)
    return None
