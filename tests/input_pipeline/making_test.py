"""What a row says about its pairs, beside their masks."""

import dataclasses
from pathlib import Path

from input_pipeline import pipeline
from input_pipeline.making import category_of
from input_pipeline.schema import Expression, Record, Target
from tests.input_pipeline.tiny_dataset import build_tiny_dataset, make_record
from tests.refseg_jax.training.tiny_run import data_config


def _grouped(record: Record) -> Record:
    grouped = [dataclasses.replace(e, group=f"v/{k % 2}") for k, e in enumerate(record.expressions)]
    return dataclasses.replace(record, expressions=tuple(grouped))


def test_rows_tell_groups_and_categories(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path, {"val": 1}, change=_grouped)
    found = {}
    for host in pipeline.eval_batches(data_config(tmp_path), batch_size=1):
        (meta,) = host.meta
        said = zip(meta.pair_ids, meta.groups, meta.categories, strict=False)
        found |= {name: (group, category) for name, group, category in said if name}
    kinds = ("box", "box", "box", "lid", "box", "")
    assert found == {f"val0-{k}": (f"v/{k % 2}", kind) for k, kind in enumerate(kinds)}


def test_the_words_of_a_prompt_are_its_category() -> None:
    record = make_record("val", 0, (32, 32))
    targets = (
        Target(b"", "car"),
        Target(b"", "side_mirror", 0, "part"),
        Target(b"", "wheel", 0, "part"),
    )
    record = dataclasses.replace(record, targets=targets)

    def of(text: str, granularity: str, *chosen: int) -> str:
        return category_of(record, Expression("a", text, chosen, granularity))

    assert of("all car", "category", 0) == of("all car", "category") == "all car"
    assert of("side mirror of car", "part", 1) == "side mirror of car"
    assert of("the left wheel of the car", "part", 2) == "wheel"
    assert of("everything", "multi", 0, 1) == ""
    assert of("the boat", "none") == ""
