"""Digests find every change, and say where it is."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from refseg_jax.checkpoints import manifest
from refseg_jax.checkpoints.manifest import Soundness


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "big").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "a" / "small").write_bytes(b"x")
    (tmp_path / "empty").touch()
    manifest.write(tmp_path)
    return tmp_path


def test_sound(folder: Path) -> None:
    assert manifest.check(folder) == (Soundness.SOUND, "")
    table = json.loads((folder / manifest.NAME).read_text())["files"]
    assert table["a/small"] == {
        "bytes": 1,
        # `printf x | sha256sum`
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    }
    assert sorted(table) == ["a/b/big", "a/small", "empty"]
    assert not (folder / f"{manifest.NAME}.partial").exists()


def test_every_bit_of_a_file_counts(folder: Path) -> None:
    path = folder / "a" / "b" / "big"
    content = path.read_bytes()
    for place in (0, 5000, len(content) - 1):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            soundness, reason = manifest.check(folder)
            assert soundness is Soundness.DAMAGED
            assert str(path) in reason
            assert "\n" not in reason
    path.write_bytes(content)
    assert manifest.check(folder).soundness is Soundness.SOUND


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "0 bytes instead of 1"), (b"xx", "2 bytes"), (None, "missing")]
)
def test_size_and_presence(folder: Path, content: bytes | None, reason: str) -> None:
    path = folder / "a" / "small"
    path.unlink() if content is None else path.write_bytes(content)
    verdict = manifest.check(folder)
    assert verdict.soundness is Soundness.DAMAGED
    assert f"{path}: {reason}" in verdict.reason


def test_file_replaced_by_a_folder(folder: Path) -> None:
    (folder / "a" / "small").unlink()
    (folder / "a" / "small").mkdir()
    assert manifest.check(folder).soundness is Soundness.DAMAGED


@pytest.mark.parametrize("name", ["a/small", "empty"])
def test_a_pipe_in_the_place_of_a_file_is_not_opened(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert manifest.check(folder).reason == f"{folder / name}: is no regular file"


def test_files_of_others_are_ignored(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert manifest.check(folder).soundness is Soundness.SOUND


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a damaged file"])
def test_a_damaged_manifest_is_told_from_damaged_files(folder: Path, beside: bool) -> None:
    """Whichever bit flips: the reason is the manifest, unless the bit is white space of its JSON."""
    path = folder / manifest.NAME
    content = path.read_bytes()
    if beside:
        (folder / "a" / "small").write_bytes(b"y")
    told = 0
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        verdict = manifest.check(folder)
        if verdict.soundness is Soundness.SOUND:
            assert not beside
            assert json.loads(changed) == json.loads(content)
        elif str(path) in verdict.reason:
            assert verdict.soundness is Soundness.DAMAGED
            assert "nothing proves the files beside it" in verdict.reason
            told += 1
        else:
            assert beside and str(folder / "a" / "small") in verdict.reason
        assert "\n" not in verdict.reason
    assert told > len(content) // 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"3",
        b"{}",
        b'{"files": 3}',
        b'{"files": {}, "sha256": 1}',
        b"[" * 10**5,
        b"9" * 10**4,
    ],
)
def test_hostile_manifest(folder: Path, content: bytes) -> None:
    (folder / manifest.NAME).write_bytes(content)
    verdict = manifest.check(folder)
    assert verdict.soundness is Soundness.DAMAGED
    assert "damaged" in verdict.reason
    assert "\n" not in verdict.reason


def test_manifest_with_its_own_digest_but_not_ours(folder: Path) -> None:
    """A table that is consistent but not of our form, or that points out of the folder."""
    for files in (
        {"a/small": 3},
        {"a/small": {}},
        {"/etc/hostname": {"bytes": 0, "sha256": ""}},
        {"../x": {"bytes": 0, "sha256": ""}},
        [],
    ):
        forged = {"files": files, "sha256": manifest._table_digest(files)}
        (folder / manifest.NAME).write_text(json.dumps(forged))
        verdict = manifest.check(folder)
        assert verdict.soundness is Soundness.DAMAGED, files
        assert "no manifest" in verdict.reason


def test_added_files_are_named_and_hidden_ones_are_not(folder: Path) -> None:
    for name in ("notes.txt", "a/more", "a/manifest.json", ".DS_Store", ".cache/x", "a/._small"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    assert manifest.added(folder, manifest.read(folder)) == [
        "a/manifest.json",
        "a/more",
        "notes.txt",
    ]
    assert manifest.check(folder) == (Soundness.SOUND, "")


def test_a_file_of_the_manifests_name_further_down_is_covered(folder: Path) -> None:
    (folder / "a" / manifest.NAME).write_text("{}")
    manifest.write(folder)
    (folder / "a" / manifest.NAME).write_text("[]")
    assert str(folder / "a" / manifest.NAME) in manifest.check(folder).reason


def test_missing_manifest(folder: Path) -> None:
    (folder / manifest.NAME).unlink()
    assert not manifest.present(folder)
    verdict = manifest.check(folder)
    assert verdict.soundness is Soundness.UNVERIFIED
    assert str(folder / manifest.NAME) in verdict.reason


def test_a_file_is_rewritten_with_its_entry_and_nothing_else(folder: Path) -> None:
    manifest.rewrite(folder, "a/small", b"other")
    assert (folder / "a" / "small").read_bytes() == b"other"
    assert manifest.check(folder) == (Soundness.SOUND, "")
    assert not list(folder.rglob("*.partial"))
    # What has changed by itself is not taken for right.
    (folder / "empty").write_bytes(b"x")
    manifest.rewrite(folder, "a/small", b"third")
    assert "empty: 1 bytes instead of 0" in manifest.check(folder).reason
    (folder / manifest.NAME).write_bytes(b"{")
    manifest.rewrite(folder, "a/small", b"fourth")
    assert (folder / "a" / "small").read_bytes() == b"fourth"
    assert manifest.check(folder).soundness is Soundness.DAMAGED


def test_a_rewriting_that_is_cut_short_damages_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for last in range(20):
        left = [last]

        def cut(path: Path, to: Path, left: list[int] = left) -> Path:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            path.rename(to)
            return to

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", cut)
            manifest.rewrite(folder, "a/small", b"other")
        content = (folder / "a" / "small").read_bytes()
        if left[0] >= 0:
            assert (content, manifest.check(folder).soundness) == (b"other", Soundness.SOUND)
            break
        assert content in (b"x", b"other")
        assert manifest.check(folder).soundness is Soundness.UNVERIFIED
        (folder / "a" / "small").write_bytes(b"x")
        manifest.write(folder)
    assert last == 2


def test_a_file_that_cannot_be_written_changes_nothing(folder: Path) -> None:
    (folder / f"{manifest.NAME}.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        manifest.rewrite(folder, "a/small", b"other")
    assert (folder / "a" / "small").read_bytes() == b"x"
    assert manifest.check(folder) == (Soundness.SOUND, "")
