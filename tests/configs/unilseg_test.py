"""UniLSeg's configs: their data, schedules and benchmarks, on small copies of the datasets."""

import ast
import importlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import ade20k_unilseg, unilseg, unilseg_eval, unilseg_pretrain
from configs.unilseg_eval import BENCHMARKS
from input_pipeline.datasets.registry import DATASETS
from input_pipeline.experiment_data import ExperimentData
from input_pipeline.facts.published import all_facts
from input_pipeline.mixtures import Mixture, open_mixture, read_members
from refseg_jax.evaluation.protocols import PROTOCOLS, build_protocols
from refseg_jax.images.preprocess import BORDER
from refseg_jax.models.graphs import forward_of
from refseg_jax.models.unilseg_config import FORMS
from refseg_jax.text.tokenizers import build_tokenizer
from refseg_jax.training.optim import OptimConfig, make_schedule, multipliers, unfrozen
from refseg_jax.training.state import check_accumulation
from tests.configs.unilseg_sources import PSEUDO, SOURCES, build_datasets
from tests.input_pipeline.batches import take

ROOT = Path(__file__).resolve().parents[2]
SUPERVISED = [fields["dataset"] for fields in unilseg.SUPERVISED.values()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_datasets(tmp_path_factory.mktemp("sets"), (*SOURCES, PSEUDO))


@pytest.fixture
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the benchmarks' datasets."""
    return build_datasets(tmp_path_factory.mktemp("some"), (*SUPERVISED, PSEUDO))


def opened(config: Any, data_dir: Path) -> Mixture:
    config.data.update({"data_dir": str(data_dir), "num_workers": 0})
    data = ExperimentData(config, image_size=32, mask_stride=4)
    return open_mixture(read_members(config.mixture.to_dict(), data.settings))


def words(text: Any) -> bytes:
    return np.asarray(text).tobytes()


# The mixture of stage 2


def test_the_eight_datasets_of_the_paper_have_builders_and_splits() -> None:
    assert len(SUPERVISED) == 8
    for fields in unilseg.SUPERVISED.values():
        assert fields["dataset"] in DATASETS
        assert fields.get("split", "train") in all_facts()[fields["dataset"]].splits


def test_weights_are_the_published_numbers_of_images() -> None:
    for fields in unilseg.SUPERVISED.values():
        published = all_facts()[fields["dataset"]].published
        images = published[fields.get("split", "train")].get("images")
        if images is None:
            assert fields["dataset"] == "ref_youtube_vos"
            images = 3471 * 27
        assert fields["weight"] == round(images / 1000)


def test_every_member_is_trained_on_in_its_words(data_dir: Path) -> None:
    config = unilseg.get_config(f"tiny,{PSEUDO}")
    mixture = opened(config, data_dir)
    found = take(mixture.batches(batch_size=2, seed=0), 600)
    counts = Counter(host.name for host in found)
    assert set(counts) == {*unilseg.SUPERVISED, PSEUDO}
    weights = {m.name: m.weight for m in mixture.members}
    for name, count in counts.items():
        assert count == pytest.approx(600 * weights[name] / sum(weights.values()), abs=4)
    asked: dict[str, set[str]] = {name: set() for name in counts}
    for host in found:
        assert host.batch.text.shape == (2, 1, 17)
        for b, meta in enumerate(host.meta):
            assert not meta.error
            assert words(host.batch.text[b, 0]) == words(_tokens(meta.expressions[0]))
            asked[host.name].add(meta.expressions[0])
    assert asked["partimagenet"] == {"all tire of car", "all side mirror of car"}
    assert asked["lip"] == {
        *("all hat of person", "all upper clothes of person", "all right shoe of person")
    }
    assert asked["ecssd"] == asked["duts"] == {"the most salient object"}
    assert {"all person", "all wood"} <= asked["coco_stuff"]
    assert asked["grefcoco"] == {"both squares", "the circle"}
    assert asked[PSEUDO] == {"a dog on grass", "all dog"}


def _tokens(text: str) -> np.ndarray:
    return build_tokenizer("clip")([text], 17)[0][0]


def test_patches_of_pseudo_labelled_images_alone_are_hidden(data_dir: Path) -> None:
    config: Any = unilseg.get_config(f"tiny,{PSEUDO}")
    config.data.hide_probability = 1.0
    for host in take(opened(config, data_dir).batches(batch_size=2, seed=0), 60):
        assert (np.asarray(host.batch.image) == BORDER).all() == (host.name == PSEUDO)


def test_ecssd_trains_on_its_one_split_and_the_rest_leaves_evaluation_images_out(
    supervised: Path,
) -> None:
    mixture = opened(unilseg.get_config("tiny"), supervised)
    (ecssd,) = (rows for rows in mixture.rows if rows.name == "ecssd")
    assert len(ecssd.rows) == 1
    assert mixture.exclusions["ecssd"].kept == ("ecssd/test",)
    assert all(found.kept == () for name, found in mixture.exclusions.items() if name != "ecssd")


# Schedules


@pytest.mark.parametrize(
    ("module", "lr", "epochs", "end"),
    [
        ("unilseg", 1e-4, 15, 1e-5),
        ("unilseg_pretrain", 5e-5, 5, 5e-5),
        ("ade20k_unilseg", 1e-4, 15, 1e-5),
    ],
)
def test_rates_are_those_of_section_4_1(module: str, lr: float, epochs: int, end: float) -> None:
    config: Any = importlib.import_module(f"configs.{module}").get_config()
    optim = OptimConfig(**config.optim.to_dict())
    schedule = make_schedule(optim, 1500)
    assert config.epochs == epochs
    rates = [np.asarray(schedule(step)) for step in (0, 999, 1001, 1499)]
    np.testing.assert_allclose(rates, [lr, lr, end, end], rtol=1e-6)
    paths = ("vision.stages.0.kernel", "text.layers.0.kernel", "query.kernel")
    assert list(multipliers(paths, optim.lr_multipliers).values()) == [0.1, 1.0, 1.0]
    assert (optim.weight_decay, config.model.image_size, config.model.norm) == (0.0, 480, "batch")


def test_stage_1_trains_on_pseudo_labels_alone(data_dir: Path) -> None:
    for choice, names in (("tiny", {PSEUDO}), (f"tiny,{PSEUDO},mine/x", {PSEUDO, "mine_x"})):
        config: Any = unilseg_pretrain.get_config(choice)
        assert set(config.mixture) == names
        assert all(entry.pseudo_labelled for entry in config.mixture.values())
    mixture = opened(unilseg_pretrain.get_config("tiny"), data_dir)
    assert {host.name for host in take(mixture.batches(batch_size=2, seed=0), 4)} == {PSEUDO}


# Benchmarks


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_can_be_run(name: str, data_dir: Path) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.dataset in DATASETS
    assert set(benchmark.scores) <= set(all_facts()[benchmark.dataset].splits)
    config: Any = unilseg_eval.get_config(f"{name},tiny")
    (protocol,) = build_protocols(config.eval.protocol, background=config.eval.background)
    assert benchmark.metric in protocol.columns
    assert config.checkpoint.best_metric.partition("/")[2] == benchmark.metric
    assert (config.eval.threshold, config.eval.resample) == (0.5, "logits")
    assert not config.mixture
    if benchmark.dataset not in SOURCES:
        return
    config.data.update({"data_dir": str(data_dir), "num_workers": 0})
    data = ExperimentData(config, image_size=32, mask_stride=4)
    for split, entry in config.evals.items():
        if (benchmark.dataset, split) == ("partimagenet/ood", "test"):
            continue  # The small copy has none.
        if benchmark.protocol == "every_class":
            classes = data.classes(entry, f"config.evals.{split}")
            expected = {"ade20k/150": 150, "pascal_context_59": 59, "partimagenet/ood": 40}
            assert len(classes.names) == expected[benchmark.dataset]
            if "part" in benchmark.granularities:
                first = _tokens("all head of quadruped")
                np.testing.assert_array_equal(classes.text[0], first)
        else:
            data.check(entry, f"config.evals.{split}", "")


def test_the_released_inference_is_an_option_of_every_benchmark() -> None:
    for name in BENCHMARKS:
        config: Any = unilseg_eval.get_config(f"{name},released")
        assert (config.eval.threshold, config.eval.resample) == (0.35, "unilseg")
        assert config.model == unilseg.get_config("B").model
    tiny: Any = unilseg_eval.get_config("sod,released,tiny")
    assert tiny.model == unilseg.get_config("tiny").model


def test_an_unknown_benchmark_is_one_line() -> None:
    with pytest.raises(ValueError, match="unknown benchmark 'refcocoo': did you mean 'refcoco'"):
        unilseg_eval.get_config("refcocoo")


def test_published_scores_are_those_of_tables_2_to_7_and_of_the_page() -> None:
    """UniLSeg-100 is better than UniLSeg-20 everywhere, as the tables print it."""
    assert {benchmark.table for benchmark in BENCHMARKS.values()} == set(range(2, 8))
    page = (ROOT / "docs" / "systems" / "unilseg.md").read_text()
    wanted = [
        f"| {b.table} | `{name}` | {split} | {b.metric} | {scores[0]} | {scores[1]} |"
        for name, b in BENCHMARKS.items()
        for split, scores in b.scores.items()
        if scores
    ]
    assert [line for line in page.splitlines() if re.match(r"\| \d \|", line)] == wanted
    for benchmark in BENCHMARKS.values():
        for scores in benchmark.scores.values():
            assert scores == () or scores[0] < scores[1]
    assert [name for name, b in BENCHMARKS.items() if not any(b.scores.values())] == [
        "ref_youtube_vos"
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_flag_for_small_batches_freezes_batch_normalisation_alone(form: str) -> None:
    config: Any = ade20k_unilseg.get_config("tiny")
    config.model.update({"form": form, "norm": "batch"})
    found = re.search(r"--config\.optim\.lr_multipliers='(.*)'", ade20k_unilseg.__doc__ or "")
    assert found
    rows = ast.literal_eval(found[1])
    assert rows[1:] == config.optim.lr_multipliers
    forward = forward_of(config.model.to_dict())
    optim = OptimConfig(**{**config.optim.to_dict(), "lr_multipliers": rows, "accumulation": 4})
    check_accumulation(forward, optim)
    layers = {path.rpartition(".")[0] for path in forward.statistics}
    frozen = forward.shapes.keys() - unfrozen(forward.shapes, optim)
    assert layers and frozen == {
        path for path in forward.shapes if path.rpartition(".")[0] in layers
    }


def test_ade20k_is_tuned_and_scored_on_its_150_classes(data_dir: Path) -> None:
    config: Any = ade20k_unilseg.get_config("tiny")
    config.data.update({"data_dir": str(data_dir), "num_workers": 0})
    data = ExperimentData(config, image_size=32, mask_stride=4)
    assert len(data.classes(config.evals.val, "config.evals.val").names) == 150
    (member,) = read_members(config.mixture.to_dict(), data.settings)
    (rows,) = open_mixture([member]).rows
    assert len(rows.rows) == 3
    assert set(PROTOCOLS) >= {config.eval.protocol}
