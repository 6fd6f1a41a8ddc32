import contextlib
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from input_pipeline.datasets.registry import DATASETS, Entry, Request
from refseg_jax.errors import UserError
from tests.input_pipeline.datasets import refcoco_files
from tests.input_pipeline.datasets.refcoco_files import (
    default_refs,
    image_path,
    read_records,
    ref,
    sentence,
    write_source,
)
from tools import build_dataset

ROOT = Path(build_dataset.__file__).resolve().parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    refs = [*default_refs(), ref(104, 1, 10, "val", sentence(7, "again"))]
    return write_source(tmp_path / "source", refs)


@pytest.fixture
def arguments(source: Path, tmp_path: Path) -> list[str]:
    return [
        "--dataset=refcoco/unc",
        f"--source_dir={source}",
        f"--data_dir={tmp_path / 'data'}",
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "refcoco" / "unc" / "1.0.0"


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}


def test_builds_and_says_what_is_in_it(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert build_dataset.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{folder}: built\ntrain: 1 images; published: 16,994\n")
    assert "refcoco/unc: 100%" in captured.err
    assert len(read_records(folder, "train")) == 1


def test_what_is_built_is_left_and_reported(
    arguments: list[str], source: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    build_dataset.main(arguments)
    before = state(folder)
    capsys.readouterr()
    said = f"{folder}: is built already (train, val), {source} was not read; --overwrite builds it"
    for more in ([], ["--splits=val"]):
        assert build_dataset.main([*arguments, *more]) == 0
        assert state(folder) == before
        assert capsys.readouterr().out.startswith(f"{said} again\ntrain: 1 images")


def test_a_split_that_was_not_built_is_an_error(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
):
    build_dataset.main([*arguments, "--splits=val"])
    before = state(folder)
    capsys.readouterr()
    assert build_dataset.main([*arguments, "--splits=val,train"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {folder}: is built already, without train; it has val, and --overwrite builds it "
        "again\n"
    )
    assert state(folder) == before


def test_overwrite_builds_again(arguments: list[str], source: Path, folder: Path):
    build_dataset.main(arguments)
    image_path(source, 2).unlink()
    assert build_dataset.main([*arguments, "--overwrite", "--skip_missing"]) == 0
    assert [r.image_id for r in read_records(folder, "val")] == ["1"]
    assert [p.name for p in folder.parent.iterdir()] == ["1.0.0"]


def test_a_failed_overwrite_keeps_the_old_dataset(
    arguments: list[str], source: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    build_dataset.main(arguments)
    before = state(folder)
    image_path(source, 2).unlink()
    capsys.readouterr()
    assert build_dataset.main([*arguments, "--overwrite"]) == 1
    assert capsys.readouterr().err.startswith("error: refcoco/unc: nothing was built, 1 problem;")
    assert state(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["1.0.0"]


def test_a_failed_build_leaves_what_was_there(
    arguments: list[str], source: Path, folder: Path, tmp_path: Path
):
    image = image_path(source, 2).read_bytes()
    image_path(source, 2).write_bytes(image[:-300])
    assert build_dataset.main(arguments) == 1
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", source)
    assert build_dataset.main([arguments[0], f"--source_dir={archive}", arguments[2]]) == 1
    data_dir = folder.parents[2]
    assert not data_dir.exists()

    (data_dir / "refcoco").mkdir(parents=True)
    assert build_dataset.main(arguments) == 1
    assert [path.name for path in data_dir.rglob("*")] == ["refcoco"]

    image_path(source, 2).write_bytes(image)
    assert build_dataset.main(arguments) == 0
    built = {*data_dir.rglob("*")}
    assert sorted(path.name for path in data_dir.iterdir()) == ["refcoco"]
    assert build_dataset.main(["--dataset=refcoco/google", *arguments[1:]]) == 1
    assert {*data_dir.rglob("*")} == built


def test_a_killed_overwrite_is_put_right_by_the_next_command(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
):
    build_dataset.main(arguments)
    before = state(folder)
    folder.rename(folder.with_name("replaced-1.0.0"))
    assert build_dataset.main(arguments) == 0
    assert "is built already" in capsys.readouterr().out
    assert state(folder) == before


_HELD = """
import sys, time
from pathlib import Path
from input_pipeline.building import conversion
from tools.build_dataset import main

image, held = sys.argv[1:3]
read_file = conversion.read_file

def wait_and_read(path):
    while str(path) == image and Path(held).exists():
        time.sleep(0.02)
    return read_file(path)

conversion.read_file = wait_and_read
sys.exit(main(sys.argv[3:]))
"""


def held(source: Path) -> Path:
    return source.with_name("held")


@contextlib.contextmanager
def build_in_its_middle(
    arguments: list[str], source: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A build in a process of its own, held in its second file as long as `held` is there."""
    held(source).touch()
    image = str(image_path(source, 2))
    with subprocess.Popen(
        [sys.executable, "-c", _HELD, image, str(held(source)), *arguments, "--num_workers=0"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not any_shard_is_whole(folder):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def any_shard_is_whole(folder: Path) -> bool:
    try:
        return any(folder.parent.glob("unfinished-*/*.done.npz"))
    except FileNotFoundError:  # A build that begins makes the folder anew.
        return False


def test_a_second_command_disturbs_no_build(
    arguments: list[str], source: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert build_dataset.main(arguments) == 0
    with build_in_its_middle([*arguments, "--overwrite"], source, folder) as first:
        capsys.readouterr()
        for more in ([], ["--overwrite"]):
            assert build_dataset.main([*arguments, *more]) == 1
            error = capsys.readouterr().err
            who = f"process {first.pid} on {platform.node()}"
            assert error == f"error: {folder}: {who} is building it; wait for it\n"
        held(source).unlink()
        assert first.wait(60) == 0
    assert len(read_records(folder, "val")) == 2
    assert list(folder.parent.iterdir()) == [folder]


def test_splits(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]):
    assert build_dataset.main([*arguments, "--splits=val"]) == 0
    assert not list(folder.glob("*train*"))
    assert "train:" not in capsys.readouterr().out


def test_a_folder_in_an_archive(arguments: list[str], source: Path, folder: Path, tmp_path: Path):
    archive = shutil.make_archive(str(tmp_path / "refer"), "zip", source.parent, source.name)
    assert build_dataset.main(arguments) == 0
    other = [a for a in arguments if "_dir=" not in a]
    inner = f"--source_dir={archive}/{source.name}"
    assert build_dataset.main([*other, inner, f"--data_dir={tmp_path / 'zip'}"]) == 0
    built = tmp_path / "zip" / folder.relative_to(folder.parents[2])
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in built.iterdir()}
    for path in folder.glob("*array_record*"):
        assert (built / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "zip").glob("unpacked*"))


def test_an_error_names_the_archive_and_what_may_be_meant(
    arguments: list[str],
    source: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    image_path(source, 2).unlink()
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", source.parent, source.name)
    flags = [arguments[0], arguments[2]]
    assert build_dataset.main([*flags, f"--source_dir={archive}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {archive}/refcoco/refs(unc).p: not there;")
    assert error.endswith(
        f"; it holds one folder, perhaps you mean --source_dir={archive}/source\n"
    )

    flags.append(f"--source_dir={archive}/source")
    missing = f"{archive}/{image_path(source, 2).relative_to(source.parent)}: not there"
    assert build_dataset.main(flags) == 1
    error = capsys.readouterr().err
    assert missing in error
    assert "unpacked" not in error and "perhaps" not in error
    assert build_dataset.main([*flags, "--skip_missing"]) == 0
    assert missing in (folder / "build_report.txt").read_text()
    assert "unpacked" not in capsys.readouterr().out


def test_no_folder_is_proposed_where_something_is_missed_within_it(
    arguments: list[str], source: Path, capsys: pytest.CaptureFixture[str]
):
    (source / "refcoco" / "refs(unc).p").unlink()
    archive = shutil.make_archive(str(source.parent / "all"), "zip", source, "refcoco")
    assert build_dataset.main([arguments[0], arguments[2], f"--source_dir={archive}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {archive}/refcoco/refs(unc).p: not there;")
    assert "perhaps" not in error


def test_papers_write_a_plus(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--dataset=refcoco+/unc", f"--source_dir={tmp_path}", f"--data_dir={tmp_path}"]
    assert build_dataset.main(flags) == 1
    assert f"error: {tmp_path}/refcoco+/refs(unc).p: not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=refcoco/umc"], "unknown dataset 'refcoco/umc': did you mean 'refcoco/unc'?"),
        (["--dataset=refcog/umd"], "did you mean 'refcocog/umd'?"),
        (["--dataset=xyz"], "there are: ade20k/150, ade20k/full"),
        (["--datset=scenes"], "--dataset"),
    ],
)
def test_mistyped_names(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        build_dataset.main([*flags, "--data_dir=x"])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=refcoco/unc"], "refcoco/unc: no --source_dir; give the folder"),
        (
            ["--dataset=refcoco/unc", "--source_dir=nowhere"],
            "nowhere: no such folder or archive; check",
        ),
        (
            ["--dataset=jsonl", "--source_dir=.", "--name=refcoco"],
            "--name=refcoco: a dataset of that name is known already; take another",
        ),
        (["--dataset=scenes", "--source_dir=x"], "scenes: --source_dir does not apply"),
        (["--dataset=scenes", "--splits=val"], "scenes: --splits does not apply"),
        (["--dataset=scenes", "--skip_missing"], "scenes: --skip_missing does not apply"),
    ],
)
def test_flags_that_do_not_fit(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert build_dataset.main([*flags, f"--data_dir={tmp_path / 'data'}"]) == 1
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def _fails_with(error: Exception) -> Callable[[Request], None]:
    def build(request: Request) -> None:
        raise error

    return build


def test_a_full_disk_is_one_line(tmp_path: Path):
    text = "write() failed: No space left on device; writing x.array_record; at byte 9"
    none = frozenset[str]()
    entry = Entry(none, none, lambda r: r.data_dir / "x", _fails_with(RuntimeError(text)))
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        build_dataset.run("x", entry, Request(tmp_path), overwrite=False)
    entry = Entry(none, none, lambda r: r.data_dir / "x", _fails_with(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        build_dataset.run("x", entry, Request(tmp_path), overwrite=False)


def test_a_disk_that_is_really_full(arguments: list[str], folder: Path):
    """A limit on the size of files stands for it; the records are 10 KB."""
    command = f"ulimit -f 4; exec {sys.executable} -m tools.build_dataset " + " ".join(arguments)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be written (File too large), nothing was built; free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not folder.parents[2].exists()


def test_no_tensorflow_no_torch(arguments: list[str]):
    code = (
        "import sys; from tools.build_dataset import main; code = main(sys.argv[1:]); "
        "bad = {'tensorflow', 'torch'} & set(sys.modules); assert not bad, bad; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_started_again_it_ends_with_the_same_bytes(
    how: signal.Signals, arguments: list[str], source: Path, folder: Path, tmp_path: Path
):
    whole = refcoco_files.build("refcoco/unc", source, tmp_path / "whole")
    with build_in_its_middle(arguments, source, folder) as process:
        process.send_signal(how)
        assert process.wait(60) == (128 + how if how == signal.SIGTERM else -how)
    assert not folder.exists()
    assert build_dataset.main(arguments) == 0
    assert list(folder.parent.iterdir()) == [folder]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }


def test_scenes_is_known_by_its_own_builder(tmp_path: Path):
    folder = DATASETS["scenes"].folder(Request(tmp_path))
    assert folder.is_relative_to(tmp_path / "scenes")
    assert not folder.exists()
