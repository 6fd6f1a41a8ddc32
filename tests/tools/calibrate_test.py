"""`tools.calibrate`: every threshold in one pass, and where the chosen ones are used and refused."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_jax.checkpoints import calibration
from refseg_jax.cli import predict
from refseg_jax.errors import UserError
from refseg_jax.evaluation.calibration import PRESENCE_LOGITS, Curves, EveryThreshold
from refseg_jax.evaluation.predictions import encode
from refseg_jax.evaluation.protocols import Pair, State
from refseg_jax.evaluation.protocols.regions import RleRegions
from refseg_jax.evaluation.thresholds import Thresholds, probability
from refseg_jax.exports.exporter import export
from refseg_jax.prediction.predictor import Predictor
from tests.refseg_jax.training.tiny_run import (
    WITH_PRESENCE,
    build_many_sizes,
    data_config,
    presence_params,
    save_unires,
    unires_run_config,
)
from tools import calibrate

#: Such that masks are neither empty nor full, and that the head says yes to about half of the pairs.
THRESHOLD, BIAS = 0.6, -0.6

pytestmark = pytest.mark.usefixtures("one_compilation")


def random_pairs(head: bool) -> list[Pair]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(40):
        target = np.zeros((6, 7), bool)
        some = number % 4 > 0
        target[1:4, 2:5] = some
        grey = np.clip(rng.normal(100 + 60 * target, 70), 0, 255).astype(np.uint8)
        presence = probability(rng.normal(1.0 if some else -1.0, 2.0)) if head else None
        form = "" if some else ("kind", "place")[number % 8 // 4]
        regions = RleRegions((6, 7), encode(grey > 127), encode(target), lambda grey=grey: grey)
        found.append(Pair(str(number), regions, True, form=form, empty=not some, presence=presence))
    return found


@pytest.mark.parametrize("head", [True, False])
def test_curves_are_the_scores_of_each_threshold_by_itself(head: bool) -> None:
    pairs, state = random_pairs(head), State(EveryThreshold())
    for pair in pairs:
        state.add(pair)
    curves = Curves.of(state.compute())
    assert curves.mask.shape == curves.mean_iou.shape == (255,)
    assert curves.forms.keys() == {"kind", "place"}
    with_target = [pair for pair in pairs if pair.targeted]
    without = [pair for pair in pairs if not pair.targeted]
    for t in (0, 60, 127, 200, 254):
        masks = {p.id: p.regions.soft_map() / 255 > curves.mask[t] for p in pairs}
        ious = []
        for pair in with_target:
            target, mask = pair.regions.target(), masks[pair.id]
            ious.append((target & mask).sum() / (target | mask).sum())
        assert curves.mean_iou[t] == pytest.approx(np.mean(ious), abs=1e-12)
        if not head:
            assert curves.presence is None
            assert curves.t_acc[t] == np.mean([masks[p.id].any() for p in with_target])
            assert curves.n_acc[t] == np.mean([not masks[p.id].any() for p in without])
    if head:
        assert curves.presence is not None
        for j in (0, 100, 160, 320):
            bound = probability(PRESENCE_LOGITS[j])
            assert curves.t_acc[j] == np.mean([p.presence > bound for p in with_target])
            of_kind = [p.presence <= bound for p in without if p.form == "kind"]
            assert curves.forms["kind"][j] == np.mean(of_kind)


def test_a_threshold_that_is_tried_decides_as_the_head_does() -> None:
    """A logit on the grid is not above itself, as `margin > presence_logit` has it."""
    for logit in (-2.0, 0.0, 1.05):
        pair = dataclasses.replace(random_pairs(True)[1], presence=probability(logit))
        state = State(EveryThreshold())
        state.add(pair)
        curves = Curves.of(state.compute())
        at = int(np.abs(PRESENCE_LOGITS - logit).argmin())
        assert (curves.t_acc[at - 1], curves.t_acc[at]) == (1.0, 0.0)


def test_the_choice_is_the_best_and_ties_stay_near_the_config() -> None:
    ones = np.ones(255)
    curves = Curves(
        mask=np.linspace(0.002, 0.998, 255),
        mean_iou=ones * 0.5,
        presence=np.linspace(0.1, 0.9, 9),
        t_acc=np.array([1.0, 1.0, 0.98, 0.96, 0.9, 0.7, 0.5, 0.2, 0.0]),
        n_acc=np.array([0.0, 0.1, 0.30, 0.50, 0.8, 0.9, 0.9, 0.9, 1.0]),
        forms={},
    )
    config = Thresholds(0.35, origin="config")
    best, rule = curves.choose(config)
    assert abs(best.mask - 0.35) < 0.003 and best.presence == pytest.approx(0.5)
    assert (best.origin, rule) == ("calibrated", "best N_acc + T_acc")
    wanted, rule = curves.choose(config, 0.95)
    assert wanted.presence == pytest.approx(0.4) and "T_acc of 0.95" in rule
    with pytest.raises(UserError, match=r"no threshold reaches it; the most is 0\.9500"):
        dataclasses.replace(curves, t_acc=curves.t_acc * 0.95).choose(config, 0.96)
    kept, rule = dataclasses.replace(curves, n_acc=np.zeros(0)).choose(config)
    assert kept.presence == 0.5 and "no pair of the split lacks a target" in rule
    with pytest.raises(UserError, match="no pair of the split has a target"):
        dataclasses.replace(curves, mean_iou=np.zeros(0)).choose(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    build_many_sizes(folder / "data")
    save_run(folder / "run", folder / "data")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    return folder


def save_run(run: Path, data: Path, bias: float = BIAS) -> None:
    config = unires_run_config(THRESHOLD, WITH_PRESENCE)
    config["data"] |= dataclasses.asdict(data_config(data))
    config["eval"] |= {"canvas": data_config(data).canvas, "batch_size": 4, "pairs": 4}
    save_unires(run, presence_params(bias), config=config)


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


def test_thresholds_are_chosen_kept_and_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run"
    flags = [f"--checkpoint={run}", "--split=val", "--json"]
    before = {p: p.read_bytes() for p in (run / "checkpoints/1").rglob("*") if p.is_file()}
    assert calibrate.main(flags) == 0
    told = json.loads(capsys.readouterr().out)
    kept = calibration.read(run / "checkpoints/1.calibration.json")
    assert kept is not None and told["mask"] == kept.mask and told["file"].endswith("n.json")
    assert {p: p.read_bytes() for p in before} == before
    with Image.open(run / "checkpoints/1.calibration.png") as picture:
        assert np.asarray(picture).std() > 0
    scores = kept.scores
    assert scores["calibrated/mIoU"] >= scores["config/mIoU"]
    sums = {
        when: scores[f"{when}/T_acc"] + scores[f"{when}/N_acc"] for when in ("config", "calibrated")
    }
    assert sums["calibrated"] >= sums["config"]
    # Every way in decides by them, and says so.
    export(run, "safetensors", tmp_path / "out", command=["make", "it"])
    usual = Predictor.from_checkpoint(run)
    assert usual.thresholds == Thresholds(THRESHOLD, 0.5, "config")
    own = Thresholds(kept.mask, kept.presence or 0.0, "calibrated")
    for source in (run, run / "checkpoints/1", tmp_path / "out"):
        predictor = Predictor.from_checkpoint(source, thresholds="calibrated")
        assert predictor.thresholds == own
        image = folder / "images/a.png"
        texts = ["the red box", "both boxes", "a box on the left"]
        for one, other in zip(
            predictor.predict(image, texts), usual.predict(image, texts), strict=True
        ):
            assert one.presence is not None and other.presence is not None
            assert one.margin == pytest.approx(other.margin, abs=1e-5)
            assert one.present == (one.presence > own.presence)
            assert (one.uncleared <= other.uncleared).all() or kept.mask < THRESHOLD
    for choice, expected in (
        ("calibrated", own),
        ("config", usual.thresholds),
        ("0.7,0.2", Thresholds(0.7, 0.2)),
        ("0.7", Thresholds(0.7)),
    ):
        out = tmp_path / choice
        given = [f"--checkpoint={run}", f"--image={folder / 'images'}", f"--output_dir={out}"]
        assert predict.main([*given, "--text=the red box", f"--thresholds={choice}"]) == 0
        lines = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
        assert [line["thresholds"] for line in lines] == [expected.as_json()] * 2
        for line in lines:
            assert line["present"] == (line["presence"] > expected.presence)


def test_what_was_not_calibrated_or_belongs_to_others_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    save_run(run, folder / "data", bias=0.3)
    with pytest.raises(UserError, match=r"never calibrated \(no 1\.calibration\.json\)"):
        Predictor.from_checkpoint(run, thresholds="calibrated")
    file = run / "checkpoints/1.calibration.json"
    other = calibration.Calibration(0.4, 0.6, "0" * 64, "tiny", "val", "best", {"config/mIoU": 0.5})
    calibration.write(file, other)
    for ask in (
        lambda: Predictor.from_checkpoint(run, thresholds="calibrated"),
        lambda: export(run, "safetensors", tmp_path / "out", command=["x"]),
    ):
        with pytest.raises(UserError, match="the calibration of other parameters; calibrate again"):
            ask()
    whole = file.read_text()
    damaged: list[tuple[str, str]] = [
        (whole.replace("0.4", "0.5"), "changed since it was written"),
        ("{", "not JSON"),
        ("[]", "not a calibration"),
    ]
    for (content, words), choice in itertools.product(damaged, ("config", "calibrated")):
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            Predictor.from_checkpoint(run, thresholds=choice)
    for flags, words in (
        ([f"--checkpoint={run}", "--split=vall"], "--split: "),
        ([f"--checkpoint={run}", "--t_acc=1.5"], "--t_acc=1.5 is not between 0 and 1"),
        ([f"--checkpoint={tmp_path}"], "no checkpoint"),
    ):
        assert calibrate.main(flags) == 1
        said = _said(capsys)
        assert said.startswith("error: ") and words in said and "\n" not in said


def test_an_export_is_not_calibrated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", folder / "data")
    export(tmp_path / "run", "safetensors", tmp_path / "out", command=["x"])
    assert calibrate.main([f"--checkpoint={tmp_path / 'out'}"]) == 1
    assert "calibrate the run, and export again" in _said(capsys)
    with pytest.raises(UserError, match="never calibrated"):
        Predictor.from_checkpoint(tmp_path / "out", thresholds="calibrated")


@pytest.mark.parametrize("value", ["often", "0.4,0.5,0.6", "1.5", "0.5,0"])
def test_thresholds_that_are_none_are_one_line(
    value: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: list[Any] = [f"--checkpoint={folder / 'run'}", f"--image={folder / 'images'}"]
    flags += [f"--output_dir={tmp_path / 'out'}", "--text=x", f"--thresholds={value}"]
    assert predict.main(flags) == 1
    assert _said(capsys).startswith("error: ")
    assert not (tmp_path / "out").exists()
