"""Negative log-likelihood of every token given all before it: perplexity at every length from one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longshort.scoring.chunks import chunk_positions
from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.lm_head import LMHead, linear_into, lm_head_of

# A block of logits that a CPU keeps in its cache; a GPU is faster with few, large products.
VOCABULARY_BLOCK = {"cpu": 2048}
STREAMED_ROWS = 1024


@torch.no_grad()
def score_prefix(model: nn.Module, tokens: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Score each token given the ones before it, in one forward, never holding logits [N × V].

    For a causal model whose position encoding does not depend on the sequence length, the first l - 1 values
    are also those of the first l tokens read alone.

    Args:
        model: any `AutoModelForCausalLM`.
        tokens: token ids, [B, N], N ≥ 2, no padding.
        chunk_size: positions whose logits are alive at once; by default what 128 MiB hold (1 GiB on a GPU).

    Returns:
        nll, [B, N-1], nats, float32: ``nll[:, t] = -log p(tokens[:, t+1] | tokens[:, :t+1])``.

    Raises:
        ValueError: fewer than 2 tokens.
    """
    length = tokens.shape[1]
    if length < 2:
        raise ValueError(f"score_prefix needs at least 2 tokens, got {length}.")
    lm_head = lm_head_of(model)
    tokens = tokens.to(input_device(model))
    with evaluating(model):
        # The last position predicts nothing here, but where positions depend on the length it counts.
        hidden_states = lm_head.hidden_states(tokens, keep=length)[:, :-1]  # [B, N-1, H]
        return nll_of_states(lm_head, hidden_states, tokens[:, 1:], chunk_size=chunk_size)


def nll_of_states(lm_head: LMHead, hidden_states: Tensor, targets: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Negative log-likelihood of the tokens that follow K positions, never holding logits [K × V].

    Args:
        lm_head: of a model in evaluation mode.
        hidden_states: of the K positions, [B, K, H].
        targets: the tokens that follow them, [B, K].
        chunk_size: as in `score_prefix`.

    Returns:
        nll, [B, K], nats, float32.
    """
    batch, num_positions, _ = hidden_states.shape
    block = VOCABULARY_BLOCK.get(hidden_states.device.type)
    if lm_head.linear is not None and block:
        rows = batch * chunk_size if chunk_size else STREAMED_ROWS
        parts = zip(hidden_states.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True)
        return torch.cat([_streamed(lm_head.linear, *part, block) for part in parts]).view(batch, num_positions)
    chunk_size = chunk_size or chunk_positions(batch * lm_head.copies, lm_head.vocab_size, hidden_states.device)
    nll = torch.empty(batch, num_positions, device=hidden_states.device)
    for start in range(0, num_positions, chunk_size):
        logits = lm_head.logits(hidden_states[:, start : start + chunk_size])  # [B, C, V]
        chunk = targets[:, start : start + logits.shape[1]].to(logits.device)  # [B, C]
        nll[:, start : start + chunk_size] = _negative_log_likelihood(logits, chunk)
        del logits
    return nll


def _negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], written over the logits: no second [C × V].  [B, C, V], [B, C] → [B, C]."""
    top = logits.amax(-1, keepdim=True)
    target = logits.gather(-1, targets[..., None]) - top
    return (logits.sub_(top).exp_().sum(-1, keepdim=True).log() - target).squeeze(-1)


def _streamed(linear: nn.Linear, hidden_states: Tensor, targets: Tensor, block: int) -> Tensor:
    """The same with an LM head that is a plain matrix, in blocks of the vocabulary that stay in the processor's cache.

    The sum of exponentials is kept relative to the greatest logit so far, as in online softmax (Milakov and
    Gimelshein, 2018).  [n, H], [n] → [n].
    """
    hidden_states = hidden_states.to(linear.weight.dtype).float()  # once, not for every block
    rows = len(hidden_states)
    top = hidden_states.new_full((rows, 1), torch.finfo(hidden_states.dtype).min)  # not -inf, which may be a logit
    mass = hidden_states.new_zeros(rows, 1)
    target = hidden_states.new_zeros(rows, 1)
    buffer = hidden_states.new_empty(rows * block)
    for start in range(0, linear.out_features, block):
        weight = linear.weight[start : start + block]
        bias = None if linear.bias is None else linear.bias[start : start + block]
        width = len(weight)
        logits = linear_into(buffer[: rows * width].view(rows, width), hidden_states, weight, bias)  # [n, block]
        index = targets[:, None] - start
        inside = (index >= 0) & (index < width)
        target = torch.where(inside, logits.gather(1, index.clamp(0, width - 1)), target)
        before, top = top, torch.maximum(top, logits.amax(1, keepdim=True))
        mass = mass * (before - top).exp() + logits.sub_(top).exp_().sum(1, keepdim=True)
    return (mass.log() - (target - top)).squeeze(1)
