"""The flags that `tools.build_dataset` and `tools.doctor` share: which files to read, and how."""

import argparse

from input_pipeline.workers import usable_cores
from refseg_jax.cli.command_line import expanded, path


def add_dataset_flags(parser: argparse.ArgumentParser, *, data_dir_required: bool) -> None:
    """Adds the flags that say where a dataset is, which of it to take and how to read it."""
    parser.add_argument(
        "--data_dir",
        type=path,
        required=data_dir_required,
        help="the folder of all built datasets",
    )
    parser.add_argument("--source_dir", type=path, help="the files that it is made of")
    parser.add_argument(
        "--image_dir",
        type=path,
        action="append",
        default=[],
        help="jsonl, masks/...: a folder besides --source_dir that holds images or masks; may be "
        "repeated",
    )
    parser.add_argument(
        "--mask_threshold",
        type=int,
        metavar="LEVEL",
        help="jsonl: masks with greys belong to the region from this level on (1 to 255)",
    )
    parser.add_argument(
        "--splits",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="e.g. val,testA; default: all",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=usable_cores(),
        help="processes; default: one a core",
    )
    parser.add_argument(
        "--config",
        type=expanded,
        default="",
        metavar="FILE[:PRESET]",
        help="count the texts that this config's tokenizer and context_length cut; default: CLIP's",
    )
