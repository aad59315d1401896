"""Who may use a store: its owner, unless it is shared.

The mode and the group of each backend's own directory say so, and nothing else. All that is made in it later is as open
as that, whoever makes it and whatever the umask. The directories of a store that is shared on purpose hand on their
group; so one that is open without that is open by accident.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import UsageError


@dataclass(frozen=True)
class Access:
    """Who may use a backend. `mode`: of its directories; of its files likewise, without x; `group`: number of the group
    that they belong to, None for the one that the system gives them."""

    mode: int = 0o700
    group: int | None = None


#: What a backend is unless it is shared.
PRIVATE = Access()
#: What members of a group may do unless it is said: read.
GROUP_MODE = 0o750


def shared(mode: str = "", group: str = "") -> Access:
    """The access that is wished for: `mode` in octal, `group` by name or number; both empty for nobody else's. Raises
    UsageError.

    >>> oct(shared("0750").mode), oct(shared().mode)
    ('0o2750', '0o700')
    """
    number = _group_number(group) if group else None
    if not mode:
        return PRIVATE if number is None else Access(GROUP_MODE | stat.S_ISGID, number)
    if not re.fullmatch("0?[0-7]{3}", mode):
        raise UsageError(f"{mode!r} is no mode of a directory; write it in octal, as in 0750")
    bits = int(mode, 8)
    if bits & 0o700 != 0o700:
        raise UsageError(f"mode {mode}: the owner of a store needs all rights, as in 0700 and 0750")
    for others in (bits >> 3 & 7, bits & 7):
        if others not in (0, 5, 7):
            raise UsageError(f"mode {mode}: others may read (5), read and write (7), or nothing (0)")
    return Access(bits | (stat.S_ISGID if bits & 0o077 else 0), number)


def _group_number(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise UsageError(f"no group {name!r} on this machine") from None


def unmeant_readers(directory: str) -> tuple[str, str]:
    """Who besides the owner can read a directory without having been chosen, by its mode and that of the directories
    above it: `everybody` or `group NAME`, and what chmod takes to end that; both empty for nobody. Raises OSError."""
    found = os.stat(directory)
    above = [os.stat(place).st_mode for place in Path(os.path.realpath(directory)).parents]
    chosen = bool(found.st_mode & stat.S_ISGID)
    if found.st_mode & 0o005 and all(mode & 0o001 for mode in above):
        return "everybody", "o=" if chosen else "go="
    group = _name_of_group(found.st_gid)
    own = group == _name_of_user(found.st_uid)  # many users have a group to themselves, with their name
    if found.st_mode & 0o050 and all(mode & 0o011 for mode in above) and not (chosen or own):
        return f"group {group}", "go="
    return "", ""


def _name_of_group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _name_of_user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def make_private(directory: Path) -> None:
    """Make a directory of the user's own, as a cache, with those above it; one that is there and open is closed. Raises
    OSError."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    for place in reversed(missing):
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            continue  # somebody else made it meanwhile
        os.chmod(place, 0o700)
    found = os.stat(directory)
    if found.st_mode & 0o077 and found.st_uid == os.geteuid():
        os.chmod(directory, 0o700)
