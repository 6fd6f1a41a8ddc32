r"""Chooses the thresholds of a trained model on a validation split.

    python -m tools.calibrate --checkpoint=runs/scenes_rela --split=val

One pass over the split scores every threshold. That of the mask gets the best mIoU over expressions with
a target. That of presence gets the best N_acc + T_acc; with `--t_acc=0.95`, the best N_acc among those
that find 95 % of what is there. Both are kept in `checkpoints/STEP.calibration.json`, beside the
checkpoint, with curves in `checkpoints/STEP.calibration.png`. The table tells what was gained, for each
form of absence too.

`--thresholds=calibrated` of `tools.predict` (and `thresholds="calibrated"` of `Predictor`) decides by
them; without the flag, the run's own thresholds hold. Exports that are made afterwards have them, too.
Never calibrate on the split that a score is told of.

The split is one of the run's dataset, or of `--dataset`; `--data_dir` says where it lies now.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from configs.common import evaluation
from input_pipeline.experiment_data import ExperimentData
from refseg_jax import sharding
from refseg_jax.batch import GRANULARITIES
from refseg_jax.checkpoints import calibration
from refseg_jax.checkpoints.calibration import Calibration
from refseg_jax.checkpoints.folder import another_version, locate, step_choice
from refseg_jax.checkpoints.params import load_recorded
from refseg_jax.cli.command_line import Result, add_json_flag, command_parser, ended, expanded
from refseg_jax.cli.results import write_png
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError
from refseg_jax.evaluation.calibration import Curves, EveryThreshold
from refseg_jax.evaluation.evaluator import Evaluator
from refseg_jax.evaluation.thresholds import Thresholds, of_config
from refseg_jax.exports.folder import is_export
from refseg_jax.models.forward import Forward
from refseg_jax.models.graphs import forward_of
from refseg_jax.reporting.curves import Plot, draw_plots
from refseg_jax.storage import buckets
from refseg_jax.storage.hub import model_folder


class _Loaded(NamedTuple):
    """A checkpoint, and the file of its calibration."""

    params: dict[str, Any]
    config: Any
    kept: Path
    step: int


def calibrate(options: argparse.Namespace) -> Result:
    """Chooses thresholds, keeps them and tells of them."""
    if options.t_acc is not None and not 0.0 < options.t_acc < 1.0:
        raise UserError(f"--t_acc={options.t_acc:g} is not between 0 and 1")
    loaded = _load(options)
    with another_version(options.checkpoint):
        forward = forward_of(loaded.config.model.to_dict())
        evaluator = _evaluator(options, loaded.config, forward)
    curves = Curves.of(evaluator.evaluate(loaded.params, loaded.step))
    before = of_config(loaded.config.eval)
    after, rule = curves.choose(before, options.t_acc)
    scores = {"config": curves.at(before), "calibrated": curves.at(after)}
    found = Calibration(
        mask=after.mask,
        presence=None if curves.presence is None else after.presence,
        parameters=calibration.digest(loaded.params),
        dataset=loaded.config.data.dataset,
        split=options.split,
        rule=rule,
        scores={f"{when}/{name}": v for when, s in scores.items() for name, v in s.items()},
    )
    calibration.write(loaded.kept, found)
    picture = loaded.kept.with_suffix(".png")
    if not buckets.is_remote(picture):
        write_png(picture, draw_plots(_plots(curves, before, after)))
    _tell(before, after, scores, curves, rule)
    print(f"calibration: {loaded.kept}")
    return Result({**found.as_json(), "file": loaded.kept, "step": loaded.step})


def _load(options: argparse.Namespace) -> _Loaded:
    path = model_folder(options.checkpoint)
    if is_export(path):
        raise UserError(
            f"{path}: is an export, which has no settings of its data; calibrate the run, and export "
            "again"
        )
    params, record = load_recorded(path, step=step_choice(options.step))
    config: Any = ConfigDict(record.config)
    with another_version(options.checkpoint):
        config.data.data_dir = options.data_dir or config.data.data_dir
        config.data.dataset = options.dataset or config.data.dataset
    directory, _ = locate(path)
    return _Loaded(params, config, calibration.place(directory, record.step), record.step)


def _evaluator(options: argparse.Namespace, config: Any, forward: Forward) -> Evaluator:
    model: Any = forward.model
    data = ExperimentData(config, model.image_size, model.mask_stride)
    entry = evaluation(options.split, granularities=tuple(options.granularities))
    data.check(entry, "--split", "name another with --split, --dataset or --data_dir")
    return Evaluator(
        name=options.split,
        forward=forward,
        batches=lambda: data.batches(entry),
        mesh=sharding.make_mesh(sharding.MeshConfig()),
        mask_stride=model.mask_stride,
        canvas=tuple(config.eval.canvas),
        threshold=config.eval.threshold,
        resample=config.eval.get("resample", "logits"),
        protocols=(EveryThreshold(),),
    )


def _plots(curves: Curves, before: Thresholds, after: Thresholds) -> list[Plot]:
    marks = {"config": before.mask, "calibrated": after.mask}
    mask = Plot("mask", "threshold of the mask", {"mIoU": (curves.mask, curves.mean_iou)}, marks)
    of_presence = {"T_acc": curves.t_acc, "N_acc": curves.n_acc}
    x, axis = curves.mask, "threshold of the mask"
    if curves.presence is not None:
        x, axis = curves.presence, "threshold of presence"
        marks = {"config": before.presence, "calibrated": after.presence}
    found = {name: (x, y) for name, y in of_presence.items() if len(y)}
    return [mask, Plot("presence", axis, found, marks)]


def _tell(
    before: Thresholds,
    after: Thresholds,
    scores: dict[str, dict[str, float]],
    curves: Curves,
    rule: str,
) -> None:
    print(f"threshold of the mask: {before.mask:.3f} -> {after.mask:.3f} (best mIoU)")
    if curves.presence is not None:
        print(f"threshold of presence: {before.presence:.3f} -> {after.presence:.3f} ({rule})")
    width = max(map(len, scores["config"]))
    print(f"{'':<{width}}  config  calibrated")
    for name, value in scores["config"].items():
        print(f"{name:<{width}}  {100 * value:6.2f}  {100 * scores['calibrated'][name]:10.2f}")


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.calibrate", __doc__)
    parser.add_argument(
        "--checkpoint", type=expanded, required=True, help="a run's workdir, or one checkpoint"
    )
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best or a number")
    parser.add_argument("--split", default="val", help="never that of which a score is told")
    parser.add_argument("--data_dir", type=expanded, help="by default that of the run")
    parser.add_argument("--dataset", help="by default that of the run")
    parser.add_argument(
        "--granularities",
        nargs="*",
        default=[],
        choices=GRANULARITIES,
        help="of the expressions; by default those of the run",
    )
    parser.add_argument(
        "--t_acc", type=float, help="share of targets that must be found, e.g. 0.95"
    )
    add_json_flag(parser, "thresholds and scores")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    return ended(lambda: calibrate(options), report=options.json)


if __name__ == "__main__":
    leave(main())
