"""CLIP's vocabulary where its wheel does not exist: from the hub's cache, by another library."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tokenizers as library

from input_pipeline.datasets.scenes.records import make_record
from refseg_jax.text.tokenizers import CLIP_ON_HUB, ClipTokenizer
from tests.input_pipeline.datasets.scenes_made import SMALL

ROOT = Path(__file__).resolve().parents[3]

#: In a process of its own: the hub's client reads its settings when it is imported.
_CODE = """
import sys
sys.modules["instant_clip_tokenizer"] = None
import numpy as np
from refseg_jax.errors import UserError
from refseg_jax.text.tokenizers import build_tokenizer, check_tokenizer
texts = open(sys.argv[1], encoding="utf-8").read().splitlines()
try:
    clip = build_tokenizer("clip")
except UserError as error:
    print(error)
    sys.exit()
assert build_tokenizer("clip") is clip
np.savez(sys.argv[2], *clip(texts, 22), np.array([clip.vocab_size, clip.eos_id, clip.free_id]))
"""


def _run(cache: Path, texts: Path, ids: Path) -> str:
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(texts), str(ids)],
        cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def _cache(folder: Path, content: str) -> None:
    """The hub's cache with one file of a commit."""
    repository = folder / "hub" / f"models--{CLIP_ON_HUB.replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "tokenizer.json").write_text(content, encoding="utf-8")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


def test_ids_of_scenes_are_those_of_the_wheel(tmp_path: Path) -> None:
    records = [make_record(SMALL, "val", number) for number in range(12)]
    texts = [expression.text for record in records for expression in record.expressions]
    assert len(texts) > 200
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    wheel = ClipTokenizer()
    _cache(tmp_path, wheel.as_json())
    assert _run(tmp_path, tmp_path / "texts.txt", tmp_path / "ids.npz") == ""
    stored = np.load(tmp_path / "ids.npz")
    for found, expected in zip((stored["arr_0"], stored["arr_1"]), wheel(texts, 22), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert stored["arr_2"].tolist() == [wheel.vocab_size, wheel.eos_id, wheel.free_id]


def test_without_the_vocabulary_one_line_says_where_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").touch()
    said = _run(tmp_path, tmp_path / "texts.txt", tmp_path / "ids.npz")
    assert said.count("\n") == 1
    for cure in ("config.data.tokenizer", "an exported folder", f"hf download {CLIP_ON_HUB}"):
        assert cure in said


def test_another_vocabulary_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").touch()
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    other = library.Tokenizer(library.models.WordLevel(words, unk_token="[UNK]"))
    _cache(tmp_path, other.to_str())
    said = _run(tmp_path, tmp_path / "texts.txt", tmp_path / "ids.npz")
    assert said.endswith("it is not CLIP's vocabulary; delete it, and it is fetched again\n")
