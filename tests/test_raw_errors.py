"""What the system says is told in words: no message holds Python's own `[Errno 20] Not a directory: '…'`."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from manifests.oserrors import in_words

SOURCES = [
    path
    for package in ("manifests", "stages", "pipeline")
    for path in sorted((Path(pipeline.__file__).parents[1] / package).rglob("*.py"))
]


def test_an_error_of_the_system_in_words(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        (tmp_path / "nothing").read_bytes()
    assert in_words(raised.value) == f"{tmp_path}/nothing: No such file or directory"
    assert in_words(OSError("timed out")) == "timed out"
    assert in_words(TimeoutError()) == "TimeoutError"


def is_of_the_system(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches OSErrors."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    kinds = [getattr(builtins, each.id, None) for each in caught if isinstance(each, ast.Name)]
    return any(isinstance(kind, type) and issubclass(kind, OSError) for kind in kinds)


def raw_uses(handler: ast.ExceptHandler) -> Iterator[int]:
    """Lines that put the error itself into text."""
    for node in ast.walk(handler):
        if isinstance(node, ast.FormattedValue):
            value: ast.expr | None = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args:
            value = node.args[0]
        else:
            continue
        if isinstance(value, ast.Name) and value.id == handler.name:
            yield node.lineno


def guarded(source: str) -> str:
    """`source` without the ways of falling back on the error itself where it has no words of the system."""
    return source.replace("error.strerror or str(error)", "error.strerror or error").replace(
        "error.strerror if isinstance(error, OSError) else str(error)", "error.strerror"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_message_quotes_an_error_of_the_system(path: Path) -> None:
    tree = ast.parse(guarded(path.read_text()))
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and is_of_the_system(node)]
    found = [line for handler in handlers for line in raw_uses(handler)]
    assert not found, f"{path}: lines {found}: use in_words(error)"
