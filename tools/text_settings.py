"""What `tools.build_dataset` and `tools.doctor` count texts for: a config's tokenizer, or CLIP's."""

import runpy
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.sources import DatasetError, ExpressionTable, RecordSource, split_names
from refseg_jax.errors import UserError
from refseg_jax.text.lengths import USUAL, Lengths


class TextSettings(NamedTuple):
    """How texts are read.

    Attributes:
        tokenizer: as in `build_tokenizer`.
        lengths: the context lengths to count for, rising.
        prefix: tokens that an anti-expression has beside those of its text; 0 if there is none.
    """

    tokenizer: str = "clip"
    lengths: tuple[int, ...] = USUAL
    prefix: int = 0


def read_settings(config: str, dataset: str) -> TextSettings:
    """The settings with which a config reads a dataset.

    Args:
        config: a config file, or `FILE:PRESET`; `""` takes CLIP's tokenizer and the usual lengths.
        dataset: name of the dataset. Members of the config's mixture that train on it may have context
            lengths of their own.

    Raises:
        UserError: the config cannot be loaded.
    """
    if not config:
        return TextSettings()
    path, _, preset = config.partition(":")
    try:
        made: Any = runpy.run_path(path)["get_config"](*filter(None, [preset]))
        data, members = made.data, made.get("mixture", {}).values()
        own = [member for member in members if member.get("dataset") == dataset]
        read = own or [data]
        found = {int(member.get("context_length", data.context_length)) for member in read}
        prefix = any(member.get("anti_prefix", data.get("anti_prefix", "")) for member in read)
        return TextSettings(data.tokenizer, tuple(sorted(found)), int(prefix))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"--config={config}: {reason}; give a config of main.py, e.g. configs/scenes_unires.py"
        ) from None


def built_lines(folder: Path, data_dir: Path, settings: TextSettings) -> list[str]:
    """Lines about the texts of a built dataset that are cut, and about those without a word.

    Args:
        folder: folder of the dataset.
        data_dir: folder of all datasets.
        settings: how texts are read.
    """
    dataset = folder.parent.relative_to(data_dir).as_posix()
    lines = []
    try:
        for split in split_names(folder):
            source = RecordSource(str(data_dir), dataset, split)
            lines.append(_lengths(source, settings).line(split, *settings))
    except UserError as error:
        # A platform without CLIP's wheel, or a dataset that was damaged since: it is built all the same.
        lines.append(f"texts were not counted: {error}")
    return list(filter(None, lines))


def _lengths(source: RecordSource, settings: TextSettings) -> Lengths:
    # A build has the same files wherever it is made, so the table is not kept.
    table = ExpressionTable.of(source, settings.tokenizer, keep=False)
    assert table.tokens is not None
    found = Lengths()
    if not len(table):
        return found
    place = int(table.tokens.argmax())
    found.counts.update(table.tokens[table.tokens >= 0].tolist())
    try:
        record = source[int(table.record[place])]
        found.longest = record.expressions[table.position[place]].text
    except DatasetError:
        found.longest = ""
    return found
