"""Refer-YouTube-VOS: expressions for objects in videos, every fifth frame as a record.

    SOURCE/meta_expressions/{train,valid,test}/meta_expressions.json
    SOURCE/train/meta.json                                    kinds of the objects
    SOURCE/train/JPEGImages/<video>/<frame>.jpg
    SOURCE/train/Annotations/<video>/<frame>.png              indexed; a value is an object's number

An expression is asked of every frame of its video; in frames where its object is not to be seen it
means nothing (`none`). Its group is `<video>/<number>`, so that an evaluation finds its frames; frames
keep the order of the video.

Only `train` can be built. The masks of `valid` and `test` are on a server that scores predictions: a
record would have to say that nothing matches there, which is not true. Their frames are held out from
other training all the same, and `videos` gives their questions. The file of `valid` has the videos of
`test` too, which are those that the file of `test` lists: 507 videos and 2,096 expressions are 202 and
834 of valid, 305 and 1,262 of test.

Source: the README of Refer-YouTube-VOS, and the files of its `valid`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.building.conversion import Conversion, Outcome, Plan, SourceError, read_image
from input_pipeline.formats.json_stream import elements, words
from input_pipeline.formats.label_maps import encode_labels, read_labels
from input_pipeline.schema import Expression, Target

SPLITS = ("train", "valid", "test")
_CURE = "unpack the dataset again"

#: A note and a fact of a build.
NO_WORD = "expressions without a word, left out"
UNBUILT = "{0}: {1} without published masks, held out and not built"


@dataclasses.dataclass(frozen=True)
class Question:
    """An expression of a video: its number there, its text, and its object (0: not published)."""

    number: str
    text: str
    object: int


@dataclasses.dataclass(frozen=True)
class Video:
    """A video: names of frames without ending, in their order."""

    name: str
    frames: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame, and what is asked of its video; `kinds` are pairs of object and kind."""

    video: str
    name: str
    image: Path
    labels: Path
    questions: tuple[Question, ...]
    kinds: tuple[tuple[int, str], ...]


def videos(source: Path, split: str) -> tuple[Video, ...]:
    """The videos and questions of a split; those of `valid` without those of `test`, if it is there.

    Raises:
        SourceError: a file is missing, damaged or of another form.
    """
    read = _read(source, split)
    if split == "valid" and _expressions(source, "test").is_file():
        of_test = {video.name for video in _read(source, "test")}
        read = [video for video in read if video.name not in of_test]
    return tuple(read)


def read_plan(source: Path) -> Plan:
    """Reads the expressions of all splits that are there, and plans the frames of train.

    Raises:
        SourceError: a file is missing, damaged or of another form.
    """
    base = source / "train"
    kinds = _kinds(base / "meta.json")
    problems: dict[str, None] = {}
    notes: dict[str, int] = {}
    frames: list[Frame] = []
    for video in videos(source, "train"):
        said = tuple(question for question in video.questions if question.text)
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
    """A frame with the objects that are asked for.

    Raises:
        ItemError: a file is missing, damaged, or not of the other's size.
        ImageError: the image is damaged.
    """
    labels = read_labels(item.labels, cure=_CURE)
    image = read_image(item.image, size=(labels.shape[0], labels.shape[1]), cure=_CURE)
    asked = sorted({question.object for question in item.questions})
    regions = encode_labels(labels, without={0})
    seen = [number for number in asked if number in regions]
    kinds = dict(item.kinds)
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
    return Outcome(record)


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
    published = int(entry["obj_id"]) if split == "train" else 0
    if split == "train" and not 0 < published < 256:
        raise ValueError(f"obj_id {published}")
    return Question(_name(number), words(entry["exp"]), published)


def _kinds(file: Path) -> dict[str, tuple[tuple[int, str], ...]]:
    try:
        return {
            name: tuple((int(k), words(o["category"])) for k, o in video["objects"].items())
            for name, video in _videos_of(file)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _other_form(file, error) from None


def _name(name: Any) -> str:
    """A name that leads nowhere else."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,100}", name, re.ASCII):
        raise ValueError(f"the name {name!r:.40}")
    return name


def _other_form(file: Path, error: Exception) -> SourceError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return SourceError(f"{file}: not Refer-YouTube-VOS's ({reason}); {_CURE}")


CONVERSIONS = (Conversion("ref_youtube_vos", read_plan, convert),)
