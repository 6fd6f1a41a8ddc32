"""G-RefC, G-RefC+ and G-RefCg: RefCOCO, RefCOCO+ and RefCOCOg in groups of images (GRSer).

The GRSer paper (Wu et al., ICCV 2023, section 5.1) rebuilds these datasets because some sentences occur
in several images. A group is one sentence and the images that it refers to, with as many images from
other groups as negatives, for training and for testing. The paper has 8,717, 8,020 and 2,451 groups.
Neither its lists nor its exact rule are public, so the groups here differ from the paper's, and a build
prints both numbers. Each split of refer's files is grouped separately, by this rule:

- A group is a sentence (refer's cleaned `sent`, with single blanks) of at least two images.
- Its positives are all images with the sentence. If several regions of an image have the sentence, all
  of them are targets.
- Its negatives, as many as its positives, are drawn from images of other groups that do not have the
  sentence. If there are too few, all of them are taken. A negative may still show what the sentence
  means ("man"), because RefCOCO's annotators described one object at a time.
- The seed of the draw is the dataset, the split and the sentence, so every build makes the same groups.

A record is an image with one expression for each of its groups. Groups are named `<split>-<number>`.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.building.conversion import Conversion, Plan
from input_pipeline.formats.refer.convert import convert
from input_pipeline.formats.refer.layout import Annotation, ImagePlan, Layout, Referent, read_plan

#: Dataset -> (refer's name of it, who made the splits, number of groups in the paper).
_SETS = {
    "g_refc": ("refcoco", "unc", 8_717),
    "g_refc_plus": ("refcoco+", "unc", 8_020),
    "g_refcg": ("refcocog", "umd", 2_451),
}

#: Names of the figures in the build report.
ALONE = "images without a sentence of another one and not drawn as negatives, left out"
SHORT = "negatives that groups lack for want of other images"


def regroup(plans: Sequence[ImagePlan], split: str, seed: str) -> tuple[list[ImagePlan], int, int]:
    """Groups the images of a split.

    Args:
        plans: the images with their refs.
        split: name of the split, with which names of groups begin.
        seed: text that, with the split and the sentence, decides the negatives.

    Returns:
        The images that are in a group, in the order of `plans`, each with one referent per group; the
        number of groups; and the number of negatives that are missing because there are too few images.
    """
    groups = _positives(plans)
    pool = np.array(sorted({place for found in groups.values() for place in found}), np.int64)
    members: dict[int, list[Referent]] = {}
    lacking = 0
    for number, (text, found) in enumerate(groups.items()):
        others = pool[~np.isin(pool, list(found))]
        rng = np.random.default_rng(_number(f"{seed}/{split}/{text}"))
        wanted = min(len(found), len(others))
        lacking += len(found) - wanted
        drawn = rng.choice(others, wanted, replace=False, shuffle=False)
        group = f"{split}-{number:05d}"
        for place, regions in [*found.items(), *((int(i), {}) for i in drawn)]:
            sentence = (f"{group}-{plans[place].image_id}", text)
            referent = Referent(None, tuple(regions.values()), (sentence,), group)
            members.setdefault(place, []).append(referent)
    images = [
        dataclasses.replace(plan, referents=tuple(members[place]))
        for place, plan in enumerate(plans)
        if place in members
    ]
    return images, len(groups), lacking


def _positives(plans: Sequence[ImagePlan]) -> dict[str, dict[int, dict[int, Annotation]]]:
    """Sentence of at least two images, sorted -> index of the image -> annotation id -> annotation."""
    said: dict[str, dict[int, dict[int, Annotation]]] = {}
    for place, plan in enumerate(plans):
        for referent in plan.referents:
            regions = {a.id: a for a in referent.annotations}
            for _, text in referent.sentences:
                key = " ".join(text.split())
                said.setdefault(key, {}).setdefault(place, {}).update(regions)
    return {text: said[text] for text in sorted(said) if len(said[text]) > 1}


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")


def _read_plan(source: Path, *, name: str) -> Plan:
    dataset, by, published = _SETS[name]
    plan = read_plan(source, layout=Layout(dataset, by))
    splits: dict[str, Sequence[Any]] = {}
    groups = lacking = images = 0
    for split, plans in plan.splits.items():
        splits[split], found, short = regroup(plans, split, name)
        groups, lacking, images = groups + found, lacking + short, images + len(plans)
    left_out = images - sum(map(len, splits.values()))
    facts: Mapping[str, int] = {
        f"groups in all splits (the GRSer paper has {published:,}, by a rule not published)": groups,
        SHORT: lacking,
        ALONE: left_out,
    }
    return dataclasses.replace(plan, splits=splits, facts=facts)


CONVERSIONS = tuple(
    Conversion(f"{name}/{by}", functools.partial(_read_plan, name=name), convert)
    for name, (_, by, _) in _SETS.items()
)
