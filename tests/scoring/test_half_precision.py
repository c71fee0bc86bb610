"""LM heads of bfloat16 and float16 models: float32 logits, against the float64 product of the same operands."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from longshort.scoring import half_precision, score_prefix, score_suffixes
from longshort.scoring.lm_head import LMHead, linear_into, lm_head_of
from tests.models import CONFIGS, LLAMA_LIKE, TOKENS, VOCAB, PackedTensor, random_tokens, tiny_model

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]
HALF = [torch.bfloat16, torch.float16]
CAP, SCALE, DIVISOR = 0.5, 0.25, 4.0  # of CONFIGS


def named_model(name: str) -> nn.Module:
    """A random model; one whose head has a bias has one that is not zero."""
    if name == "tied":
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**LLAMA_LIKE, **TOKENS, tie_word_embeddings=True)
        model = transformers.LlamaForCausalLM(config).eval()
        assert model.lm_head.weight is model.model.embed_tokens.weight
        return model
    if name == "dense and norm":
        torch.manual_seed(0)
        config = transformers.ModernBertDecoderConfig(**LLAMA_LIKE | TOKENS | {"layer_types": ["full_attention"] * 2})
        return transformers.ModernBertDecoderForCausalLM(config).eval()
    if name == "phi":
        torch.manual_seed(0)
        model = transformers.PhiForCausalLM(transformers.PhiConfig(**LLAMA_LIKE, **TOKENS)).eval()
    else:
        model = tiny_model(name, sharpness=2.0)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        nn.init.normal_(model.get_output_embeddings().bias)
    return model


AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "gemma2": lambda logits: CAP * torch.tanh(logits / CAP),
    "cohere": lambda logits: logits * SCALE,
    "granite": lambda logits: logits / DIVISOR,
}
NAMES = ["llama", "gptj", "phi", "gemma2", "cohere", "granite", "gpt2", "tied", "mamba", "dense and norm"]
PLAIN = {"llama", "gptj", "phi", "gpt2", "tied", "mamba"}


@torch.no_grad()
def exact_logits(model: nn.Module, tokens: Tensor, after: Callable[[Tensor], Tensor] = lambda logits: logits) -> Tensor:
    """The float64 product of what the output embedding is given with its matrix, and what comes after it."""
    linear, given = model.get_output_embeddings(), []
    with linear.register_forward_pre_hook(lambda module, args: given.append(args[0])):
        model(tokens, use_cache=False)
    logits = given[0].double() @ linear.weight.double().T
    return after(logits if linear.bias is None else logits + linear.bias.double())


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest magnitude in the row."""
    assert actual.dtype == torch.float32
    assert ((actual.double() - expected).abs() <= 1e-5 * expected.abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_float64_product_of_the_same_operands(name: str, dtype: torch.dtype, device: str) -> None:
    model, tokens = named_model(name).to(dtype).to(device), random_tokens(2, 20).to(device)
    expected = exact_logits(model, tokens, AFTER.get(name, lambda logits: logits))
    rounded = model(tokens).logits
    assert ((rounded.double() - expected).abs() > 1e-4 * expected.abs().amax(-1, keepdim=True)).any()
    lm_head = lm_head_of(model)
    with torch.no_grad():
        hidden_states = lm_head.hidden_states(tokens, 20)
        assert_exact(lm_head.logits(hidden_states), expected)
        assert_exact(lm_head.logits(hidden_states, torch.empty(2 * 20 * VOCAB + 7, device=device)), expected)
    assert lm_head.backbone is not None
    assert not lm_head.rounds
    assert (lm_head.linear is not None) == (name in PLAIN)
    assert lm_head.copies == (1 if name in PLAIN else 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_product_in_blocks(dtype: torch.dtype, bias: bool, device: str) -> None:
    """More rows and columns than one block of either operand has, and none of them a multiple of it."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2100, 2048), (1001, 2048), (1001,)
    hidden, weight, offset = (torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes)
    hidden += 0.5  # sums that grow, not only cancel
    expected = hidden.double() @ weight.double().T + (offset.double() if bias else 0)
    out = torch.empty(2100, 1001, device=device)
    assert linear_into(out, hidden, weight, offset if bias else None) is out
    assert_exact(out, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gptj"])
def test_scores_equal_dense_ones_of_the_same_hidden_states(name: str, device: str) -> None:
    model, tokens = named_model(name).to(torch.bfloat16).to(device), random_tokens(1, 31).to(device)
    after = AFTER.get(name, lambda logits: logits)
    log_p = exact_logits(model, tokens[:, :-1], after).log_softmax(-1)
    close = {"rtol": 1e-4, "atol": 1e-4}
    nll = -log_p.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(score_prefix(model, tokens).double(), nll, **close)
    torch.testing.assert_close(score_prefix(model, tokens, chunk_size=7).double(), nll, **close)
    scores = score_suffixes(model, tokens, [12, 30], 6, pairs=[(0, 1)])
    short, long = (exact_logits(model, tokens[:, 30 - n : 30], after)[0, -6:].log_softmax(-1) for n in (12, 30))
    for index, log_q in enumerate((short, long)):  # [6, V]
        nll = -log_q.gather(-1, tokens[0, -6:, None])[:, 0]
        torch.testing.assert_close(scores.nll[0, index].double(), nll, **close)
        torch.testing.assert_close(scores.entropy[0, index].double(), -(log_q.exp() * log_q).sum(-1), **close)
    cross_entropy = -(short.exp() * long).sum(-1)
    torch.testing.assert_close(scores.cross_entropy[0, 0, 1].double(), cross_entropy, **close)
    jeffreys = ((short.exp() - long.exp()) * (short - long)).sum(-1)
    torch.testing.assert_close(scores.jeffreys[0, 0].double(), jeffreys, **close)
    middle = ((short.exp() + long.exp()) / 2).log()
    js = ((short.exp() * (short - middle)).sum(-1) + (long.exp() * (long - middle)).sum(-1)) / 2
    torch.testing.assert_close(scores.js[0, 0].double(), js, **close)
    agreement = (short.argmax(-1) == long.argmax(-1)).double()
    assert torch.equal(scores.agreement[0, 0].double(), agreement)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_autocast_does_not_round_logits(name: str) -> None:
    model, tokens = named_model(name).to(torch.bfloat16), random_tokens(1, 20)
    expected = exact_logits(model, tokens, AFTER.get(name, lambda logits: logits))
    hidden_states = lm_head_of(model).hidden_states(tokens, 20)
    buffer = torch.empty(20 * VOCAB)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for lm_head in (lm_head_of(model), LMHead(model)):
            assert_exact(lm_head.logits(hidden_states), expected)
            assert_exact(lm_head.logits(hidden_states, buffer), expected)
            assert_exact(lm_head.logits(hidden_states.float(), buffer), expected)  # some norms return it there


@pytest.mark.parametrize("part", ["q_proj", "lm_head"])
def test_lora(part: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=[part], init_lora_weights=False, task_type="CAUSAL_LM")
    inner = named_model("llama").to(torch.bfloat16)
    model, tokens = peft.get_peft_model(inner, config).eval(), random_tokens(1, 20)
    lm_head = lm_head_of(model)
    hidden_states = lm_head.hidden_states(tokens, 20)
    expected = hidden_states.double() @ inner.lm_head.weight.double().T
    if part == "lm_head":
        first, second = (each["default"].weight.double() for each in (inner.lm_head.lora_A, inner.lm_head.lora_B))
        expected += hidden_states.double() @ first.T @ second.T * inner.lm_head.scaling["default"]
    with torch.no_grad():
        assert_exact(lm_head.logits(hidden_states), expected)
    assert (lm_head.linear is inner.lm_head) == (part == "q_proj")
    assert not lm_head.rounds


def test_a_compiled_backbone() -> None:
    model, tokens = named_model("llama").to(torch.bfloat16), random_tokens(1, 20)
    model.model.layers = model.model.layers[:1]
    expected = exact_logits(model, tokens)
    model.model.compile(backend="eager")
    with torch.no_grad():
        model(tokens)  # the graph is recorded before anything is scored
        lm_head = lm_head_of(model)
        assert_exact(lm_head.logits(lm_head.hidden_states(tokens, 20)), expected)


class LargestFloat32(TorchDispatchMode):
    """The most elements of any float32 tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("vocabulary", [4000, 40_000])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj"])
def test_there_is_no_copy_of_the_whole_matrix(name: str, vocabulary: int) -> None:
    config = type(CONFIGS[name])(**CONFIGS[name].to_diff_dict() | {"vocab_size": vocabulary})
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(torch.bfloat16)
    tokens = random_tokens(1, 9)
    lm_head = lm_head_of(model)
    hidden_states = lm_head.hidden_states(tokens, 8)
    for action in (
        lambda: lm_head.logits(hidden_states),
        lambda: score_prefix(model, tokens),
        lambda: score_suffixes(model, tokens, [6, 8], 2, pairs=[(0, 1)]),
    ):
        with LargestFloat32() as largest, torch.no_grad():
            action()
        limit = max(vocabulary * 16, min(half_precision.WEIGHT_ELEMENTS, vocabulary * 32 // 2))
        assert 0 < largest.elements <= limit  # logits of 8 positions and what is made of them, or a block of weights


class RoundedAfterwards(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.bfloat16()
        return output


class ShiftedHead(transformers.LlamaForCausalLM):
    """Its logits also depend on the positions before: they cannot be computed apart from the backbone."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits.cumsum(1)
        return output


@pytest.mark.parametrize("kind", ["rounded afterwards", "shifted", "packed", "exact", "float32"])
def test_logits_that_stay_rounded_are_said_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    if kind == "rounded afterwards":
        model = RoundedAfterwards(copy.deepcopy(model.config)).eval()
    if kind == "shifted":
        model = ShiftedHead(copy.deepcopy(model.config)).eval()
    if kind != "float32":
        model = model.to(torch.bfloat16)
    if kind == "packed":
        model.lm_head.weight = nn.Parameter(
            model.lm_head.weight.detach().as_subclass(PackedTensor), requires_grad=False
        )
    rounds = kind in ("rounded afterwards", "shifted", "packed")
    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            tokens = random_tokens(1, 20, seed)
            own = model(tokens[:, :-1]).logits.double().log_softmax(-1)
            expected = -own.gather(-1, tokens[:, 1:, None])[..., 0]
            close = 1e-4 if rounds or kind == "float32" else 0.1
            torch.testing.assert_close(score_prefix(model, tokens).double(), expected, rtol=close, atol=close)
            model.lm_head.scale = seed  # a change, so that the model is probed again
    assert lm_head_of(model).rounds == rounds
    assert lm_head_of(model).backbone is (None if kind == "shifted" else model.model)
    said = [record for record in caplog.records if "half precision" in record.getMessage()]
    assert len(said) == (1 if rounds else 0)
    assert all(type(model).__name__ in record.getMessage() for record in said)


def test_logits_beyond_the_range_of_float16() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    with torch.no_grad():
        model.lm_head.weight.mul_(2000)
        model.model.norm.weight.mul_(100)
    model = model.half()
    assert not torch.isfinite(model(tokens).logits).all()
    expected = exact_logits(model, tokens)
    lm_head = lm_head_of(model)
    assert_exact(lm_head.logits(lm_head.hidden_states(tokens, 20)), expected)
    assert lm_head.linear is model.lm_head


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_scale_within_the_rounding_of_half_precision_is_noticed(factor: float) -> None:
    model, tokens = tiny_model("llama").to(torch.bfloat16), random_tokens(1, 20)
    expected = exact_logits(model, tokens) * factor
    model.lm_head.register_forward_hook(lambda module, args, output: output * factor)
    lm_head = lm_head_of(model)
    assert lm_head.linear is None
    assert_exact(lm_head.logits(lm_head.hidden_states(tokens, 20)), expected)
