import shutil
from pathlib import Path

import pytest

from input_pipeline.facts.published import all_facts
from refseg_jax.errors import UserError
from refseg_jax.weights.published import all_weights
from tools import dataset_page
from tools.dataset_page import PAGES, ROOT, filled, main


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    monkeypatch.setattr(dataset_page, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_up_to_date(page: str):
    text = (ROOT / page).read_text()
    assert filled(page, text) == text, f"{page}: run `python -m tools.dataset_page --write`"


def test_the_tables_have_every_name():
    texts = {page: (ROOT / page).read_text() for page in PAGES}
    for name, facts in all_facts().items():
        assert texts["docs/datasets.md"].count(f"`{name}`") >= 1
        assert facts.citation in texts["docs/datasets.md"]
    for name, weights in all_weights().items():
        assert name in texts["docs/weights.md"] and weights.licence in texts["docs/weights.md"]


def test_a_row_says_what_is_known():
    table = dataset_page.datasets_table([all_facts()["refcocog/google"], all_facts()["lip"]])
    head, rule, row, lip = table.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == lip.count("|") == 6
    assert "| `refcocog/google` | `refcocog/refs(google).p`, `refcocog/instances.json` and" in row
    assert "| train: 24,698 images, 44,822 refs, 85,474 expressions<br>val: 4,650 images," in row
    assert "| prompts by part: `{part} of person` |" in lip


def test_datasets_that_differ_in_text_alone_share_a_row():
    names = ("refcoco/unc", "refcoco/unc_raw", "refcoco/unc_cris")
    table = dataset_page.datasets_table(all_facts()[name] for name in names)
    _, _, first, second = table.splitlines()
    assert first.startswith("| `refcoco/unc`<br>`refcoco/unc_raw` | ")
    assert " | cleaned sentences<br>sentences as typed | " in first
    assert second.startswith("| `refcoco/unc_cris` | ")


def test_a_licence_is_marked_by_where_it_was_read():
    lines = dataset_page.licences_list().splitlines()
    assert [line.partition(". ")[0] for line in lines] == [str(n + 1) for n in range(len(lines))]
    assert len({line.partition(". ")[2] for line in lines}) == len(lines)
    (google,) = (line for line in lines if "Google's, CC BY 4.0" in line)
    assert google.endswith(
        "([1](https://cocodataset.org/#termsofuse), "
        "[2](https://github.com/mjhucla/Google_Refexp_toolbox))"
    )
    (lip,) = (line for line in lines if "LIP's terms" in line)
    assert lip.endswith("research use (?)")
    assert lines[-1].endswith(". Apache-2.0")


def test_writing_mends_a_page_and_leaves_its_prose(
    copies: Path, capsys: pytest.CaptureFixture[str]
):
    page = copies / "docs/datasets.md"
    whole = page.read_text()
    stale = whole.replace("16,994 images", "17 images").replace("# Datasets\n", "# Our datasets\n")
    page.write_text(stale)
    assert main([]) == 0
    assert page.read_text() == stale, "it only prints"
    assert "16,994 images" in capsys.readouterr().out
    assert main(["--write"]) == 0
    assert page.read_text() == whole.replace("# Datasets\n", "# Our datasets\n")


def test_a_page_without_its_markers_is_one_line(copies: Path, capsys: pytest.CaptureFixture[str]):
    page = copies / "docs/weights.md"
    text = page.read_text()
    for broken in (
        text.replace("<!-- digests: end -->\n", ""),
        text + "<!-- digests: begin -->\n",
    ):
        page.write_text(broken)
        with pytest.raises(UserError, match="digests: begin"):
            filled("docs/weights.md", broken)
        assert main(["--write"]) == 1
        assert capsys.readouterr().err.startswith("error: docs/weights.md: not one <!-- digests: ")
        assert page.read_text() == broken
