"""The numerical floor of the divergences: how far two forward passes differ that are equal except for rounding.

Rounding in half precision makes the predictions with two contexts differ more than they would in float32, so the
divergences have a bias. Rotary position embeddings depend only on the distance of two tokens. A second forward pass
with position ids that are all greater by a constant is therefore mathematically equal, but rounded differently. The
constant is the offset between the two contexts: in the second pass over the shorter context, its tokens have the
position ids that they have in the longer one, so the rounding of the position encoding differs as it does between the
two contexts.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from longshort.errors import first_line
from longshort.scoring.double import in_float64
from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.lm_head import LMHead
from longshort.scoring.probe import probe_tokens

HALF_PRECISION = (torch.bfloat16, torch.float16)
PROBE_TOKENS = 32
# Change of the hidden states by the shift, relative to the largest, in float64. Not 0, since tables of sines may be
# stored in float32 (GPT-J, CodeGen); those in half precision exceed it.
TOLERANCE = 1e-5

UNUSED = "no floor: the predictions do not depend on position ids, so shifting them does not change the rounding"
UNEQUAL = "no floor: the predictions change if a constant is added to all position ids (relative change {:.1g})"
UNREADABLE = "no floor: the model cannot be probed with shifted position ids in float64 ({})"

_problems: WeakKeyDictionary[LMHead, dict[int, str | None]] = WeakKeyDictionary()  # by length


def shifted_hidden_states(lm_head: LMHead, window: Tensor, keep: int, shift: int) -> Tensor:
    """Evaluate a window with position ids that begin at `shift`; `floor_problem` checks if this changes predictions.

    Args:
        lm_head: of a model in evaluation mode.
        window: token ids, [B, T].
        keep: positions to return, at most T.
        shift: the constant that is added to the position ids 0 .. T - 1.

    Returns:
        Hidden states of the last `keep` positions, [B, keep, H].
    """
    ids = torch.arange(shift, shift + window.shape[1], device=window.device)
    return lm_head.hidden_states(window, keep, position_ids=ids.expand(window.shape))


def has_floor(lm_head: LMHead) -> bool:
    """Whether a model computes in half precision, so that its divergences have a numerical floor."""
    return getattr(lm_head.model, "dtype", None) in HALF_PRECISION


@torch.no_grad()
def floor_problem(lm_head: LMHead, length: int) -> str | None:
    """Return why the floor cannot be measured at a context length, or None if it can.

    A probe on a short sequence checks whether shifted position ids change the predictions, in float64, where rounding
    cannot hide it. They do with learned position embeddings, and with rotary ones whose frequencies or temperatures
    depend on the position. The shifted ids end where those of the longer context do. If they make no change at all,
    the model ignores them (ALiBi, recurrent models, no position encoding). The result is kept for each model.

    Args:
        lm_head: of a model in evaluation mode.
        length: length of the longer context, in tokens.
    """
    known = _problems.setdefault(lm_head, {})
    if any(known[longer] is None for longer in known if longer >= length):
        return None  # larger positions make no change, so smaller ones do not either
    if length not in known:
        known[length] = _problem(lm_head, length)
    return known[length]


def _problem(lm_head: LMHead, length: int) -> str | None:
    model = lm_head.model
    shortest = (length + 1) // 2  # of the shorter contexts: it is shifted furthest
    tokens = probe_tokens(model, min(PROBE_TOKENS, shortest)).to(input_device(model))  # [1, P]
    num_tokens = tokens.shape[1]
    try:
        with evaluating(model), in_float64(model):
            expected, shifted = (
                shifted_hidden_states(lm_head, tokens, num_tokens, shift).double()
                for shift in (0, max(1, length - num_tokens))
            )
            change = (shifted - expected).abs().max() / expected.abs().max()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # No such argument, kernels that lack float64, positions without an embedding, or too little memory.
        return UNREADABLE.format(first_line(error))
    if torch.isnan(change):  # a broken checkpoint: its values will be reported as non-finite
        return None
    if not float(change):
        return UNUSED
    return None if float(change) <= TOLERANCE else UNEQUAL.format(float(change))
