"""Refer-YouTube-VOS: expressions for objects in videos; each annotated frame (every fifth) is a record.

    SOURCE/meta_expressions/{train,valid,test}/meta_expressions.json
    SOURCE/train/meta.json                                    categories of the objects, if it is there
    SOURCE/train/JPEGImages/<video>/<frame>.jpg
    SOURCE/train/Annotations/<video>/<frame>.png              indexed; a value is an object's number

Every frame of a video has all expressions of the video. In frames that do not show the object, an
expression has no target and the granularity `none`. Its group is `<video>/<number>`, by which an
evaluation finds its frames; frames keep the order of the video.

The file of categories belongs to YouTube-VOS, and today's downloads lack it. Without it, targets have no
category, and the build report says so.

Only `train` can be built. The masks of `valid` and `test` are not public (a server scores predictions),
and a record without masks would say that nothing matches. Their frames are held out from other training
nevertheless, and `videos` returns their expressions. The file of `valid` also has the videos of `test`,
which the file of `test` lists: of its 507 videos and 2,096 expressions, 202 and 834 are of valid, 305
and 1,262 of test.

Source: the README of Refer-YouTube-VOS, and the files of its `valid`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.building.conversion import (
    NO_WORD,
    Conversion,
    Outcome,
    Plan,
    SourceError,
    read_image,
)
from input_pipeline.formats.json_stream import elements, integer, words
from input_pipeline.formats.label_maps import encode_labels, read_labels
from input_pipeline.schema import Expression, Target
from refseg_jax.text.cleaning import has_word

SPLITS = ("train", "valid", "test")
_CURE = "unpack the dataset again"

#: Notes and a figure in the build report.
NO_KINDS = "videos whose objects have no category, for want of train/meta.json"
UNBUILT = "{0}: {1} without published masks, held out and not built"


#: A note about maps that are black and white, or have the ignored border of VOC and DAVIS.
NO_OBJECT = "maps with 255, which is no object of an expression, left out"
_WHITE = 255


@dataclasses.dataclass(frozen=True)
class Question:
    """An expression of a video.

    Attributes:
        number: its key among the video's expressions.
        text: the expression.
        object: number of its object in the masks, 1..255; 0 if it is not published.
    """

    number: str
    text: str
    object: int


@dataclasses.dataclass(frozen=True)
class Video:
    """A video.

    Attributes:
        name: id of the video.
        frames: names of its frames without suffix, in order.
        questions: its expressions.
    """

    name: str
    frames: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame to convert.

    Attributes:
        video: id of the video.
        name: name of the frame without suffix.
        image: path of the image file.
        labels: path of the map of objects.
        questions: the expressions of the video that have a word.
        kinds: pairs (number of an object, its category).
    """

    video: str
    name: str
    image: Path
    labels: Path
    questions: tuple[Question, ...]
    kinds: tuple[tuple[int, str], ...]


def videos(source: Path, split: str) -> tuple[Video, ...]:
    """Reads the videos of a split with their expressions.

    If the file of `test` exists, the videos of `valid` are those that `test` does not have.

    Args:
        source: the source folder.
        split: `"train"`, `"valid"` or `"test"`.

    Raises:
        SourceError: a file is missing, damaged or of another format.
    """
    read = _read(source, split)
    if split == "valid" and _expressions(source, "test").is_file():
        of_test = {video.name for video in _read(source, "test")}
        read = [video for video in read if video.name not in of_test]
    return tuple(read)


def read_plan(source: Path) -> Plan:
    """Plans the frames of train, and holds out those of the other splits that the folder has.

    Raises:
        SourceError: a file is missing, damaged or of another format.
    """
    base = source / "train"
    known = base / "meta.json"
    kinds = _kinds(known) if known.is_file() else {}
    problems: dict[str, None] = {}
    notes: dict[str, int] = {}
    frames: list[Frame] = []
    of_train = videos(source, "train")
    if not known.is_file():
        notes[NO_KINDS] = len(of_train)
    for video in of_train:
        said = tuple(question for question in video.questions if has_word(question.text))
        if len(said) < len(video.questions):
            notes[NO_WORD] = notes.get(NO_WORD, 0) + len(video.questions) - len(said)
        for name in video.frames:
            image = base / "JPEGImages" / video.name / f"{name}.jpg"
            labels = base / "Annotations" / video.name / f"{name}.png"
            missing = [path for path in (image, labels) if not path.is_file()]
            problems |= {f"{path}: not there; {_CURE}": None for path in missing}
            if said and not missing:
                frame = Frame(video.name, name, image, labels, said, kinds.get(video.name, ()))
                frames.append(frame)
    held_out: dict[str, tuple[str, ...]] = {}
    facts: dict[str, int] = {}
    for split in SPLITS[1:]:
        if _expressions(source, split).is_file():
            unbuilt = videos(source, split)
            questions = sum(len(video.questions) for video in unbuilt)
            facts[UNBUILT.format(split, "videos")] = len(unbuilt)
            facts[UNBUILT.format(split, "expressions")] = questions
            held_out[split] = tuple(f"ytvos/{v.name}/{f}" for v in unbuilt for f in v.frames)
    return Plan({"train": tuple(frames)}, tuple(problems), notes, held_out, facts)


def convert(item: Frame, source: str) -> Outcome:
    """Makes the record of a frame, with the objects that its expressions mean.

    Raises:
        ItemError: a file is missing or damaged, or the sizes differ.
        ImageError: the image is damaged.
    """
    labels = read_labels(item.labels, cure=_CURE)
    image = read_image(item.image, size=(labels.shape[0], labels.shape[1]), cure=_CURE)
    asked = sorted({question.object for question in item.questions})
    regions = encode_labels(labels, without={0})
    seen = [number for number in asked if number in regions]
    kinds = dict(item.kinds)
    white = _WHITE in regions and _WHITE not in (*asked, *kinds)
    expressions = tuple(
        Expression(
            id=f"{item.video}/{question.number}/{item.name}",
            text=question.text,
            targets=(seen.index(question.object),) if question.object in seen else (),
            granularity="object" if question.object in seen else "none",
            referent=asked.index(question.object),
            group=f"{item.video}/{question.number}",
        )
        for question in item.questions
    )
    record = image.record(
        f"ytvos/{item.video}/{item.name}",
        source,
        file_name=f"{item.video}/{item.image.name}",
        targets=tuple(Target(regions[number], kinds.get(number, "")) for number in seen),
        expressions=expressions,
    )
    return Outcome(record, notes={NO_OBJECT: 1} if white else {})


def _expressions(source: Path, split: str) -> Path:
    return source / "meta_expressions" / split / "meta_expressions.json"


def _read(source: Path, split: str) -> list[Video]:
    file = _expressions(source, split)
    try:
        stored = [
            Video(
                _name(name),
                tuple(_name(frame) for frame in video["frames"]),
                tuple(
                    _question(number, entry, split)
                    for number, entry in video["expressions"].items()
                ),
            )
            for name, video in _videos_of(file)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _other_form(file, error) from None
    if not stored:
        raise SourceError(f"{file}: holds no videos; {_CURE}")
    return stored


def _videos_of(file: Path) -> Iterator[tuple[str, Any]]:
    for key, value in elements(file):
        if key == "videos":
            yield from value.items()


def _question(number: str, entry: Mapping[str, Any], split: str) -> Question:
    published = integer(entry["obj_id"]) if split == "train" else 0
    if split == "train" and not 0 < published < 256:
        raise ValueError(f"obj_id {published}")
    return Question(_name(number), words(entry["exp"]), published)


def _kinds(file: Path) -> dict[str, tuple[tuple[int, str], ...]]:
    try:
        return {
            name: tuple((integer(k), words(o["category"])) for k, o in video["objects"].items())
            for name, video in _videos_of(file)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _other_form(file, error) from None


def _name(name: Any) -> str:
    """Returns a name that is safe as part of a path, or raises a `ValueError`."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,100}", name, re.ASCII):
        raise ValueError(f"the name {name!r:.40}")
    return name


def _other_form(file: Path, error: Exception) -> SourceError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return SourceError(f"{file}: not Refer-YouTube-VOS's ({reason}); {_CURE}")


CONVERSIONS = (Conversion("ref_youtube_vos", read_plan, convert),)
