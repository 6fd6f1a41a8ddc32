"""main.py and the readers of its checkpoints, with data and checkpoints in a bucket."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import scenes_unires
from main import Experiment
from refseg_jax.checkpoints.params import load_params
from refseg_jax.cli import experiment_flags, export
from refseg_jax.errors import UserError
from refseg_jax.exports.source import read_source
from refseg_jax.models import model_config
from refseg_jax.prediction.predictor import Predictor
from refseg_jax.storage import buckets
from tests.main_test import Place
from tests.refseg_jax.exports.folders import tiny_params, write_all
from tests.refseg_jax.training.tiny_run import UNIRES, save_unires

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def other(tmp_path: Path, bucket: Path) -> Path:
    """A run in the bucket that was stopped at step 7."""
    from tests.bucket_emulator import upload

    save_unires(tmp_path / "other", tiny_params(), step=7)
    upload(tmp_path / "other", bucket)
    return bucket


def _experiment(workdir: Path, **fields: Any) -> Experiment:
    config: Any = scenes_unires.get_config()
    config.update_from_flattened_dict(fields)
    config.model.update(dataclasses.asdict(model_config(UNIRES)))
    config.data.context_length = 10
    config.eval.oracle = ""
    for entry in config.evals.values():
        entry.when = "never"
    return Experiment(config, workdir)


@pytest.mark.parametrize("field", ["init.checkpoint", "checkpoint.dir"])
def test_a_checkpoint_of_a_bucket_is_scored(other: Path, tmp_path: Path, field: str) -> None:
    experiment = _experiment(tmp_path / "run", **{field: str(other)})
    experiment.evaluate()
    experiment.writer.close()
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"step": 7}


def test_a_predictor_and_an_export_come_out_of_a_bucket(other: Path) -> None:
    assert Predictor.from_checkpoint(str(other)).group_size == 1
    source = read_source(
        export.make_parser()
        .parse_args([f"--checkpoint={other}", "--format=onnx", "--output=out"])
        .checkpoint
    )
    assert source.step == 7 and source.params.keys() == tiny_params().keys()


def test_an_export_in_a_bucket_is_refused_in_one_line(bucket: Path, tmp_path: Path) -> None:
    from tests.bucket_emulator import upload

    write_all(tmp_path, "safetensors")
    upload(tmp_path / "safetensors", bucket)
    with pytest.raises(UserError) as error:
        Predictor.from_checkpoint(bucket)
    cure = "copy the exported folder to a disk: gcloud storage cp -r"
    assert str(error.value) == f"{bucket}: this cannot lie in a bucket; {cure}"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (
            "--workdir=gs://b/x",
            "--workdir=gs://b/x: logs and the lock need a disk; name a folder there, and give the "
            "bucket as --config.checkpoint.dir=gs://b/x",
        ),
        (
            "--config.init.clip=gs://b/x",
            "--config.init.clip=gs://b/x: this cannot lie in a bucket; name a file or folder on a disk",
        ),
        (
            "--workdir=s3://b/x",
            "--workdir=s3://b/x: s3:// is not known; name a folder on a disk",
        ),
        (
            "--config.eval.dump=s3://b/x",
            "--config.eval.dump=s3://b/x: s3:// is not known; name a file or folder on a disk",
        ),
        (
            "--config.checkpoint.dir=hf://o/n",
            "--config.checkpoint.dir=hf://o/n: hf:// is not known; name a file or folder on a disk",
        ),
        ("--config.init.checkpoint=hf://o/n", ""),
        ("--config.data.data_dir=gs://b/x", ""),
        ("--config.checkpoint.dir=gs://b/x", ""),
        ("--config.init.checkpoint=gs://b/x", ""),
        ("--config.loop.compilation_cache=gs://b/x", ""),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # Of ml_collections.
def test_what_cannot_lie_in_a_bucket_says_so(argument, line, capsys, monkeypatch) -> None:
    values = flags.FlagValues()
    config = str(ROOT / "configs/scenes_unires.py")
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    arguments = ["main.py", f"--config={config}", argument]
    # From there, ml_collections knows which fields are flags.
    monkeypatch.setattr(sys, "argv", arguments)
    if not line:
        experiment_flags.parse(arguments, values)
        return
    with pytest.raises(SystemExit) as ended:
        experiment_flags.parse(arguments, values)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_flag_that_needs_a_disk_says_so(capsys) -> None:
    assert export.main(["--checkpoint=gs:///x", "--format=onnx", "--output=out"]) == 1
    assert capsys.readouterr().err.startswith("error: gs:///x: it names no bucket")
    with pytest.raises(SystemExit):
        export.main(["--checkpoint=runs/x", "--format=onnx", "--output=gs://b/out"])
    line = "--output: gs://b/out: this cannot lie in a bucket; name a folder on a disk\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.long
def test_a_run_in_a_bucket_is_that_of_a_disk(tmp_path: Path, bucket: Path, bucket_server) -> None:
    from tests.bucket_emulator import upload

    place = Place(tmp_path)
    upload(place.data, bucket / "data")

    def run(workdir: Path, *more: str) -> None:
        place.workdir = workdir
        done = place.run(*place.command("--config.data.num_workers=1", *more), **bucket_server)
        assert done.returncode == 0, done.stderr[-3000:]

    there = (f"--config.data.data_dir={bucket}/data", f"--config.checkpoint.dir={bucket}/run")
    run(tmp_path / "disk")
    run(tmp_path / "bucket", *there)
    params, _ = load_params(bucket / "run")
    expected, _ = load_params(tmp_path / "disk")
    assert params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(params[name], value)
    logs = [(tmp_path / w / "batches-0.jsonl").read_text() for w in ("disk", "bucket")]
    assert logs[0] == logs[1]
    assert not (tmp_path / "bucket/checkpoints").exists()
    # Another machine, with an empty disk.
    run(tmp_path / "new", *there, "--config.steps=5")
    assert json.loads((tmp_path / "new/summary.json").read_text())["step"] == 5
    assert len((tmp_path / "new/batches-0.jsonl").read_text().splitlines()) == 2
    assert "checkpoints/5/manifest.json" in buckets.files(bucket / "run")
