import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from input_pipeline import prompts
from input_pipeline.building import counts
from input_pipeline.datasets import lip
from input_pipeline.datasets.scenes.config import SPLITS, ScenesConfig
from input_pipeline.facts import published
from input_pipeline.facts.published import (
    COUNTED,
    UNKNOWN_LICENCE,
    DatasetFacts,
    all_facts,
    facts_of,
    licences,
)
from input_pipeline.formats.refer.layout import IMAGE_FOLDERS, Layout
from refseg_jax.errors import UserError
from refseg_jax.naming import read_table

ROOT = Path(published.__file__).resolve().parents[2]

ENTRY = """
["a/b"]
kind = "referring"
title = "A"
description = "A: one line."
homepage = ""
citation = ""
arxiv = ""
licence = "of the images"
text_licence = "of the words"
licence_source = "https://a.org/terms https://b.org"
layout = ""
splits = ["train", "val", "test"]
text = "sentences"
templates = []
images = "A"
image_id = "a/<id>"
["a/b".published]
train = { images = 2, "no target" = 1 }
test = { groups = 0 }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "facts.toml"
    path.write_text(text)
    return path


def test_an_entry_is_read_whole(tmp_path: Path):
    facts = read_table(write(tmp_path, ENTRY), DatasetFacts)["a/b"]
    assert (facts.name, facts.kind, facts.layout) == ("a/b", "referring", "")
    assert facts.splits == ("train", "val", "test")
    assert facts.published == {"train": {"images": 2, "no target": 1}, "test": {"groups": 0}}
    assert facts.templates == ()
    assert facts.terms == "of the images; of the words"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace('text = "sentences"\n', ""),
            r"a/b: the entry lacks the field 'text'$",
        ),
        (lambda t: t.replace('"of the images"', '" "'), r"a/b: field 'licence' is empty"),
        (lambda t: t.replace('"referring"', '"refering"'), r"a/b: field 'kind': .*'referring'"),
        (lambda t: t.replace("https://b.org", "b.org"), r"a/b: field 'licence_source' is 'b.org'"),
        (lambda t: t.replace("{ images = 2", "{ image = 2"), r"a/b: field 'published'"),
        (lambda t: t.replace("images = 2", "images = -2"), r"a/b: field 'published'"),
        (lambda t: t.replace("images = 2", "images = true"), r"a/b: field 'published'"),
        (lambda t: t.replace("{ groups = 0 }", "5"), r"a/b: field 'published'"),
        (lambda t: t.replace("test = {", "testA = {"), r"a/b: field 'published'"),
        (
            lambda t: t.replace('["train", "val", "test"]', '["test", "train"]'),
            r"field 'published'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_entry_and_field(
    change: Callable[[str], str], message: str, tmp_path: Path
):
    changed = change(ENTRY)
    assert changed != ENTRY
    path = write(tmp_path, changed)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path, DatasetFacts)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_table_is_read_when_it_is_asked_for_and_once():
    code = (
        "from input_pipeline import sources\n"
        "from input_pipeline.facts import published\n"
        "print(published.all_facts.cache_info().currsize)\n"
        "assert published.facts_of('coca') is published.all_facts()['coca']\n"
        "print(published.all_facts.cache_info().misses)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "1"]


def test_a_name_that_is_not_there_is_answered_by_the_nearest():
    with pytest.raises(UserError, match=r"unknown dataset 'refcoco/umc': .*'refcoco/unc'"):
        facts_of("refcoco/umc")


def test_layouts_of_refers_sets_are_what_their_reader_asks_for():
    names = ("refcoco/unc", "refcoco/google_raw", "refcocog/umd", "refclef/berkeley")
    for name in names:
        dataset, by = name.removesuffix("_raw").split("/")
        folders = ("images/saiapr_tc-12",) if dataset == "refclef" else IMAGE_FOLDERS
        assert facts_of(name).layout == Layout(dataset, by, image_folders=folders).files
    assert facts_of("refcoco_plus/unc").layout == Layout("refcoco+", "unc").files
    assert facts_of("g_refc_plus/unc").layout == Layout("refcoco+", "unc").files
    refs = "grefs({by}).json"
    assert facts_of("grefcoco/unc").layout == Layout("grefcoco", "unc", refs=refs).files


def test_templates_are_those_that_prompts_make():
    made = {
        prompts.SALIENT,
        prompts.category("{class}"),
        prompts.name("{class}"),
        prompts.part("{part}", "{object}"),
        prompts.part("{part}", lip.WHOLE),
    }
    assert {template for facts in all_facts().values() for template in facts.templates} == made


def test_ids_of_papers_are_of_the_form_that_arxiv_gives():
    for facts in all_facts().values():
        assert not facts.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", facts.arxiv), facts.name
        assert facts.citation or facts.name == "scenes"


def test_the_counts_of_scenes_are_those_of_its_default_config():
    config, facts = ScenesConfig(), facts_of("scenes")
    assert facts.splits == SPLITS
    assert {split: counts["images"] for split, counts in facts.published.items()} == {
        split: config.images(split) for split in SPLITS
    }
    assert {split: counts.get("groups", 0) for split, counts in facts.published.items()} == {
        split: getattr(config, split) if split.endswith("_groups") else 0 for split in SPLITS
    }


def test_reports_count_by_the_names_of_the_table():
    assert counts.COUNTED is COUNTED
    assert tuple(counts.Tally().result()) == COUNTED


def test_licences_by_the_names_that_a_config_may_have():
    both = licences(["scenes/default", "refcoco/unc", "scenes", "mine", "refcoco/unc"])
    assert list(both) == ["mine", "refcoco/unc", "scenes", "scenes/default"]
    assert both["scenes"] == both["scenes/default"] == "Apache-2.0"
    assert both["mine"] == UNKNOWN_LICENCE
    assert both["refcoco/unc"] == facts_of("refcoco/unc").terms
    assert "COCO annotations: CC BY 4.0; expressions: none stated" in both["refcoco/unc"]


def test_a_name_without_its_config_has_the_licences_of_all_its_configs():
    (text,) = licences(["refcocog"]).values()
    umd, google = (facts_of(f"refcocog/{by}").terms for by in ("umd", "google"))
    assert umd != google
    assert text == f"{umd} or: {google}"
    assert licences(["grefcoco"]) == {"grefcoco": facts_of("grefcoco/unc_raw").terms}
    assert licences(["refcoco/other"]) == {"refcoco/other": UNKNOWN_LICENCE}
