"""One tree of errors: each is a DrystoneError, stands in the tree of its file, and is raised somewhere by a test."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from manifests import errors as manifests_errors
from manifests.errors import DrystoneError
from pipeline import errors as pipeline_errors
from pipeline.errors import Interrupted, WorkerDied
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from stages import errors as stages_errors
from tests.conftest import name_of, workers

MODULES = (manifests_errors, stages_errors, pipeline_errors)


def errors_of(module: ModuleType) -> list[type[DrystoneError]]:
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, DrystoneError)]
    return [error for error in found if error.__module__ == module.__name__]


@pytest.mark.parametrize("module", MODULES)
def test_the_tree_in_the_docstring_is_that_of_the_classes(module: ModuleType) -> None:
    ancestors: list[tuple[int, str]] = []
    shown: dict[str, str] = {}
    for line in (module.__doc__ or "").splitlines():
        if match := re.match(r"^([\s│├└─]*)([A-Z]\w+)(?:\s{2,}|$)", line):
            depth = len(match[1])
            ancestors = [each for each in ancestors if each[0] < depth]
            if ancestors:
                shown[match[2]] = ancestors[-1][1]
            ancestors.append((depth, match[2]))
    made = {error.__name__: error.__bases__[0].__name__ for error in errors_of(module) if error is not DrystoneError}
    assert shown == made


def test_each_error_is_met_by_a_test() -> None:
    text = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    expected = re.findall(r"(?:pytest\.raises|isinstance)\(([^)]*)", text) + re.findall(r"except ([^:]*):", text)
    met = {word for group in expected for word in re.findall(r"\w+", group)}
    unmet = [error.__name__ for module in MODULES for error in errors_of(module) if error.__name__ not in met]
    assert not unmet


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill_a_worker() -> None:
    """The reader, which waits for the pipe: others may have ended by themselves."""
    while not (readers := [pid for pid in workers() if name_of(pid) == "dry-read-0"]):
        time.sleep(0.01)
    os.kill(readers[0], signal.SIGKILL)


@pytest.mark.parametrize(("blow", "error"), [(stop_myself, Interrupted), (kill_a_worker, WorkerDied)])
def test_a_program_hears_how_a_run_was_ended(
    make_store: Callable[..., FileStore], blow: Callable[[], None], error: type[DrystoneError]
) -> None:
    """While a run waits for a pipe that gives nothing more, it is struck once."""
    store, struck = make_store(), list[bool]()

    def strike(_: object) -> None:
        if not struck:
            struck.append(True)
            blow()

    taken, given = os.pipe()
    try:
        os.write(given, b"the beginning")
        with pytest.raises((Interrupted, WorkerDied)) as caught:
            store.ingest(["-"], name="stream", options=IngestOptions(workers=1, stream=taken), on_tick=strike)
    finally:
        os.close(taken)
        os.close(given)
    assert type(caught.value) is error and store.runs() == []
