"""Shifted sparse attention against a dense masked softmax, and what it leaves alone."""

import copy
import json
import math

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from longshort.training.shifted_attention import _attend, check_groups, shifted_sparse_attention
from tests.errors import user_error
from tests.models import random_tokens, tiny_model

MODELS = ["llama", "mistral", "qwen3", "gpt_neox", "gpt2"]


def model_of(name):
    model = copy.deepcopy(tiny_model(name))  # with a config of its own
    model.config.sliding_window = None  # of Mistral
    return model


def segment(position, length, groups, shifted):
    """The number of the segment a position lies in, from the definition."""
    group = length // groups
    return (position + group // 2) // group if shifted else position // group


def visible(length, groups, shifted):
    """[T, T]: whether query i (row) sees key j."""
    places = [segment(position, length, groups, shifted) for position in range(length)]
    return torch.tensor([[places[i] == places[j] and j <= i for j in range(length)] for i in range(length)])


def dense(query, key, value, groups, scaling=None):
    """Softmax over the keys each query sees, head by head, in float64."""
    num_heads, length, width = query.shape[1:]
    outputs = torch.empty_like(query, dtype=torch.float64)
    for head in range(num_heads):
        source = head * key.shape[1] // num_heads
        scores = query[:, head].double() @ key[:, source].double().mT
        scores *= 1 / math.sqrt(width) if scaling is None else scaling
        mask = visible(length, groups, shifted=head >= num_heads // 2)
        outputs[:, head] = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value[:, source].double()
    return outputs.transpose(1, 2)  # [B, T, H, D]


def attend(query, key, value, training=True, **options):
    layer = nn.Module().train(training)
    layer.num_key_value_groups = query.shape[1] // key.shape[1]
    return _attend(layer, query, key, value, options.pop("mask", None), **options)[0]


def draw(batch=2, heads=4, shared=1, length=16, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, count, length, width, generator=generator)
        for count in (heads, heads // shared, heads // shared)
    ]


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(2, 5),
    half=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (6, 3)]),
    batch=st.integers(1, 3),
    scaling=st.sampled_from([None, 0.7]),
    seed=st.integers(0, 10),
)
def test_it_is_a_masked_softmax(groups, half, heads, batch, scaling, seed):
    inputs = draw(batch, *heads, length=2 * half * groups, seed=seed)
    outputs = attend(*inputs, groups=groups, scaling=scaling)
    torch.testing.assert_close(outputs.double(), dense(*inputs, groups, scaling), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_masked_softmax():
    inputs = [tensor.double().requires_grad_() for tensor in draw(shared=2)]
    weights = torch.randn(2, 16, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((attend(*inputs, groups=4) * weights).sum(), inputs)
    theirs = torch.autograd.grad((dense(*inputs, 4) * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_each_half_of_the_heads_sees_its_segment_and_no_more():
    """Reach measured: which keys have a weight, head by head."""
    query, key, _ = draw(batch=1, heads=2, length=16)
    value = torch.eye(16).expand(1, 2, 16, 16)  # so that outputs are the weights
    weights = attend(query, key, value, groups=4)[0].transpose(0, 1)  # [H, T, T]
    straight = [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}]
    shifted = [{0, 1}, {2, 3, 4, 5}, {6, 7, 8, 9}, {10, 11, 12, 13}, {14, 15}]
    for head, segments in enumerate((straight, shifted)):
        for position in range(16):
            (own,) = (one for one in segments if position in one)
            seen = set((weights[head, position] > 0).nonzero().flatten().tolist())
            assert seen == {key for key in own if key <= position}
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16))


@pytest.mark.parametrize("name", MODELS)
def test_no_position_sees_a_later_one(name):
    """Nor do the first ones see the last ones, around the end: every j is tried, in a model in training."""
    model = model_of(name).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # of GPT-2
    tokens = random_tokens(1, 16)
    with shifted_sparse_attention(model), torch.no_grad():
        logits = model(tokens).logits[0]
        for place in range(16):
            changed = tokens.clone()
            changed[0, place] = 3 + (tokens[0, place] - 2) % 58
            after = model(changed).logits[0]
            assert torch.equal(after[:place], logits[:place])
            assert not torch.equal(after[place], logits[place])


def test_information_passes_from_group_to_group():
    model = model_of("llama").train()
    tokens = random_tokens(1, 16)
    changed = tokens.clone()
    changed[0, 0] = 3 + (tokens[0, 0] - 2) % 58
    with shifted_sparse_attention(model), torch.no_grad():
        reached = (model(tokens).logits != model(changed).logits).any(-1)[0]
    # Two layers: within 0-3 by straight heads, from 2 and 3 to 4 and 5 by shifted ones.
    assert reached.tolist() == [True] * 6 + [False] * 10


@pytest.mark.parametrize("name", MODELS)
def test_in_evaluation_it_is_the_plain_model(name):
    model = model_of(name)
    tokens = random_tokens(2, 17)  # a length that does not divide
    padding = torch.ones_like(tokens)
    padding[0, :5] = 0
    with torch.no_grad():
        plain, padded = model(tokens).logits, model(tokens, attention_mask=padding).logits
        generated = model.generate(tokens, max_new_tokens=5, do_sample=False)
        with shifted_sparse_attention(model):
            assert torch.equal(model(tokens).logits, plain)
            assert torch.equal(model(tokens, attention_mask=padding).logits, padded)
            assert torch.equal(model.generate(tokens, max_new_tokens=5, do_sample=False), generated)


@pytest.mark.parametrize("before", ["eager", "sdpa"])
def test_the_model_gets_back_what_it_had(tmp_path, before):
    model = model_of("llama").train()
    model.set_attn_implementation(before)
    tokens = random_tokens(2, 16)
    plain = model(tokens).logits

    def interrupted():
        with shifted_sparse_attention(model):
            assert not torch.allclose(model(tokens).logits, plain)
            model.save_pretrained(tmp_path / "inside")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.config._attn_implementation == before
    assert torch.equal(model(tokens).logits, plain)
    model.save_pretrained(tmp_path / "after")
    for folder in ("inside", "after"):
        config = (tmp_path / folder / "config.json").read_text()
        assert "shifted" not in config
        assert "_attn_implementation" not in json.loads(config)


def test_dropout_is_of_attention_weights():
    query, key, value = draw(batch=1)
    many = [tensor.expand(20_000, -1, -1, -1) for tensor in (query, key, value)]
    torch.manual_seed(0)
    outputs = attend(*many, groups=4, dropout=0.25)
    assert (outputs[0] != outputs[1]).any()
    # The first token sees itself alone: its weight is dropped, or raised to keep the mean.
    first = outputs[:, 0] / value[0, :, 0]  # [B, H, D]
    kept = first.mean(-1) > 0.5
    torch.testing.assert_close(first[kept], torch.full_like(first[kept], 1 / 0.75))
    assert abs(kept.float().mean().item() - 0.75) < 0.01
    torch.testing.assert_close(outputs.mean(0).double(), dense(query, key, value, 4)[0], rtol=0, atol=0.06)


def test_dropout_of_the_config_is_used():
    model = model_of("llama").train()
    tokens = random_tokens(1, 16)
    with shifted_sparse_attention(model):
        assert torch.equal(model(tokens).logits, model(tokens).logits)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        assert not torch.equal(model(tokens).logits, model(tokens).logits)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = model_of("qwen3").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with shifted_sparse_attention(model):
            model(random_tokens(2, 16), labels=random_tokens(2, 16)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_models_with_adapters_and_of_several_groups():
    model = model_of("llama")
    plain = copy.deepcopy(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    tokens = random_tokens(2, 24)
    with shifted_sparse_attention(wrapped, groups=3), shifted_sparse_attention(plain, groups=2), torch.no_grad():
        three, two = wrapped.train()(tokens).logits, plain.train()(tokens).logits
        assert not torch.allclose(three, two)  # each has its own
    with shifted_sparse_attention(plain, groups=3), torch.no_grad():
        assert torch.equal(plain(tokens).logits, three)


def test_lengths_that_do_not_divide():
    check_groups(16, 4)
    check_groups(24, 4)
    for length in (15, 12, 20):
        with user_error("setting", "4 groups", length, 8, field="train_length"):
            check_groups(length, 4)
    with user_error("setting", "groups", 1, 2, field="extension_options"):
        check_groups(16, 1)
    model = model_of("llama").train()
    with shifted_sparse_attention(model), user_error("setting", 20, 8, field="train_length"):
        model(random_tokens(1, 20))


def test_masks_are_refused_in_training():
    tokens = random_tokens(2, 16)
    padding = torch.ones_like(tokens)
    model = model_of("llama").train()
    with shifted_sparse_attention(model):
        model(tokens, attention_mask=padding)
        padding[1, -3:] = 0
        with user_error("unsupported", "padding", "--extension", field="extension"):
            model(tokens, attention_mask=padding)
    model = tiny_model("mistral").train()  # a sliding window of 7
    with shifted_sparse_attention(model), user_error("unsupported", "sliding window", "--extension", field="extension"):
        model(tokens)


@pytest.mark.parametrize("name", ["gptj", "bloom", "mamba", "gemma2"])
def test_models_whose_attention_cannot_be_exchanged(name, monkeypatch):
    model = tiny_model(name)
    if name == "gemma2":  # as transformers before 5.23 had it
        monkeypatch.setattr(type(model), "_supports_sdpa", True)
    before = model.config._attn_implementation
    with (
        user_error("unsupported", f"'{name}'", "--extension", field="extension"),
        shifted_sparse_attention(model),
    ):
        pass
    assert model.config._attn_implementation == before
