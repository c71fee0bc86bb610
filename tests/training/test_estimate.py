"""The estimate against counted operations and bytes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.training import TrainConfig
from longshort.training.estimate import estimate

T = 64


def model(**changes):
    settings = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**settings | {"num_attention_heads": 4} | changes))


def config(**changes):
    settings = {"base": "b", "train_length": T, "steps": 5, "global_batch_size": 2}
    return TrainConfig(output="x", **(settings | changes))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_flops_of_a_step(tied, frozen):
    network = model(tie_word_embeddings=tied)
    if frozen:  # as with adapters: gradients pass through most weights without one of their own
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("layers.0.self_attn" in name)
    tokens = torch.randint(300, (4, T))  # two windows of two sequences
    with FlopCounterMode(display=False) as counter:
        network(tokens, labels=tokens).loss.backward()
    estimated = estimate(config(steps=1, alpha=0.0), network)
    assert estimated.tokens == tokens.numel()
    assert estimated.flops == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_attention_is_half_of_the_full_product():
    """Twice the length at equal tokens: what grows is attention, counted here without causality."""
    counted, estimated = [], []
    for rows, length in ((8, T), (4, 2 * T)):
        network = model(attn_implementation="eager")
        tokens = torch.randint(300, (rows, length))
        with FlopCounterMode(display=False) as counter:
            network(tokens, labels=tokens).loss.backward()
        counted.append(counter.get_total_flops())
        settings = config(steps=1, alpha=0.0, train_length=length, global_batch_size=rows // 2)
        estimated.append(estimate(settings, network).flops)
    assert estimated[1] - estimated[0] == pytest.approx((counted[1] - counted[0]) / 2, rel=0.01)


def test_checkpointing_adds_a_forward():
    plain, twice = (estimate(config(gradient_checkpointing=on), model()).flops for on in (False, True))
    assert twice / plain == pytest.approx(4 / 3, rel=0.05)


def test_memory_of_weights_gradients_and_optimizer():
    network = model()
    count = network.num_parameters()
    whole = estimate(config(), network).memory
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    # The gradient and Adam's two moments, 4 bytes each.
    assert whole - estimate(config(), network).memory == 12 * count
    one, two = (estimate(config(batch_size=size, dtype="bfloat16"), network).memory for size in (1, 2))
    assert two - one == 34 * 2 * T * 64 * 3  # bytes per token, layer and unit of width, for two windows
    # Weights, and what each token of two windows keeps in float32.
    assert estimate(config(), network).memory == 4 * count + 68 * 2 * T * 64 * 3
    dense, fused = (estimate(config(loss=loss), network).memory for loss in ("dense", "fused"))
    assert dense - fused == 3 * 4 * 2 * T * 300


@pytest.mark.parametrize(
    ("name", "card", "peak"),
    [("NVIDIA L40", "L40", 181.05e12), ("NVIDIA L40S", "L40S", 362.05e12), ("NVIDIA A100-SXM4-80GB", "A100", 312e12)],
)
def test_hours_are_those_of_the_card_that_is_there(monkeypatch, name, card, peak):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    estimated = estimate(config(), model())
    assert estimated.device == card
    assert estimated.hours == pytest.approx(estimated.flops / (0.4 * peak) / 3600)


def test_the_line_names_what_it_is_for():
    assert "hours on one A100 at 40%" in str(estimate(config(), model())) or torch.cuda.is_available()
