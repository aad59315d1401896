"""The examples in docstrings give what they show."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from importlib import import_module

import pytest

from manifests.memory import PLACES


@pytest.fixture(autouse=True)
def memory_places() -> Iterator[None]:
    before = set(PLACES)
    yield
    for location in set(PLACES) - before:
        del PLACES[location]


@pytest.mark.parametrize(
    "module",
    [
        "manifests.storage",
        "manifests.config",
        "manifests.backends",
        "pipeline.ecgroup",
        "pipeline.backend",
        "pipeline.objects.refs",
        "pipeline.protocol",
    ],
)
def test_examples_give_what_they_show(module: str) -> None:
    found = doctest.testmod(import_module(module))
    assert found.attempted and not found.failed
