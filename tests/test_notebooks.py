"""The notebooks run, and give the outputs that are stored in them.

Outputs of cells tagged `varies` need only be there. To store outputs anew: python -m tests.test_notebooks --update
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def execute(path: Path, place: Path) -> Any:
    """The notebook, executed in the directory `place`. Raises CellExecutionError."""
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=60, coalesce_streams=True, resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of this machine
    return notebook


def text_of(cell: Any) -> str:
    """All that a cell put out, as text."""
    return "".join(
        output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )


def words_of(cell: Any) -> list[str]:
    """A cell's output without the frames of tables, which are DuckDB's affair, and without ids and seconds."""
    text = re.sub(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text_of(cell))
    return re.findall(r"[^\s│─┌┐└┘├┤┬┴┼]+", re.sub(r"\b\d+\.\d+ s\b", "SECONDS", text))


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def private_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter's own files go to a temporary place."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.usefixtures("private_jupyter")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_its_stored_outputs(path: Path, tmp_path: Path) -> None:
    stored, fresh = code_cells(read(path)), code_cells(execute(path, tmp_path))
    for expected, cell in zip(stored, fresh, strict=True):
        assert expected.execution_count, f"not executed: {cell.source}"
        if "varies" in cell.metadata.get("tags", ()):
            assert words_of(expected), cell.source
            assert words_of(cell), cell.source
        else:
            assert words_of(cell) == words_of(expected), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_say_nothing_of_the_machine(path: Path) -> None:
    output = "\n".join(text_of(cell) for cell in code_cells(read(path)))
    for name in ("/home/", "/tmp/", "/root/", "/Users/", str(FOLDER), str(Path.home())):
        assert name not in output
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", output)


def test_an_output_that_changed_is_noticed() -> None:
    cell = nbformat.v4.new_code_cell("print(1)")
    words = []
    for text in ("│ txt │ 6 │\n", "│ txt │ 7 │\n", "┌───┐\n│ txt │   6 │\n"):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        words.append(words_of(cell))
    assert words[0] != words[1]
    assert words[0] == words[2]


def update() -> None:
    """Store the outputs of all notebooks anew."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as place:
            nbformat.write(execute(path, Path(place)), path)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--update"], __doc__
    os.environ.pop("DRYSTONE_STORE", None)
    update()
