"""Loading on several devices, in a process of its own that has them."""

from pathlib import Path

from tests.devices import run_on_devices
from tests.refseg_jax.weights.clip_sources import hf_folder

CODE = """
import sys
import numpy as np
from refseg_jax.models.unires import UniRES
from refseg_jax.models.unires_config import UniRESConfig
from refseg_jax.sharding import MeshConfig, abstract_params, make_mesh
from refseg_jax.training.state import Forward
from refseg_jax.weights.clip_files import load_towers
from tests.refseg_jax.weights.clip_sources import SMALL_MODEL

config = UniRESConfig(**SMALL_MODEL)
shapes = Forward(lambda rngs: UniRES(config, rngs=rngs)).shapes
whole, cut = (
    load_towers(sys.argv[1], abstract_params(shapes, make_mesh(MeshConfig(fsdp=n))), config)
    for n in (1, 4)
)
assert whole.keys() == cut.keys()
cuts = 0
for path, leaf in cut.items():
    np.testing.assert_array_equal(leaf, whole[path], err_msg=path)
    sizes = {shard.data.size for shard in leaf.addressable_shards}
    cuts += sizes == {leaf.size // 4}
print(f"{cuts} of {len(cut)} cut")
"""


def test_every_device_holds_its_part_of_each_array(tmp_path: Path):
    source = hf_folder(tmp_path / "source")
    printed = run_on_devices(4, CODE, source)
    cut, _, whole = printed.split()[:3]
    # All matrices; biases and norms are too small to be worth it.
    assert int(cut) >= 30 and int(whole) > int(cut)
