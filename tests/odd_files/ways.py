"""The ways in: each sends a folder of odd files through the product and says what came out.

A way takes the folder (`train.jsonl` and its files), an empty folder to work in, and the way's flags.
Ways of published layouts write the same files in that layout first.
"""

import contextlib
import dataclasses
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.building.own import build_records
from input_pipeline.pipeline import PipelineConfig, eval_batches, train_batches
from input_pipeline.schema import Expression, Record, Target, encode_mask
from input_pipeline.sources import RecordSource
from input_pipeline.transforms import Decode, Example, Frame
from refseg_jax.errors import UserError
from refseg_jax.images.segmentation import decode_counts
from tests.odd_files.made import BOX
from tools import build_dataset, doctor


@dataclasses.dataclass(frozen=True)
class Seen:
    """What came out.

    Attributes:
        code: the exit code.
        said: what was printed, both streams.
        pairs: (name, picture u8 `[H, W, 3]`, region bool `[H, W]`) of each pair that came out.
    """

    code: int
    said: str
    pairs: tuple[tuple[str, np.ndarray, np.ndarray], ...] = ()


@dataclasses.dataclass(frozen=True)
class Pair:
    """A line of `train.jsonl`: its picture, its mask file if it has one, and its true region."""

    name: str
    text: str
    image: bytes
    mask: bytes
    region: np.ndarray


def pairs_of(folder: Path) -> list[Pair]:
    """The lines of a folder. The true region is the box, or the RLE or the mask of another size."""
    pairs = []
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        region = BOX
        if isinstance(runs := fields.get("segmentation"), dict):
            region = decode_counts(runs["counts"].encode(), *runs["size"]).astype(bool)
        mask = (folder / fields["mask"]).read_bytes() if fields.get("mask") else b""
        if mask:
            with Image.open(io.BytesIO(mask)) as image:
                if image.size != (BOX.shape[1], BOX.shape[0]):
                    region = np.asarray(image) > 0
        mask = mask or _png(np.where(region, 255, 0))
        data = (folder / fields["image"]).read_bytes()
        pairs.append(Pair(fields["image"], fields["expression"], data, mask, region))
    return pairs


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def run(main: Callable[[list[str]], int], *flags: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(flags))
    # Progress bars end their lines by carriage returns.
    return code, out.getvalue() + "\n" + err.getvalue().replace("\r", "\n")


def _records(data: Path, name: str, split: str) -> Iterator[Record]:
    source = RecordSource(str(data), name, split)
    yield from (source[index] for index in range(len(source)))


def build(name: str, room: Path, *flags: str, dataset: str = "", split: str = "train") -> Seen:
    data = room / "data"
    code, said = run(
        build_dataset.main, f"--dataset={dataset or name}", f"--data_dir={data}", *flags
    )
    if code:
        left = sorted(path for path in data.rglob("*") if path.suffix == ".json")
        assert not left, f"something is left: {left}"
        return Seen(code, said)
    pairs = []
    for record in _records(data, name, split):
        # As training and evaluation decode it.
        frame = Frame(record, ())
        example = Decode()(Example("0", (frame,), ()), np.random.default_rng(0))
        picture = example.frames[0].image
        assert picture is not None
        regions = [e.targets for e in record.expressions] or [
            (k,) for k in range(len(record.targets))
        ]
        pairs += [(record.file_name, picture, record.mask(r).astype(bool)) for r in regions]
    return Seen(code, said, tuple(pairs))


def jsonl(folder: Path, room: Path, *flags: str) -> Seen:
    """Builds the folder as it is."""
    own = ("--name=odd", f"--source_dir={folder}", *flags)
    return build("odd", room, *own, dataset="jsonl")


def shards(folder: Path, room: Path, *flags: str) -> Seen:
    """Builds the folder with a file for each line."""
    copy = room / "source"
    copy.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".jsonl":
            (copy / path.name).symlink_to(path)
    lines = (folder / "train.jsonl").read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        (copy / f"train-{number:05d}-of-{len(lines):05d}.jsonl").write_bytes(line)
    return jsonl(copy, room, *flags)


def tar(folder: Path, room: Path, *flags: str) -> Seen:
    """Builds a tar in the layout of WebDataset, a sample for each line."""
    source = room / "source"
    source.mkdir()
    with tarfile.open(source / "train-00000.tar", "w") as archive:
        for number, line in enumerate((folder / "train.jsonl").read_text("utf-8").splitlines()):
            fields = json.loads(line)
            name = fields.pop("image")
            # Endings that a sample's picture may have; its content decides.
            ending = Path(name).suffix if Path(name).suffix in (".jpg", ".jpeg", ".png") else ".png"
            members = {f"{number}{ending}": (folder / name).read_bytes()}
            if fields.get("mask"):
                mask = f"{number}.m{Path(fields['mask']).suffix}"
                members[mask] = (folder / fields["mask"]).read_bytes()
                fields["mask"] = mask
            members[f"{number}.json"] = json.dumps(fields).encode()
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return jsonl(source, room, *flags)


#: Processes take longer to start than a few pictures take.
_ALONE = "--num_workers=1"


def examined(folder: Path, room: Path, *flags: str) -> Seen:
    """The doctor, of the folder."""
    page = f"--page={room / 'page.html'}"
    own = ("--dataset=jsonl", f"--source_dir={folder}", _ALONE)
    return Seen(*run(doctor.main, *own, page, *flags))


def examined_built(folder: Path, room: Path, *flags: str) -> Seen:
    """The doctor, of what the build made of the folder."""
    assert not jsonl(folder, room, *flags).code
    page = f"--page={room / 'page.html'}"
    built = ("--dataset=odd", f"--data_dir={room / 'data'}", _ALONE)
    return Seen(*run(doctor.main, *built, page))


def own(folder: Path, room: Path) -> Seen:
    """`build_records`, with records that a user makes."""

    def make(pair: Pair) -> Record:
        return Record(
            image=pair.image,
            image_id=f"odd/{pair.name}",
            file_name=pair.name,
            height=pair.region.shape[0],
            width=pair.region.shape[1],
            source="odd",
            targets=(Target(encode_mask(pair.region), "box"),),
            expressions=(Expression(f"{pair.name}: {pair.text}", pair.text, (0,), "object"),),
        )

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            built = build_records("odd", {"train": pairs_of(folder)}, make, data_dir=room / "data")
    except UserError as error:
        return Seen(1, f"error: {error}")
    report = built / "build_report.txt"
    pairs = []
    for record in _records(room / "data", "odd", "train"):
        frame = Decode()(Example("0", (Frame(record, ()),), ()), np.random.default_rng(0)).frames[0]
        assert frame.image is not None
        pairs.append((record.file_name, frame.image, record.mask([0]).astype(bool)))
    return Seen(0, report.read_text() if report.is_file() else "", tuple(pairs))


def _batch(folder: Path, room: Path, *, train: bool) -> Seen:
    built = jsonl(folder, room)
    assert not built.code, built.said
    config = PipelineConfig(
        str(room / "data"), "odd", "train", image_size=96, mask_stride=1, canvas=(96, 96), pairs=1,
        resize="stretch", sampling="referent" if train else "expressions",
    )  # fmt: skip
    number = 2 * len(built.pairs)
    batches = (
        train_batches(config, batch_size=number, seed=0)
        if train
        else eval_batches(config, batch_size=number)
    )
    rows = next(iter(batches))
    # An evaluation pads its last batch by rows without a key.
    pairs = [
        (meta.error or meta.key, rows.batch.image[k, 0], rows.batch.mask[k, 0, 0] >= 128)
        for k, meta in enumerate(rows.meta)
        if meta.key
    ]
    errors = [meta.error for meta in rows.meta if meta.error]
    return Seen(int(bool(errors)), "\n".join(errors), tuple(pairs))


def training(folder: Path, room: Path) -> Seen:
    """The pipeline's batches of training, at the network's size."""
    return _batch(folder, room, train=True)


def evaluation(folder: Path, room: Path) -> Seen:
    """The pipeline's batches of evaluation, at the network's size."""
    return _batch(folder, room, train=False)


def _coco_name(number: int) -> str:
    return f"COCO_train2014_{number:012d}.jpg"


def write_files(source: Path, files: dict[str, bytes | str]) -> str:
    for name, data in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return f"--source_dir={source}"


def cris(folder: Path, room: Path) -> Seen:
    """The layout of CRIS: masks as PNG."""
    files: dict[str, bytes | str] = {}
    entries = []
    for number, pair in enumerate(pairs_of(folder), 1):
        said = [{"sent": pair.text, "sent_id": number}]
        name = _coco_name(number)
        entries.append({"img_name": name, "segment_id": number, "sentences": said})
        files |= {f"images/train2014/{name}": pair.image}
        files |= {f"masks/refcoco/{number}.png": pair.mask}
    files["anns/refcoco/train.json"] = json.dumps(entries)
    return build("refcoco/unc_cris", room, write_files(room / "source", files))


def refer(folder: Path, room: Path) -> Seen:
    """The layout of refer: COCO's RLE in `instances.json`, with the size of each image."""
    files: dict[str, bytes | str] = {}
    images, annotations, refs = [], [], []
    for number, pair in enumerate(pairs_of(folder), 1):
        name, size = _coco_name(number), pair.region.shape
        files[f"images/train2014/{name}"] = pair.image
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        rle = {"size": list(size), "counts": encode_mask(pair.region).decode()}
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": rle, "iscrowd": 0}
        )
        sentence = {"sent_id": number, "raw": pair.text, "sent": pair.text, "tokens": []}
        refs.append(
            {
                "ref_id": number, "ann_id": number, "image_id": number, "category_id": 1,
                "split": "train", "file_name": name, "sentences": [sentence], "sent_ids": [number],
            }
        )  # fmt: skip
    stored = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "box"}],
    }
    files["refcoco/instances.json"] = json.dumps(stored)
    files["refcoco/refs(unc).p"] = pickle.dumps(refs, protocol=2)
    return build("refcoco/unc", room, write_files(room / "source", files))


def _of_maps(
    folder: Path, room: Path, name: str, images: str, maps: str, split: str = "test"
) -> Seen:
    files: dict[str, bytes | str] = {}
    for number, pair in enumerate(pairs_of(folder), 1):
        files |= {f"{images}/{number}.jpg": pair.image, f"{maps}/{number}.png": pair.mask}
    return build(name, room, write_files(room / "source", files), split=split)


def ecssd(folder: Path, room: Path) -> Seen:
    """A saliency set: a map for each image."""
    return _of_maps(folder, room, "ecssd", "images", "ground_truth_mask")


def coca(folder: Path, room: Path) -> Seen:
    """CoCA: groups of images with maps."""
    return _of_maps(folder, room, "coca", "image/Box", "binary/Box")


def lip(folder: Path, room: Path) -> Seen:
    """LIP: a map of classes for each image."""
    files: dict[str, bytes | str] = {}
    for number, pair in enumerate(pairs_of(folder), 1):
        files[f"TrainVal_images/train_images/{number}_1.jpg"] = pair.image
        maps = "TrainVal_parsing_annotations/train_segmentations"
        files[f"{maps}/{number}_1.png"] = _png(pair.region)
    return build("lip", room, write_files(room / "source", files))


def sa1b(folder: Path, room: Path) -> Seen:
    """SA-1B: a JSON with the RLEs and the size of each image."""
    files: dict[str, bytes | str] = {}
    for number, pair in enumerate(pairs_of(folder), 1):
        height, width = pair.region.shape
        rle = {"size": [height, width], "counts": encode_mask(pair.region).decode()}
        stored = {
            "image": {"image_id": number, "height": height, "width": width},
            "annotations": [
                {"id": 1, "segmentation": rle, "predicted_iou": 1.0, "stability_score": 1.0}
            ],
        }
        files |= {f"sa_{number}.jpg": pair.image, f"sa_{number}.json": json.dumps(stored)}
    return build("sa1b", room, write_files(room / "source", files))


#: Name of a way -> the way.
WAYS: dict[str, Callable[..., Seen]] = {
    "jsonl": jsonl,
    "shards": shards,
    "tar": tar,
    "doctor": examined,
    "doctor of the build": examined_built,
    "build_records": own,
    "training": training,
    "evaluation": evaluation,
    "cris": cris,
    "refer": refer,
    "ecssd": ecssd,
    "coca": coca,
    "lip": lip,
    "sa1b": sa1b,
}
