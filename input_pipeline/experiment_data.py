"""The data of an experiment, as its config's sections `data`, `eval` and `evals` describe it."""

from collections.abc import Callable, Iterable
from typing import Any

from input_pipeline import labels, oracle, pipeline
from input_pipeline.making import blank_row
from input_pipeline.settings import PipelineConfig
from input_pipeline.sources import DatasetError, RecordSource
from refseg_jax.batch import Batch, ClassList, HostBatch
from refseg_jax.errors import UserError
from refseg_jax.naming import construct


class ExperimentData:
    """Settings of the training data, and batches for the evaluations, of one experiment."""

    def __init__(
        self,
        config: Any,
        image_size: int,
        mask_stride: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Reads nothing yet.

        Args:
            config: config of the experiment; its sections `data`, `eval` and `evals` are used.
            image_size: side of the network's square input in pixels.
            mask_stride: network pixels per mask cell.
            process_index: index of this process.
            process_count: number of processes that share each batch.
            stop: as that of `input_pipeline.workers.Batches`.
        """
        self._config = config
        self._sizes = {"image_size": image_size, "mask_stride": mask_stride}
        self._process = {"process_index": process_index, "process_count": process_count}
        self._stop = stop

    def settings(self, **changes: Any) -> PipelineConfig:
        """`config.data` with the sizes that the model needs, and with `changes`.

        Raises:
            ValueError: a field is unknown; the message names the nearest.
        """
        fields = {**self._config.data.to_dict(), **self._sizes, **changes}
        return construct(PipelineConfig, fields, what="config.data")

    def check(self, entry: Any, field: str, cure: str) -> None:
        """Checks that an evaluation can read its split.

        Args:
            entry: value of `config.evals`.
            field: name of the entry, for the message.
            cure: what to do about a missing split, for the message.

        Raises:
            UserError: the dataset or the split does not exist, or `pipeline.eval_batches` refuses the
                settings.
        """
        self._check_source(entry.dataset, entry.split, field, cure)
        pipeline.check_eval(self._evaluated(entry))

    def check_oracle(self) -> None:
        """As `check`, for the split of `config.eval.oracle`."""
        if split := self._config.eval.oracle:
            cure = "or leave it out: --config.eval.oracle="
            self._check_source("", split, "config.eval.oracle", cure)

    def classes(self, entry: Any, field: str) -> ClassList:
        """The classes that every image of an entry's split is asked for.

        Args:
            entry: value of `config.evals`.
            field: name of the entry, for messages.

        Raises:
            UserError: the split cannot be read, the entry's granularities are not of one kind of
                class, or the dataset has no such classes.
        """
        cure = f"or leave it out: --{field}.when=never"
        self._check_source(entry.dataset, entry.split, field, cure)
        config = self._evaluated(entry)
        return pipeline.open_classes(config, _class_granularity(config, field))

    def label_batches(self, entry: Any) -> Iterable[HostBatch]:
        """This process's batches of all images of an entry's split, with the class of each pixel."""
        config, rows = self._evaluated(entry), self._config.eval.batch_size
        return pipeline.label_batches(
            config,
            _class_granularity(config, "config.evals"),
            batch_size=rows,
            stop=self._stop,
            **self._process,
        )

    def batches(self, entry: Any) -> Iterable[HostBatch]:
        """This process's batches of the split of an entry of `config.evals`."""
        rows = self._config.eval.batch_size
        return pipeline.eval_batches(
            self._evaluated(entry), batch_size=rows, stop=self._stop, **self._process
        )

    def blank_row(self, entry: Any) -> Batch:
        """A row of padding of `batches`, without a look at the dataset."""
        return blank_row(self._evaluated(entry), native=True)

    def blank_label_row(self, entry: Any) -> Batch:
        """A row of padding of `label_batches`, without a look at the dataset."""
        return blank_row(labels.label_settings(self._evaluated(entry)), labels=True)

    def oracle(self) -> dict[str, float]:
        """Scores of `config.eval.oracle` as `"oracle/<granularity>/mIoU"`, empty without that split."""
        data, split = self._config.data, self._config.eval.oracle
        if not split:
            return {}
        source = RecordSource(data.data_dir, data.dataset, split)
        known = oracle.oracle_scores(source, tuple(data.granularities))
        return {f"oracle/{name}": value for name, value in known.items()}

    def _evaluated(self, entry: Any) -> PipelineConfig:
        chosen, data = self._config.eval, self._config.data
        return self.settings(
            dataset=entry.dataset or data.dataset,
            split=entry.split,
            granularities=tuple(entry.granularities or data.granularities),
            shuffled_text=entry.shuffled,
            positives_only=entry.positives_only,
            pairs=chosen.pairs,
            canvas=tuple(chosen.canvas),
        )

    def _check_source(self, dataset: str, split: str, field: str, cure: str) -> None:
        data = self._config.data
        try:
            RecordSource(data.data_dir, dataset or data.dataset, split)
        except DatasetError as error:
            raise UserError(f"{field}: {error}; {cure}") from error


def _class_granularity(config: PipelineConfig, field: str) -> str:
    return labels.class_granularity(config.granularities, f"{field}.granularities")
