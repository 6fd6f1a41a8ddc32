"""The sentences of Scenes are plain, true, and tell nothing by their words alone."""

import collections
import itertools
import json
from typing import Any

import numpy as np
import pytest

from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.datasets.scenes.expressions import describe, question_pair, true_sentences
from input_pipeline.datasets.scenes.kinds import KINDS
from input_pipeline.datasets.scenes.records import make_record
from input_pipeline.schema import Expression, Record
from refseg_jax.batch import ABSENCES
from tests.input_pipeline.datasets.scenes_interpreter import understand
from tests.input_pipeline.datasets.scenes_made import (
    SMALL,
    Build,
    everything,
    make_graph,
    make_small,
)


@pytest.fixture(scope="module")
def small() -> Build:
    return make_small()


def check_said(
    text: str, targets: tuple[int, ...], granularity: str, form: str, scene: dict[str, Any]
):
    understood = understand(text, scene)
    assert understood.readings == {frozenset(targets)}, (text, targets, scene)
    if granularity == "group":
        assert (understood.granularity == "none") == (not targets)
    else:
        assert understood.granularity == granularity, (text, scene)
    if not targets:
        assert understood.form == form, (text, scene)


def check_all(made: Build):
    for _, scene, e in everything(made):
        assert len(set(e.targets)) == len(e.targets)
        check_said(e.text, e.targets, e.granularity, e.form, scene)


def test_every_expression_has_one_reading_and_it_is_its_targets(small: Build):
    check_all(small)


@pytest.mark.slow
def test_the_listener_agrees_with_the_whole_build():
    for split in SPLITS:
        made = (make_record(ScenesConfig(), split, i) for i in range(ScenesConfig().images(split)))
        for record in made:
            check_all({split: [record]})


def test_nothing_ambiguous_is_said_of_crowded_scenes():
    config = ScenesConfig(object_referents=6, part_referents=9, multi_referents=9, wordings=9)
    forms: collections.Counter[str] = collections.Counter()
    for seed in range(150):
        rng = np.random.default_rng([11, seed])
        graph = make_graph(rng)
        scene = json.loads(graph.to_json())
        for said in describe(graph, config, rng):
            check_said(said.text, said.targets, said.granularity, said.form, scene)
            forms.update(said.text.split())
    # Every kind of sentence was among them.
    words = (
        "left right top bottom above below largest smallest of both two three everything not with"
    )
    assert {*words.split(), "all", "things", "and", "salient", "fish", "without"} <= set(forms)


def test_what_is_true_of_one_scene_is_told_of_another_only_where_it_is_clear():
    told: collections.Counter[str] = collections.Counter()
    for seed in range(60):
        rng = np.random.default_rng([12, seed])
        one, other = make_graph(rng), make_graph(rng)
        scene = json.loads(other.to_json())
        for sentence in true_sentences(one):
            answer = sentence.answer(other)
            if answer is not None:
                granularity = "none" if answer.form else sentence.granularity
                check_said(sentence.text, answer.targets, granularity, answer.form, scene)
                told[answer.form] += 1
    assert set(told) == {"", *ABSENCES}


def test_a_pair_is_asked_what_is_true_of_one_scene_and_false_of_the_other():
    asked: collections.Counter[str] = collections.Counter()
    for seed in range(40):
        rng = np.random.default_rng([13, seed])
        pair = make_graph(rng), make_graph(rng)
        questions = question_pair(pair, ScenesConfig(questions=6), rng)
        assert len(questions) <= 6
        yes = [0, 0]
        for question in questions:
            answers = [question.sentence.answer(graph) for graph in pair]
            told = [answer.form for answer in answers if answer]
            assert sorted(told) == ["", question.form]
            yes[told.index("")] += 1
            asked[question.form] += 1
        assert yes[0] == yes[1]
    assert set(asked) == set(ABSENCES)


def thing(kind: str, x: float, area: int = 500, **changes: Any) -> dict[str, Any]:
    fields = {"kind": kind, "colour": "red", "x": x, "y": 0.5, "depth": 1, "parts": []}
    return {**fields, "area": area, "full_area": area, **changes}


@pytest.mark.parametrize(
    ("text", "positions", "areas", "readings"),
    [
        ("the car on the left", (0.2, 0.32), (1, 1), [{0}]),
        ("the car on the left", (0.2, 0.319), (1, 1), [{0}, {1}]),
        ("the largest car", (0.2, 0.8), (2, 3), [{1}]),
        ("the largest car", (0.2, 0.8), (21, 30), [{0}, {1}]),
        ("the red car", (0.2, 0.8), (1, 1), [{0}, {1}]),
        ("the blue car", (0.2, 0.8), (1, 1), [set()]),
        ("the most salient object", (0.2, 0.8), (1, 9), [{0}, {1}]),
        ("the most salient object", (0.2, 0.8), (9, 1), [{0}]),
        ("both cars", (0.2, 0.8), (1, 1), [{0, 1}]),
        ("the cars on the left", (0.2, 0.3, 0.45), (1, 1, 1), [{0, 1}, {0, 1, 2}]),
        ("the cars on the left", (0.6, 0.7, 0.8), (1, 1, 1), [set()]),
        ("the car on the left", (0.44,), (1,), [{0}]),
        ("the car on the left", (0.441,), (1,), [{0}, set()]),
        ("the car on the left", (0.56,), (1,), [set()]),
        ("the car on the left", (0.6, 0.8), (1, 1), [{0}, set()]),
        ("the three cars", (0.2, 0.8), (1, 1), [set()]),
        ("the car that is not red", (0.2, 0.8), (1, 1), [set()]),
        ("the car that is not blue", (0.2, 0.8), (1, 1), [{0}, {1}]),
        ("everything that is not a car", (0.2, 0.8), (1, 1), [set()]),
        ("the car without a roof rack", (0.2,), (1,), [{0}]),
        ("the roof rack of the car", (0.2,), (1,), [set()]),
        ("the bird", (0.2,), (1,), [set()]),
    ],
)
def test_the_listener_hears_what_is_not_plain(
    text: str, positions: tuple[float, ...], areas: tuple[int, ...], readings: list[set[int]]
):
    things = [
        thing("car", x, area, target=number, depth=number)
        for number, (x, area) in enumerate(zip(positions, areas, strict=True))
    ]
    heard = understand(text, {"objects": things}).readings
    assert heard == {frozenset(reading) for reading in readings}


def test_the_fish_may_be_several():
    fish = [thing("fish", 0.2, target=0), thing("fish", 0.4, target=1)]
    heard = understand("the fish on the left", {"objects": fish}).readings
    assert heard == {frozenset({0}), frozenset({0, 1})}


def asked(made: Build, split: str) -> list[Expression]:
    """The expressions of a split that have a form: questions, and what groups are asked."""
    return [e for record in made[split] for e in record.expressions if e.form]


def test_each_question_matches_in_one_picture_of_a_pair_and_not_in_the_other(small: Build):
    for split in ("train", "val", "test", "novel_train", "novel_test"):
        for first, second in zip(small[split][::2], small[split][1::2], strict=True):
            both = [{e.text: e for e in record.expressions if e.form} for record in (first, second)]
            assert both[0].keys() == both[1].keys()
            for text, e in both[0].items():
                other = both[1][text]
                assert e.form == other.form
                assert bool(e.targets) != bool(other.targets), text
                assert {e.granularity, other.granularity} & {"none"}
            assert sum(bool(e.targets) for e in both[0].values()) * 2 == len(both[0])


def test_the_words_alone_do_not_tell_whether_something_matches(small: Build):
    """The best that a reader of train's words can do on test is to guess, form by form."""
    votes: collections.Counter[tuple[str, str]] = collections.Counter()
    for e in asked(small, "train"):
        for word in (e.text, *e.text.split()):
            votes[e.form, word] += 1 if e.targets else -1
    for form in ABSENCES:
        right = []
        for e in asked(small, "test"):
            if e.form == form:
                vote = votes[form, e.text] or sum(votes[form, w] for w in e.text.split())
                right.append((vote >= 0) == bool(e.targets))
        assert len(right) >= 4
        assert np.mean(right) == 0.5, form


def test_absences_of_every_form_come_near(small: Build):
    found: collections.Counter[str] = collections.Counter()
    for _, scene, e in everything(small):
        if e.granularity == "none":
            found[e.form] += 1
            near = [
                o["kind"] in e.text or KINDS[o["kind"]].plural in e.text for o in scene["objects"]
            ]
            assert any(near) or e.form in ("kind", "attribute") or "everything" in e.text, e.text
    assert set(found) == set(ABSENCES)


def test_wordings_of_a_referent_mean_the_same(small: Build):
    rewordings = 0
    for record in itertools.chain(*small.values()):
        by_referent: dict[int, list[Expression]] = collections.defaultdict(list)
        for expression in record.expressions:
            by_referent[expression.referent].append(expression)
        for said in by_referent.values():
            assert len({(e.targets, e.granularity) for e in said}) == 1
            assert len({e.text for e in said}) == len(said)
            assert sum(not e.form for e in said) <= SMALL.wordings
            rewordings += len(said) - 1
        for granularity, most in (("object", 3), ("part", 3 + 2)):
            said = {
                e.referent
                for e in record.expressions
                if e.granularity == granularity and not e.form
            }
            assert len(said) <= most
    assert rewordings > 200


def has_distractor(record: Record, scene: dict[str, Any], expression: Expression) -> bool:
    """Whether another object of a kind that is spoken of is there and is not meant."""
    parents = [record.targets[i].parent for i in expression.targets]
    meant = {i if p < 0 else p for i, p in zip(expression.targets, parents, strict=True)}
    kinds = {record.targets[i].category for i in meant} or set(expression.text.split())
    return any(o["kind"] in kinds and o["target"] not in meant for o in scene["objects"])


def test_most_expressions_have_a_distractor_of_the_same_kind(small: Build):
    # Questions also ask for things that are alone.
    said = [row for row in everything(small) if row[2].granularity != "group" and not row[2].form]
    assert np.mean([has_distractor(*row) for row in said]) >= 0.6
    single = [row for row in said if row[2].granularity in ("object", "part")]
    assert np.mean([has_distractor(*row) for row in single]) >= 0.8
