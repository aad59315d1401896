"""Owners by number and by name: an archive records both, and a restore goes by the names that this machine knows."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Iterable
from functools import cache
from typing import Any


@cache
def user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


@cache
def group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def _local_number(what: str, name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid if what == "uid" else grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def renumbered(owners: Iterable[dict[str, Any]]) -> list[tuple[str, int, str, int]]:
    """Of owners as RestorePlan.owners gives them, those whose name has another number on this machine, with it."""
    found = []
    for owner in owners:
        what, number, name = owner["what"], owner["number"], owner["name"]
        local = None if name is None else _local_number(what, name)
        if local is not None and local != number:
            found.append((what, number, name, local))
    return found
