"""The suffix ladder: one document end read with contexts of several lengths.

Its per-token NLL is the perplexity at each context length on the same targets; its pairwise cross-entropies
are the misalignment between any two lengths (Du et al., ICML 2025, whose metric is two rungs of a ladder).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longshort.scoring.divergences import jeffreys_from, jensen_shannon_from
from longshort.scoring.lm_head import cached_positions, chunk_positions, evaluating, input_device, readout

ARGMAX_BLOCK = 256


@dataclass(frozen=True)
class SuffixScores:
    """What M contexts of the same K positions say. M follows `lengths`, P follows `pairs`; nats, float32.

    Attributes:
        nll: -log p_i(target), [B, M, K].
        entropy: H(p_i), [B, M, K].
        cross_entropy: H(p_i, p_j) at [.., i, j, :], [B, M, M, K].
        jeffreys: KL(p_i‖p_j) + KL(p_j‖p_i) of each pair, [B, P, K]. Also the difference of cross_entropy and
            entropy, but that loses its digits where the two distributions are close.
        js: Jensen-Shannon divergence of each pair, [B, P, K].
        agreement: 1 where the most probable tokens of a pair are the same, else 0, [B, P, K].
    """

    nll: Tensor
    entropy: Tensor
    cross_entropy: Tensor
    jeffreys: Tensor
    js: Tensor
    agreement: Tensor


@torch.no_grad()
def score_suffixes(
    model: nn.Module,
    tokens: Tensor,
    lengths: Sequence[int],
    num_targets: int,
    *,
    chunk_size: int | None = None,
    prefix: Sequence[int] = (),
    pairs: Sequence[tuple[int, int]] = (),
) -> SuffixScores:
    """Read the end of `tokens` with contexts of several lengths and compare what each predicts.

    The last token is only ever a target. For each length l the model reads the l tokens that end just before
    it, from position 0; scored are the last K = `num_targets` positions, at which every context predicts the
    same K tokens.

    Args:
        model: any `AutoModelForCausalLM`.
        tokens: token ids, [B, N], no padding.
        lengths: M context lengths in tokens, each in [K, N-1]; order and repetition are free.
        num_targets: K.
        chunk_size: positions whose logits are alive at once; by default what 128 MiB hold (1 GiB on a GPU).
        prefix: ids that replace the first tokens of every context, as a tokenizer's BOS does; they count
            towards its length.
        pairs: P pairs (i, j) of indices into `lengths` to compare beyond their cross-entropy.

    Returns:
        SuffixScores.

    Raises:
        ValueError: a length outside [K, N-1], or a prefix not shorter than the shortest context.
    """
    batch, total = tokens.shape
    if not lengths or not num_targets <= min(lengths) or max(lengths) > total - 1 or num_targets < 1:
        raise ValueError(f"lengths {list(lengths)} must lie in [num_targets, N-1] = [{num_targets}, {total - 1}].")
    if len(prefix) >= min(lengths):
        raise ValueError(f"a prefix of {len(prefix)} tokens leaves nothing of a context of {min(lengths)}.")
    head = readout(model, tokens)
    tokens = tokens.to(input_device(model))
    targets = tokens[:, -num_targets:].T  # [K, B]
    with evaluating(model):
        states = []
        for length in lengths:
            window = tokens[:, total - 1 - length : total - 1].clone()  # [B, l]
            window[:, : len(prefix)] = torch.tensor(prefix, dtype=window.dtype, device=window.device)
            states.append(head.states(window, keep=num_targets))  # [B, K, H]
        rows, vocabulary, device = len(lengths) * batch, head.vocab_size, states[0].device
        stacked = torch.stack([state.to(device) for state in states], dim=2).transpose(0, 1)  # [K, B, M, H]
        del states
        spare = rows + (3 * batch if pairs else 0)  # probabilities, and room to compare pairs
        few = cached_positions(rows, vocabulary, device)
        buffers = rows * head.copies + (spare if few is None else 0)
        chunk_size = min(num_targets, chunk_size or chunk_positions(buffers, vocabulary, device))
        few = min(chunk_size, few or chunk_size)
        # All that stays is made before the loop, and nothing as large as logits in it: small results between freed
        # logits would keep the heap from using their room again, which then grows at each step.
        each = [len(lengths)], [len(lengths)], [len(lengths)] * 2, *([[len(pairs)]] * 3)
        scores = [torch.empty(num_targets, batch, *shape, device=device) for shape in each]  # [K, B, ...]
        buffer = stacked.new_empty(rows * chunk_size * vocabulary) if head.linear is not None else None
        work = None
        for start in range(0, num_targets, chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = head.logits(stacked[chunk].flatten(1, 2), buffer).unflatten(1, (batch, -1))  # [C, B, M, V]
            if work is None:  # a model spread over devices need not give them where its states lie
                work = logits.new_empty(spare * few * vocabulary)
            into = zip(*(field[chunk].split(few) for field in scores), strict=True)
            # One product for many positions; then a few at a time, which stay in a CPU's cache.
            for z, of, some in zip(logits.split(few), targets[chunk].split(few), into, strict=True):
                for field, values in zip(some, _compare(z, of, pairs, work), strict=True):
                    field.copy_(values)
            del logits, z
    return SuffixScores(*(field.movedim(0, -1) for field in scores))


def _compare(z: Tensor, targets: Tensor, pairs: Sequence[tuple[int, int]], work: Tensor) -> tuple[Tensor, ...]:
    """The fields of SuffixScores for C positions, first of their axes, written over the logits.

    z: [C, B, M, V]; targets: [C, B]; work: room for as much again, and for 3 × [C, B, V] where there are pairs.
    """
    top = top_token(z)[..., None]  # [C, B, M, 1]
    # Softmax takes half the time of exp and what goes with it, but adds up a long row with fewer digits than sum.
    p = torch.softmax(z, -1, out=work[: z.numel()].view_as(z))
    p.div_(p.sum(-1, keepdim=True))
    log_p = z.sub_(z.gather(-1, top)).add_(p.gather(-1, top).log_())  # shifted first: great logits keep their digits
    index = targets.to(z.device)[..., None, None].expand_as(top)
    nll = -log_p.gather(-1, index).squeeze(-1)  # [C, B, M]
    cross_entropy = -(p @ log_p.mT)  # all pairs in one batched product, and no term is negative  # [C, B, M, M]
    entropy = cross_entropy.diagonal(dim1=-2, dim2=-1)  # [C, B, M]
    if not pairs:
        return nll, entropy, cross_entropy, *(nll.new_empty(*nll.shape[:2], 0) for _ in range(3))
    log_ratio, first, second = work[z.numel() :][: 3 * z[:, :, 0].numel()].view(3, *z[:, :, 0].shape)
    compared = []
    for i, j in pairs:
        both = p[:, :, i], p[:, :, j], torch.sub(log_p[:, :, i], log_p[:, :, j], out=log_ratio)
        agreement = (top[:, :, i] == top[:, :, j]).squeeze(-1).float()
        undefined = 0 * (entropy[..., i] + entropy[..., j])  # NaN where either is not finite
        compared.append(
            (jeffreys_from(*both, first), jensen_shannon_from(*both, (first, second)), agreement + undefined)
        )
    return nll, entropy, cross_entropy, *(torch.stack(values, dim=-1) for values in zip(*compared, strict=True))


def top_token(values: Tensor) -> Tensor:
    """Index of the greatest value, the first of equals: argmax by way of blocks, which on a CPU takes a tenth.

    [..., V] → [...].
    """
    width = values.shape[-1] // ARGMAX_BLOCK * ARGMAX_BLOCK
    if not width:
        return values.argmax(-1)
    blocks = values[..., :width].unflatten(-1, (-1, ARGMAX_BLOCK))  # [..., V // block, block]
    block = blocks.amax(-1).argmax(-1, keepdim=True)  # [..., 1]
    inside = blocks.gather(-2, block[..., None].expand(*block.shape, ARGMAX_BLOCK)).argmax(-1)
    first: Tensor = block * ARGMAX_BLOCK + inside
    if width < values.shape[-1]:
        rest, index = values[..., width:].max(-1, keepdim=True)
        first = torch.where(rest > values.gather(-1, first), index + width, first)
    return first.squeeze(-1)
