"""Hide-and-seek: what is hidden, how much of it, always the same, and only of pseudo-labelled rows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from input_pipeline.mixtures import open_mixture, read_members
from input_pipeline.pipeline import PipelineConfig, eval_batches, open_train, train_batches
from input_pipeline.schema import Record, encode_mask
from input_pipeline.transforms import Decode, Example, Frame, HideAndSeek, ResizeImage
from refseg_jax.errors import UserError
from refseg_jax.images.preprocess import BORDER, Resize
from tests.input_pipeline.batches import (
    EVERY,
    assert_same_rows,
    built,
    make_config,
    rows_of,
    take,
    weave,
)
from tests.input_pipeline.transforms_test import apply, image_of, make_record, png

data_dir = pytest.fixture(scope="module")(built)

RED = (255, 0, 0)
SIZE, CELLS = 40, 5


def blue(height: int, width: int) -> Example:
    """An image of one colour that is neither the border's nor a patch's."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 200
    record: Record = make_record(image=png(pixels), height=height, width=width, targets=())
    record = dataclasses.replace(record, expressions=())
    return Example("train/0", (Frame(record, ()),), ())


def hidden(example: Example) -> np.ndarray:
    return (image_of(example) == RED).all(-1)


# One image


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(40, 40), (20, 40), (30, 10), (7, 90)])
def test_patches_are_hidden_whole_and_the_border_stays(
    shape: tuple[int, int], resize: Resize
) -> None:
    before = apply(blue(*shape), Decode(), ResizeImage(SIZE, resize))
    after = apply(before, HideAndSeek(0.5, CELLS, RED), seed=1)
    border = (image_of(before) == BORDER).all(-1)
    assert border.any() == (resize == "letterbox" and shape[0] != shape[1])
    found = hidden(after)
    np.testing.assert_array_equal(image_of(after)[~found], image_of(before)[~found])
    assert found.any() and not (found & _far(border)).any()
    side = SIZE // CELLS
    for y, x in np.ndindex(CELLS, CELLS):
        patch = np.s_[y * side : (y + 1) * side, x * side : (x + 1) * side]
        if found[patch].any():
            # Nothing of the picture is left, not even what the warp blends into the border.
            assert (image_of(after)[patch][~found[patch]] == BORDER).all()


def _far(border: np.ndarray) -> np.ndarray:
    """Pixels of the border at least 4 rows or columns away from the picture."""
    picture = (~border).astype(np.uint8)
    return cv2.dilate(picture, np.ones((7, 7), np.uint8)) == 0


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7, 1.0])
def test_the_share_of_hidden_patches_is_the_probability(probability: float) -> None:
    example = apply(blue(20, 40), Decode(), ResizeImage(SIZE, "letterbox"))
    rng = np.random.default_rng(0)
    hide = HideAndSeek(probability, CELLS, RED)
    # The picture has 20 of 40 rows; rows 16 to 23 of it fill the patches of one row.
    shares = [hidden(hide(example, rng))[16:24].mean() for _ in range(1000)]
    # 5,000 patches: 0.03 is more than 4 deviations.
    assert np.mean(shares) == pytest.approx(probability, abs=0.03 if 0 < probability < 1 else 0)


@pytest.mark.parametrize("cells", [1, 3, 7, 40])
def test_any_number_of_patches_covers_the_image(cells: int) -> None:
    example = apply(blue(40, 40), Decode(), ResizeImage(SIZE, "stretch"))
    assert hidden(apply(example, HideAndSeek(1.0, cells, RED))).all()
    some = hidden(apply(example, HideAndSeek(0.5, cells, RED), seed=3))
    changes = (some[1:] != some[:-1]).any(1).sum()
    assert changes <= cells - 1


def test_the_images_of_a_group_have_patches_of_their_own() -> None:
    one = blue(40, 40).frames[0]
    group = Example("train/0", (one, one), ())
    first, second = apply(
        group, Decode(), ResizeImage(SIZE, "stretch"), HideAndSeek(0.5, CELLS, RED)
    ).frames
    assert first.image is not None and second.image is not None
    assert (first.image != second.image).any()


def test_an_image_that_needs_no_resize_is_not_painted_in_place() -> None:
    example = apply(blue(40, 40), Decode(), ResizeImage(SIZE, "stretch"))
    kept = image_of(example).copy()
    apply(example, HideAndSeek(1.0, 1, RED))
    np.testing.assert_array_equal(image_of(example), kept)


def test_masks_are_those_of_before() -> None:
    record = make_record()
    example = Example("train/0", (Frame(record, record.expressions),), ("the Left box",))
    after = apply(example, Decode(), ResizeImage(SIZE, "letterbox"), HideAndSeek(1.0, 1, RED))
    frame = after.frames[0]
    assert after.texts == example.texts
    assert encode_mask(frame.mask(record.expressions[0])) == record.targets[0].counts


# Batches


def pseudo(data_dir: Path, **changes: Any) -> PipelineConfig:
    fields = {"pseudo_labelled": True, "hide_colour": RED, "hide_cells": CELLS, **changes}
    return make_config(data_dir, "train", **fields)


def test_only_the_images_of_pseudo_labelled_rows_change(data_dir: Path) -> None:
    config = pseudo(data_dir, flip_probability=0.5)
    plain = dataclasses.replace(config, pseudo_labelled=False)
    found, expected = (
        rows_of(take(train_batches(c, batch_size=6, seed=0), 8)) for c in (config, plain)
    )
    painted = []
    for (one, _), (other, _) in zip(found, expected, strict=True):
        painted.append((one["image"] == RED).all(-1).mean())
        one["image"] = other["image"]
    assert_same_rows(found, expected)
    # 48 images of 25 patches; 0.15 to 0.25 is more than 4 deviations on either side.
    assert 0.15 < np.mean(painted) < 0.25
    never = dataclasses.replace(config, hide_probability=0.0)
    assert_same_rows(rows_of(take(train_batches(never, batch_size=6, seed=0), 8)), expected)


def test_the_default_colour_is_the_mean(data_dir: Path) -> None:
    config = make_config(data_dir, "train", pseudo_labelled=True, hide_probability=1.0)
    (host,) = take(train_batches(config, batch_size=6, seed=0), 1)
    assert (np.asarray(host.batch.image) == BORDER).all()


def test_any_number_of_processes_hides_the_same(data_dir: Path) -> None:
    config = pseudo(data_dir)
    alone = rows_of(take(train_batches(config, batch_size=4, seed=3), 4))
    shares = [
        train_batches(config, batch_size=4, seed=3, process_index=p, process_count=2)
        for p in range(2)
    ]
    assert_same_rows(weave([take(share, 4) for share in shares]), alone)
    assert len({row["image"].tobytes() for row, _ in alone}) > 6


def test_worker_processes_and_a_resumed_run_hide_the_same(data_dir: Path) -> None:
    config = pseudo(data_dir)
    expected = rows_of(take(train_batches(config, batch_size=4, seed=3), 6))
    config = dataclasses.replace(config, num_workers=2)
    batches = train_batches(config, batch_size=4, seed=3)
    found, state = take(batches, 3), json.loads(json.dumps(batches.get_state()))
    fresh = train_batches(config, batch_size=4, seed=3)
    fresh.set_state(state)
    assert_same_rows(rows_of([*found, *take(fresh, 3)]), expected)


def test_an_evaluation_hides_nothing(data_dir: Path) -> None:
    config = make_config(data_dir, pairs=6, granularities=EVERY)
    expected = rows_of(list(eval_batches(config, batch_size=3)))
    config = dataclasses.replace(config, pseudo_labelled=True, hide_probability=1.0)
    assert_same_rows(rows_of(list(eval_batches(config, batch_size=3))), expected)


def test_of_a_mixture_only_the_pseudo_labelled_member_is_touched(data_dir: Path) -> None:
    def batches(mixture: dict[str, dict[str, Any]]) -> list[Any]:
        base = make_config(data_dir, "train", hide_probability=1.0)
        members = read_members(mixture, lambda **own: dataclasses.replace(base, **own))
        return take(open_mixture(members).batches(batch_size=2, seed=0), 8)

    found = batches({"people": {}, "engine": {"pseudo_labelled": True}})
    plain = batches({"people": {}, "engine": {}})
    for host, other in zip(found, plain, strict=True):
        assert host.name == other.name
        if host.name == "people":
            assert_same_rows(rows_of([host]), rows_of([other]))
        else:
            assert (np.asarray(host.batch.image) == BORDER).all()
            np.testing.assert_array_equal(host.batch.mask, other.batch.mask)
    assert {host.name for host in found} == {"people", "engine"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hide_probability": 1.5}, r"config\.data\.hide_probability=1\.5: give a share"),
        ({"hide_probability": float("nan")}, r"config\.data\.hide_probability=nan"),
        ({"hide_cells": 0}, r"config\.data\.hide_cells=0: .* from 1 to 32"),
        ({"hide_cells": 33}, r"config\.data\.hide_cells=33"),
        ({"hide_colour": (0, 0)}, r"config\.data\.hide_colour=\(0, 0\): give red, green and blue"),
        ({"hide_colour": (0, 0, 256)}, r"config\.data\.hide_colour="),
        ({"hide_colour": (0.5, 0.5, 0.5)}, r"config\.data\.hide_colour="),
    ],
)
def test_settings_that_hide_nothing_sensible_are_one_line(
    data_dir: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        open_train(pseudo(data_dir, **changes))
