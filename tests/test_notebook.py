"""The example notebook runs from top to bottom."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import r2jax
from tests import tiny_checkpoint as tiny

ROOT = Path(__file__).parents[1]
BUNDLED = Path(r2jax.__file__).parent / "models" / "llada-gsm-6m"


@pytest.mark.parametrize("bundled", [False, True], ids=["random model", "bundled model"])
def test_notebook(tmp_path, bundled):
    if bundled and not (BUNDLED / "model.safetensors").is_file():
        pytest.skip("the bundled model is not there")
    notebook = nbformat.read(ROOT / "examples" / "generate.ipynb", as_version=4)
    (name,) = [cell for cell in notebook.cells if 'CHECKPOINT = "llada-gsm-6m"' in cell.source]
    if not bundled:
        directory = tiny.write_checkpoint(tmp_path / "tiny")
        name.source = name.source.replace("llada-gsm-6m", str(directory))
    path = tmp_path / "generate.ipynb"
    nbformat.write(notebook, path)
    # A process of its own: the kernel's client leaves sockets open, which is an error here.
    code = (
        "import nbclient, nbformat, sys; path, root = sys.argv[1:]; "
        "notebook = nbformat.read(path, as_version=4); "
        "nbclient.execute(notebook, cwd=root, timeout=300); nbformat.write(notebook, path)"
    )
    command = [sys.executable, "-c", code, str(path), str(ROOT)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    images = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(images) == 1
