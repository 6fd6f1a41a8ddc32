"""Trains on several datasets at once, each with its own number of images, expressions and tokens a row.

All rows of a batch are of one member. So a step has one shape `(N, K, L)`, the same on every process,
and the step is compiled once for each shape. The number of a step alone decides which member it trains
on, and which of the member's batches it takes (`Schedule`). So the position in the data is one number,
and the global batches are the same for any number of processes.
"""

import dataclasses
import fractions
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from input_pipeline import leakage, pipeline
from input_pipeline.leakage import Exclusion
from input_pipeline.pipeline import TrainRows
from input_pipeline.settings import PipelineConfig
from input_pipeline.workers import Batches
from refseg_jax.errors import UserError
from refseg_jax.naming import unknown

#: Fields of `PipelineConfig` that may differ between the members of a mixture.
MEMBER_FIELDS = (
    "dataset",
    "split",
    "sampling",
    "pairs",
    "images",
    "negatives",
    "granularities",
    "context_length",
    "anti_prefix",
    "flip_probability",
    "part_prompt",
    "pseudo_labelled",
)


@dataclasses.dataclass(frozen=True)
class Member:
    """A split to train on.

    Attributes:
        name: name for logs and metrics; `""` for the only member of a run without a mixture, from
            which no image is left out.
        data: which data to read. Fields that are not in `MEMBER_FIELDS` are the same for all members.
        weight: share of the batches, relative to the sum of all weights.
        keep_held_out: evaluation sets whose images may be trained on, see `leakage.find_leaks`.
        batch_size: rows of the member's global batches; 0 takes that of all. Rows of few images or
            expressions cost less than others, so that more of them make a step of equal cost.
    """

    name: str
    data: PipelineConfig
    weight: float = 1.0
    keep_held_out: tuple[str, ...] = ()
    batch_size: int = 0


class Schedule(grain.transforms.DatasetSelectionMap):
    """Maps a step to the member that it trains on, and to the index of one of the member's batches.

    Let the members be in the order of falling weights, and `W[i]` the sum of the weights from member
    `i` on. Of the first `s` steps, `left[0] = s` belong to all members, and `left[i] = floor(left[i - 1]
    * W[i] / W[i - 1])` to member `i` and all after it. So members take turns as evenly as whole batches
    allow: with `m` members, none is ever off its share by `1 + ln m` batches or more.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: positive numbers, taken as the exact decimals that they are written as."""
        exact = [fractions.Fraction(repr(weight)) for weight in weights]
        self._order = sorted(range(len(exact)), key=lambda member: -exact[member])
        scale = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(exact[member] * scale) for member in self._order]
        self._rest = [sum(whole[number:]) for number in range(len(whole) + 1)]

    def __len__(self) -> int:
        """Endless, in effect."""
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Index of the member that step `index` trains on, and index of the member's batch."""
        before, after = index, index + 1
        for place, member in enumerate(self._order):
            rest, others = self._rest[place : place + 2]
            others_before, others_after = before * others // rest, after * others // rest
            if others_before == others_after:
                return member, before - others_before
            before, after = others_before, others_after
        raise AssertionError("nothing is left after the last member")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Opened members.

    Attributes:
        members: at least one, see `Member`.
        rows: the rows of each member, without the records that it must not train on.
        exclusions: name of the member -> what it leaves out; empty for a run without a mixture.
    """

    members: tuple[Member, ...]
    rows: tuple[TrainRows, ...]
    exclusions: Mapping[str, Exclusion]

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows of all members together."""
        return sum(len(rows.rows) for rows in self.rows)

    def steps_of(self, epochs: float, batch_size: int) -> int:
        """Number of steps in which as many rows are trained on as `epochs` epochs have."""
        weights = np.array([member.weight for member in self.members])
        rows = [member.batch_size or batch_size for member in self.members]
        return round(epochs * self.rows_per_epoch / float(weights @ rows / weights.sum()))

    def batches(
        self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1,
        stop: Callable[[], bool] = lambda: False,
    ) -> Batches:  # fmt: skip
        """An endless iterator of batches; arguments and result as in `pipeline.train_batches`."""
        datasets = [
            rows.dataset(
                batch_size=member.batch_size or batch_size,
                seed=_seed(seed, rows.name),
                process_index=process_index,
                process_count=process_count,
            )
            for member, rows in zip(self.members, self.rows, strict=True)
        ]
        mixed = datasets[0]
        if len(datasets) > 1:
            schedule = Schedule([member.weight for member in self.members])
            mixed = grain.MapDataset.select_from_datasets(datasets, schedule)
        return pipeline.iterate(mixed, self.members[0].data, stop)


def read_members(
    mixture: Mapping[str, Mapping[str, Any]], data: Callable[..., PipelineConfig]
) -> list[Member]:
    """The members of `config.mixture`; if there are none, the one that `config.data` describes.

    Args:
        mixture: name -> `weight`, `keep_held_out`, `batch_size` and the `MEMBER_FIELDS` that the
            member sets.
        data: makes the `PipelineConfig` of `config.data`, with fields replaced.

    Raises:
        UserError: a field is unknown, a weight is not positive, or a batch has no row.
    """
    if not mixture:
        return [Member("", data())]
    return [_member(name, dict(entry), data) for name, entry in mixture.items()]


def open_mixture(
    members: Sequence[Member], known: Mapping[str, Exclusion] | None = None
) -> Mixture:
    """Opens all members, and leaves out the images that they must not train on.

    Args:
        members: from `read_members`.
        known: name of the member -> what it left out when the run began. A run that resumes leaves out
            exactly that again, so that its rows stay the same.

    Raises:
        UserError: the data of a member cannot be opened (see `pipeline.open_train`), or none of its
            images may be trained on; the message names the member.
    """
    if not members[0].name:
        rows = pipeline.open_train(members[0].data)
        return Mixture(tuple(members), (rows,), {})
    sets = leakage.evaluation_images(members[0].data.data_dir)
    opened, exclusions = [], {}
    for member in members:
        field = f"config.mixture.{member.name}"
        try:
            whole = pipeline.open_train(member.data, member.name)
            found = _exclusion(member, whole, sets, (known or {}).get(member.name))
            rows = whole.without(found.records(whole.table))
            logging.info("%s: %s; %d rows an epoch", field, found, len(rows.rows))
        except (UserError, ValueError) as error:
            raise UserError(f"{field}: {error}") from error
        found.keep(whole.source.folder)
        opened.append(rows)
        exclusions[member.name] = found
    return Mixture(tuple(members), tuple(opened), exclusions)


def _member(name: str, entry: dict[str, Any], data: Callable[..., PipelineConfig]) -> Member:
    field = f"config.mixture.{name}"
    weight, keep = float(entry.pop("weight", 1.0)), entry.pop("keep_held_out", ())
    if not (weight > 0 and math.isfinite(weight)):
        raise UserError(f"{field}.weight={weight:g}: give a positive number, or leave it out")
    rows = entry.pop("batch_size", 0)
    if rows < 0:
        raise UserError(
            f"{field}.batch_size={rows}: give a number of rows, or 0 for that of config.batch_size"
        )
    for other in entry:
        if other not in MEMBER_FIELDS:
            known = (*MEMBER_FIELDS, "weight", "keep_held_out", "batch_size")
            raise UserError(unknown(f"field of {field}", other, known))
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    return Member(name, data(**entry), weight, keep, rows)


def _exclusion(
    member: Member,
    rows: TrainRows,
    sets: Mapping[str, frozenset[str]],
    known: Exclusion | None,
) -> Exclusion:
    data = member.data
    found = leakage.find_leaks(
        rows.table, sets, dataset=data.dataset, split=data.split, keep=member.keep_held_out
    )
    if known is None:
        leakage.check_remains(found)
        return found
    since = set(found.image_ids) - set(known.image_ids)
    if since:
        logging.warning(
            "config.mixture.%s: since this run began, evaluation sets were built that hold %d of "
            "the images which it trains on: their scores do not count",
            *(member.name, len(since)),
        )
    return known


def _seed(seed: int, name: str) -> int:
    """The seed of a member, which does not depend on the other members."""
    if not name:
        return seed
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])
