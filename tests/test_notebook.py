"""The example notebooks run from top to bottom."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]

# An answer half as long takes half the forwards of half the columns.
SHORTER = {"generate": ('defaults["gen_length"] = 64\n', 1)}


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("examples/*.ipynb")))
def test_notebook(tmp_path, name):
    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    line, cell = SHORTER.get(name, ("", 0))
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code_cells[cell].source = line + code_cells[cell].source
    path = tmp_path / "notebook.ipynb"
    nbformat.write(notebook, path)
    # A process of its own: the kernel's client leaves sockets open, which is an error here.
    code = (
        "import nbclient, nbformat, sys; path, root = sys.argv[1:]; "
        "notebook = nbformat.read(path, as_version=4); "
        "nbclient.execute(notebook, cwd=root, timeout=300); nbformat.write(notebook, path)"
    )
    command = [sys.executable, "-c", code, str(path), str(ROOT)]
    one = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}  # as a user's
    run = subprocess.run(command, cwd=ROOT, env=one, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    images = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(images) == 1
