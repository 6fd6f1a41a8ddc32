"""Runs the papers' ablations on Scenes on equal budgets and writes their tables.

    python -m tools.ablation --study=group_tokens --output_dir=runs/ablation \\
        --page=docs/results/group_tokens.md

What a study trains and tells stands in `tools.studies`. Every run is `main.py` with a few fields
changed, in a workdir of its own. The command may be stopped at any time (Ctrl-C, SIGTERM: it stops
its runs first, which save) and started again: finished runs are kept, and an unfinished one goes on
from its checkpoint. A folder with a run of another config is an error. `--jobs=2` trains two at a time,
each on its share of the cores (small models make more of a core than of several) and with a log beside
its workdir.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from refseg_jax.cli.command_line import unwound_by_sigterm
from refseg_jax.errors import UserError
from tools.ablation_page import Scores, markdown
from tools.studies import STUDIES, Row, Study
from tools.trainings import Training, train_all


def run_all(options: argparse.Namespace) -> str:
    """All runs; the page.

    Raises:
        UserError: an option makes no sense, a folder has another run, or runs have failed.
    """
    _check(options)
    study = STUDIES[options.study]
    trainings = study_trainings(options)
    train_all(trainings.values(), options.jobs)

    def scores(row: Row) -> Scores:
        return [row.read(trainings[row.variant, seed].workdir) for seed in options.seeds]

    read = [[scores(row) for row in table.rows] for table in study.tables]
    return markdown(study, read, options.seeds, options.steps)


def study_trainings(options: argparse.Namespace) -> Mapping[tuple[str, int], Training]:
    """What the study trains, by variant and seed; a seed's runs stand together.

    Args:
        options: `study`, `data_dir`, `output_dir`, `steps` and `seeds` of the command line.
    """
    study: Study = STUDIES[options.study]
    return {
        (name, seed): Training.of(
            options.output_dir / f"{name.replace(' ', '_')}-{seed}",
            variant.config or study.config,
            (
                f"--config.data.data_dir={options.data_dir}",
                f"--config.seed={seed}",
                f"--config.steps={options.steps}",
                *study.fields,
                *variant.overrides,
            ),
            study.metrics,
        )
        for seed in options.seeds
        for name, variant in study.variants.items()
    }


def _check(options: argparse.Namespace) -> None:
    if len(set(options.seeds)) < max(2, len(options.seeds)):
        raise UserError(f"--seeds {options.seeds}: name two or more, all different")
    for name in ("steps", "jobs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)}: at least 1")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ablation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="Markdown file to write (default: print only)")
    parser.add_argument("--steps", type=int, help="of a run (default: the study's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    if options.steps is None:
        options.steps = STUDIES[options.study].steps
    try:
        with unwound_by_sigterm():
            text = run_all(options)
            print(text)
            if options.page:
                options.page.write_text(text)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
