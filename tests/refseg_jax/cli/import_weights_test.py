"""The command line, and that a run starts from what it wrote as from the source."""

import hashlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.checkpoints.params import load_params
from refseg_jax.cli.import_weights import FORMATS, main
from refseg_jax.errors import UserError
from refseg_jax.models.forward import Forward
from refseg_jax.models.unires import UniRES
from refseg_jax.models.unires_config import UniRESConfig
from refseg_jax.sharding import MeshConfig, abstract_params, make_mesh
from refseg_jax.weights.clip_files import load_towers
from tests.refseg_jax.weights.clip_sources import SMALL_MODEL, hf_folder, openai_file
from tests.refseg_jax.weights.torch_archive import Call, Global, torch_archive


@pytest.fixture(scope="module")
def target() -> dict[str, jax.ShapeDtypeStruct]:
    forward = Forward(lambda rngs: UniRES(UniRESConfig(**SMALL_MODEL), rngs=rngs))
    return abstract_params(forward.shapes, make_mesh(MeshConfig()))


def test_a_run_starts_from_the_folder_as_from_the_source(
    target: dict[str, jax.ShapeDtypeStruct], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, output = hf_folder(tmp_path / "source"), tmp_path / "out"
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    flags = [f"--source={source}", f"--output={output}", f"--sha256={digest}"]
    assert main(["--format=hf_clip", *flags]) == 0
    told = capsys.readouterr().out
    assert "entries read into" in told and f"--config.init.clip={output}" in told
    assert "unread: 1 (logit_scale): the temperature" in told
    assert "left to fresh weights: 2 (vision.high_tokens, vision.low_tokens): group tokens" in told
    config = UniRESConfig(**SMALL_MODEL)
    direct = load_towers(str(source), target, config)
    stored = load_towers(str(output), target, config)
    assert stored.keys() == direct.keys()
    for path, leaf in direct.items():
        np.testing.assert_array_equal(stored[path], leaf, err_msg=path)
        assert stored[path].sharding == leaf.sharding
    with pytest.raises(UserError, match=r"config\.model\.activation=quick_gelu"):
        load_towers(str(output), target, UniRESConfig(**SMALL_MODEL, activation="gelu"))
    # The sizes are the source's own: positions are resized when they are read.
    assert load_params(output)[0]["vision.position_embedding"].shape == (5, 128)
    assert main(["--format=hf_clip", *flags]) == 1
    assert "holds a checkpoint already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--format=hf_clip"],
            "/source/config.json: No such file or directory; it tells what the weights beside",
        ),
        (
            ["--format=openai_clip", "--preset=B/16"],
            "/source/ViT.pt: the model differs from these weights: set config.model.vision_heads=2",
        ),
        (["--format=openai_clip", f"--sha256={'0' * 64}"], "/source/ViT.pt: SHA-256 is "),
    ],
)
def test_what_does_not_fit_writes_nothing(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, output = openai_file(tmp_path / "source"), tmp_path / "out"
    assert main([*flags, f"--source={source}", f"--output={output}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}{words}") and error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("moment", ["before", "while", "after"])
@pytest.mark.parametrize("made", [False, True])
def test_a_signal_leaves_nothing_of_the_checkpoint(
    moment: str,
    made: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    source, output = hf_folder(tmp_path / "source"), tmp_path / "new" / "out"
    save, close = Checkpointer.save, Checkpointer.close

    def interrupted(self: Checkpointer, *arguments: Any, **options: Any) -> None:
        if moment != "before":
            save(self, *arguments, **options)
        if moment != "after":
            signal.raise_signal(signal.SIGTERM)

    def closed(self: Checkpointer) -> None:
        close(self)
        if moment == "after":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpointer, "save", interrupted)
    monkeypatch.setattr(Checkpointer, "close", closed)
    if made:
        output.mkdir(parents=True)
    flags = ["--format=hf_clip", f"--source={source}", f"--output={output}"]
    assert main(flags) == 143
    assert capsys.readouterr() == ("", "stopped by SIGTERM\n")
    assert not list(output.iterdir()) if made else not (tmp_path / "new").exists()
    monkeypatch.undo()
    assert main(flags) == 0


def test_an_output_below_a_file_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        flags = ["--format=hf_clip", "--source=/nowhere/at/all", f"--output={output}"]
        assert main(flags) == 1
        assert capsys.readouterr().err == (
            f"error: {output}: {tmp_path / 'file'} is a file, not a folder; name another --output\n"
        )


@pytest.mark.parametrize("error", [RecursionError, TypeError, MemoryError, RuntimeError])
def test_whatever_a_strange_file_raises_is_one_line(
    error: type[Exception],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def strange(_: object) -> Any:
        raise error("two\nlines")

    monkeypatch.setitem(FORMATS, "hf_clip", strange)  # pyright: ignore
    assert main(["--format=hf_clip", "--source=f.pt", f"--output={tmp_path / 'out'}"]) == 1
    told = f"error: f.pt: cannot be imported ({error.__name__} two lines); try another\n"
    assert capsys.readouterr().err == told


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def bit_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def hostile(path: Path) -> None:
    evil = Call(Global("os", "system"), f"touch {path.parent / 'ran'}")
    torch_archive(path, {}, wrap=lambda entries: {**entries, "x": evil})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "damaged"),
        (bit_flipped, "Bad CRC-32"),
        (hostile, "refused, it asks for 'os.sys"),
    ],
)
def test_a_damaged_or_hostile_file_is_one_line_and_writes_nothing(
    damage: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    source, output = openai_file(tmp_path / "source"), tmp_path / "out"
    damage(source)
    assert main(["--format=openai_clip", f"--source={source}", f"--output={output}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source}: ") and error.count("\n") == 1
    assert words in error
    assert not output.exists() and not (source.parent / "ran").exists()
