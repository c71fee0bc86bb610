"""score_prefix and score_suffixes against dense computations from `model(...).logits`."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from longshort.scoring import chunks, half_precision, prefix, score_prefix, score_suffixes
from longshort.scoring.chunks import smaller_chunks
from longshort.scoring.divergences import top_token
from longshort.scoring.lm_head import lm_head_of
from tests.models import CONFIGS, LLAMA_LIKE, VOCAB, dense_log_probabilities, random_tokens, tiny_model

LENGTHS = [9, 24, 17]
TARGETS = 6


def dense_suffixes(model: nn.Module, tokens: torch.Tensor, lengths: list[int], count: int) -> torch.Tensor:
    """[B, M, K, V]: each window read on its own, one document at a time, one position at a time."""
    rows = []
    for document in tokens:
        windows = [document[len(document) - 1 - length : len(document) - 1] for length in lengths]
        rows.append(torch.stack([dense_log_probabilities(model, window[None])[0, -count:] for window in windows]))
    return torch.stack(rows)


@pytest.fixture(params=["default", "small"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, or with so little cache that a row of logits is cut, and every position compared alone."""
    if request.param == "small":
        monkeypatch.setitem(prefix.VOCABULARY_BLOCK, "cpu", 16)
        monkeypatch.setitem(chunks.CACHE_BYTES, "cpu", 1)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", CONFIGS)
def test_prefix_equals_dense(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(2, 33)
    log_p = dense_log_probabilities(model, tokens[:, :-1])
    expected = torch.stack(
        [torch.stack([-log_p[b, t, tokens[b, t + 1]] for t in range(32)]) for b in range(len(tokens))]
    )
    actual = score_prefix(model, tokens, chunk_size=5)
    assert lm_head_of(model).backbone is not None, "the chunked head should work for this architecture"
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", CONFIGS)
def test_suffixes_equal_dense(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(2, 26)
    scores = score_suffixes(model, tokens, LENGTHS, TARGETS, chunk_size=4, pairs=[(0, 1), (2, 0), (1, 1)])
    log_p = dense_suffixes(model, tokens, LENGTHS, TARGETS)  # [B, M, K, V]
    p = log_p.exp()
    close = {"rtol": 1e-4, "atol": 1e-5}
    for b in range(2):
        for k in range(TARGETS):
            target = tokens[b, len(tokens[b]) - TARGETS + k]
            for i in range(len(LENGTHS)):
                torch.testing.assert_close(scores.nll[b, i, k].double(), -log_p[b, i, k, target], **close)
                expected = -(p[b, i, k] * log_p[b, i, k]).sum()
                torch.testing.assert_close(scores.entropy[b, i, k].double(), expected, **close)
                for j in range(len(LENGTHS)):
                    expected = -(p[b, i, k] * log_p[b, j, k]).sum()
                    torch.testing.assert_close(scores.cross_entropy[b, i, j, k].double(), expected, **close)
            for pair, (i, j) in enumerate([(0, 1), (2, 0), (1, 1)]):
                kl = (p[b, i, k] * (log_p[b, i, k] - log_p[b, j, k])).sum()
                lk = (p[b, j, k] * (log_p[b, j, k] - log_p[b, i, k])).sum()
                torch.testing.assert_close(scores.jeffreys[b, pair, k].double(), kl + lk, **close)
                m = (p[b, i, k] + p[b, j, k]) / 2
                js = -(m * m.log()).sum() + (p[b, i, k] * log_p[b, i, k] + p[b, j, k] * log_p[b, j, k]).sum() / 2
                torch.testing.assert_close(scores.js[b, pair, k].double(), js, rtol=1e-4, atol=1e-5)
                assert scores.agreement[b, pair, k] == float(p[b, i, k].argmax() == p[b, j, k].argmax())


def test_contexts_differ_in_these_tests() -> None:
    model, tokens = tiny_model("llama", sharpness=4), random_tokens(8, 26)
    scores = score_suffixes(model, tokens, LENGTHS, TARGETS, pairs=[(0, 1)])
    assert scores.jeffreys.mean() > 0.1
    assert 0 < scores.agreement.mean() < 1


@pytest.mark.parametrize("chunk_size", [1, 3, 1000, None])
def test_chunk_size_changes_nothing(chunk_size: int | None) -> None:
    model, tokens = tiny_model("gemma2"), random_tokens(2, 26)
    torch.testing.assert_close(score_prefix(model, tokens, chunk_size=chunk_size), score_prefix(model, tokens))
    one = score_suffixes(model, tokens, LENGTHS, TARGETS, chunk_size=chunk_size, pairs=[(0, 1)])
    two = score_suffixes(model, tokens, LENGTHS, TARGETS, chunk_size=2, pairs=[(0, 1)])
    for field in ("nll", "entropy", "cross_entropy", "jeffreys", "js", "agreement"):
        torch.testing.assert_close(getattr(one, field), getattr(two, field), rtol=1e-5, atol=1e-6)


def test_batch_equals_one_by_one() -> None:
    model, tokens = tiny_model("qwen3"), random_tokens(3, 20)
    single = torch.cat([score_prefix(model, row[None]) for row in tokens])
    torch.testing.assert_close(score_prefix(model, tokens), single, rtol=1e-5, atol=1e-6)


def test_prefix_replaces_the_first_tokens_of_every_context() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 26)
    scores = score_suffixes(model, tokens, [9, 24], TARGETS, special_tokens=[1])
    for index, length in enumerate([9, 24]):
        window = tokens[:, 25 - length :].clone()
        window[:, 0] = 1
        expected = score_prefix(model, window)[:, -TARGETS:]
        torch.testing.assert_close(scores.nll[:, index], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "gpt2", "mamba"])
def test_bf16_weights_are_scored_in_float32(name: str) -> None:
    model, tokens = tiny_model(name).to(torch.bfloat16), random_tokens(1, 20)
    expected = -dense_log_probabilities(model, tokens[:, :-1]).gather(-1, tokens[:, 1:, None])[..., 0]
    actual = score_prefix(model, tokens, chunk_size=6)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=2e-2, atol=2e-2)


def test_dropout_is_off_and_training_mode_is_kept() -> None:
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.GPT2Config(**(CONFIGS["gpt2"].to_diff_dict() | {"resid_pdrop": 0.5}))
    ).train()
    tokens = random_tokens(1, 12)
    torch.testing.assert_close(score_prefix(model, tokens), score_prefix(model, tokens))
    assert model.training


class ShiftedHead(transformers.LlamaForCausalLM):
    """A head that looks at the neighbouring position: chunks of positions cannot reproduce it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits.cumsum(1)
        return output


def test_falls_back_to_full_logits_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, tokens = ShiftedHead(CONFIGS["llama"]).eval(), random_tokens(1, 20)
    expected = -dense_log_probabilities(model, tokens[:, :-1]).gather(-1, tokens[:, 1:, None])[..., 0]
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(score_prefix(model, tokens).double(), expected, rtol=1e-4, atol=1e-5)
        score_prefix(model, tokens)
        score_suffixes(model, tokens, [9, 12], 3)
    assert lm_head_of(model).backbone is None
    assert len(caplog.records) == 1
    assert "full logits" in caplog.text


class RowsOfLogits(TorchDispatchMode):
    """Remembers the greatest number of rows [V] of any tensor that was made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCAB,):
            self.most = max(self.most, result.numel() // VOCAB)
        return result


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_of_more_than_a_chunk_are_never_alive(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(2, 200)
    lm_head_of(model)
    with RowsOfLogits() as rows:
        score_prefix(model, tokens, chunk_size=8)
        score_suffixes(model, tokens, [150, 199], 140, chunk_size=4, pairs=[(0, 1)])
    assert 16 <= rows.most <= 32  # 4 positions of 2 documents, 2 contexts, and as much again to work in


class NewRowsOfLogits(RowsOfLogits):
    """Those alone whose memory is their own, not another tensor's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCAB,):
            given = [*torch.utils._pytree.tree_leaves((args, kwargs))]
            known = {each.untyped_storage().data_ptr() for each in given if isinstance(each, torch.Tensor)}
            if result.untyped_storage().data_ptr() not in known:
                self.most = max(self.most, result.numel() // VOCAB)
        return result


def test_nothing_of_the_size_of_logits_is_made_in_the_loop_over_chunks() -> None:
    """Between the small results that stay, the heap grew by it at each step: to gigabytes in a long text."""
    model, tokens = tiny_model("llama"), random_tokens(2, 200)
    lm_head_of(model)
    with NewRowsOfLogits() as rows:
        score_suffixes(model, tokens, [150, 199], 140, chunk_size=4, pairs=[(0, 1)])
    assert rows.most == 2  # the model's own head, on one position of each document


def most_allocated(action: Callable[[], object]) -> int:
    """Bytes that tensors took at most, above what they took before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    changes = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_and_what_is_made_of_them_stay_in_budget(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the head is one matrix or has a cap after it, in float32 or half precision."""
    vocabulary, budget, tokens = 20_000, 2 * 2**20, random_tokens(1, 201)
    config = type(CONFIGS[name])(**CONFIGS[name].to_diff_dict() | {"vocab_size": vocabulary})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", budget)
    monkeypatch.setitem(chunks.CACHE_BYTES, "cpu", budget // 8)
    monkeypatch.setattr(half_precision, "WEIGHT_ELEMENTS", budget // 128)  # a block of weights, next to the logits
    lm_head_of(model)
    ladder = most_allocated(lambda: score_suffixes(model, tokens, [180, 200], 150, pairs=[(0, 1)]))
    assert 0.85 * budget < ladder < 1.3 * budget
    if name == "gemma2":  # else in blocks of the vocabulary, which no budget holds
        assert budget / 2 < most_allocated(lambda: score_prefix(model, tokens)) < 1.1 * budget


def test_smaller_chunks_for_as_long_as_it_is_asked_for() -> None:
    device = torch.device("cpu")
    usual = chunks.chunk_positions(2, 1000, device)
    with smaller_chunks(8):
        assert chunks.chunk_positions(2, 1000, device) == usual // 8
        with smaller_chunks(2):
            assert chunks.chunk_positions(2, 1000, device) == usual // 2
    assert chunks.chunk_positions(2, 1000, device) == usual


# Heads that are one matrix, and those that are followed by a cap or a scale or have no matrix of their own.
PLAIN = {name: name not in ("gemma2", "cohere", "granite") for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sharpness", [0.01, 8.0])
def test_a_head_is_taken_for_a_plain_matrix_only_where_it_is_one(name: str, sharpness: float) -> None:
    """With small weights a cap bends no logit of the model's own: it has to be tried with greater ones."""
    model = tiny_model(name, sharpness=sharpness)
    assert (lm_head_of(model).linear is not None) == PLAIN[name]


def test_a_gentle_cap_on_small_logits_is_noticed() -> None:
    config = transformers.Gemma2Config(**CONFIGS["gemma2"].to_diff_dict() | {"final_logit_softcapping": 200.0})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert lm_head_of(model).linear is None


def test_a_head_that_was_exchanged_is_tried_again() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    score_prefix(model, tokens)
    model.set_output_embeddings(nn.Linear(32, VOCAB, bias=True))
    expected = -dense_log_probabilities(model, tokens[:, :-1]).gather(-1, tokens[:, 1:, None])[..., 0]
    assert lm_head_of(model).linear is model.lm_head
    torch.testing.assert_close(score_prefix(model, tokens).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_bias_of_minus_infinity_removes_a_token() -> None:
    """As models do that pad their vocabulary: the first block may hold nothing else."""
    model, tokens = tiny_model("gptj"), random_tokens(1, 20)
    with torch.no_grad():
        model.lm_head.bias[:3] = -torch.inf
    expected = -dense_log_probabilities(model, tokens[:, :-1]).gather(-1, tokens[:, 1:, None])[..., 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(prefix.VOCABULARY_BLOCK, "cpu", 2)
        torch.testing.assert_close(score_prefix(model, tokens).double(), expected, rtol=1e-4, atol=1e-5)


def test_peft_adapter_is_part_of_the_model() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, tokens = peft.get_peft_model(tiny_model("llama"), config).eval(), random_tokens(1, 20)
    expected = -dense_log_probabilities(model, tokens[:, :-1]).gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(score_prefix(model, tokens, chunk_size=4).double(), expected, rtol=1e-4, atol=1e-5)


def test_model_spread_by_a_device_map() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    expected = score_prefix(model, tokens)
    spread = accelerate.cpu_offload(tiny_model("llama"), execution_device="cpu")
    torch.testing.assert_close(score_prefix(spread, tokens, chunk_size=4), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(score_prefix(spread, tokens, chunk_size=4), expected, rtol=1e-5, atol=1e-6)


def test_nan_weights_give_nan_scores() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    assert score_prefix(model, tokens).isnan().all()
    scores = score_suffixes(model, tokens, [9, 12], 3, pairs=[(0, 1)])
    assert all(getattr(scores, field).isnan().all() for field in ("nll", "cross_entropy", "js", "agreement"))


@pytest.mark.parametrize(("lengths", "targets"), [([], 3), ([5], 6), ([20], 3), ([5, 19], 0)])
def test_impossible_windows_are_refused(lengths: list[int], targets: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        score_suffixes(tiny_model("llama"), random_tokens(1, 20), lengths, targets)


def test_a_prefix_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="2 special tokens"):
        score_suffixes(tiny_model("llama"), random_tokens(1, 20), [2, 8], 2, special_tokens=[1, 2])


def test_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        score_prefix(tiny_model("llama"), random_tokens(1, 1))


def test_dynamic_rope_does_not_remember_longer_sequences() -> None:
    """transformers keeps the frequencies of the longest sequence so far: scores would depend on their order."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**(LLAMA_LIKE | {"max_position_embeddings": 16}), rope_parameters=rope)
    torch.manual_seed(0)
    fresh = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(6 if parameter.ndim == 2 else 1)
    used, tokens = copy.deepcopy(fresh), random_tokens(1, 41)
    score_prefix(used, tokens)
    scores = score_suffixes(used, tokens, [40, 24], 6)
    alone = [score_suffixes(copy.deepcopy(fresh), tokens, [length], 6).nll[:, 0] for length in (40, 24)]
    torch.testing.assert_close(scores.nll, torch.stack(alone, dim=1), rtol=1e-5, atol=1e-6)
    expected = -dense_log_probabilities(fresh, tokens[:, 16:40]).gather(-1, tokens[:, 17:41, None])[:, -6:, 0]
    torch.testing.assert_close(scores.nll[:, 1].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_scored_model_can_be_freed() -> None:
    model = tiny_model("llama")
    score_prefix(model, random_tokens(1, 20))
    alive = weakref.ref(model.model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("size", [1, 5, 12, 13, 255, 256, 257, 1000])
def test_the_top_token_is_the_first_of_equals(size: int) -> None:
    values = torch.randint(0, 4, (40, 3, size), generator=torch.Generator().manual_seed(size)).float()
    expected = [[row.tolist().index(max(row.tolist())) for row in rows] for rows in values]
    assert top_token(values).tolist() == expected


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_bf16_model_is_as_far_from_float32_as_its_own_logits_are(name: str) -> None:
    """Statistics are float32: what bfloat16 costs is the model's rounding alone, which is bounded here."""
    model, tokens = tiny_model(name, sharpness=2.0), random_tokens(4, 40)
    exact = score_prefix(model, tokens)
    half = model.to(torch.bfloat16)
    own = -dense_log_probabilities(half, tokens[:, :-1]).gather(-1, tokens[:, 1:, None])[..., 0]
    difference = (score_prefix(half, tokens) - exact).abs()
    assert float(difference.mean()) < 1.1 * float((own - exact).abs().mean()) + 1e-4
    assert float(difference.max()) < 0.1
