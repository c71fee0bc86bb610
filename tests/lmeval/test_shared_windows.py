"""Windows that both tasks share: which are read, and that sharing changes no value, whatever goes wrong meanwhile.

Values are compared with a dense reference that reads every window on its own.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longshort.lmeval import requests
from longshort.scoring.offsets import draw_offsets
from longshort.settings import DEFAULT_TASKS
from tests.errors import user_error
from tests.lmeval.architectures import (
    LETTERS,
    TOLERANCE,
    DenseReference,
    Drawn,
    character_tokenizer,
    evaluate,
    expected,
    greatest_errors,
    language_model,
)
from tests.slow.architectures.tiny import tiny_model
from tests.training.extension.build import extended

PERPLEXITY, MISALIGNMENT = DEFAULT_TASKS
PLAIN = Drawn(bos=False, lengths=(11, 18, 30), tail_tokens=5, draws=1, seed=3, batch_size=1)


def text(num_tokens: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=num_tokens))


def is_probe(tokens: torch.Tensor) -> bool:
    """Positions are probed with equal tokens, and dynamic RoPE forgets longer texts by reading a single one."""
    return tokens.shape[1] == 1 or bool((tokens == tokens[0, 0]).all())


@contextmanager
def reads_of(model: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Documents and tokens of each forward. A model must have been evaluated before: then only one probe is left."""
    reads: list[tuple[int, int]] = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not is_probe(inputs[0]):
            reads.append(tuple(inputs[0].shape))  # type: ignore[arg-type]  # [B, T]

    hook = model.get_input_embeddings().register_forward_pre_hook(count)  # type: ignore[operator]  # as transformers' models have it
    try:
        yield reads
    finally:
        hook.remove()


def double_of(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def partners(drawn: Drawn, index: int, lengths: Sequence[int]) -> list[int]:
    """The distinct shorter contexts of one document, a list per length joined."""
    found: list[int] = []
    for length in lengths:
        found += {length - offset for offset in draw_offsets(drawn.seed, index, length, drawn.draws)}
    return found


# ---- which windows are read


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("tasks", "draws"), [(DEFAULT_TASKS, 1), (DEFAULT_TASKS, 4), ((PERPLEXITY,), 1), ((MISALIGNMENT,), 2)]
)
def test_each_task_reads_what_it_needs_and_both_share_it(
    bos: bool, tasks: tuple[str, ...], draws: int, tmp_path: Path
) -> None:
    drawn = replace(PLAIN, bos=bos, draws=draws)
    model = tiny_model("llama")
    lm, documents = language_model(model, drawn), [text(31), text(40, seed=1)]
    evaluate(lm, drawn, tmp_path, documents)  # probes of the positions
    with reads_of(model) as reads:
        evaluate(lm, drawn, tmp_path, documents, tasks)
    windows = [length for _ in documents for length in drawn.lengths]
    for index in range(len(documents)) if MISALIGNMENT in tasks else ():
        windows += partners(drawn, index, drawn.lengths)
    assert sorted(reads) == sorted((1, window) for window in windows)
    if draws == 1:
        assert len(reads) == 2 * len(drawn.lengths) * (2 if MISALIGNMENT in tasks else 1)  # 2M windows per document


def test_documents_of_a_batch_share_the_forwards_of_their_longer_contexts(tmp_path: Path) -> None:
    drawn = replace(PLAIN, batch_size=3)
    model = tiny_model("llama")
    lm, documents = language_model(model, drawn), [text(40, seed) for seed in range(3)]
    evaluate(lm, drawn, tmp_path, documents)
    with reads_of(model) as reads:
        evaluate(lm, drawn, tmp_path, documents)
    shorter = [(1, window) for index in range(3) for window in partners(drawn, index, drawn.lengths)]
    assert sorted(reads) == sorted([(3, length) for length in drawn.lengths] + shorter)


# ---- values


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("bos", [False, True])
def test_tasks_together_and_alone_equal_the_reference(bos: bool, batch_size: int, tmp_path: Path) -> None:
    """Without BOS the reference's windows are those of version 0.1: the last tokens before the last one."""
    drawn = replace(PLAIN, bos=bos, batch_size=batch_size, draws=2)
    model = tiny_model("llama")
    documents = [text(31), text(50, seed=1), text(31, seed=2)]
    reference = DenseReference(double_of(model), character_tokenizer(bos))
    right = expected(reference, drawn, documents)
    if not bos:
        assert reference.window(documents[1], 11, 30) == reference.text_tokens(documents[1])[19:30]
    lm = language_model(model, drawn)
    together, _ = evaluate(lm, drawn, tmp_path, documents)
    alone = [evaluate(lm, drawn, tmp_path, documents, (task,))[0] for task in DEFAULT_TASKS]
    joined = [first | second for first, second in zip(*alone, strict=True)]
    kept, _ = evaluate(lm, drawn, tmp_path, documents, save_tokens=True)
    backwards, _ = evaluate(lm, drawn, tmp_path, documents, (MISALIGNMENT, PERPLEXITY))
    for found in (together, joined, kept, backwards):
        assert max(greatest_errors(found, right).values()) < TOLERANCE


@pytest.mark.parametrize("bos", [False, True])
def test_documents_shorter_than_the_longest_length(bos: bool, tmp_path: Path) -> None:
    """From one token short of the longest length down to less than the smallest; where a window is a prefix too."""
    drawn = replace(PLAIN, bos=bos, batch_size=2)
    model = tiny_model("llama")
    special = int(bos)
    sizes = [31, 30, 29, 19, 18, 17, 12, 11, 10, 3]  # tokens with BOS
    documents = [text(size - special, size) for size in sizes]
    right = expected(DenseReference(double_of(model), character_tokenizer(bos)), drawn, documents)
    lm = language_model(model, drawn)
    evaluate(lm, drawn, tmp_path, documents)
    with reads_of(model) as reads:
        found, results = evaluate(lm, drawn, tmp_path, documents)
    assert max(greatest_errors(found, right).values()) < TOLERANCE
    windows = []
    for index, size in enumerate(sizes):
        readable = [length for length in drawn.lengths if length < size]
        windows += readable + partners(drawn, index, readable)
        prefixes = [length for length in drawn.lengths if length <= size]
        if prefixes and prefixes[-1] != size - 1:  # the longest prefix is not a window that ends before the last token
            windows.append(prefixes[-1])
    assert sorted(window for _, window in reads) == sorted(windows)
    for task in DEFAULT_TASKS:
        left_out = results["configs"][task]["metadata"]["scored"]["left_out"]
        assert {gap["kind"] for gap in left_out} == {"text"}
        for gap in left_out:
            assert gap["names"] == [
                f"corpus.jsonl:{index + 1}" for index, values in enumerate(right) if gap["metric"] not in values
            ] or len(gap["names"]) == sum(gap["metric"] not in values for values in right)


@pytest.mark.parametrize("size", [31, 23, 25])
def test_lengths_that_the_model_cannot_address(size: int, tmp_path: Path) -> None:
    """The longest window that can be read is also a prefix only where the document ends one token later."""
    drawn = replace(PLAIN, lengths=(11, 22, 30))
    model = tiny_model("gpt2", n_positions=24)
    documents = [text(size)]
    reference = DenseReference(double_of(model), character_tokenizer(False))
    right = expected(reference, drawn, documents, [11, 22])
    lm = language_model(model, drawn)
    evaluate(lm, drawn, tmp_path, documents)
    with reads_of(model) as reads:
        found, results = evaluate(lm, drawn, tmp_path, documents)
    assert max(greatest_errors(found, right).values()) < TOLERANCE
    windows = [11, 22, *partners(drawn, 0, [11, 22])] + [22] * (size != 23)
    assert sorted(window for _, window in reads) == sorted(windows)
    for task in DEFAULT_TASKS:
        gaps = results["configs"][task]["metadata"]["scored"]["left_out"]
        assert {gap["metric"] for gap in gaps if gap["kind"] == "length"} == {
            f"{name}@30" for name in requests.METRICS[task] if not name.endswith(("between", "floor"))
        }


def dynamic() -> nn.Module:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return tiny_model("llama", rope_parameters=rope, max_position_embeddings=14)


def longrope() -> nn.Module:
    factors = {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 14}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    return tiny_model("llama", rope_parameters=rope, max_position_embeddings=56)


def clex() -> nn.Module:
    model = extended("clex", train_length=48, factor=4.0, model_changes={"vocab_size": 96})
    nn.init.normal_(model.model.rotary_emb.down, std=0.3)
    return model  # type: ignore[no-any-return]  # the helper has no types


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("build", [dynamic, longrope, clex])
def test_models_that_need_a_pass_per_length(
    build: Callable[[], nn.Module], bos: bool, batch_size: int, tmp_path: Path
) -> None:
    drawn = replace(PLAIN, bos=bos, batch_size=batch_size)
    model = build()
    documents = [text(35), text(35, seed=1)]
    right = expected(DenseReference(model, character_tokenizer(bos), fresh=True), drawn, documents)
    lm = language_model(model, drawn)
    for _ in range(2):  # with and without the probe
        with reads_of(model) as reads:
            found, results = evaluate(lm, drawn, tmp_path, documents)
        assert max(greatest_errors(found, right).values()) < TOLERANCE
    assert results["configs"][PERPLEXITY]["metadata"]["scored"]["passes"] == "one pass per length"
    shorter = [window for index in range(2) for window in partners(drawn, index, drawn.lengths)]
    read = [window for batch, window in reads for _ in range(batch)]
    assert sorted(read) == sorted(2 * list(drawn.lengths) + 2 * list(drawn.lengths[:-1]) + shorter)


# ---- what goes wrong meanwhile


@contextmanager
def failing(model: nn.Module, fails: Callable[[torch.Tensor], BaseException | None]) -> Iterator[None]:
    """Raise in forwards."""

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if error := fails(inputs[0]):
            raise error

    hook = model.get_input_embeddings().register_forward_pre_hook(check)  # type: ignore[operator]  # as above
    try:
        yield
    finally:
        hook.remove()


def out_of_memory_beyond(num_tokens: int) -> Callable[[torch.Tensor], BaseException | None]:
    return lambda tokens: torch.OutOfMemoryError("CUDA out of memory.") if tokens.numel() > num_tokens else None


@pytest.mark.parametrize("save_tokens", [False, True])
def test_out_of_memory_halves_the_batch_and_changes_no_value(save_tokens: bool, tmp_path: Path) -> None:
    drawn = replace(PLAIN, batch_size=4, bos=True)
    model = tiny_model("llama")
    documents = [text(40, seed) for seed in range(4)]
    right = expected(DenseReference(double_of(model), character_tokenizer(True)), drawn, documents)
    lm = language_model(model, drawn)
    with failing(model, out_of_memory_beyond(60)):
        found, results = evaluate(lm, drawn, tmp_path, documents, save_tokens=save_tokens)
    assert max(greatest_errors(found, right).values()) < TOLERANCE
    assert results["configs"][PERPLEXITY]["metadata"]["scored"]["batch_sizes"] == [2]


def test_out_of_memory_in_the_middle_of_a_document(tmp_path: Path) -> None:
    """The longest window fits and a later forward fails, once: what was measured before is not counted twice."""
    drawn = replace(PLAIN, batch_size=2)
    model = tiny_model("llama")
    documents = [text(40, seed) for seed in range(2)]
    right = expected(DenseReference(double_of(model), character_tokenizer(False)), drawn, documents)
    lm = language_model(model, drawn)
    evaluate(lm, drawn, tmp_path, documents)
    left = [5]

    def once(tokens: torch.Tensor) -> BaseException | None:
        left[0] -= not is_probe(tokens)
        return RuntimeError("DefaultCPUAllocator: can't allocate memory") if left[0] == 0 else None

    with failing(model, once), reads_of(model) as reads:
        found, results = evaluate(lm, drawn, tmp_path, documents, save_tokens=True)
    assert left[0] < 0
    assert max(greatest_errors(found, right).values()) < TOLERANCE
    assert results["configs"][PERPLEXITY]["metadata"]["scored"]["batch_sizes"] == [1]
    assert len(reads) > 12


def test_out_of_memory_of_a_single_document(tmp_path: Path) -> None:
    model = tiny_model("llama")
    lm = language_model(model, PLAIN)
    with failing(model, out_of_memory_beyond(20)), user_error("out_of_memory", "31 tokens"):
        evaluate(lm, PLAIN, tmp_path, [text(40)])


@pytest.mark.parametrize("at", [1, 3, 6])
def test_an_interruption_leaves_the_model_as_it_was(at: int, tmp_path: Path) -> None:
    drawn = replace(PLAIN, bos=True)
    model = tiny_model("llama").train()
    documents = [text(40)]
    lm = language_model(model, drawn)
    model.train()
    right, _ = evaluate(lm, drawn, tmp_path, documents)
    left = [at]

    def interrupt(tokens: torch.Tensor) -> BaseException | None:
        left[0] -= not is_probe(tokens)
        return KeyboardInterrupt() if left[0] == 0 else None

    with pytest.raises(KeyboardInterrupt), failing(model, interrupt):
        evaluate(lm, drawn, tmp_path, documents)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())
    again, _ = evaluate(lm, drawn, tmp_path, documents)
    assert again == right


def test_shares_of_two_processes_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 answers first and rank 0 gets what it answered; `test_parallel` has real processes."""
    drawn = replace(PLAIN, bos=True, batch_size=2)
    model = tiny_model("llama")
    documents = [text(size, size) for size in (40, 29, 40, 12, 33)]
    lm = language_model(model, drawn)
    right, one = evaluate(lm, drawn, tmp_path, documents)
    shared: dict[int, Any] = {}

    def share(lm: Any, answers: dict[int, Any]) -> dict[int, Any]:
        assert answers.keys() == set(range(lm.rank, 5, 2))
        shared.update(answers)
        return dict(shared) if lm.rank == 0 else dict.fromkeys(range(5), answers[1])

    monkeypatch.setattr(requests, "share", share)
    original = requests.answer

    def answer(lm: Any, instances: Any) -> Any:
        lm._world_size = 2
        try:
            for lm._rank in (1, 0):
                answers = original(lm, instances)
        finally:
            lm._world_size, lm._rank = 1, 0
        return answers

    monkeypatch.setattr("lm_eval.api.model.LM.longshort_windows", answer)
    found, two = evaluate(lm, drawn, tmp_path, documents)
    assert max(greatest_errors(found, right).values()) < 1e-5
    for task in DEFAULT_TASKS:
        scored, same = (results["configs"][task]["metadata"]["scored"] for results in (two, one))
        assert {**scored, "batch_sizes": None} == {**same, "batch_sizes": None}
