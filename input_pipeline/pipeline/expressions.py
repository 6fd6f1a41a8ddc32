"""Which expressions of a split are used, and the lines of the log on those that are not or are cut."""

import numpy as np
from absl import logging

from input_pipeline.rows import RowTable, of_granularities
from input_pipeline.settings import PipelineConfig
from input_pipeline.sources import DAMAGED, DatasetError, ExpressionTable, RecordSource
from refseg_jax.batch import GRANULARITIES
from refseg_jax.errors import UserError, shown
from refseg_jax.text.lengths import quoted


def chosen(config: PipelineConfig, table: ExpressionTable) -> ExpressionTable:
    """The expressions of the config's granularities."""
    return table.select(of_granularities(table, config.granularities))


def tokens_of(table: ExpressionTable) -> np.ndarray:
    """`ExpressionTable.tokens` of a table that was opened with a tokenizer."""
    assert table.tokens is not None
    return table.tokens


def checked_rows(config: PipelineConfig, rows: RowTable) -> RowTable:
    """The same rows.

    Raises:
        UserError: there are none.
    """
    if not len(rows):
        kinds = ", ".join(config.granularities)
        groups = " that images of a group share" if config.sampling == "group" else ""
        raise UserError(
            f"{config.dataset} {config.split}: no expression of {kinds}{groups}; set "
            "config.data.granularities to what the dataset has"
        )
    return rows


def tell_left_out(config: PipelineConfig, table: ExpressionTable) -> None:
    """Logs one line if `granularities` leaves out expressions that the split has."""
    kinds = table.granularity[table.position != DAMAGED]
    counts = dict(zip(GRANULARITIES, np.bincount(kinds, minlength=len(GRANULARITIES)), strict=True))
    left_out = {k: n for k, n in counts.items() if n and k not in config.granularities}
    if left_out:
        logging.info(
            "%s %s: config.data.granularities leaves out %d of %d expressions (%s)",
            *(config.dataset, config.split, sum(left_out.values()), len(kinds)),
            ", ".join(f"{name} {count}" for name, count in left_out.items()),
        )


def tell_texts(
    config: PipelineConfig, source: RecordSource, table: ExpressionTable, lost: str, section: str
) -> None:
    """Logs a line for the texts without a word, which are `lost`, and one for those that are cut.

    With anti-expressions, those are also the texts whose anti-expression alone is cut.
    """
    tokens, length = tokens_of(table), config.context_length
    where = f"{config.dataset} {config.split}"
    more = int(bool(config.anti_prefix))
    empty, cut = np.flatnonzero(tokens == 0), np.flatnonzero(tokens > length - more)
    if len(empty):
        logging.warning(
            "%s: %d of %d expressions have no word and are %s, e.g. %s",
            *(where, len(empty), len(tokens), lost, _example(source, table, int(empty[0]))),
        )
    if len(cut):
        longest = int(tokens[cut].max()) + more
        them = ", or their anti-expressions of one more token," if more else ""
        logging.warning(
            "%s: %d of %d expressions%s are longer than %d tokens of %s, and their last words are cut, "
            "e.g. %s; %s.context_length=%d would read all of them",
            *(where, len(cut), len(tokens), them, length, config.tokenizer),
            *(_example(source, table, int(cut[0])), section, longest),
        )


def _example(source: RecordSource, table: ExpressionTable, place: int) -> str:
    """An expression of a table, shown on one line."""
    try:
        record = source[int(table.record[place])]
    except DatasetError:
        return "one whose record cannot be read any more"
    expression = record.expressions[table.position[place]]
    return f"{quoted(expression.text)} ({shown(expression.id)})"
