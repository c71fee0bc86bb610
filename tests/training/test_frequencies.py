"""CLEX's frequencies in training: runs against a loop in float64 that shares no code with them; clipping; refusals."""

import csv
import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed import fsdp
from torch.distributed.tensor import DTensor

from longshort.corpora import open_corpus
from longshort.training import TrainConfig
from longshort.training.byte_tokenizer import byte_tokenizer
from longshort.training.compat import float32_frequencies
from longshort.training.extension.clex import clex_positions
from longshort.training.frequencies import check_wrapper, clip_groups, learned_frequencies
from longshort.training.run import finish, fit, prepare
from longshort.training.windows import WindowPairs
from tests.errors import user_error
from tests.training.extension.build import extended

LENGTH, MAX_T, T = 16, 4, 32  # L0, the greatest t, tokens of a window
HEADS, LAYERS, EPSILON = 2, 2, 1e-6
LLAMA = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "rms_norm_eps": EPSILON,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.2,  # so that positions matter
}
FREQUENCIES = ("model.rotary_emb.up", "model.rotary_emb.down")
RATE, RATE_OF_FREQUENCIES, DECAY = 1e-3, 5e-4, 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, and the config of a model with L0 = 16."""
    folder = tmp_path_factory.mktemp("clex")
    texts = [" ".join(str(n * step) for n in range(300)) for step in (1, 7, 13)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def settings(folder, output, **changes):
    options = {"model_config": str(folder / "config.json"), "tokenizer": "bytes"}
    options |= {"corpus": str(folder / "corpus.jsonl"), "train_length": T, "extension": "clex", "factor": float(MAX_T)}
    options |= {"extension_options": {"learning_rate": RATE_OF_FREQUENCIES, "activation": "silu"}}
    options |= {"steps": 3, "global_batch_size": 4, "batch_size": 2, "alpha": 0.5, "resume_every": 0}
    options |= {"learning_rate": RATE, "weight_decay": DECAY, "scheduler": "constant", "warmup": 0.0}
    return TrainConfig(output=str(output), **options | changes)


def logged(path):
    return list(csv.DictReader((path / "training_log.csv").open()))


# A loop in float64 that is written from the papers


def solved(weights, t, steps=20):
    """Log frequencies at t, [d/2]: the paper's ODE for z itself, from 1 to t."""
    up, down = (weights[name] for name in FREQUENCIES)
    d = 2 * len(up)
    e = torch.arange(0, d, 2, dtype=torch.float64)
    start = -e / d * math.log(10_000.0)

    def slope(t, z):
        a = 2 * t - 1
        hidden = (z + start - e / (d - 2) * math.log(a)) @ up
        return hidden * hidden.sigmoid() @ down - 2 * e / ((d - 2) * a)

    z, count = start, steps * (t - 1)
    for step in range(count):  # the classical Runge-Kutta method
        now, h = 1 + step / steps, 1 / steps
        first = slope(now, z)
        second = slope(now + h / 2, z + h / 2 * first)
        third = slope(now + h / 2, z + h / 2 * second)
        fourth = slope(now + h, z + h * third)
        z = z + h / 6 * (first + 2 * second + 2 * third + fourth)
    return z


def log_probs(weights, tokens, log_frequencies, positions):
    """Of a Llama, for one window [T]: [T, V]."""
    angles = positions[:, None] * log_frequencies.exp()
    cos, sin = angles.cos(), angles.sin()

    def normed(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weights[name]

    def rotated(x):
        real, imaginary = x.chunk(2, -1)
        return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)

    hidden = weights["model.embed_tokens.weight"][tokens]
    future = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        x = normed(hidden, name + "input_layernorm.weight")
        q, k, v = ((x @ weights[f"{name}self_attn.{part}_proj.weight"].T).chunk(HEADS, -1) for part in "qkv")
        heads = []
        for head in range(HEADS):
            scores = rotated(q[head]) @ rotated(k[head]).T / math.sqrt(q[head].shape[-1])
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[head])
        hidden = hidden + torch.cat(heads, -1) @ weights[name + "self_attn.o_proj.weight"].T
        x = normed(hidden, name + "post_attention_layernorm.weight")
        gate, up = (x @ weights[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        hidden = hidden + (gate * gate.sigmoid() * up) @ weights[name + "mlp.down_proj.weight"].T
    return (normed(hidden, "model.norm.weight") @ weights["lm_head.weight"].T).log_softmax(-1)


def loss_of(weights, items, alpha, seed, step):
    """Cross-entropy over the tokens of all windows, and α times sce over all pairs of positions."""
    cross_entropy, sce = [], []
    for index, item in enumerate(items):
        generator = np.random.default_rng([seed, 2, step, index])
        t = int(generator.integers(1, MAX_T, endpoint=True))
        inner = generator.choice(np.arange(1, T * t - 1), T - 2, replace=False, shuffle=False)
        positions = torch.tensor([0, *sorted(inner.tolist()), T * t - 1], dtype=torch.float64) / (T // LENGTH)
        frequencies = solved(weights, t)
        windows = [log_probs(weights, tokens, frequencies, positions) for tokens in item["windows"]]
        for tokens, log_p in zip(item["windows"], windows, strict=True):
            cross_entropy += [-log_p[place, tokens[place + 1]] for place in range(T - 1)]
        if len(windows) == 2:
            for place in range(T - item["extra"]):
                p, q = windows[0][item["extra"] + place], windows[1][place]
                sce.append(-(p.exp() * q).sum() - (q.exp() * p).sum())
    loss = torch.stack(cross_entropy).mean()
    return loss + alpha * torch.stack(sce).mean() if alpha else loss


def clipped(gradients, max_norm):
    """The gradients of one group, by name, and their norm before clipping."""
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).pow(2).sum().sqrt().item()
    scale = min(1.0, max_norm / norm) if max_norm and norm else 1.0
    return {name: gradient * scale for name, gradient in gradients.items()}, norm


def by_hand(config, start, max_norm):
    """Weights after the run, and a row of (loss, norm of the other weights, norm of the frequencies) per step."""
    weights = {name: value.double().requires_grad_() for name, value in start.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in weights.items()}
    corpus = open_corpus(config.corpus, "train")
    sizes = {"train_length": T, "max_extra": T // 2, "windows": config.windows}
    sizes |= {"steps": config.steps, "sequences_per_step": config.global_batch_size, "seed": config.seed}
    items, rows = list(WindowPairs(corpus, byte_tokenizer(), bos_token_id=None, **sizes)), []
    for step in range(config.steps):
        batch = items[step * config.global_batch_size : (step + 1) * config.global_batch_size]
        loss = loss_of(weights, batch, config.alpha, config.seed, step)
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        learned, norm_of_learned = clipped({name: gradients.pop(name) for name in FREQUENCIES}, max_norm)
        others, norm = clipped(gradients, max_norm)
        rows.append((loss.item(), norm, norm_of_learned))
        with torch.no_grad():
            for name, gradient in (others | learned).items():  # AdamW
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                rate = RATE_OF_FREQUENCIES if name in FREQUENCIES else RATE
                decay = 0.0 if name in FREQUENCIES or "norm" in name else DECAY
                corrected = first / (1 - 0.9 ** (step + 1))
                spread = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                weights[name].mul_(1 - rate * decay).sub_(rate * corrected / spread)
    return weights, rows


@pytest.mark.parametrize(
    ("changes", "max_norm"),
    [
        ({"loss": "fused"}, 0.02),
        ({"loss": "dense", "batch_size": 1}, 0.02),
        ({"alpha": 0.0, "windows": 1, "batch_size": 4}, 0.0),
    ],
    ids=["fused", "dense, one sequence at once", "one window, not clipped"],
)
def test_a_run_equals_a_loop_in_float64(folder, tmp_path, changes, max_norm):
    config = settings(folder, tmp_path / "run", seed=2, max_grad_norm=max_norm or 1.0, **changes).resolved()
    run = prepare(config, tmp_path / "run", progress=False)
    run.arguments.max_grad_norm = max_norm
    run.partial.mkdir()
    start = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
    torch.nn.init.normal_(start[FREQUENCIES[1]], std=0.05, generator=torch.Generator().manual_seed(0))
    run.model.load_state_dict(start)
    finish(run, fit(run, None))
    expected, rows = by_hand(config, start, max_norm)
    for (loss, norm, norm_of_learned), row in zip(rows, logged(tmp_path / "run"), strict=True):
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(row["grad_norm"]) == pytest.approx(norm, rel=1e-4)
        assert float(row["grad_norm_frequencies"]) == pytest.approx(norm_of_learned, rel=1e-4)
    ratios = [norm / norm_of_learned for _, norm, norm_of_learned in rows]
    assert min(min(row) for row in rows) > max_norm  # both are clipped in every step,
    assert max(ratios) > 1.1 * min(ratios)  # by factors that one norm would not give
    result = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(result[name].double(), value.detach(), rtol=0, atol=2e-5, msg=name)
        assert (value - start[name]).abs().max() > 2e-4


# Clipping


def test_each_group_is_clipped_by_its_own_norm():
    model, accelerator = extended("clex", factor=float(MAX_T)), Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        size = 1000.0 if "rotary_emb" in name else 1e-3
        parameter.grad = torch.randn(parameter.shape, generator=generator) * size
    before = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
    learned = {name for name in before if "rotary_emb" in name}
    expected = [
        math.sqrt(sum(before[name].pow(2).sum().item() for name in names))
        for names in (before.keys() - learned, learned)
    ]
    assert len(learned) == 2
    for max_norm in (math.inf, 0.5):
        assert [norm.item() for norm in clip_groups(accelerator, model, max_norm)] == pytest.approx(expected, rel=1e-5)
        for name, parameter in model.named_parameters():
            scale = min(1.0, max_norm / expected[name in learned])
            torch.testing.assert_close(parameter.grad.double(), before[name] * scale, rtol=1e-5, atol=0)
    assert expected[0] < 0.5 < expected[1]  # one norm of both would have scaled the others too


def test_only_clex_has_a_norm_of_frequencies(folder, tmp_path):
    config = settings(folder, tmp_path / "run", extension="eabf", extension_options=None, steps=1)
    rows = fit(prepare(config.resolved(), tmp_path / "run", progress=False), None).rows
    assert rows[0]["grad_norm"] > 0
    assert rows[0]["grad_norm_frequencies"] is None


def test_a_gradient_of_the_frequencies_that_is_not_finite_stops_the_run(folder, tmp_path):
    run = prepare(settings(folder, tmp_path / "run", steps=1).resolved(), tmp_path / "run", progress=False)
    run.model.model.rotary_emb.down.register_hook(lambda gradient: gradient * math.nan)
    with user_error("non_finite", "gradient", "step 1"):
        fit(run, None)


# Wrappers


def test_deepspeed_would_clip_both_groups_by_one_norm():
    check_wrapper(SimpleNamespace(deepspeed_plugin=None, max_grad_norm=1.0))
    check_wrapper(SimpleNamespace(deepspeed_plugin=object(), max_grad_norm=0.0, bf16=False))
    with user_error("setting", "bfloat16", "float32", field="dtype"):
        check_wrapper(SimpleNamespace(deepspeed_plugin=object(), max_grad_norm=0.0, bf16=True))
    with user_error("setting", "max_grad_norm", 0.3, "DeepSpeed", "--fsdp_version 2", field="max_grad_norm"):
        check_wrapper(SimpleNamespace(deepspeed_plugin=object(), max_grad_norm=0.3))


@pytest.mark.parametrize("version", [None, "1", "2"])
def test_fsdp_1_is_refused_before_anything_is_loaded(folder, tmp_path, monkeypatch, version):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    if version:
        monkeypatch.setenv("FSDP_VERSION", version)
    arguments = SimpleNamespace(deepspeed_plugin=None, max_grad_norm=1.0)
    if version == "2":
        check_wrapper(arguments)
        return
    monkeypatch.setattr("longshort.training.run.load_model", None)
    with user_error("setting", "FSDP 1", "--fsdp_version 2", field="extension"):
        prepare(settings(folder, tmp_path / "run").resolved(), tmp_path / "run", progress=False)


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("ours", [True, False])
def test_fsdp_2_keeps_the_frequencies_in_float32(mesh, ours):
    """As accelerate shards a model: layers, embeddings and head, then all the rest, with one policy."""
    model = extended("clex", factor=float(MAX_T))
    torch.nn.init.normal_(model.model.rotary_emb.down, std=0.05, generator=torch.Generator().manual_seed(0))
    t, positions = torch.tensor([3]), clex_positions(40, 3, np.random.default_rng(0))[None]
    x = torch.arange(3, 43)[None]
    model(x, labels=x, clex_t=t, clex_positions=positions, use_cache=False).loss.backward()
    expected = [model.model.rotary_emb.frequencies(3.0).detach(), *(one.grad for one in learned_frequencies(model))]
    model.zero_grad()

    found, forward = [], model.model.rotary_emb.forward

    def observed(*args, **kwargs):  # where FSDP has gathered and cast the weights
        found.append(model.model.rotary_emb.frequencies(3.0).detach())
        return forward(*args, **kwargs)

    model.model.rotary_emb.forward = observed
    policy = fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16)
    with float32_frequencies() if ours else nullcontext():
        for layer in model.model.layers:
            fsdp.fully_shard(layer, mesh=mesh, mp_policy=policy)
        fsdp.fully_shard([model.model.norm, model.lm_head], mesh=mesh, mp_policy=policy)
        fsdp.fully_shard(model, mesh=mesh, mp_policy=policy)
    model(x, labels=x, clex_t=t, clex_positions=positions, use_cache=False).loss.backward()
    assert torch.equal(found[0], expected[0]) == ours
    if not ours:  # accelerate's one policy rounds them
        return
    gradients = [one.grad for one in learned_frequencies(model)]
    assert {one.dtype for one in gradients} == {torch.float32}
    assert all(isinstance(one, DTensor) for one in gradients)
    norm = clip_groups(Accelerator(cpu=True), model, 1e-3)[1]
    assert type(norm) is torch.Tensor
    assert norm.item() == pytest.approx(math.hypot(*(one.norm().item() for one in expected[1:])), rel=0.05)
    assert math.hypot(*(one.grad.full_tensor().norm() for one in learned_frequencies(model))) == pytest.approx(
        1e-3, rel=1e-4
    )
