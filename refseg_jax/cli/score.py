"""Scores the masks of any system by a published protocol.

    python -m tools.score --protocol=gres --predictions=P.jsonl --references=R.jsonl --json=FILE

`P` has a line for each pair of an expression and an image, as `tools.predict` and
`config.eval.dump` write it:

    {"id": "17", "segmentation": {"size": [480, 640], "counts": "..."}, "present": true}

`R` has the same ids in any order. `segmentation` is RLE or polygons and may be empty; the other fields
are optional. `empty` says whether the image contains nothing that the expression means; without it,
a mask without pixels says so:

    {"id": "17", "segmentation": [[10, 20, ...]], "empty": false, "granularity": "part",
     "group": "", "category": "", "form": ""}

Where the protocol allows it, masks are counted without being decoded. Pairs are not kept once they are
counted. docs/protocols.md explains the protocols and the fields.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from refseg_jax.cli.command_line import (
    STDOUT,
    Result,
    add_json_flag,
    command_parser,
    ended,
    path,
)
from refseg_jax.cli.score_lines import LineError, read_pairs
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols import PROTOCOLS, State, build_protocols, keyed_scores
from refseg_jax.reporting import tables


def score(
    predictions: Path, references: Path, protocol: str, *, min_pixels: int = 0
) -> list[State]:
    """Sums of each protocol over the pairs of two files.

    Args:
        predictions, references: files of JSON lines, see the module.
        protocol: names of protocols, separated by commas.
        min_pixels: as in `refseg_jax.evaluation.protocols.build_protocols`.

    Raises:
        UserError: a line cannot be used (the message names file and line), or a protocol's name is
            unknown.
    """
    states = [State(one) for one in build_protocols(protocol, min_pixels=min_pixels)]
    # `disable=None` shows a progress bar on a terminal only.
    for pair, line in tqdm(read_pairs(predictions, references), unit="pair", disable=None):
        for state in states:
            try:
                state.add(pair)
            except LineError:
                # It names the prediction's line, whose map is read only here.
                raise
            except UserError as error:
                raise line.error(error) from None
    return states


def run(options: argparse.Namespace) -> Result:
    """Scores the files and prints the tables."""
    written = None if options.json == STDOUT else options.json
    for flag in ("predictions", "references"):
        file = getattr(options, flag)
        if not file.is_file():
            raise UserError(f"{file}: is no file; check --{flag}")
        if written is not None and written.exists() and written.samefile(file):
            raise UserError(f"--json={written}: is the file of --{flag}; name another")
    states = score(
        options.predictions, options.references, options.protocol, min_pixels=options.min_pixels
    )
    scores = keyed_scores(states)
    for number, state in enumerate(states):
        protocol, prefix = state.protocol, f"{state.protocol.name}/" if number else ""
        print(tables.table(scores, protocol.columns, prefix))
        print(f"{state.counts()['count']:.0f} pairs")
        print(tables.comparable(protocol, protocol.threshold))
    return Result(dict(sorted(scores.items())))


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.score", __doc__)
    parser.add_argument(
        "--protocol", required=True, help=f"one, or several with commas: {', '.join(PROTOCOLS)}"
    )
    parser.add_argument("--predictions", type=path, required=True, help="a file of JSON lines")
    parser.add_argument("--references", type=path, required=True, help="a file of JSON lines")
    add_json_flag(parser, "the scores")
    parser.add_argument(
        "--min_pixels",
        type=int,
        default=0,
        help="gres: a mask of fewer pixels of 480 x 480 says that nothing is there (50 in the paper)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    return ended(lambda: run(options), report=options.json)


if __name__ == "__main__":
    leave(main())
