"""`tools.feed`: what it counts, and that it measures what training reads."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.experiment_data import ExperimentData
from input_pipeline.pipeline import open_train, train_batches
from refseg_jax.errors import UserError
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tools import feed as command
from tools.compile.experiment import read_config
from tools.feed.figures import Figures, measure, rate_of, table, verdict
from tools.feed.timing import STAGES, Stopwatch, TimedRows

# ml_collections reads config files by a way that Python is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = "--config=configs/refcoco_unires.py"
#: Of 32 x 32 pixels, in batches of 4.
SMALL = (
    *("--config.model.image_size=32", "--config.model.patch_size=8", "--config.batch_size=4"),
    "--config.data.pairs=2",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_tiny_dataset(folder)
    return folder


def rows_of(data_dir: Path, **changes) -> TimedRows:
    config = read_config([CONFIG, *SMALL])
    fields = {"data_dir": str(data_dir), "dataset": "tiny", "num_workers": 0, **changes}
    return TimedRows.of(open_train(ExperimentData(config, 32, 4).settings(**fields)))


def figures(**changes: Any) -> Figures:
    """A core that makes 10 rows of 2 images in 4 seconds."""
    shown: dict[str, Any] = {
        "name": "tiny train",
        "shape": (2, 3),
        "how": "letterbox to 416",
        "rows": 10,
        "pairs": 50,
        "stages": {"read": 1.0, "warp": 3.0},
        "waited": 0.1,
        "native": (307200.0, 95000.0),
        "failed": (0, ""),
        **changes,
    }
    return Figures(**shown)


def test_a_stage_inside_another_counts_for_itself_alone():
    times = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    watch = Stopwatch(lambda: next(times))
    with watch.stage("row"), pytest.raises(ValueError), watch.stage("JPEG"):
        raise ValueError
    watch.stop()
    assert watch.seconds == {"batch": 1.0 + 16.0, "row": 2.0 + 8.0, "JPEG": 4.0}


@pytest.mark.parametrize("sampling", ["image", "referent", "expressions"])
def test_what_is_timed_is_what_training_reads(data_dir, sampling):
    rows = rows_of(data_dir, sampling=sampling, flip_probability=0.5)
    timed: Any = rows.dataset(batch_size=4, seed=3)
    with contextlib.closing(train_batches(rows.config, batch_size=4, seed=3)) as trained:
        for number in range(3):
            host = next(trained)
            assert timed[number].meta == host.meta
            for field in dataclasses.fields(host.batch):
                np.testing.assert_array_equal(
                    getattr(timed[number].batch, field.name), getattr(host.batch, field.name)
                )


def test_every_stage_of_the_pipeline_is_timed(data_dir):
    rows = rows_of(data_dir, flip_probability=1.0, pseudo_labelled=True)
    found = measure(rows, batch_size=4, seed=0, seconds=1e-9)
    assert found.stages.keys() == STAGES.keys()
    assert min(found.stages.values()) > 0
    # One batch; every row has an expression.
    assert (found.rows, found.images, found.shape) == (4, 4, (1, 2))
    assert 4 <= found.pairs <= 8
    assert found.failed == (0, "")
    assert 0.5 * 32 * 32 < found.native[0] <= 32 * 32
    assert measure(rows, batch_size=4, seed=0, seconds=0.2).rows > 4


def test_rows_that_cannot_be_made_are_told(data_dir):
    with pytest.raises(UserError, match=r"^tiny train: no row can be made: .*pixels"):
        measure(rows_of(data_dir, max_pixels=10), batch_size=4, seed=0, seconds=1e-9)
    assert "3 rows could not be made, e.g. a.jpg: no image" in table(
        figures(failed=(3, "a.jpg: no image"))
    )


def test_the_table_tells_milliseconds_and_rates():
    lines = table(figures()).splitlines()
    assert lines[0] == "tiny train: 10 rows of 2 x 3 (images x expressions), letterbox to 416"
    assert lines[1] == "pictures of 0.307 megapixels and 95 kB on average"
    cells = {line.split()[0]: line.split()[1:3] for line in lines[3:6]}
    # 20 images.
    assert cells == {
        "read": ["50.000", "25"],
        "warp": ["150.000", "75"],
        "total": ["200.000", "100"],
    }
    assert lines[6:] == ["one core: 5.0 images/s, 12.5 pairs/s"]
    assert "the clock ran 3.0 times as long" in table(figures(waited=8.0))


def test_members_count_by_their_batches():
    slow, fast = figures(), figures(shape=(1, 8), stages={"read": 1.0})
    # Of each row: 2 images in 0.4 s, 1 image in 0.1 s.
    assert rate_of([slow], [16.0]) == pytest.approx(5.0)
    assert rate_of([slow, fast], [1.0, 2.0]) == pytest.approx(4 / 0.6)


@pytest.mark.parametrize(
    ("cores", "words"), [(5, "they suffice if"), (4, "1 are short"), (2, "3 are short")]
)
def test_the_verdict_counts_whole_cores(cores, words):
    line = verdict(rate=100.0, wanted=450.0, cores=cores)
    assert line.startswith(f"--images_per_second=450 takes 4.5 cores, this machine has {cores}: ")
    assert words in line


def test_another_dataset_takes_the_place_of_the_configs(data_dir, capsys):
    flags = [CONFIG, *SMALL, f"--data_dir={data_dir}", "--seconds=0.01"]
    assert command.main([*flags, "--dataset=tiny", "--images_per_second=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny train: ")
    assert lines[0].endswith(" rows of 1 x 2 (images x expressions), letterbox to 32")
    assert lines[-1].startswith("--images_per_second=1 takes 0.0 cores")


def test_members_of_a_mixture_are_measured_by_themselves(data_dir, tmp_path, capsys):
    file = tmp_path / "mixed.py"
    file.write_text(
        "from configs.common import member\nfrom configs import refcoco_unires\n"
        "def get_config():\n    config = refcoco_unires.get_config()\n"
        "    config.data.dataset = 'tiny'\n    config.mixture.a = member()\n"
        "    config.mixture.b = member(granularities=('part',), batch_size=2)\n    return config\n"
    )
    flags = [f"--config={file}", *SMALL, f"--data_dir={data_dir}", "--seconds=0.01"]
    assert command.main(flags) == 0
    said = capsys.readouterr().out
    assert "\nb tiny train: " in f"\n{said}" and said.startswith("a tiny train: ")
    assert "all members by their weights: " in said


def test_a_dataset_that_is_not_there_gets_one_line_with_the_cure(data_dir, tmp_path, capsys):
    assert command.main([CONFIG, f"--data_dir={data_dir}"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith("; or measure another one: --dataset=NAME of tiny") and "\n" not in said
    assert "build it: python -m tools.build_dataset" in said
    assert command.main([CONFIG, f"--data_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.strip().endswith("; or give --data_dir")


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_a_rate_is_positive(value, capsys):
    with pytest.raises(SystemExit):
        command.main([CONFIG, f"--images_per_second={value}"])
    assert f"{value} is no positive number" in capsys.readouterr().err
