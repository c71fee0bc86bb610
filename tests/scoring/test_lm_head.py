"""The decision how logits are computed: it does not depend on the document, and follows changes of the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from longshort.scoring import score_prefix, score_suffixes
from longshort.scoring.forward import evaluating
from longshort.scoring.lm_head import lm_head_of
from tests.models import (
    CONFIGS,
    LLAMA_LIKE,
    TOKENS,
    VOCAB,
    PackedTensor,
    dense_log_probabilities,
    random_tokens,
    tiny_model,
)


def assert_scores_are_dense(model: nn.Module, tokens: Tensor) -> None:
    """Perplexity and entropy against the model's own logits."""
    with evaluating(model):
        log_p = dense_log_probabilities(model, tokens[:, :-1])  # [B, T, V]
    close = {"rtol": 1e-4, "atol": 1e-5}
    expected = -log_p.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(score_prefix(model, tokens).double(), expected, **close)
    entropy = -(log_p.exp() * log_p).sum(-1)
    scores = score_suffixes(model, tokens, [tokens.shape[1] - 1], 3)
    torch.testing.assert_close(scores.entropy[:, 0].double(), entropy[:, -3:], **close)


class ShiftedHead(transformers.LlamaForCausalLM):
    """Its logits also depend on the positions before: a few positions alone cannot reproduce them."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits.cumsum(1)
        return output


@pytest.mark.parametrize("first", [2, 5, 7, 8])
def test_a_short_first_document_does_not_hide_a_head_that_cannot_be_cut(first: int) -> None:
    torch.manual_seed(0)
    model = ShiftedHead(CONFIGS["llama"]).eval()
    score_prefix(model, random_tokens(1, first))
    assert_scores_are_dense(model, random_tokens(1, 30))
    assert lm_head_of(model).backbone is None


def test_the_probe_is_the_same_whatever_is_scored() -> None:
    """Ordinary tokens only: neither those of the document, nor padding and the like."""
    seen = []
    for seed in (0, 1):
        model = tiny_model("llama")
        model.model.embed_tokens.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
        score_prefix(model, random_tokens(1, 20, seed))
    first, second = seen[0], seen[len(seen) // 2]
    assert torch.equal(first, second)
    assert first.shape == (1, 16)
    assert not {0, 1, 2} & {*first.flatten().tolist()}


def test_a_model_with_few_positions_is_probed_within_them() -> None:
    config = transformers.GPT2Config(**CONFIGS["gpt2"].to_diff_dict() | {"n_positions": 8})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert_scores_are_dense(model, random_tokens(1, 8))
    assert lm_head_of(model).backbone is not None


def hook_on_the_head(model: nn.Module) -> None:
    model.lm_head.register_forward_hook(lambda module, args, output: output * 0.5)


def pre_hook_on_the_head(model: nn.Module) -> None:
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def hook_on_the_model(model: nn.Module) -> None:
    def scale(module: nn.Module, args: object, output: object) -> None:
        output.logits = output.logits * 0.5

    model.register_forward_hook(scale)


def hook_on_the_backbone(model: nn.Module) -> None:
    def scale(module: nn.Module, args: object, output: object) -> object:
        output.last_hidden_state = output.last_hidden_state * 0.5
        return output

    model.model.register_forward_hook(scale)


def larger_vocabulary(model: nn.Module) -> None:
    model.resize_token_embeddings(VOCAB + 19)


def other_head(model: nn.Module) -> None:
    model.set_output_embeddings(nn.Sequential(nn.Linear(32, VOCAB), nn.Tanh()))


def other_backbone(model: nn.Module) -> None:
    model.model = copy.deepcopy(model.model)
    with torch.no_grad():
        model.model.norm.weight.mul_(0.5)


def other_forward(model: nn.Module) -> None:
    own = model.forward

    def forward(*args: object, **inputs: object) -> object:
        output = own(*args, **inputs)
        output.logits = output.logits * 0.5
        return output

    model.forward = forward


def other_forward_of_the_head(model: nn.Module) -> None:
    own = model.lm_head.forward
    model.lm_head.forward = lambda hidden_states: own(hidden_states) * 0.5


def adapter_on_the_head(model: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)


def training_mode(model: nn.Module) -> None:
    model.train()


def double_precision(model: nn.Module) -> None:
    model.double()


CHANGES = [
    hook_on_the_head,
    pre_hook_on_the_head,
    hook_on_the_model,
    hook_on_the_backbone,
    larger_vocabulary,
    other_head,
    other_backbone,
    other_forward,
    other_forward_of_the_head,
    adapter_on_the_head,
    training_mode,
    double_precision,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_noticed(change: Callable[[nn.Module], None]) -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    model.config = copy.deepcopy(model.config)  # other tests use the same one
    score_prefix(model, tokens)
    change(model)
    assert_scores_are_dense(model, tokens)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_a_cap_that_is_set_later_is_noticed(cap: float | None) -> None:
    model, tokens = tiny_model("gemma2"), random_tokens(1, 20)
    model.config = copy.deepcopy(model.config)  # other tests use the same one
    model.config.final_logit_softcapping = 5.0 if cap is None else None
    score_prefix(model, tokens)
    model.config.final_logit_softcapping = cap
    assert_scores_are_dense(model, tokens)


def test_an_unchanged_model_is_probed_once() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    first = lm_head_of(model)
    score_prefix(model, tokens)
    score_suffixes(model, tokens, [9, 12], 3)
    assert lm_head_of(model) is first


def test_scoring_leaves_the_mode_of_every_module() -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    score_prefix(model, random_tokens(1, 20))
    assert [module.training for module in model.modules()] == modes


def test_a_quantized_head_in_float32_is_run_by_its_own_forward() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(PackedTensor), requires_grad=False)
    assert lm_head_of(model).linear is None
    assert lm_head_of(model).backbone is model.model
    assert_scores_are_dense(model, tokens)


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_quantized_by_torchao_is_run_by_its_own_forward(config: str, dtype: torch.dtype) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, tokens = tiny_model("llama").to(dtype), random_tokens(1, 20)
    quantization.quantize_(model, getattr(quantization, config)(), filter_fn=lambda module, _: module is model.lm_head)
    assert lm_head_of(model).linear is None
    assert lm_head_of(model).backbone is model.model
    assert_scores_are_dense(model, tokens)


def test_llama4_and_mllama_have_a_backbone() -> None:
    llama4 = transformers.Llama4TextConfig(
        **LLAMA_LIKE | TOKENS | {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2}
    )
    mllama = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
        **LLAMA_LIKE | TOKENS | {"cross_attention_layers": [], "rope_parameters": {"rope_type": "default"}}
    )
    for kind, config in (
        (transformers.Llama4ForCausalLM, llama4),
        (transformers.MllamaForCausalLM, mllama),
    ):
        torch.manual_seed(0)
        model = kind(config).eval()
        assert lm_head_of(model).backbone is model.model
        assert_scores_are_dense(model, random_tokens(1, 20))


@pytest.mark.parametrize("compiled", ["model", "model in place", "backbone", "backbone in place"])
def test_a_compiled_model_needs_no_full_logits(compiled: str) -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    expected = score_prefix(copy.deepcopy(model), tokens)
    if compiled == "model":
        model = torch.compile(model, backend="eager")
    elif compiled == "backbone":
        model.model = torch.compile(model.model, backend="eager")
    else:
        (model if compiled == "model in place" else model.model).compile(backend="eager")
    with torch.no_grad():
        model(tokens)  # the graph is recorded before anything is scored
    torch.testing.assert_close(score_prefix(model, tokens), expected, rtol=1e-5, atol=1e-6)
    assert lm_head_of(model).backbone is not None


def test_the_fallback_says_what_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0].view(1, 16, 32),))
    with caplog.at_level(logging.WARNING):
        assert lm_head_of(model).backbone is None
    assert "inf" not in caplog.text.replace("info", "")
    assert "size of tensor" in caplog.text or "is invalid for input of size" in caplog.text
    assert "full logits" in caplog.text
    assert "LlamaForCausalLM" in caplog.text
