"""What `tools.compile` says of flags, devices and figures; nothing is compiled here."""

import dataclasses
import importlib.util
import json
import re
import sys
from typing import Any

import pytest

from refseg_jax.errors import UserError
from refseg_jax.training.peaks import PEAKS, peak_of
from tests.refseg_jax.sharding_test import Card
from tools import compile as command
from tools.compile import topology
from tools.compile.child import Found
from tools.compile.command import compile_all, cures
from tools.compile.costs import Moved
from tools.compile.experiment import read_config
from tools.compile.figures import Figures, out_of_memory
from tools.compile.table import found_line, refusal, table
from tools.compile.topology import Topology
from tools.compile.works import MODES, Experiment

# ml_collections reads config files by a way that Python is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = "--config=configs/scenes_unires.py"
GIB = 2.0**30


def _said(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert command.main([CONFIG, *flags]) == 1
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5f:2x2"], "unknown kind of device 'v5f': did you mean 'v5p'?"),
        (["--topology=v5e:2x2,v7:2x2"], "unknown kind of device 'v7'"),
        (["--topology=v5e"], "chips along each axis of the network, e.g. v5e:2x2"),
        (["--topology=v5e:2x2x2"], "e.g. v5e:2x2"),
        (["--topology=v5p:2x2"], "e.g. v5p:2x2x1"),
        (["--topology=v5e:0x2"], "e.g. v5e:2x2"),
        (["--topology=cpu"], "cpu and a number, e.g. cpu:8"),
        (["--topology=local:2"], "give local, or cpu and a number"),
        (["--topology=cpu:2", "--slices=2"], "only TPUs have slices"),
        (["--topology=v5e:2x2", "--slices=0"], "--slices=0: give 1 or more"),
    ],
)
def test_a_topology_that_is_none_gets_one_line(capsys, flags, words):
    said = _said(capsys, *flags)
    assert said.startswith("error: --")
    assert words in said
    assert "\n" not in said


def test_without_the_compiler_for_tpus_the_line_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = _said(capsys, "--topology=v6e:4x4")
    assert "--topology=v6e:4x4: the compiler for TPUs is not installed" in said
    assert "pip install 'jax[tpu]==" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.mesh.fspd=2", "--config.mesh.fspd: "),
        ("--config.steps=some", "steps"),
        ("--config=configs/none.py", "none.py"),
    ],
)
def test_a_mistake_in_the_config_gets_the_line_of_main(capsys, flag, words):
    with pytest.raises(SystemExit) as ended:
        command.main([CONFIG, flag, "--topology=cpu:1"])
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said


def test_the_compiler_has_an_environment_of_its_own(monkeypatch, tmp_path):
    outer = {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": "--xla_dump_to=a", "HOME": "/home/me"}
    assert Topology("local").environment(outer) == outer
    forced = Topology("cpu:8").environment(outer)
    assert forced["JAX_PLATFORMS"] == "cpu"
    assert forced["XLA_FLAGS"] == "--xla_dump_to=a --xla_force_host_platform_device_count=8"
    spec = type("Spec", (), {"origin": str(tmp_path / "libtpu/__init__.py")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    tpu = Topology("v5e:2x2").environment(outer)
    assert tpu["JAX_PLATFORMS"] == "cpu"
    assert tpu["TPU_LIBRARY_PATH"] == str(tmp_path / "libtpu/libtpu.so")
    assert tpu["HOME"] == "/home/me"
    assert outer["JAX_PLATFORMS"] == "cuda"


def figures_of(**changes: Any) -> Figures:
    shown: dict[str, Any] = {
        "name": "training step",
        "device": "TPU v5 lite",
        "devices": 8,
        "hosts": 2,
        "mesh": {"data": 4, "fsdp": 2, "tensor": 1},
        "rows": 64,
        "field": "config.batch_size",
        "shape": (1, 8, 17),
        "fits": True,
        "state": 2 * GIB,
        "needed": 8 * GIB,
        "available": None,
        "seconds": 61.0,
        "temporaries": 5 * GIB,
        "flops": 4.0e12,
        "traffic": 80e9,
        "arithmetic_seconds": 0.02,
        "memory_seconds": 0.1,
        "moved": {"all-reduce": Moved(3, 2e9)},
    }
    return Figures(**{**shown, **changes})


def test_the_table_has_a_column_for_each_topology():
    bad = dataclasses.replace(
        figures_of(fits=False, needed=20 * GIB, flops=None, traffic=None, moved={}),
        temporaries=None,
        arithmetic_seconds=None,
        memory_seconds=None,
    )
    lines = table({"v5e:2x4": figures_of(), "v6e:2x4": bad}).splitlines()
    rows = {line[:24].strip(): line[24:].split("  ") for line in lines}
    assert lines[0].split() == ["v5e:2x4", "v6e:2x4"]
    found = {
        label: [cell.strip() for cell in cells if cell.strip()] for label, cells in rows.items()
    }
    assert found["devices"] == ["8 (data 4 x fsdp 2)"] * 2
    assert found["rows (a device)"] == ["64 (8)"] * 2
    assert found["fits"] == ["yes", "NO"]
    assert found["peak, GiB"] == ["8.000", "20.000"]
    assert found["FLOP a byte"] == ["50"]
    assert found["share of peak at best"] == ["20 %"]
    # 64 images in 0.1 s, of two hosts.
    assert found["images/s at best"] == ["640.0"]
    assert found["images/s a host"] == ["320.0"]
    assert found["all-reduce, number and GB"[:24].strip()]


def test_the_file_has_the_images_that_each_host_must_deliver(capsys, monkeypatch, tmp_path):
    """Of 64 rows of 4 images in 0.1 s, two hosts deliver 1280 images/s each."""
    one = figures_of(shape=(4, 1, 17))
    told = {**dataclasses.asdict(one), "found": None}
    monkeypatch.setattr("tools.compile.command._compile", lambda *_: iter([told]))
    request = {"mode": "train", "largest": False, "hlo": ""}
    found = compile_all([Topology("cpu:2")], request, [CONFIG])
    assert found.code == 0
    (written,) = found.content["topologies"]["cpu:2"]
    assert written["images_per_second_a_host"] == 1280.0
    assert written["images_per_second"] == 2560.0
    assert re.search(r"images/s a host +1280\.0$", capsys.readouterr().out, re.MULTILINE)
    unknown = dataclasses.replace(one, memory_seconds=None)
    assert unknown.images_per_second_a_host is None


def test_what_does_not_fit_gets_a_line_with_the_cures():
    config = read_config([CONFIG, "--config.optim.accumulation=2"])
    one = figures_of(fits=False, needed=51.04 * GIB, available=15.75 * GIB)
    line = refusal("v5e:2x4", one, cures(config, one))
    assert line == (
        "--topology=v5e:2x4: training step of 64 rows does not fit (51.0 of 15.75 GiB); try "
        "--config.mesh.fsdp=4, --config.model.remat=True, --config.optim.accumulation=4, "
        "a smaller --config.batch_size"
    )
    whole = dataclasses.replace(one, mesh={"data": 1, "fsdp": 8, "tensor": 1})
    assert "fsdp" not in " ".join(cures(config, whole))
    scored = dataclasses.replace(one, name="evaluation", field="config.eval.batch_size")
    assert cures(config, scored) == ["a smaller --config.eval.batch_size"]
    assert cures(config, dataclasses.replace(one, name="decode", field="")) == []


def test_the_line_on_the_largest_batch():
    one = figures_of(rows=96)
    assert found_line("v5e:2x4", one, Found(96, 104, 4)) == (
        "v5e:2x4: training step: --config.batch_size=96 fits, 104 do not (4 compilations)"
    )
    assert "no batch fits, not even 8 rows" in found_line("v5e:2x4", one, Found(0, 8, 3))


@pytest.mark.parametrize(
    ("text", "needed", "available"),
    [
        (
            "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (51.00G) exceeds available HBM (15.75G). HLO module: jit_f.",
            *(51 * GIB, 15.75 * GIB),
        ),
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 27.99G of "
            "15.48G hbm. Exceeded hbm capacity by 12.51G.",
            *(27.99 * GIB, 15.48 * GIB),
        ),
        ("no figures", None, None),
    ],
)
def test_the_compilers_words_on_memory_are_read(text, needed, available):
    assert out_of_memory(text) == (needed, available)


def test_every_kind_of_device_has_peaks_of_the_right_size():
    assert {"v4", "v5e", "v5p", "v6e", "tpu7x", "H100", "H200"} <= {p.name for p in PEAKS}
    assert set(topology.TPUS) <= {peak.name for peak in PEAKS}
    for peak in PEAKS:
        assert peak.source.startswith("https://")
        assert 1e14 < peak.flops < 3e15
        # None of them computes less than 50 operations in the time of a byte, or more than 700.
        assert 50 < peak.flops / peak.bandwidth < 700
        assert 16 * GIB <= peak.memory <= 192 * GIB
        assert all(peak_of(kind) is peak for kind in peak.kinds)
    assert peak_of("cpu") is None
    v5e = peak_of("TPU v5 lite")
    assert v5e is not None
    assert v5e.seconds(197e12, 819e9) == (1.0, 1.0)


SMALL = (
    *("image_size=32", "patch_size=8", "vision_width=32", "vision_layers=2", "vision_heads=2"),
    *("embedding_width=24", "text_width=16", "text_layers=1", "text_heads=2", "low_tokens=5"),
    *("high_tokens=3", "decoder_width=16", "decoder_heads=2", "decoder_hidden=32"),
    *("decoder_layers=2", "mask_stride=2"),
)


def _works(mode, *fields):
    flags = [f"--config.model.{field}" for field in SMALL]
    config = read_config([CONFIG, *flags, *fields])
    return list(Experiment(config, [Card(number) for number in range(8)]).works(mode))


def test_fsdp_cuts_the_state_of_a_device():
    whole, half, eighth = (
        _works("train", f"--config.mesh.fsdp={size}")[0].state for size in (1, 2, 8)
    )
    assert 0.5 <= half / whole < 0.52
    assert 0.125 <= eighth / whole < 0.15


@pytest.mark.parametrize("mode", MODES)
def test_the_works_of_a_mode(mode):
    found = _works(mode)
    names = {
        "train": ["training step"],
        # Of all entries of `config.evals`.
        "eval": ["evaluation"],
        "predict": ["encode_image", "encode_text", "decode"],
    }
    assert [one.name for one in found] == names[mode]
    assert all(one.shape == (1, 8, 17) for one in found)
    assert [one.rows for one in found] == {"train": [16], "eval": [32], "predict": [1] * 3}[mode]


@pytest.mark.parametrize(("images", "expressions"), [(3, 2), (8, 1)])
def test_a_predictor_of_groups_decodes_as_many_pairs_as_one_of_images(images, expressions):
    fields = [f"--config.model.group_size={images}", "--config.data.context_length=12"]
    config = read_config(["--config=configs/scenes_grser.py", *fields])
    found = Experiment(config, [Card(0)]).works("predict")
    assert {one.shape for one in found} == {(images, expressions, 12)}


def test_members_of_a_mixture_with_equal_rows_are_one_work(tmp_path):
    file = tmp_path / "mixed.py"
    file.write_text(
        "from configs.common import member\nfrom configs import scenes_unires\n"
        "def get_config():\n    config = scenes_unires.get_config()\n"
        "    config.mixture.a = member(split='train')\n"
        "    config.mixture.b = member(split='val', pairs=4)\n"
        "    config.mixture.c = member(split='test')\n"
        "    config.mixture.d = member(split='test', batch_size=32)\n    return config\n"
    )
    config = read_config([f"--config={file}", *(f"--config.model.{field}" for field in SMALL)])
    works = Experiment(config, [Card(0)]).works("train")
    assert [(w.name, w.shape, w.rows, w.field) for w in works] == [
        ("training step of a", (1, 8, 17), 16, "config.batch_size"),
        ("training step of b", (1, 4, 17), 16, "config.batch_size"),
        ("training step of d", (1, 8, 17), 32, "config.mixture.d.batch_size"),
    ]


def test_without_an_evaluation_there_is_none_to_compile():
    fields = [f"--config.evals.{name}.when=never" for name in ("val", "test", "shuffled")]
    with pytest.raises(UserError, match=r"^config\.evals: no entry is ever run"):
        _works("eval", *fields)


@pytest.mark.parametrize(
    ("mode", "field"), [("train", "config.batch_size"), ("eval", "config.eval.batch_size")]
)
def test_a_batch_that_the_devices_cannot_share_is_refused(mode, field):
    with pytest.raises(UserError, match=rf"^{field}=12 .* into the 8 pieces .* --{field}=8$"):
        _works(mode, f"--{field}=12")


def test_a_compiler_that_dies_gets_one_line(capsys, monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2; echo the last words >&2; exit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    request = {"mode": "train", "largest": False, "hlo": ""}
    with pytest.raises(UserError) as told:
        compile_all([Topology("cpu:2")], request, [CONFIG])
    assert str(told.value) == (
        "--topology=cpu:2: the compiler ended with exit code 7: the last words"
    )
    failed = "F1130 19:28:30.613129 19918 fusion_util.cc:5194] Check failed: no pad"
    program.write_text(f"#!/bin/sh\necho '{failed}' >&2; echo stack >&2; kill -ABRT $$\n")
    with pytest.raises(UserError, match=r"exit code -6: F1130 .* Check failed: no pad$"):
        compile_all([Topology("cpu:2")], request, [CONFIG])
    program.write_text(
        f"#!/bin/sh\necho '{json.dumps({'error': 'config.x: no'})}'; exec sleep 60\n"
    )
    with pytest.raises(UserError, match=r"^--topology=cpu:2: config\.x: no$"):
        compile_all([Topology("cpu:2")], request, [CONFIG])
