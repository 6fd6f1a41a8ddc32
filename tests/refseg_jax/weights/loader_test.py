"""A toy model of three blocks, and every way in which a file may not fit it."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from refseg_jax.errors import UserError
from refseg_jax.sharding import MeshConfig, make_mesh, param_shardings
from refseg_jax.weights.loader import load, plan
from refseg_jax.weights.table import Table, linear, norm, packed, rename, row

BLOCKS, WIDTH = 3, 4
TABLE = Table(
    rules=(
        rename(r"class_embedding", "class_token", row),
        *packed(
            r"layers\.(\d+)\.attn",
            (r"blocks.\1.query", r"blocks.\1.key", r"blocks.\1.value"),
            "in_proj_weight",
            "in_proj_bias",
        ),
        *linear(r"layers\.(\d+)\.fc", r"blocks.\1.up"),
        *norm("ln", "final_norm"),
    ),
    unread={r"logit_scale": "of the contrastive loss"},
    unwritten={r"head\..*": "new"},
)


def struct(array: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


@dataclasses.dataclass
class InMemory:
    """Weights that count how often each entry is read."""

    arrays: dict[str, np.ndarray]
    name: str = "toy.bin"

    def __post_init__(self):
        self.reads: list[str] = []

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {entry: struct(array) for entry, array in self.arrays.items()}

    def read(self, entry: str) -> np.ndarray:
        self.reads.append(entry)
        return self.arrays[entry]


def toy() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"class_embedding": (WIDTH,), "ln.weight": (WIDTH,), "ln.bias": (WIDTH,)}
    for number in range(BLOCKS):
        shapes |= {
            f"layers.{number}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"layers.{number}.attn.in_proj_bias": (3 * WIDTH,),
            f"layers.{number}.fc.weight": (8, WIDTH),
            f"layers.{number}.fc.bias": (8,),
        }
    return {"logit_scale": np.full((), 4, np.float32)} | {
        entry: rng.standard_normal(shape, np.float32) for entry, shape in shapes.items()
    }


def model() -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {"class_token": (1, WIDTH), "final_norm.scale": (WIDTH,), "final_norm.bias": (WIDTH,)}
    for number in range(BLOCKS):
        for part in ("query", "key", "value"):
            shapes[f"blocks.{number}.{part}.kernel"] = (WIDTH, WIDTH)
            shapes[f"blocks.{number}.{part}.bias"] = (WIDTH,)
        shapes[f"blocks.{number}.up.kernel"] = (WIDTH, 8)
        shapes[f"blocks.{number}.up.bias"] = (8,)
    shapes["head.kernel"] = (WIDTH, 1)
    return {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}


def read(weights: InMemory) -> dict[str, jax.Array]:
    shapes = model()
    made = plan(TABLE, weights.shapes, shapes, name=weights.name)
    return load(made, weights, param_shardings(shapes, make_mesh(MeshConfig())))


def refusal(arrays: dict[str, np.ndarray], table: Table = TABLE) -> str:
    with pytest.raises(UserError) as caught:
        plan(table, InMemory(arrays).shapes, model(), name="toy.bin")
    message = str(caught.value)
    assert message.startswith("toy.bin: these weights do not fit the model: ")
    assert "\n" not in message
    return message.removeprefix("toy.bin: these weights do not fit the model: ")


def test_every_entry_lands_where_the_table_says():
    arrays = toy()
    weights = InMemory(arrays)
    params = read(weights)
    assert params.keys() == model().keys() - {"head.kernel"}
    np.testing.assert_array_equal(params["class_token"], arrays["class_embedding"][None])
    np.testing.assert_array_equal(params["final_norm.scale"], arrays["ln.weight"])
    packed_weight, packed_bias = (
        arrays[f"layers.2.attn.in_proj_{kind}"] for kind in ("weight", "bias")
    )
    for number, part in enumerate(("query", "key", "value")):
        rows = slice(number * WIDTH, (number + 1) * WIDTH)
        np.testing.assert_array_equal(params[f"blocks.2.{part}.kernel"], packed_weight[rows].T)
        np.testing.assert_array_equal(params[f"blocks.2.{part}.bias"], packed_bias[rows])
    # A packed entry is read once; one that is not needed never.
    assert sorted(weights.reads) == sorted(arrays.keys() - {"logit_scale"})


def test_the_plan_tells_what_was_left_and_why():
    made = plan(TABLE, InMemory(toy()).shapes, model(), name="toy.bin")
    assert made.unread == {"logit_scale": "of the contrastive loss"}
    assert made.unwritten == {"head.kernel": "new"}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_f32(dtype):
    arrays = {entry: array.astype(dtype) for entry, array in toy().items()}
    params = read(InMemory(arrays))
    assert {leaf.dtype for leaf in params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        params["blocks.0.up.bias"], arrays["layers.0.fc.bias"].astype(np.float32)
    )


def test_what_was_loaded_shares_no_memory_with_the_file():
    arrays = toy()
    params = read(InMemory(arrays))
    before = np.array(params["final_norm.bias"])
    arrays["ln.bias"] += 1
    np.testing.assert_array_equal(params["final_norm.bias"], before)


def test_an_unread_entry_is_refused_by_name():
    extra = np.zeros(3, np.float32)
    assert refusal(toy() | {"proj.lora": extra, "x.weight": extra}) == (
        "entries that no rule reads: proj.lora, x.weight"
    )


def test_an_unwritten_parameter_is_refused_by_name():
    arrays = toy()
    del arrays["ln.bias"], arrays["layers.1.fc.weight"]
    assert refusal(arrays) == ("parameters that nothing fills: blocks.1.up.kernel, final_norm.bias")


def test_a_shape_that_is_off_is_refused_with_both_shapes():
    arrays = toy() | {"ln.bias": np.zeros(5, np.float32)}
    assert refusal(arrays) == "shapes: ln.bias -> final_norm.bias ((5,), the model's is (4,))"


def test_an_entry_that_cannot_be_changed_is_refused():
    arrays = toy() | {
        "layers.0.fc.weight": np.zeros(8, np.float32),
        "layers.1.attn.in_proj_bias": np.zeros(13, np.float32),
    }
    message = refusal(arrays)
    assert "layers.0.fc.weight -> blocks.0.up.kernel ((8,) cannot be changed" in message
    assert "blocks.1.query.bias ((13,) cannot be changed: 13 rows are not three parts" in message


def test_an_entry_that_is_no_float_is_refused():
    arrays = toy() | {"ln.bias": np.zeros(4, np.int64)}
    assert "ln.bias -> final_norm.bias (int64, not floating point)" in refusal(arrays)


def test_a_parameter_that_two_entries_write_is_refused():
    table = dataclasses.replace(TABLE, rules=(*TABLE.rules, rename("twin", "final_norm.bias")))
    assert refusal(toy() | {"twin": np.zeros(4, np.float32)}, table) == (
        "parameters written twice: final_norm.bias (by ln.bias and twin)"
    )


def test_blocks_that_the_model_lacks_are_listed_in_short():
    arrays = toy()
    for number in (3, 4, 5, 9):
        arrays[f"layers.{number}.fc.bias"] = arrays["layers.0.fc.bias"]
    assert refusal(arrays) == (
        "entries for which the model has no place: layers.{3-5,9}.fc.bias -> blocks.{3-5,9}.up.bias"
    )


def test_only_the_first_number_is_listed_in_short():
    extra = {f"stages.{n}.blocks.{n}.x": np.zeros(1, np.float32) for n in range(2)}
    assert refusal(toy() | extra) == (
        "entries that no rule reads: stages.0.blocks.0.x, stages.1.blocks.1.x"
    )
    extra = {f"stages.{n}.blocks.2.{{}}": np.zeros(1, np.float32) for n in (0, 1, 2)}
    assert refusal(toy() | extra) == "entries that no rule reads: stages.{0-2}.blocks.2.{}"


def test_very_many_entries_are_told_as_quickly_as_few():
    """Their number must not enter squared: a list of 40,000 numbers took minutes to shorten."""
    leaf = np.zeros(1, np.float32)
    assert refusal(toy() | {f"a.{n}.b": leaf for n in range(40_000)}) == (
        "entries that no rule reads: a.{0-39999}.b"
    )


def test_one_line_tells_all_troubles_at_once():
    arrays = toy() | {"odd": np.zeros(1, np.float32), "ln.weight": np.zeros(1, np.float32)}
    del arrays["ln.bias"]
    message = refusal(arrays)
    assert all(name in message for name in ("odd", "final_norm.scale", "final_norm.bias"))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_an_entry_with_what_is_no_number_is_refused_by_name(odd: float, dtype: type):
    arrays = toy()
    with np.errstate(over="ignore"):
        arrays["layers.1.fc.weight"] = arrays["layers.1.fc.weight"].astype(dtype)
        arrays["layers.1.fc.weight"][2, 1] = odd
    weights = InMemory(arrays)
    with pytest.raises(UserError) as caught:
        read(weights)
    message = str(caught.value)
    assert message.startswith("toy.bin: entry 'layers.1.fc.weight': 1 of 32 numbers are NaN, inf")
    assert "\n" not in message
    assert "layers.2.fc.weight" not in weights.reads, "what comes after it is not read any more"


def test_what_is_not_read_may_hold_anything():
    arrays = toy() | {"logit_scale": np.full((), np.nan, np.float32)}
    assert read(InMemory(arrays)).keys() == model().keys() - {"head.kernel"}
