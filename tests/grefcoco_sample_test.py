"""The real sample of gRefCOCO from its files to answers, as configs/grefcoco_rela.py tells it."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg_jax.cli import predict
from tools import build_dataset

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "grefcoco_rela.py"


def documented_command() -> list[str]:
    """The words behind `python` of the command for the sample."""
    text = ast.get_docstring(ast.parse(CONFIG.read_text())) or ""
    (command,) = re.findall(r"python (main\.py --config=\S+:tiny(?:.*\\\n)*.*)", text)
    return shlex.split(command.replace("\\\n", " "))


def expressions(sample: Path) -> dict[str, bool]:
    """Text -> whether it has a target."""
    refs = json.loads((sample / "grefcoco" / "grefs(unc).json").read_text())
    return {said["raw"]: not ref["no_target"] for ref in refs for said in ref["sentences"]}


@pytest.mark.slow
def test_the_smallest_rela_learns_the_sample_as_the_config_says(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, data, run = shared_data / "real_mini_grefcoco", tmp_path / "data", tmp_path / "run"
    if not sample.is_dir():
        pytest.skip(f"the real sample is not at {sample}")
    flags = ["--dataset=grefcoco/unc_raw", f"--source_dir={sample}", f"--data_dir={data}"]
    assert build_dataset.main(flags) == 0
    command = [x for x in documented_command() if not x.startswith("--workdir=")]
    subprocess.run(
        [sys.executable, *command, f"--workdir={run}", f"--config.data.data_dir={data}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=1800,
    )
    scores: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert scores["testB/count"] == 12
    assert (scores["testB/N_acc"], scores["testB/T_acc"]) == (1.0, 1.0)
    assert scores["testB/gIoU"] >= 0.85

    (image,) = (sample / "images" / "train2014").iterdir()
    said, out = expressions(sample), tmp_path / "out"
    flags = [f"--checkpoint={run}", f"--image={image}", f"--output_dir={out}", "--region_maps"]
    capsys.readouterr()
    assert predict.main([*flags, *(f"--text={text}" for text in said)]) == 0
    printed = capsys.readouterr().out.splitlines()
    for k, (text, there) in enumerate(said.items()):
        assert printed[k].startswith(f"{text}: ")
        assert printed[k].endswith("no match") != there
        with Image.open(out / f"{image.name}-{k}-mask.png") as mask:
            assert np.asarray(mask).any() == there
        assert (out / f"{image.name}-{k}-regions.png").stat().st_size > 10_000
