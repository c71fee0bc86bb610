"""The end of one document, read with contexts of several lengths.

The per-token NLL gives perplexity at each context length on fixed targets; the pairwise cross-entropies are the
misalignment between any two context lengths (Du et al., ICML 2025, whose metric compares two of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from longshort.scoring.compare import compare_contexts
from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.lm_head import lm_head_of
from longshort.scoring.windows import read_window


@dataclass(frozen=True)
class SuffixScores:
    """Predictions of M contexts at the same K positions, in nats, float32. M follows `lengths`, P follows `pairs`."""

    nll: Tensor  # -log p_i(target), [B, M, K]
    entropy: Tensor  # H(p_i), [B, M, K]
    cross_entropy: Tensor  # H(p_i, p_j) at [.., i, j, :], [B, M, M, K]
    # KL(p_i‖p_j) + KL(p_j‖p_i) of each pair, [B, P, K]. The difference of cross_entropy and entropy is the same, but
    # loses digits where the two distributions are close.
    jeffreys: Tensor
    js: Tensor  # Jensen-Shannon divergence of each pair, [B, P, K]
    agreement: Tensor  # 1 where the most probable tokens of a pair are the same, else 0, [B, P, K]


@torch.no_grad()
def score_suffixes(
    model: nn.Module,
    tokens: Tensor,
    lengths: Sequence[int],
    num_targets: int,
    *,
    chunk_size: int | None = None,
    special_tokens: Sequence[int] = (),
    pairs: Sequence[tuple[int, int]] = (),
) -> SuffixScores:
    """Read the end of `tokens` with contexts of several lengths and compare their predictions.

    The last token is only ever a target. For each length l the model reads the l tokens that end just before
    it, from position 0; scored are the last K = `num_targets` positions, at which every context predicts the
    same K tokens.

    Args:
        model: any `AutoModelForCausalLM`.
        tokens: token ids, [B, N], no padding.
        lengths: M context lengths in tokens, each in [K, N-1], in any order, also repeated.
        num_targets: K.
        chunk_size: positions whose logits are alive at once; by default what 128 MiB hold (1 GiB on a GPU).
        special_tokens: ids that replace the first tokens of every context, such as BOS; they count towards its
            length.
        pairs: P pairs (i, j) of indices into `lengths` to compare beyond their cross-entropy.

    Raises:
        ValueError: a length outside [K, N-1], or as many special tokens as the shortest context has tokens.
    """
    total = tokens.shape[1]
    if not lengths or not num_targets <= min(lengths) or max(lengths) > total - 1 or num_targets < 1:
        raise ValueError(f"lengths {list(lengths)} must lie in [num_targets, N-1] = [{num_targets}, {total - 1}].")
    if len(special_tokens) >= min(lengths):
        raise ValueError(f"{len(special_tokens)} special tokens leave nothing of a context of {min(lengths)} tokens.")
    lm_head = lm_head_of(model)
    tokens = tokens.to(input_device(model))
    targets = tokens[:, -num_targets:]  # [B, K]
    with evaluating(model):
        contexts = [read_window(lm_head, tokens, length, special_tokens, num_targets) for length in lengths]
        found = compare_contexts(lm_head, contexts, targets, pairs, matrix=True, chunk_size=chunk_size)
    return SuffixScores(*(getattr(found, field.name) for field in fields(SuffixScores)))
