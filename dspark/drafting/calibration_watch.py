"""The estimator beside a checkpoint, taken up anew when it was fitted again: a service goes on while `deepspec calibrate` writes.

A look asks the file system who the file is, at most every few seconds; only a new one is read. Whatever is wrong with it, the estimator in
use stays: estimates cost speed, never tokens. For the drafter's thread, between drafts, so no draft sees two of them.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from dspark.errors import ModelLoadError
from dspark.scheduling.calibration import CALIBRATION_FILE, Estimator
from dspark.scheduling.estimators import load_estimator

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
"""Between two looks."""
WEIGHTS = "*.safetensors"

Identity = tuple[int, int, int]
"""Of a file as it lies there: inode, time of change in ns, bytes."""


class WatchedCalibration:
    """What serves now, and what lies in the folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Load what is there. `clock` counts seconds. Raises ModelLoadError: a service does not start on a broken file."""
        self._folder = folder
        self._file = folder / CALIBRATION_FILE
        self._clock = clock
        self._seen = identity_of(self._file)  # before it is read: what changes meanwhile is read again
        self._weights = self._identity_of_weights()
        self._next_look_s = clock() + PERIOD_S
        self.estimator: Estimator | None = load_estimator(folder)
        """None: never calibrated."""
        self.num_refits = 0
        """Estimators taken up since the start."""

    def latest(self) -> Estimator | None:
        """The estimator to use from here on; mostly no more than a look at the clock."""
        now = self._clock()
        if now >= self._next_look_s:
            self._next_look_s = now + PERIOD_S
            self._look()
        return self.estimator

    def _look(self) -> None:
        found = identity_of(self._file)
        if found == self._seen:
            return
        self._seen = found  # whatever comes of it: one file is read and complained of once
        if self._identity_of_weights() != self._weights:
            logger.warning("%s: the checkpoint has other weights than those in use; its calibration waits for a restart", self._folder)
            return
        self._take_up()

    def _take_up(self) -> None:
        try:
            estimator = load_estimator(self._folder)
        except ModelLoadError as error:
            logger.warning("the new estimator is refused, the one in use stays: %s", error.message)
            return
        if estimator is None:
            logger.warning("%s is gone; the estimator in use stays", self._file)
            return
        self.estimator = estimator
        self.num_refits += 1
        logger.info("%s: a new estimator (%s) is in use", self._file, estimator.method)

    def _identity_of_weights(self) -> list[Identity | None]:
        return [identity_of(path) for path in sorted(self._folder.glob(WEIGHTS))]


def identity_of(path: Path) -> Identity | None:
    """Differs from the one before if the file was replaced or written to; None where there is none, or nobody can tell."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
