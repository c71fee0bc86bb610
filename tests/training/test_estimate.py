"""The estimate against counted operations, counted bytes, and the memory of processes that train."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Trainer, TrainingArguments

from longshort.training import TrainConfig
from longshort.training.base import Architecture
from longshort.training.estimate import estimate
from longshort.training.extension import extend_context
from longshort.training.presets import preset
from longshort.training.sharding import Sharding, sharding_of

ROOT = Path(__file__).parents[2]
T = 64
GIB = 2**30
FSDP = {
    "WORLD_SIZE": "8",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def architecture(**changes):
    settings = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}
    return Architecture(LlamaConfig(**settings | {"num_attention_heads": 4} | changes), AutoModelForCausalLM)


def config(**changes):
    settings = {"base": "b", "train_length": T, "steps": 5, "global_batch_size": 1}
    return TrainConfig(output="x", **(settings | changes)).resolved()


def llama_2_7b(wanted, layers=32):
    """Llama-2-7B's config is that of transformers' LlamaConfig, but for its length."""
    model = LlamaConfig(max_position_embeddings=4096, num_hidden_layers=layers)
    options = {"factor": wanted.factor, "options": wanted.extension_options}
    extended = extend_context(model, wanted.extension, train_length=wanted.train_length, **options)
    return Architecture(*extended, trains_embeddings_and_norms=wanted.train_embeddings_and_norms)


def peak_of_7b(wanted, sharding=None, quantizes=False):
    """GiB on a GPU; from models of 2 and 4 of its 32 layers, since tracing all of them takes seconds."""
    two, four = (
        estimate(wanted, llama_2_7b(wanted, layers), sharding, quantizes=quantizes, on_cpu=False) for layers in (2, 4)
    )
    assert four.is_traced
    return (four.device.peak + 14 * (four.device.peak - two.device.peak)) / GIB


def counted_weights(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_flops_of_a_step(tied):
    source = architecture(tie_word_embeddings=tied)
    network = AutoModelForCausalLM.from_config(source.config)
    tokens = torch.randint(300, (4, T))  # two windows of two sequences
    with FlopCounterMode(display=False) as counter:
        network(tokens, labels=tokens).loss.backward()
    estimated = estimate(config(steps=1, alpha=0.0, global_batch_size=2), source, traces=False)
    assert estimated.tokens == tokens.numel()
    assert estimated.flops == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_attention_is_half_of_the_full_product():
    """Twice the length at equal tokens: what grows is attention, counted here without causality."""
    counted, estimated = [], []
    for rows, length in ((8, T), (4, 2 * T)):
        source = architecture(attn_implementation="eager")
        network = AutoModelForCausalLM.from_config(source.config)
        tokens = torch.randint(300, (rows, length))
        with FlopCounterMode(display=False) as counter:
            network(tokens, labels=tokens).loss.backward()
        counted.append(counter.get_total_flops())
        settings = config(steps=1, alpha=0.0, train_length=length, global_batch_size=rows // 2)
        estimated.append(estimate(settings, source, traces=False).flops)
    assert estimated[1] - estimated[0] == pytest.approx((counted[1] - counted[0]) / 2, rel=0.01)


def test_checkpointing_adds_a_forward():
    plain, twice = (
        estimate(config(gradient_checkpointing=on), architecture(), traces=False).flops for on in (False, True)
    )
    assert twice / plain == pytest.approx(4 / 3, rel=0.05)


def test_static_parts_of_one_device():
    """4 bytes for a weight, a gradient and each of Adam's moments."""
    source = architecture()
    count = counted_weights(AutoModelForCausalLM.from_config(source.config))
    whole = estimate(config(), source).device
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * count, 4 * count, 8 * count)
    assert (whole.buckets, whole.gathered, whole.cast_copies) == (0, 0, 0)
    # Rank 2 on seven linear layers of each of three blocks: rank times inputs and outputs.
    adapters = 3 * 2 * (4 * (64 + 64) + 3 * (64 + 176))
    lora = estimate(config(lora_rank=2), source).device
    assert (lora.weights, lora.gradients, lora.optimizer) == (4 * (count + adapters), 4 * adapters, 8 * adapters)


@pytest.mark.parametrize(
    ("kind", "checkpointing", "attention"),
    [
        ("llama", False, None),
        ("llama", False, "sdpa"),
        ("llama", False, "eager"),
        ("llama", True, None),
        ("gpt2", False, None),
        ("gpt2", False, "eager"),
        ("gpt2", True, None),
    ],
)
def test_activations_are_the_tensors_that_autograd_keeps(kind, checkpointing, attention):
    """Of a real forward: every storage that is saved for the backward and is not a weight, once."""
    settings = config(gradient_checkpointing=checkpointing, alpha=0.0, train_length=T, attn_implementation=attention)
    source = architecture()
    if kind == "gpt2":
        source = Architecture(GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=300), AutoModelForCausalLM)
    network = AutoModelForCausalLM.from_config(source.config, attn_implementation=attention).train()
    if checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.base_model(torch.zeros(2, T, dtype=torch.long), use_cache=False)
    counted = sum(storage.nbytes() for storage in kept.values())
    estimated = estimate(settings, source)
    assert estimated.is_traced
    memory = estimated.device
    if checkpointing:  # the most that recomputing one of three layers adds is counted too
        one = estimate(replace(settings, gradient_checkpointing=False), source).device.activations / 3
        assert counted < memory.activations < counted + 1.5 * one
    else:
        assert memory.activations == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eager_attention_holds_its_matrix(dtype, checkpointing):
    """Two windows, 4 heads, 3 layers: each holds the softmax in float32, and in half precision a copy of it."""
    length = 16 * T
    eager, fused = (
        [
            estimate(wanted, architecture(max_position_embeddings=length), traces=traces).device.activations
            for traces in (True, False)
        ]
        for wanted in (
            config(
                dtype=dtype, gradient_checkpointing=checkpointing, attn_implementation=attention, train_length=length
            )
            for attention in ("eager", "sdpa")
        )
    )
    matrix = 2 * 4 * length**2 * (6 if dtype == "bfloat16" else 4)
    if checkpointing:  # recomputing one layer adds its matrix, and in the backward the gradients of it
        assert matrix < eager[0] - fused[0] < 4 * matrix
        assert eager[1] - fused[1] == matrix
    else:
        assert eager[0] - fused[0] == pytest.approx(3 * matrix, rel=0.05)
        assert eager[1] - fused[1] == 3 * matrix


def test_both_windows_are_in_one_forward():
    two, one = (estimate(config(windows=windows, alpha=0.0), architecture()).device for windows in (2, 1))
    assert two.activations == pytest.approx(2 * one.activations, rel=0.05)


def test_the_parts_of_the_loss():
    """The fused loss holds two logits and seven buffers of a chunk, and gradients of head and hidden states."""
    fused, dense = (estimate(config(loss=loss, alpha=0.1), architecture()).device.loss for loss in ("fused", "dense"))
    tokens = 2 * T
    gradients = 4 * 300 * 64 + 4 * tokens * 64
    assert fused == 4 * 300 * tokens * (2 + 7) + gradients  # at this size one chunk holds all of them
    assert dense > 3 * 4 * 300 * tokens  # logits, log-probabilities of both terms
    long = config(loss="fused", train_length=64 * T)
    chunked = estimate(long, architecture(max_position_embeddings=64 * T), traces=False).device.loss
    assert chunked < 128 * 2**20 + 7 * 2**22 + 4 * 300 * 64 + 4 * 64 * tokens * 64


def test_gradients_are_there_in_the_forward_where_micro_batches_are_added_up():
    once, twice = (estimate(config(global_batch_size=size), architecture()).device for size in (1, 2))
    assert 0.5 * once.gradients < twice.peak - once.peak <= once.gradients


def test_static_memory_of_7b_under_ddp():
    """The sizes of Llama-2-7B by hand: 6.74e9 weights, 25.1 GiB in float32; five of these, and half of one in casts."""
    wanted = preset("paper-clex", output="x").resolved()
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    weights = 2 * 32000 * 4096 + 32 * layer + 4096
    memory = estimate(wanted, llama_2_7b(wanted), Sharding("DDP", 8, 8), on_cpu=False, traces=False).device
    assert memory.static == pytest.approx(4 * 5 * weights, rel=1e-3)
    assert memory.static / GIB == pytest.approx(125.5, abs=0.1)
    assert memory.cast_copies == pytest.approx(2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008), rel=1e-3)
    assert 138 < peak_of_7b(wanted, Sharding("DDP", 8, 8)) < 145
    host = estimate(wanted, llama_2_7b(wanted), Sharding("DDP", 8, 8), on_cpu=False, traces=False).host
    assert host.loading == pytest.approx(8 * 4 * weights, rel=1e-3)  # every process loads all of it


@pytest.mark.parametrize(
    ("optim", "optim_args"),
    [
        ("adamw_torch", None),
        ("adafactor", None),
        ("sgd", None),
        ("sgd", "momentum=0.0"),
        ("sgd", "momentum=0.9, nesterov=true"),
        ("adagrad", None),
        ("rmsprop", None),
        ("rmsprop", "momentum=0.9,centered=True"),
    ],
)
def test_the_state_of_an_optimizer(tmp_path, optim, optim_args):
    """Against the tensors that the optimizer holds after a step; steps of single numbers are left out."""
    source = architecture()
    network = AutoModelForCausalLM.from_config(source.config)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=optim, optim_args=optim_args, use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = kind(network.parameters(), **options)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    )
    plain = config(steps=10, resume_every=9)
    wanted = replace(plain, optim=optim, trainer_arguments={"optim_args": optim_args} if optim_args else None)
    estimated, as_adam = (estimate(settings, source, traces=False) for settings in (wanted, plain))
    assert estimated.device.optimizer == held
    assert as_adam.disk.resuming - estimated.disk.resuming == as_adam.device.optimizer - held
    assert as_adam.device.peak - estimated.device.peak == pytest.approx(as_adam.device.optimizer - held, rel=0.3)
    assert "as AdamW" not in str(estimated)


@pytest.mark.parametrize(
    ("optim", "per_weight", "per_embedding"),
    [  # bitsandbytes keeps the state of embeddings in 32 bits
        ("adamw_8bit", 2, 8),
        ("paged_adamw_8bit", 2, 8),
        ("adamw_torch_8bit", 2, 2),
        ("adamw_torch_4bit", 1, 1),
        ("lion_32bit", 4, 4),
        ("lion_8bit", 1, 4),
        ("stable_adamw", 8, 8),
        ("galore_adamw_8bit", 8, 8),
    ],
)
def test_the_state_of_optimizers_that_need_not_be_installed(optim, per_weight, per_embedding):
    source = architecture()
    count = counted_weights(AutoModelForCausalLM.from_config(source.config))
    embedding = 300 * 64
    estimated = estimate(config(optim=optim), source, traces=False)
    assert estimated.device.optimizer == per_weight * (count - embedding) + per_embedding * embedding
    assert ("as AdamW" in str(estimated)) is (optim in ("stable_adamw", "galore_adamw_8bit"))
    zero = {"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    half = config(optim=optim, dtype="bfloat16", global_batch_size=8)
    sharded = estimate(half, source, sharding_of(zero), on_cpu=False, traces=False).device
    assert sharded.optimizer == (estimated.device.optimizer + 4 * count) / 8  # with float32 weights beside


@pytest.mark.parametrize(
    ("variables", "shares"),
    [  # of the weights' float32 bytes: weights, gradients, optimizer
        (FSDP, (1 / 8, 1 / 8, 2 / 8)),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, (1 / 8, 1 / 8, 2 / 8)),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
         (1 / 2, 1 / 2, 3 / 8)),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
         (1 / 2, 1 / 16, 3 / 8)),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
         (1 / 16, 1 / 16, 3 / 8)),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
          "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, (1 / 2, 1 / 16, 0)),
    ],
)  # fmt: skip
def test_sharded_parts(variables, shares):
    source = architecture()
    bytes_of_weights = 4 * counted_weights(AutoModelForCausalLM.from_config(source.config))
    wanted = config(dtype="bfloat16", global_batch_size=8)
    estimated = estimate(wanted, source, sharding_of(variables), on_cpu=False, traces=False)
    memory = estimated.device
    assert (memory.weights, memory.gradients, memory.optimizer) == pytest.approx(
        tuple(share * bytes_of_weights for share in shares)
    )
    if shares[2] == 0:  # master weights, both moments and the gradient, of all eight
        assert estimated.host.training == pytest.approx(4 * bytes_of_weights)
    if variables.get("FSDP_RESHARD_AFTER_FORWARD") == "false":  # bfloat16 weights stay until the backward
        assert memory.gathered >= bytes_of_weights / 2
    elif "FSDP_VERSION" in variables:
        assert memory.gathered < bytes_of_weights / 2 + 4 * bytes_of_weights / 3
        assert estimated.host.loading == 8 * bytes_of_weights  # every process loads all of it


def test_a_base_in_4_bits():
    """QLoRA's 4.127 bits per weight of the linear layers; embeddings, norms and head stay in float32."""
    wanted = preset("paper-longqlora", output="x").resolved()
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 2 * 32000 * 4096 + 65 * 4096
    adapters = 32 * 64 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    memory = estimate(wanted, llama_2_7b(wanted), quantizes=True, on_cpu=False, traces=False).device
    assert memory.weights == pytest.approx(linear * 4.127 / 8 + 4 * (rest + adapters), rel=1e-3)
    assert memory.optimizer == 8 * adapters


def test_an_adapter_that_is_kept_is_all_that_saving_holds():
    """Rank 2 on seven linear layers of each of three blocks, in float32: nothing is merged into a fresh base."""
    adapters = 3 * 2 * (4 * (64 + 64) + 3 * (64 + 176))
    kept, merged = (
        estimate(config(lora_rank=2, keep_adapter=keeps), architecture(), on_cpu=False, traces=False)
        for keeps in (True, False)
    )
    base = merged.host.loading
    assert kept.host.loading == base
    assert (kept.host.saving, merged.host.saving) == (4 * adapters, 2 * base)
    assert kept.disk.finished == 4 * adapters
    sharded = estimate(
        config(lora_rank=2, keep_adapter=True), architecture(), sharding_of(FSDP), on_cpu=False, traces=False
    )
    assert sharded.host.saving == base + 2 * 4 * adapters  # the whole state is gathered


@pytest.mark.parametrize(
    ("changes", "copies"),
    [  # at once: the new best step, the one before, and the one before the last save
        ({"steps": 10, "eval_every": 1, "resume_every": 3}, 3),
        ({"steps": 10, "eval_every": 1, "resume_every": 0}, 2),
        ({"steps": 10, "eval_every": 6, "resume_every": 3}, 2),
        ({"steps": 10, "eval_every": 10, "resume_every": 3}, 1),
    ],
)
def test_disk_of_the_best_steps(changes, copies):
    plain, best = (
        estimate(config(**changes, **keeps), architecture(), traces=False) for keeps in ({}, {"keep_best": "loss"})
    )
    assert best.disk.peak - plain.disk.peak == (copies - 1) * plain.disk.finished
    assert ("best" in str(best)) is (copies > 1)


def test_disk():
    source = architecture()
    size = 4 * counted_weights(AutoModelForCausalLM.from_config(source.config))
    disk = estimate(config(steps=10, save_at=(2, 4), resume_every=3), source, traces=False).disk
    assert (disk.finished, disk.snapshots, disk.resuming) == (size, 2 * size, 2 * 3 * size)
    none = estimate(config(steps=10, resume_every=0), source, traces=False).disk
    assert (none.finished, none.snapshots, none.resuming) == (size, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_embeddings_and_norms": True},
        {"lora_modules_to_save": ("embed_tokens", "norm")},
        {"extension": "clex", "factor": 4.0},
    ],
)
def test_only_adapters_are_no_part_of_the_merged_checkpoint(changes):
    """What LoRA trains beside its adapters belongs to the base: it is loaded, and saved."""
    wanted = config(lora_rank=2, **changes)
    model = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=4
    )
    extended = extend_context(model, wanted.extension, train_length=T, factor=wanted.factor)
    source = Architecture(*extended, trains_embeddings_and_norms=wanted.train_embeddings_and_norms)
    with torch.device("meta"):
        build = getattr(source.model_class, "from_config", None) or source.model_class._from_config
        size = 4 * counted_weights(build(copy.deepcopy(source.config)))
    estimated = estimate(wanted, source, traces=False)
    assert (estimated.disk.finished, estimated.host.loading) == (size, size)


def test_an_architecture_that_cannot_be_traced_has_a_rule_of_thumb(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("data-dependent")

    traced = estimate(config(), architecture())
    monkeypatch.setattr("longshort.training.estimate.trace", fail)
    rough = estimate(config(), architecture())
    assert (traced.is_traced, rough.is_traced) == (True, False)
    assert rough.device.activations == 68 * 2 * T * 64 * 3
    assert "rule of thumb" in str(rough)


@pytest.mark.parametrize("sharding", [Sharding(), Sharding("DDP", 8, 8), sharding_of(FSDP)])
def test_the_text_fits_80_columns(sharding):
    wanted = preset("paper-clex", output="x").resolved()
    text = str(estimate(wanted, llama_2_7b(wanted), sharding, on_cpu=False, traces=False))
    assert max(map(len, text.splitlines())) <= 80
    assert f"{sharding.processes} devices" in text or "one device" in text


@pytest.mark.parametrize(
    ("name", "card", "peak"),
    [("NVIDIA L40", "L40", 181.05e12), ("NVIDIA L40S", "L40S", 362.05e12), ("NVIDIA A100-SXM4-80GB", "A100", 312e12)],
)
def test_hours_are_those_of_the_card_that_is_there(monkeypatch, name, card, peak):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    estimated = estimate(config(), architecture(), traces=False)
    assert estimated.card == card
    assert estimated.hours == pytest.approx(estimated.flops / (0.4 * peak) / 3600)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimate_against_the_peak_of_a_process():
    """Whole runs of two configurations: resident memory above what the process held before."""
    code = (
        "import json\nfrom benchmarks.memory import measure\n"
        "for name in ('checkpointing', 'lora'):\n    print(json.dumps(measure(name)))"
    )
    paths = [str(ROOT / "scripts"), str(ROOT / "harness")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "MALLOC_MMAP_THRESHOLD_": str(2**17),  # else glibc's heap fragments
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2, done.stderr
    for row in rows:
        assert row["bytes"] > 100 * 2**20
        assert row["estimated"] == pytest.approx(row["bytes"], rel=0.15)
