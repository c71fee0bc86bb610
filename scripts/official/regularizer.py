"""The regularizer of Du et al. (ICML 2025): loss and gradients against the formulas, position by position, in float64.

Its published repository could not be obtained, so official code is not compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from longshort.training.fused import FusedLoss, add_fused_loss
from longshort.training.regularizer import misalignment_loss
from official.models import random_tokens, tiny_llama
from official.source import Checkout
from official.table import Comparison, Difference, of_tensors

LENGTH, BATCH = 10, 2
COMBINATIONS = list(
    itertools.product(
        ("sce", "jeffreys", "js", "kl"),
        ("overlap", "in_range", "last"),
        ("none", "long", "short"),
        (1, 3, 5),  # e
        (0, 1),  # special tokens
    )
)
FORMULAS = "none: the formulas, written out position by position in `scripts/official/regularizer.py`"
OURS = (
    "The paper has `sce` over shared tokens. The sum, not the mean, of both cross-entropies, the other divergences, "
    "`in_range`, `last` and `--detach` are ours."
)


def comparisons() -> list[Comparison]:
    """What could be compared and what not."""
    each = "4 divergences × 3 choices of positions × 3 of detach × 3 offsets × 2 numbers of special tokens"
    return [
        Comparison("regularizer", "loss, metric", "", "longshortalignment", "", None),
        Comparison("regularizer", "loss", f"{each}, random logits, float64", "", FORMULAS, _losses, OURS),
        Comparison("regularizer", "gradients of the logits", f"{each}, float64", "", FORMULAS, _gradients, OURS),
        Comparison(
            "regularizer",
            "fused loss and gradients",
            f"{each}, α 0.3, all weights of a tiny Llama in float64, cross-entropy included",
            "",
            FORMULAS,
            _fused,
            OURS,
        ),
    ]


def by_formula(
    logits_long: Tensor, logits_short: Tensor, extra: int, divergence: str, positions: str, detach: str, special: int
) -> Tensor:
    """Mean over pairs: position e + j of the long window [B, T, V] and j of the short one end in the same token."""
    length = logits_short.shape[1]
    values = []
    for j in range(length - extra):
        half = (length + 1) // 2
        is_chosen = {"overlap": j >= special, "in_range": j + 1 >= half, "last": extra + j == length - 1}[positions]
        if not is_chosen:
            continue
        p, q = logits_long[:, extra + j].softmax(-1), logits_short[:, j].softmax(-1)  # [B, V]
        p = p.detach() if detach == "long" else p
        q = q.detach() if detach == "short" else q
        m = (p + q) / 2
        values.append(
            {
                "sce": -(p * q.log()).sum(-1) - (q * p.log()).sum(-1),
                "jeffreys": (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1),
                "js": (p * (p / m).log()).sum(-1) / 2 + (q * (q / m).log()).sum(-1) / 2,
                "kl": (p * (p / q).log()).sum(-1),
            }[divergence]
        )
    return torch.stack(values).mean()


def _values() -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Of every combination the loss by the formula, ours, and the logits of the windows."""
    generator = torch.Generator().manual_seed(0)
    for divergence, positions, detach, extra, special in COMBINATIONS:
        windows = [
            torch.randn(BATCH, LENGTH, 31, generator=generator, dtype=torch.float64).mul(3).requires_grad_()
            for _ in range(2)
        ]
        expected = by_formula(*windows, extra, divergence, positions, detach, special)
        ours = misalignment_loss(
            *windows, extra, divergence=divergence, positions=positions, detach=detach, special=special
        )
        yield expected, ours.loss, windows


def _losses(_: Checkout | None) -> Difference:
    return of_tensors((expected, ours) for expected, ours, _ in _values())


def _gradients(_: Checkout | None) -> Difference:
    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for expected, ours, windows in _values():
            gradients = [torch.autograd.grad(loss, windows, allow_unused=True) for loss in (expected, ours)]
            for window, official, own in zip(windows, *gradients, strict=True):
                yield _or_zeros(official, window), _or_zeros(own, window)

    return of_tensors(pairs())


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _fused(_: Checkout | None) -> Difference:
    plain, fused = tiny_llama(LENGTH).double(), tiny_llama(LENGTH).double()
    tokens = random_tokens(2 * BATCH, LENGTH)
    if not add_fused_loss(fused, tokens):
        raise ValueError("the tiny Llama's loss cannot be fused")

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for divergence, positions, detach, extra, special in COMBINATIONS:
            logits = plain(input_ids=tokens).logits
            log_probs = logits[:, :-1].log_softmax(-1)
            cross_entropy = -log_probs.gather(-1, tokens[:, 1:, None]).mean()
            divergences = by_formula(*logits.chunk(2), extra, divergence, positions, detach, special)
            expected = cross_entropy + 0.3 * divergences
            request = FusedLoss(extra, special, 0.3, 2, positions, divergence, detach)
            ours = fused(input_ids=tokens, fused_loss=request).loss
            yield expected, ours
            gradients = (
                torch.autograd.grad(loss, [*model.parameters()]) for loss, model in ((expected, plain), (ours, fused))
            )
            yield from zip(*gradients, strict=True)

    return of_tensors(pairs())
