"""Paths in buckets: the same answers as on a disk, and one line for what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from refseg_jax.errors import UserError
from refseg_jax.storage import buckets


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket")


def test_a_bucket_answers_as_a_disk(folder: Path) -> None:
    for name in ("b.txt", "deep/er/a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        buckets.write(folder / name, name.encode())
    assert buckets.files(folder) == ["b.txt", "deep/er/a.txt"]
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "deep"]
    assert (folder / "deep").is_dir() and (folder / "b.txt").is_file()
    assert (folder / "deep/er/a.txt").read_text() == "deep/er/a.txt"
    assert buckets.size(folder / "b.txt") == 5
    assert buckets.absolute(folder) == folder
    with pytest.raises(FileNotFoundError):
        buckets.size(folder / "c.txt")

    before = buckets.versions(folder, "*.txt")
    assert [fact[:2] for fact in before] == [("b.txt", 5)]
    assert before == buckets.versions(folder, "*.txt")
    buckets.write(folder / "b.txt", b"other")
    assert before != buckets.versions(folder, "*.txt")
    assert (folder / "b.txt").read_bytes() == b"other"

    buckets.remove_tree(folder / "deep")
    buckets.remove_tree(folder / "deep")
    assert buckets.files(folder) == ["b.txt"]


def test_what_a_bucket_refuses_to_delete_stays(bucket: Path, monkeypatch) -> None:
    from gcsfs.core import GCSFileSystem
    from gcsfs.retry import HttpError

    def refuse(*_: object, **__: object) -> None:
        raise HttpError({"code": 503, "message": "later"})

    (bucket / "a.txt").write_text("a")
    monkeypatch.setattr(GCSFileSystem, "rm", refuse)
    buckets.remove_tree(bucket)
    assert buckets.files(bucket) == ["a.txt"]


def test_pathlib_may_have_seen_the_path(bucket: Path) -> None:
    assert str(Path("gs://bucket/x")) == "gs:/bucket/x"
    assert str(buckets.located(Path("gs://bucket/x"))) == "gs://bucket/x"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "gs://missing/x",
            "gs://missing: there is no such bucket; write its name as Google has it",
        ),
        ("gs://forbidden/x", "gs://forbidden: Forbidden: "),
        (
            "gs://forbidden/x",
            "; give these credentials the role Storage Object User on the bucket, or use others",
        ),
        (
            "gs://refused/x",
            "; give these credentials the role Storage Object User on the bucket, or use others",
        ),
        ("gs://", "gs://: it names no bucket; write gs://BUCKET/FOLDER"),
        ("s3://bucket/x", "s3://bucket/x: s3:// is not known; name a folder on a disk or gs://"),
    ],
)
def test_a_bucket_that_gives_nothing_gets_one_line(bucket_server, path: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        buckets.located(path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_network_that_is_absent_gets_one_line(bucket_server, monkeypatch) -> None:
    from gcsfs import core, retry

    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr(retry.asyncio, "sleep", at_once)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    core.GCSFileSystem.clear_instance_cache()
    with pytest.raises(
        UserError, match=r"gs://elsewhere: it cannot be reached .*; see to the network"
    ):
        buckets.located("gs://elsewhere/x")
    core.GCSFileSystem.clear_instance_cache()


def test_without_gcsfs_the_line_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from refseg_jax.storage.buckets import located\n"
        "try: located('gs://b/x')\n"
        "except Exception as error: print(repr(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = "gs://b: buckets need gcsfs, which is not installed; pip install 'refseg_jax[gcs]'"
    assert done.stdout == f'UserError("{line}")\n'


def test_what_must_lie_on_a_disk_says_so(tmp_path: Path) -> None:
    assert buckets.on_disk(str(tmp_path)) == tmp_path == buckets.located(tmp_path)
    with pytest.raises(UserError, match=r"^gs://b/x: this cannot lie in a bucket; copy it$"):
        buckets.on_disk("gs://b/x", "copy it")
    with pytest.raises(UserError, match=r"^s3://b/x: s3:// is not known"):
        buckets.on_disk("s3://b/x")


def test_errors_of_the_clients_are_told(tmp_path: Path) -> None:
    google = type("RefreshError", (Exception,), {"__module__": "google.auth.exceptions"})
    denied = ValueError("PERMISSION_DENIED: HTTP response code: 403")
    assert "no credentials (gone)" in str(buckets.trouble(google("gone")))
    assert "Storage Object User" in str(buckets.trouble(denied))
    assert "cannot be reached" in str(buckets.trouble(TimeoutError()))
    for error in (
        FileNotFoundError("x"),
        OSError(28, "No space left on device"),
        TimeoutError(110, "Connection timed out", "/nfs/data"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: another process is gone"),
        KeyError("x"),
        None,
    ):
        assert buckets.trouble(error) is None
    with pytest.raises(UserError, match=r"^gs://: PERMISSION_DENIED"), buckets.told():
        raise RuntimeError("cannot be read") from denied
    with pytest.raises(KeyError), buckets.told():
        raise KeyError("x")
    with pytest.raises(UserError, match=r"^mine$"), buckets.told():
        raise UserError("mine")


def test_tensorflow_is_never_asked_for_buckets() -> None:
    assert os.environ["EPATH_USE_TF"] == "false"
