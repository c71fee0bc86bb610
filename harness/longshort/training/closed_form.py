"""Value and gradient of the training loss with respect to a block of logits, in closed form and in place.

With p = softmax(z) and A = ∂D/∂p the gradient of a divergence is ∂D/∂z = p∘A - p·Σ(p∘A). Every divergence here
has p∘A = p∘x + b·q: with Σ(p∘x) = E_p[x] that is ∂D/∂z = p∘(x - E_p[x] - b) + b·q. So for q's logits, with y.

    sce       x = -log q               y = -log p               b = -1
    jeffreys  x = log p - log q        y = log q - log p        b = -1
    kl        x = log p - log q, b = 0 y = 0, b = -1
    js        x = ½ (log p - log m)    y = ½ (log q - log m)    b = 0,   m = (p + q) / 2
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from longshort.scoring.divergences import jeffreys_and_jensen_shannon, log_softmax_, top_token
from longshort.training.config import Detach, Divergence

NUM_BUFFERS = 7  # of [C, V] in `scratch`


class _Side(NamedTuple):
    """One distribution's part in the gradient, see above."""

    factor: Tensor
    """x  # [C, V]"""
    mean: Tensor
    """E_p[x]  # [C]"""
    other: int
    """b"""


def cross_entropy_block(
    logits: Tensor, targets: Tensor, weights: Tensor, scratch: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of positions that are compared with no others.

    Args:
        logits: one side  # [1, C, V]
        targets: token ids  # [1, C]
        weights: of each position in the loss  # [1, C]
        scratch: buffers of the statistics' dtype, overwritten  # [7, C, V]
        gradient: where to write the gradient with respect to `logits`; may be `logits` itself  # [1, C, V]

    Returns:
        Σ weight · -log p(target), nats; and an empty tensor in place of the values of pairs  # [], [3, 0]
    """
    log_probs, probs = scratch[:1], scratch[1:2]  # [1, C, V] each
    log_softmax_(log_probs.copy_(logits), top_token(logits), probs)
    cross_entropy = _weighted_cross_entropy(log_probs, targets, weights)
    if gradient is not None:
        torch.mul(probs, weights[..., None], out=gradient)
        _subtract_at_targets(gradient, targets, weights)
    return cross_entropy, scratch.new_empty(3, 0)


def pair_block(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    scratch: Tensor,
    gradient: Tensor | None,
    *,
    divergence: Divergence,
    detach: Detach,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of both sides plus ``scale ·`` their divergence.

    Args:
        logits: the long side's, then the short side's  # [2, C, V]
        targets: token ids  # [2, C]
        weights: of each position in the cross-entropy  # [2, C]
        scratch: buffers of the statistics' dtype, overwritten  # [7, C, V]
        gradient: where to write the gradient with respect to `logits`; may be `logits` itself  # [2, C, V]
        divergence: as in `misalignment_loss`.
        detach: the side whose gradient lacks the divergence.
        scale: weight of a pair's divergence in the loss; with 0 it adds no gradient.

    Returns:
        Σ weight · -log p(target), and of each pair divergence, entropy and jeffreys; nats  # [], [3, C]
    """
    log_probs, probs = scratch[:2], scratch[2:4]  # [2, C, V] each
    log_softmax_(log_probs.copy_(logits), top_token(logits), probs)
    cross_entropy = _weighted_cross_entropy(log_probs, targets, weights)
    values, long_side, short_side = _divergence(divergence, log_probs, probs, scratch[4:])
    if gradient is not None:
        long_probs, short_probs = probs
        long_scale = 0.0 if detach == "long" else scale
        short_scale = 0.0 if detach == "short" else scale
        _write_gradient(gradient[0], weights[0], long_probs, short_probs, long_side, long_scale)
        _write_gradient(gradient[1], weights[1], short_probs, long_probs, short_side, short_scale)
        _subtract_at_targets(gradient, targets, weights)
    return cross_entropy, values


def _divergence(
    divergence: Divergence, log_probs: Tensor, probs: Tensor, buffers: Tensor
) -> tuple[Tensor, _Side, _Side]:
    """Divergence, entropy and jeffreys of each pair [3, C], and both sides of the gradient.

    The sides' factors lie in the buffers [3, C, V] and in `log_probs`, which are overwritten.
    """
    ratio_buffer, product_buffer, third_buffer = buffers  # [C, V] each

    def mean(weights: Tensor, values: Tensor) -> Tensor:
        return torch.mul(weights, values, out=product_buffer).sum(-1)  # [C]; bmm is slower here

    log_p, log_q = log_probs  # [C, V] each
    p, q = probs  # [C, V] each
    ratio = torch.sub(log_p, log_q, out=ratio_buffer)  # [C, V]
    entropy_p, entropy_q = -mean(p, log_p), -mean(q, log_q)
    kl_pq = mean(p, ratio)
    # The sum of both would lose the digits of close distributions; here no term is negative.
    jeffreys = mean(torch.sub(p, q, out=product_buffer), ratio)
    entropy, kl_qp = entropy_p + entropy_q, jeffreys - kl_pq
    if divergence == "sce":
        value = entropy + jeffreys
        side_p = _Side(log_q.neg_(), entropy_p + kl_pq, -1)
        side_q = _Side(log_p.neg_(), entropy_q + kl_qp, -1)
    elif divergence == "jeffreys":
        value = jeffreys
        side_p = _Side(ratio, kl_pq, -1)
        side_q = _Side(torch.neg(ratio, out=product_buffer), kl_qp, -1)
    elif divergence == "kl":
        # Both exponentials add up to 1. Their difference removes the rounding of the two normalizing constants.
        exponentials = torch.exp(log_p, out=product_buffer).sub_(torch.exp(log_q, out=third_buffer))
        value = kl_pq - exponentials.sum(-1)
        side_p = _Side(ratio, kl_pq, 0)
        side_q = _Side(product_buffer.zero_(), torch.zeros_like(kl_pq), -1)
    else:
        _, value = jeffreys_and_jensen_shannon(p, q, ratio, (product_buffer, third_buffer))
        log_m = torch.logaddexp(log_p, log_q, out=ratio_buffer).sub_(math.log(2))
        factor_p, factor_q = log_p.sub_(log_m).mul_(0.5), log_q.sub_(log_m).mul_(0.5)
        side_p, side_q = _Side(factor_p, mean(p, factor_p), 0), _Side(factor_q, mean(q, factor_q), 0)
    return torch.stack([value, entropy, jeffreys]), side_p, side_q


def _weighted_cross_entropy(log_probs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    target_log_probs = log_probs.gather(-1, targets[..., None]).squeeze(-1)  # [S, C]
    return -(target_log_probs * weights).sum()


def _write_gradient(
    gradient: Tensor, weights: Tensor, probs: Tensor, other_probs: Tensor, side: _Side, scale: float
) -> None:
    """The gradient of one side [C, V], all but the cross-entropy's part at the targets; overwrites `side.factor`."""
    if scale == 0:
        torch.mul(probs, weights[:, None], out=gradient)
        return
    constant = weights - scale * (side.mean + side.other)  # [C]
    factor = torch.add(constant[:, None], side.factor, alpha=scale, out=side.factor).mul_(probs)  # [C, V]
    torch.add(factor, other_probs, alpha=scale * side.other, out=gradient)


def _subtract_at_targets(gradient: Tensor, targets: Tensor, weights: Tensor) -> None:
    """The part of the cross-entropy's gradient at the targets."""
    gradient.scatter_add_(-1, targets[..., None], -weights[..., None].to(gradient.dtype))
