"""Shards made by Apache Beam, for datasets that outgrow a machine (extra `beam`).

A shard is one element: a worker makes its records and writes its file. The data folder must be one
that all workers see, e.g. on NFS.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from input_pipeline.building.conversion import Outcome
from refseg_jax.errors import UserError

if TYPE_CHECKING:
    from input_pipeline.building.shards import Shard


@dataclasses.dataclass(frozen=True)
class Runner:
    """Where a pipeline runs.

    Attributes:
        name: Beam's, e.g. `DirectRunner`, `FlinkRunner`, `DataflowRunner`.
        options: Beam's pipeline options, as on a command line.
    """

    name: str
    options: tuple[str, ...] = ()


def write_shards(todo: "Sequence[Shard]", maker: Callable[[Any], Outcome], runner: Runner) -> None:
    """Runs one pipeline that writes every shard with its summary.

    Args:
        todo: shards that are not there yet.
        maker: an item to its outcome; picklable.
        runner: where.

    Raises:
        UserError: Beam is not installed.
    """
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "Apache Beam is not installed; pip install 'refseg_jax[beam]', or leave out --runner"
        ) from None
    options = pipeline_options.PipelineOptions(list(runner.options))
    with apache_beam.Pipeline(runner=runner.name, options=options) as pipeline:
        spread = pipeline | apache_beam.Create(list(todo)) | apache_beam.Reshuffle()
        _ = spread | apache_beam.Map(_write, maker)


def _write(shard: "Shard", maker: Callable[[Any], Outcome]) -> None:
    # Late: TFDS is slow to import, and who asks for the name of a runner does not need it.
    from input_pipeline.building import shards

    shards.write_shard(shard, map(maker, shard.items))
