"""The evaluation over every class gives what a plain one in numpy gives, to the last pixel."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from input_pipeline import labels, pipeline
from input_pipeline.datasets.ade20k.scene_parsing import CONVERSIONS
from input_pipeline.datasets.scenes.scenes import build as build_scenes
from input_pipeline.schema import CLASSES, AskedClass, Expression, Record
from input_pipeline.sources import RecordSource
from refseg_jax.batch import Batch, SegOutput
from refseg_jax.cli.score import score
from refseg_jax.errors import UserError
from refseg_jax.evaluation.every_class import ClassEvaluator
from refseg_jax.evaluation.protocols import EveryClass, build_protocols, keyed_scores
from refseg_jax.models.forward import Forward
from refseg_jax.text.tokenizers import build_tokenizer
from tests.input_pipeline.datasets.scenes_made import SMALL
from tests.input_pipeline.formats.map_files import build
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.evaluation import slow_classes
from tests.refseg_jax.training.tiny_run import ColourModel, one_device

SIDE, STRIDE, THRESHOLD = 48, 2, 0.6


class PartsOfColourModel(ColourModel):
    """`ColourModel` in the three parts of a separable model."""

    def encode_image(self, image: Any, *, rngs: Any = None) -> Any:
        colours = jnp.asarray(image, jnp.float32) / 127.5 - 1.0
        b, n, height, width, _ = colours.shape
        # `expm1` marks where images are encoded.
        return jnp.expm1(colours.reshape(b, n, height // 2, 2, width // 2, 2, 3).mean((3, 5)))

    def encode_text(self, text: Any, text_valid: Any, *, rngs: Any = None) -> Any:
        words = self.liked[...][text] * jnp.asarray(text_valid)[..., None]
        return jnp.arcsinh(words.sum(2))

    def decode(self, image: Any, text: Any, *, rngs: Any = None) -> SegOutput:
        return SegOutput(3.0 * jnp.einsum("bnhwc,bkc->bnkhw", image, text))

    def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
        image = self.encode_image(batch.image)
        return self.decode(image, self.encode_text(batch.text, batch.text_valid))


MODELS: dict[str, Callable[[nnx.Rngs], Any]] = {"whole": ColourModel, "parts": PartsOfColourModel}


def data_config(data_dir: Path, dataset: str, **changes: Any) -> pipeline.PipelineConfig:
    fields: dict[str, Any] = {"context_length": 10, "canvas": (128, 128), **changes}
    return pipeline.PipelineConfig(str(data_dir), dataset, "val", SIDE, STRIDE, **fields)


def evaluator_of(
    config: pipeline.PipelineConfig, forward: Forward, batch_size: int = 3, **changes: Any
) -> ClassEvaluator:
    fields: dict[str, Any] = {
        "name": "val",
        "forward": forward,
        "classes": lambda: pipeline.open_classes(config, "category"),
        "batches": lambda: pipeline.label_batches(config, "category", batch_size=batch_size),
        "mesh": one_device(),
        "mask_stride": STRIDE,
        "canvas": config.canvas,
        "threshold": THRESHOLD,
        "protocol": EveryClass(),
        "classes_at_once": 4,
        **changes,
    }
    return ClassEvaluator(**fields)


def liked(seed: int) -> dict[str, jax.Array]:
    return {"liked": jax.random.normal(jax.random.key(seed), (49408, 3))}


def slow_counts(
    config: pipeline.PipelineConfig, forward: Forward, params: Any, *, background: bool
) -> np.ndarray:
    """Each image and class by itself."""
    asked = labels.asked_classes(config, "category")
    words = pipeline.open_classes(config, "category")
    source = RecordSource(config.data_dir, config.dataset, config.split)
    apply = jax.jit(forward.apply)
    total: Any = 0
    for index in range(len(source)):
        record = source[index]
        image, affine = slow_classes.network_input(record, SIDE)
        wide = []
        for text, valid in zip(words.text, words.text_valid, strict=True):
            empty: Any = None
            one = Batch(image[None, None], text[None, None], valid[None, None], *[empty] * 5)
            cells = np.asarray(apply(params, one).mask_logits)[0, 0, 0]
            wide.append(slow_classes.warped(cells, affine, STRIDE, (record.height, record.width)))
        wanted = plain_labels(record, asked)
        threshold = THRESHOLD if background else None
        total = total + slow_classes.counts_of_record(record, wide, wanted, threshold)
    return total


def plain_labels(record: Record, asked: Any) -> np.ndarray:
    found = np.full((record.height, record.width), -1)
    for k, target in enumerate(record.targets):
        for number, one in enumerate(asked):
            if target.granularity != "part" and target.category == one.category:
                found[record.mask((k,)) > 0] = number
    return found


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    few = dataclasses.replace(
        SMALL, train=2, val=4, test=2, train_groups=1, val_groups=1, test_groups=1,
        novel_train=2, novel_test=2,
    )  # fmt: skip
    build_scenes(folder, few)
    return folder


def counted(evaluator: ClassEvaluator, params: Any) -> np.ndarray:
    """Pixel counts of each class over the split, i64 `[C, 3]`."""
    classes = evaluator.classes()
    return np.sum(
        [
            counts[host.batch.valid[:, 0, 0]].sum(0)
            for host, counts, _ in evaluator._outputs(params, classes, False)
        ],
        axis=0,
    )


def own_scores(scores: dict[str, float]) -> dict[str, float]:
    """Scores over all pairs, without the same ones of the granularity, and without numbers of pairs."""
    return {
        name: value
        for name, value in scores.items()
        if not name.startswith("category/") and name not in ("count", "quarantined")
    }


@pytest.mark.parametrize("background", ["ignored", "class"])
@pytest.mark.parametrize("model", MODELS)
def test_scores_on_scenes_equal_those_of_a_plain_evaluation(
    scenes: Path, model: str, background: Any
) -> None:
    config = data_config(scenes, "scenes/small")
    forward, params = Forward(MODELS[model]), liked(0)
    evaluator = evaluator_of(config, forward, protocol=EveryClass(background))
    scores = evaluator.evaluate(params, 0)
    counts = slow_counts(config, forward, params, background=background == "class")
    np.testing.assert_array_equal(counted(evaluator, params), counts)
    names = [*evaluator.classes().names, *["background"] * (background == "class")]
    expected = slow_classes.scores_of_counts(counts, names)
    assert own_scores(scores) == pytest.approx(expected, abs=1e-15)
    assert scores["count"] == 4 * len(names)
    # Else the comparison would say nothing.
    assert 0.01 < scores["mIoU"] < 0.9


def test_scores_on_ade20k_equal_those_of_a_plain_evaluation(
    shared_data: Path, tmp_path: Path
) -> None:
    sample = shared_data / "ade20k_sceneparsing_sample"
    for kind in ("images", "annotations"):
        shutil.copytree(sample / kind, tmp_path / "source" / kind / "validation")
    write_names(tmp_path / "source", sample / "objectInfo150.csv")
    build(CONVERSIONS[0], tmp_path / "source", tmp_path / "data")
    config = data_config(tmp_path / "data", "ade20k/150", canvas=(720, 720))
    forward, params = Forward(PartsOfColourModel), liked(7)
    evaluator = evaluator_of(config, forward, classes_at_once=16)
    assert len(evaluator.classes().names) == 150
    counts = slow_counts(config, forward, params, background=False)
    np.testing.assert_array_equal(counted(evaluator, params), counts)
    # Only labelled pixels count: those of a class, by the release's own maps.
    assert counts[:, 1].sum() == counts[:, 2].sum() == labelled_pixels(sample / "annotations")


def write_names(folder: Path, table: Path) -> None:
    """`objectInfo150.txt` with the names of the development kit's table."""
    names = [line.rsplit(",", 1)[1] for line in table.read_text().splitlines()[1:]]
    # The table also splits names at their blanks: the release has "screen door, screen".
    names[58] = "screen door;screen"
    lines = [f"{n}\t0.1\t1\t1\t{name.replace(';', ', ')}" for n, name in enumerate(names, 1)]
    text = "Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(lines) + "\n"
    (folder / "objectInfo150.txt").write_text(text)


def labelled_pixels(maps: Path) -> int:
    found = 0
    for path in maps.iterdir():
        with Image.open(path) as image:
            found += int(np.count_nonzero(np.asarray(image)))
    return found


@pytest.mark.parametrize(("batch_size", "at_once"), [(1, 1), (2, 3), (8, 11), (4, 64)])
def test_scores_do_not_depend_on_batches_and_chunks(
    scenes: Path, batch_size: int, at_once: int
) -> None:
    config = data_config(scenes, "scenes/small")
    forward, params = Forward(ColourModel), liked(0)
    known = evaluator_of(config, forward).evaluate(params, 0)
    evaluator = evaluator_of(config, forward, batch_size, classes_at_once=at_once)
    assert evaluator.evaluate(params, 0) == known


def test_of_equal_logits_the_first_class_wins(tmp_path: Path) -> None:
    """All classes but the first have the same logits, in several chunks."""
    build_tiny_dataset(tmp_path, {"val": 2}, change=asking)
    config = data_config(tmp_path, "tiny")

    class Alike(ColourModel):
        def __call__(self, batch: Batch, *, rngs: Any = None) -> SegOutput:
            answer = super().__call__(batch)
            return SegOutput(jnp.zeros_like(jnp.asarray(answer.mask_logits)))

    forward = Forward(Alike)
    evaluator = evaluator_of(config, forward, classes_at_once=1)
    assert evaluator.classes().names == ("all boxes", "all nothing", "all spheres")
    counts = counted(evaluator, liked(0))
    assert counts[0, 1] > 0 and counts[1:, 1].sum() == 0
    # The threshold's probability is not above itself.
    half = dataclasses.replace(evaluator, threshold=0.5, protocol=EveryClass("class"))
    assert counted(half, liked(0))[:, 1].tolist()[:3] == [0, 0, 0]


def asking(record: Record) -> Record:
    """Boxes by their category, spheres by an expression whose target has the category of a part."""
    number = record.image_id.removeprefix("val")
    said = (
        Expression(f"{number}-a", "all boxes", (0, 1), "category"),
        Expression(f"{number}-b", "all spheres", (2,), "category"),
        Expression(f"{number}-c", "all nothing", (), "category"),
        Expression(f"{number}-d", "the box", (0,), "object"),
    )
    return dataclasses.replace(record, expressions=said)


def test_a_dataset_of_ones_own_has_the_classes_that_it_names(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path, {"train": 1, "val": 1}, change=asking)
    config = data_config(tmp_path, "tiny")
    asked = labels.asked_classes(config, "category")
    assert asked == (("all boxes", "box"), ("all nothing", ""), ("all spheres", "lid"))
    record = RecordSource(str(tmp_path), "tiny", "val")[0]
    found = labels.label_map(record, asked)
    # The lid lies on the left box, and is listed after it.
    assert (found[record.mask((2,)) > 0] == 2).all()
    assert (found[(record.mask((0, 1)) > 0) & (record.mask((2,)) == 0)] == 0).all()
    assert (found[record.mask((0, 1, 2)) == 0] == -1).all()
    with pytest.raises(UserError, match=r"no class of granularity 'part'; set the evaluation's"):
        labels.asked_classes(config, "part")


def test_parts_are_asked_by_the_prompt_of_the_model() -> None:
    config = data_config(Path("none"), "none", part_prompt="all {}")
    asked = [AskedClass("wheel of car"), AskedClass("sail of boat")]
    found = labels.class_list(asked, "part", config)
    ids, _ = build_tokenizer()(["all wheel of car", "all sail of boat"], 10)
    np.testing.assert_array_equal(found.text, ids)
    assert found.names == ("wheel of car", "sail of boat")


def test_a_damaged_list_of_classes_is_one_line(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    (path,) = (tmp_path / "data").rglob(CLASSES)
    path.write_text('{"category": [["all cars"')
    with pytest.raises(UserError, match=r"classes\.json: damaged .*; build the dataset again"):
        labels.asked_classes(data_config(tmp_path / "data", "scenes/small"), "category")


def test_a_class_that_is_listed_twice_is_one_line(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path, {"val": 1})
    listed = [["all wall", "wall"], ["all door", "door"], ["all wall", "partition"]]
    (tmp_path / "tiny" / "1.0.0" / CLASSES).write_text(json.dumps({"category": listed}))
    with pytest.raises(UserError, match=r"all wall is 2 classes of its list; correct") as caught:
        labels.asked_classes(data_config(tmp_path, "tiny"), "category")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chosen", [(), ("object",), ("category", "part")])
def test_classes_are_categories_or_parts(chosen: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"x\.granularities: .*set it to \('category',\)"):
        labels.class_granularity(chosen, "x.granularities")


def test_a_damaged_image_is_left_out_and_counted(tmp_path: Path) -> None:
    def damage(record: Record) -> Record:
        asked = asking(record)
        bad = record.image_id == "val1"
        return dataclasses.replace(asked, image=record.image[:100]) if bad else asked

    build_tiny_dataset(tmp_path, {"val": 3}, change=damage)
    scores = evaluator_of(data_config(tmp_path, "tiny"), Forward(ColourModel)).evaluate(liked(0), 0)
    assert scores["quarantined"] == 1
    assert scores["count"] == 2 * 3


@pytest.mark.parametrize("background", ["ignored", "class"])
def test_the_scorer_gives_the_scores_of_a_dump(
    scenes: Path, tmp_path: Path, background: Any
) -> None:
    config = data_config(scenes, "scenes/small")
    protocol = EveryClass(background)
    evaluator = evaluator_of(config, Forward(ColourModel), dump=tmp_path, protocol=protocol)
    scores = evaluator.evaluate(liked(0), 0)
    del scores["quarantined"]
    files = tmp_path / "predictions.jsonl", tmp_path / "references.jsonl"
    states = score(*files, "every_class")
    assert (
        keyed_scores(states) | states[0].counts() | {"category/count": scores["category/count"]}
        == scores
    )
    plain = keyed_scores(score(*files, "semseg"))
    assert plain["mIoU"] == scores["mIoU"]
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert len(lines) == scores["count"]
    assert {line["image"].split("-")[1] for line in lines} == {"small"}


def test_images_are_encoded_once(scenes: Path) -> None:
    config = data_config(scenes, "scenes/small")
    evaluator = evaluator_of(config, Forward(PartsOfColourModel))
    params, classes = liked(0), evaluator.classes()
    texts = evaluator._texts(params, classes)
    host = next(iter(evaluator.batches()))
    jaxpr = jax.make_jaxpr(evaluator._largest, static_argnums=(3,))(
        params, host.batch, texts, len(classes.names), jnp.zeros((3, 128, 128), jnp.int32)
    )
    names = [equation.primitive.name for equation in jaxpr.eqns]
    loop = next(equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
    assert names.count("expm1") == 1
    assert "expm1" not in str(loop) and "asinh" not in str(jaxpr)


def layout(*arguments: object, devices: int) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.refseg_jax.evaluation.every_class_steps"),
            *map(str, arguments),
        ],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def printed(process: subprocess.Popen[str]) -> dict[str, float]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def test_devices_and_processes_give_the_scores_of_one() -> None:
    alone = printed(layout(1, 1, devices=1))
    assert alone["count"] == 15 * 6
    assert printed(layout(2, 2, devices=4)) == alone
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [layout(2, 1, f"127.0.0.1:{port}", 2, number, devices=1) for number in range(2)]
    assert [printed(process) for process in both] == [alone, alone]


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        ("cris", {"background": "class"}, "background='class' is for every_class, not for cris"),
        ("every_class", {"background": "clas"}, "config.eval.background 'clas': did you mean"),
        ("every_class", {"min_pixels": 3}, "min_pixels=3 is for gres"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    names: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        build_protocols(names, **options)
    assert "\n" not in str(caught.value)
