"""The output head with all that is taken from its logits, against the floor: one plain product of the same size.

Of N positions: their negative log-likelihood; entropies, cross-entropies, jeffreys, js and agreement of N/2 pairs;
the matrix of five contexts at N/5 positions. The body of the model is left out. A pair cannot do without the softmax of
both rows and the logarithm of their mean: `pair floor` is the product with these alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.scoring import Benchmark, head_product

if TYPE_CHECKING:
    from torch import Tensor, nn

PRODUCT, LIKELIHOOD, PAIR, PAIR_FLOOR, MATRIX = SIDES = "product", "likelihood", "pair", "pair floor", "matrix of 5"


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the JSON."""
    BENCHMARK.main(arguments)


def actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """The body returns what it holds already, so that only the head is measured."""
    import torch

    from longshort.scoring import score_prefix, score_suffixes
    from longshort.scoring.lm_head import lm_head_of

    length = tokens.shape[1] - 1
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, length + 1, options.hidden, generator=generator).to(model.lm_head.weight)
    head = lm_head_of(model)
    head.hidden_states = lambda tokens, keep, **inputs: states[:, -keep:]  # type: ignore[method-assign]  # the body is not measured

    def pair() -> float:
        scores = score_suffixes(model, tokens, [length, length - 1], length // 2, pairs=[(0, 1)])
        return float(scores.cross_entropy.mean())

    def pair_floor() -> float:
        total = 0.0
        for part in states[0, 1:].split(256):
            logits = torch.mm(part, model.lm_head.weight.T)  # [256, V]
            for p in (torch.softmax(rows, -1) for rows in logits.split(8)):  # which a CPU's cache holds
                total += float(torch.log(p[::2])[0, 0])
        return total

    def matrix() -> float:
        lengths = [length - shorter for shorter in range(5)]
        return float(score_suffixes(model, tokens, lengths, length // 5).cross_entropy.mean())

    return {
        PRODUCT: lambda: head_product(model, length),
        LIKELIHOOD: lambda: float(score_prefix(model, tokens).mean()),
        PAIR: pair,
        PAIR_FLOOR: pair_floor,
        MATRIX: matrix,
    }


BENCHMARK = Benchmark(
    "head",
    __doc__,
    SIDES,
    dict.fromkeys(SIDES[1:], (PRODUCT,)) | {PAIR: (PRODUCT, PAIR_FLOOR)},
    actions,
    ("128x1:4096", "512x1:4096", "2048x1:1024"),
)
