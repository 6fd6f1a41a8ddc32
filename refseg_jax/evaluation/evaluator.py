"""Scores a model in one pass over a split: masks at native size, counts, scores."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from refseg_jax import sharding
from refseg_jax.batch import Batch, HostBatch, RowMeta
from refseg_jax.errors import UserError
from refseg_jax.evaluation import predictions
from refseg_jax.evaluation.counts import pair_counts
from refseg_jax.evaluation.picture import Picture
from refseg_jax.evaluation.processes import from_all, sum_over_processes
from refseg_jax.evaluation.protocols import (
    Counts,
    Pair,
    Protocol,
    Reads,
    State,
    build_protocol,
    keyed_counts,
    keyed_scores,
    square,
)
from refseg_jax.evaluation.protocols.regions import CountedRegions
from refseg_jax.evaluation.thresholds import Thresholds, probability
from refseg_jax.images.resize import Resample, check_resample, logits_on_canvas
from refseg_jax.models.forward import Forward

#: At most this many expressions of an image are shown as pictures.
_SHOWN_OF_AN_IMAGE = 2


class Outputs(NamedTuple):
    """Results of a batch, on the devices.

    Attributes:
        counts: i32 `[B, N, K, 3]`, as `pair_counts` gives them.
        squared: the same on LAVT's square, or `None` where no protocol reads it.
        present: f32 `[B, N, K]`, the presence head's logits; `None` without a head.
        logits: f32 `[B, N, K, Hc, Wc]` on the canvas, or `None` where only counts are needed.
    """

    counts: jax.Array
    squared: jax.Array | None
    present: jax.Array | None
    logits: jax.Array | None


class Seen(NamedTuple):
    """A pair of a batch that is scored.

    Attributes:
        pair: the pair as the protocols read it.
        regions: its masks.
        place: `(b, n, k)`, its index in the batch.
        meta: words of its row.
    """

    pair: Pair
    regions: CountedRegions
    place: tuple[int, int, int]
    meta: RowMeta


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores a model on one split.

    Attributes:
        name: name of the evaluation, for the log and for errors.
        forward: the model.
        batches: makes this process's batches, as `input_pipeline.pipeline.evaluation.eval_batches` does.
        mesh: the devices.
        mask_stride: network pixels per mask cell.
        canvas: `(Hc, Wc)`, at least the native size of every image.
        threshold: probability in (0, 1) above which a pixel belongs to the mask.
        resample: how logits become values at native pixels, see
            `refseg_jax.images.resize.logits_on_canvas`.
        prefix: beginning of the scores' keys.
        pictures: at most this many pairs are given to `show`.
        show: called on the first process with the step and the pictures.
        dump: folder for `predictions.jsonl` and `references.jsonl` (with several processes
            `predictions-<process>.jsonl`, likewise references), or `None`.
        dump_at: the only step whose evaluation is dumped; `None`: every evaluation, each of which
            replaces the files of the one before.
        protocols: the protocols that score the pairs. Keys of the first are plain, keys of the others
            begin with the protocol's name: `gres/gIoU`.
    """

    name: str
    forward: Forward
    batches: Callable[[], Iterable[HostBatch]]
    mesh: Mesh
    mask_stride: int
    canvas: tuple[int, int]
    threshold: float
    resample: Resample = "logits"
    prefix: str = ""
    pictures: int = 0
    show: Callable[[int, list[Picture]], None] | None = None
    dump: Path | None = None
    dump_at: int | None = None
    protocols: tuple[Protocol, ...] = (build_protocol("cris"),)

    def __post_init__(self) -> None:
        """Checks the way of resampling.

        Raises:
            UserError: its name is unknown.
        """
        check_resample(self.resample)

    def evaluate(self, params: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        """Scores `params` on the split.

        Args:
            params: path -> parameter.
            step: number of updates that made them, for the log, the pictures and the files.

        Returns:
            Key -> value, the same on every process: scores in [0, 1] as `State.compute` gives them,
            each `count` of `State.counts`, and `quarantined`, the number of rows and single pairs that
            were left out.

        Raises:
            UserError: two pairs have the same id, or a protocol needs a field that the dataset does
                not have.
        """
        states = [State(protocol) for protocol in self.protocols]
        ids: set[str] = set()
        quarantined: list[str] = []
        shown: list[Picture] = []
        logging.info("evaluating %s at step %d ...", self.name, step)
        with self._dump(step) as write:
            for host, outputs in self._outputs(params, self._dumps(step)):
                for meta in host.meta:
                    quarantined += [reason for reason in (meta.error, *meta.left_out) if reason]
                seen = self._seen(host, outputs)
                for one in seen:
                    if one.pair.id in ids:
                        raise UserError(
                            f"{self.name}: two pairs have the id {one.pair.id!r}; build the dataset "
                            "again, with expression ids that are unique"
                        )
                    ids.add(one.pair.id)
                    for state in states:
                        state.add(one.pair)
                write(seen)
                if outputs.logits is not None:
                    shown += self._pictures(host, seen, self.pictures - len(shown))
        for reason in quarantined:
            logging.warning("%s: left out: %s", self.name, reason)
        states = from_all(states)
        scores = keyed_scores(states) | keyed_counts(states)
        scores["quarantined"] = float(sum_over_processes(len(quarantined)))
        if self.show is not None and shown and jax.process_index() == 0:
            self.show(step, shown)
        return {self.prefix + key: value for key, value in scores.items()}

    def lower(self, params: Mapping[str, Any], batch: Batch) -> jax.stages.Lowered:
        """Lowers the function that scores the first batches, of which it keeps most.

        Args:
            params: path -> shape, type and layout.
            batch: shapes, types and layouts of a batch.
        """
        weights = None
        if self._reads("square"):
            rows, layout = batch.size.shape[:2], sharding.batch_sharding(self.mesh)
            weights = tuple(
                jax.ShapeDtypeStruct((*rows, length), np.int32, sharding=layout)
                for length in self.canvas
            )
        compiled: Any = self._compiled
        return compiled.lower(params, batch, self._keeps(0, self.dump is not None), weights)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Outputs]:
        """One compiled function for images of all native sizes, since the canvas is static."""

        # The outputs are sharded as the batch is, so that each process reads its own rows.
        rows = sharding.batch_sharding(self.mesh)

        @functools.partial(jax.jit, static_argnums=2, out_shardings=rows)
        @sharding.tracing_over(self.mesh)
        def run(
            params: Mapping[str, jax.Array],
            batch: Batch,
            keep: bool,
            weights: tuple[jax.Array, jax.Array] | None,
        ) -> Outputs:
            output = self.forward.apply(params, batch)
            logits = logits_on_canvas(
                output.mask_logits, batch.affine, self.mask_stride, self.canvas, self.resample
            )
            assert batch.native is not None
            count = functools.partial(pair_counts, logits, batch.native, batch.size, self.threshold)
            counts = count()
            present = output.present_logits
            if present is not None:
                present = jnp.asarray(present, jnp.float32)
            squared = count(weights) if weights is not None else None
            return Outputs(counts, squared, present, logits if keep else None)

        return run

    def _outputs(
        self, params: Mapping[str, jax.Array], dumps: bool
    ) -> Iterator[tuple[HostBatch, Outputs]]:
        """Yields batches with their outputs; keeps one in flight, so that host and devices overlap."""
        waiting: tuple[HostBatch, Outputs] | None = None
        for number, host in enumerate(self.batches()):
            # Decided by the number of the batch, because all processes must run the same function.
            keep = self._keeps(number * len(host.meta), dumps)
            batch, weights = sharding.put_batch((host.batch, self._weights(host)), self.mesh)
            running = host, self._compiled(params, batch, keep, weights)
            if waiting is not None:
                yield waiting
            waiting = running
        if waiting is not None:
            yield waiting

    def _keeps(self, rows: int, dumps: bool) -> bool:
        """Whether the logits of a batch are needed, before which there were `rows` rows."""
        shows = self.show is not None and rows < self.pictures
        return shows or dumps or self._reads("masks", "map")

    def _reads(self, *names: Reads) -> bool:
        return any(name in protocol.reads for protocol in self.protocols for name in names)

    def _weights(self, host: HostBatch) -> tuple[np.ndarray, np.ndarray] | None:
        """Weights of rows and columns on LAVT's square, i32 `[B, N, Hc]` and `[B, N, Wc]`."""
        if not self._reads("square"):
            return None
        size = np.asarray(host.batch.size)
        rows, columns = (np.zeros((*size.shape[:2], n), np.int32) for n in self.canvas)
        for b, n in np.argwhere(host.batch.valid.any(-1)):
            height, width = size[b, n].tolist()
            rows[b, n, :height] = square.weights(height)
            columns[b, n, :width] = square.weights(width)
        return rows, columns

    def _seen(self, host: HostBatch, outputs: Outputs) -> list[Seen]:
        """The pairs of a batch that are scored."""
        counts, squared, present, logits = (
            None if array is None else sharding.local_rows(array) for array in outputs
        )
        assert counts is not None and host.batch.native is not None
        found = []
        for b, n, k, meta in _valid(host):
            height, width = (int(length) for length in host.batch.size[b, n])
            regions = CountedRegions(
                (height, width),
                Counts(*counts[b, n, k].tolist()),
                None if squared is None else Counts(*squared[b, n, k].tolist()),
                np.asarray(host.batch.native[b, n, k, :height, :width]),
                None if logits is None else logits[b, n, k, :height, :width],
                self.threshold,
            )
            place = n * counts.shape[2] + k
            pair = Pair(
                meta.pair_ids[place],
                regions,
                bool(counts[b, n, k, 1] > 0 if present is None else present[b, n, k] > 0),
                meta.granularities[place],
                meta.groups[place] if meta.groups else "",
                meta.categories[place] if meta.categories else "",
                empty=not host.batch.present[b, n, k],
                form=meta.forms[place] if meta.forms else "",
                presence=None if present is None else probability(float(present[b, n, k])),
            )
            found.append(Seen(pair, regions, (b, n, k), meta))
        return found

    def _pictures(self, host: HostBatch, seen: list[Seen], most: int) -> list[Picture]:
        found = []
        for one in itertools.islice(_worth_showing(seen), most):
            b, n, k = one.place
            mask = one.regions.prediction()
            found.append(
                Picture(
                    image=np.asarray(host.batch.image[b, n]),
                    affine=np.asarray(host.batch.affine[b, n]),
                    expression=one.meta.expressions[k],
                    granularity=one.pair.granularity,
                    target=one.regions.target(),
                    # As a predictor shows it: empty where nothing is present.
                    predicted=mask if one.pair.present else np.zeros_like(mask),
                    iou=one.regions.counts().iou if one.pair.present else 0.0,
                )
            )
        return found

    def _dumps(self, step: int) -> bool:
        return self.dump is not None and self.dump_at in (None, step)

    @contextlib.contextmanager
    def _dump(self, step: int) -> Iterator[Callable[[list[Seen]], None]]:
        """Yields a function that writes pairs to this process's two files, complete or not at all."""
        if self.dump is None or not self._dumps(step):
            yield lambda seen: None
            return
        with predictions.dump_writers(self.dump) as (predicted, references):

            def write(seen: list[Seen]) -> None:
                for one in seen:
                    predicted(self._prediction_line(one))
                    references(predictions.reference_line(one.pair))

            yield write

    def _prediction_line(self, one: Seen) -> dict[str, Any]:
        _, n, k = one.place
        logits = one.regions.logits
        assert logits is not None
        mask = one.regions.prediction()
        return predictions.prediction_line(
            one.pair.id,
            one.meta.image_ids[n],
            one.meta.expressions[k],
            mask,
            mask_score(logits, mask),
            present=one.pair.present,
            presence=one.pair.presence,
            thresholds=Thresholds(self.threshold, origin="config"),
            soft_map=one.regions.soft_map() if self._reads("map") else None,
        )


def mask_score(logits: np.ndarray, mask: np.ndarray) -> float:
    """Mean probability inside a mask, 0 for an empty one; arguments f32 and bool `[H, W]`."""
    if not mask.any():
        return 0.0
    return float(np.mean(1.0 / (1.0 + np.exp(-logits[mask].astype(np.float64)))))


def _valid(host: HostBatch) -> Iterator[tuple[int, int, int, RowMeta]]:
    for b, n, k in np.argwhere(host.batch.valid).tolist():
        # The row that has the image of its own scores it.
        if n not in host.meta[b].reused:
            yield b, n, k, host.meta[b]


def _worth_showing(seen: list[Seen]) -> Iterator[Seen]:
    """At most `_SHOWN_OF_AN_IMAGE` pairs of each image, spread over its expressions."""
    for _, same in itertools.groupby(seen, key=lambda one: one.meta.image_ids[one.place[1]]):
        found = list(same)
        yield from found[:: -(-len(found) // _SHOWN_OF_AN_IMAGE)]
