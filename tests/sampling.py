"""Long lists of parameters: all of them are tried by `make soak`, some by `make test`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(step: int, values: Iterable[Any], *, several: bool = False) -> list[Any]:
    """Parameters of which each `step`-th, the first among them, is in `make test`, too. `several`: each is a tuple of
    several parameters."""
    return [
        pytest.param(*(value if several else (value,)), marks=[pytest.mark.soak] if number % step else [])
        for number, value in enumerate(values)
    ]
