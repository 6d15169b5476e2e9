"""The notebooks run, and each `.ipynb` is the text beside it with its results."""

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))
DATA = Path(os.environ.get("HYPRJAX_DATA", "no data"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@by_name
def test_the_text_and_the_notebook_are_the_same(path):
    text, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), 4)
    assert [(cell.cell_type, cell.source) for cell in text.cells] == [(c.cell_type, c.source) for c in notebook.cells]
    assert f"hyprjax/blob/main/notebooks/{path.stem}.ipynb" in notebook.cells[0].source
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert 'find_spec("hyprjax") is None' in first
    assert "git+https://github.com/hyprjax/hyprjax" in first
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]


@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
@by_name
def test_notebook_runs_within_two_minutes(path):
    if path.stem == "online" and not (DATA / "QTDB_train.mat").exists():
        pytest.skip("HYPRJAX_DATA has no ECG-QTDB")
    client = NotebookClient(jupytext.read(path), timeout=120, kernel_name="python3")
    client.execute(cwd=path.parent)
    figures = [o for cell in client.nb.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(figures) >= 3
