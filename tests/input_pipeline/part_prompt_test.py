"""The words that ask for parts, in training, in evaluations and in the list of classes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.labels import class_list
from input_pipeline.pipeline import PipelineConfig, eval_batches, open_train, train_batches
from input_pipeline.schema import AskedClass, Record
from refseg_jax.batch import HostBatch
from refseg_jax.errors import UserError
from refseg_jax.text.tokenizers import build_tokenizer
from tests.input_pipeline.batches import make_config, take
from tests.input_pipeline.tiny_dataset import build_tiny_dataset


def _named(record: Record) -> Record:
    """The part is named by its category alone, as in PartImageNet."""
    said = [
        dataclasses.replace(e, text="lid of box") if e.granularity == "part" else e
        for e in record.expressions
    ]
    return dataclasses.replace(record, expressions=tuple(said))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    build_tiny_dataset(folder, {"train": 4, "val": 3}, change=_named)
    return folder


def parts(data_dir: Path, split: str, **changes: Any) -> PipelineConfig:
    return make_config(data_dir, split, granularities=("part",), pairs=1, **changes)


def tokens(text: str) -> np.ndarray:
    return build_tokenizer("clip")([text], 12)[0]


def asked(hosts: list[HostBatch]) -> set[tuple[str, bytes]]:
    return {
        (meta.expressions[0], np.asarray(host.batch.text[b, 0]).tobytes())
        for host in hosts
        for b, meta in enumerate(host.meta)
        if host.batch.valid[b].any()
    }


@pytest.mark.parametrize("template", ["{}", "all {}"])
def test_training_and_evaluation_ask_in_the_same_words(data_dir: Path, template: str) -> None:
    words = template.replace("{}", "lid of box")
    expected = {(words, tokens(words)[0].tobytes())}
    train = parts(data_dir, "train", part_prompt=template)
    assert asked(take(train_batches(train, batch_size=2, seed=0), 4)) == expected
    evaluated = list(eval_batches(parts(data_dir, "val", part_prompt=template), batch_size=2))
    assert asked(evaluated) == expected
    # Scores are counted by the dataset's own name of the class.
    categories = {name for h in evaluated for meta in h.meta for name in meta.categories if name}
    assert categories == {"lid of box"}


def test_the_list_of_classes_is_asked_in_these_words_and_keeps_its_names(data_dir: Path) -> None:
    config = parts(data_dir, "val", part_prompt="all {}")
    one = (AskedClass("lid of box"),)
    found = class_list(one, "part", config)
    assert found.names == ("lid of box",)
    np.testing.assert_array_equal(found.text, tokens("all lid of box"))
    # Categories have their prompt from the build.
    np.testing.assert_array_equal(class_list(one, "category", config).text, tokens("lid of box"))


def test_a_template_without_a_place_for_the_part_is_one_line(data_dir: Path) -> None:
    with pytest.raises(UserError, match=r"config\.data\.part_prompt='all': put \{\} where"):
        open_train(parts(data_dir, "train", part_prompt="all"))
