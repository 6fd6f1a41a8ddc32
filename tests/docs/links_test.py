"""What README.md, the site and the code point to is there."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, SOURCES, blocks, prose

#: `[text](target)`, images too.
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
_PATH = re.compile(r"\bdocs/[a-z_/]+\.md\b")


def headings(page: str) -> set[str]:
    """Anchors of a page, as GitHub and MyST make them."""
    texts = [re.sub(r"[^\w\- ]", "", text.lower()) for text in _HEADING.findall(prose(page))]
    return {text.strip().replace(" ", "-") for text in texts}


def dangling(page: str, text: str) -> list[str]:
    """Links of a page's text to files or headings that do not exist."""
    broken = []
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md":
            place = target.resolve().relative_to(ROOT).as_posix()
            if anchor not in headings(place):
                broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_of_a_page_point_to_what_is_there(page: str) -> None:
    assert not dangling(page, prose(page))


def test_a_dangling_link_is_seen() -> None:
    text = (
        "[a](docs/get_started.md) [b](docs/nothing.md) ![c](x.png) [d](#nowhere) [e](https://x.org)"
    )
    assert dangling("README.md", text) == ["docs/nothing.md", "x.png", "#nowhere"]


def test_pages_that_the_code_names_are_there() -> None:
    files = [*SOURCES, *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tests/**/*.py"))]
    named = {
        (source, page) for source in files for page in _PATH.findall((ROOT / source).read_text())
    }
    named = {(source, page) for source, page in named if not source.startswith("tests/docs/")}
    assert len(named) > 5
    assert not sorted((source, page) for source, page in named if not (ROOT / page).is_file())


def test_pages_are_in_the_table_of_contents() -> None:
    """Sphinx says so too, but it is not installed with the tests."""
    listed = {"docs/index.md"}
    for page in PAGES:
        for block in blocks(page):
            if block.language == "{toctree}":
                lines = [line.strip() for line in block.text.splitlines()]
                names = [re.sub(r".*<(.*)>", r"\1", line) for line in lines if line[:1] != ":"]
                folder = (ROOT / page).parent
                listed |= {
                    (folder / f"{name}.md").relative_to(ROOT).as_posix() for name in names if name
                }
    assert sorted({page for page in PAGES if page.startswith("docs/")} - listed) == []
