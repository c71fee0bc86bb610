"""Equal readings with other rounding: which models have them, and that what is not equal is not taken for a floor."""

from __future__ import annotations

import copy
from typing import Any

import accelerate
import pytest
import torch
import transformers
from torch import Tensor, nn

from longshort.scoring.double import in_float64
from longshort.scoring.floor import floor_problem, shifted_hidden_states
from longshort.scoring.lm_head import lm_head_of
from tests.models import CONFIGS, LLAMA_LIKE, TOKENS, random_tokens, tiny_model

LENGTH, SHIFT = 48, 12  # of the longer context, and the offset
UNEQUAL = ("gpt2", "opt")  # learned positions
UNUSED = ("bloom", "mamba")  # ALiBi; recurrent
ROUNDED_TABLE = "gptj"  # its sinusoids are stored in the model's dtype


def dense_jeffreys(model: nn.Module, tokens: Tensor, shift: int) -> float:
    """Mean over all positions, of the model's own logits in float64."""
    ids = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with torch.no_grad():
        p, q = (model(tokens, position_ids=positions).logits.double() for positions in (ids, ids + shift))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return float(((p.exp() - q.exp()) * (p - q)).sum(-1).mean())


def measured_floor(model: nn.Module, tokens: Tensor, shift: int) -> float:
    """The same through the hidden states of the equal reading."""
    lm_head, keep = lm_head_of(model), tokens.shape[1]
    with torch.no_grad():
        states = lm_head.hidden_states(tokens, keep), shifted_hidden_states(lm_head, tokens, keep, shift)
        p, q = (lm_head.logits(each).double().log_softmax(-1) for each in states)
    return float(((p.exp() - q.exp()) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_floor_is_rounding_alone_or_is_refused(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(2, LENGTH - SHIFT)
    problem = floor_problem(lm_head_of(model), LENGTH)
    if name in UNUSED:
        assert problem is not None
        assert "do not depend on position ids" in problem
        assert measured_floor(model, tokens, SHIFT) == 0
        return
    floor = measured_floor(model, tokens, SHIFT)
    assert floor == pytest.approx(dense_jeffreys(model, tokens, SHIFT), rel=1e-3, abs=1e-9)
    assert (problem is None) == (name not in UNEQUAL)
    assert (floor < 1e-5) == (name not in UNEQUAL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_in_half_precision_the_probe_decides_as_in_float32(name: str, dtype: torch.dtype) -> None:
    model, tokens = tiny_model(name).to(dtype), random_tokens(2, LENGTH - SHIFT)
    problem = floor_problem(lm_head_of(model), LENGTH)
    assert (problem is None) == (name not in (*UNEQUAL, *UNUSED, ROUNDED_TABLE))
    if problem is None:
        assert measured_floor(model, tokens, SHIFT) > 1e-9


def rope_model(rope: dict[str, Any], **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = LLAMA_LIKE | TOKENS | {"max_position_embeddings": 64} | changes
    config = transformers.LlamaConfig(**sizes, rope_parameters={"rope_theta": 10000.0} | rope)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.to(torch.bfloat16)


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.1, 1.2, 1.3, 1.4]}


@pytest.mark.parametrize(
    ("rope", "within", "beyond"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, True, True),
        ({"rope_type": "linear", "factor": 4.0}, True, True),
        ({"rope_type": "dynamic", "factor": 4.0}, True, False),
        ({"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64} | FACTORS, True, False),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_frequencies_that_change_beyond_a_length(rope: dict[str, Any], within: bool, beyond: bool) -> None:
    for length, equal in ((64, within), (65, beyond), (200, beyond)):
        model = rope_model(rope)
        assert (floor_problem(lm_head_of(model), length) is None) == equal, length


def test_frequencies_that_change_between_the_shorter_and_the_longer_context() -> None:
    """A shorter context of 12 tokens is within the original length, in the longer one its tokens are not."""
    rope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 20} | FACTORS
    assert floor_problem(lm_head_of(rope_model(rope)), 20) is None
    assert floor_problem(lm_head_of(rope_model(rope)), 24) is not None


def test_a_temperature_that_depends_on_positions_is_noticed() -> None:
    config = copy.deepcopy(CONFIGS["mistral"])
    sizes = {key: value for key, value in config.to_dict().items() if key in LLAMA_LIKE | TOKENS}
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    config = transformers.Ministral3Config(**sizes, head_dim=8, rope_parameters=rope | {"llama_4_scaling_beta": 0.1})
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(torch.bfloat16)
    assert floor_problem(lm_head_of(model), 64) is None
    assert floor_problem(lm_head_of(model), 200) is not None


def test_a_model_without_position_ids_is_refused() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    own = model.forward
    model.forward = lambda input_ids, use_cache=False: own(input_ids=input_ids, use_cache=use_cache)
    problem = floor_problem(lm_head_of(model), LENGTH)
    assert problem is not None
    assert "position_ids" in problem


def test_the_probe_reads_once_per_model_if_the_longest_length_comes_first() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    lm_head = lm_head_of(model)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    lm_head = lm_head_of(model)  # the hook is a change, so the LM head is probed again
    calls.clear()
    assert [floor_problem(lm_head, length) for length in (LENGTH, 32, 16)] == [None] * 3
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["llama", "gemma2"])  # with an LM head of its own, and with the embedding
def test_offloaded_weights_stay_in_half_precision_after_the_probe(name: str) -> None:
    expected = tiny_model(name).to(torch.bfloat16)
    model = accelerate.cpu_offload(copy.deepcopy(expected), execution_device=torch.device("cpu"))
    tokens = random_tokens(1, LENGTH - SHIFT)
    assert floor_problem(lm_head_of(model), LENGTH) is None
    with torch.no_grad():
        logits = model(tokens).logits
        assert logits.dtype == torch.bfloat16
        assert torch.equal(logits, expected(tokens).logits)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert measured_floor(model, tokens, SHIFT) == pytest.approx(measured_floor(expected, tokens, SHIFT), rel=0.1)
    assert measured_floor(model, tokens, SHIFT) > 1e-9


@pytest.mark.parametrize("name", CONFIGS)
def test_a_forward_in_float64_is_that_of_a_float64_model_and_leaves_nothing_behind(name: str) -> None:
    model, tokens = tiny_model(name).to(torch.bfloat16), random_tokens(1, 20)
    tensors = {key: (id(value), value.dtype, value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    buffers = {key: id(value) for key, value in model.named_buffers()}
    config = model.config.to_dict()
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(tokens).logits
        with in_float64(model):
            actual = model(tokens).logits
    assert actual.dtype == torch.float64
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-6  # RoPE in float32 where it says so
    for key, value in model.state_dict(keep_vars=True).items():
        identity, dtype, before = tensors[key]
        assert id(value) == identity
        assert value.dtype == dtype
        assert torch.equal(value, before)
    assert {key: id(value) for key, value in model.named_buffers()} == buffers
    assert model.config.to_dict() == config
