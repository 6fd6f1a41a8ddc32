"""The notebook runs from its first cell to its last, in a folder like a checkout."""

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.scenes import build

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "refseg_jax.ipynb"


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_the_code_the_first_cell_asks_where_it_is(tmp_path):
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:1]
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": tmp_path}})
    with pytest.raises(CellExecutionError, match="set REPOSITORY in this cell to the address"):
        client.execute()
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(tmp_path, monkeypatch):
    for name in ("main.py", "configs", "tools", "input_pipeline", "refseg_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    build(tmp_path / "data", ScenesConfig(train=32, val=8, test=12, train_groups=1, val_groups=1))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    )
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "STEPS = 200" in code[0].source
    code[0].source = code[0].source.replace("STEPS = 200", "STEPS = 4")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    told = [printed(cell) for cell in code]
    assert "is built already" in told[1]
    assert "object" in told[2] and "summary: runs/notebook/summary.json" in told[2]
    assert (tmp_path / "runs/exported/model.safetensors").is_file()
    assert told[4].count(": ") >= 3
    pictures = [o for o in code[4].outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    assert "mine/1.0.0: built" in told[6]
    assert "summary: runs/mine/summary.json" in told[7]
    assert (tmp_path / "runs/mine_exported/model.safetensors").is_file()
    assert told[9].strip()
