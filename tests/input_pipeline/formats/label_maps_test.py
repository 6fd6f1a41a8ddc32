import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.building.conversion import Conversion, ItemError, SourceError
from input_pipeline.datasets import coca, coco_stuff, lip, saliency
from input_pipeline.datasets.ade20k import full as ade20k_full
from input_pipeline.datasets.ade20k import scene_parsing as ade20k_150
from input_pipeline.datasets.pascal import context as pascal_context
from input_pipeline.formats.label_maps import (
    encode_labels,
    first_folders,
    list_files,
    pair_files,
    read_colours,
    read_labels,
)
from input_pipeline.schema import encode_mask
from tests.input_pipeline.formats.map_files import write_image, write_map


def write_png(path: Path, values: np.ndarray, bits: int) -> None:
    """A PNG `[H, W]` or `[H, W, 3]` of so many bits a sample, which Pillow cannot write."""
    height, width = values.shape[:2]
    colour = {2: 0, 3: 2}[values.ndim]
    values = values.reshape(height, -1)
    bit = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(bit.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


@pytest.mark.parametrize(
    "conversion",
    [
        conversion
        for module in (coco_stuff, ade20k_150, ade20k_full, pascal_context, lip, saliency, coca)
        for conversion in module.CONVERSIONS
    ],
    ids=lambda conversion: conversion.name,
)
def test_other_processes_can_be_sent_the_conversion_of_an_image(conversion: Conversion):
    assert callable(pickle.loads(pickle.dumps(conversion.convert)))


def test_every_region_of_a_map_is_encoded_as_pycocotools_encodes_it():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 12, 2)
        labels = rng.integers(0, rng.integers(1, 6), (height, width))
        regions = encode_labels(labels, without=(0,))
        assert list(regions) == sorted(set(labels.ravel().tolist()) - {0})
        for value, counts in regions.items():
            assert counts == encode_mask(labels == value)


@pytest.mark.parametrize("palette", [False, True])
def test_the_stored_numbers_count_and_not_the_palette(tmp_path: Path, palette: bool):
    values = write_map(tmp_path / "a.png", np.arange(256).reshape(16, 16), palette=palette)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", cure="c"), values)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_stretched(tmp_path: Path, bits: int):
    values = np.random.default_rng(0).integers(0, 2**bits, (8, 16))
    write_png(tmp_path / "a.png", values, bits)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", cure="c"), values)


def test_sixteen_bits(tmp_path: Path):
    values = np.array([[0, 1, 300], [32768, 40000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", cure="c"), values)


def test_a_map_that_a_flag_turns_is_refused(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(ItemError, match=r"a\.png: an EXIF flag turns it, no map is turned; cure"):
        read_labels(tmp_path / "a.png", cure="cure")


def test_a_map_of_the_wrong_kind(tmp_path: Path):
    write_map(tmp_path / "colour.png", np.zeros((2, 2, 3)))
    write_map(tmp_path / "grey.png", np.zeros((2, 2)))
    with pytest.raises(ItemError, match=r"colour\.png: is in colour \(RGB\)"):
        read_labels(tmp_path / "colour.png", cure="c")
    with pytest.raises(ItemError, match=r"grey\.png: is not in colour of 8 bits \(L, 8 bits\)"):
        read_colours(tmp_path / "grey.png", cure="c")


def test_colours_of_sixteen_bits_are_not_cut_to_eight(tmp_path: Path):
    write_png(tmp_path / "deep.png", np.full((2, 3, 3), 300), 16)
    with pytest.raises(ItemError, match=r"deep\.png: is not in colour of 8 bits \(RGB, 16 bits\)"):
        read_colours(tmp_path / "deep.png", cure="c")


def test_damage_is_one_line_with_the_file_and_the_cure(tmp_path: Path):
    path = tmp_path / "a.png"
    with pytest.raises(ItemError, match=r"a\.png: No such file or directory; get it"):
        read_labels(path, cure="get it")
    write_map(path, np.random.default_rng(0).integers(0, 256, (64, 64)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    lfs = b"version https://git-lfs.github.com/spec/v1"
    for data in (whole[:-1500], bytes(flipped), whole[:20], b"", lfs):
        path.write_bytes(data)
        for read in (read_labels, read_colours):
            with pytest.raises(ItemError) as error:
                read(path, cure="get it")
            message = str(error.value)
            assert message.startswith(f"{path}: ") and message.endswith("; get it")
            assert "\n" not in message


def test_what_is_no_png_is_told_for_what_it_is(tmp_path: Path):
    path = tmp_path / "a.png"
    write_image(path, 4, 4)
    with pytest.raises(ItemError, match="is JPEG, no PNG; c"):
        read_labels(path, cure="c")
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(ItemError, match="is HEIC, no PNG; c"):
        read_colours(path, cure="c")
    path.write_bytes(b"words")
    with pytest.raises(ItemError, match="damaged or no PNG; c"):
        read_labels(path, cure="c")


def test_a_huge_map_is_refused_before_it_is_decoded(tmp_path: Path):
    write_png(tmp_path / "a.png", np.zeros((1, 1), int), 8)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 8000, 8000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(ItemError, match="8000 x 8000 pixels are too many"):
        read_labels(tmp_path / "a.png", cure="c")


def test_files_pair_by_name_and_hidden_ones_do_not_count(tmp_path: Path):
    for name in ("b.jpg", "a.JPG", "alone.jpg", ".b.jpg"):
        write_image(tmp_path / "im" / name, 2, 2)
    for name in ("a.png", "b.png", "lonely.png", "._a.png", "Thumbs.db"):
        (tmp_path / "gt").mkdir(exist_ok=True)
        (tmp_path / "gt" / name).write_bytes(b"")
    files = pair_files(tmp_path / "im", tmp_path / "gt", cure="get it")
    assert [stem for stem, _, _ in files.found] == ["a", "b"]
    assert files.found[0][1:] == (tmp_path / "im" / "a.JPG", tmp_path / "gt" / "a.png")
    assert files.problems == (
        f"{tmp_path / 'im' / 'alone.jpg'}: alone.png is not in {tmp_path / 'gt'}; get it",
        f"{tmp_path / 'gt' / 'lonely.png'}: lonely.jpg is not in {tmp_path / 'im'}; get it",
    )


def test_names_that_cannot_be_told_apart_or_stored_are_problems(tmp_path: Path):
    for name in (b"a.jpg", b"a.jpeg", b"\xff.jpg"):
        (Path(bytes(tmp_path).decode()) / name.decode("utf-8", "surrogateescape")).write_bytes(b"")
    problems: list[str] = []
    found = list_files(tmp_path, (".jpg", ".jpeg"), problems, cure="rename it")
    assert list(found) == ["a"]
    assert len(problems) == 2 and all(line.endswith("; rename it") for line in problems)
    with pytest.raises(SourceError, match="No such file or directory; c"):
        list_files(tmp_path / "none", (".jpg",), problems, cure="c")


def test_the_first_choice_of_which_all_folders_are_there(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    choices = [("a", "c"), ("b", "a"), ("a", "b")]
    assert first_folders(tmp_path, choices, layout="l") == [tmp_path / "b", tmp_path / "a"]
    with pytest.raises(SourceError, match="--source_dir must hold these"):
        first_folders(tmp_path, [("c",)], layout="these")
