"""The fused loss against the dense one: values, gradients of every parameter, memory, and what wraps a model."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from longshort.training import closed_form, fused
from longshort.training.fused import FusedLoss, LossParts, add_fused_loss
from longshort.training.regularizer import misalignment_loss
from tests.models import CONFIGS, VOCAB, random_tokens, tiny_model

B, T, E = 2, 12, 3
POSITIONS, DIVERGENCES = ("overlap", "in_range", "last"), ("sce", "jeffreys", "js", "kl")
DETACH = ("none", "long", "short")
REQUEST = FusedLoss(extra=E, special=0, alpha=0.7)


def windows(batch: int = B, length: int = T, extra: int = E, seed: int = 0) -> Tensor:
    """Windows A, then windows B, of random sequences."""
    tokens = random_tokens(batch, length + extra, seed)
    return torch.cat([tokens[:, :length], tokens[:, extra:]])


def dense(model: nn.Module, tokens: Tensor, request: FusedLoss, **inputs: object) -> LossParts:
    """The same from the model's full logits, by autograd."""
    logits = model(input_ids=tokens, use_cache=False, **inputs).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cross_entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    if request.windows == 1:
        return LossParts(cross_entropy, cross_entropy, None, None, None)
    misalignment = misalignment_loss(
        *logits.chunk(2),
        request.extra,
        positions=request.positions,
        divergence=request.divergence,
        detach=request.detach,
        special=request.special,
    )
    loss = cross_entropy + request.alpha * misalignment.loss if request.alpha else cross_entropy
    return LossParts(loss, cross_entropy, *misalignment)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: nn.Module, tokens: Tensor, request: FusedLoss, rtol: float = 1e-4, **inputs: object) -> None:
    """Values to 1e-6, or 1e-10 in float64, and each gradient relative to the largest of its tensor."""
    expected = dense(model, tokens, request, **inputs)
    expected_gradients = gradients(model, expected.loss)
    actual = model(input_ids=tokens, fused_loss=request, use_cache=False, **inputs)
    assert isinstance(actual, LossParts)
    actual_gradients = gradients(model, actual.loss)
    value_rtol = 1e-10 if expected.loss.dtype == torch.float64 else 1e-6
    for name, value, other in zip(LossParts._fields, actual, expected, strict=True):
        if other is None:
            assert value is None
            continue
        assert value.dtype == other.dtype
        assert value.requires_grad == (name == "loss")
        torch.testing.assert_close(value, other, rtol=value_rtol, atol=2e-6 if value_rtol > 1e-9 else 1e-10)
    assert actual_gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    assert largest > 0
    for name, gradient in expected_gradients.items():
        error = (actual_gradients[name] - gradient).abs().max()
        assert error <= rtol * (gradient.abs().max() + 1e-3 * largest), name  # some are zero but for rounding


def patched(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = tiny_model(name).to(dtype)
    assert add_fused_loss(model, windows())
    return model


def small_chunks(monkeypatch: pytest.MonkeyPatch, size: int, block: int) -> None:
    monkeypatch.setattr(fused, "chunk_sizes", lambda *_: (size, block))


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A plain linear head, and one with a soft cap and the embedding's weight."""
    return patched(request.param, torch.float64)


@pytest.mark.parametrize(("positions", "divergence", "detach"), list(itertools.product(POSITIONS, DIVERGENCES, DETACH)))
def test_equals_the_dense_loss_for_every_option(
    model: nn.Module, positions: str, divergence: str, detach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch, 5, 2)
    request = replace(REQUEST, positions=positions, divergence=divergence, detach=detach, special=1)
    assert_same(model, windows(), request, rtol=1e-9)


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"windows": 1, "alpha": 0.0}, {"alpha": 1e-3}, {"alpha": 5.0}])
def test_equals_the_dense_loss_for_any_weight(model: nn.Module, changes: dict[str, float]) -> None:
    assert_same(model, windows(), replace(REQUEST, **changes), rtol=1e-9)


@pytest.mark.parametrize(("size", "block"), [(1, 1), (3, 2), (6, 3), (9, 9), (18, 4), (18, 18), (40, 7)])
def test_chunks_do_not_matter(size: int, block: int, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, size, block)  # 18 pairs, 12 other positions
    assert_same(model, windows(), REQUEST, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_equals_the_dense_loss_for_any_shape(model: nn.Module, data: st.DataObject) -> None:
    length = data.draw(st.integers(4, 16))
    special = data.draw(st.integers(0, 1))
    extra = data.draw(st.integers(1, length - 1 - special))
    batch = data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 100))
    request = replace(REQUEST, extra=extra, special=special, divergence=data.draw(st.sampled_from(DIVERGENCES)))
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)))
        assert_same(model, windows(batch, length, extra, seed), request, rtol=1e-8)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_dense_loss_on_every_architecture(name: str) -> None:
    model = patched(name)
    is_linear = model.__dict__[fused.FUSED].is_linear
    assert is_linear == (name not in ("gemma2", "cohere", "granite"))
    model.train(name != "gpt2")  # its dropout differs from call to call
    assert_same(model, windows(), REQUEST)


def test_a_gentle_cap_is_noticed() -> None:
    config = copy.deepcopy(CONFIGS["gemma2"])
    config.final_logit_softcapping = 200.0
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double()
    assert add_fused_loss(model, windows())
    assert not model.__dict__[fused.FUSED].is_linear
    assert_same(model, windows(), REQUEST, rtol=1e-9)


def test_a_bias_of_the_head_learns() -> None:
    model = patched("gptj", torch.float64)
    assert model.lm_head.bias is not None
    assert_same(model, windows(), REQUEST, rtol=1e-9)
    assert model.lm_head.bias.grad.abs().max() > 0


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_embeddings(tied: bool) -> None:
    config = copy.deepcopy(CONFIGS["llama"])
    config.tie_word_embeddings = tied
    model = AutoModelForCausalLM.from_config(config).double()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert add_fused_loss(model, windows())
    assert_same(model, windows(), REQUEST, rtol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_against_finite_differences(name: str, divergence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, 2, 1)
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size, config.hidden_size = 7, 4
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config).double()
    tokens = windows(1, 5, 2) % 7
    assert add_fused_loss(model, tokens)
    head = model.__dict__[fused.FUSED]
    request = FusedLoss(extra=2, special=0, alpha=0.7, divergence=divergence)
    states = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=head.is_linear)

    def loss(states: Tensor, weight: Tensor) -> Tensor:
        return fused._LossOfHiddenStates.apply(head, request, True, tokens, states, weight)[0]

    assert torch.autograd.gradcheck(loss, (states, weight))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_frozen_head(name: str) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config).double()
    model.lm_head.requires_grad_(False)
    assert add_fused_loss(model, windows())
    assert_same(model, windows(), REQUEST, rtol=1e-9)
    assert not model.lm_head.weight.requires_grad
    model.lm_head.requires_grad_(True)  # unfrozen later, it learns
    assert_same(model, windows(), REQUEST, rtol=1e-9)
    assert model.lm_head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_backward_scales_adds_up_and_can_be_repeated(name: str) -> None:
    model = patched(name, torch.float64)
    loss = model(input_ids=windows(), fused_loss=REQUEST).loss
    once = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    thrice = torch.autograd.grad(3 * loss, list(model.parameters()), allow_unused=True)
    for first, other in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * first, other, rtol=1e-5, atol=1e-6)  # norms compute in float32


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_without_gradients(name: str) -> None:
    model = patched(name, torch.float64)
    with torch.no_grad():
        parts = model(input_ids=windows(), fused_loss=REQUEST)
        expected = dense(model, windows(), REQUEST)
    assert not parts.loss.requires_grad
    torch.testing.assert_close(torch.stack(parts), torch.stack(expected))


class LargestShapes(TorchDispatchMode):
    """Elements of the largest tensor any operation returns, among those as wide as the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = vocab_size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # as torch has it
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[-1] == self.vocab_size:
                self.rows = max(self.rows, leaf.numel() // self.vocab_size)
        return result


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_no_logits_of_a_whole_window_are_held(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, 20, 5)
    model = patched(name)
    tokens = windows(batch=2, length=40)
    with LargestShapes(VOCAB) as seen:
        model(input_ids=tokens, fused_loss=REQUEST).loss.backward()
    assert seen.rows == 40  # a chunk of both sides; the head's weight, transposed, has 32
    with LargestShapes(VOCAB) as seen:
        dense(model, tokens, REQUEST).loss.backward()
    assert seen.rows == tokens.numel()


def test_chunks_are_bounded_in_bytes() -> None:
    for vocab_size, device in itertools.product((32_000, 128_256, 262_144), ("cpu", "cuda")):
        size, block = fused.chunk_sizes(vocab_size, torch.device(device), 10**6)
        held = 4 * vocab_size * (4 * size + closed_form.NUM_BUFFERS * block)
        assert 2**26 < held <= 2**30 if device == "cuda" else held <= 2**28 + 2**25
    assert fused.chunk_sizes(100, torch.device("cpu"), 30) == (30, 30)  # no more than there are


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_bfloat16_autocast_as_the_dense_loss(name: str) -> None:
    model = patched(name)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = dense(model, windows(), REQUEST), model(input_ids=windows(), fused_loss=REQUEST)
    assert all(part.dtype == torch.float32 for part in actual)
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), rtol=1e-4, atol=1e-4)
    expected_gradients, actual_gradients = gradients(model, expected.loss), gradients(model, actual.loss)
    for name, gradient in expected_gradients.items():
        assert actual_gradients[name].dtype == torch.float32
        assert (actual_gradients[name] - gradient).norm() <= 0.02 * gradient.norm(), name


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16_weights_as_the_dense_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, 1, 1)
    model = patched(name, torch.bfloat16)
    expected, actual = dense(model, windows(), REQUEST), model(input_ids=windows(), fused_loss=REQUEST)
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), rtol=1e-4, atol=1e-4)
    expected_gradients, actual_gradients = gradients(model, expected.loss), gradients(model, actual.loss)
    for name, gradient in expected_gradients.items():
        assert actual_gradients[name].dtype == torch.bfloat16
        limit = 0.005 if name == "lm_head.weight" else 0.02  # a sum over chunks in bfloat16 would be off by 0.007
        assert (actual_gradients[name] - gradient).norm() <= limit * gradient.norm(), name


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_gradient_checkpointing(name: str) -> None:
    model = patched(name, torch.float64).train()
    plain = gradients(model, model(input_ids=windows(), fused_loss=REQUEST).loss)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    recomputed = gradients(model, model(input_ids=windows(), fused_loss=REQUEST).loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)
    assert_same(model, windows(), REQUEST, rtol=1e-9)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora(targets: list[str]) -> None:
    from peft import LoraConfig, get_peft_model  # here, since the parallel test imports this file thrice

    model = get_peft_model(tiny_model("llama").double(), LoraConfig(r=2, target_modules=targets)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert add_fused_loss(model, windows())
    assert model.get_base_model().__dict__[fused.FUSED].is_linear == ("lm_head" not in targets)
    assert_same(model, windows(), REQUEST, rtol=1e-9)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora" in name}


def test_an_attention_mask_is_read() -> None:
    model = patched("llama", torch.float64)
    mask = torch.ones_like(windows())
    mask[:, :4] = 0
    assert_same(model, windows(), REQUEST, rtol=1e-9, attention_mask=mask)
    masked, full = (model(input_ids=windows(), fused_loss=REQUEST, attention_mask=x).loss for x in (mask, None))
    assert abs(masked - full) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_other_calls_are_unchanged(name: str, tmp_path: Path) -> None:
    model, tokens = tiny_model(name), windows()
    before = model(input_ids=tokens, labels=tokens)
    generated = model.generate(tokens[:, :5], max_new_tokens=4, do_sample=False)
    names = list(model.state_dict())
    signature = inspect.signature(model.forward)
    assert add_fused_loss(model, tokens)
    assert add_fused_loss(model, tokens)  # twice is once
    after = model(input_ids=tokens, labels=tokens)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(model.generate(tokens[:, :5], max_new_tokens=4, do_sample=False), generated)
    assert list(model.state_dict()) == names
    assert inspect.signature(model.forward) == signature
    assert not model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=tokens).logits, before.logits)
    assert not isinstance(after, LossParts)


def test_a_deep_copy_uses_its_own_weights() -> None:
    model = patched("llama", torch.float64)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    first, second = (x(input_ids=windows(), fused_loss=REQUEST).loss for x in (model, other))
    assert abs(first - second) > 1e-3
    assert not torch.equal(model(input_ids=windows()).logits, other(input_ids=windows()).logits)
    assert_same(other, windows(), REQUEST, rtol=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_of_the_instance_is_used() -> None:
    model = tiny_model("llama")
    model.forward = functools.partial(type(model).forward, model)
    assert add_fused_loss(model, windows())
    assert_same(model, windows(), REQUEST)


def test_a_head_that_cannot_run_apart_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    class Mixing(type(tiny_model("llama"))):  # type: ignore[misc]  # the class is known at run time
        """Its logits depend on how many positions there are."""

        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * output.logits.shape[1]
            return output

    model = Mixing(CONFIGS["llama"])
    assert not add_fused_loss(model, windows())
    assert len(caplog.records) == 1
    assert "Mixing" in caplog.text
    assert "forward" not in model.__dict__


def test_a_head_whose_backward_needs_its_logits() -> None:
    class Saturating(type(tiny_model("llama"))):  # type: ignore[misc]  # the class is known at run time
        """tanh keeps what it returned for its gradient."""

        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = torch.tanh(output.logits)
            return output

    torch.manual_seed(0)
    model = Saturating(CONFIGS["llama"]).double()
    assert add_fused_loss(model, windows())
    assert_same(model, windows(), REQUEST, rtol=1e-9)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(_parallel, args=(str(tmp_path),), nprocs=2)
    model, request = patched("gemma2", torch.float64), replace(REQUEST, special=1)
    parts = model(input_ids=windows(4), fused_loss=request)
    expected = gradients(model, parts.loss)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((results[0]["parts"] + results[1]["parts"]) / 2, torch.stack(parts).detach())
    for name, gradient in expected.items():
        torch.testing.assert_close(results[0]["gradients"][name], gradient, rtol=1e-5, atol=1e-8, msg=name)


def _parallel(rank: int, folder: str) -> None:
    """One of two processes; each has half of the sequences."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = patched("gemma2", torch.float64)
    wrapped = nn.parallel.DistributedDataParallel(model)
    tokens = windows(4).view(2, 4, T)[:, 2 * rank : 2 * rank + 2].flatten(0, 1)
    parts = wrapped(input_ids=tokens, fused_loss=replace(REQUEST, special=1))
    state = {"gradients": gradients(model, parts.loss), "parts": torch.stack(parts).detach()}
    torch.save(state, f"{folder}/{rank}.pt")
    del wrapped  # the last to hold the group would end it with the GIL held, which gloo's thread may wait for
    torch.distributed.destroy_process_group()
