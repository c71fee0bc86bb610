"""Which controls a partial correlation can use, and on which checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from longshort.analysis.intervals import ONE
from longshort.analysis.points import is_constant

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def usable_controls(
    columns: Mapping[str, Array], controls: Sequence[str], predictor: str, outcome: str, both: Mask
) -> tuple[list[str], Mask, list[str]]:
    """Choose among the controls.

    A control is skipped if it is the predictor or the outcome, or a linear function of it: controlling for it would
    leave nothing to correlate. So is one that does not vary, or has no value.

    Args:
        columns: [checkpoints] by name.
        controls, predictor, outcome: names of columns.
        both: [checkpoints] which have predictor and outcome.

    Returns:
        The controls to use, the checkpoints that have these and both sides, and why others were skipped.
    """
    ends = {predictor: "predictor", outcome: "outcome"}
    reasons = {name: f"it is the {ends[name]}" for name in controls if name in ends}
    values = {name: columns[name] for name in controls if name not in ends}
    reasons |= {name: "no value" for name in values if not np.isfinite(values[name][both]).any()}
    measured = [name for name in values if name not in reasons]
    known: Mask = both & np.isfinite([values[name] for name in measured]).all(axis=0)
    for name in measured:
        if is_constant(values[name][known]):
            reasons[name] = "it does not vary"
            continue
        same = [end for side, end in ends.items() if _is_linear(values[name][known], columns[side][known])]
        if same:
            reasons[name] = f"a linear function of the {same[0]}"
    used = [name for name in measured if name not in reasons]
    return used, known, [f"control {name} skipped: {reason}" for name, reason in reasons.items()]


def _is_linear(a: Array, b: Array) -> bool:
    a, b = a - a.mean(), b - b.mean()
    return bool(abs(a @ b) >= ONE * np.sqrt((a @ a) * (b @ b)) > 0)
