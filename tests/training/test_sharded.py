"""FSDP 2 with two processes on a CPU, through accelerate's own code, against one process without it."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoConfig, AutoModelForCausalLM

from longshort.training import TrainConfig, train
from longshort.training.byte_tokenizer import byte_tokenizer
from longshort.training.precision import check_loss, keep_float32
from tests.errors import user_error
from tests.training.launched import launch
from tests.training.test_updates import LLAMA

TERMS = ("loss", "L_train", "misalign", "entropy", "jeffreys")
ALPHA = 0.5
EVALUATED = {"eval_every": 2, "eval_lengths": (8, 16), "eval_docs": 1, "save_at": (2,)}
CLEX = {"extension": "clex", "factor": 4.0, "train_length": 32}
CASES = {
    "plain": EVALUATED,
    "plain_bfloat16": {"dtype": "bfloat16"},
    "clex": CLEX,
    "clex_bfloat16": CLEX | {"dtype": "bfloat16", "gradient_checkpointing": True},
    "lora_bfloat16": {"dtype": "bfloat16", "lora_rank": 4, "lora_dropout": 0.0},
}
RESUMED = ("plain", "clex", "lora_bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and the checkpoints of every case, by one process and by two."""
    folder = tmp_path_factory.mktemp("sharded")
    texts = [" ".join(str(n * step) for n in range(300)) for step in (1, 7, 13)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA)).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    cases = {name: {"settings": settings_of(folder, name, "two", batch_size=1), "fsdp": 2} for name in CASES}
    for name in RESUMED:
        settings = settings_of(folder, name, "resumed", batch_size=1) | {"resume_every": 1}
        cases[f"{name}_resumed"] = {"settings": settings, "fsdp": 2, "interrupt": 2}
    launch(folder, cases)
    for name in CASES:
        train(TrainConfig(**settings_of(folder, name, "one", batch_size=4)), progress=False)
    return folder


def settings_of(folder, name, topology, batch_size):
    common = {
        "base": str(folder / "base"),
        "corpus": str(folder / "corpus.jsonl"),
        "eval_corpus": str(folder / "corpus.jsonl"),
        "output": str(folder / f"{name}_{topology}"),
        "train_length": 16,
        "steps": 3,
        "global_batch_size": 4,
        "batch_size": batch_size,
        "learning_rate": 1e-3,
        "alpha": ALPHA,
    }
    return common | CASES[name]


def rows(folder, name, topology, log="training_log.csv"):
    with (folder / f"{name}_{topology}" / log).open() as file:
        return [{column: float(value) for column, value in row.items() if value} for row in csv.DictReader(file)]


def weights(path):
    model, info = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.state_dict()


@pytest.mark.parametrize("name", ["plain", "clex"])
def test_float32_equals_one_process(folder, name):
    one, two = (rows(folder, name, topology) for topology in ("one", "two"))
    assert len(two) == 3
    for first, second in zip(one, two, strict=True):
        assert [second[term] for term in TERMS] == pytest.approx([first[term] for term in TERMS], rel=1e-5)
    first, second = (weights(folder / f"{name}_{topology}") for topology in ("one", "two"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in CASES if "bfloat16" in name])
def test_bfloat16_keeps_the_digits_of_the_loss_and_its_terms(folder, name):
    one, two = (rows(folder, name, topology) for topology in ("one", "two"))
    assert len(two) == 3
    for first, second in zip(one, two, strict=True):
        for term in TERMS:
            assert second[term] == pytest.approx(first[term], rel=0.02), term
            assert torch.tensor(second[term]).bfloat16().item() != second[term], term
        assert second["loss"] == pytest.approx(second["L_train"] + ALPHA * second["misalign"], rel=1e-6)
        assert second["misalign"] == pytest.approx(second["entropy"] + second["jeffreys"], rel=1e-6)
    first, second = (weights(folder / f"{name}_{topology}") for topology in ("one", "two"))
    base = weights(folder / "base")
    assert first.keys() == second.keys()
    for key, value in second.items():
        assert value.dtype == torch.float32
        assert (value - first[key]).norm() <= 0.3 * max((first[key] - base[key]).norm(), 1e-3) if key in base else True
    assert any(not torch.equal(second[key], base[key]) for key in base)


def test_evaluations_and_snapshots_equal_those_of_one_process(folder):
    one, two = (rows(folder, "plain", topology, "evaluation_log.csv") for topology in ("one", "two"))
    assert [row["step"] for row in two] == [0, 2, 3]
    for first, second in zip(one, two, strict=True):
        assert second == pytest.approx(first, rel=1e-5)
    first, second = (weights(folder / f"plain_{topology}-step2") for topology in ("one", "two"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_resumes_to_the_same_weights(folder, name):
    whole, resumed = (rows(folder, name, topology) for topology in ("two", "resumed"))
    for first, second in zip(whole, resumed, strict=True):
        assert second | {"tokens_per_second": 0} == first | {"tokens_per_second": 0}
    first, second = (weights(folder / f"{name}_{topology}") for topology in ("two", "resumed"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(second[key], value), key


def test_zero_2_equals_one_process(folder):
    """Where DeepSpeed is installed; the first time it compiles an operator, which takes minutes."""
    pytest.importorskip("deepspeed")
    names = ("plain", "plain_bfloat16")
    cases = {name: {"settings": settings_of(folder, name, "zero", batch_size=1), "zero": 2} for name in names}
    cases["plain_bfloat16"]["settings"]["save_dtype"] = "bfloat16"
    launch(folder, cases)
    for name in names:
        one, zero = (rows(folder, name, topology) for topology in ("one", "zero"))
        assert len(zero) == 3
        for first, second in zip(one, zero, strict=True):
            tolerance = 1e-5 if name == "plain" else 0.02
            assert [second[term] for term in TERMS] == pytest.approx([first[term] for term in TERMS], rel=tolerance)
            assert second["loss"] == pytest.approx(second["L_train"] + ALPHA * second["misalign"], rel=1e-6)
    first, second = (weights(folder / f"plain_{topology}") for topology in ("one", "zero"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("version", "kept"), [(1, {"buffer_dtype": torch.float32}), (2, {"output_dtype": None})])
def test_the_rest_of_the_policy_is_accelerates(version, kept):
    """FSDP 1 runs on no CPU, so that of it only this is tested."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        sync_module_states=False,
        cpu_ram_efficient_loading=False,
        reshard_after_forward=version == 2 or "FULL_SHARD",
    )
    keep_float32(plugin)
    assert plugin.mixed_precision_policy is None  # float32
    plugin.set_mixed_precision("bf16")
    before = vars(plugin.mixed_precision_policy).copy()
    keep_float32(plugin)
    assert vars(plugin.mixed_precision_policy) == before | kept
    assert before["param_dtype"] == torch.bfloat16
    assert isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy) == (version == 2)


def launched_with_zero(stage, gathers=True):
    return SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage, zero3_save_16bit_model=gathers))


def test_the_fused_loss_is_refused_with_zero_3(tmp_path):
    fused = TrainConfig(**settings_of(tmp_path, "plain", "zero", batch_size=1))
    for stage in (2, 3):
        check_loss(replace(fused, loss="dense"), launched_with_zero(stage))
    check_loss(fused, launched_with_zero(2))
    check_loss(fused, SimpleNamespace(deepspeed_plugin=None))
    with user_error("setting", "stage 3", "--loss dense", field="loss"):
        check_loss(fused, launched_with_zero(3))


def test_zero_3_has_to_gather_the_weights_of_a_checkpoint(tmp_path):
    dense = TrainConfig(**settings_of(tmp_path, "plain", "zero", batch_size=1), loss="dense")
    check_loss(dense, launched_with_zero(2, gathers=False))
    with user_error("setting", "stage 3", "--zero3_save_16bit_model true", field="deepspeed"):
        check_loss(dense, launched_with_zero(3, gathers=False))


def test_deepspeed_saves_what_it_computes_with(tmp_path):
    rounded = TrainConfig(**settings_of(tmp_path, "plain_bfloat16", "zero", batch_size=1))
    check_loss(rounded, SimpleNamespace(deepspeed_plugin=None))
    check_loss(replace(rounded, save_dtype="bfloat16"), launched_with_zero(2))
    check_loss(replace(rounded, lora_rank=4), launched_with_zero(2))  # merged into a base in float32
    for dtype in ("float32", "float16"):
        with user_error("setting", dtype, "--save-dtype bfloat16", field="save_dtype"):
            check_loss(replace(rounded, save_dtype=dtype), launched_with_zero(2))
