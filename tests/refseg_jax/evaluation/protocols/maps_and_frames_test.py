"""`sod` and `rvos` gather what `saliency` and `video` measure; those have tests of their own."""

import dataclasses

import numpy as np

from refseg_jax.evaluation.protocols import Pair, State, build_protocol
from refseg_jax.evaluation.protocols.regions import RleRegions
from refseg_jax.evaluation.protocols.saliency import (
    e_measure_curve,
    f_measure,
    mean_absolute_error,
    saliency_entry,
)
from refseg_jax.evaluation.protocols.video import contour_accuracy, region_similarity
from tests.refseg_jax.evaluation.protocols.cases import (
    Case,
    assert_equal,
    pair_of,
    random_cases,
    scopes,
    state_of,
)


def _slow_sod(maps: dict[str, np.ndarray], cases: list[Case]) -> dict[str, float]:
    entries = [saliency_entry(maps[case.id], case.target) for case in cases]
    f, e = (np.mean([curve(x) for x in entries], 0) for curve in (f_measure, e_measure_curve))
    return {
        "MAE": float(np.mean([mean_absolute_error(x) for x in entries])),
        "Fmax": float(f.max()),
        "Fmean": float(f.mean()),
        "Sm": float(np.mean([x.s_measure for x in entries])),
        "Em": min(float(e.mean()), 1.0),
        "Emax": min(float(e.max()), 1.0),
    }


def test_sod_averages_maps_over_images() -> None:
    cases = random_cases(0, 250)
    rng = np.random.default_rng(0)
    maps = {case.id: rng.integers(0, 256, case.target.shape).astype(np.uint8) for case in cases}
    state = State(build_protocol("sod"))
    for case in cases:
        pair = pair_of(case)
        assert isinstance(pair.regions, RleRegions)
        regions = dataclasses.replace(pair.regions, grey=lambda name=case.id: maps[name])
        state.add(dataclasses.replace(pair, regions=regions))
    found = state.compute()
    for prefix, chosen in scopes(cases).items():
        for name, value in _slow_sod(maps, chosen).items():
            assert abs(found[prefix + name] - value) <= 1e-9, prefix + name


def test_a_mask_stands_for_a_map_of_black_and_white() -> None:
    cases = random_cases(1, 50)
    found = state_of(build_protocol("sod"), cases).compute()
    maps = {case.id: case.prediction * np.uint8(255) for case in cases}
    for name, value in _slow_sod(maps, cases).items():
        assert abs(found[name] - value) <= 1e-9, name


def test_rvos_averages_the_frames_of_an_expression_and_then_the_expressions() -> None:
    cases = [
        dataclasses.replace(case, group=case.group if i % 5 else "")
        for i, case in enumerate(random_cases(2, 600, largest=20))
    ]
    expected = {}
    for prefix, chosen in scopes(cases).items():
        videos: dict[str, list[Case]] = {}
        for case in chosen:
            videos.setdefault(case.group or case.id, []).append(case)
        for name, of in (("J", region_similarity), ("F", contour_accuracy)):
            means = [
                np.mean([of(frame.prediction, frame.target) for frame in frames])
                for frames in videos.values()
            ]
            expected[prefix + name] = float(np.mean(means))
        expected[f"{prefix}JF"] = (expected[f"{prefix}J"] + expected[f"{prefix}F"]) / 2
    assert_equal(state_of(build_protocol("rvos"), cases).compute(), expected)


def test_a_group_is_not_mistaken_for_a_pair_of_its_name() -> None:
    one, two = random_cases(3, 2)
    grouped = [
        dataclasses.replace(one, group="x", id="a"),
        dataclasses.replace(two, group="", id="x"),
    ]
    state = State(build_protocol("rvos"))
    for case in grouped:
        state.add(Pair(case.id, pair_of(case).regions, True, group=case.group))
    assert len(state.sums) == 2
