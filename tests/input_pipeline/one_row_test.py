"""Batches of one row: of a run with a batch of one, or of a process whose share is one."""

import json
from pathlib import Path

import pytest

from input_pipeline.mixtures import Member, Mixture, open_mixture
from input_pipeline.pipeline import train_batches
from tests.input_pipeline.batches import assert_same_rows, built, make_config, rows_of, take, weave

data_dir = pytest.fixture(scope="module")(built)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_of_one_row_a_batch_has_the_rows_of_larger_batches_and_resumes(
    data_dir: Path, workers: int
):
    larger = rows_of(take(train_batches(make_config(data_dir, "train"), batch_size=6, seed=3), 3))
    config = make_config(data_dir, "train", num_workers=workers)
    batches = train_batches(config, batch_size=1, seed=3)
    found = take(batches, 7)
    assert {host.batch.image.shape[0] for host in found} == {1}
    state = json.loads(json.dumps(batches.get_state()))
    fresh = train_batches(config, batch_size=1, seed=3)
    fresh.set_state(state)
    assert_same_rows(rows_of([*found, *take(fresh, 11)]), larger)


def test_processes_with_a_share_of_one_row_have_the_batches_of_one(data_dir: Path):
    config = make_config(data_dir, "train")
    alone = train_batches(config, batch_size=3, seed=3)
    expected = take(alone, 3)
    state = alone.get_state()
    shares = [
        train_batches(config, batch_size=3, seed=3, process_index=p, process_count=3)
        for p in range(3)
    ]
    assert_same_rows(weave([take(share, 3) for share in shares]), rows_of(expected))
    # A checkpoint of one process resumes on three.
    for share in shares:
        share.set_state(state)
    assert_same_rows(weave([take(share, 2) for share in shares]), rows_of(take(alone, 2)))


def test_a_mixture_of_one_row_a_batch_takes_turns_and_resumes(data_dir: Path):
    def mixture() -> Mixture:
        return open_mixture(
            [
                Member("one", make_config(data_dir, "train"), 2.0, ("*",)),
                Member("two", make_config(data_dir, "train", pairs=3), 1.0, ("*",)),
            ]
        )

    batches = mixture().batches(batch_size=1, seed=0)
    expected = take(batches, 4)
    state = json.loads(json.dumps(batches.get_state()))
    expected += take(batches, 5)
    assert [host.name for host in expected].count("one") == 6
    fresh = mixture().batches(batch_size=1, seed=0)
    fresh.set_state(state)
    assert_same_rows(rows_of(take(fresh, 5)), rows_of(expected[4:]))
