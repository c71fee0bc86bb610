"""Next-token distributions with several contexts at the same positions: likelihoods, entropies, divergences.

The LM head runs over chunks of positions, and distributions are compared in blocks of these. Logits of all positions
are never held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longshort.scoring.chunks import cached_positions, chunk_positions
from longshort.scoring.divergences import (
    cross_entropy_matrix,
    jeffreys_and_jensen_shannon,
    log_softmax_,
    top_token,
)
from longshort.scoring.lm_head import LMHead

PAIR_BUFFERS = 3  # rows of [V] in which a pair is compared


@dataclass(frozen=True)
class Comparison:
    """Predictions with M contexts at the same K positions, in nats, float32, for P pairs of contexts."""

    nll: Tensor  # -log p_i(target), [B, M, K]
    entropy: Tensor  # H(p_i), [B, M, K]
    is_top: Tensor  # 1 where the target is the most probable token, else 0, [B, M, K]
    cross_entropy: Tensor  # H(p_i, p_j) at [.., i, j, :], [B, M, M, K]; without `matrix` [B, 0, 0, K]
    jeffreys: Tensor  # KL(p_i‖p_j) + KL(p_j‖p_i) of each pair, [B, P, K]
    js: Tensor  # Jensen-Shannon divergence of each pair, [B, P, K]; without `js` [B, 0, K]
    agreement: Tensor  # 1 where the most probable tokens of a pair are the same, else 0, [B, P, K]


def compare_contexts(
    lm_head: LMHead,
    contexts: Sequence[Tensor],
    targets: Tensor,
    pairs: Sequence[tuple[int, int]] = (),
    *,
    matrix: bool = False,
    js: bool = True,
    chunk_size: int | None = None,
) -> Comparison:
    """Compare the predictions with M contexts at K positions that they share.

    Args:
        lm_head: the model's LM head.
        contexts: hidden states of the K positions with each context, M × [B, K, H].
        targets: the tokens that follow these positions, [B, K].
        pairs: P pairs (i, j) of indices into `contexts`.
        matrix: whether to return the cross-entropies of all contexts.
        js: whether to return the Jensen-Shannon divergence of each pair.
        chunk_size: positions whose logits are held at once; by default as many as fit into 128 MiB (1 GiB on a GPU).
    """
    batch, num_positions, _ = contexts[0].shape
    vocab_size, device, count = lm_head.vocab_size, contexts[0].device, len(contexts)
    rows = batch * count  # of logits, per position
    # Probabilities, and room for the terms of an entropy or a pair.
    scratch_rows = rows + (PAIR_BUFFERS * batch if pairs else 0 if matrix else batch)
    cached = cached_positions(rows, vocab_size, device)
    buffer_rows = rows * lm_head.copies + (scratch_rows if cached is None else 0)
    chunk_size = min(num_positions, chunk_size or chunk_positions(buffer_rows, vocab_size, device))
    block_size = min(chunk_size, cached or chunk_size)
    # All results are allocated before the loop, and nothing as large as logits in it: small results between freed
    # logits would keep the heap from reusing their memory, and it would grow with each chunk.
    pairs_shape, matrix_shape = [len(pairs)], [count, count] if matrix else [0, 0]
    shapes = [count], [count], [count], matrix_shape, pairs_shape, pairs_shape if js else [0], pairs_shape
    fields = [torch.empty(num_positions, batch, *shape, device=device) for shape in shapes]  # [K, B, ...] each
    buffer = torch.empty(rows * chunk_size * vocab_size, device=device) if lm_head.linear is not None else None
    scratch = None
    for start in range(0, num_positions, chunk_size):
        chunk = slice(start, start + chunk_size)
        states = torch.stack([states[:, chunk].to(device) for states in contexts], dim=2)  # [B, C, M, H]
        logits = lm_head.logits(states.transpose(0, 1).flatten(1, 2), buffer)  # [C, B·M, V]
        logits = logits.unflatten(1, (batch, -1))  # [C, B, M, V]
        if scratch is None:  # allocated late: a model spread over devices may return logits on another one
            scratch = logits.new_empty(scratch_rows * block_size * vocab_size)
        # One product for a whole chunk of positions, then blocks of them that stay in a CPU's cache.
        for first in range(0, len(logits), block_size):
            block = slice(first, first + block_size)
            logits_block = logits[block]  # [b, B, M, V]
            target_block = targets.T[chunk][block]  # [b, B]
            values = _compare(logits_block, target_block, pairs, scratch, matrix=matrix, js=js)
            for field, of_block in zip(fields, values, strict=True):
                field[chunk][block].copy_(of_block)
        del logits, logits_block
    return Comparison(*(field.movedim(0, -1) for field in fields))


def _compare(
    logits: Tensor,
    targets: Tensor,
    pairs: Sequence[tuple[int, int]],
    scratch: Tensor,
    *,
    matrix: bool,
    js: bool,
) -> tuple[Tensor, ...]:
    """The fields of `Comparison` for b positions, which come first; the logits are overwritten.

    Args:
        logits: [b, B, M, V].
        targets: [b, B].
        pairs: P pairs (i, j).
        scratch: at least as many elements as `logits`; PAIR_BUFFERS × [b, B, V] more where there are pairs, else one
            unless `matrix`.
    """
    top = top_token(logits)  # [b, B, M]
    p = scratch[: logits.numel()].view_as(logits)  # [b, B, M, V]
    log_p = log_softmax_(logits, top, p)  # [b, B, M, V]
    targets = targets.to(logits.device)[..., None].expand_as(top)  # [b, B, M]
    nll = -log_p.gather(-1, targets[..., None]).squeeze(-1)  # [b, B, M]
    is_top = (top == targets).float()  # [b, B, M]
    cross_entropy = cross_entropy_matrix(p, log_p) if matrix else nll.new_empty(*nll.shape[:2], 0, 0)  # [b, B, M, M]
    vector = logits[:, :, 0]  # the shape of one context's distributions, [b, B, V]
    size = vector.numel()
    room = scratch[logits.numel() :]
    if matrix:
        entropy = cross_entropy.diagonal(dim1=-2, dim2=-1)  # [b, B, M]
    else:
        terms = room[:size].view(vector.shape)  # [b, B, V]
        contexts = zip(p.unbind(2), log_p.unbind(2), strict=True)
        entropy = -torch.stack([torch.mul(*context, out=terms).sum(-1) for context in contexts], dim=-1)  # [b, B, M]
    none = nll.new_empty(*nll.shape[:2], 0)
    if not pairs:
        return nll, entropy, is_top, cross_entropy, none, none, none
    buffers = room[: PAIR_BUFFERS * size].view(PAIR_BUFFERS, *vector.shape)
    compared = [_pair(p, log_p, pair, buffers, js) for pair in pairs]
    jeffreys, jensen_shannon = (
        torch.stack(values, dim=-1) if values else none
        for values in ([pair[0] for pair in compared], [pair[1] for pair in compared if js])
    )
    first, second = (torch.tensor([pair[side] for pair in pairs], device=top.device) for side in (0, 1))
    undefined = 0 * (entropy[..., first] + entropy[..., second])  # NaN where either is not finite
    agreement = (top[..., first] == top[..., second]).float() + undefined  # [b, B, P]
    return nll, entropy, is_top + 0 * entropy, cross_entropy, jeffreys, jensen_shannon, agreement


def _pair(p: Tensor, log_p: Tensor, pair: tuple[int, int], buffers: Tensor, js: bool) -> tuple[Tensor, Tensor]:
    """Jeffreys and Jensen-Shannon divergence of two contexts.  [b, B], [b, B]."""
    i, j = pair
    log_ratio, first, second = buffers  # [b, B, V] each
    torch.sub(log_p[:, :, i], log_p[:, :, j], out=log_ratio)
    if js:
        return jeffreys_and_jensen_shannon(p[:, :, i], p[:, :, j], log_ratio, (first, second))
    torch.sub(p[:, :, i], p[:, :, j], out=first)
    jeffreys = first.mul_(log_ratio).sum(-1).clamp_min_(0)
    return jeffreys, jeffreys
