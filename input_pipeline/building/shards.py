"""A split as files of records, each of which is whole or not there.

A build writes its shards into an unfinished folder, each with a summary beside it, and takes up
there when it is started again.
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

#: Images of a file of records (about 160 MB of COCO's).
IMAGES_OF_A_SHARD = 1000


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file that is to be written.

    Attributes:
        split: whose.
        path: of the file.
        items: of the plan.
    """

    split: str
    path: Path
    items: Sequence[Any]

    @property
    def summary_path(self) -> Path:
        """Written when the file is whole."""
        return self.path.with_name(f"{self.path.name}.done.npz")

    def is_whole(self) -> bool:
        """Whether nothing is left to do; a build killed at its end has moved files away."""
        return self.path.is_file() and self.summary_path.is_file()


@dataclasses.dataclass
class Summary:
    """What a shard, or a split, came to.

    Attributes:
        tally: of its records.
        lengths: records of each shard.
        bytes: of its files.
        problems, notes: as of `Outcome`.
        image_ids: of its records.
        expression_ids: u64 `[E]`, hashes.
    """

    tally: Tally = dataclasses.field(default_factory=Tally)
    lengths: list[int] = dataclasses.field(default_factory=list)
    bytes: int = 0
    problems: dict[str, None] = dataclasses.field(default_factory=dict)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    image_ids: list[str] = dataclasses.field(default_factory=list)
    expression_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))

    def merge(self, other: "Summary") -> None:
        """Adds the next shard of the same split."""
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
        shard: where.
        outcomes: of its items, in their order.

    Returns:
        The summary.

    Raises:
        RuntimeError: ArrayRecord cannot write (a full disk, say).
        ValueError: a record contradicts itself.
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
            # The features of a tf.Example are a map, whose order differs from process to process.
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
    """The summary of a shard that is whole."""
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
    """A name of this writer's own: a runner may have two workers write the same shard."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def expression_hash(expression_id: str) -> int:
    """64 bits of an id: a hundred million of them collide with a probability of 0.0003."""
    return int.from_bytes(hashlib.blake2b(expression_id.encode(), digest_size=8).digest(), "little")


def plan_digest(source: str, splits: Mapping[str, Sequence[Any]]) -> str:
    """What an unfinished folder belongs to: a plan, and how it is cut into shards."""
    digest = hashlib.sha256(f"{source} {IMAGES_OF_A_SHARD}".encode())
    for split, items in splits.items():
        digest.update(f"{split} {len(items)}".encode())
        for item in items:
            digest.update(pickle.dumps(item, protocol=5))
    return digest.hexdigest()
