"""tools.score: on what an evaluation dumps, on files of other systems, and on what is wrong."""

import base64
import dataclasses
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_jax.batch import Batch, HostBatch
from refseg_jax.cli.score import main, score
from refseg_jax.evaluation import predictions
from refseg_jax.evaluation.protocols import PROTOCOLS, build_protocols
from refseg_jax.reporting import tables as report
from tests.refseg_jax.evaluation.protocols.cases import Case, random_cases, state_of
from tests.refseg_jax.training.tiny_run import (
    build_many_sizes,
    colour_forward,
    colour_params,
    make_evaluator,
)

#: `part` is a granularity too, and has to come first.
ALL = ",".join(sorted(PROTOCOLS, key=lambda name: name != "part"))

Change = Callable[[dict[str, Any]], object]


def _write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def _prediction(case: Case) -> dict[str, Any]:
    segmentation = predictions.encode(case.prediction)
    return {"id": case.id, "segmentation": segmentation, "present": case.present}


def _reference(case: Case) -> dict[str, Any]:
    known = {n: getattr(case, n) for n in ("granularity", "group", "category", "empty", "form")}
    return {"id": case.id, "segmentation": predictions.encode(case.target), **known}


def _files(folder: Path, cases: list[Case]) -> tuple[Path, Path]:
    return (
        _write(folder / "P.jsonl", [_prediction(case) for case in cases]),
        _write(folder / "R.jsonl", [_reference(case) for case in cases]),
    )


def _command(files: tuple[Path, Path], *more: str, protocol: str = "cris") -> list[str]:
    predicted, references = files
    return [
        f"--protocol={protocol}",
        f"--predictions={predicted}",
        f"--references={references}",
        *more,
    ]


def _error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    "protocols",
    ["cris,gres,gres_paper,grd,refcocom,lavt", "part,semseg,sod,rvos,saco,pbench,gseval"],
)
def test_an_evaluation_and_the_score_of_its_dump_agree_to_the_last_digit(
    tmp_path: Path, protocols: str
) -> None:
    build_many_sizes(tmp_path / "data")
    forward = colour_forward()
    evaluator = make_evaluator(tmp_path / "data", forward, dump=tmp_path / "dump")
    batches = evaluator.batches

    def named() -> list[HostBatch]:
        """With what the tiny dataset has none of: groups, categories, targets without a pixel."""
        return [
            host._replace(
                batch=_without_pixels(host.batch),
                meta=tuple(
                    dataclasses.replace(
                        meta,
                        groups=tuple(name[:4] for name in meta.pair_ids),
                        categories=tuple(name[-1:] for name in meta.pair_ids),
                    )
                    for meta in host.meta
                ),
            )
            for host in batches()
        ]

    evaluator = dataclasses.replace(
        evaluator, batches=named, protocols=build_protocols(protocols), prefix="val/"
    )
    scores = evaluator.evaluate(colour_params(forward), 0)
    out = tmp_path / "new" / "scores.json"
    dump = tmp_path / "dump"
    files = dump / "predictions.jsonl", dump / "references.jsonl"
    assert main(_command(files, f"--json={out}", protocol=protocols)) == 0
    found = json.loads(out.read_text())
    counted = {key for key in scores if key.endswith("count") or key == "val/quarantined"}
    assert {f"val/{key}": value for key, value in found.items()} == {
        key: value for key, value in scores.items() if key not in counted
    }
    assert any(0.05 < value < 0.95 for value in found.values())
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    bare = [line for line in lines if not coco_mask.area(line["segmentation"])]
    assert {line["empty"] for line in bare} == {True, False}


def _without_pixels(batch: Batch) -> Batch:
    """The reference of each first pair is wiped out; `present` still says that there is a target."""
    native = np.array(batch.native)
    native[:, :, 0] = 0
    return dataclasses.replace(batch, native=native)


@pytest.mark.parametrize("order", ["same", "shuffled", "reversed"])
def test_files_in_any_order_give_the_scores_of_the_pairs(tmp_path: Path, order: str) -> None:
    cases = random_cases(0, 150)
    predicted, references = _files(tmp_path, cases)
    lines = [_reference(case) for case in cases]
    if order != "same":
        random.Random(0).shuffle(lines) if order == "shuffled" else lines.reverse()
        _write(references, lines)
    states = score(predicted, references, ALL)
    for state, protocol in zip(states, build_protocols(ALL), strict=True):
        expected = state_of(protocol, cases)
        assert state.compute() == expected.compute()
        assert state.counts() == expected.counts()


def test_what_is_printed_and_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = random_cases(1, 100)
    out = tmp_path / "scores.json"
    assert main(_command(_files(tmp_path, cases), f"--json={out}", protocol="gres")) == 0
    scores = state_of(build_protocols("gres")[0], cases).compute()
    assert json.loads(out.read_text()) == scores
    assert {"gIoU", "cIoU", "N_acc", "T_acc", "Pr@0.7", "part/gIoU"} <= scores.keys()
    assert all(0 <= value <= 1 for value in scores.values())
    printed = capsys.readouterr().out
    protocol = build_protocols("gres")[0]
    assert printed.startswith(report.table(scores, protocol.columns))
    assert printed.splitlines()[-2:] == [
        "100 pairs",
        f"gres: comparable with {protocol.comparable}",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P.jsonl", "R.jsonl", "scores.json"]


def test_min_pixels_takes_the_place_of_the_answer(tmp_path: Path) -> None:
    cases = random_cases(2, 300, largest=200)
    files = _files(tmp_path, cases)
    (found,) = score(*files, "gres", min_pixels=50)
    (expected,) = build_protocols("gres", min_pixels=50)
    assert found.compute() == state_of(expected, cases).compute()
    assert found.compute() != score(*files, "gres")[0].compute()


def test_without_an_answer_a_mask_that_is_not_empty_is_one(tmp_path: Path) -> None:
    cases = random_cases(3, 300)
    files = _files(tmp_path, cases)
    lines = [_prediction(case) for case in cases]
    for line in lines:
        del line["present"]
    _write(files[0], lines)
    told = [dataclasses.replace(case, present=bool(case.prediction.any())) for case in cases]
    assert (
        score(*files, "gres")[0].compute() == state_of(build_protocols("gres")[0], told).compute()
    )


def test_segmentations_of_every_kind_are_read(tmp_path: Path) -> None:
    """Polygons that overlap are united; RLE may be uncompressed, in parts, or have empty runs."""
    size, shape = [6, 8], (6, 8)
    boxes = [[1, 1, 5, 1, 5, 4, 1, 4], [3, 2, 7, 2, 7, 5, 3, 5]]
    rles: Any = coco_mask.frPyObjects(boxes, *shape)
    united = coco_mask.decode(coco_mask.merge(rles)).astype(bool)
    one, other = (coco_mask.decode(rle).astype(bool) for rle in rles)
    assert (one & other).any()
    runs = [0, *np.diff(np.flatnonzero(np.diff(united.T.ravel(), prepend=0, append=0))).tolist()]
    start = int(np.argmax(united.T.ravel()))
    uncompressed = [start, *runs[1:]]
    uncompressed.append(48 - sum(uncompressed))
    with_an_empty_run = [start - 1, 0, 1, *uncompressed[1:]]
    runs_of_it: Any = {"size": size, "counts": with_an_empty_run}
    compressed: Any = coco_mask.frPyObjects(runs_of_it, *shape)
    kinds = [
        boxes,
        [{"size": size, "counts": r["counts"].decode()} for r in rles],
        predictions.encode(united),
        {"size": size, "counts": uncompressed},
        {"size": size, "counts": with_an_empty_run},
        {"size": size, "counts": compressed["counts"].decode()},
    ]
    nothing = [[], None, {}, {"size": size, "counts": [48]}, [[3, 2, 3, 2, 3, 2]]]
    mask = predictions.encode(united)
    for number, (segmentation, whole) in enumerate(
        [*((kind, True) for kind in kinds), *((kind, False) for kind in nothing)]
    ):
        reference = {"id": 7, "segmentation": segmentation}
        files = (
            _write(tmp_path / "P.jsonl", [{"id": "7", "segmentation": mask, "present": whole}]),
            _write(tmp_path / "R.jsonl", [reference]),
        )
        assert score(*files, "gres")[0].compute()["gIoU"] == 1.0, number
        if isinstance(segmentation, dict) and segmentation:
            files = (_write(tmp_path / "P.jsonl", [{**reference, "present": whole}]), files[1])
            assert score(*files, "grd")[0].compute()["mIoU"] == 1.0, number


@pytest.mark.parametrize("as_file", [False, True])
def test_sod_takes_maps(tmp_path: Path, as_file: bool) -> None:
    rng = np.random.default_rng(4)
    grey = rng.integers(0, 256, (30, 40)).astype(np.uint8)
    target = rng.random((30, 40)) < 0.3
    case = Case("a", grey > 128, target, True, "salient", "", "")
    text = predictions.encode_map(grey)
    if as_file:
        (tmp_path / "a.png").write_bytes(base64.b64decode(text))
        text = "a.png"
    files = _files(tmp_path, [case])
    _write(files[0], [{**_prediction(case), "map": text}])
    error = np.abs((grey - grey.min()) / np.ptp(grey) - target).mean()
    found = score(*files, "sod")[0].compute()
    assert abs(found["MAE"] - error) < 1e-12
    assert found["salient/MAE"] == found["MAE"]


def _changed(folder: Path, predicted: Change | None, reference: Change | None) -> tuple[Path, Path]:
    """Files of three pairs, in the second line of which something is changed."""
    cases = random_cases(5, 3)
    files = _files(folder, cases)
    for path, change, make in zip(
        files, (predicted, reference), (_prediction, _reference), strict=True
    ):
        if change is not None:
            lines: list[Any] = [make(case) for case in cases]
            given = change(lines[1])
            lines[1] = lines[1] if given is None else given
            _write(path, lines)
    return files


def _png(mode: str, size: tuple[int, int]) -> str:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda line: [1], "is a list, not a JSON object"),
        (lambda line: line.pop("id"), "P.jsonl:2: is a str"),
        (lambda line: line.update(id=None), '"id" is None; give every pair a name'),
        (
            lambda line: line.update(id="pair 0"),
            "the id 'pair 0' stands in this file for the second",
        ),
        (lambda line: line.update(id="x"), "the id 'x' is not in .*R.jsonl .2 ids are in one file"),
        (lambda line: line.update(segmentation=[]), '"segmentation" is no RLE'),
        (lambda line: line["segmentation"].update(size=[4]), r'"size" is \[4\], not'),
        (lambda line: line["segmentation"].update(size=[0, 4]), "0 x 4 pixels; there are 1 to"),
        (lambda line: line["segmentation"].update(size=[10**9, 4]), "pixels; there are 1 to"),
        (lambda line: line["segmentation"].update(counts="0"), "runs do not fill"),
        (lambda line: line["segmentation"].update(counts="o"), "truncated"),
        (lambda line: line["segmentation"].update(counts="☂"), "counts are damaged"),
        (lambda line: line["segmentation"].update(counts=None), "counts are a NoneType"),
        (lambda line: line.update(present=1), '"present" is 1, not true or false'),
        (lambda line: line.update(map=5), '"map" is no text'),
        (lambda line: line.update(map="@"), "the map cannot be read"),
        (lambda line: line.update(map="none.PNG"), "the map cannot be read.*No such file"),
        (
            lambda line: line.update(map="AAAA"),
            "the map is damaged or no picture; save it as a grey",
        ),
        (
            lambda line: line.update(map="AAAAGGZ0eXBoZWlj"),
            "the map is HEIC; save it as a grey PNG",
        ),
        (lambda line: line.update(map="/9j/4AAQ"), "the map is JPEG; save it as a grey PNG"),
        (lambda line: line.update(map="none.png"), "the map cannot be read.*No such file"),
        (lambda line: line.update(map=_png("L", (500, 400))), "400 x 500 pixels in mode L; it has"),
        (
            lambda line: line.update(map=_png("RGB", tuple(line["segmentation"]["size"][::-1]))),
            "in mode RGB; it has to be grey",
        ),
    ],
)
def test_a_bad_prediction_is_one_line_that_names_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, reason: str
) -> None:
    files = _changed(tmp_path, change, None)
    out = tmp_path / "out.json"
    error = _error(capsys, _command(files, f"--json={out}", protocol="sod"))
    assert error.startswith(f"error: {files[0]}:2: ")
    assert re.search(reason, error), error
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda line: line.update(id="pair 0"), "R.jsonl:2: the id 'pair 0' stands in this file"),
        (lambda line: line.pop("segmentation") and None, 'R.jsonl:2: no "segmentation"'),
        (lambda line: line.update(segmentation=5), "R.jsonl:2: the segmentation is a int"),
        (
            lambda line: line.update(segmentation=predictions.encode(np.ones((99, 98)))),
            r"R.jsonl:2: the reference has 99 x 98 pixels .*the prediction .*P.jsonl:2",
        ),
        (lambda line: line.update(segmentation=[[1, 2, 3]]), "R.jsonl:2: .*odd number"),
        (
            lambda line: line.update(
                segmentation=[[0, 0, 0, 1, line["segmentation"]["size"][1] + 2, 1]]
            ),
            "R.jsonl:2: a polygon leaves the prediction's .*own size, or references as RLE",
        ),
        (
            lambda line: line.update(granularity="prat"),
            "R.jsonl:2: unknown granularity 'prat': did",
        ),
        (lambda line: line.update(form="kinds"), "R.jsonl:2: unknown form 'kinds': did you mean"),
        (lambda line: line.update(category=7), 'R.jsonl:2: "category" is 7, not a text'),
        (lambda line: line.update(empty=0), 'R.jsonl:2: "empty" is 0, not true or false'),
        (lambda line: line.update(category=None), "R.jsonl:2: pair 'pair 1' has no category"),
    ],
)
def test_a_bad_reference_is_one_line_that_names_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, reason: str
) -> None:
    files = _changed(tmp_path, None, change)
    error = _error(capsys, _command(files, protocol="semseg"))
    assert re.search(reason, error), error


def test_files_that_are_none_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _files(tmp_path, random_cases(6, 3))
    nowhere = tmp_path / "nowhere"
    for pair, flag in (((nowhere, files[1]), "predictions"), ((files[0], nowhere), "references")):
        assert f"{nowhere}: is no file; check --{flag}" in _error(capsys, _command(pair))
    files[0].write_bytes(files[0].read_bytes().splitlines(True)[0] + b'{"id": "\xff"}\n')
    assert f"{files[0]}:2: is not UTF-8" in _error(capsys, _command(files))
    files[0].write_text("\n" + "[" * 100_000 + "\n")
    assert f"{files[0]}:2: is no JSON" in _error(capsys, _command(files))
    files[0].write_text("\n \n")
    assert f"{files[0]}: has no lines" in _error(capsys, _command(files))
    assert "unknown protocol 'criss': did you mean" in _error(
        capsys, _command(files, protocol="criss")
    )
    assert "min_pixels=50 is for gres" in _error(capsys, _command(files, "--min_pixels=50"))
    assert "is a folder; name a file" in _error(capsys, _command(files, f"--json={tmp_path}"))
    assert "--json=.: is a folder" in _error(capsys, _command(files, "--json=."))


def test_a_prediction_too_few_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = random_cases(7, 5)
    files = _files(tmp_path, cases)
    _write(files[0], [_prediction(case) for case in cases[:4]])
    error = _error(capsys, _command(files))
    assert error == f"error: {files[1]}:5: the id 'pair 4' is not in {files[0]}\n"


def test_an_id_that_stands_twice_before_its_partner_comes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = random_cases(8, 5)
    files = _files(tmp_path, cases)
    _write(files[0], [_prediction(case) for case in (cases[0], *cases)])
    _write(files[1], [_reference(case) for case in cases[::-1]])
    error = _error(capsys, _command(files))
    assert (
        error == f"error: {files[0]}:2: the id 'pair 0' stands in this file for the second time\n"
    )
