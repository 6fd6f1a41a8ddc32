"""Counts what damage leaves out of training, and stops a run that meets too much of it."""

import dataclasses

from absl import logging

from refseg_jax.batch import HostBatch
from refseg_jax.errors import UserError


class TrainingError(UserError):
    """Training cannot go on; the message says why and what to do."""


@dataclasses.dataclass
class Quarantine:
    """Counts damaged rows, and stops a run that meets too many of them.

    A row counts as damaged if all of it was left out, or some of its pairs.

    Attributes:
        max_share: share of rows in [0, 1] that may be damaged.
        rows: rows seen so far on this process.
        bad: damaged ones among them.
    """

    max_share: float
    rows: int = 0
    bad: int = 0

    #: Rows to see before the share is judged.
    grace: int = 200

    def check(self, host: HostBatch) -> None:
        """Counts one batch.

        Raises:
            TrainingError: more than `max_share` of all rows so far are damaged.
        """
        self.rows += len(host.meta)
        for meta in host.meta:
            self.bad += bool(meta.error or meta.left_out)
            if meta.error:
                logging.warning("quarantined row %s: %s", meta.key, meta.error)
            for reason in meta.left_out:
                logging.warning("left out of row %s: %s", meta.key, reason)
        if self.rows >= self.grace and self.bad > self.max_share * self.rows:
            raise TrainingError(
                f"{self.bad} of {self.rows} records are damaged, more than the allowed "
                f"{self.max_share:.2%}: mend the dataset (the log names each of them) or raise "
                "config.loop.max_bad_share"
            )
