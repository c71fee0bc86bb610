"""The output head with all that is taken from its logits, against the floor: one plain product of the same size.

Of N positions: their negative log-likelihood; entropies, cross-entropies, jeffreys, js and agreement of N/2 pairs;
the matrix of five contexts at N/5 positions. The body of the model is left out. A pair cannot do without the softmax of
both rows and the logarithm of their mean: `pair floor` is the product with these alone.

With --dtype bfloat16 or float16 another question is asked: what logits and likelihoods cost that are float32 from the
product on, against the model's own head, whose rounded logits are turned into float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.scoring import Benchmark, head_product

if TYPE_CHECKING:
    from torch import Tensor, nn

PRODUCT, LIKELIHOOD, PAIR, PAIR_FLOOR, MATRIX = SIDES = "product", "likelihood", "pair", "pair floor", "matrix of 5"
LOGITS, ROUNDED_LOGITS, ROUNDED_LIKELIHOOD = "logits", "rounded", "rounded nll"


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the JSON."""
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--dtype", default="float32")
    dtype = chosen.parse_known_args(arguments)[0].dtype
    (BENCHMARK if dtype == "float32" else replace(HALF_BENCHMARK, name=f"head_{dtype}")).main(arguments)


def actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """The body returns what it holds already, so that only the head is measured."""
    import torch

    from longshort.scoring import score_prefix, score_suffixes
    from longshort.scoring.lm_head import lm_head_of

    length = tokens.shape[1] - 1
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, length + 1, options.hidden, generator=generator).to(model.lm_head.weight)
    head = lm_head_of(model)
    head.hidden_states = lambda tokens, keep, **inputs: states[:, -keep:]  # type: ignore[method-assign]  # the backbone is not measured

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


def half_actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """The same positions through a half-precision head: the model's own product and ours, logits alone and the NLL."""
    import torch

    from longshort.scoring import score_prefix
    from longshort.scoring.chunks import chunk_positions
    from longshort.scoring.lm_head import lm_head_of

    length, vocabulary = tokens.shape[1] - 1, options.vocabulary
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, length + 1, options.hidden, generator=generator).to(model.lm_head.weight)
    head = lm_head_of(model)
    head.hidden_states = lambda tokens, keep, **inputs: states[:, -keep:]  # type: ignore[method-assign]  # the backbone is not measured

    def logits() -> float:
        size = min(length, chunk_positions(head.copies, vocabulary, states.device))
        buffer = torch.empty(size * vocabulary, device=states.device)
        return sum(float(head.logits(part, buffer)[0, 0, 0]) for part in states[:, :-1].split(size, 1))

    def rounded(start: int, size: int) -> Tensor:
        return head.model_logits(states[:, start : start + size]).float()  # [1, size, V]

    def rounded_logits() -> float:
        size = chunk_positions(2, vocabulary, states.device)
        return sum(float(rounded(start, min(size, length - start))[0, 0, 0]) for start in range(0, length, size))

    def rounded_likelihood() -> float:
        size, nll = chunk_positions(2, vocabulary, states.device), torch.empty(length)
        for start in range(0, length, size):
            part = rounded(start, min(size, length - start))[0]
            top = part.amax(-1, keepdim=True)
            target = part.gather(-1, tokens[0, start + 1 : start + 1 + len(part), None]) - top
            nll[start : start + size] = (part.sub_(top).exp_().sum(-1, keepdim=True).log() - target)[:, 0]
        return float(nll.mean())

    return {
        ROUNDED_LOGITS: rounded_logits,
        LOGITS: logits,
        ROUNDED_LIKELIHOOD: rounded_likelihood,
        LIKELIHOOD: lambda: float(score_prefix(model, tokens).mean()),
    }


HALF_BENCHMARK = Benchmark(
    "head",
    __doc__,
    (ROUNDED_LOGITS, LOGITS, ROUNDED_LIKELIHOOD, LIKELIHOOD),
    {LOGITS: (ROUNDED_LOGITS,), LIKELIHOOD: (ROUNDED_LIKELIHOOD,)},
    half_actions,
    ("576x1:4096", "2048x1:1024"),
)
BENCHMARK = Benchmark(
    "head",
    __doc__,
    SIDES,
    dict.fromkeys(SIDES[1:], (PRODUCT,)) | {PAIR: (PRODUCT, PAIR_FLOOR)},
    actions,
    ("128x1:4096", "512x1:4096", "2048x1:1024"),
)
