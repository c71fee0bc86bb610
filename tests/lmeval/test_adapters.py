"""Adapters are scored as PEFT computes them, with the vocabulary they were trained with, or refused."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from longshort.cli import app
from longshort.lmeval.evaluate import evaluate_checkpoint, load_checkpoint
from longshort.lmeval.model_checks import require_adapter_in_model
from longshort.scoring import score_prefix
from longshort.scoring.offsets import draw_offsets
from longshort.testing import save_checkpoint
from tests.errors import assert_one, user_error
from tests.lmeval.conftest import run, values
from tests.lmeval.reference import Reference
from tests.models import random_tokens, tiny_model

PADDED = 300  # embeddings; the tokenizer has 263 tokens
TASKS = ["longshort_perplexity", "longshort_misalignment"]
SETTINGS: dict[str, Any] = {"lengths": [16, 32], "num_docs": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("padded") / "base", vocab_size=PADDED)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tied") / "base", vocab_size=PADDED, tie_word_embeddings=True)


def save_adapter(base: Path, folder: Path, rows: int = PADDED, **config: Any) -> Path:
    """A random adapter of a base whose embedding was resized to `rows` before the training."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows != PADDED:
        model.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(1)
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings | config))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                weight += torch.randn_like(weight) * 0.1
    adapted.save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path, rows: int = PADDED) -> Reference:
    """The slow and obvious way to measure with an adapter: resized as in its training, loaded and merged by PEFT."""
    reference = Reference(base)
    if rows != PADDED:
        reference.model.resize_token_embeddings(rows, mean_resizing=False)
    reference.model = PeftModel.from_pretrained(reference.model, adapter).merge_and_unload().eval()
    return reference


def first_text(corpus: Path) -> str:
    return str(json.loads(corpus.read_text("utf-8").splitlines()[0])["text"])


def evaluated(base: Path, corpus: Path, **model_args: str) -> dict[str, float]:
    results = evaluate_checkpoint(
        {"pretrained": str(base), **model_args}, tasks=TASKS, metadata=SETTINGS | {"corpus": str(corpus)}, device="cpu"
    )
    return values(results, TASKS[0]) | values(results, TASKS[1])


@pytest.mark.parametrize(
    ("rows", "config"),
    [
        (PADDED, {}),
        (PADDED, {"modules_to_save": ["lm_head"]}),
        (PADDED, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (PADDED, {"trainable_token_indices": [70, 71]}),
        (263, {}),  # cut to the tokenizer's size before the training
        (310, {"modules_to_save": ["embed_tokens", "lm_head"]}),  # tokens were added
    ],
    ids=["plain", "head", "embeddings", "tokens", "cut", "added"],
)
def test_an_adapter_on_a_padded_vocabulary_equals_the_merged_model(
    base: Path, corpus: Path, tmp_path: Path, rows: int, config: dict[str, Any]
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", rows, **config)
    found, reference, text = evaluated(base, corpus, peft=str(adapter)), merged(base, adapter, rows), first_text(corpus)
    for length in (16, 32):
        nll, bits = reference.prefix(text, length)
        assert found[f"ppl@{length}"] == pytest.approx(math.exp(nll), rel=1e-4)
        assert found[f"bpb@{length}"] == pytest.approx(bits, rel=1e-4)
        assert found[f"ppl_tail@{length}"] == pytest.approx(math.exp(reference.tail(text, length, 32, 8)[0]), rel=1e-4)
        pair = reference.pair(text, 32, length, length - draw_offsets(0, 0, length)[0])
        for metric in ("sce", "entropy", "jeffreys", "js", "sce_last"):
            assert found[f"{metric}@{length}"] == pytest.approx(pair[metric], rel=1e-3, abs=1e-6)


def test_an_adapter_on_a_shared_embedding_equals_the_merged_model(tied: Path, corpus: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tied, tmp_path / "adapter", 263)
    nll, _ = merged(tied, adapter, 263).prefix(first_text(corpus), 32)
    assert evaluated(tied, corpus, peft=str(adapter))["ppl@32"] == pytest.approx(math.exp(nll), rel=1e-4)


def test_new_rows_that_an_adapter_lacks_are_not_random(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", 310, target_modules=["q_proj", "embed_tokens"])  # no LM head
    with user_error("broken", adapter, 310, PADDED, "lm_head", field="peft"):
        load_checkpoint({"pretrained": str(base), "peft": str(adapter)}, device="cpu")


def test_an_adapter_of_another_checkpoint_is_named(llama: Path, tmp_path: Path) -> None:
    wide = save_checkpoint(tmp_path / "wide", hidden_size=64)
    adapter = save_adapter(wide, tmp_path / "adapter", PADDED)
    with user_error("broken", adapter, llama, field="peft"):
        load_checkpoint({"pretrained": str(llama), "peft": str(adapter)}, device="cpu")


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_no_checkpoint(llama: Path, tmp_path: Path, with_config: bool) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    if with_config:  # as some trainers save it
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(llama / name, adapter)
    with user_error("broken", adapter, "adapter", "peft"):
        load_checkpoint({"pretrained": str(adapter)}, device="cpu")


def test_stock_lm_eval_cuts_the_vocabulary(base: Path, corpus: Path, tmp_path: Path) -> None:
    metadata = SETTINGS | {"corpus": str(corpus)}
    adapter = save_adapter(base, tmp_path / "adapter")
    with user_error("unsupported", adapter, PADDED, 263, field="peft"):
        run(base, TASKS[:1], metadata, model_args={"peft": str(adapter)})
    adapter = save_adapter(base, tmp_path / "cut", 263)  # was trained that way
    nll, _ = merged(base, adapter, 263).prefix(first_text(corpus), 32)
    found = values(run(base, TASKS[:1], metadata, model_args={"peft": str(adapter)}), TASKS[0])
    assert found["ppl@32"] == pytest.approx(math.exp(nll), rel=1e-4)


# ---- LongLoRA's trainable_params.bin


def save_longlora(base: Path, folder: Path, rows: int = PADDED, **changes: Any) -> dict[str, torch.Tensor]:
    """A LongLoRA adapter: LoRA, and embeddings and norms in a file of their own, under the checkpoint's names."""
    save_adapter(base, folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(2)
    weights = {name: value for name, value in model.named_parameters() if "embed" in name or "norm" in name}
    weights |= {"model.embed_tokens.weight": torch.zeros(rows, weights["model.embed_tokens.weight"].shape[1])}
    saved = {
        name: value.detach() + 0.2 * torch.randn(value.shape, generator=generator) for name, value in weights.items()
    }
    saved = {name: value for name, value in (saved | changes).items() if value is not None}
    torch.save(saved, folder / "trainable_params.bin")
    return saved


def merged_by_hand(base: Path, adapter: Path, saved: dict[str, torch.Tensor]) -> Reference:
    """W + alpha / r · B A, the saved weights in place of the checkpoint's, and means as new rows of the head."""
    reference = Reference(base)
    state, lora = reference.model.state_dict(), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in list(state):
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" in lora:
            product = lora[f"{layer}.lora_B.weight"] @ lora[f"{layer}.lora_A.weight"]
            state[name] = state[name] + config["lora_alpha"] / config["r"] * product
    new = len(saved["model.embed_tokens.weight"]) - len(state["lm_head.weight"])
    state["lm_head.weight"] = torch.cat([state["lm_head.weight"], state["lm_head.weight"].mean(0).repeat(new, 1)])
    state |= saved
    if reference.model.config.tie_word_embeddings:
        state["lm_head.weight"] = saved["model.embed_tokens.weight"]
    own = reference.model.config.to_dict() | {"vocab_size": len(state["lm_head.weight"])}
    reference.model = type(reference.model)(type(reference.model.config).from_dict(own)).eval()
    reference.model.load_state_dict(state)
    return reference


def assert_equals(found: dict[str, float], reference: Reference, text: str) -> None:
    for length in (16, 32):
        assert found[f"ppl@{length}"] == pytest.approx(math.exp(reference.prefix(text, length)[0]), rel=1e-4)
    pair = reference.pair(text, 32, 16, 16 - draw_offsets(0, 0, 16)[0])
    assert found["sce@16"] == pytest.approx(pair["sce"], rel=1e-3)


@pytest.mark.parametrize("rows", [PADDED, PADDED + 1], ids=["plain", "new token"])
@pytest.mark.parametrize("kind", ["separate", "tied"])
def test_longlora_s_adapter_equals_the_merged_model(
    base: Path, tied: Path, corpus: Path, tmp_path: Path, rows: int, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, adapter = {"separate": base, "tied": tied}[kind], tmp_path / "adapter"
    saved = save_longlora(checkpoint, adapter, rows)
    found = evaluated(checkpoint, corpus, peft=str(adapter))
    assert_equals(found, merged_by_hand(checkpoint, adapter, saved), first_text(corpus))
    without = merged(checkpoint, adapter).prefix(first_text(corpus), 16)[0]
    assert found["ppl@16"] != pytest.approx(math.exp(without), rel=1e-2)  # the file makes a difference
    assert_one(
        [record.getMessage() for record in caplog.records if "RoPE" in record.getMessage()], adapter, "config.json"
    )


def test_scaled_rope_is_no_reason_to_warn(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    save_longlora(save_checkpoint(tmp_path / "base", vocab_size=PADDED, rope_parameters=rope), tmp_path / "adapter")
    load_checkpoint({"pretrained": str(tmp_path / "base"), "peft": str(tmp_path / "adapter")}, device="cpu")
    assert not caplog.records


def test_a_sweep_takes_longlora_s_adapter(base: Path, corpus: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    saved = save_longlora(base, adapter)
    entry = {"pretrained": str(base), "model_args": {"peft": str(adapter)}, "resources": {"gpus": 0, "cpus": 1}}
    settings = SETTINGS | {"corpus": str(corpus), "tasks": TASKS}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"defaults": settings, "checkpoints": [entry]}))
    command = ["sweep", str(tmp_path / "manifest.yaml"), "-o", str(tmp_path / "results")]
    assert CliRunner().invoke(app, command).exit_code == 0
    found: dict[str, float] = {}
    for file in (tmp_path / "results").glob("**/results_*.json"):
        results = json.loads(file.read_text("utf-8"))
        for task in results["results"]:
            found |= values(results, task)
    assert_equals(found, merged_by_hand(base, adapter, saved), first_text(corpus))


def test_stock_lm_eval_gets_what_it_does_not_load(llama: Path, corpus: Path, tmp_path: Path) -> None:
    adapter, metadata = tmp_path / "adapter", SETTINGS | {"corpus": str(corpus)}
    saved = save_longlora(llama, adapter, rows=263)
    results = run(llama, TASKS, metadata, model_args={"peft": str(adapter)})
    found = values(results, TASKS[0]) | values(results, TASKS[1])
    assert_equals(found, merged_by_hand(llama, adapter, saved), first_text(corpus))
    save_longlora(llama, tmp_path / "new token", rows=264)
    with user_error("unsupported", tmp_path / "new token", 263, field="peft"):
        run(llama, TASKS[:1], metadata, model_args={"peft": str(tmp_path / "new token")})


UNFIT: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "shape": ({"model.norm.weight": torch.ones(5)}, ("model.norm.weight", "[5]", "[32]")),
    "width": ({"model.embed_tokens.weight": torch.ones(PADDED, 5)}, ("model.embed_tokens.weight", f"[{PADDED}, 5]")),
    "unknown": ({"model.rms.weight": torch.ones(5)}, ("'model.rms.weight'",)),
    "missing": ({"model.layers.1.input_layernorm.weight": None}, (1, "'model.layers.1.input_layernorm.weight'")),
    "a number": ({"model.norm.weight": 3}, ("tensors",)),
}


@pytest.mark.parametrize(("changes", "facts"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_the_checkpoint_is_named(
    base: Path, tmp_path: Path, changes: dict[str, Any], facts: tuple[Any, ...]
) -> None:
    save_longlora(base, tmp_path / "adapter", **changes)
    with user_error("broken", tmp_path / "adapter", "'trainable_params.bin'", *facts, field="peft"):
        load_checkpoint({"pretrained": str(base), "peft": str(tmp_path / "adapter")}, device="cpu")


@pytest.mark.parametrize("content", [b"", b"noise", pickle.dumps(print)], ids=["empty", "noise", "code"])
def test_a_damaged_file_is_named(base: Path, tmp_path: Path, content: bytes) -> None:
    save_longlora(base, tmp_path / "adapter")
    (tmp_path / "adapter" / "trainable_params.bin").write_bytes(content)
    with user_error("broken", tmp_path / "adapter", "trainable_params.bin", field="peft"):
        load_checkpoint({"pretrained": str(base), "peft": str(tmp_path / "adapter")}, device="cpu")


# ---- weights that are not loaded


@pytest.mark.parametrize("name", ["non_lora_trainables.bin", "embedding.pt", "model.safetensors"])
def test_other_weights_next_to_an_adapter_are_refused(llama: Path, corpus: Path, tmp_path: Path, name: str) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    torch.save({}, adapter / name)
    with user_error("unsupported", adapter, name, field="peft"):
        load_checkpoint({"pretrained": str(llama), "peft": str(adapter)}, device="cpu")
    with user_error("unsupported", adapter, name, field="peft"):
        run(llama, TASKS[:1], SETTINGS | {"corpus": str(corpus)}, model_args={"peft": str(adapter)})


def test_what_trainers_save_is_no_reason_to_refuse(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "tokenizer.model"):
        (adapter / name).write_bytes(b"")
    assert load_checkpoint({"pretrained": str(llama), "peft": str(adapter)}, device="cpu") is not None


# ---- types of adapters


def xlora_config(folder: Path) -> Any:
    for name in "ab":
        adapted = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        adapted.save_pretrained(folder / name)
    adapters = {name: str(folder / name) for name in "ab"}
    return peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=adapters)


PROMPT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
OUTSIDE: dict[str, Callable[..., Any]] = {
    "prompt tuning": lambda *_: peft.PromptTuningConfig(**PROMPT),
    "prefix tuning": lambda *_: peft.PrefixTuningConfig(**PROMPT),
    "p-tuning": lambda *_: peft.PromptEncoderConfig(**PROMPT, encoder_hidden_size=8),
    "multitask prompt tuning": lambda *_: peft.MultitaskPromptTuningConfig(**PROMPT, num_tasks=2),
    "poly": lambda *_: peft.PolyConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], n_tasks=2, r=2),
    "x-lora": xlora_config,
    "activated lora": lambda *_: LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[5, 6], init_lora_weights=False
    ),
}
LINEAR: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
INSIDE = {
    "lora": LoraConfig(**LINEAR, init_lora_weights=False),
    "lora of the embedding": LoraConfig(
        task_type="CAUSAL_LM", target_modules=["embed_tokens", "lm_head"], init_lora_weights=False
    ),
    "dora": LoraConfig(**LINEAR, use_dora=True, init_lora_weights=False),
    "saved head": LoraConfig(**LINEAR, modules_to_save=["lm_head"], init_lora_weights=False),
    "ia3": peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "adalora": peft.AdaLoraConfig(**LINEAR, total_step=10, init_lora_weights=False),
    "loha": peft.LoHaConfig(**LINEAR, init_weights=False),
    "oft": peft.OFTConfig(**LINEAR, r=0, oft_block_size=4, init_weights=False),
    "vera": peft.VeraConfig(**LINEAR, init_weights=False),
    "layer norms": peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"]),
    "adaption prompt": peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
}


def randomized(config: Any) -> Any:
    torch.manual_seed(3)
    adapted = get_peft_model(tiny_model("llama"), config).eval()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight) * 0.3
    return adapted


@pytest.mark.parametrize("name", INSIDE)
def test_adapters_inside_the_model_are_scored_as_peft_computes_them(name: str) -> None:
    model, tokens = randomized(INSIDE[name]), random_tokens(1, 24)
    require_adapter_in_model(model)
    with torch.no_grad():
        log_p = model(input_ids=tokens).logits.double().log_softmax(-1)  # of PEFT's own forward
        plain = tiny_model("llama")(tokens).logits.double().log_softmax(-1)
    expected, bare = (-of[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0] for of in (log_p, plain))
    assert (expected - bare).abs().max() > 1e-3  # the adapter does something
    assert score_prefix(model, tokens)[0].double() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", OUTSIDE)
def test_adapters_outside_the_model_are_refused(name: str, tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    model.config.use_cache = False  # X-LoRA demands it
    adapted = get_peft_model(model, OUTSIDE[name](tmp_path)).eval()
    with user_error("unsupported", adapted.active_peft_config.peft_type.value, field="peft"):
        require_adapter_in_model(adapted)


def test_virtual_tokens_are_refused_in_a_run(llama: Path, corpus: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    get_peft_model(model, OUTSIDE["prefix tuning"]()).save_pretrained(tmp_path / "prefix")
    for task in TASKS:
        with user_error("unsupported", "PREFIX_TUNING", field="peft"):
            evaluate_checkpoint(
                {"pretrained": str(llama), "peft": str(tmp_path / "prefix")},
                tasks=[task],
                metadata=SETTINGS | {"corpus": str(corpus)},
                device="cpu",
            )
