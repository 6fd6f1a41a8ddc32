"""The page of the demo in a real browser."""

import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.refseg_jax.cli.demo.chromium import Page, browser, program
from tests.refseg_jax.cli.demo.serving import Served, picture

pytestmark = pytest.mark.skipif(program() is None, reason="there is no chromium on this machine")

#: The first is found in the picture, the second is not.
TEXTS = ("the red box", "both boxes")
_ROWS = "[...document.querySelectorAll('#rs-shown li')].map(x => x.innerText)"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def page(served: Served, downloads: Path) -> Iterator[Page]:
    """A page on which the picture was uploaded and asked for both expressions."""
    (downloads / "a picture.png").write_bytes(picture())
    with browser(downloads) as page:
        page.open(served.address)
        page.wait("document.querySelector('#rs-picture input[type=file]')")
        page.upload("#rs-picture input[type=file]", downloads / "a picture.png")
        page.wait("document.querySelector('#rs-picture img')")
        page.type("#rs-texts textarea", "\n".join(TEXTS))
        page.click("#rs-ask")
        page.wait("document.querySelectorAll('#rs-shown li').length == 2", 60)
        yield page
        # No other server is asked for anything, and no script fails.
        own = (f"{served.address}/", "data:", "blob:", "about:")
        assert not [address for address in page.requested if not address.startswith(own)]
        assert page.said == []


def _slide(page: Page, slider: str, value: float) -> None:
    """Moves a slider as a hand does: the page hears of it by an event."""
    page.run(
        f"(x => {{x.value = {value}; x.dispatchEvent(new Event('input', {{bubbles: true}}))}})"
        f"(document.querySelector('{slider} input[type=range]'))"
    )


def test_two_expressions_are_found_or_not(served: Served, page: Page) -> None:
    rows = page.run(_ROWS)
    found, absent = served.predictor.predict(picture(), TEXTS)
    assert found.present and not absent.present
    assert TEXTS[0] in rows[0] and f"score {found.score:.2f}" in rows[0]
    assert f"presence {found.presence:.2f}" in rows[0] and "no match" not in rows[0]
    assert TEXTS[1] in rows[1] and "no match" in rows[1]
    assert "First answer in" in page.text() and "was encoded in" in page.text()
    page.wait("document.querySelector('#rs-result img')?.naturalWidth == 30")


def test_a_slider_redraws_without_the_model(served: Served, page: Page) -> None:
    def asked() -> int:
        return json.loads(served.read("/v1/health"))["jobs"]

    before, drawn = asked(), page.run("document.querySelector('#rs-result img').src")
    _slide(page, "#rs-presence", 0.1)
    page.wait(f"{_ROWS}.every(x => !x.includes('no match'))")
    assert page.run("document.querySelector('#rs-result img').src") != drawn
    _slide(page, "#rs-presence", 0.9)
    page.wait("document.querySelector('#rs-shown .rs-none')")
    assert "No match." in page.text()
    assert all("no match" in row for row in page.run(_ROWS))
    _slide(page, "#rs-presence", 0.5)
    page.wait("!document.querySelector('#rs-shown .rs-none')")
    share = page.run(_ROWS)[0]
    _slide(page, "#rs-mask", 0.48)
    page.wait(f"{_ROWS}[0] != {json.dumps(share)}")
    assert asked() == before
    _slide(page, "#rs-mask", 0.55)
    page.wait(f"{_ROWS}[0] == {json.dumps(share)}")


def test_what_is_shown_can_be_downloaded(served: Served, page: Page, downloads: Path) -> None:
    page.click("#rs-download")
    path = downloads / "predictions.zip"
    end = time.monotonic() + 20
    # Chromium gives a file its name when it is whole.
    while not path.exists():
        assert time.monotonic() < end, (page.text(), list(downloads.iterdir()))
        time.sleep(0.05)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert sorted(archive.namelist()) == [
            "a_picture.png-0-mask.png",
            "a_picture.png-1-mask.png",
            "predictions.jsonl",
        ]
        lines = [json.loads(line) for line in archive.read("predictions.jsonl").splitlines()]
        masks = [
            np.asarray(Image.open(archive.open(f"a_picture.png-{k}-mask.png"))) for k in (0, 1)
        ]
    predicted = served.predictor.predict(picture(), TEXTS)
    for line, mask, one, text in zip(lines, masks, predicted, TEXTS, strict=True):
        assert (mask == one.mask * np.uint8(255)).all()
        assert (line["expression"], line["present"]) == (text, one.present)
        assert line["image"] == "a picture.png" and line["thresholds"]["origin"] == "config"


def test_asking_again_does_not_encode_again(page: Page) -> None:
    page.type("#rs-texts textarea", f"{TEXTS[0]}\n<b>a circle</b>")
    page.click("#rs-ask")
    page.wait("document.body.innerText.includes('Asked again: 1 new expression in')")
    # Words of a user are no HTML.
    assert "<b>a circle</b>" in page.run(_ROWS)[1]


def test_a_faulty_question_is_told(page: Page, downloads: Path) -> None:
    page.type("#rs-texts textarea", " ")
    page.click("#rs-ask")
    page.wait("document.body.innerText.includes('Write what to look for')")
    (downloads / "large.png").write_bytes(picture(0, 120, 90))
    page.click("#rs-picture button[aria-label*=lear], #rs-picture button[aria-label*=emove]")
    page.wait("document.querySelector('#rs-picture input[type=file]')")
    page.upload("#rs-picture input[type=file]", downloads / "large.png")
    page.wait("document.querySelector('#rs-picture img')")
    page.type("#rs-texts textarea", "a box")
    page.click("#rs-ask")
    page.wait("document.body.innerText.includes('90 x 120 pixels are more than the allowed')")


def test_a_group_tells_which_pictures_show_it(served: Served, page: Page, downloads: Path) -> None:
    names = [f"{seed}.png" for seed in (1, 2, 3)]
    images = [picture(seed) for seed in (1, 2, 3)]
    for name, image in zip(names, images, strict=True):
        (downloads / name).write_bytes(image)
    answers = served.predictor.predict_group(images, [TEXTS[0]], names=names)
    found = [name for name, (one,) in zip(names, answers, strict=True) if one.mask.any()]
    assert found == ["2.png"]
    page.run("[...document.querySelectorAll('button[role=tab]')].at(-1).click()")
    page.wait("document.querySelector('#rs-pictures input[type=file]')")
    page.upload("#rs-pictures input[type=file]", *(downloads / name for name in names))
    page.wait(
        "document.querySelector('#rs-pictures').textContent.replace(/\\s/g, '').includes('3.png')"
    )
    page.type("#rs-group-text textarea, #rs-group-text input", TEXTS[0])
    page.click("#rs-group-ask")
    page.wait("document.body.innerText.includes('In 1 of 3 pictures.')", 60)
    first = page.wait("document.querySelector('#rs-group .caption-label')?.innerText")
    assert first.startswith("score ") and first.endswith(" · 2.png")


def test_the_page_fits_a_phone(served: Served, page: Page) -> None:
    page.open(served.address, 390, 844)
    page.wait("document.querySelector('#rs-ask')")
    assert page.run("document.documentElement.scrollWidth <= 390")
