"""Which process a trace in a store belongs to, and whether it is surely gone.

Only a process of this machine can be looked at, and a host's name alone does not make a machine: containers and clones
share names. What can't be told for sure counts as alive.

On the same boot, which the kernel gives an id that no other has, a process is looked up by number and start time, also
where one of the two users can't read the machine's id. A mark of another boot is one of this machine before it was
started anew, or one of another machine that looks the same and is at work: containers of one image share the host's
name and the id in `/etc/machine-id`, wherever they run. So that id counts only outside of containers, where it is the
machine's own (machine-id(5) asks for that of clones, too).
In a container nothing is told of other boots.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from manifests.config import text, whole_number

#: The namespaces of processes and host names that a machine has from its start: who is in them is in no container. The
#: kernel gives them fixed numbers (PROC_PID_INIT_INO and PROC_UTS_INIT_INO).
_FIRST = {"pid": "pid:[4026531836]", "uts": "uts:[4026531838]"}


#: Files with the machine's id, the same in each that is there. One that this user can't read is passed over.
MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


def boot_id() -> str:
    """Which start of the machine this is, as the kernel names it; empty where it does not tell."""
    return _first_line("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessMark:
    """A process. `machine` and `boot`: ids of the machine and of its start; `namespace`: in which `pid` counts;
    `started`: in clock ticks since the start of the machine. Empty or 0 where the system does not tell; `machine` also
    in a container."""

    host: str
    pid: int
    machine: str = ""
    boot: str = ""
    namespace: str = ""
    started: int = 0

    @classmethod
    def here(cls) -> ProcessMark:
        """This process."""
        # A machine id is not for everybody's eyes, its digest is.
        in_container = any(_namespace(kind) != first for kind, first in _FIRST.items())
        machine = "" if in_container else next(filter(None, map(_first_line, MACHINE_IDS)), "")
        digest = blake3(b"drystone machine\0" + machine.encode()).hexdigest()[:16] if machine else ""
        pid = os.getpid()
        _, started = _look(pid)
        return cls(socket.gethostname(), pid, digest, boot_id(), _namespace("pid"), started)

    def to_record(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ProcessMark:
        """Raises KeyError, TypeError on nonsense."""
        machine, boot, namespace = (str(record.get(name, "")) for name in ("machine", "boot", "namespace"))
        started = whole_number(record.get("started", 0))
        return cls(text(record["host"]), whole_number(record["pid"]), machine, boot, namespace, started)

    def is_gone(self) -> bool | None:
        """Whether it is gone: on this boot there is no such process, or another one that has its number now; or it is
        of an earlier boot of this very machine, which no container can tell. None where that can't be told from here:
        it may be alive, and only somebody who knows that it has ended may clear its traces away."""
        me = ProcessMark.here()
        if self.host != me.host or not (self.boot and me.boot):
            return None
        if self.machine != me.machine and (self.boot != me.boot or (self.machine and me.machine)):
            return None
        if self.boot != me.boot:
            return True if self.machine and self.namespace == me.namespace == _FIRST["pid"] else None
        if self.namespace != me.namespace or not (self.namespace and self.started and 0 < self.pid < 1 << 31):
            return None
        alive, started = _look(self.pid)
        return not alive or started not in (0, self.started)


def _namespace(kind: str) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/ns/{kind}")
    return ""


def _first_line(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _look(pid: int) -> tuple[bool, int]:
    """Whether a process lives, and when it was started, 0 where that can't be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
        return state not in (b"Z", b"X"), int(fields[18])
    except (OSError, ValueError, IndexError):
        pass  # hidden, perhaps: others' processes may be
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False, 0
    except OSError:
        return True, 0
    return True, 0
