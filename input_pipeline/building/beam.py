"""Writes shards with Apache Beam, for datasets that outgrow a machine (extra `beam`).

Each shard is one element of the pipeline: a worker makes its records and writes its file. All workers
must see the data folder, e.g. over NFS.
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
    """The Beam runner that executes a pipeline.

    Attributes:
        name: Beam's name of the runner, e.g. `DirectRunner`, `FlinkRunner`, `DataflowRunner`.
        options: Beam's pipeline options, in the form of command-line flags.
    """

    name: str
    options: tuple[str, ...] = ()


def write_shards(todo: "Sequence[Shard]", maker: Callable[[Any], Outcome], runner: Runner) -> None:
    """Runs one pipeline that writes every shard with its summary.

    Args:
        todo: the shards to write.
        maker: makes the outcome of an item; picklable.
        runner: executes the pipeline.

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
    # Imported late: TFDS is slow to import, and `Runner` alone does not need it.
    from input_pipeline.building import shards

    shards.write_shard(shard, map(maker, shard.items))
