"""The sharding table; layouts over several devices are tested in `distributed_test`."""

import dataclasses

import jax
import numpy as np
import pytest

from refseg_jax import sharding


def shapes(**named: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    return {n.replace("__", "."): jax.ShapeDtypeStruct(s, np.float32) for n, s in named.items()}


def test_mesh_takes_the_devices_that_are_left():
    mesh = sharding.make_mesh(sharding.MeshConfig())
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(2, 1, 1), (-1, -1, 1), (-1, 3, 1), (0, 1, 1)])
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(
        ValueError, match=r"^mesh .* which is 1; set config\.mesh\.\{data,fsdp,tensor\}"
    ):
        sharding.make_mesh(sharding.MeshConfig(*sizes))


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU, eight of which are in a host."""

    id: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H200"

    @property
    def process_index(self) -> int:
        return self.id // 8

    slice_index = process_index


@pytest.mark.parametrize(
    ("sizes", "hosts"),
    [
        # The hosts along `data`, then along `fsdp`, where `data` has not enough.
        ((16, 1, 1), [[[0]]] * 8 + [[[1]]] * 8),
        ((-1, 8, 1), [[[0]] * 8, [[1]] * 8]),
        ((-1, 2, 2), [[[0, 0]] * 2] * 2 + [[[1, 1]] * 2] * 2),
        ((1, -1, 1), [[[0]] * 8 + [[1]] * 8]),
        ((1, 2, 8), [[[0] * 8, [1] * 8]]),
    ],
)
def test_the_network_between_slices_is_used_least(sizes, hosts):
    cards = [Card(number) for number in range(16)]
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), cards)
    found = [[[card.slice_index for card in row] for row in rows] for rows in mesh.devices]
    assert found == hosts
    assert {card.id for card in mesh.devices.flat} == set(range(16))


def test_an_axis_tensor_that_leaves_its_slice_is_refused():
    cards = [Card(number) for number in range(16)]
    with pytest.raises(ValueError, match=r"'tensor': 16} over 2 slices: .*; make tensor smaller"):
        sharding.make_mesh(sharding.MeshConfig(1, 1, 16), cards)


def test_every_parameter_must_be_covered():
    mesh = sharding.make_mesh(sharding.MeshConfig())
    with pytest.raises(ValueError, match=r"no row .* 'b\.bias'"):
        sharding.param_shardings(shapes(b__bias=(3,)), mesh, ((r"a\..*", "fsdp"),))
    with pytest.raises(ValueError, match="unknown layout"):
        sharding.param_shardings(shapes(b__bias=(3,)), mesh, ((r".*", "whole"),))


def test_local_rows_gives_back_what_was_put():
    mesh = sharding.make_mesh(sharding.MeshConfig())
    rows = np.arange(12, dtype=np.int32).reshape(4, 3)
    array = jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), rows)
    np.testing.assert_array_equal(sharding.local_rows(array), rows)
