"""Writes the shards of a split: files of records that appear only when they are complete.

A build writes its shards into an unfinished folder, each with a summary beside it. A build that is
started again skips shards that have their summary.
"""

import dataclasses
import hashlib
import json
import pickle
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_datasets.core import example_serializer, file_adapters

from input_pipeline.building.conversion import Outcome
from input_pipeline.building.counts import Tally
from input_pipeline.schema import features, to_features

#: Number of items per shard (about 160 MB for COCO).
IMAGES_OF_A_SHARD = 1000


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records to write.

    Attributes:
        split: name of the split.
        path: path of the file.
        items: items of the plan whose records the file holds.
    """

    split: str
    path: Path
    items: Sequence[Any]

    @property
    def summary_path(self) -> Path:
        """Path of the summary, which is written after the file of records."""
        return self.path.with_name(f"{self.path.name}.done.npz")

    def is_whole(self) -> bool:
        """Whether file and summary exist; a build killed at its end may have moved the file already."""
        return self.path.is_file() and self.summary_path.is_file()


@dataclasses.dataclass
class Summary:
    """Figures of a written shard, or of all shards of a split.

    Attributes:
        tally: counts of the records.
        lengths: number of records of each shard.
        bytes: total size of the files.
        problems, notes: those of the items' `Outcome`s; equal problems count once.
        image_ids: image ids of the records.
        expression_ids: u64 `[E]`, hashes of the `E` expression ids (see `expression_hash`).
    """

    tally: Tally = dataclasses.field(default_factory=Tally)
    lengths: list[int] = dataclasses.field(default_factory=list)
    bytes: int = 0
    problems: dict[str, None] = dataclasses.field(default_factory=dict)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    image_ids: list[str] = dataclasses.field(default_factory=list)
    expression_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))

    def merge(self, other: "Summary") -> None:
        """Adds the summary of the next shard of the same split."""
        self.tally.merge(other.tally)
        self.lengths += other.lengths
        self.bytes += other.bytes
        self.problems |= other.problems
        self.notes += other.notes
        self.image_ids += other.image_ids
        self.expression_ids = np.concatenate([self.expression_ids, other.expression_ids])


def write_shard(shard: Shard, outcomes: Iterable[Outcome]) -> Summary:
    """Writes the records of a shard, and then its summary.

    Args:
        shard: the shard to write.
        outcomes: outcomes of its items, in their order.

    Returns:
        The summary.

    Raises:
        RuntimeError: ArrayRecord cannot write, e.g. because the disk is full.
        ValueError: an index of a record is out of range, or a granularity is unknown.
    """
    summary, ids = Summary(lengths=[0]), list[int]()

    def examples() -> Iterator[tuple[int, bytes]]:
        structure = features()
        serializer = example_serializer.ExampleSerializer(structure.get_serialized_info())
        for outcome in outcomes:
            summary.problems |= dict.fromkeys(outcome.problems)
            summary.notes.update(outcome.notes)
            if outcome.record is None:
                continue
            summary.tally.add(outcome.record)
            summary.image_ids.append(outcome.record.image_id)
            ids.extend(expression_hash(e.id) for e in outcome.record.expressions)
            stored = structure.encode_example(to_features(outcome.record))
            # Features of a tf.Example are a map, whose order differs from process to process unless
            # it is serialized deterministically.
            example = serializer.get_tf_example(stored)
            yield summary.lengths[0], example.SerializeToString(deterministic=True)
            summary.lengths[0] += 1

    partial = _partial(shard.path)
    writer = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
    try:
        writer.write_examples(partial, examples())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(shard.path)
    summary.bytes = shard.path.stat().st_size
    summary.expression_ids = np.array(ids, np.uint64)
    _save(summary, shard.summary_path)
    return summary


def read_summary(shard: Shard) -> Summary:
    """Reads the summary of a shard that has been written."""
    with np.load(shard.summary_path) as stored:
        ids, fields = stored["expression_ids"], json.loads(bytes(stored["fields"]))
    tally = Tally(Counter(fields.pop("counts")), set(fields.pop("groups")))
    problems = dict.fromkeys(fields.pop("problems"))
    notes = Counter(fields.pop("notes"))
    return Summary(tally=tally, problems=problems, notes=notes, expression_ids=ids, **fields)


def _save(summary: Summary, path: Path) -> None:
    fields = {
        "counts": summary.tally.counts,
        "groups": sorted(summary.tally.groups),
        "lengths": summary.lengths,
        "bytes": summary.bytes,
        "problems": list(summary.problems),
        "notes": summary.notes,
        "image_ids": summary.image_ids,
    }
    partial = _partial(path)
    with partial.open("wb") as file:
        stored = np.frombuffer(json.dumps(fields).encode(), np.uint8)
        np.savez(file, expression_ids=summary.expression_ids, fields=stored)
    partial.replace(path)


def _partial(path: Path) -> Path:
    """A temporary name that no other writer uses: Beam may let two workers write the same shard."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def expression_hash(expression_id: str) -> int:
    """64-bit hash of an expression id; 100 million ids collide with a probability of 0.0003."""
    return int.from_bytes(hashlib.blake2b(expression_id.encode(), digest_size=8).digest(), "little")


def plan_digest(source: str, splits: Mapping[str, Sequence[Any]]) -> str:
    """SHA-256 of a plan and of the shard size, which identifies an unfinished build.

    Args:
        source: `"<dataset>[/<config>]"`.
        splits: split -> items of the plan.
    """
    digest = hashlib.sha256(f"{source} {IMAGES_OF_A_SHARD}".encode())
    for split, items in splits.items():
        digest.update(f"{split} {len(items)}".encode())
        for item in items:
            digest.update(pickle.dumps(item, protocol=5))
    return digest.hexdigest()
