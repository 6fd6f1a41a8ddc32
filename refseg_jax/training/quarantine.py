"""Counts what damage leaves out of training, and stops a run that meets too much of it."""

import dataclasses

from absl import logging

from refseg_jax.batch import HostBatch
from refseg_jax.errors import UserError


class TrainingError(UserError):
    """Training cannot go on; the message says why and what to do."""


@dataclasses.dataclass
class Quarantine:
    """Counts damaged images of rows, and stops a run that meets too many of them.

    An image counts as damaged if it was left out, or some of its pairs. A row that could not be made
    counts as one image.

    Attributes:
        max_share: share of images in [0, 1] that may be damaged.
        images: images seen so far on this process, as often as rows had them.
        bad: damaged ones among them.
    """

    max_share: float
    images: int = 0
    bad: int = 0

    #: Images to see before the share is judged.
    grace: int = 200

    def check(self, host: HostBatch) -> None:
        """Counts one batch.

        Raises:
            TrainingError: more than `max_share` of all images so far are damaged.
        """
        for meta in host.meta:
            # One reason for each image of a group that is left out; several for pairs of a single one.
            bad = 1 if meta.error else min(len(meta.left_out), len(meta.image_ids))
            self.bad += bad
            self.images += max(1, bad, sum(map(bool, meta.image_ids)))
            if meta.error:
                logging.warning("quarantined row %s: %s", meta.key, meta.error)
            for reason in meta.left_out:
                logging.warning("left out of row %s: %s", meta.key, reason)
        if self.images >= self.grace and self.bad > self.max_share * self.images:
            raise TrainingError(
                f"{self.bad} of {self.images} images are damaged, more than the allowed "
                f"{self.max_share:.2%}: mend the dataset (the log names each of them) or raise "
                "config.loop.max_bad_share"
            )
