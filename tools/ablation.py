"""Runs the paper's ablations on Scenes on equal budgets and writes the table.

    python -m tools.ablation --output_dir=runs/ablation --table=docs/ablation_group_tokens.md

Every run is `main.py` with a few fields changed, in a workdir of its own. The command may be stopped
at any time and started again: finished runs are kept, and an unfinished one goes on from its
checkpoint. A folder with a run of other steps, seed or fields is an error.
"""

import argparse
import ast
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refseg_jax.errors import UserError
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
        "# Group tokens on and off, on Scenes",
        "",
        "The paper's Table 8 (there on RefCOCOm); written by `make ablation`. Without any group token",
        "the second decoding stage goes too. Equal budgets: the same number of steps.",
        "",
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
) -> dict[str, float]:
    """The scores of one training, which is done unless it is finished already.

    Raises:
        UserError: the folder has another run, or this one has failed.
    """
    fields = (
        f"--config.seed={seed}",
        f"--config.steps={options.steps}",
        *SCORES_ONLY,
        *overrides,
    )
    check_same_run(workdir, fields)
    if not _scores(workdir):
        train(options, fields, workdir)
    if not (scores := _scores(workdir)):
        raise UserError(f"{workdir}: stopped before its end; the same command goes on")
    return scores


def check_same_run(workdir: Path, fields: Sequence[str]) -> None:
    """Raises a `UserError` if the folder has a run with other values than the overrides `fields`."""
    try:
        config = json.loads((workdir / "config.json").read_text())
    except FileNotFoundError as error:
        if not (workdir / "summary.json").exists():
            return
        raise UserError(f"{workdir}: scores without config.json; move the folder away") from error
    except ValueError as error:
        raise UserError(f"{workdir}/config.json: {error}; move the folder away") from error
    for override in fields:
        name, _, wanted = override.removeprefix("--config.").partition("=")
        found: Any = config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != _value(wanted):
            raise UserError(
                f"{workdir}: a run with config.{name}={found!r}, not {_value(wanted)!r}; move the "
                "folder away or choose another --output_dir"
            )


def train(options: argparse.Namespace, fields: Sequence[str], workdir: Path) -> None:
    """Runs `main.py`.

    Raises:
        UserError: it has failed.
    """
    command = [
        sys.executable,
        str(Path(__file__).resolve().parents[1] / "main.py"),
        f"--config={options.config}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={options.data_dir}",
        *fields,
    ]
    print(f"{workdir}: {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"{workdir}: the run ended with exit code {code}, see what it says above")


def run_all(options: argparse.Namespace) -> str:
    """All runs; the table.

    Raises:
        UserError: too few seeds, or a run has failed.
    """
    if len(set(options.seeds)) < max(2, len(options.seeds)):
        raise UserError(f"--seeds {options.seeds}: name two or more, all different")
    scores: dict[str, dict[str, list[float]]] = {n: {m: [] for m in METRICS} for n in GROUP_TOKENS}
    for seed in options.seeds:
        for name, overrides in GROUP_TOKENS.items():
            workdir = options.output_dir / f"{name.replace(' ', '_')}-{seed}"
            found = run_one(options, overrides, seed, workdir)
            for metric in METRICS:
                scores[name][metric].append(found[metric])
    cells = {n: {m: Cell.of(values) for m, values in row.items()} for n, row in scores.items()}
    return markdown(cells, options.steps, options.seeds)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/scenes_unires.py")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="Markdown file to write (default: print only)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    try:
        text = run_all(options)
        print(text)
        if options.table:
            options.table.write_text(text)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _scores(workdir: Path) -> dict[str, float]:
    """Of a finished run, `{}` where it has none."""
    summary = read_summary(workdir / "summary.json")
    return summary if summary.keys() >= set(METRICS) else {}


def _value(text: str) -> object:
    """What an override means: a number where it is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


if __name__ == "__main__":
    sys.exit(main())
