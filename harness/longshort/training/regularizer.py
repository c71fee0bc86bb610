"""The long-short misalignment of two overlapping windows, as a training loss.

Method: Du et al., Long-Short Alignment for Effective Long-Context Modeling in LLMs, ICML 2025. The sum (not
the mean) in the symmetrical cross-entropy, the choice of positions, the other divergences and ``detach`` are
ours.

A sequence of T + e tokens is read twice: window A is its first T tokens, window B its last T. Position e + j
of A and position j of B end in the same token; A has read e + j + 1 tokens of it (the long side, p), B only
j + 1 (the short side, q).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from longshort.scoring import divergences
from longshort.scoring.chunks import chunk_positions
from longshort.training.config import Detach, Divergence, Positions

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sce": divergences.symmetrical_cross_entropy,
    "jeffreys": divergences.jeffreys,
    "js": divergences.jensen_shannon,
    "kl": divergences.kl,
}


class Misalignment(NamedTuple):
    """Means over pairs of positions, in nats; only ``loss`` carries a gradient."""

    loss: Tensor
    entropy: Tensor  # H(p) + H(q)
    jeffreys: Tensor  # KL(p‖q) + KL(q‖p); entropy + jeffreys = sce


def shared_positions(window_length: int, extra: int, positions: Positions = "overlap", special: int = 0) -> range:
    """Return the positions j of window B that are paired with positions ``extra + j`` of window A.

    ``overlap``: every shared token; the first `special` ones of B are not, a BOS stands in their place.
    ``in_range``: those where both contexts hold at least half a window. ``last``: only window A's last token.
    None are left for ``in_range`` where ``extra > window_length // 2``.
    """
    end = window_length - extra
    start = {"overlap": special, "in_range": (window_length + 1) // 2 - 1, "last": end - 1}[positions]
    return range(start, end)


def misalignment_loss(
    logits_long: Tensor,
    logits_short: Tensor,
    extra: int,
    *,
    positions: Positions = "overlap",
    divergence: Divergence = "sce",
    detach: Detach = "none",
    special: int = 0,
) -> Misalignment:
    """Mean divergence between the two windows' next-token distributions at the tokens they share.

    Args:
        logits_long: window A, the first T tokens of each sequence  # [B, T, V]
        logits_short: window B, the last T tokens  # [B, T, V]
        extra: e, how many tokens later window B starts.
        positions: ``overlap``, ``in_range`` or ``last``, see ``shared_positions``.
        divergence: ``sce`` = H(p, q) + H(q, p), ``jeffreys``, ``js``, or ``kl`` = KL(p‖q), p the long side.
        detach: the side that gives no gradient, a fixed teacher: ``none``, ``long`` or ``short``.
        special: tokens at each window's start that the tokenizer put there, as BOS.

    Returns:
        The loss and its two logged parts, scalars in nats; float32, or float64 for float64 logits.
    """
    shared = shared_positions(logits_short.shape[1], extra, positions, special)
    log_p = _log_softmax(logits_long[:, extra + shared.start : extra + shared.stop])  # [B, J, V]
    log_q = _log_softmax(logits_short[:, shared.start : shared.stop])  # [B, J, V]
    with torch.no_grad():
        entropy = (divergences.entropy(log_p) + divergences.entropy(log_q)).mean()
        jeffreys = divergences.jeffreys(log_p, log_q).mean()
    if detach == "long":
        log_p = log_p.detach()
    elif detach == "short":
        log_q = log_q.detach()
    return Misalignment(DIVERGENCES[divergence](log_p, log_q).mean(), entropy, jeffreys)


@torch.no_grad()
def measure_misalignment(
    logits_long: Tensor,
    logits_short: Tensor,
    extra: int,
    *,
    positions: Positions = "overlap",
    divergence: Divergence = "sce",
    detach: Detach = "none",
    special: int = 0,
) -> Misalignment:
    """The same values as `misalignment_loss`, without gradients and with little memory besides the logits [B, T, V].

    `detach` says where gradients go, and so changes nothing here.
    """
    shared = shared_positions(logits_short.shape[1], extra, positions, special)
    batch, _, vocabulary = logits_short.shape
    # Six buffers: both log-probabilities, and what a divergence makes of them.
    chunk = chunk_positions(6 * batch, vocabulary, logits_short.device)
    sums = torch.zeros(3, device=logits_short.device)
    for start in range(shared.start, shared.stop, chunk):
        stop = min(start + chunk, shared.stop)
        log_p = _log_softmax(logits_long[:, extra + start : extra + stop])  # [B, C, V]
        log_q = _log_softmax(logits_short[:, start:stop])  # [B, C, V]
        entropy = divergences.entropy(log_p) + divergences.entropy(log_q)
        parts = (DIVERGENCES[divergence](log_p, log_q), entropy, divergences.jeffreys(log_p, log_q))
        sums += torch.stack([part.sum() for part in parts])
    return Misalignment(*(sums / (batch * len(shared))))


def _log_softmax(logits: Tensor) -> Tensor:
    # Half precision keeps two or three digits of a log-probability: too few for a difference of two.
    log_probs = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    # It adds up a large vocabulary with few digits, `logsumexp` does not.
    return log_probs - torch.logsumexp(log_probs.detach(), -1, keepdim=True)
