import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from input_pipeline.schema import Expression, Record, Target, encode_mask
from input_pipeline.transforms import (
    Decode,
    Example,
    Frame,
    HorizontalFlip,
    PadExpressions,
    PromptParts,
    ResizeImage,
    SampleExpressions,
    ShuffleText,
    Transform,
    swap_sides,
)
from refseg_jax.images.decoding import ImageError
from refseg_jax.images.preprocess import Resize, prepare_mask

HEIGHT, WIDTH = 8, 16


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rectangle(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


BOX = rectangle(2, 6, 1, 5)


def make_record(**changes: Any) -> Record:
    """One white box on the left of a black image."""
    fields: dict[str, Any] = {
        "image": png(np.repeat(BOX[:, :, None] * np.uint8(255), 3, 2)),
        "image_id": "7",
        "file_name": "7.png",
        "height": HEIGHT,
        "width": WIDTH,
        "source": "made",
        "targets": (Target(encode_mask(BOX), "box"),),
        "expressions": (Expression("e0", "the Left box", (0,), "object"),),
        **changes,
    }
    return Record(**fields)


def make_example(record: Record) -> Example:
    texts = tuple(e.text for e in record.expressions)
    return Example("train/0", (Frame(record, record.expressions),), texts)


def apply(example: Example, *steps: Transform, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    for step in steps:
        example = step(example, rng)
    return example


def ids(example: Example) -> list[str | None]:
    return [None if e is None else e.id for e in example.frames[0].expressions]


def image_of(example: Example) -> np.ndarray:
    image = example.frames[0].image
    assert image is not None
    return image


# Sampling


def referents(counts: list[int]) -> Record:
    """`counts[r]` sentences for referent `r`, with ids `<r>.<number>`."""
    expressions = [
        Expression(f"{r}.{k}", f"words {r} {k}", (0,), "object", r)
        for r, count in enumerate(counts)
        for k in range(count)
    ]
    return make_record(expressions=tuple(expressions))


@pytest.mark.parametrize("seed", range(10))
def test_as_many_referents_as_pairs_allow_are_sampled_first(seed: int):
    example = apply(make_example(referents([5, 1, 3])), SampleExpressions(5), seed=seed)
    chosen = [name for name in ids(example) if name]
    assert sorted(name[0] for name in chosen[:3]) == ["0", "1", "2"]
    # Two more have had a turn; the third referent has no second sentence.
    assert sorted(name[0] for name in chosen[3:]) == ["0", "2"]
    assert len(set(chosen)) == 5


def test_sampling_pads_to_the_number_of_pairs():
    example = apply(make_example(referents([1, 1])), SampleExpressions(4))
    assert sorted(ids(example)[:2], key=str) == ["0.0", "1.0"]
    assert ids(example)[2:] == [None, None] and example.texts[2:] == ("", "")


def test_every_sentence_of_a_referent_is_drawn_about_as_often():
    example = make_example(referents([4]))
    rng = np.random.default_rng(0)
    drawn = [ids(SampleExpressions(1)(example, rng))[0] for _ in range(400)]
    counts = {name: drawn.count(name) for name in set(drawn)}
    assert set(counts) == {"0.0", "0.1", "0.2", "0.3"}
    assert min(counts.values()) > 60  # 100 expected, 60 is 4.6 deviations below.


def test_words_follow_the_sampled_expressions():
    example = apply(make_example(referents([3, 2, 2])), SampleExpressions(6), seed=3)
    expected = ["words " + str(name).replace(".", " ") for name in ids(example)]
    assert list(example.texts) == expected


def test_padding_keeps_the_order():
    example = apply(make_example(referents([2, 1])), PadExpressions(4))
    assert ids(example) == ["0.0", "0.1", "1.0", None]


# Prompts


def test_parts_that_are_named_by_their_category_are_asked_by_the_template():
    lid = Target(encode_mask(rectangle(2, 3, 1, 5)), "lid", 0, "part")
    said = [
        ("lid of box", (1,), "part", "all lid of box"),
        ("the lid of the box", (1,), "part", "the lid of the box"),
        ("the box", (0,), "object", "the box"),
        ("box of cards", (0,), "object", "box of cards"),
    ]
    record = make_record(
        targets=(*make_record().targets, lid),
        expressions=tuple(
            Expression(f"e{k}", text, targets, kind)
            for k, (text, targets, kind, _) in enumerate(said)
        ),
    )
    example = apply(make_example(record), PadExpressions(6), PromptParts("all {}"))
    assert example.texts == (*(wanted for *_, wanted in said), "", "")
    same = apply(make_example(record), PadExpressions(6), PromptParts("{}"))
    assert same.texts[:4] == tuple(text for text, *_ in said)


# Decoding


def test_an_image_of_another_size_than_its_masks_is_refused():
    record = make_record(height=WIDTH, width=HEIGHT)
    with pytest.raises(
        ImageError, match=r"made: image 7 \(7.png\): the image is 16 x 8, .* 8 x 16"
    ):
        apply(make_example(record), Decode())


def test_too_many_pixels_are_refused():
    with pytest.raises(ImageError, match="more than the allowed 127"):
        apply(make_example(make_record()), Decode(max_pixels=HEIGHT * WIDTH - 1))
    apply(make_example(make_record()), Decode(max_pixels=HEIGHT * WIDTH))


# Flips


def test_a_flip_mirrors_image_mask_and_words_together():
    example = apply(make_example(make_record()), Decode(), HorizontalFlip(1.0))
    (frame,) = example.frames
    expression = frame.expressions[0]
    assert expression is not None
    np.testing.assert_array_equal(frame.mask(expression), BOX[:, ::-1])
    np.testing.assert_array_equal(image_of(example)[:, :, 0], BOX[:, ::-1] * 255)
    assert example.texts == ("the Right box",)


def test_two_flips_are_none():
    plain = apply(make_example(make_record()), Decode())
    twice = apply(plain, HorizontalFlip(1.0), HorizontalFlip(1.0))
    np.testing.assert_array_equal(image_of(twice), image_of(plain))
    assert twice.frames[0].flipped is False and twice.texts == plain.texts


def test_a_flip_takes_all_images_of_a_group():
    frame = make_example(make_record()).frames[0]
    group = Example("train/0", (frame, frame, frame), ("left",))
    flipped = apply(group, Decode(), HorizontalFlip(1.0))
    assert [f.flipped for f in flipped.frames] == [True] * 3


def test_flips_happen_as_often_as_asked():
    example = apply(make_example(make_record()), Decode())
    rng = np.random.default_rng(0)
    flips = sum(HorizontalFlip(0.25)(example, rng).frames[0].flipped for _ in range(400))
    assert 65 < flips < 135  # 100 expected, within 4 deviations.
    assert not any(HorizontalFlip(0.0)(example, rng).frames[0].flipped for _ in range(50))


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("left", "right"),
        ("The RIGHT one, Left of it", "The LEFT one, Right of it"),
        ("leftmost car, rightward road", "rightmost car, leftward road"),
        ("left-hand side; on the far-right.", "right-hand side; on the far-left."),
        ("the lefthand one's right", "the righthand one's left"),
        ("left2 right_", "right2 left_"),
        ("a bright upright cleft rightful copyright", "a bright upright cleft rightful copyright"),
        ("", ""),
    ],
)
def test_left_and_right_are_swapped_in_whole_words(text: str, swapped: str):
    assert swap_sides(text) == swapped
    assert swap_sides(swapped) == text


# Geometry


def resized(resize: Resize, size: int = 16, *before: Transform) -> tuple[Frame, np.ndarray]:
    """The frame at network size, and its mask with a stride of one."""
    example = apply(make_example(make_record()), Decode(), *before, ResizeImage(size, resize))
    (frame,) = example.frames
    expression = frame.expressions[0]
    assert expression is not None and frame.affine is not None
    return frame, prepare_mask(frame.mask(expression), frame.affine, size, 1)


def test_letterbox_centres_and_keeps_the_aspect():
    frame, mask = resized("letterbox")
    np.testing.assert_array_equal(frame.affine, np.array([[1, 0, 0], [0, 1, 4]], np.float32))
    expected = np.zeros((16, 16), np.uint8)
    expected[4:12] = BOX * 255
    np.testing.assert_array_equal(mask, expected)
    assert frame.image is not None
    np.testing.assert_array_equal(frame.image[4:12, :, 0], BOX * 255)
    assert (frame.image[:4] == (123, 117, 104)).all(), "the border is CLIP's mean colour"


def test_stretch_scales_each_axis_by_itself():
    frame, mask = resized("stretch")
    assert frame.affine is not None
    # Twice as high with half-pixel centres, as wide as before.
    np.testing.assert_allclose(frame.affine, [[1, 0, 0], [0, 2, 0.5]], atol=1e-6)
    assert mask[:, 0].max() == 0 and mask[:, 1:5].max() == 255 and mask[:, 5:].max() == 0
    assert mask[5:11, 1:5].min() == 255 and mask[:3].max() == 0 and mask[13:].max() == 0
    area = mask.astype(int).sum() / 255
    np.testing.assert_allclose(area, 2 * BOX.sum(), rtol=0.01)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("before", [(), (HorizontalFlip(1.0),)])
def test_image_and_mask_stay_aligned(resize: Resize, before: tuple[Transform, ...]):
    frame, mask = resized(resize, 64, *before)
    assert frame.image is not None and frame.affine is not None
    bright = frame.image[:, :, 0].astype(int) > 127
    if resize == "letterbox":
        bright[:16] = bright[48:] = False  # The border, of CLIP's mean colour, is no box.
    covered = mask > 127
    # The image and the mask are resized by different kernels: they may differ by the edge's pixels.
    assert (bright & covered).sum() / (bright | covered).sum() > 0.9
    # The centre of the box goes where `affine` sends it.
    centre = (2.5, 3.5) if not before else (WIDTH - 1 - 2.5, 3.5)
    found = np.argwhere(covered).mean(0)[::-1]
    np.testing.assert_allclose(found, frame.affine @ (*centre, 1), atol=0.5)


# Shuffled words


def scene() -> Record:
    """Two cars with a wheel each, the first with a door too, and a dog with a tail.

    Ids decide between equals: those that begin with 0 come first where the kind is not looked at.
    """
    targets = [
        Target(b"", "car"),
        Target(b"", "car"),
        Target(b"", "dog"),
        Target(b"", "wheel", 0, "part"),
        Target(b"", "wheel", 1, "part"),
        Target(b"", "door", 0, "part"),
        Target(b"", "tail", 2, "part"),
    ]
    said = [
        ("a", "red car", (0,), "object"),
        ("b", "the left car", (0,), "object"),
        ("c", "blue car", (1,), "object"),
        ("0d", "a dog", (2,), "object"),
        ("e", "wheel of the red car", (3,), "part"),
        ("f", "wheel of the blue car", (4,), "part"),
        ("0g", "door of the red car", (5,), "part"),
        ("0t", "tail of the dog", (6,), "part"),
        ("h", "both cars", (0, 1), "multi"),
        ("i", "a cat", (), "none"),
        ("j", "a bird", (), "none"),
    ]
    return make_record(
        targets=tuple(targets),
        expressions=tuple(Expression(*fields) for fields in said),
    )


def shuffled(record: Record) -> dict[str, str | None]:
    """Id -> the words that it got, `None` where it became padding."""
    plain = make_example(record)
    example = apply(plain, ShuffleText())
    before, after = plain.frames[0].expressions, example.frames[0].expressions
    # The targets are those of before, whatever the words.
    assert all(new is None or new == old for old, new in zip(before, after, strict=True))
    for new, text in zip(after, example.texts, strict=True):
        assert new is not None or text == ""
    return {
        old.id: None if new is None else text
        for old, new, text in zip(before, after, example.texts, strict=True)
        if old is not None
    }


def test_shuffled_words_are_those_of_another_target_of_the_same_kind():
    words = shuffled(scene())
    assert words["a"] == words["b"] == "blue car"
    assert words["c"] in ("red car", "the left car")
    assert words["e"] == "wheel of the blue car"
    assert words["f"] == "wheel of the red car"


def test_without_the_kind_another_thing_of_the_granularity_serves():
    words = shuffled(scene())
    assert words["0d"] in ("red car", "the left car", "blue car")
    assert words["0g"] in ("wheel of the red car", "wheel of the blue car"), "not the dog's tail"


def test_pairs_without_another_expression_become_padding():
    words = shuffled(scene())
    assert words["h"] is None, "the only expression of several targets"
    assert words["i"] is None and words["j"] is None, "they mean nothing, so nothing else either"


def test_shuffling_never_keeps_the_words():
    record = scene()
    twin = Expression("k", "red car", (1,), "object")
    words = shuffled(dataclasses.replace(record, expressions=(*record.expressions, twin)))
    assert words["a"] == "blue car", "of another target, but not 'red car' again"
    assert words["k"] == "the left car"


def test_shuffled_words_are_no_question_of_the_form_of_absence():
    record = scene()
    asked = tuple(dataclasses.replace(e, form="place") for e in record.expressions)
    example = apply(make_example(dataclasses.replace(record, expressions=asked)), ShuffleText())
    kept = [e for e in example.frames[0].expressions if e is not None]
    assert kept and {e.form for e in kept} == {""}


def test_padding_stays_padding_when_words_are_shuffled():
    example = apply(make_example(scene()), PadExpressions(12), ShuffleText())
    assert ids(example)[11:] == [None] and example.texts[11:] == ("",)
