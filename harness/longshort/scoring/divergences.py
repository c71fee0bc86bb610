"""How far apart two next-token distributions are. All values in nats, reduced over the last axis.

Inputs are log-probabilities; every function is differentiable, so the training loss uses the same code.
With p and q the two distributions, H(p, q) = -Σ p log q:

    sce      = H(p, q) + H(q, p)             symmetrical cross-entropy, the paper's misalignment
    entropy  = H(p) + H(q)                   the part of it that is not a difference
    jeffreys = KL(p‖q) + KL(q‖p)             the part of it that is: sce = entropy + jeffreys
    js       = H(m) - (H(p) + H(q)) / 2,     Jensen-Shannon, m = (p + q) / 2, at most log 2
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def entropy(log_p: Tensor) -> Tensor:
    """H(p) = -Σ p log p.  [..., V] → [...]."""
    return -(log_p.exp() * log_p).sum(-1)


def cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """H(p, q) = -Σ p log q.  [..., V], [..., V] → [...]."""
    return -(log_p.exp() * log_q).sum(-1)


def symmetrical_cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """H(p, q) + H(q, p), the sum, not the mean.  [..., V], [..., V] → [...]."""
    return cross_entropy(log_p, log_q) + cross_entropy(log_q, log_p)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (log p - log q).  [..., V], [..., V] → [...]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def jeffreys(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) + KL(q‖p) = Σ (p - q)(log p - log q): no term is negative.  [..., V], [..., V] → [...]."""
    return jeffreys_from(log_p.exp(), log_q.exp(), log_p - log_q)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ KL(p‖m) + ½ KL(q‖m) with m = (p + q) / 2.  [..., V], [..., V] → [...]."""
    return jensen_shannon_from(log_p.exp(), log_q.exp(), log_p - log_q)


def jeffreys_from(p: Tensor, q: Tensor, log_ratio: Tensor, work: Tensor | None = None) -> Tensor:
    """`jeffreys`, of those who have the probabilities and log p - log q as well.  3 × [..., V] → [...].

    With a tensor [..., V] to work in, nothing else of that size is made.
    """
    return torch.mul(torch.sub(p, q, out=work), log_ratio, out=work).sum(-1)


def jensen_shannon_from(p: Tensor, q: Tensor, log_ratio: Tensor, work: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`jensen_shannon`, likewise, with two tensors [..., V] to work in.  3 × [..., V] → [...].

    With x = log p - log q, log(m / q) = softplus(x) - log 2 and log(m / p) is the same less x: no logarithm of m,
    which may be 0, and 0 to the last digit where p = q.
    """
    out, product = work or (None, None)
    softplus = functional.softplus(log_ratio) if out is None else torch.ops.aten.softplus.out(log_ratio, out=out)
    of_q = torch.mul(q, torch.sub(softplus, math.log(2), out=product), out=product).sum(-1)
    softplus = softplus.sub_(log_ratio)
    of_p = torch.mul(p, torch.sub(softplus, math.log(2), out=product), out=product).sum(-1)
    return (of_p + of_q) / -2
