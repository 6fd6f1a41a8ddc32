"""The settings of a Scenes build."""

import dataclasses

#: Main splits, splits of image groups, and splits with what no other has (`kinds.NOVEL_KIND`,
#: `kinds.NOVEL_EXTRA`). The index of a split is part of its seed.
SPLITS = (
    *("train", "val", "test"),
    *("train_groups", "val_groups", "test_groups"),
    *("novel_train", "novel_test"),
)


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Settings of a Scenes build.

    The same settings give the same bytes if the versions of the builder, numpy and OpenCV are the same.

    Attributes:
        name: name of the TFDS config (of `a-z`, `0-9` and `_`), and of the folder in
            `<data_dir>/scenes`.
        image_size: side of the square images in pixels, at least 64.
        seed: seed of the build, at least 0; every pair and every group has a random stream of its own.
        train, val, test: number of images of the main splits. Images come in pairs that are asked the
            same questions, so that an even number has as many questions that match as do not. A split
            of 0 images is not built.
        train_groups, val_groups, test_groups: number of groups of the group splits.
        novel_train, novel_test: number of images of the novel splits.
        group_size: number of images of a group, which share an expression; 4..16.
        min_objects, max_objects: least and greatest number of objects that are placed in an image, 2..8.
            A crowded image may keep fewer.
        object_referents, part_referents: greatest number of described objects and of described parts in
            an image.
        multi_referents: greatest number of described sets of objects, and of named categories.
        questions: greatest number of questions of a pair of images, see `expressions.question_pair`.
        wordings: greatest number of expressions for each described object or part.
        jpeg_quality: quality of the stored images, 0..100.
    """

    name: str = "default"
    image_size: int = 128
    seed: int = 0
    train: int = 5000
    val: int = 400
    test: int = 400
    train_groups: int = 400
    val_groups: int = 50
    test_groups: int = 50
    novel_train: int = 100
    novel_test: int = 200
    group_size: int = 8
    min_objects: int = 3
    max_objects: int = 5
    object_referents: int = 3
    part_referents: int = 3
    multi_referents: int = 2
    questions: int = 6
    wordings: int = 2
    jpeg_quality: int = 92

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name == "wordings")
            if field.name != "name" and (type(value) is not int or value < least):
                raise ValueError(
                    f"scenes: {field.name} is {value!r:.40}; it is a whole number of {least} or more"
                )
        if self.image_size < 64:
            raise ValueError(f"scenes: image_size {self.image_size} is below 64; use 64 or more")
        if not 2 <= self.min_objects <= self.max_objects <= 8:
            raise ValueError(
                f"scenes: min_objects {self.min_objects}, max_objects {self.max_objects}; "
                "2 <= min_objects <= max_objects <= 8 is needed"
            )
        if not 4 <= self.group_size <= 16:
            raise ValueError(
                f"scenes: group_size {self.group_size} is not in 4..16; a group needs images with and "
                "without its object, and is chosen out of 24 drafts"
            )
        if self.jpeg_quality > 100:
            raise ValueError(f"scenes: jpeg_quality {self.jpeg_quality} is above 100")
        if not self.name or not set(self.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise ValueError(f"scenes: name {self.name!r} is not made of a-z, 0-9 and _")

    def images(self, split: str) -> int:
        """Number of images of a split of `SPLITS`."""
        count = getattr(self, split)
        return count * self.group_size if split.endswith("_groups") else count
