"""Both tasks of one document on a GPU against lm-eval's perplexity of the same number of tokens.

The model is a random Llama of a billion parameters in bfloat16, at lengths of 4k to 64k tokens. `perplexity` is that
task alone, which evaluates one window as lm-eval does; `both` also evaluates the shorter context of the misalignment.
Peak memory is measured above the model. The rate is the FLOP/s of the windows relative to a product of two large
matrices on the same card. Attention is SDPA and, if it is installed, flash attention.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import perplexity
from benchmarks.gpu import gpu_arguments
from benchmarks.scoring import Benchmark, forward_flops

if TYPE_CHECKING:
    from torch import Tensor, nn

STOCK, PERPLEXITY, BOTH = SIDES = ("lm-eval", "perplexity", "both")


def main(arguments: list[str]) -> None:
    """Measure, print the tables, write the JSON."""
    BENCHMARK.main(gpu_arguments("evaluate", arguments))


def actions(options: argparse.Namespace, model: nn.Module, tokens: Tensor) -> Mapping[str, Callable[[], float]]:
    """Each side returns nats per token, over all tokens (lm-eval) or all but the first (ours)."""
    from lm_eval.models.huggingface import HFLM

    from longshort.lmeval.evaluate import evaluate_loaded, prepare_tasks
    from longshort.settings import DEFAULT_TASKS
    from longshort.training.byte_tokenizer import byte_tokenizer

    length = tokens.shape[1] - 1
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), max_length=length, batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "letters.jsonl"
        corpus.write_text(json.dumps({"text": bytes(tokens[0].tolist()).decode()}))
        metadata = {"corpus": str(corpus), "lengths": [length], "num_docs": 1}
        prepared = {tasks: prepare_tasks(tasks, metadata) for tasks in (DEFAULT_TASKS[:1], DEFAULT_TASKS)}

    def evaluate(tasks: tuple[str, ...]) -> float:
        results: dict[str, Any] = evaluate_loaded(lm, {"pretrained": "random"}, prepared[tasks], batch_size=1)
        return math.log(results["results"][tasks[0]][f"ppl@{length},none"])

    return {
        STOCK: perplexity.actions(options, model, tokens)[perplexity.STOCK],
        PERPLEXITY: lambda: evaluate(DEFAULT_TASKS[:1]),
        BOTH: lambda: evaluate(DEFAULT_TASKS),
    }


BENCHMARK = Benchmark(
    "evaluate", __doc__, SIDES, {PERPLEXITY: (STOCK,), BOTH: (STOCK,)}, actions, ("512x4:4096",), forward_flops
)
