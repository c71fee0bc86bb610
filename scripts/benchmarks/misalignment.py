"""Misalignment of one document: ours against a dense script, and a ladder of five lengths against its parts.

Two contexts of N and 3N/4 tokens. The dense script makes two forwards, full log-softmaxes of the shared positions and
the paper's symmetrical cross-entropy; `dense, all` computes entropy, jeffreys, js and agreement as well, as ours does.
Its floor is two bodies and one product of the head for the positions of both. A ladder gives the whole 5 × 5 matrix
over N/16 positions; its floor is five bodies and one product of the head for the positions of each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.scoring import FLOOR, Benchmark, head_product

if TYPE_CHECKING:
    from torch import Tensor, nn

DENSE, DENSE_ALL, OURS, LADDER, LADDER_FLOOR = "dense", "dense, all", "longshort", "ladder", "ladder floor"


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the JSON."""
    BENCHMARK.main(arguments)


def actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """Each side returns the mean symmetrical cross-entropy (the ladder: of its two longest contexts), in nats."""
    from longshort.scoring import score_suffixes

    length = tokens.shape[1] - 1
    shared = length * 3 // 4
    lengths = [length // 16, length // 8, length // 4, length // 2, length]
    window = tokens[:, :-1]

    def ours() -> float:
        scores = score_suffixes(model, tokens, [length, shared], shared, pairs=[(0, 1)])
        return float((scores.cross_entropy[0, 0, 1] + scores.cross_entropy[0, 1, 0]).mean())

    def dense(everything: bool) -> float:
        log_p = model(window, use_cache=False).logits[0, -shared:].float().log_softmax(-1)
        log_q = model(window[:, -shared:], use_cache=False).logits[0].float().log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        sce = -(p * log_q).sum(-1) - (q * log_p).sum(-1)
        if everything:
            entropy = -(p * log_p).sum(-1) - (q * log_q).sum(-1)
            jeffreys = ((p - q) * (log_p - log_q)).sum(-1)
            log_m = ((p + q) / 2).log()
            js = ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2
            agreement = (log_p.argmax(-1) == log_q.argmax(-1)).float()
            for values in (entropy, jeffreys, js, agreement):
                values.mean().item()
        return float(sce.mean())

    def floor() -> float:
        for size in (length, shared):
            model.model(window[:, -size:], use_cache=False)
        return head_product(model, 2 * shared)

    def ladder() -> float:
        scores = score_suffixes(model, tokens, lengths, lengths[0])
        return float((scores.cross_entropy[0, 3, 4] + scores.cross_entropy[0, 4, 3]).mean())

    def ladder_floor() -> float:
        for size in lengths:
            model.model(window[:, -size:], use_cache=False)
        return head_product(model, len(lengths) * lengths[0])

    return {
        DENSE: lambda: dense(False),
        DENSE_ALL: lambda: dense(True),
        OURS: ours,
        FLOOR: floor,
        LADDER: ladder,
        LADDER_FLOOR: ladder_floor,
    }


BENCHMARK = Benchmark(
    "misalignment",
    __doc__,
    (DENSE, DENSE_ALL, OURS, FLOOR, LADDER, LADDER_FLOOR),
    {OURS: (DENSE, DENSE_ALL, FLOOR), FLOOR: (DENSE, DENSE_ALL), LADDER: (LADDER_FLOOR,)},
    actions,
    ("128x2:4096", "512x4:1024,4096"),
)
