"""main.py as people run it: a process, a config file, overrides; on the tiny dataset."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sources import RecordSource
from refseg_jax.checkpoints.params import load_params
from refseg_jax.cli.score import score
from refseg_jax.evaluation.protocols import keyed_counts, keyed_scores
from refseg_jax.text.tokenizers import CLIP_EOS, CLIP_VOCAB
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.weights.clip_sources import SMALL, SMALL_MODEL, arrays, hf_folder, hf_shapes

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3
OVERRIDES = {
    "steps": STEPS,
    "batch_size": 4,
    "data.dataset": "tiny",
    "model.image_size": 32,
    "model.vision_width": 32,
    "model.vision_layers": 2,
    "model.text_layers": 1,
    "model.text_width": 16,
    "model.head": "linear",
    "eval.batch_size": 4,
    "eval.pictures": 99,
    "eval.canvas": (32, 32),
    "eval.protocol": "cris,gres,lavt",
    "loop.log_every": 1,
    "loop.eval_every": 2,
    "loop.log_batches": True,
}
#: Trains, predicts, and tells what is loaded.
TRAIN_AND_PREDICT = """
import json, runpy, sys
train, predict = json.loads(sys.argv[1])
sys.argv = train
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
from tools.predict import main
assert main(predict) == 0
print("loaded:", json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def _command(workdir: Path, data_dir: Path, *more: str) -> list[str]:
    cache = data_dir.parent / "cache"
    fields = {**OVERRIDES, "data.data_dir": data_dir, "loop.compilation_cache": cache}
    return [
        "main.py",
        "--config=configs/scenes_unires.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *more,
    ]


class Place:
    """A dataset and a workdir, and how to run things there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.workdir = folder / "data", folder / "run"
        build_tiny_dataset(self.data, {"train": 8, "val": 3, "test": 4})

    def command(self, *more: str) -> list[str]:
        return _command(self.workdir, self.data, *more)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Compiled functions are kept for the next process, and compiled in a hurry."""
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true",
            **variables,
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def summary(self) -> dict[str, float]:
        return json.loads((self.workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("main"))


@pytest.fixture(scope="module")
def first(place: Place) -> subprocess.CompletedProcess[str]:
    """The first run, and a prediction for the image `test0` in the same process."""
    # Where neither is installed, empty packages make an import of them show.
    for name in ("tensorflow", "torch"):
        (place.folder / "stubs" / name).mkdir(parents=True)
        (place.folder / "stubs" / name / "__init__.py").touch()
    record = RecordSource(str(place.data), "tiny", "test")[0]
    image = place.folder / f"{record.image_id}.jpg"
    image.write_bytes(record.image)
    predict = [f"--checkpoint={place.workdir}", f"--image={image}"]
    predict += [f"--output_dir={place.folder / 'out'}"]
    predict += [f"--text={e.text}" for e in record.expressions]
    arguments = json.dumps([place.command(), predict])
    done = place.run("-c", TRAIN_AND_PREDICT, arguments, PYTHONPATH=str(place.folder / "stubs"))
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def _loaded(done: subprocess.CompletedProcess[str]) -> set[str]:
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("loaded: ")]
    return set(json.loads(line.removeprefix("loaded: ")))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("first")
def test_summary_has_flat_keys_of_all_evaluations_and_of_speed(place: Place) -> None:
    summary = place.summary()
    assert all(isinstance(value, int | float) for value in summary.values())
    for prefix in ("", "val/", "shuffled/"):
        for name in ("mIoU", "oIoU", "Pr@0.5", "Pr@0.9", "count", "object/mIoU", "quarantined"):
            assert prefix + name in summary
    for name in ("part/mIoU", "multi/mIoU", "oracle/object/mIoU", "oracle/part/mIoU"):
        assert 0 <= summary[name] <= 1
    # 5 of the 6 expressions have a target, and the config leaves out the sixth.
    assert summary["count"] == 20
    assert summary["val/count"] == 15
    assert summary["steps"] == summary["step"] == STEPS
    assert summary["preempted"] == 0
    for name in ("train_seconds", "images_per_second", "data_wait_share"):
        assert summary[name] >= 0


def test_summary_is_what_the_scorer_says_of_the_dump_to_the_last_digit(
    place: Place, first: subprocess.CompletedProcess[str]
) -> None:
    predictions, references = (
        place.workdir / "dump/test" / f"{name}s.jsonl" for name in ("prediction", "reference")
    )
    states = score(predictions, references, OVERRIDES["eval.protocol"])
    scores = keyed_scores(states) | keyed_counts(states)
    assert {"gres/gIoU", "lavt/part/mIoU", "gres/count"} <= scores.keys()
    assert scores.items() <= place.summary().items()
    assert all(f"{one.protocol.name}: comparable with " in first.stdout for one in states)
    assert {line.get("category") for line in _lines(references)} >= {"box", "lid"}


def test_run_leaves_metrics_config_and_pictures(
    place: Place, first: subprocess.CompletedProcess[str]
) -> None:
    lines = [line for line in _lines(place.workdir / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "vision.blocks" in first.stderr and "vision.blocks.0" not in first.stderr
    assert "vision.blocks.0" in (place.workdir / "parameters.txt").read_text()
    config = json.loads((place.workdir / "config.json").read_text())
    assert config["steps"] == STEPS
    assert config["model"]["head"] == "linear"
    assert config["eval"]["canvas"] == [32, 32]
    for name in ("val", "test", "shuffled"):
        page = place.workdir / f"pictures-{name}.png"
        # Written at the last step alone: val was evaluated before it, too.
        assert first.stdout.count(str(page)) == 1
        with Image.open(page) as image:
            assert len(np.unique(np.asarray(image))) > 10
    assert (place.workdir / "dump" / "val" / "predictions.jsonl").exists()
    # The last step's evaluation during training is not done twice.
    for step in (2, STEPS):
        assert first.stderr.count(f"evaluating val at step {step} ") == 1
    assert list((place.workdir / "tensorboard").iterdir())
    assert not list(place.workdir.rglob("*.partial"))


@pytest.mark.usefixtures("first")
def test_final_scores_are_metrics_of_the_last_step_and_each_is_told_once(place: Place) -> None:
    summary = place.summary()
    told = _lines(place.workdir / "metrics.jsonl")
    for name in ("mIoU", "shuffled/mIoU", "val/mIoU", "oracle/part/mIoU"):
        earlier = [2] if name == "val/mIoU" else []
        known = [(n["step"], n[name]) for n in told if name in n]
        assert [step for step, _ in known] == [*earlier, STEPS]
        assert known[-1] == (STEPS, summary[name])


def test_training_and_prediction_load_no_other_framework(
    first: subprocess.CompletedProcess[str],
) -> None:
    loaded = _loaded(first)
    assert {"jax", "flax", "grain", "orbax"} <= loaded
    assert not loaded & {"tensorflow", "torch"}


@pytest.mark.usefixtures("first")
def test_command_line_predicts_what_the_evaluator_dumped(place: Place) -> None:
    dumped = _lines(place.workdir / "dump" / "test" / "predictions.jsonl")
    theirs = {(line["image"], line["expression"]): line for line in dumped}
    compared = 0
    for line in _lines(place.folder / "out" / "predictions.jsonl"):
        known = theirs.get((Path(line["image"]).stem, line["expression"]))
        if known is not None:
            assert line["segmentation"] == known["segmentation"], line["expression"]
            assert line["present"] == known["present"]
            compared += 1
    assert compared == 5


@pytest.mark.usefixtures("first")
def test_same_command_again_trains_nothing_and_tells_the_same(place: Place) -> None:
    before = place.summary()
    told = (place.workdir / "metrics.jsonl").read_bytes()
    batches = (place.workdir / "batches-0.jsonl").read_bytes()
    again = place.run(*place.command())
    assert again.returncode == 0, again.stderr[-3000:]
    assert place.summary() == before
    assert (place.workdir / "metrics.jsonl").read_bytes() == told
    assert (place.workdir / "batches-0.jsonl").read_bytes() == batches


@pytest.mark.usefixtures("first")
def test_evaluation_alone_scores_the_own_checkpoint_and_keeps_what_else_is_known(
    place: Place,
) -> None:
    before, path = place.summary(), place.workdir / "summary.json"
    config = (place.workdir / "config.json").read_bytes()
    path.write_text(json.dumps({**before, "mIoU": -1.0, "note": 1.0}))
    left = [place.workdir / "pictures-val.png", place.workdir / "dump/val/predictions.jsonl"]
    dumped = left[1].read_bytes()
    for file in left:
        file.unlink()
    done = place.run(
        *place.command(
            "--mode=eval",
            "--config.init.checkpoint=/nowhere",
            "--config.evals.shuffled.when=never",
            "--config.seed=5",
        )
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert place.summary() == {**before, "note": 1.0}
    assert left[0].exists() and left[1].read_bytes() == dumped
    assert str(path) in done.stdout
    assert "shuffled" not in done.stdout
    assert f"checkpoint of step {STEPS} in {place.workdir}" in done.stderr
    assert (place.workdir / "config.json").read_bytes() == config
    path.write_text(json.dumps(before))


@pytest.mark.usefixtures("first")
def test_another_seed_does_not_resume_and_changes_nothing(place: Place) -> None:
    names = ("config.json", "summary.json", "metrics.jsonl")
    before = [(place.workdir / name).read_bytes() for name in names]
    done = place.run(*place.command("--config.seed=5"))
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "config.seed=0, now it is 5" in line]
    assert len(errors) == 1, done.stderr[-3000:]
    assert [(place.workdir / name).read_bytes() for name in names] == before


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.optim.lrr=1e-3", '"lr"'),
        ("--config.optm.lr=1e-3", '--config.optm.lr: Did you mean "optim"'),
        ("--config.optim.learning_rate=1", "--config.optim.learning_rate: there is no field"),
        ("--config.optim.lr=1 --config.model.lr=2", "error: --config: there is no field 'lr'"),
        ("--stepz=3", "error: Unknown command line flag 'stepz'"),
        ("--config.model.head=projecter", "'projector'"),
        ("--config.data.dataset=nothing", "tools.build_dataset"),
        ("--config.eval.protocol=criss", "unknown protocol 'criss': did you mean 'cris'?"),
        ("--config.epochs=2", "config.steps=3 and config.epochs=2: set one and leave"),
        (
            "--config.loop.profile_steps=(2,9)",
            "profile_steps=(2, 9): the training ends with step 3",
        ),
        # Absl joins this to the tuple that is given already.
        ("--config.eval.canvas=(16,)", "config.eval.canvas=(32, 32, 16): give a height"),
        ("--config=configs/refcoco_unires.py:tinny", "did you mean 'tiny'?"),
        ("--config=configs/scenes_unires.py:tiny", "takes 0 positional arguments"),
        ("--config.init.clip=/nowhere/clip.pt", "/nowhere/clip.pt: no such file"),
        ("--config.init.clip_sha256=a", "config.init.clip is not: set both"),
        ("--config.init.clip=a --config.init.checkpoint=b", "leave one of the two empty"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_cure(
    place: Place, tmp_path: Path, flag: str, named: str
) -> None:
    done = place.run(*_command(tmp_path / "run", place.data, *flag.split()))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if named in line]
    assert len(errors) == 1, done.stderr[-3000:]
    assert not (tmp_path / "run").exists(), "what was not begun leaves nothing"


def test_a_canvas_that_is_too_small_is_told_before_the_training(place: Place, tmp_path: Path):
    command = _command(tmp_path, place.data)
    done = place.run(*(part.replace("(32, 32)", "(16, 16)") for part in command))
    assert done.returncode == 1
    assert "the canvas is (16, 16); set config.eval.canvas" in done.stderr
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.long
def test_a_run_starts_from_clip_and_resumes_without_it(place: Place, tmp_path: Path) -> None:
    size = SMALL._replace(vocab=CLIP_VOCAB)
    source = hf_folder(tmp_path / "clip", size)
    fields = {
        **{f"model.{name}": value for name, value in SMALL_MODEL.items()},
        "model.vocab_size": CLIP_VOCAB,
        "model.eos_id": CLIP_EOS,
        "model.stem_width": 0,
        "model.mask_stride": 4,
        "steps": 1,
        "optim.lr": 0.0,
        "eval.oracle": "",
        **{f"evals.{name}.when": "never" for name in ("val", "test", "shuffled")},
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = place.run(
        *_command(tmp_path / "run", place.data, *flags, f"--config.init.clip={source}")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    params, _ = load_params(tmp_path / "run")
    entries = arrays(hf_shapes(size))
    np.testing.assert_array_equal(
        params["text.token_embedding.embedding"],
        entries["text_model.embeddings.token_embedding.weight"],
    )
    np.testing.assert_array_equal(
        params["vision.blocks.1.attention.value.kernel"],
        entries["vision_model.encoder.layers.1.self_attn.v_proj.weight"].T,
    )
    assert params["vision.low_tokens"].std() > 0
    again = place.run(*_command(tmp_path / "run", place.data, *flags, "--config.init.clip=/gone"))
    assert again.returncode == 0, again.stderr[-3000:]


def test_a_config_file_that_is_not_there_is_one_line(place: Place, tmp_path: Path) -> None:
    done = place.run("main.py", "--config=configs/none.py", f"--workdir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "configs/none.py" in line]) == 1
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file_is_one_line(place: Place, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    done = place.run(*_command(tmp_path / "run", place.data))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(tmp_path / "run") in errors[0]
