"""Files that torch itself writes, read without it: archives, those before 1.6, and bare pickles."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refseg_jax.weights.readers import open_weights

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.parity


def _tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "weight": torch.nn.Parameter(torch.randn(4, 3, 2, 2)),
        "base": base,
        "turned": base.T,
        "part": base[1:4, ::2],
        "half": torch.randn(5).half(),
        "short": torch.randn(7).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "scale": torch.tensor(4.6),
        "ids": torch.arange(600),
    }


def _old(state: dict[str, Any], path: Path) -> None:
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)


def _pickled(protocol: int) -> Callable[[dict[str, Any], Path], None]:
    """What Mask2Former's `convert-pretrained-swin-model-to-d2.py` does, which ReLA uses."""

    def write(state: dict[str, Any], path: Path) -> None:
        made = {"model": state, "__author__": "third_party", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(made, protocol))

    return write


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("new.pth", lambda state, path: torch.save({"model": state}, path)),
        ("old.pth", _old),
        *((f"protocol{n}.pkl", _pickled(n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_torchs_own_files_are_read(
    name: str, write: Callable[[dict[str, Any], Path], None], tmp_path: Path
) -> None:
    state = _tensors()
    write(state, tmp_path / name)
    weights = open_weights(tmp_path / name)
    assert weights.shapes.keys() == state.keys()
    for entry, tensor in state.items():
        read = weights.read(entry)
        assert str(read.dtype) == str(tensor.dtype).removeprefix("torch.")
        wide = tensor.detach().double().numpy()
        np.testing.assert_array_equal(read.astype(np.float64), wide, err_msg=entry)


@pytest.mark.parametrize("new", [True, False])
def test_numpys_arrays_in_torchs_files_are_read(new: bool, tmp_path: Path) -> None:
    arrays = {entry: np.asarray(x.detach().double()) for entry, x in _tensors().items()}
    made = {"model": arrays, "best": np.float64(0.5), "epoch": np.int64(3)}
    torch.save(made, tmp_path / "m.pth", _use_new_zipfile_serialization=new)
    weights = open_weights(tmp_path / "m.pth")
    assert weights.shapes.keys() == arrays.keys()
    for entry, array in arrays.items():
        np.testing.assert_array_equal(weights.read(entry), array)
