"""Both tasks in one run of any tiny model, against the dense reference of every metric, in settings drawn at random."""

from __future__ import annotations

import copy
import json
import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from longshort.errors import UserError
from longshort.lmeval.evaluate import evaluate_loaded, prepare_tasks
from longshort.lmeval.measure import FLOOR_METRICS
from longshort.lmeval.requests import METRICS
from longshort.scoring.causality import causal_length
from longshort.scoring.offsets import draw_offsets
from longshort.settings import DEFAULT_TASKS
from tests.lmeval.reference import Reference
from tests.slow.architectures.tiny import ARCHITECTURES, tiny_model

LETTERS = string.ascii_letters + string.digits + " "
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]  # the letters follow, as ids below the tiny models' vocabulary
SMALLEST = 0.1  # nats; of values below, the error is relative to this
LONGEST = 40
TOLERANCE = 1e-4
Values = dict[str, float]


class NotBuiltError(Exception):
    """A tiny configuration is not valid, or not tiny."""


@dataclass(frozen=True)
class Drawn:
    """The settings of one evaluation."""

    bos: bool
    lengths: tuple[int, ...]
    tail_tokens: int
    draws: int
    seed: int
    batch_size: int

    @property
    def metadata(self) -> dict[str, Any]:
        """For the tasks."""
        names = ("lengths", "tail_tokens", "draws", "seed")
        return {name: getattr(self, name) for name in names}


def draw_settings(generator: random.Random) -> Drawn:
    """Lengths of 8 to 40 tokens, with the longest always among them, and all else."""
    shorter = sorted(generator.sample(range(8, LONGEST), 2))
    return Drawn(
        bos=generator.random() < 0.5,
        lengths=(*shorter, LONGEST),
        tail_tokens=generator.randint(1, shorter[0] - 1),
        draws=generator.randint(1, 2),
        seed=generator.randrange(1000),
        batch_size=generator.randint(1, 2),
    )


def character_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """A token per letter, which is one byte; with `bos`, <s> is put before every text."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(SPECIAL)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


class DenseReference(Reference):
    """Of a model in memory, in the precision that its weights have; each window is read on its own, without a cache.

    With `fresh`, by a new copy of the model: dynamic RoPE keeps what longer windows did to its frequencies.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerFast, *, fresh: bool = False) -> None:
        self.model, self.tokenizer, self.fresh = model, tokenizer, fresh
        self.bos = [1] if tokenizer.encode("a")[0] == 1 else []
        self._known: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def log_p(self, window: list[int]) -> Tensor:
        """[T, V], float64."""
        key = tuple(window)
        if key not in self._known:
            model = copy.deepcopy(self.model) if self.fresh else self.model
            logits: Tensor = model(input_ids=torch.tensor([window]), use_cache=False).logits
            self._known[key] = logits[0].double().log_softmax(-1)
        return self._known[key]

    def document(self, text: str, index: int, drawn: Drawn, lengths: Sequence[int]) -> Values:
        """Every metric that one document has at some of the lengths; of perplexities the mean log-likelihood."""
        longest, targets = drawn.lengths[-1], drawn.tail_tokens
        size = len(self.tokens(text, longest))
        found: Values = {}
        for length in lengths:
            if length <= size:
                nll, found[f"bpb@{length}"] = self.prefix(text, length)
                found[f"ppl@{length}"] = -nll
            if longest < size:
                nll, found[f"bpb_tail@{length}"] = self.tail(text, length, longest, targets)
                found[f"ppl_tail@{length}"] = -nll
                found[f"accuracy_tail@{length}"] = self.accuracy(text, length, longest, targets)
            if length < size:
                offsets = draw_offsets(drawn.seed, index, length, drawn.draws)
                pairs = [self.pair(text, longest, length, length - offset) for offset in offsets]
                found |= {f"{name}@{length}": sum(pair[name] for pair in pairs) / len(pairs) for name in pairs[0]}
        for first, second in combinations_with_replacement(lengths if longest < size else (), 2):
            sce, jeffreys = self.between(text, first, second, longest, targets)
            found[f"sce_between@{first}-{second}"] = sce
            if first != second:
                found[f"jeffreys_between@{first}-{second}"] = jeffreys
        return found


def texts(seed: int) -> list[str]:
    """Two documents of as many tokens as the longest length and one more, or a few more."""
    generator = random.Random(seed)
    return ["".join(generator.choices(LETTERS, k=LONGEST + 1 + more)) for more in (0, 3)]


def language_model(model: nn.Module, drawn: Drawn) -> HFLM:
    """The model as lm-eval takes it."""
    tokenizer = character_tokenizer(drawn.bos)
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=drawn.batch_size)


def evaluate(
    lm: HFLM,
    drawn: Drawn,
    folder: Path,
    documents: Sequence[str],
    tasks: tuple[str, ...] = DEFAULT_TASKS,
    **metadata: Any,
) -> tuple[list[Values], dict[str, Any]]:
    """The values of each document, of tasks in one run, and the results."""
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    given = drawn.metadata | {"corpus": str(corpus), "num_docs": len(documents)} | metadata
    results = evaluate_loaded(
        lm, {"pretrained": "tiny"}, prepare_tasks(tasks, given), batch_size=drawn.batch_size, log_samples=True
    )
    found: list[Values] = [{} for _ in documents]
    for samples in results.get("samples", {}).values():
        for sample in samples:
            found[sample["doc_id"]] |= {name: value for name, value in sample.items() if "@" in name}
    return found, results


def error_of(actual: float, expected: float) -> float:
    """Relative, of values of at least `SMALLEST`."""
    difference = abs(actual - expected) / max(SMALLEST, abs(expected))
    return difference if math.isfinite(difference) else math.inf


def with_reference(architecture: str, drawn: Drawn, **changes: Any) -> tuple[nn.Module, DenseReference]:
    """A tiny model in float32, and the reference with its weights in float64; in float32 where it cannot run so."""
    try:
        double, model = (tiny_model(architecture, dtype, **changes) for dtype in (torch.float64, torch.float32))
    except Exception as error:  # each architecture refuses a tiny configuration in its own way
        raise NotBuiltError(str(error)) from error
    model.load_state_dict(double.state_dict())
    tokenizer = character_tokenizer(drawn.bos)
    reference = DenseReference(double, tokenizer)
    try:
        reference.log_p(list(range(4, 4 + LONGEST)))
    except Exception:  # two architectures have parts that are in float32 whatever the dtype
        reference = DenseReference(model, tokenizer)
    return model, reference


def errors(architecture: str, drawn: Drawn, folder: Path, **changes: Any) -> Values:
    """The greatest error of each metric over its lengths and both documents; infinite where a metric has no value.

    Raises:
        UserError: the model cannot be used.
    """
    model, reference = with_reference(architecture, drawn, **changes)
    limit = causal_length(model) or LONGEST
    lengths = [length for length in drawn.lengths if length <= limit]
    documents = texts(drawn.seed)
    found, _ = evaluate(language_model(model, drawn), drawn, folder, documents)
    return greatest_errors(found, expected(reference, drawn, documents, lengths))


def expected(
    reference: DenseReference, drawn: Drawn, documents: Sequence[str], lengths: Sequence[int] | None = None
) -> list[Values]:
    """The values of each document by the reference, by default at all lengths."""
    lengths = drawn.lengths if lengths is None else lengths
    return [reference.document(text, index, drawn, lengths) for index, text in enumerate(documents)]


def greatest_errors(found: list[Values], expected: list[Values]) -> Values:
    """By metric, over lengths and documents."""
    worst: Values = {}
    for values, of_reference in zip(found, expected, strict=True):
        assert values.keys() <= of_reference.keys(), values.keys() - of_reference.keys()
        for name, value in of_reference.items():
            metric = name.partition("@")[0]
            worst[metric] = max(worst.get(metric, 0.0), error_of(values.get(name, math.nan), value))
    return worst


def at_random(seed: int, count: int) -> list[tuple[str, Drawn]]:
    """Architectures with settings of their own."""
    generator = random.Random(seed)
    return [(name, draw_settings(generator)) for name in generator.sample(sorted(ARCHITECTURES), count)]


def require_agreement(architecture: str, drawn: Drawn, folder: Path) -> None:
    """Fail where a metric differs from its reference; skip an architecture that is refused or cannot be built tiny."""
    try:
        found = errors(architecture, drawn, folder)
    except UserError as error:
        if error.kind != "unsupported":
            raise
        pytest.skip(f"refused: {error}")
    except NotBuiltError as error:
        pytest.skip(f"not built: {error}")
    if not found:
        pytest.skip("it is causal only up to fewer tokens than the shortest length has")
    in_float32 = {metric for metrics in METRICS.values() for metric in metrics} - set(FLOOR_METRICS)
    assert found.keys() == in_float32
    wrong = {metric: error for metric, error in found.items() if not error <= TOLERANCE}
    assert not wrong, (drawn, wrong)
