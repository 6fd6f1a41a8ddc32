"""Runs the papers' ablations on Scenes with equal budgets and writes their tables.

    python -m tools.ablation --study=group_tokens --output_dir=runs/ablation/group_tokens \\
        --page=runs/ablation/group_tokens.md

`tools.studies` defines the studies. Every run is `main.py` with some changed fields in its own workdir.
The command can be stopped at any time (Ctrl-C or SIGTERM: its runs save and stop) and started again: it
keeps finished runs and resumes the others. A workdir that holds a run of another config is an error.
`--jobs=2` trains two runs at a time, each on its share of the cores and with a log beside its workdir.
That is faster for small models, which do not use several cores well.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from refseg_jax.cli.command_line import (
    Result,
    add_json_flag,
    command_parser,
    ended,
    expanded,
    path,
)
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError
from tools.ablation_page import Scores, markdown
from tools.studies import STUDIES, Row, Study
from tools.trainings import Training, train_all

#: Seeds of each variant's trainings by default.
SEEDS = [0, 1, 2]


def run_all(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Trains all variants; returns the page as Markdown, and for `--json` the scores of each seed.

    Args:
        options: options of the command line, as `parse` returns them.

    Raises:
        UserError: an option is out of range, a workdir holds another run, or runs have failed.
    """
    _check(options)
    study = STUDIES[options.study]
    trainings = study_trainings(options)
    train_all(trainings.values(), options.jobs)

    def scores(row: Row) -> Scores:
        return [row.read(trainings[row.variant, seed].workdir) for seed in options.seeds]

    read = [[scores(row) for row in table.rows] for table in study.tables]
    tables = [
        {row.label: found for row, found in zip(table.rows, of_table, strict=True)}
        for table, of_table in zip(study.tables, read, strict=True)
    ]
    asked = {name: getattr(options, name) for name in ("study", "steps", "seeds")}
    page = markdown(study, read, options.seeds, options.steps, command(options))
    return page, {**asked, "tables": tables}


def command(options: argparse.Namespace) -> str:
    """Command lines that make the page: one that builds the dataset, and this command."""
    chosen = [f"--study={options.study}"]
    if options.steps != STUDIES[options.study].steps:
        chosen.append(f"--steps={options.steps}")
    if options.seeds != SEEDS:
        chosen += ["--seeds", *map(str, options.seeds)]
    if options.jobs != 1:
        chosen.append(f"--jobs={options.jobs}")
    data_dir = f"--data_dir={shlex.quote(options.data_dir)}"
    lines = [
        " ".join(["python -m tools.ablation", *chosen, data_dir]),
        f"--output_dir={shlex.quote(str(options.output_dir))}",
    ]
    if options.page is not None:
        lines.append(f"--page={shlex.quote(str(options.page))}")
    build = f"python -m tools.build_dataset --dataset=scenes {data_dir}"
    return f"{build}\n" + " \\\n    ".join(lines)


def study_trainings(options: argparse.Namespace) -> Mapping[tuple[str, int], Training]:
    """(Variant, seed) -> training; all variants of one seed come before those of the next.

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
    least = 1 if STUDIES[options.study].noise else 2
    if len(set(options.seeds)) < max(least, len(options.seeds)):
        raise UserError(f"--seeds {options.seeds}: name {least} or more, all different")
    for name in ("steps", "jobs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)}: at least 1")


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.ablation", __doc__)
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--data_dir", type=expanded, default="data")
    parser.add_argument("--output_dir", type=path, required=True)
    parser.add_argument("--page", type=path, help="Markdown file to write (default: print only)")
    parser.add_argument("--steps", type=int, help="of a run (default: the study's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    add_json_flag(parser, "the scores of each seed")
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line; `None` takes that of the process."""
    options = make_parser().parse_args(arguments)
    if options.steps is None:
        options.steps = STUDIES[options.study].steps
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parse(arguments)

    def work() -> Result:
        text, scores = run_all(options)
        print(text)
        if options.page:
            options.page.write_text(text)
        return Result(scores)

    return ended(work, report=options.json)


if __name__ == "__main__":
    leave(main())
