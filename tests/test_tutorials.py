"""Tutorials run to their end with tiny sizes, and are committed as a reader wants to see them."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.cli import save_model

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
SERVICE = "https://colab.research.google.com/"
MACHINE_PATH = re.compile(r"(?<![\w.~>])/(?:home|Users|root|tmp|work|opt|private|mnt)/|[A-Z]:\\\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook) -> int:
    """The number of the one cell that sets the sizes."""
    [number] = [
        number
        for number, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    ]
    return number


@each_notebook
def test_a_tiny_variant_runs(path, tmp_path, monkeypatch):
    """The values of ``metadata.graphprune.tiny`` come after those of the cell ``parameters``."""
    notebook = nbformat.read(path, as_version=4)
    tiny = notebook.metadata["graphprune"]["tiny"]
    sizes = ast.walk(ast.parse(notebook.cells[parameters(notebook)].source))
    assert set(tiny) <= {node.id for node in sizes if isinstance(node, ast.Name)}
    lines = "\n".join(f"{name} = {value!r}" for name, value in tiny.items())
    notebook.cells.insert(parameters(notebook) + 1, nbformat.v4.new_code_cell(lines))
    if "tiny-model" in tiny.values():  # stands in SmolLM2's place
        save_model(tmp_path / "tiny-model", num_hidden_layers=3)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures are shown, as for a reader
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources=resources).execute()
    assert all(cell.execution_count for cell in code_cells(notebook))


@each_notebook
def test_it_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in code_cells(notebook) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        "display_data",
        "execute_result",
        "stream",
    }
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any({"image/png", "image/svg+xml"} & set(output.get("data", {})) for output in outputs)
    assert not [cell for cell in cells if "execution" in cell.metadata], "times of one run"
    assert not MACHINE_PATH.search(re.sub(r'"image/png": "[^"]*"', "", path.read_text("utf-8")))
    assert path.stat().st_size < 500_000


@each_notebook
def test_it_begins_with_what_a_reader_wants_to_know(path):
    first = " ".join(nbformat.read(path, as_version=4).cells[0].source.split())
    assert first.startswith("# ")
    assert SERVICE in first
    assert "pip install" in first
    assert re.search(r"\*\*Time\*\*.* (seconds|minutes?) on two CPU cores", first)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_its_code_is_clean(command):
    told = subprocess.run(
        [sys.executable, "-m", "ruff", *command, TUTORIALS], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_notebook_has_a_paragraph():
    page = (TUTORIALS / "index.md").read_text(encoding="utf-8")
    assert {f"{path.name}" for path in NOTEBOOKS} <= set(re.findall(r"\]\((\w+\.ipynb)\)", page))


def test_what_runs_them_comes_with_the_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = " ".join(extras["optional-dependencies"]["test"])
    assert all(name in named for name in ("nbclient", "ipykernel", "nbformat"))
