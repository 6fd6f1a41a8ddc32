"""Tables of scores as text, and the file `summary.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from refseg_jax.batch import SCOPES
from refseg_jax.evaluation.protocols import Protocol


def table(scores: Mapping[str, float], columns: Sequence[str], prefix: str = "") -> str:
    """A table of scores in percent: a row for each granularity and form of absence, and one for all.

    Args:
        scores: keys such as `"object/mIoU"` and `"mIoU"`, values in [0, 1].
        columns: the scores to show.
        prefix: beginning of the keys, e.g. `"shuffled/"`.
    """
    rows = {}
    for name in (*SCOPES, ""):
        keys = [f"{prefix}{name}/{c}" if name else f"{prefix}{c}" for c in columns]
        values = [f"{100 * scores[key]:8.2f}" if key in scores else f"{'-':>8}" for key in keys]
        if any(key in scores for key in keys):
            rows[name or "all"] = "".join(values)
    width = max(10, *(len(name) + 1 for name in rows), 0)
    header = {"": "".join(f"{column:>8}" for column in columns)}
    return "\n".join(f"{name:<{width}}{values}" for name, values in (header | rows).items())


def comparable(protocol: Protocol, threshold: float) -> str:
    """One line on the published numbers that a protocol's scores can be compared with.

    Args:
        protocol: the protocol of the scores.
        threshold: probability above which pixels belonged to a mask; noted if not the protocol's.
    """
    line = f"{protocol.name}: comparable with {protocol.comparable}"
    if threshold != protocol.threshold and not {"map", "argmax"} & set(protocol.reads):
        line += f" (where masks are cut at {protocol.threshold:g}, here at {threshold:g})"
    return line


def full_text(
    scores: Mapping[str, float],
    prefixes: Sequence[str],
    protocols: Sequence[Protocol],
    threshold: float,
) -> str:
    """The tables of all evaluations that have scores, and of the oracle (`input_pipeline.oracle`).

    Args:
        scores: as evaluations return them.
        prefixes: prefixes of the evaluations' keys.
        protocols: the protocols of the scores; keys of all but the first begin with the protocol's
            name.
        threshold: probability above which pixels belonged to a mask.
    """
    parts = []
    for prefix in prefixes:
        for number, protocol in enumerate(protocols):
            start = f"{prefix}{protocol.name}/" if number else prefix
            if f"{start}{protocol.columns[0]}" in scores:
                title = (prefix.rstrip("/") or "test") + (f", {protocol.name}" if number else "")
                parts.append(f"{title}\n{table(scores, protocol.columns, start)}")
    known = {key: value for key, value in scores.items() if key.startswith("oracle/")}
    if known:
        lines = [f"{key.split('/')[1]:<10}{100 * value:8.2f}" for key, value in known.items()]
        parts.append("oracle that knows the kind but not the words, mIoU\n" + "\n".join(lines))
    if parts:
        parts.append("\n".join(comparable(protocol, threshold) for protocol in protocols))
    return "\n\n".join(parts)


def write_summary(path: Path, scores: Mapping[str, float]) -> None:
    """Writes scores as one flat JSON object with sorted keys, unrounded; complete or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(dict(sorted(scores.items())), indent=1) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_summary(path: Path) -> dict[str, float]:
    """Reads a file of `write_summary`; `{}` if there is none.

    Raises:
        ValueError: the file is not JSON.
    """
    return json.loads(path.read_text()) if path.is_file() else {}
