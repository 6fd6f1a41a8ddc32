"""One pass over a dataset: masks at native size, counts, scores."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from refseg_jax import predictions, sharding
from refseg_jax.batch import Batch, HostBatch, RowMeta
from refseg_jax.metrics import IoUState, Pair, pair_counts
from refseg_jax.pictures import Picture
from refseg_jax.resize import logits_on_canvas
from refseg_jax.train_state import Forward

#: Expressions of an image that are shown as pictures.
_SHOWN_OF_AN_IMAGE = 2


class Outputs(NamedTuple):
    """What is left of a batch on the device.

    Attributes:
        counts: i32 `[B, N, K, 3]`.
        logits: f32 `[B, N, K, Hc, Wc]`, or `None` where only counts are asked for.
    """

    counts: jax.Array
    logits: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores a model on one split.

    Attributes:
        name: for the log and for file names.
        forward: the model.
        batches: makes this process's batches, as `input_pipeline.pipeline.eval_batches` does.
        mesh: the devices.
        mask_stride: network pixels per mask cell.
        canvas: `(Hc, Wc)`.
        threshold: of probabilities.
        prefix: of the scores' keys.
        pictures: so many pairs are kept as pictures, given to `show`.
        show: takes (step, pictures); called on the first process.
        dump: folder for `predictions-*.jsonl` and `references-*.jsonl`, or `None`.
    """

    name: str
    forward: Forward
    batches: Callable[[], Iterable[HostBatch]]
    mesh: Mesh
    mask_stride: int
    canvas: tuple[int, int]
    threshold: float
    prefix: str = ""
    pictures: int = 0
    show: Callable[[int, list[Picture]], None] | None = None
    dump: Path | None = None

    def evaluate(self, params: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        """Scores as `IoUState.compute` gives them, and `quarantined`; the same on every process."""
        state: dict[str, Pair] = {}
        quarantined: list[str] = []
        shown: list[Picture] = []
        logging.info("evaluating %s at step %d ...", self.name, step)
        with self._dump() as write:
            for host, outputs in self._outputs(params):
                counts = sharding.local_rows(outputs.counts)
                quarantined += [meta.error for meta in host.meta if meta.error]
                state |= _pairs(host, counts)
                if outputs.logits is not None:
                    logits = sharding.local_rows(outputs.logits)
                    write(host, logits)
                    shown += self._pictures(host, logits, counts, self.pictures - len(shown))
        for reason in quarantined:
            logging.warning("%s: left out: %s", self.name, reason)
        scores = IoUState(_from_all(state)).compute()
        scores["quarantined"] = float(_sum_over_processes(len(quarantined)))
        if self.show is not None and shown and jax.process_index() == 0:
            self.show(step, shown)
        return {self.prefix + key: value for key, value in scores.items()}

    @functools.cached_property
    def _compiled(self) -> Callable[..., Outputs]:
        """One function for images of all sizes: the canvas is static."""

        # Rows stay cut as the batch is: each process reads its own.
        rows = sharding.batch_sharding(self.mesh)

        @functools.partial(jax.jit, static_argnums=2, out_shardings=rows)
        def run(params: Mapping[str, jax.Array], batch: Batch, keep: bool) -> Outputs:
            output = self.forward.apply(params, batch)
            logits = logits_on_canvas(
                output.mask_logits, batch.affine, self.mask_stride, self.canvas
            )
            assert batch.native is not None
            counts = pair_counts(logits, batch.native, batch.size, self.threshold)
            return Outputs(counts, logits if keep else None)

        return run

    def _outputs(self, params: Mapping[str, jax.Array]) -> Iterator[tuple[HostBatch, Outputs]]:
        """Keeps one batch in flight, so that host and device work at once."""
        waiting: tuple[HostBatch, Outputs] | None = None
        for number, host in enumerate(self.batches()):
            # By the batch's number, since all processes must run the same function.
            begun = number * len(host.meta) < self.pictures
            keep = self.dump is not None or (self.show is not None and begun)
            batch = sharding.put_batch(host.batch, self.mesh)
            running = host, self._compiled(params, batch, keep)
            if waiting is not None:
                yield waiting
            waiting = running
        if waiting is not None:
            yield waiting

    def _pictures(
        self, host: HostBatch, logits: np.ndarray, counts: np.ndarray, most: int
    ) -> list[Picture]:
        found = []
        for b, n, k, meta in itertools.islice(_worth_showing(host), most):
            height, width = host.batch.size[b, n]
            assert host.batch.native is not None
            found.append(
                Picture(
                    image=np.asarray(host.batch.image[b, n]),
                    affine=np.asarray(host.batch.affine[b, n]),
                    expression=meta.expressions[k],
                    granularity=meta.granularities[k],
                    target=np.asarray(host.batch.native[b, n, k, :height, :width], bool),
                    predicted=_mask(logits[b, n, k], (height, width), self.threshold),
                    iou=_pair(meta, k, counts[b, n, k]).iou,
                )
            )
        return found

    @contextlib.contextmanager
    def _dump(self) -> Iterator[Callable[[HostBatch, np.ndarray], None]]:
        """Writes both files of this process; they are whole or not there."""
        if self.dump is None:
            yield lambda host, logits: None
            return
        suffix = "" if jax.process_count() == 1 else f"-{jax.process_index()}"
        with (
            predictions.jsonl_writer(self.dump / f"predictions{suffix}.jsonl") as predicted,
            predictions.jsonl_writer(self.dump / f"references{suffix}.jsonl") as references,
        ):

            def write(host: HostBatch, logits: np.ndarray) -> None:
                for b, n, k, meta in _valid(host):
                    height, width = host.batch.size[b, n]
                    assert host.batch.native is not None
                    pair = pair_id(meta, n, k)
                    values = logits[b, n, k, :height, :width]
                    mask = _mask(values, (height, width), self.threshold)
                    score = mask_score(values, mask)
                    image, words = meta.image_ids[n], meta.expressions[k]
                    predicted(predictions.prediction_line(pair, image, words, mask, score))
                    target = host.batch.native[b, n, k, :height, :width]
                    references(
                        {
                            "id": pair,
                            "segmentation": predictions.encode(np.asarray(target)),
                            "granularity": meta.granularities[k],
                        }
                    )

            yield write


def pair_id(meta: RowMeta, n: int, k: int) -> str:
    """The id of a pair: the expression's, with the image's before it where there are several."""
    return (
        meta.pair_ids[k] if len(meta.image_ids) == 1 else f"{meta.image_ids[n]}/{meta.pair_ids[k]}"
    )


def mask_score(logits: np.ndarray, mask: np.ndarray) -> float:
    """The mean probability inside a mask, 0 for an empty one; f32 and bool `[H, W]`."""
    if not mask.any():
        return 0.0
    return float(np.mean(1.0 / (1.0 + np.exp(-logits[mask].astype(np.float64)))))


def _mask(logits: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """`predicted_mask` of one pair, on the host: f32 canvas to bool `[H, W]`."""
    values = logits[: size[0], : size[1]]
    return values > np.float32(np.log(threshold / (1.0 - threshold)))


def _valid(host: HostBatch) -> Iterator[tuple[int, int, int, RowMeta]]:
    for b, n, k in zip(*np.nonzero(host.batch.valid), strict=True):
        yield int(b), int(n), int(k), host.meta[b]


def _worth_showing(host: HostBatch) -> Iterator[tuple[int, int, int, RowMeta]]:
    """A few pairs of each image, from all over its expressions: pages should show many images."""
    for _, pairs in itertools.groupby(_valid(host), key=lambda pair: pair[3].image_ids[pair[1]]):
        of_image = list(pairs)
        yield from of_image[:: math.ceil(len(of_image) / _SHOWN_OF_AN_IMAGE)]


def _pair(meta: RowMeta, k: int, counts: np.ndarray) -> Pair:
    return Pair(meta.granularities[k], *(int(c) for c in counts))


def _pairs(host: HostBatch, counts: np.ndarray) -> dict[str, Pair]:
    return {pair_id(meta, n, k): _pair(meta, k, counts[b, n, k]) for b, n, k, meta in _valid(host)}


def _from_all(state: dict[str, Pair]) -> dict[str, Pair]:
    """The pairs of all processes, everywhere."""
    if jax.process_count() == 1:
        return state
    text = json.dumps({key: dataclasses.astuple(pair) for key, pair in state.items()}).encode()
    lengths = multihost_utils.process_allgather(np.int64(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    merged = IoUState()
    for row, length in zip(multihost_utils.process_allgather(padded), lengths, strict=True):
        part = json.loads(row[: int(length)].tobytes())
        merged = merged.merge(IoUState({key: Pair(*fields) for key, fields in part.items()}))
    return dict(merged.pairs)


def _sum_over_processes(count: int) -> int:
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.int64(count))))
