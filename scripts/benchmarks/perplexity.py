"""Perplexity of one document: ours against stock lm-eval's `loglikelihood_rolling` at the same length.

The floor is the model's body and one product of its head, without anything that is taken from the logits.
--gpu sets a body of a billion parameters in bfloat16 and lengths of 4k to 64k tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.gpu import gpu_arguments
from benchmarks.scoring import FLOOR, Benchmark, forward_flops, head_product

if TYPE_CHECKING:
    from torch import Tensor, nn

STOCK, OURS = "lm-eval", "longshort"
CASES = ("128x2:1024,4096,32768", "512x4:4096")


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the JSON."""
    BENCHMARK.main(gpu_arguments("perplexity", arguments) if "--gpu" in arguments else arguments)


def actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """Each side returns nats per token, over all tokens (lm-eval) or all but the first (ours)."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from longshort.corpora import Document
    from longshort.lmeval import requests
    from longshort.settings import settings_from
    from longshort.training.byte_tokenizer import byte_tokenizer

    length = tokens.shape[1] - 1
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), max_length=length, batch_size=1)
    text = bytes(tokens[0, :length].tolist()).decode()

    def stock() -> float:
        (log_likelihood,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], True)
        return -float(log_likelihood) / length

    def ours() -> float:
        settings = settings_from({"lengths": [length], "num_docs": 1})
        job = requests.Job(Document("text", text), 0, settings, requests.PERPLEXITY)
        (answer,) = requests.answer(lm, [Instance(requests.REQUEST, {}, ("text", job), 0)])
        return -answer.values[f"ppl@{length}"]

    def floor() -> float:
        model.model(tokens[:, :length], use_cache=False)
        return head_product(model, length)

    return {STOCK: stock, OURS: ours, FLOOR: floor}


BENCHMARK = Benchmark(
    "perplexity", __doc__, (STOCK, OURS, FLOOR), {OURS: (STOCK, FLOOR), FLOOR: (STOCK,)}, actions, CASES, forward_flops
)
