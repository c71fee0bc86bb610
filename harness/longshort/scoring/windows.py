"""One window of a text: the likelihoods of its tokens, and its comparison with shorter contexts that have the same end.

Each position goes through the LM head once, since likelihoods and comparisons need the same logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longshort.scoring.compare import compare_contexts
from longshort.scoring.floor import shifted_hidden_states
from longshort.scoring.lm_head import LMHead
from longshort.scoring.prefix import nll_of_states


@dataclass(frozen=True)
class ShorterScores:
    """A window compared with one shorter context at the K' positions that they share, in nats, float32."""

    entropy: Tensor  # of the shorter context, [B, K']
    jeffreys: Tensor  # [B, K']
    js: Tensor  # [B, K']
    agreement: Tensor  # [B, K']


@dataclass(frozen=True)
class WindowScores:
    """Predictions of a window at its last K positions, in nats, float32."""

    nll: Tensor  # [B, K]
    entropy: Tensor  # [B, K]; NaN where only likelihoods are computed
    is_top: Tensor  # 1 where the target is the most probable token, else 0, [B, K]; NaN where entropy is
    shorter: tuple[ShorterScores, ...]  # in the order of the shorter contexts


def read_window(
    lm_head: LMHead, tokens: Tensor, length: int, special_tokens: Sequence[int], keep: int, shift: int = 0
) -> Tensor:
    """Evaluate the `length` tokens before the last one, from position 0, and return the last hidden states.

    Args:
        lm_head: of a model in evaluation mode.
        tokens: token ids on the device of the model's input, [B, N]; the last one is only a target.
        length: tokens of the window, in [1, N-1].
        special_tokens: ids that replace the first tokens of the window, such as BOS.
        keep: positions to return, at most `length`.
        shift: a constant that is added to all position ids; see `longshort.scoring.floor`.

    Returns:
        Hidden states, [B, keep, H].
    """
    end = tokens.shape[1] - 1
    window = tokens[:, end - length : end].clone()  # [B, length]
    window[:, : len(special_tokens)] = torch.tensor(special_tokens, dtype=window.dtype, device=window.device)
    return shifted_hidden_states(lm_head, window, keep, shift) if shift else lm_head.hidden_states(window, keep=keep)


def score_window(
    lm_head: LMHead,
    states: Tensor,
    targets: Tensor,
    shorter: Sequence[Tensor] = (),
    *,
    everywhere: bool = False,
) -> WindowScores:
    """Score a window and compare it with shorter contexts.

    Args:
        lm_head: of a model in evaluation mode.
        states: hidden states of the window's last K positions, [B, K, H].
        targets: the tokens that follow them, [B, K].
        shorter: hidden states of each shorter context at the last K' ≤ K of these positions, [B, K', H] each.
        everywhere: whether to return entropy and `is_top` also where nothing is compared, which costs more.
    """
    num_positions = states.shape[1]
    lengths = [context.shape[1] for context in shorter]
    nan = torch.full(states.shape[:2], torch.nan, device=states.device)  # [B, K]
    window = nan.clone(), nan.clone(), nan.clone()
    pairs = [tuple(nan[:, :length].clone() for _ in range(4)) for length in lengths]
    # Between two of these bounds the contexts that cover a position are the same ones.
    bounds = sorted({0, num_positions, *(num_positions - length for length in lengths)})
    for start, stop in itertools.pairwise(bounds):
        covering = [index for index, length in enumerate(lengths) if num_positions - length <= start]
        if not covering and not everywhere:
            window[0][:, start:stop] = nll_of_states(lm_head, states[:, start:stop], targets[:, start:stop])
            continue
        parts = [shorter[index][:, start - num_positions :][:, : stop - start] for index in covering]
        contexts = [states[:, start:stop], *parts]
        found = compare_contexts(
            lm_head, contexts, targets[:, start:stop], [(0, 1 + place) for place in range(len(covering))]
        )
        for field, values in zip(window, (found.nll, found.entropy, found.is_top), strict=True):
            field[:, start:stop] = values[:, 0]
        for place, index in enumerate(covering):
            first = start - (num_positions - lengths[index])
            compared = found.entropy[:, 1 + place], found.jeffreys[:, place], found.js[:, place]
            for field, values in zip(pairs[index], (*compared, found.agreement[:, place]), strict=True):
                field[:, first : first + stop - start] = values
    return WindowScores(*window, tuple(ShorterScores(*fields) for fields in pairs))
