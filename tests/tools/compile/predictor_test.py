"""What `--mode=predict` tells of a device, compiled for this machine's."""

import jax
import pytest

from refseg_jax.models.graphs import GRAPHS
from tests.tools.compile.command_test import CONFIG, SMALL
from tools.compile.experiment import read_config
from tools.compile.figures import measure
from tools.compile.works import Experiment

# ml_collections reads config files by a way that Python is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_a_predictors_functions_run_on_one_device_that_holds_all_parameters():
    config = read_config([CONFIG, *(f"--config.model.{field}" for field in SMALL)])
    works = list(Experiment(config, jax.devices()).works("predict"))
    assert [work.name for work in works] == list(GRAPHS)
    figures, _ = measure(works[1], works[1].rows)
    assert (figures.devices, figures.hosts) == (1, 1)
    # Reading words takes few of the parameters.
    assert figures.needed is not None
    assert figures.needed >= figures.state > 0
