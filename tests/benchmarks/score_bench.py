"""Scoring 20,000 predictions of 480 x 640: peak memory, and speed compared with a scorer of arrays.

The scorer of arrays decodes all masks, keeps them and counts with boolean operations, as the evaluators
of published code do. It would need 12 GB for 20,000 pairs, so the two are compared on fewer, in turns.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refseg_jax.cli.score import score
from refseg_jax.evaluation import predictions
from tests.benchmarks.turns import clocked, cpu_seconds, ratios, spread, take_turns

PAIRS, COMPARED, ROUNDS = 20_000, 1_000, 5
HEIGHT, WIDTH = 480, 640

#: Runs in its own process, so that the peak is that of the scorer alone.
MEASURED = """
import resource, sys
from pathlib import Path
from tools.score import main
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
assert main(["--protocol=cris", "--predictions=" + sys.argv[1], "--references=" + sys.argv[2]]) == 0
print(before, peak())
"""


@pytest.mark.bench
def test_many_predictions_in_constant_memory(tmp_path: Path) -> None:
    peaks = {}
    for number in (PAIRS // 10, PAIRS):
        files = write_files(tmp_path, number)
        seconds, (before, after) = measured(*files)
        peaks[number] = after
        size = sum(file.stat().st_size for file in files) / 2**20
        print(
            f"\n{number} pairs ({size:.0f} MiB of lines) in {seconds:.1f} s with the start of the "
            f"process: peak {after:.0f} MiB, of which {before:.0f} are imports"
        )
    print(f"ten times the pairs: {peaks[PAIRS] - peaks[PAIRS // 10]:.1f} MiB more, their ids")


@pytest.mark.bench
def test_speed_beside_a_scorer_of_arrays(tmp_path: Path) -> None:
    files = write_files(tmp_path, COMPARED)
    assert abs(score(*files, "cris")[0].compute()["mIoU"] - with_arrays(*files)) < 1e-12
    works = {
        "ours": lambda: cpu_seconds(lambda: score(*files, "cris")),
        "arrays": lambda: cpu_seconds(lambda: with_arrays(*files)),
    }
    seconds = take_turns(works, ROUNDS)
    print(f"\n{COMPARED} pairs of {HEIGHT} x {WIDTH}, CPU microseconds a pair")
    for name, each in seconds.items():
        print(f"{name:<7} {spread([1e6 * s / COMPARED for s in each], '.0f')}")
    print(f"ratio   {spread(ratios(seconds['arrays'], seconds['ours']), '.1f')}")


def with_arrays(predicted: Path, references: Path) -> float:
    """The mean IoU, by decoding and keeping all masks before counting."""
    masks: dict[str, dict[str, np.ndarray]] = {}
    for kind, path in (("prediction", predicted), ("reference", references)):
        with path.open() as file:
            for text in file:
                line = json.loads(text)
                mask = coco_mask.decode(line["segmentation"]).astype(bool)
                masks.setdefault(line["id"], {})[kind] = mask
    ious = []
    for pair in masks.values():
        union = np.logical_or(pair["prediction"], pair["reference"]).sum()
        both = np.logical_and(pair["prediction"], pair["reference"]).sum()
        ious.append(both / union if union else 0.0)
    return float(np.mean(ious))


def write_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Writes predictions and references in different orders; masks are unions of 1 to 3 ellipses."""
    rng = np.random.default_rng(0)
    drawn = [predictions.encode(_ellipses(rng)) for _ in range(200)]
    order = rng.permutation(number)
    paths = folder / f"predictions-{number}.jsonl", folder / f"references-{number}.jsonl"
    for path, ids, step in ((paths[0], range(number), 1), (paths[1], order, 7)):
        with path.open("w") as file:
            for i in ids:
                line = {"id": f"{i:012d}-{i % 5}", "segmentation": drawn[int(i) * step % 200]}
                file.write(json.dumps({**line, "granularity": "object"}) + "\n")
    return paths


def _ellipses(rng: np.random.Generator) -> np.ndarray:
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(rng.integers(1, 4)):
        centre = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        radii = rng.integers(20, 150, 2)
        mask |= ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
    return mask


def measured(predicted: Path, references: Path) -> tuple[float, tuple[float, float]]:
    """Seconds of a scorer's process, and its memory in MiB before and after."""
    found: list[str] = []

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(predicted), str(references)],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(done.stdout.splitlines()[-1])

    seconds = clocked(run)
    before, after = map(float, found[0].split())
    return seconds, (before, after)
