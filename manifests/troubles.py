"""Troubles of several backends in one line."""

from __future__ import annotations

from collections.abc import Iterable


def together(reasons: Iterable[str]) -> str:
    """Why backends failed, `WHAT: CAUSE` each, as one text: the first of each cause, and how many more."""
    by_cause: dict[str, list[str]] = {}
    for reason in reasons:
        by_cause.setdefault(reason.rpartition(": ")[2], []).append(reason)
    return "; ".join(
        first + (f", and likewise on {len(others)} more" if others else "") for first, *others in by_cause.values()
    )
