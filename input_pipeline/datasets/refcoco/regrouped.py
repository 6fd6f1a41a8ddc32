"""G-RefC, G-RefC+ and G-RefCg: RefCOCO, RefCOCO+ and RefCOCOg in groups of images (GRSer).

The GRSer paper (Wu et al., ICCV 2023, section 5.1) rebuilds them, since "there exist some repeated
sentences in different images", to one sentence and the images that it refers to, with as many images
from other groups as negatives, for training and for testing. It reports 8,717, 8,020 and 2,451 groups;
neither its lists nor its exact rule are public, so that other groups are made here, and a build
prints their number beside the paper's. What is made, of each split of refer's files by itself:

- A sentence (refer's cleaned `sent`, blanks folded) that is said in at least two images is a group.
- Its positives are all images with it. Where it is said of several regions of an image, all are meant.
- As many negatives are drawn from the images of other groups, without those that have the sentence:
  all that is known of them. That no other image shows what the sentence means ("man") is not known;
  RefCOCO's annotators described one object at a time. Where there are too few images, all are taken.
- The draw is seeded by the dataset, the split and the sentence: every build makes the same groups.

A record is an image with an expression of each group that it is in; groups are `<split>-<number>`.
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

#: name -> (refer's dataset, by, groups that the paper has).
_SETS = {
    "g_refc": ("refcoco", "unc", 8_717),
    "g_refc_plus": ("refcoco+", "unc", 8_020),
    "g_refcg": ("refcocog", "umd", 2_451),
}

#: Facts of a build.
ALONE = "images without a sentence of another one and not drawn as negatives, left out"
SHORT = "negatives that groups lack for want of other images"


def regroup(plans: Sequence[ImagePlan], split: str, seed: str) -> tuple[list[ImagePlan], int, int]:
    """The groups of a split.

    Args:
        plans: its images with their refs.
        split: begins the names of the groups.
        seed: of the negatives.

    Returns:
        Those images that are in a group, in the order of `plans`, each with a referent for each of
        its groups; how many groups there are, and how many negatives they lack.
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
    """Sentences of at least two images, sorted -> place of the image -> regions by id."""
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
