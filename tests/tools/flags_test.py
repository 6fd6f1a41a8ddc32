"""The rules that all command lines share, as one table over all commands."""

import argparse
import contextlib
import importlib
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

import main
from configs import scenes_unires
from refseg_jax.cli import experiment_flags

ROOT = Path(main.__file__).parent

#: Command -> its flags that name a file or folder (or something on the hub, or either).
PATHS = {
    "ablation": {"data_dir", "output_dir", "page", "json"},
    "calibrate": {"checkpoint", "data_dir", "json"},
    "build_dataset": {"data_dir", "source_dir", "image_dir", "config", "json"},
    "compile": {"config", "json", "hlo"},
    "dataset_page": set(),
    "demo": {"checkpoint"},
    "docs_pictures": {"run", "output_dir"},
    "scenes_page": set(),
    "doctor": {"data_dir", "source_dir", "image_dir", "config", "page", "json"},
    "export": {"checkpoint", "output", "env", "json", "space"},
    "feed": {"config", "data_dir", "json"},
    "import_weights": {"source", "output", "tokenizer", "json"},
    "predict": {"checkpoint", "image", "expressions", "output_dir", "video", "json"},
    "rvos_submission": {"checkpoint", "source_dir", "output_dir", "json"},
    "score": {"predictions", "references", "json"},
}
#: All others.
OTHERS = {
    "ablation": {"study", "steps", "seeds", "jobs"},
    "build_dataset": {
        *("dataset", "name", "mask_threshold", "splits", "num_workers", "skip_missing"),
        *("runner", "beam_options", "overwrite"),
    },
    "calibrate": {"step", "split", "dataset", "granularities", "t_acc"},
    "compile": {"topology", "slices", "mode", "largest_batch"},
    "dataset_page": {"write"},
    "demo": {
        *("thresholds", "host", "port", "max_megabytes", "max_pixels", "max_expressions"),
        *("max_waiting", "cache_megabytes"),
    },
    "docs_pictures": set(),
    "scenes_page": {"write"},
    "doctor": {"dataset", "mask_threshold", "splits", "num_workers"},
    "export": {"format", "step", "push", "private", "dry_run"},
    "feed": {"dataset", "images_per_second", "seconds"},
    "import_weights": {"format", "sha256", "preset"},
    "predict": {
        *("step", "text", "recursive", "group_maps", "region_maps", "maps", "fps", "no_overlay"),
        *("group", "heatmaps", "thresholds", "max_pixels", "format", "tile", "overlap"),
        "batch_size",
    },
    "rvos_submission": {"step", "split", "thresholds", "max_pixels"},
    "score": {"protocol", "min_pixels"},
}
#: A value of each flag that must be given.
VALUES = {
    **{"study": "group_tokens", "dataset": "scenes", "format": "rela", "protocol": "gres"},
    "topology": "cpu:2",
}


def _parser(command: str) -> argparse.ArgumentParser:
    module = importlib.import_module(f"tools.{command}")
    # Those of the library are called by a module of the same name.
    return sys.modules[module.main.__module__].make_parser()


def _actions(command: str) -> dict[str, argparse.Action]:
    actions = {action.dest: action for action in _parser(command)._actions}
    del actions["help"]
    return actions


def test_every_command_is_in_the_table() -> None:
    commands = {
        path.stem for path in (ROOT / "tools").glob("*.py") if "def main(" in path.read_text()
    }
    commands |= {path.parent.name for path in (ROOT / "tools").glob("*/__main__.py")}
    commands |= {
        p.stem for p in (ROOT / "refseg_jax/cli").glob("*.py") if "def main(" in p.read_text()
    }
    commands |= {path.parent.name for path in (ROOT / "refseg_jax/cli").glob("*/command.py")}
    assert commands == PATHS.keys() == OTHERS.keys()


@pytest.mark.parametrize("command", PATHS)
def test_every_flag_is_in_the_table(command: str) -> None:
    assert _actions(command).keys() == PATHS[command] | OTHERS[command]


@pytest.mark.parametrize("command", PATHS)
def test_the_home_folder_is_put_into_every_path(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    actions = _actions(command)
    needed = [f"--{name}={VALUES[name]}" for name in actions if name in VALUES]
    paths = [f"--{name}=~/{name}" for name in PATHS[command]]
    options = vars(_parser(command).parse_args([*needed, *paths]))
    for name in PATHS[command]:
        found = options[name][0] if isinstance(options[name], list) else options[name]
        assert str(found) == f"/home/me/{name}", name


@pytest.mark.parametrize("command", PATHS)
def test_no_flag_is_taken_for_a_longer_one(command: str) -> None:
    parser = _parser(command)
    assert not parser.allow_abbrev
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
        parser.parse_args(["--help_"])
    assert "error: " in said.getvalue()


#: Fields of a config that name a file or folder.
FIELDS = (
    *("data.data_dir", "data.tokenizer", "init.checkpoint", "init.clip", "init.swin", "init.bert"),
    *("init.lavt", "eval.dump"),
)


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> flags.FlagValues:
    """Flags as those of `main.py`, which keep no state."""
    values = flags.FlagValues()
    monkeypatch.setattr(experiment_flags, "FLAGS", values)
    monkeypatch.setenv("HOME", "/home/me")
    return values


def test_the_home_folder_is_put_into_flags_and_fields_of_an_experiment(
    values: flags.FlagValues, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["main.py", "--workdir=~/run", *(f"--config.{name}=~/{name}" for name in FIELDS)]
    config: Any = scenes_unires.get_config()
    config.mixture = {"more": {"data_dir": "~/more", "weight": 1.0}}
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    assert experiment_flags.parse(command) == ["main.py"]
    assert values.workdir == "/home/me/run"
    for name in FIELDS:
        found = values.config
        for part in name.split("."):
            found = found[part]
        assert found == f"/home/me/{name}"
    # Of the config file, not of the command line.
    assert values.config.mixture.more.data_dir == "/home/me/more"
    assert values.config.data.dataset == "scenes"


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # Of ml_collections.
def test_the_home_folder_is_put_into_the_name_of_the_config_file(
    values: flags.FlagValues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "from ml_collections import ConfigDict\ndef get_config(size):\n"
    text += "    return ConfigDict({'steps': int(size), 'data_dir': '~/d'})\n"
    (tmp_path / "mine.py").write_text(text)
    command = ["main.py", "--config=~/mine.py:3"]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=command)
    assert experiment_flags.parse(command) == ["main.py"]
    assert values.config.to_dict() == {"steps": 3, "data_dir": f"{tmp_path}/d"}


def test_every_text_field_that_names_a_place_is_tried() -> None:
    """A field of this kind that is new must be in the table above."""
    config = scenes_unires.get_config()
    named = [
        f"{group}.{name}"
        for group in ("data", "init", "eval")
        for name, value in config[group].items()
        if isinstance(value, str)
    ]
    others = {
        *("data.dataset", "data.split", "data.sampling", "data.resize", "data.mask_cells"),
        *("data.part_prompt", "data.anti_prefix"),
        *("init.clip_sha256", "eval.resample", "eval.protocol", "eval.oracle"),
        "eval.background",
    }
    assert {*named} - others == {*FIELDS}
