"""`cris`, `refcocom` and `lavt` against loops over boolean masks."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from refseg_jax.errors import UserError
from refseg_jax.evaluation.protocols import build_protocol, square
from tests.refseg_jax.evaluation.protocols.cases import (
    Case,
    assert_equal,
    pair_of,
    random_cases,
    scopes,
    state_of,
)

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def _slow(cases: list[Case], *, strict: bool) -> dict[str, float]:
    """The mean of I / U (0 where U is 0), sum I / sum U, and the shares above X.

    For CRIS (strict), a share is of I / (U + 1e-6) above X as float32.
    """
    expected = {}
    for prefix, chosen in scopes(cases).items():
        ious = [case.both / case.either if case.either else 0.0 for case in chosen]
        either = sum(case.either for case in chosen)
        expected[f"{prefix}mIoU"] = sum(ious) / len(ious)
        expected[f"{prefix}oIoU"] = sum(case.both for case in chosen) / either if either else 0.0
        for x in THRESHOLDS:
            above = [iou >= x for iou in ious]
            if strict:
                raised = np.array([case.both / (case.either + 1e-6) for case in chosen])
                above = (raised > np.array([x], np.float32).astype(np.float64)).tolist()
            expected[f"{prefix}Pr@{x}"] = sum(above) / len(above)
    return expected


def _squared(case: Case) -> Case:
    """As LAVT resizes the reference: Pillow, nearest, 480 x 480."""

    def resized(mask: np.ndarray) -> np.ndarray:
        image = Image.fromarray(mask.astype(np.uint8))
        return np.asarray(image.resize((480, 480), Image.Resampling.NEAREST)) == 1

    return dataclasses.replace(
        case, prediction=resized(case.prediction), target=resized(case.target)
    )


def test_cris_is_the_mean_of_expressions() -> None:
    cases = random_cases(0)
    assert sum(case.either == 0 for case in cases) > 50
    assert_equal(state_of(build_protocol("cris"), cases).compute(), _slow(cases, strict=True))


def test_refcocom_pools_objects_and_parts_and_nothing_else() -> None:
    cases = random_cases(1)
    chosen = [case for case in cases if case.granularity in ("object", "part")]
    state = state_of(build_protocol("refcocom"), cases)
    assert_equal(state.compute(), _slow(chosen, strict=True))
    assert state.counts()["count"] == len(chosen)
    assert set(state.counts()) == {"count", "object/count", "part/count"}


def test_refcocom_wants_to_know_the_granularity() -> None:
    case = dataclasses.replace(random_cases(2, 1)[0], granularity="")
    with pytest.raises(UserError, match="pair 'pair 0' has no granularity, which refcocom needs"):
        state_of(build_protocol("refcocom"), [case])


def test_lavt_scores_a_square_of_480() -> None:
    # Sizes above and below the square, of both parities.
    cases = random_cases(3, 150, largest=12) + random_cases(4, 40, largest=900)
    cases = [dataclasses.replace(case, id=str(i)) for i, case in enumerate(cases)]
    expected = _slow([_squared(case) for case in cases], strict=False)
    assert_equal(state_of(build_protocol("lavt"), cases).compute(), expected)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 320, 427, 479, 480, 481, 640, 959, 960, 961, 1333])
def test_the_square_takes_the_rows_that_pillow_takes(length: int) -> None:
    rng = np.random.default_rng(length)
    mask = rng.random((length, 5)) < 0.5
    image = Image.fromarray(mask.astype(np.uint8)).resize((480, 480), Image.Resampling.NEAREST)
    assert square.pixels(mask) == np.asarray(image).sum()
    assert square.weights(length).sum() == 480


def test_masks_of_the_square_stay_as_they_are() -> None:
    case = random_cases(5, 1)[0]
    rng = np.random.default_rng(5)
    masks = (rng.random((480, 480)) < 0.5 for _ in range(2))
    case = dataclasses.replace(case, prediction=next(masks), target=next(masks))
    regions = pair_of(case).regions
    assert regions.square_counts() == regions.counts()


def _of_ten(tenths: int, pixels: int) -> Case:
    """A prediction that is so many tenths of a target of so many pixels (a multiple of ten)."""
    target = np.ones((10, pixels // 10), bool)
    prediction = np.arange(10)[:, None] < tenths
    return Case("a", target & prediction, target, True, "object", "", "")


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_an_iou_of_exactly_x_counts_for_lavt(tenths: int) -> None:
    case = _of_ten(tenths, 480 * 480)
    case = dataclasses.replace(
        case, prediction=case.prediction.reshape(480, 480), target=case.target.reshape(480, 480)
    )
    assert state_of(build_protocol("lavt"), [case]).compute()[f"Pr@{tenths / 10}"] == 1.0


@pytest.mark.parametrize(
    ("tenths", "pixels", "counts"),
    [
        *((5, n, False) for n in (10, 100, 10**6)),
        *((6, n, False) for n in (10, 100, 10**6)),
        *((7, n, n >= 60) for n in (10, 50, 60, 100, 10**6)),
        *((8, n, False) for n in (10, 100, 10**6)),
        *((9, n, n >= 40) for n in (10, 30, 40, 100, 10**6)),
    ],
)
def test_an_iou_of_exactly_x_counts_for_cris_where_float32_rounds_x_down(
    tenths: int, pixels: int, counts: bool
) -> None:
    """Values of torch 2: `torch.tensor([I / (U + 1e-6)]) > torch.arange(0.5, 1, 0.1)[k]`."""
    found = state_of(build_protocol("cris"), [_of_ten(tenths, pixels)]).compute()
    assert found[f"Pr@{tenths / 10}"] == float(counts)
    assert found["mIoU"] == tenths / 10
