"""The example notebook runs from top to bottom."""

import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]


def test_notebook(tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "generate.ipynb", as_version=4)
    # An answer half as long takes half the forwards of half the columns.
    after_loading = [cell for cell in notebook.cells if cell.cell_type == "code"][1]
    after_loading.source = 'defaults["gen_length"] = 64\n' + after_loading.source
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
