"""docs/quickstart.ipynb runs from its first cell to its last."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_trains_looks_and_predicts(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs pip install nbclient ipykernel")
    monkeypatch.setenv("ITERATIONS", "2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    file = ROOT / "docs" / "quickstart.ipynb"
    assert file.stat().st_size < 500_000
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert (tmp_path / "work_dirs/quickstart/hmkd/student.safetensors").is_file()
    assert len(list((tmp_path / "overlays").glob("**/*.png"))) == 20 + 1  # and the legend
