"""The Python of README.md and of the site runs.

The blocks of a page run one after another, as a reader would run them: in one namespace, in a folder
that has what the pages speak of. A block that cannot run here says why above its fence:

    <!-- not run: needs a download -->
"""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refseg_jax.exports.exporter import export
from tests.docs.pages import PAGES, blocks
from tests.input_pipeline.tiny_dataset import build_tiny_dataset
from tests.refseg_jax.exports.folders import (
    compiling_in_a_hurry,
    compiling_once,
    picture,
    tiny_params,
)
from tests.refseg_jax.training.tiny_run import save_unires

WITH_PYTHON = [page for page in PAGES if any(b.language == "python" for b in blocks(page))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after `make run` and `tools.export`, with a picture, but for the size of all."""
    folder = tmp_path_factory.mktemp("checkout")
    save_unires(folder / "runs/scenes_unires", tiny_params())
    export(
        folder / "runs/scenes_unires", "safetensors", folder / "exported", command=["make", "it"]
    )
    build_tiny_dataset(folder / "data")
    Image.fromarray(picture()).save(folder / "picture.jpg")
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_blocks_of_a_page_run(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with compiling_in_a_hurry(), compiling_once(folder / "compiled"):
        for block in blocks(page):
            if block.language != "python" or block.not_run is not None:
                continue
            # Tracebacks show the page's own lines.
            code = "\n" * (block.line - 1) + block.text
            exec(compile(code, page, "exec"), namespace)
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_does_not_run_says_why(page: str) -> None:
    silent = [block.place for block in blocks(page) if block.not_run == ""]
    assert not silent, "write <!-- not run: REASON --> above the fence"


@pytest.mark.parametrize("page", PAGES)
def test_python_is_called_python(page: str) -> None:
    """Under another name (`py`, `python3`, `{code-block} python`) a block would never be run."""
    others = ("py", "python3", "Python", "pycon", "{code-block}", "{code-cell}", "{doctest}")
    assert not [block.place for block in blocks(page) if block.language in others]


def test_pages_have_python() -> None:
    assert {"README.md", "docs/get_started.md", "docs/export.md"} <= set(WITH_PYTHON)
