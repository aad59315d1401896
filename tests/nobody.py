"""A process of a user who owns nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def as_nobody(below: Path, ask: Callable[[], int]) -> int:
    """What a process of another user finds, who may enter the directories above the test's."""
    above = [place for place in (below, *below.parents) if not place.stat().st_mode & 0o001]
    for place in above:
        place.chmod(place.stat().st_mode | 0o001)
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os._exit(ask())
        except BaseException:
            os._exit(255)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for place in above:
        place.chmod(place.stat().st_mode & ~0o001)
    return code
