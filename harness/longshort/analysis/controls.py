"""Which controls of a partial correlation can be held fixed, and on which checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.analysis.intervals import ONE
from longshort.analysis.points import is_constant, numbers

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def hold_fixed(
    wide: pd.DataFrame, controls: Sequence[str], predictor: str, outcome: str, both: Mask
) -> tuple[list[str], Mask, list[str]]:
    """Choose among the controls.

    Left out is one that is the predictor or the outcome, or a linear function of it: holding it fixed would leave
    nothing to correlate. And one that does not vary, or has no value.

    Args:
        wide: one row per checkpoint.
        controls: columns of it.
        predictor: a column of it.
        outcome: a column of it.
        both: [checkpoints] which have predictor and outcome.

    Returns:
        The controls to hold fixed, the checkpoints that have these and both sides, and why others were left out.

    Raises:
        UserError: a control is missing or holds no numbers.
    """
    ends = {predictor: "predictor", outcome: "outcome"}
    reasons = {name: f"it is the {ends[name]}" for name in controls if name in ends}
    values = {name: numbers(wide, name) for name in controls if name not in ends}
    reasons |= {name: "no value" for name in values if not np.isfinite(values[name][both]).any()}
    measured = [name for name in values if name not in reasons]
    known: Mask = both & np.isfinite([values[name] for name in measured]).all(axis=0)
    for name in measured:
        if is_constant(values[name][known]):
            reasons[name] = "it does not vary"
            continue
        same = [end for side, end in ends.items() if _is_linear(values[name][known], numbers(wide, side)[known])]
        if same:
            reasons[name] = f"a linear function of the {same[0]}"
    held = [name for name in measured if name not in reasons]
    return held, known, [f"control {name} left out: {reason}" for name, reason in reasons.items()]


def _is_linear(a: Array, b: Array) -> bool:
    return not is_constant(b) and abs(float(np.corrcoef(a, b)[0, 1])) >= ONE
