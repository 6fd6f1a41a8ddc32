"""The pages of `docs/results` are what `tools.ablation` writes, and `make ablation` makes them."""

import re
import shlex
from pathlib import Path

import pytest

from tools import ablation, ablation_page
from tools.studies import STUDIES, Study, Table

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = [path for path in sorted((_ROOT / "docs/results").glob("*.md")) if path.stem != "index"]


def _cells(text: str, study: Study) -> list[list[list[str]]]:
    """The cells of a page's tables, row by row, without headings and labels."""
    tables: list[list[list[str]]] = []
    for line in text.splitlines():
        if not line.startswith("|") or line.startswith("|---"):
            continue
        _, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        if cells == list(study.metrics):
            tables.append([])
        else:
            tables[-1].append(cells)
    return tables


@pytest.mark.parametrize("page", _PAGES, ids=[page.stem for page in _PAGES])
def test_a_page_is_what_its_command_writes(page: Path, monkeypatch: pytest.MonkeyPatch):
    """Its numbers are taken from it; all the rest is made anew."""
    text = page.read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    (command,) = [line for line in re.sub(r"\\\n *", "", block).splitlines() if "ablation" in line]
    options = ablation.parse(shlex.split(command)[3:])
    assert options.page == page.relative_to(_ROOT)
    study = STUDIES[options.study]
    tables = _cells(text, study)

    def cell(table: Table, number: int, rows: object, metric: str, noise: float) -> str:
        return tables[study.tables.index(table)][number][study.metrics.index(metric)]

    monkeypatch.setattr(ablation_page, "_text", cell)
    nothing = [[[]] * len(table.rows) for table in study.tables]
    made = ablation_page.markdown(
        study, nothing, options.seeds, options.steps, ablation.command(options)
    )
    assert made == text


def test_make_ablation_makes_every_page_by_its_command():
    (rule,) = re.findall(r"^ablation:.*\n((?:\t.*\n)+)", (_ROOT / "Makefile").read_text(), re.M)
    lines = re.sub(r"\\\n\s*", "", rule).splitlines()
    commands = [line.split("tools.ablation ")[1] for line in lines if "tools.ablation " in line]
    made = {ablation.command(ablation.parse(shlex.split(command))) for command in commands}
    pages = {
        page: re.findall(r"```bash\n(.*?)\n```", page.read_text(), re.DOTALL) for page in _PAGES
    }
    assert {tuple(blocks) for blocks in pages.values()} <= {(command,) for command in made}
    assert len(made) == len(lines) - 1, (
        "each command of the rule but the build makes a page of its own"
    )
