"""Runs the paper's ablations on Scenes on equal budgets and writes the table.

    python -m tools.ablation --output_dir=runs/ablation --table=docs/ablation_group_tokens.md

Every run is `main.py` with a few fields changed, in a workdir of its own. The command may be stopped
at any time and started again: finished runs are kept, and an unfinished one goes on from its
checkpoint.
"""

import argparse
import dataclasses
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from refseg_jax.report import read_summary

#: Name in the table -> overrides of the config; the first one is what the others are compared with.
GROUP_TOKENS: dict[str, tuple[str, ...]] = {
    "both": (),
    "low only": ("--config.model.high_tokens=0",),
    "high only": ("--config.model.low_tokens=0",),
    "none": ("--config.model.low_tokens=0", "--config.model.high_tokens=0"),
}
#: Nothing is wanted but the scores on the held-out scenes.
SCORES_ONLY = (
    "--config.loop.eval_every=0",
    "--config.evals.val.when=never",
    "--config.evals.shuffled.when=never",
    "--config.eval.oracle=",
    "--config.eval.dump=",
    "--config.eval.pictures=0",
)
METRICS = ("object/mIoU", "part/mIoU", "multi/mIoU", "mIoU")


@dataclasses.dataclass(frozen=True)
class Cell:
    """Scores of one variant over the seeds.

    Attributes:
        mean: of the scores.
        error: standard error of the mean (sample standard deviation / sqrt(n)).
    """

    mean: float
    error: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Cell":
        """Mean and standard error.

        Raises:
            ValueError: fewer than two scores.
        """
        if len(scores) < 2:
            raise ValueError(f"a standard error needs two scores or more, there are {len(scores)}")
        return cls(statistics.fmean(scores), statistics.stdev(scores) / math.sqrt(len(scores)))

    def resolved_from(self, other: "Cell") -> bool:
        """Whether the difference is at least two standard errors of the difference."""
        return abs(self.mean - other.mean) >= 2.0 * math.hypot(self.error, other.error)


def markdown(cells: dict[str, dict[str, Cell]], steps: int, seeds: Sequence[int]) -> str:
    """The table; a difference under two standard errors is called unresolved."""
    names = list(cells)
    lines = [
        "| group tokens | " + " | ".join(METRICS) + " |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for name in names:
        row = []
        for metric in METRICS:
            cell = cells[name][metric]
            text = f"{100 * cell.mean:.2f} ± {100 * cell.error:.2f}"
            if name != names[0]:
                known = cell.resolved_from(cells[names[0]][metric])
                gap = 100 * (cell.mean - cells[names[0]][metric].mean)
                text += f" ({gap:+.2f}{'' if known else ', unresolved'})"
            row.append(text)
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    lines.append("")
    lines.append(
        f"Held-out scenes, {steps} steps a run, seeds {', '.join(map(str, seeds))}: mean ± standard "
        f"error in percent, in brackets the difference to `{names[0]}`; *unresolved* is a "
        "difference under two standard errors."
    )
    return "\n".join(lines) + "\n"


def run_one(
    options: argparse.Namespace, overrides: Sequence[str], seed: int, workdir: Path
) -> None:
    """One training, unless it is finished already."""
    if read_summary(workdir / "summary.json"):
        return
    command = [
        sys.executable,
        str(Path(__file__).resolve().parents[1] / "main.py"),
        f"--config={options.config}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        f"--config.steps={options.steps}",
        f"--config.data.data_dir={options.data_dir}",
        *SCORES_ONLY,
        *overrides,
    ]
    print(f"{workdir}: {' '.join(command[1:])}", flush=True)
    subprocess.run(command, check=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/scenes_unires.py")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="Markdown file to write (default: print only)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    scores: dict[str, dict[str, list[float]]] = {n: {m: [] for m in METRICS} for n in GROUP_TOKENS}
    for seed in options.seeds:
        for name, overrides in GROUP_TOKENS.items():
            workdir = options.output_dir / f"{name.replace(' ', '_')}-{seed}"
            run_one(options, overrides, seed, workdir)
            summary = read_summary(workdir / "summary.json")
            for metric in METRICS:
                scores[name][metric].append(summary[metric])
    cells = {n: {m: Cell.of(values) for m, values in row.items()} for n, row in scores.items()}
    text = markdown(cells, options.steps, options.seeds)
    print(text)
    if options.table:
        options.table.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
