"""Keeping the best of the evaluated steps: copies in the folder of the work in progress."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PREFIX = "best-"


def best_step(evaluations: Iterable[dict[str, Any]], value: str) -> int:
    """Return the step of the lowest `value`, the first of equals; step 0, before training, does not count.

    Args:
        evaluations: rows with the step and the values of `evaluation.evaluate`; the last step is always among them.
        value: such as ``ppl@4096``.
    """
    trained = [row for row in evaluations if row["step"] > 0]
    return int(min(trained, key=lambda row: math.inf if math.isnan(row[value]) else row[value])["step"])


def best_folder(partial: Path, step: int) -> Path:
    """Return the folder of a step that was the best when it was evaluated."""
    return partial / f"{PREFIX}{step}"


def remove_surpassed(partial: Path, step: int, last_save: int) -> None:
    """Remove the copies that are no longer needed: all but that of `step`, the best, and the best at the last save.

    A run that is killed resumes from its last save, and may find another best step from there.
    """
    steps = sorted(int(folder.name.removeprefix(PREFIX)) for folder in partial.glob(f"{PREFIX}*"))
    saved = [other for other in steps if other <= last_save]
    for other in steps:
        if other not in (step, *saved[-1:]):
            shutil.rmtree(best_folder(partial, other))
