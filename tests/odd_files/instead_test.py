"""What often stands in the place of a file: a pointer of Git LFS, a web page, a compressed copy."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from input_pipeline.building.conversion import SourceError
from input_pipeline.formats import archives
from input_pipeline.formats.json_stream import elements
from input_pipeline.formats.mask_files import read_mask
from refseg_jax.checkpoints import manifest
from refseg_jax.cli import score
from refseg_jax.errors import UserError, instead
from refseg_jax.images.decoding import decode_image
from refseg_jax.text.tokenizers import build_tokenizer
from refseg_jax.unpickling import load_pickle
from refseg_jax.weights.readers import open_weights
from tests.odd_files.ways import jsonl, run

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 900000\n"
)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Quota exceeded</title></head></html>"


def _weights(ending: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        return open_weights(path.rename(path.with_suffix(ending)))

    return read


def _archive(ending: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        return archives.extract(path.rename(path.with_suffix(ending)), path.parent / "out")

    return read


def _lines(path: Path) -> None:
    path.rename(path.with_name("train.jsonl"))
    (path.parent / "room").mkdir()
    seen = jsonl(path.parent, path.parent / "room")
    assert seen.code == 1
    (line,) = [line for line in seen.said.splitlines() if line.startswith("error: ")]
    raise UserError(line)


def _scores(path: Path) -> None:
    flags = [f"--predictions={path}", f"--references={path}"]
    code, said = run(score.main, "--protocol=lavt", *flags)
    assert code == 1
    raise UserError(said.strip())


def _export(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(b"x" * 999)
    manifest.write(path.parent)
    path.write_bytes(content)
    raise UserError(manifest.check(path.parent).reason)


READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _weights(".pth"),
    ".bin": _weights(".bin"),
    ".safetensors": _weights(".safetensors"),
    ".pkl": _weights(".pkl"),
    ".tar.gz": _archive(".tar.gz"),
    ".tar": _archive(".tar"),
    ".zip": _archive(".zip"),
    "instances.json": lambda path: list(elements(path)),
    "refs.p": load_pickle,
    "lines": _lines,
    "score": _scores,
    "tokenizer.json": lambda path: build_tokenizer(str(path)),
    "export": _export,
    "picture": lambda path: decode_image(path.read_bytes(), name=str(path)),
    "mask": lambda path: read_mask(path.read_bytes(), name=str(path)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "a Git LFS pointer"),
        (PAGE, "a web page"),
        (PAGE.upper(), "a web page"),
        (b"<html lang=en>", "a web page"),
        (b"\r\n\r\n" + PAGE, "a web page"),
    ],
    ids=["pointer", "page", "PAGE", "html", "blank lines"],
)
def test_what_stands_there_instead_is_named(
    tmp_path: Path, reader: str, content: bytes, words: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises((UserError, SourceError)) as caught:
        READERS[reader](path)
    line = str(caught.value)
    assert words in line, line
    assert "\n" not in line
    assert str(tmp_path) in line


@pytest.mark.parametrize("content", [b"", b"version 2", b"<", b"{}", b"html", b"\x89PNG\r\n"])
def test_other_files_are_what_they_are(content: bytes) -> None:
    assert instead(content) == ""


@pytest.mark.parametrize("reader", ["instances.json", "lines", "score", "tokenizer.json"])
def test_a_compressed_text_is_told(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(json.dumps({"images": []}).encode()))
    with pytest.raises((UserError, SourceError), match="is compressed by gzip; unpack it"):
        READERS[reader](path)
