"""Transforms of examples: frozen dataclasses with `Transform(Example, rng) -> Example`."""

import dataclasses
import re
from typing import Protocol

import cv2
import numpy as np

from input_pipeline import prompts
from input_pipeline.schema import Expression, Record
from refseg_jax.images import preprocess
from refseg_jax.images.decoding import MAX_PIXELS, ImageError, decode_image


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of an example.

    Attributes:
        record: the record of the image.
        expressions: K expressions of the record (of a group, each image has targets of its own), `None`
            where padded.
        image: u8 RGB `[H, W, 3]` at native size after `Decode`, at network size after `ResizeImage`;
            `None` before.
        affine: f32 `[2, 3]`, native to network pixels; `None` before `ResizeImage`.
        flipped: whether the image was mirrored, so that masks must be too.
        reused: whether another row has the image as well, see `RowMeta.reused`.
    """

    record: Record
    expressions: tuple[Expression | None, ...]
    image: np.ndarray | None = None
    affine: np.ndarray | None = None
    flipped: bool = False
    reused: bool = False

    def mask(self, expression: Expression) -> np.ndarray:
        """The mask of an expression, u8 `[H, W]` of 0/1 at native size, mirrored if the image was.

        It is stored by columns, as that of `Record.mask`.
        """
        mask = self.record.mask(expression.targets)
        return np.asfortranarray(mask[:, ::-1]) if self.flipped else mask


@dataclasses.dataclass(frozen=True)
class Example:
    """A row before it is packed into arrays.

    Attributes:
        key: as `RowMeta.key`.
        frames: up to N images.
        texts: K texts to tokenize; `""` where padded.
    """

    key: str
    frames: tuple[Frame, ...]
    texts: tuple[str, ...]


class Transform(Protocol):
    """Changes an example; all randomness comes from `rng`."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the changed example."""
        ...


@dataclasses.dataclass(frozen=True)
class SampleExpressions:
    """Draws at most `pairs` of the expressions without replacement, and pads to `pairs`.

    It draws a second expression of a referent only when every referent has one, so that the pairs of
    an image are about different things.
    """

    pairs: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`; the example must have a single image."""
        (frame,) = example.frames
        order = rng.permutation(len(frame.expressions))
        seen: dict[int, int] = {}
        turns = []
        for place in order:
            expression = frame.expressions[place]
            assert expression is not None
            turns.append(seen.get(expression.referent, 0))
            seen[expression.referent] = turns[-1] + 1
        chosen = order[np.argsort(turns, kind="stable")][: self.pairs]
        return pad(example, tuple(frame.expressions[k] for k in chosen), self.pairs)


@dataclasses.dataclass(frozen=True)
class PadExpressions:
    """Keeps all expressions in order, and pads them to `pairs`; groups of images stay as they are."""

    pairs: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`."""
        del rng
        if len(example.frames) == 1:
            return pad(example, example.frames[0].expressions, self.pairs)
        return example


@dataclasses.dataclass(frozen=True)
class ShuffleText:
    """Gives each expression the words of another target, to see whether a model reads them.

    The words come from an expression of the same image and granularity that means other targets. One
    of the same category is preferred (for parts: of the same part and object category), then one of the
    same object category, then any. Pairs without such an expression become padding. Masks stay those of
    the original expressions. Forms of absence are of the words, so no pair keeps its own.
    """

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`; the example must have a single image, and nothing is random."""
        del rng
        (frame,) = example.frames
        texts, kept = list(example.texts), list(frame.expressions)
        for k, expression in enumerate(frame.expressions):
            if expression is None:
                continue
            other = _another(frame.record, expression)
            asked = dataclasses.replace(expression, form="")
            texts[k], kept[k] = ("", None) if other is None else (other.text, asked)
        frame = dataclasses.replace(frame, expressions=tuple(kept))
        return dataclasses.replace(example, frames=(frame,), texts=tuple(texts))


@dataclasses.dataclass(frozen=True)
class PromptParts:
    """Asks for parts by a template, where the dataset names them only by their category.

    Attributes:
        template: the prompt, with `{}` for the text of `input_pipeline.prompts.part`.
    """

    template: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`; comes after all that chooses expressions, and nothing is random."""
        del rng
        texts = list(example.texts)
        for k, text in enumerate(example.texts):
            # Of a group, any image that has the part tells.
            if any(_is_part_prompt(f.record, f.expressions[k]) for f in example.frames):
                texts[k] = self.template.replace("{}", text)
        return dataclasses.replace(example, texts=tuple(texts))


@dataclasses.dataclass(frozen=True)
class Decode:
    """Decodes the images and checks that they are as large as their masks.

    A call raises an `ImageError` if an image is damaged, has more than `max_pixels` pixels, or has
    another size than its record.
    """

    max_pixels: int = MAX_PIXELS

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`."""
        del rng
        return dataclasses.replace(example, frames=tuple(self._decode(f) for f in example.frames))

    def _decode(self, frame: Frame) -> Frame:
        record = frame.record
        name = f"{record.source}: image {record.image_id} ({record.file_name})"
        size = (record.height, record.width)
        image = decode_image(record.image, name=name, max_pixels=self.max_pixels, annotated=size)
        if image.shape[:2] != size:
            raise ImageError(
                f"{name}: the image is {image.shape[1]} x {image.shape[0]}, its masks are "
                f"{record.width} x {record.height}; take the file that was annotated"
            )
        return dataclasses.replace(frame, image=image)


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors image and masks with a probability, and then swaps left and right in the texts."""

    probability: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`; comes after `Decode`."""
        if rng.random() >= self.probability:
            return example
        frames = tuple(
            # NumPy copies mirrored pixels one by one, which takes as long as decoding them.
            dataclasses.replace(f, image=cv2.flip(f.image, 1), flipped=not f.flipped)
            for f in example.frames
            if f.image is not None
        )
        texts = tuple(swap_sides(text) for text in example.texts)
        return dataclasses.replace(example, frames=frames, texts=texts)


@dataclasses.dataclass(frozen=True)
class ResizeImage:
    """Resizes the images to the network's input; see `refseg_jax.images.preprocess`."""

    size: int
    resize: preprocess.Resize

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`; comes after `Decode`."""
        del rng
        return dataclasses.replace(example, frames=tuple(self._resize(f) for f in example.frames))

    def _resize(self, frame: Frame) -> Frame:
        assert frame.image is not None
        image, affine = preprocess.prepare_image(frame.image, self.size, self.resize)
        return dataclasses.replace(frame, image=image, affine=affine)


@dataclasses.dataclass(frozen=True)
class HideAndSeek:
    """Hides patches of the images behind one colour (Singh and Lee, ICCV 2017); masks and texts stay.

    UniLSeg trains so on pseudo labels, with a probability of 0.2 (section 3.3). Size and colour of the
    patches are not stated there; see `PipelineConfig.hide_cells` and `hide_colour`.

    Attributes:
        probability: probability in [0, 1] that a patch is hidden.
        cells: patches along a side of the network's square.
        colour: u8 RGB. Only pixels that the picture reaches are painted, so the border of a letterbox
            stays as it is everywhere else.
    """

    probability: float
    cells: int
    colour: tuple[int, int, int]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """See `Transform`; comes after `ResizeImage`. Each image of a group has patches of its own."""
        return dataclasses.replace(
            example, frames=tuple(self._hide(frame, rng) for frame in example.frames)
        )

    def _hide(self, frame: Frame, rng: np.random.Generator) -> Frame:
        assert frame.image is not None and frame.affine is not None
        size, record = frame.image.shape[0], frame.record
        cell = np.arange(size) * self.cells // size
        hidden = (rng.random((self.cells, self.cells)) < self.probability)[cell][:, cell]
        hidden &= _reached(frame.affine[1, 1], frame.affine[1, 2], size, record.height)[:, None]
        hidden &= _reached(frame.affine[0, 0], frame.affine[0, 2], size, record.width)
        image = frame.image.copy()
        image[hidden] = self.colour
        return dataclasses.replace(frame, image=image)


def pad(example: Example, expressions: tuple[Expression | None, ...], pairs: int) -> Example:
    """An example of one image with its expressions replaced by these, padded to `pairs`."""
    padded = (*expressions, *(None,) * (pairs - len(expressions)))
    frame = dataclasses.replace(example.frames[0], expressions=padded)
    texts = tuple("" if e is None else e.text for e in padded)
    return dataclasses.replace(example, frames=(frame,), texts=texts)


def swap_sides(text: str) -> str:
    """Swaps "left" and "right" in a text, as whole words and in their compounds.

    >>> from input_pipeline.transforms import swap_sides
    >>> swap_sides("Left-hand car right of the leftmost tree")
    'Right-hand car left of the rightmost tree'
    """

    def swap(match: re.Match[str]) -> str:
        word = match.group(1)
        other = "right" if word.lower() == "left" else "left"
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return re.sub(
        r"(?<![a-z])(left|right)(?=(most|ward|wards|er|hand)?(?![a-z]))", swap, text, flags=re.I
    )


def _reached(scale: float, offset: float, size: int, length: int) -> np.ndarray:
    """Which network pixels of an axis show the picture, bool `[size]`.

    The cubic warp of a letterbox reads two native pixels on either side.
    """
    native = (np.arange(size) - offset) / scale
    return (native > -2) & (native < length + 1)


def _is_part_prompt(record: Record, expression: Expression | None) -> bool:
    if expression is None:
        return False
    names = [prompts.part(record.targets[t].category, of="") for t in expression.targets[:1]]
    return expression.granularity == "part" and expression.text.startswith(tuple(names))


def _another(record: Record, expression: Expression) -> Expression | None:
    candidates = [
        e
        for e in record.expressions
        if e.granularity == expression.granularity
        and set(e.targets) != set(expression.targets)
        and e.text != expression.text
        and e.targets
        and not e.group
    ]
    if not candidates or not expression.targets:
        return None
    kind = _kind(record, expression)
    # The same category (of part and object) first, then the same object category, then any.
    return min(candidates, key=lambda e: (_distance(_kind(record, e), kind), e.id))


def _kind(record: Record, expression: Expression) -> tuple[str, str]:
    target = record.targets[expression.targets[0]]
    parent = record.targets[target.parent].category if target.parent >= 0 else ""
    return target.category, parent


def _distance(a: tuple[str, str], b: tuple[str, str]) -> int:
    return 0 if a == b else 1 if a[1] == b[1] else 2
