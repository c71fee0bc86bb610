"""The end of one document, read with contexts of several lengths.

The per-token NLL gives perplexity at each context length on fixed targets; the pairwise cross-entropies are the
misalignment between any two context lengths (Du et al., ICML 2025, whose metric compares two of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longshort.scoring.chunks import cached_positions, chunk_positions
from longshort.scoring.divergences import cross_entropy_matrix, jeffreys_and_jensen_shannon, log_softmax_, top_token
from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.lm_head import LMHead, lm_head_of


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
    targets = tokens[:, -num_targets:].T  # [K, B]
    with evaluating(model):
        hidden_states = _read_windows(lm_head, tokens, lengths, num_targets, special_tokens)  # [K, B, M, H]
        fields = _score_in_chunks(lm_head, hidden_states, targets, pairs, chunk_size)
    return SuffixScores(*(field.movedim(0, -1) for field in fields))


def _read_windows(
    lm_head: LMHead, tokens: Tensor, lengths: Sequence[int], num_targets: int, special_tokens: Sequence[int]
) -> Tensor:
    """Hidden states of the last K positions of each window, [K, B, M, H]."""
    end = tokens.shape[1] - 1  # the last token is only a target
    by_length = []
    for length in lengths:
        window = tokens[:, end - length : end].clone()  # [B, l]
        window[:, : len(special_tokens)] = torch.tensor(special_tokens, dtype=window.dtype, device=window.device)
        by_length.append(lm_head.hidden_states(window, keep=num_targets))  # [B, K, H]
    device = by_length[0].device
    return torch.stack([hidden_states.to(device) for hidden_states in by_length], dim=2).transpose(0, 1)


def _score_in_chunks(
    lm_head: LMHead,
    hidden_states: Tensor,
    targets: Tensor,
    pairs: Sequence[tuple[int, int]],
    chunk_size: int | None,
) -> list[Tensor]:
    """The fields of SuffixScores, the K positions first: the LM head runs over chunks, `_compare` over blocks of them.

    hidden_states: [K, B, M, H]; targets: [K, B].
    """
    num_targets, batch, num_lengths, _ = hidden_states.shape
    vocab_size, device = lm_head.vocab_size, hidden_states.device
    rows = batch * num_lengths  # of logits, per position
    scratch_rows = rows + (3 * batch if pairs else 0)  # probabilities, and room to compare pairs
    cached = cached_positions(rows, vocab_size, device)
    buffer_rows = rows * lm_head.copies + (scratch_rows if cached is None else 0)
    chunk_size = min(num_targets, chunk_size or chunk_positions(buffer_rows, vocab_size, device))
    block_size = min(chunk_size, cached or chunk_size)
    # All that stays is allocated before the loop, and nothing as large as logits in it: small results between freed
    # logits would keep the heap from reusing their memory, and it would grow with each chunk.
    shapes = [num_lengths], [num_lengths], [num_lengths] * 2, *([[len(pairs)]] * 3)
    fields = [torch.empty(num_targets, batch, *shape, device=device) for shape in shapes]  # [K, B, ...] each
    logits_buffer = hidden_states.new_empty(rows * chunk_size * vocab_size) if lm_head.linear is not None else None
    scratch = None
    for start in range(0, num_targets, chunk_size):
        chunk = slice(start, start + chunk_size)
        logits = lm_head.logits(hidden_states[chunk].flatten(1, 2), logits_buffer)  # [C, B·M, V]
        logits = logits.unflatten(1, (batch, -1))  # [C, B, M, V]
        if scratch is None:  # allocated late: a model spread over devices may return logits on another one
            scratch = logits.new_empty(scratch_rows * block_size * vocab_size)
        # One product for a whole chunk of positions, then blocks of them that stay in a CPU's cache.
        for first in range(0, len(logits), block_size):
            block = slice(first, first + block_size)
            logits_block = logits[block]  # [b, B, M, V]
            target_block = targets[chunk][block]  # [b, B]
            for field, values in zip(fields, _compare(logits_block, target_block, pairs, scratch), strict=True):
                field[chunk][block].copy_(values)
        del logits, logits_block
    return fields


def _compare(logits: Tensor, targets: Tensor, pairs: Sequence[tuple[int, int]], scratch: Tensor) -> tuple[Tensor, ...]:
    """The fields of SuffixScores for b positions, which come first; the logits are overwritten.

    Args:
        logits: [b, B, M, V].
        targets: [b, B].
        pairs: P pairs (i, j).
        scratch: at least as many elements as `logits`, and 3 × [b, B, V] more where there are pairs.
    """
    top = top_token(logits)  # [b, B, M]
    p = scratch[: logits.numel()].view_as(logits)  # [b, B, M, V]
    log_p = log_softmax_(logits, top, p)  # [b, B, M, V]
    index = targets.to(logits.device)[..., None].expand_as(top)[..., None]  # [b, B, M, 1]
    nll = -log_p.gather(-1, index).squeeze(-1)  # [b, B, M]
    cross_entropy = cross_entropy_matrix(p, log_p)  # [b, B, M, M]
    entropy = cross_entropy.diagonal(dim1=-2, dim2=-1)  # [b, B, M]
    if not pairs:
        return nll, entropy, cross_entropy, *(nll.new_empty(*nll.shape[:2], 0) for _ in range(3))
    vector = logits[:, :, 0]  # the shape of one context's distributions, [b, B, V]
    pair_scratch = scratch[logits.numel() :][: 3 * vector.numel()]
    log_ratio, first, second = pair_scratch.view(3, *vector.shape)  # [b, B, V] each
    compared = []
    for i, j in pairs:
        torch.sub(log_p[:, :, i], log_p[:, :, j], out=log_ratio)
        jeffreys, js = jeffreys_and_jensen_shannon(p[:, :, i], p[:, :, j], log_ratio, (first, second))  # [b, B]
        agreement = (top[:, :, i] == top[:, :, j]).float()  # [b, B]
        undefined = 0 * (entropy[..., i] + entropy[..., j])  # NaN where either is not finite
        compared.append((jeffreys, js, agreement + undefined))
    return nll, entropy, cross_entropy, *(torch.stack(values, dim=-1) for values in zip(*compared, strict=True))
