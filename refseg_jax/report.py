"""What a person reads at the end of a run: the table by granularity, and `summary.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from refseg_jax.batch import GRANULARITIES

_COLUMNS = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9")


def table(scores: Mapping[str, float], prefix: str = "") -> str:
    """Scores as text: one row per granularity and one for all, in percent.

    Args:
        scores: flat keys such as `"object/mIoU"` and `"mIoU"`, values in [0, 1].
        prefix: what the keys begin with, e.g. `"shuffled/"`.
    """
    rows = []
    for name in (*GRANULARITIES, ""):
        keys = [f"{prefix}{name}/{c}" if name else f"{prefix}{c}" for c in _COLUMNS]
        values = [f"{100 * scores[key]:8.2f}" if key in scores else f"{'-':>8}" for key in keys]
        if any(key in scores for key in keys):
            rows.append(f"{name or 'all':<10}" + "".join(values))
    header = f"{'':<10}" + "".join(f"{column:>8}" for column in _COLUMNS)
    return "\n".join([header, *rows])


def full_text(scores: Mapping[str, float], prefixes: Sequence[str]) -> str:
    """The tables of all evaluations that have scores, and of the oracle that knows the kind only."""
    parts = [
        f"{prefix.rstrip('/') or 'test'}\n{table(scores, prefix)}"
        for prefix in prefixes
        if f"{prefix}mIoU" in scores
    ]
    known = {key: value for key, value in scores.items() if key.startswith("oracle/")}
    if known:
        lines = [f"{key.split('/')[1]:<10}{100 * value:8.2f}" for key, value in known.items()]
        parts.append("oracle that knows the kind but not the words, mIoU\n" + "\n".join(lines))
    return "\n\n".join(parts)


def write_summary(path: Path, scores: Mapping[str, float]) -> None:
    """Flat keys and unrounded values as JSON; the file is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted(scores.items())), indent=1) + "\n")
    partial.replace(path)


def read_summary(path: Path) -> dict[str, float]:
    """The summary of an earlier call on the same workdir, `{}` where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}
