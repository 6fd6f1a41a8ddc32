"""Asks every image for every class, and gives each pixel to the class with the largest logit.

The list of classes is worked through K at a time. Of all logits only the largest so far and its class
are kept, so that memory does not grow with the number of classes.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from refseg_jax import sharding
from refseg_jax.batch import Array, Batch, ClassList, HostBatch
from refseg_jax.evaluation import predictions
from refseg_jax.evaluation.counts import add_each
from refseg_jax.evaluation.processes import from_all, sum_over_processes
from refseg_jax.evaluation.protocols import (
    EveryClass,
    Pair,
    Regions,
    State,
    keyed_counts,
    keyed_scores,
)
from refseg_jax.evaluation.protocols.base import Counts
from refseg_jax.evaluation.protocols.categories import BACKGROUND
from refseg_jax.evaluation.protocols.regions import square_counts
from refseg_jax.images.resize import Resample, check_resample, logits_on_canvas
from refseg_jax.models.forward import Forward

Params = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ClassRegions(Regions):
    """The pixels of one class on one image.

    Attributes:
        size: height and width of the image.
        counted: pixel counts over the labelled pixels.
        number: index of the class.
        predicted, labels: i32 `[H, W]`, the class of each pixel, -1 where pixels do not count; empty
            where nothing is dumped.
    """

    size: tuple[int, int]
    counted: Counts
    number: int
    predicted: np.ndarray
    labels: np.ndarray

    def counts(self) -> Counts:
        """See `Regions`."""
        return self.counted

    def square_counts(self) -> Counts:
        """See `Regions`."""
        return square_counts(self.prediction(), self.target())

    def prediction(self) -> np.ndarray:
        """See `Regions`."""
        return self.predicted == self.number

    def target(self) -> np.ndarray:
        """See `Regions`."""
        return self.labels == self.number

    def soft_map(self) -> np.ndarray:
        """See `Regions`."""
        return self.prediction() * np.uint8(255)


@dataclasses.dataclass(frozen=True)
class ClassEvaluator:
    """Scores a model on all classes of one split by `EveryClass`.

    Attributes:
        name: name of the evaluation, for the log.
        forward: the model. If it has `encode_image`, `encode_text` and `decode`, each image is encoded
            once, and the texts of all classes once per evaluation.
        classes: reads the list of classes.
        batches: makes this process's batches, as
            `input_pipeline.pipeline.evaluation.label_batches` does.
        mesh: the devices.
        mask_stride: network pixels per mask cell.
        canvas: `(Hc, Wc)`, at least the native size of every image.
        threshold: probability in (0, 1); where no class is above it, a pixel is background. Not used
            where the background is ignored.
        protocol: measures the classes.
        classes_at_once: K, classes whose logits are in memory at a time. Scores do not depend on it.
        resample: how logits become values at native pixels, see
            `refseg_jax.images.resize.logits_on_canvas`.
        prefix: beginning of the scores' keys.
        dump: folder for `predictions.jsonl` and `references.jsonl` as `Evaluator.dump`, with a line for
            each class of each image, or `None`.
        dump_at: the only step whose evaluation is dumped; `None`: every evaluation.
    """

    name: str
    forward: Forward
    classes: Callable[[], ClassList]
    batches: Callable[[], Iterable[HostBatch]]
    mesh: Mesh
    mask_stride: int
    canvas: tuple[int, int]
    threshold: float
    protocol: EveryClass
    classes_at_once: int
    resample: Resample = "logits"
    prefix: str = ""
    dump: Path | None = None
    dump_at: int | None = None

    def __post_init__(self) -> None:
        """Checks the way of resampling.

        Raises:
            UserError: its name is unknown.
        """
        check_resample(self.resample)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """Scores `params` on the split.

        Args:
            params: path -> parameter.
            step: number of updates that made them, for the log and the files.

        Returns:
            Key -> value, the same on every process: scores in [0, 1], `count` (pairs of an image and a
            class) and `quarantined`, the number of images that were left out.

        Raises:
            UserError: the list of classes or the split cannot be read.
        """
        classes = self.classes()
        names = self._names(classes)
        logging.info("evaluating %s at step %d on %d classes ...", self.name, step, len(names))
        state = State(self.protocol)
        quarantined: list[str] = []
        dumps = self.dump is not None and self.dump_at in (None, step)
        with self._writer(dumps) as write:
            for host, counts, predicted in self._outputs(params, classes, dumps):
                for row, meta in enumerate(host.meta):
                    quarantined += [reason for reason in (meta.error, *meta.left_out) if reason]
                    if not host.batch.valid[row].any():
                        continue
                    labelled = self._labelled(host, row, predicted, len(classes.names))
                    for number, name in enumerate(names):
                        counted = Counts(*counts[row, number].tolist())
                        regions = ClassRegions(labelled[0], counted, number, *labelled[1:])
                        pair = _pair(f"{meta.key}/{name}", name, classes.granularity, regions)
                        state.add(pair)
                        write(pair, meta.image_ids[0])
        for reason in quarantined:
            logging.warning("%s: left out: %s", self.name, reason)
        states = from_all([state])
        scores = keyed_scores(states) | keyed_counts(states)
        scores["quarantined"] = float(sum_over_processes(len(quarantined)))
        return {self.prefix + key: value for key, value in scores.items()}

    def lower(self, params: Mapping[str, Any], batch: Batch) -> jax.stages.Lowered:
        """Lowers the function that scores a batch; arguments as those of `Evaluator.lower`.

        Raises:
            UserError: the list of classes cannot be read.
        """
        classes, everywhere = self.classes(), sharding.replicated(self.mesh)
        texts = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(functools.partial(self._texts, classes=classes), params),
        )
        compiled: Any = self._compiled
        return compiled.lower(params, batch, texts, len(classes.names), self.dump is not None)

    def _names(self, classes: ClassList) -> tuple[str, ...]:
        return (*classes.names, BACKGROUND) if self._has_background else classes.names

    @property
    def _has_background(self) -> bool:
        return self.protocol.background == "class"

    def _outputs(
        self, params: Params, classes: ClassList, dumps: bool
    ) -> Iterator[tuple[HostBatch, np.ndarray, np.ndarray | None]]:
        """Yields batches with the counts, i32 `[B, C, 3]`, and where asked for the predicted classes.

        One batch is kept in flight, so that host and devices overlap.
        """
        texts = self._texts(params, classes)
        waiting: tuple[HostBatch, jax.Array, jax.Array | None] | None = None
        for host in self.batches():
            batch = sharding.put_batch(host.batch, self.mesh)
            counts, predicted = self._compiled(params, batch, texts, len(classes.names), dumps)
            if waiting is not None:
                yield _local(*waiting)
            waiting = host, counts, predicted
        if waiting is not None:
            yield _local(*waiting)

    def _texts(self, params: Params, classes: ClassList) -> Any:
        """Features of all texts, `[chunks, 1, K, ...]`, on every device."""
        size, count = self.classes_at_once, len(classes.names)
        chunks = -(-count // size)
        padding = ((0, chunks * size - count), (0, 0))
        # Repeated texts, since a model may not take one without a word.
        padded = (np.pad(x, padding, mode="edge") for x in (classes.text, classes.text_valid))
        ids, valid = (x.reshape(chunks, 1, size, -1) for x in padded)
        return self._encoded(params, ids, valid)

    @functools.cached_property
    def _encoded(self) -> Callable[..., Any]:
        if not self._separable:
            return lambda params, *words: words

        @functools.partial(jax.jit, out_shardings=sharding.replicated(self.mesh))
        @sharding.tracing_over(self.mesh)
        def encode(params: Params, ids: jax.Array, valid: jax.Array) -> Any:
            # A chunk at a time, which bounds the memory of the text tower.
            return jax.lax.map(lambda words: self.forward.encode_text(params, *words), (ids, valid))

        return encode

    @property
    def _separable(self) -> bool:
        return hasattr(self.forward.model, "decode")

    @functools.cached_property
    def _compiled(self) -> Callable[..., tuple[jax.Array, jax.Array | None]]:
        """One compiled function for images of all native sizes, since the canvas is static."""
        rows = sharding.batch_sharding(self.mesh)

        @functools.partial(jax.jit, static_argnums=(3, 4), out_shardings=rows)
        @sharding.tracing_over(self.mesh)
        def run(
            params: Params, batch: Batch, texts: Any, count: int, keep: bool
        ) -> tuple[jax.Array, jax.Array | None]:
            labels, predicted = self._compared(params, batch, texts, count)
            counts = class_counts(predicted, labels, count + self._has_background)
            return counts, predicted if keep else None

        return run

    def _compared(
        self, params: Params, batch: Batch, texts: Any, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """Labels and predicted classes, i32 `[B, Hc, Wc]`; both are -1 where pixels do not count."""
        assert batch.labels is not None
        labels = jnp.asarray(batch.labels)[:, 0].astype(jnp.int32)
        best, predicted = self._largest(params, batch, texts, count, labels)
        if self._has_background:
            size = jnp.asarray(batch.size)[:, 0, :, None, None]
            height, width = (jnp.arange(n) for n in self.canvas)
            inside = (height[:, None] < size[:, 0]) & (width < size[:, 1])
            labels = jnp.where((labels < 0) & inside, count, labels)
            likely = best > math.log(self.threshold / (1.0 - self.threshold))
            predicted = jnp.where(likely, predicted, count)
        return labels, jnp.where(labels < 0, -1, predicted)

    def _largest(
        self, params: Params, batch: Batch, texts: Any, count: int, like: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The largest logit of each pixel and its class, f32 and i32, shaped `like`."""
        decode = self._decoder(params, batch)
        size = self.classes_at_once

        def step(largest: tuple[Any, Any], chunk: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
            value, number = largest
            start, words = chunk
            logits = logits_on_canvas(
                decode(words), batch.affine, self.mask_stride, self.canvas, self.resample
            )[:, 0]
            used = start + jnp.arange(size) < count
            logits = jnp.where(used[:, None, None], logits, -jnp.inf)
            # Of equal logits, argmax takes the first, and an earlier chunk stays.
            here, top = jnp.argmax(logits, 1).astype(jnp.int32), jnp.max(logits, 1)
            better = top > value
            return (jnp.where(better, top, value), jnp.where(better, start + here, number)), None

        starts = size * jnp.arange(-(-count // size), dtype=jnp.int32)
        begin = jnp.full_like(like, -jnp.inf, jnp.float32), jnp.zeros_like(like)
        return jax.lax.scan(step, begin, (starts, texts))[0]

    def _decoder(self, params: Params, batch: Batch) -> Callable[[Any], Array]:
        """A function of a chunk's texts, `[1, K, ...]`, to mask logits f32 `[B, 1, K, h, w]`."""
        rows = batch.image.shape[0]
        spread = lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:]))  # noqa: E731
        if self._separable:
            image = self.forward.encode_image(params, jnp.asarray(batch.image))
            return lambda words: (
                self.forward.decode(params, image, jax.tree.map(spread, words)).mask_logits
            )

        def whole(words: tuple[jax.Array, jax.Array]) -> Array:
            text, text_valid = map(spread, words)
            asked = dataclasses.replace(batch, text=text, text_valid=text_valid)
            return self.forward.apply(params, asked).mask_logits

        return whole

    def _labelled(
        self, host: HostBatch, row: int, predicted: np.ndarray | None, count: int
    ) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
        """Size of an image, and predicted classes and labels as `ClassRegions` has them."""
        height, width = (int(length) for length in host.batch.size[row, 0])
        if predicted is None:
            return (height, width), np.empty(0), np.empty(0)
        assert host.batch.labels is not None
        labels = np.asarray(host.batch.labels[row, 0, :height, :width], np.int32)
        if self._has_background:
            labels = np.where(labels < 0, count, labels)
        return (height, width), predicted[row, :height, :width], labels

    @contextlib.contextmanager
    def _writer(self, dumps: bool) -> Iterator[Callable[[Pair, str], None]]:
        if self.dump is None or not dumps:
            yield lambda pair, image: None
            return
        with predictions.dump_writers(self.dump) as (predicted, references):

            def write(pair: Pair, image: str) -> None:
                predicted(_prediction_line(pair, image))
                references(predictions.reference_line(pair))

            yield write


def class_counts(predicted: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """Pixels of intersection, prediction and target of each class.

    Args:
        predicted, labels: i32 `[B, Hc, Wc]`, the class of each pixel, or -1.
        count: C, number of classes.

    Returns:
        i32 `[B, C, 3]`.
    """

    def of(number: jax.Array) -> jax.Array:
        found, wanted = predicted == number, labels == number
        parts = tuple(x.astype(jnp.int32) for x in (found & wanted, found, wanted))
        return jnp.stack(jax.lax.reduce(parts, (jnp.int32(0),) * 3, add_each, (1, 2)), -1)

    # One class at a time: its masks are all that is in memory.
    return jnp.moveaxis(jax.lax.map(of, jnp.arange(count)), 0, 1)


def _pair(key: str, name: str, granularity: str, regions: ClassRegions) -> Pair:
    counts = regions.counts()
    return Pair(
        key,
        regions,
        counts.prediction > 0,
        granularity,
        category=name,
        empty=not counts.target,
    )


def _prediction_line(pair: Pair, image: str) -> dict[str, Any]:
    return {
        "id": pair.id,
        "image": image,
        "expression": pair.category,
        "segmentation": predictions.encode(pair.regions.prediction()),
        "present": pair.present,
    }


def _local(
    host: HostBatch, counts: jax.Array, predicted: jax.Array | None
) -> tuple[HostBatch, np.ndarray, np.ndarray | None]:
    kept = None if predicted is None else sharding.local_rows(predicted)
    return host, sharding.local_rows(counts), kept
