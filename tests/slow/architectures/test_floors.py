"""The numerical floor on every architecture of transformers: where it is measured it is rounding alone."""

from __future__ import annotations

import pytest
import torch

from longshort.scoring.floor import floor_problem, shifted_hidden_states
from longshort.scoring.lm_head import lm_head_of
from tests.slow.architectures.tiny import ARCHITECTURES, VOCABULARY, tiny_model

LENGTH, SHIFT = 48, 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_floor_is_below_1e_5_in_float32_wherever_it_is_measured(name: str) -> None:
    try:
        model = tiny_model(name)
        lm_head = lm_head_of(model)
    except Exception as error:  # other tests say which architectures can be built, and why others cannot
        pytest.skip(f"{type(error).__name__}: {error}")
    problem = floor_problem(lm_head, LENGTH)
    tokens = 4 + torch.arange(LENGTH - SHIFT)[None] * 7 % (VOCABULARY - 6)
    try:
        with torch.no_grad():
            states = lm_head.hidden_states(tokens, 20), shifted_hidden_states(lm_head, tokens, 20, SHIFT)
            p, q = (lm_head.logits(each).double().log_softmax(-1) for each in states)
    except (IndexError, RuntimeError, TypeError, ValueError):
        assert problem is not None  # what cannot be read has no floor
        return
    jeffreys = float(((p.exp() - q.exp()) * (p - q)).sum(-1).mean())
    if problem is None:
        assert jeffreys < 1e-5
    else:  # a floor that is missing would have been wrong, or 0
        assert jeffreys == 0 or jeffreys > 1e-9, problem
