"""How likely a model is to continue a text with given tokens, by teacher forcing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.lm_head import lm_head_of
from longshort.scoring.windows import score_window


@dataclass(frozen=True)
class ContinuationScores:
    """What a model says of the last K tokens of a sequence, float32."""

    nll: Tensor  # nats, [B, K]
    is_top: Tensor  # 1 where the token is the most probable one, else 0, [B, K]; NaN where logits are not finite


@torch.no_grad()
def score_continuation(model: nn.Module, tokens: Tensor, num_targets: int) -> ContinuationScores:
    """Score the last tokens of sequences given all before them; only these positions go through the LM head.

    Greedy decoding from the tokens before gives exactly these tokens where all K of `is_top` are 1.

    Args:
        model: any `AutoModelForCausalLM`.
        tokens: token ids, [B, N], no padding; the last one is only a target.
        num_targets: K, the tokens to score, in [1, N-1].

    Raises:
        ValueError: `num_targets` is out of range.
    """
    if not 0 < num_targets < tokens.shape[1]:
        raise ValueError(f"num_targets is {num_targets}, but must be in [1, {tokens.shape[1] - 1}].")
    lm_head = lm_head_of(model)
    tokens = tokens.to(input_device(model))
    with evaluating(model):
        states = lm_head.hidden_states(tokens[:, :-1], keep=num_targets)  # [B, K, H]
        scores = score_window(lm_head, states, tokens[:, -num_targets:], everywhere=True)
    return ContinuationScores(scores.nll, scores.is_top + 0 * scores.nll)
