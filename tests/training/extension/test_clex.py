"""CLEX: its frequencies against dynamic NTK and an ODE solver, which t is used when, training and export."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scipy.integrate import solve_ivp
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longshort.scoring.lm_head import LMHead
from longshort.scoring.positions import depends_on_length
from longshort.scoring.prefix import score_prefix
from longshort.testing import tiny_tokenizer
from longshort.training.extension.clex import clex_positions, export_clex
from tests.errors import user_error
from tests.training.extension.build import (
    ARCHITECTURES,
    LENGTH,
    THETA,
    assert_close_logits,
    base_config,
    dense_logits,
    extended,
    tokens,
)

MAX_T = 4


def clex(architecture="llama", *, learned=0.3, **changes):
    """A CLEX model whose ODE has learned something."""
    model = extended("clex", architecture, **{"factor": float(MAX_T)} | changes)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.rotary_emb.down, std=learned)
    return model


def at_init(architecture="llama", **changes):
    return extended("clex", architecture, **{"factor": float(MAX_T)} | changes)


@torch.no_grad()
def frequencies(model, t):
    return model.model.rotary_emb.frequencies(float(t))


# The frequencies


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("t", [1, 2, 4])
def test_at_initialization_it_is_dynamic_ntk(architecture, t):
    model = at_init(architecture, extension_options={"step": 0.5})
    dynamic = extended("dynamic", architecture, factor=2.0)
    dynamic.load_state_dict({k: v for k, v in model.state_dict().items() if "rotary_emb" not in k})
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](dynamic.config, seq_len=t * LENGTH)
    torch.testing.assert_close(frequencies(model, t), expected, rtol=1e-5, atol=0)
    x = tokens(t * LENGTH)
    with torch.no_grad():
        assert_close_logits(model(x).logits, dynamic(x).logits, 1e-5)


@pytest.mark.parametrize("activation", ["silu", "tanh"])
@pytest.mark.parametrize(("t", "multiplier"), [(1.0, 1), (2.0, 1), (2.5, 2), (9.0, 0.5)])
def test_frequencies_solve_the_papers_ode(activation, t, multiplier):
    model = clex(
        factor=9.0, extension_options={"activation": activation, "hidden_multiplier": multiplier}, learned=0.05
    )
    rope = model.model.rotary_emb
    up, down = (weight.detach().double().numpy() for weight in (rope.up, rope.down))
    d = 8
    assert up.shape == (d // 2, int(multiplier * d))
    e = np.arange(0, d, 2)

    def slope(t, z):
        a = 2 * t - 1
        hidden = (z + np.log(THETA ** (-e / d) * a ** (-e / (d - 2)))) @ up
        hidden = np.tanh(hidden) if activation == "tanh" else hidden / (1 + np.exp(-hidden))
        return hidden @ down - 2 * e / ((d - 2) * a)

    start = -e / d * math.log(THETA)
    expected = solve_ivp(slope, (1, t), start, "DOP853", rtol=1e-10, atol=1e-10).y[:, -1] if t > 1 else start
    np.testing.assert_allclose(frequencies(model, t).double().log(), expected, rtol=0, atol=2e-5)
    if t > 1:  # the learned part is large enough to be seen
        assert abs(expected - (start - e / (d - 2) * math.log(2 * t - 1))).max() > 0.02


def test_weights_start_as_the_papers():
    rope = extended("clex", model_changes={"hidden_size": 512}).model.rotary_emb
    assert rope.up.shape == (64, 128)
    bound = 1 / math.sqrt(128)  # kaiming-uniform with a = √5
    assert 0.98 * bound < rope.up.abs().max() <= bound
    assert rope.up.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not rope.down.any()


def test_the_ode_learns():
    model = at_init()
    before = frequencies(model, 3)
    x = tokens(40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x, labels=x).loss.backward()
        optimizer.step()
    rope = model.model.rotary_emb
    assert rope.down.grad.abs().max() > 0
    assert rope.up.grad.abs().max() > 0  # from the second step on: down is zero before
    assert (frequencies(model, 3) / before - 1).abs().max() > 1e-4
    torch.testing.assert_close(frequencies(model, 1), stock_frequencies(), rtol=0, atol=0)


def stock_frequencies():
    return 1.0 / THETA ** (torch.arange(0, 8, 2) / 8)


def test_gradients_of_the_ode_are_those_of_finite_differences():
    model = clex()
    rope, weights = model.model.rotary_emb, torch.arange(1.0, 5.0)

    def value():
        return (rope.frequencies(3.0).log() * weights).sum()

    value().backward()
    with torch.no_grad():
        for parameter in (rope.up, rope.down):
            direction = parameter.grad / parameter.grad.norm()
            parameter += 5e-3 * direction
            above = value()
            parameter -= 1e-2 * direction
            below = value()
            parameter += 5e-3 * direction
            assert ((above - below) / 1e-2).item() == pytest.approx(parameter.grad.norm().item(), rel=2e-3)


def test_every_parameter_is_in_the_graph_at_every_t():
    for t in (1, 3):
        model = clex()
        x = tokens(LENGTH)
        model(x, labels=x, clex_t=t).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("change", ["in place", "through .data", "loaded"])
def test_cached_frequencies_follow_the_weights(change):
    model = clex()
    rope = model.model.rotary_emb
    first = frequencies(model, 2)
    assert frequencies(model, 2) is first
    if change == "in place":
        with torch.no_grad():
            rope.down.mul_(2)
    elif change == "through .data":
        rope.up.data.mul_(2)
    else:
        rope.load_state_dict({"up": rope.up, "down": rope.down * 2})
    again = frequencies(model, 2)
    assert not torch.equal(again, first)
    torch.testing.assert_close(again, rope.frequencies(2.0).detach(), rtol=0, atol=0)


def test_the_ode_stays_in_float32():
    model = clex()
    expected = frequencies(model, 3)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert {parameter.dtype for parameter in half.model.rotary_emb.parameters()} == {torch.float32}
    assert half.lm_head.weight.dtype == torch.bfloat16
    torch.testing.assert_close(frequencies(half, 3), expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.model.rotary_emb.frequencies(3.0).detach(), expected, rtol=0, atol=0)
    cos, _ = half.model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), torch.arange(3)[None])
    assert cos.dtype == torch.bfloat16


# Which t, which positions


def test_t_is_the_length_in_original_lengths():
    rope = extended("clex", factor=5.0).model.rotary_emb
    for length in range(1, 8 * LENGTH):
        assert rope.scale(length) == next((t for t in range(1, 5) if length <= t * LENGTH), 5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("length", [LENGTH, LENGTH + 1, 40])
def test_all_tokens_of_a_forward_use_one_t(architecture, length):
    model = clex(architecture)
    x = tokens(length)
    with torch.no_grad():
        actual = model(x).logits[0]
    assert_close_logits(actual, dense_logits(model, x[0], frequencies(model, math.ceil(length / LENGTH))))


def test_fixed_t_holds_for_every_length():
    model = clex()
    model.config.rope_parameters["fixed_t"] = 3
    x = tokens(10)
    with torch.no_grad():
        assert_close_logits(model(x).logits[0], dense_logits(model, x[0], frequencies(model, 3)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stretched_positions_leave_the_mask_causal_and_full(architecture):
    model = clex(architecture)
    positions = clex_positions(40, 3, np.random.default_rng(0))
    x = tokens(40)
    with torch.no_grad():
        # Without a cache, as in training: transformers looks for packed sequences only then.
        actual = model(x, clex_t=3, clex_positions=positions[None], use_cache=False).logits[0]
    expected = dense_logits(model, x[0], frequencies(model, 3), positions=positions / 2)  # 40 // 16
    assert_close_logits(actual, expected)
    assert (expected - dense_logits(model, x[0], frequencies(model, 3))).abs().max() > 0.1


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("t", [[3, 1, 4, 3], [1, 1, 1, 1]])
def test_every_row_has_its_own_t_and_positions(architecture, t, grad):
    model = clex(architecture, learned=0.05)
    generator = np.random.default_rng(0)
    positions = torch.stack([clex_positions(40, one, generator) for one in t])
    x = tokens(40, batch=4)
    with torch.set_grad_enabled(grad):
        actual = model(x, clex_t=torch.tensor(t), clex_positions=positions, use_cache=False).logits.detach()
    for row in range(4):
        expected = dense_logits(model, x[row], frequencies(model, t[row]), positions=positions[row] / 2)
        assert_close_logits(actual[row], expected)


@pytest.mark.parametrize("step", [0.1, 0.3, 1.0])
def test_the_scales_of_a_batch_are_solved_together(step):
    model = clex(factor=16.0, extension_options={"step": step}, learned=0.05)
    rope = model.model.rotary_emb
    t = torch.tensor([5, 1, 16, 5, 2])
    together = rope.frequencies_of_rows(t)
    torch.testing.assert_close(
        together, torch.stack([frequencies(model, one) for one in t.tolist()]), rtol=2e-5, atol=0
    )
    # Not even a step that does not divide 1 lets a row depend on the others.
    for row, one in enumerate(t):
        torch.testing.assert_close(rope.frequencies_of_rows(one[None])[0], together[row], rtol=0, atol=0)
    weights = torch.arange(1.0, 21.0).view(5, 4)
    (together.log() * weights).sum().backward()
    batched = [parameter.grad for parameter in (rope.up, rope.down)]
    rope.zero_grad()
    for row, one in enumerate(t.tolist()):
        (rope.frequencies(float(one)).log() * weights[row]).sum().backward()
    torch.testing.assert_close(batched, [rope.up.grad, rope.down.grad], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int16])
@pytest.mark.parametrize("name", ["clex_t", "clex_positions"])
def test_rounded_scales_and_positions_are_refused(name, dtype):
    positions = clex_positions(20, 2, np.random.default_rng(0))[None]
    inputs = {"clex_t": torch.tensor([2]), "clex_positions": positions}
    inputs[name] = inputs[name].to(dtype)
    with pytest.raises(TypeError, match=f"{name}.*{dtype}"):
        clex()(tokens(20), **inputs)


def test_a_scale_below_1_is_refused():
    with pytest.raises(ValueError, match="clex_t contains 0"):
        clex()(tokens(20, batch=2), clex_t=torch.tensor([2, 0]))


def test_the_model_divides_positions_in_float32():
    model = clex(model_changes={"max_position_embeddings": 3}, train_length=12, learned=0.05).bfloat16()  # 40 // 3 = 13
    rope = model.model.rotary_emb
    positions = clex_positions(40, 4, np.random.default_rng(0))[None]
    rope.set_scale(torch.tensor([4]), positions)
    cos, sin = rope(torch.zeros(1), torch.arange(40)[None])
    angles = (positions[0].double() / 13)[:, None] * frequencies(model, 4).double()
    for actual, expected in ((cos, angles.cos()), (sin, angles.sin())):
        torch.testing.assert_close(actual[0, :, :4].double(), expected, rtol=0, atol=2e-6)


def test_gradient_checkpointing_changes_no_gradient():
    x, positions = tokens(20, batch=2), clex_positions(20, 2, np.random.default_rng(0))[None]
    gradients = []
    for checkpointing in (False, True):
        model = clex().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(x, labels=x, clex_t=2, clex_positions=positions, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[1][-2].abs().max() > 0


@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_positions_are_a_sorted_subset_from_the_first_to_the_last(length, t, seed):
    positions = clex_positions(length, t, np.random.default_rng(seed))
    assert positions.dtype == torch.int64
    assert positions.shape == (length,)
    assert (positions[0], positions[-1]) == (0, length * t - 1)
    assert (positions.diff() > 0).all()
    if t == 1:
        assert torch.equal(positions, torch.arange(length))


def test_positions_are_drawn_evenly_and_by_the_seed():
    draws = [clex_positions(12, 4, np.random.default_rng(seed)) for seed in range(2000)]
    assert torch.equal(draws[7], clex_positions(12, 4, np.random.default_rng(7)))
    counts = torch.stack(draws)[:, 1:-1].flatten().bincount(minlength=48)
    assert counts[0] == counts[47] == 0
    expected = 2000 * 10 / 46
    assert ((counts[1:47] - expected).abs() < 5 * math.sqrt(expected)).all()


# Cached decoding


@torch.no_grad()
def greedy(model, x, steps, t):
    for _ in range(steps):
        x = torch.cat((x, model(x, clex_t=t).logits[:, -1:].argmax(-1)), dim=1)
    return x


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("prompt", "new", "t"), [(4, 10, 1), (20, 10, 2), (10, 30, 3)])
def test_generation_with_a_cache_equals_full_context(architecture, prompt, new, t):
    model = clex(architecture)
    x = tokens(prompt)
    options = {"do_sample": False, "eos_token_id": None}
    cached = model.generate(x, max_new_tokens=new, **options)
    assert torch.equal(cached, model.generate(x, max_new_tokens=new, use_cache=False, **options))
    assert torch.equal(cached, model.generate(x, max_length=prompt + new, **options))
    assert torch.equal(cached, greedy(model, x, new, t))
    assert model.model.rotary_emb.t == t


def test_a_cache_keeps_the_t_it_was_filled_with():
    model = clex()
    x = tokens(40)
    with torch.no_grad():
        cache = model(x[:, :20], use_cache=True).past_key_values
        rest = model(x[:, 20:], past_key_values=cache).logits
        assert_close_logits(rest, model(x, clex_t=2).logits[:, 20:], 1e-5)
        cache = DynamicCache()
        cache.clex_t = 1.0  # of what it once held
        assert_close_logits(model(x, past_key_values=cache).logits, model(x, clex_t=3).logits, 1e-5)


# Around the model


def test_the_evaluator_finds_its_body_and_its_dependence_on_length(caplog):
    model = clex()
    x = tokens(40)
    assert LMHead(model).backbone is model.model
    assert depends_on_length(model, x, [8, 40], score_prefix(model, x))
    short = x[:, :LENGTH]
    assert not depends_on_length(model, short, [8, LENGTH], score_prefix(model, short))
    assert not caplog.records


def test_lora_trains_the_ode_beside_it_and_merges():
    model = get_peft_model(clex(), LoraConfig(target_modules="all-linear", modules_to_save=["rotary_emb"]))
    x, positions = tokens(20, batch=2), clex_positions(20, 2, np.random.default_rng(0))[None]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = frequencies(clex(), 2)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=x, labels=x, clex_t=2, clex_positions=positions).loss.backward()
        optimizer.step()
    with torch.no_grad():
        expected = model(input_ids=x).logits
        merged = model.merge_and_unload()
        assert_close_logits(merged(x).logits, expected, 1e-4)
    assert type(merged).__name__ == "ClexLlamaForCausalLM"
    assert not torch.equal(frequencies(merged, 2), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_export_is_a_stock_model_of_one_t(architecture, tmp_path):
    model = clex(architecture)
    model.generation_config.max_length = MAX_T * LENGTH
    model.save_pretrained(tmp_path / "clex")
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = MAX_T * LENGTH
    tokenizer.save_pretrained(tmp_path / "clex")
    folder = export_clex(tmp_path / "clex", tmp_path / "stock", 3)
    assert not list(folder.glob("*.py"))
    stock, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert stock.config.model_type == architecture
    assert stock.config.max_position_embeddings == 3 * LENGTH
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 3 * LENGTH
    assert stock.generation_config.max_length == 3 * LENGTH
    with torch.no_grad():
        for length, t in ((LENGTH, 1), (2 * LENGTH + 1, 3), (3 * LENGTH, 3)):
            x = tokens(length)
            assert_close_logits(stock(x).logits, model(x).logits, 1e-5)
            exported = stock.model.rotary_emb.inv_freq
            torch.testing.assert_close(exported, frequencies(model, t), rtol=3e-7, atol=0)


def test_an_export_keeps_dtype_and_tied_weights(tmp_path):
    model = clex(model_changes={"tie_word_embeddings": True}).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "clex")
    tiny_tokenizer().save_pretrained(tmp_path / "clex")
    stock = AutoModelForCausalLM.from_pretrained(export_clex(tmp_path / "clex", tmp_path / "stock", 2), dtype="auto")
    assert stock.dtype == torch.bfloat16
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    torch.testing.assert_close(stock.lm_head.weight, model.lm_head.weight)


def test_exports_that_cannot_be_are_refused(tmp_path):
    clex().save_pretrained(tmp_path / "clex")
    AutoModelForCausalLM.from_config(base_config()).save_pretrained(tmp_path / "plain")
    with user_error("broken", str(tmp_path / "clex"), "tokenizer", field="checkpoint"):
        export_clex(tmp_path / "clex", tmp_path / "out", 2)
    for name in ("clex", "plain"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    with user_error("unsupported", f"'{tmp_path / 'plain'}'", "'llama'", field="checkpoint"):
        export_clex(tmp_path / "plain", tmp_path / "out", 2)
    with user_error("not_found", f"'{tmp_path / 'nowhere'}'", field="checkpoint"):
        export_clex(tmp_path / "nowhere", tmp_path / "out", 2)
    for t in (0, 2.5, MAX_T + 1):
        with user_error("setting", t, 1, MAX_T, field="t"):
            export_clex(tmp_path / "clex", tmp_path / "out", t)
    with user_error("conflict", str(tmp_path / "plain"), field="output"):
        export_clex(tmp_path / "clex", tmp_path / "plain", 2)
    config = tmp_path / "clex" / "config.json"
    config.write_text(config.read_text().replace('"rope_parameters"', '"others"'))
    with user_error("broken", str(tmp_path / "clex"), "max_t", "rope_parameters", "config.json", field="checkpoint"):
        export_clex(tmp_path / "clex", tmp_path / "out", 2)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("damage", "facts"), [("cut off", ("header",)), ("missing", (1, "model.rotary_emb.up"))])
def test_an_export_of_damaged_weights_is_refused(tmp_path, damage, facts):
    clex().save_pretrained(tmp_path / "clex")
    tiny_tokenizer().save_pretrained(tmp_path / "clex")
    file = tmp_path / "clex" / "model.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file({k: v for k, v in load_file(file).items() if k != "model.rotary_emb.up"}, file, {"format": "pt"})
    with user_error("broken", str(tmp_path / "clex"), *facts, field="checkpoint"):
        export_clex(tmp_path / "clex", tmp_path / "out", 2)
    assert not list(tmp_path.glob("out*"))
