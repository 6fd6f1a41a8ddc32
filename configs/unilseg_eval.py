r"""UniLSeg on the benchmarks of its paper's Tables 2 to 7, from one checkpoint.

    python main.py --config=configs/unilseg_eval.py:refcoco --workdir=runs/unilseg_refcoco \
        --mode=eval --config.init.checkpoint=runs/unilseg

The name behind the colon is a key of `BENCHMARKS`, which has each benchmark's data, protocol and
published scores. `NAME,tiny` takes a checkpoint of another preset than `B`.

Masks are made as the paper says: resampled bilinearly to the picture's size, cut at 0.5.
`NAME,released` makes them as the released inference does: resampled by its own steps
(`config.eval.resample=unilseg`), cut at 0.35. Images are letterboxed to 480 x 480, and scored at
their own size.

The released checkpoint is UniLSeg-20 before any fine-tuning. The paper does not say which of its tables
are fine-tuned, except for `ade20k`, so its scores need not be those of Table 2.

Ref-YouTube-VOS: the masks of valid are not public. `ref_youtube_vos` scores the videos of train, to
check a setup; for the published score, `tools.rvos_submission` writes what the benchmark's server
takes (docs/video.md).

Time and score: not run here; neither the datasets nor the weights are at hand on this project's
machines.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import unilseg
from configs.common import evaluation
from refseg_jax import naming


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark of UniLSeg's paper.

    Attributes:
        table: number of the paper's table.
        dataset: name of the built dataset.
        scores: split -> published scores of UniLSeg-20 and UniLSeg-100, as printed; empty where the
            split that the paper reports has no public masks.
        metric: the score that the paper reports, as the protocol names it.
        protocol: name of the protocol.
        granularities: of the expressions.
        canvas: height and width that hold all images, in pixels.
        background: `config.eval.background`.
    """

    table: int
    dataset: str
    scores: Mapping[str, tuple[float, ...]]
    metric: str
    protocol: str
    granularities: tuple[str, ...]
    canvas: tuple[int, int] = (640, 640)
    background: str = "ignored"


#: Name -> benchmark. Figure and protocol: `sod`'s mean F-measure is taken for the paper's "F_mean",
#: which it does not define. For `partimagenet`, see `protocols.categories.EveryClass` on the background.
BENCHMARKS: Mapping[str, Benchmark] = {
    "refcoco": Benchmark(
        table=2,
        dataset="refcoco/unc",
        scores={"val": (80.52, 81.74), "testA": (81.83, 83.17), "testB": (78.43, 79.85)},
        metric="oIoU",
        protocol="cris",
        granularities=("object",),
    ),
    "refcoco_plus": Benchmark(
        table=2,
        dataset="refcoco_plus/unc",
        scores={"val": (72.70, 73.18), "testA": (77.02, 78.29), "testB": (66.99, 68.15)},
        metric="oIoU",
        protocol="cris",
        granularities=("object",),
    ),
    "refcocog": Benchmark(
        table=2,
        dataset="refcocog/umd",
        scores={"val": (78.41, 79.27), "test": (79.47, 80.54)},
        metric="oIoU",
        protocol="cris",
        granularities=("object",),
    ),
    "ref_youtube_vos": Benchmark(
        table=3,
        dataset="ref_youtube_vos",
        scores={"train": ()},
        metric="JF",
        protocol="rvos",
        granularities=("object", "none"),
        canvas=(1280, 1280),
    ),
    "ade20k_open": Benchmark(
        table=4,
        dataset="ade20k/150",
        scores={"val": (27.6, 29.5)},
        metric="mIoU",
        protocol="every_class",
        granularities=("category",),
        canvas=(2048, 2048),
    ),
    "pascal_context_59": Benchmark(
        table=4,
        dataset="pascal_context_59",
        scores={"val": (54.3, 56.7)},
        metric="mIoU",
        protocol="every_class",
        granularities=("category",),
    ),
    "ade20k": Benchmark(
        table=5,
        dataset="ade20k/150",
        scores={"val": (45.2, 49.5)},
        metric="mIoU",
        protocol="every_class",
        granularities=("category",),
        canvas=(2048, 2048),
    ),
    "ecssd": Benchmark(
        table=6,
        dataset="ecssd",
        scores={"test": (0.954, 0.961)},
        metric="Fmean",
        protocol="sod",
        granularities=("salient",),
    ),
    "sod": Benchmark(
        table=6,
        dataset="sod",
        scores={"test": (0.857, 0.863)},
        metric="Fmean",
        protocol="sod",
        granularities=("salient",),
    ),
    "pascal_s": Benchmark(
        table=6,
        dataset="pascal_s",
        scores={"test": (0.881, 0.889)},
        metric="Fmean",
        protocol="sod",
        granularities=("salient",),
    ),
    "partimagenet": Benchmark(
        table=7,
        dataset="partimagenet/ood",
        scores={"val": (62.46, 63.87), "test": (62.03, 63.62)},
        metric="mIoU",
        protocol="every_class",
        granularities=("part",),
        canvas=(2048, 2048),
        background="class",
    ),
}


def get_config(choice: str = "refcoco") -> ConfigDict:
    """The evaluations of a benchmark: `NAME`, `NAME,released`, `NAME,PRESET`, `NAME,released,PRESET`.

    Raises:
        ValueError: the benchmark or the preset is unknown.
    """
    name, *rest = choice.split(",")
    if name not in BENCHMARKS:
        raise ValueError(naming.unknown("benchmark", name, BENCHMARKS))
    released = "released" in rest
    preset, *_ = [*(word for word in rest if word != "released"), "B"]
    config: Any = unilseg.get_config(preset)
    config.mixture = ConfigDict()
    set_evaluations(config, BENCHMARKS[name])
    if released:
        config.eval.update({"threshold": 0.35, "resample": "unilseg"})
    return config


def set_evaluations(config: Any, benchmark: Benchmark) -> None:
    """Makes the evaluations of a config those of a benchmark."""
    chosen = benchmark
    config.data.update(
        {
            "dataset": chosen.dataset,
            "granularities": chosen.granularities,
            "part_prompt": unilseg.PARTS,
        }
    )
    large = max(chosen.canvas) > 1024
    config.eval.update(
        {
            "protocol": chosen.protocol,
            "canvas": chosen.canvas,
            "batch_size": 2 if large else 16,
            "background": chosen.background,
        }
    )
    config.evals = ConfigDict()
    for split in chosen.scores:
        config.evals[split] = evaluation(split, prefix=f"{split}/", when="during")
    first, *_ = chosen.scores
    config.checkpoint.best_metric = f"{first}/{chosen.metric}"
