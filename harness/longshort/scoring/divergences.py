"""How far apart two next-token distributions are. All values in nats, reduced over the last axis.

Inputs are log-probabilities; half precision is computed in float32. The functions of two log-probabilities are
differentiable; those of more arguments write over their buffers, and serve scoring and the training loss alike.
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

ARGMAX_BLOCK = 256
# A CPU adds a product's terms one after another in float32: over a large vocabulary it must be cut into parts.
PRODUCT_BLOCK = 1024
LARGE_VOCABULARY = 16 * PRODUCT_BLOCK
LARGE_LOG_RATIO = 40.0  # of two probabilities, of which the smaller one then counts for nothing in a sum


def entropy(log_p: Tensor) -> Tensor:
    """H(p) = -Σ p log p.  [..., V] → [...]."""
    return cross_entropy(log_p, log_p)


def cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """H(p, q) = -Σ p log q.  [..., V], [..., V] → [...]."""
    log_p, log_q = _at_least_float32(log_p), _at_least_float32(log_q)
    return -(log_p.exp() * log_q).sum(-1)


def symmetrical_cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """H(p, q) + H(q, p), the sum, not the mean.  [..., V], [..., V] → [...]."""
    return cross_entropy(log_p, log_q) + cross_entropy(log_q, log_p)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (log p - log q).  [..., V], [..., V] → [...].

    Computed as Σ [p (log p - log q) - (p - q)]: no term is negative, and the rounding of the normalizing constants,
    which is as large as the divergence of close distributions, cancels.
    """
    log_p, log_q = _at_least_float32(log_p), _at_least_float32(log_q)
    p = log_p.exp()
    return (p * (log_p - log_q) - (p - log_q.exp())).sum(-1)


def jeffreys(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) + KL(q‖p) = Σ (p - q)(log p - log q): no term is negative.  [..., V], [..., V] → [...]."""
    log_p, log_q = _at_least_float32(log_p), _at_least_float32(log_q)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ KL(p‖m) + ½ KL(q‖m) with m = (p + q) / 2.  [..., V], [..., V] → [...].

    With y = (log p - log q) / 2 this is Σ m (y tanh y - log cosh y). No term is negative, and terms of close
    distributions keep their digits: log cosh y = log1p(2 sinh²(y / 2)) is about half of y tanh y there.
    """
    log_p, log_q = _at_least_float32(log_p), _at_least_float32(log_q)
    half = (log_p - log_q).clamp(-LARGE_LOG_RATIO, LARGE_LOG_RATIO) / 2  # y
    divergence = half * half.tanh() - (2 * (half / 2).sinh().square()).log1p()
    return ((log_p.exp() + log_q.exp()) * divergence).sum(-1) / 2


def log_softmax_(logits: Tensor, top: Tensor, probabilities: Tensor) -> Tensor:
    """Turn logits into log-probabilities in place, and write the probabilities into another tensor.

    `torch.softmax` and `torch.log_softmax` add up a large vocabulary with few digits; their sum is corrected here.

    Args:
        logits: float32 or float64; overwritten  # [..., V]
        top: index of the greatest logit, as `top_token` returns it  # [...]
        probabilities: overwritten  # [..., V]

    Returns:
        `logits`, which now holds log-probabilities.
    """
    top = top[..., None]  # [..., 1]
    torch.softmax(logits, -1, out=probabilities)  # takes half the time of exp and the rest
    top_probability = probabilities.gather(-1, top)  # [..., 1]
    # The others are added up separately: next to a probability close to 1 they would lose their digits.
    others = probabilities.scatter_(-1, top, 0).sum(-1, keepdim=True)  # [..., 1]
    probabilities.scatter_(-1, top, top_probability).div_(top_probability + others)
    # Shifted first, so that large logits keep their digits.
    return logits.sub_(logits.gather(-1, top)).sub_((others / top_probability).log1p_())


def cross_entropy_matrix(p: Tensor, log_p: Tensor) -> Tensor:
    """H(p_i, p_j) of any two of M distributions.  [..., M, V], [..., M, V] → [..., M, M]."""
    vocab_size = p.shape[-1]
    if p.device.type != "cpu" or vocab_size < LARGE_VOCABULARY:
        return -(p @ log_p.mT)  # one batched product; no term is negative
    matrices = p.new_empty(*p.shape[:-1], p.shape[-2])  # [..., M, M]
    width = vocab_size // PRODUCT_BLOCK * PRODUCT_BLOCK
    rows = p.flatten(0, -3), log_p.flatten(0, -3), matrices.flatten(0, -3)
    for probabilities, log_probabilities, matrix in zip(*rows, strict=True):  # [M, V], [M, V], [M, M]
        left, right = (
            distributions[:, :width].unflatten(-1, (-1, PRODUCT_BLOCK)).transpose(0, 1)  # [V // block, M, block]
            for distributions in (probabilities, log_probabilities)
        )
        product = torch.bmm(left, right.mT).sum(0)  # [M, M]
        matrix.copy_(product.addmm_(probabilities[:, width:], log_probabilities[:, width:].T))
    return matrices.neg_()


def jeffreys_and_jensen_shannon(
    p: Tensor, q: Tensor, log_ratio: Tensor, work: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """`jeffreys` and `jensen_shannon` from the probabilities as well, which saves time. Without gradients.

    With r = (p - q)² / 4pq the second is ¼ Σ [(p - q)(log p - log q) - (p + q) log1p(r)], as r = sinh²(y) for y as
    there.

    Args:
        p, q: probabilities  # [..., V]
        log_ratio: log p - log q; overwritten  # [..., V]
        work: two tensors, overwritten  # [..., V]

    Returns:
        Both divergences, never negative  # [...], [...]
    """
    terms, difference = work
    torch.sub(p, q, out=difference)
    jeffreys = torch.mul(difference, log_ratio, out=terms).sum(-1)
    smallest = p.new_tensor(torch.finfo(p.dtype).tiny)  # where q underflows, r is large instead of infinite
    ratio = difference.square_().div_(torch.addcmul(smallest, p, q, value=4, out=log_ratio))  # r
    total = torch.add(p, q, out=log_ratio)
    terms.sub_(ratio.log1p_().mul_(total)).clamp_min_(0)
    # No term exceeds 2 (p + q) log 2; those with r too small would.
    jensen_shannon = torch.minimum(terms, total.mul_(2 * math.log(2)), out=terms).sum(-1) / 4
    return jeffreys.clamp_min_(0), jensen_shannon


def top_token(values: Tensor) -> Tensor:
    """Index of the greatest value, the first of equal ones. In blocks, which on a CPU take a tenth of argmax's time.

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


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
