"""Perplexity at five lengths of two documents: ours, from one pass, against a pass at the greatest alone.

Ours includes the probe that tells, once per model, whether one pass may be read at all lengths. The third side is a
pass per length. Lengths are 1/16, 1/8, 1/4, 1/2 and all of the tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.scoring import Benchmark

if TYPE_CHECKING:
    from torch import Tensor, nn

ALL, LONGEST, EACH = "one pass", "longest", "each"
DOCUMENTS = 2


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the JSON."""
    BENCHMARK.main(arguments)


def actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """Each side returns the log-perplexity at the greatest length."""
    import numpy as np

    from longshort.lmeval.documents import EncodedDocument
    from longshort.lmeval.measure import PASS_PER_LENGTH, SINGLE_PASS
    from longshort.lmeval.reading import Wanted, measure_documents
    from longshort.settings import settings_from
    from longshort.settings.types import MIN_LENGTH

    length = tokens.shape[1] - 1
    lengths = sorted({max(MIN_LENGTH, length // part) for part in (16, 8, 4, 2, 1)})  # fewer in the warm-up
    document = EncodedDocument("text", tokens[0, :-1].cpu(), np.arange(1.0, length + 1))

    def read(lengths: list[int], passes: str | None) -> float:
        for _ in range(DOCUMENTS):
            # One token too few for the fixed targets, which are skipped.
            wanted = Wanted(settings_from({"lengths": [*lengths, length + 1]}), lengths, passes=passes)
            (measured,) = measure_documents(model, [document], [], wanted)
            passes = measured.passes
        return -measured.values[f"ppl@{length}"]

    return {
        ALL: lambda: read(lengths, None),
        LONGEST: lambda: read([length], SINGLE_PASS),
        EACH: lambda: read(lengths, PASS_PER_LENGTH),
    }


BENCHMARK = Benchmark("lengths", __doc__, (ALL, LONGEST, EACH), {ALL: (LONGEST, EACH)}, actions, ("512x4:4096",))
