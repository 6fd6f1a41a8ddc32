"""The sharding table; layouts over several devices are tested in `distributed_test`."""

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
    with pytest.raises(ValueError, match="mesh"):
        sharding.make_mesh(sharding.MeshConfig(*sizes))


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
