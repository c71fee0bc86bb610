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

from longshort.training.config import Detach, Divergence

NUM_BUFFERS = 6  # of [C, V] in `scratch`


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
) -> Tensor:
    """Weighted cross-entropy of one side.

    Args:
        logits: [C, V].
        targets: token ids  # [C]
        weights: of each position in the loss  # [C]
        scratch: buffers of the statistics' dtype, overwritten  # [6, C, V]
        gradient: where to write the gradient with respect to `logits`; may be `logits` itself.

    Returns:
        Σ weight · -log p(target), nats.
    """
    log_p = torch.log_softmax(logits, -1, dtype=scratch.dtype, out=scratch[0])
    loss = -(log_p.gather(-1, targets[:, None]).squeeze(-1) * weights).sum()
    if gradient is not None:
        torch.mul(log_p.exp_(), weights[:, None], out=gradient)
        _subtract_at(gradient, targets, weights)
    return loss


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
        scratch: buffers of the statistics' dtype, overwritten  # [6, C, V]
        gradient: where to write the gradient with respect to `logits`; may be `logits` itself.
        divergence: as in `misalignment_loss`.
        detach: the side whose gradient lacks the divergence.
        scale: weight of a pair's divergence in the loss; with 0 it adds no gradient.

    Returns:
        Σ weight · -log p(target), and of each pair divergence, entropy and jeffreys [3, C]; nats.
    """
    log_p, log_q = logs = torch.log_softmax(logits, -1, dtype=scratch.dtype, out=scratch[:2])
    p, q = torch.exp(logs, out=scratch[2:4])
    loss = -(logs.gather(-1, targets[..., None]).squeeze(-1) * weights).sum()
    values, *sides = _divergence(divergence, log_p, log_q, p, q, *scratch[4:])
    if gradient is not None:
        for side, this, other, name, weight, out in zip(
            sides, (p, q), (q, p), ("long", "short"), weights, gradient, strict=True
        ):
            if scale == 0 or detach == name:
                torch.mul(this, weight[:, None], out=out)
                continue
            offset = weight - scale * (side.mean + side.other)  # [C]
            factor = torch.add(offset[:, None], side.factor, alpha=scale, out=side.factor).mul_(this)
            torch.add(factor, other, alpha=scale * side.other, out=out)
        _subtract_at(gradient, targets, weights)
    return loss, values


def _divergence(
    divergence: Divergence, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, ratio: Tensor, product: Tensor
) -> tuple[Tensor, _Side, _Side]:
    """Divergence, entropy and jeffreys of each pair [3, C], and both sides of the gradient.

    Overwrites all of its arguments but p and q.
    """

    def mean(weights: Tensor, of: Tensor) -> Tensor:
        return torch.mul(weights, of, out=product).sum(-1)  # [C]; bmm is slower here

    torch.sub(log_p, log_q, out=ratio)
    entropy_p, entropy_q = -mean(p, log_p), -mean(q, log_q)
    kl_pq, kl_qp = mean(p, ratio), -mean(q, ratio)
    entropy, jeffreys = entropy_p + entropy_q, kl_pq + kl_qp
    if divergence == "sce":
        value = entropy + jeffreys
        side_p = _Side(log_q.neg_(), entropy_p + kl_pq, -1)
        side_q = _Side(log_p.neg_(), entropy_q + kl_qp, -1)
    elif divergence == "jeffreys":
        value = jeffreys
        side_p = _Side(ratio, kl_pq, -1)
        side_q = _Side(torch.neg(ratio, out=product), kl_qp, -1)
    elif divergence == "kl":
        value = kl_pq
        side_p = _Side(ratio, kl_pq, 0)
        side_q = _Side(product.zero_(), torch.zeros_like(kl_pq), -1)
    else:
        log_m = torch.logaddexp(log_p, log_q, out=ratio).sub_(math.log(2))
        factor_p, factor_q = log_p.sub_(log_m).mul_(0.5), log_q.sub_(log_m).mul_(0.5)
        side_p, side_q = _Side(factor_p, mean(p, factor_p), 0), _Side(factor_q, mean(q, factor_q), 0)
        value = side_p.mean + side_q.mean
    return torch.stack([value, entropy, jeffreys]), side_p, side_q


def _subtract_at(gradient: Tensor, targets: Tensor, weights: Tensor) -> None:
    """The part of the cross-entropy's gradient at the targets."""
    gradient.scatter_add_(-1, targets[..., None], -weights[..., None].to(gradient.dtype))
