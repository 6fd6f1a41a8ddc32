"""Reads the list of refs of the `refer` layout, from a pickle or JSON."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from input_pipeline.building.conversion import SourceError
from input_pipeline.formats.json_stream import elements, integer
from refseg_jax.text.cleaning import has_word
from refseg_jax.unpickling import load_pickle

_CURE = "use the file that its authors distribute"


@dataclasses.dataclass(frozen=True)
class Ref:
    """A ref: something in an image that sentences describe.

    Attributes:
        ref_id, image_id: ids in the dataset.
        ann_ids: ids of the annotations that are meant, each once; several or none in gRefCOCO.
        splits: the splits that it belongs to.
        sentences: pairs of expression id and text; sentences without a word are left out.
        empty: number of sentences without a word.
    """

    ref_id: int
    image_id: int
    ann_ids: tuple[int, ...]
    splits: tuple[str, ...]
    sentences: tuple[tuple[str, str], ...]
    empty: int


def read_refs(file: Path, text: str) -> list[Ref]:
    """Reads `refs(<by>).p` or `grefs(<by>).json`.

    Args:
        file: a pickle, unless its name ends with `.json`.
        text: which text of a sentence to use, `sent` or `raw`.

    Raises:
        SourceError: the JSON is damaged, the file does not have this layout, or a `sent_id` occurs
            twice.
        PickleError: the pickle is damaged, or holds more than plain data.
    """
    refs = [_ref(entry, text, number, file) for number, entry in enumerate(_entries(file))]
    if not refs:
        raise SourceError(f"{file}: holds no list of refs; {_CURE}")
    _check_unique(refs, file)
    return refs


def _entries(file: Path) -> Iterable[Any]:
    if file.suffix == ".json":
        return (entry for key, entry in elements(file) if not key)
    # People who make refs of their own often keep ids as numbers of numpy.
    entries = load_pickle(file, arrays=True)
    return entries if isinstance(entries, list) else ()


def stored_text(text: Any) -> str:
    """A text that can be stored: stripped, lone surrogates replaced, bytes decoded.

    Bytes are decoded as UTF-8, or as Latin-1 if they are not valid UTF-8.

    Raises:
        AttributeError: `text` is neither text nor bytes.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            text = text.decode("latin-1")
    return text.strip().encode("utf-8", "replace").decode("utf-8")


def _ref(entry: Any, text: str, number: int, file: Path) -> Ref:
    try:
        said = [(integer(s["sent_id"]), stored_text(s[text])) for s in entry["sentences"]]
        words = tuple((str(i), t) for i, t in said if has_word(t))
        ref_id, image_id = integer(entry["ref_id"]), integer(entry["image_id"])
        ann_ids, splits = _ann_ids(entry["ann_id"]), _splits(str(entry["split"]))
        return Ref(ref_id, image_id, ann_ids, splits, words, len(said) - len(words))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{file}: entry {number} is not refer's ({type(error).__name__}: {error}); {_CURE}"
        ) from None


def _ann_ids(value: Any) -> tuple[int, ...]:
    """Ids of the annotations. `[-1]` means no target, as in gRefCOCO's reader (not `no_target`)."""
    if not isinstance(value, list | tuple):
        return (integer(value),)
    ids = tuple(dict.fromkeys(integer(i) for i in value))
    return () if ids == (-1,) else ids


def _splits(name: str) -> tuple[str, ...]:
    """Splits of a ref; RefClef's `testAB` means both testA and testB."""
    letters = re.fullmatch("test([A-Z]{2,})", name)
    return tuple(f"test{letter}" for letter in letters[1]) if letters else (name,)


def _check_unique(refs: Iterable[Ref], file: Path) -> None:
    """Checks that ids of expressions are unique, because predictions are scored by id."""
    seen: set[str] = set()
    for ref in refs:
        for sent_id, _ in ref.sentences:
            if sent_id in seen:
                raise SourceError(f"{file}: sent_id {sent_id} occurs twice; {_CURE}")
            seen.add(sent_id)
