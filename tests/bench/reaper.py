"""Runs one command as the reaper of all that it starts, so that no process's time or memory goes uncounted.

    python -I reaper.py REPORT SECONDS COMMAND [ARGUMENT…]

The kernel adds the CPU time of a process to that of whoever waits for it. Processes that outlive their parent, as a
fork server may, go to init, and their time with them; here they come to this process, the subreaper of its descendants,
which waits for every one of them. Sampling costs CPU itself: with SECONDS above 0 the tree's memory is looked at that
often, and the times of such a run are not to be used; with 0 nothing runs beside the command.

REPORT gets one JSON object: `code`, `wall` (until the command itself ended), `user` and `system` (of all processes),
`pss` (bytes, the most that was seen of the whole tree at one time; null when not sampled) and `left` (processes that
did not end within LINGER seconds after the command; they are killed).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time

LINGER = 30.0
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """From now on descendants without a parent become children of this process. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"becoming a subreaper failed: {os.strerror(number)}")


def descendants(root: int) -> list[int]:
    """Ids of all processes below `root`, without it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name in parentheses may hold anything; the parent is the second field behind it.
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(name))
    found, queue = list[int](), [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def pss(pid: int) -> int:
    """Proportional set size in bytes: a page that n processes share counts 1/n for each. 0 where the process ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def tree_pss(root: int) -> int:
    """Of all processes below `root` together, in bytes.

    They are looked at one after the other, and meanwhile pages may become shared: whoever had its turn counted them
    whole, and who comes later counts a part of them again. There and back the error has opposite signs, so that the
    smaller sum holds no page twice."""
    found = descendants(root)
    return min(sum(map(pss, found)), sum(map(pss, reversed(found))))


def watch(pid: int, seconds: float) -> int | None:
    """Wait until a child ended, without reaping it. Returns the peak of the tree's memory, if `seconds` is above 0."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not seconds:
            poll.poll()
            return None
        peak = 0
        while True:
            peak = max(peak, tree_pss(os.getpid()))
            if poll.poll(seconds * 1000):
                return peak
    finally:
        os.close(pidfd)


def reap_all() -> tuple[float, float, int]:
    """Wait for all children that are left, also for those that come to us meanwhile: their user and system seconds, and
    how many had to be killed."""
    user = system = 0.0
    killed = 0
    deadline = time.monotonic() + LINGER
    while True:
        try:
            pid, _, used = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return user, system, killed
        if pid:
            user, system = user + used.ru_utime, system + used.ru_stime
            continue
        if time.monotonic() > deadline:
            left = descendants(os.getpid())
            killed += len(left)
            for each in left:
                os.kill(each, signal.SIGKILL)
            deadline += LINGER
        time.sleep(0.002)  # a descendant's end wakes nobody before it is our child


def run(command: list[str], seconds: float) -> dict[str, object]:
    """Run a command and account for its tree."""
    become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides; its time is reported all the same
    started = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGINT, signal.SIGPIPE])
    peak = watch(pid, seconds)
    wall = time.perf_counter() - started
    _, status, used = os.wait4(pid, 0)
    user, system, left = reap_all()
    return {
        "code": os.waitstatus_to_exitcode(status),
        "wall": wall,
        "user": used.ru_utime + user,
        "system": used.ru_stime + system,
        "pss": peak,
        "left": left,
    }


if __name__ == "__main__":
    outcome = run(sys.argv[3:], float(sys.argv[2]))
    with open(sys.argv[1], "w") as report:
        json.dump(outcome, report)
