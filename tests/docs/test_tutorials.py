"""The notebooks run from top to bottom, and are kept with their outputs.

``python -m tests.docs.test_tutorials`` makes the outputs anew.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.sources import ROOT

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
ALLOWED = 100_000  # bytes of a notebook with its outputs


def executed(path: Path, folder: Path) -> Any:
    """A notebook with the outputs of a run in an empty folder."""
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}, record_timing=False).execute()
    finally:
        os.environ["PYTHONPATH"] = before
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if shown(output)]
    return book


def shown(output: Any) -> bool:
    """Whether an output is the reader's business: pictures and what was printed, not bars of progress and warnings."""
    return (
        output.get("name") == "stdout"
        or output.output_type == "execute_result"
        or "image/png" in output.get("data", {})
    )


def texts(book: Any) -> list[str]:
    """What a run printed and returned, cell by cell."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    """And prints as much as what is kept: another machine may have other digits."""
    kept = nbformat.read(path, as_version=4)
    assert [text.count("\n") for text in texts(executed(path, tmp_path))] == [text.count("\n") for text in texts(kept)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert path.stat().st_size < ALLOWED
    assert sum(bool(cell.get("outputs")) for cell in book.cells) >= 2
    kinds = {output.output_type for cell in book.cells for output in cell.get("outputs", [])}
    assert "error" not in kinds
    assert not [text for text in texts(book) if re.search(r"(^|\s)/\w+/|Traceback", text)]  # no path of one machine


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as empty:
            nbformat.write(executed(notebook, Path(empty)), notebook)
