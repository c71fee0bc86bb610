"""LongPPL of one document, key tokens included: ours against the package `longppl` 0.3.0.

The model is its own evaluator, with short contexts of a quarter of the text and more. Every token is a candidate here,
so that ours has most to do: it otherwise reads only windows with a token below --max-loss, and passes only such tokens
through the LM head. The package has to be installed: pip install --no-deps longppl==0.3.0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.scoring import Benchmark

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGE, OURS = "package", "longshort"
MIN_GAIN, MAX_LOSS = 1e-3, 1000.0  # a random model's losses hardly depend on the context
CASES = ("128x2:4096",)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the JSON."""
    BENCHMARK.main(arguments)


def actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """Each side returns the mean NLL of the key tokens."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from longppl.longppl import compute_longppl

    from longshort.corpora import Document
    from longshort.lmeval import longppl
    from longshort.lmeval.backend import backend_of
    from longshort.lmeval.longppl_evaluator import find_spans
    from longshort.lmeval.longppl_spans import DocumentSpans
    from longshort.scoring.key_tokens import Criterion
    from longshort.settings import settings_from
    from longshort.training.byte_tokenizer import byte_tokenizer

    length, tokenizer = tokens.shape[1] - 1, byte_tokenizer()
    short = length // 4
    lm = HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=1)
    document = Document("text", bytes(tokens[0, :length].tolist()).decode())

    def package() -> float:
        found = compute_longppl(
            document.text, model, model, tokenizer, tokenizer, None, short, short, MIN_GAIN, -MAX_LOSS
        )
        return math.log(found["longppl"])

    def ours() -> float:
        backend = backend_of(lm, longppl.LONGPPL)
        found = find_spans(backend, document, length, Criterion(short, short, MIN_GAIN, MAX_LOSS))
        settings = settings_from({"lengths": [length], "num_docs": 1, "key_spans": "spans.jsonl"})
        job = longppl.KeyTokenJob(document, 0, settings, DocumentSpans(found.spans, found.reach))
        (answer,) = longppl.answer(lm, [Instance(longppl.LONGPPL, {}, ("text", job), 0)])
        return -float(answer.values[f"longppl@{length}"])

    return {PACKAGE: package, OURS: ours}


BENCHMARK = Benchmark("longppl", __doc__, (PACKAGE, OURS), {OURS: (PACKAGE,)}, actions, CASES)
