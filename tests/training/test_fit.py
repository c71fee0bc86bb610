"""Which runs are refused, for devices that need not be there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from longshort.cli import app
from longshort.training import fit, train
from longshort.training.estimate import GIB, estimate
from longshort.training.fit import Devices, check_fit, devices_present, shortages
from longshort.training.presets import TINY_MODEL, preset
from longshort.training.sharding import Sharding, sharding_of
from tests.errors import assert_error, assert_facts, user_error
from tests.training.test_estimate import FSDP, llama_2_7b

A100 = Devices("A100", 79 * GIB, 1000 * GIB, 2000 * GIB)


def cost(name="paper-clex", sharding=None, quantizes=False, on_cpu=False, **changes):
    wanted = preset(name, output="x", **changes).resolved()
    source = llama_2_7b(wanted)
    return estimate(wanted, source, sharding, quantizes=quantizes, on_cpu=on_cpu, traces=False)


@pytest.mark.parametrize(
    ("run", "facts"),
    [
        (cost(sharding=Sharding("DDP", 8, 8)), ["--use_fsdp", "--lora-rank", "--quantization nf4"]),
        (cost(), ["--use_fsdp", "--lora-rank"]),
        (cost(lora_rank=16, gradient_checkpointing=False, batch_size=4), ["--gradient-checkpointing", "--batch-size"]),
        (cost(lora_rank=16, batch_size=32, loss="dense"), ["--loss fused", "--batch-size 16"]),
        (cost(sharding=sharding_of(FSDP | {"WORLD_SIZE": "1"})), ["A100", "79.0"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_80_gb_is_refused_with_the_remedy(run, facts):
    with user_error("out_of_memory", "A100", "79.0", f"{run.device.peak / GIB:,.1f}", *facts, "--force"):
        check_fit(run, A100)


@pytest.mark.parametrize(
    "run",
    [
        cost(sharding=sharding_of(FSDP)),
        cost("paper-eabf", sharding=sharding_of(FSDP)),
        cost(lora_rank=16),
        cost("paper-longqlora", quantizes=True),
    ],
)
def test_what_fits_80_gb(run):
    assert check_fit(run, A100) == []


def test_a_remedy_names_only_what_is_not_done_yet():
    (shortage,) = shortages(cost(lora_rank=16, loss="fused"), replace(A100, device=10 * GIB))
    assert "--gradient-checkpointing" not in shortage.message
    assert "--lora-rank 16)" not in shortage.message
    assert "--quantization nf4" in shortage.message


ZERO_3 = Sharding("ZeRO", 8, 8, 8, 8, 8, "block")


@pytest.mark.parametrize(
    ("sharding", "named", "unnamed"),
    [  # the fused loss is refused with ZeRO 3, and each launcher has its own option to offload
        (ZERO_3, ["--offload_optimizer_device cpu"], ["--loss fused", "--fsdp_offload_params", "--optim"]),
        (replace(ZERO_3, processes=1, weights=1), ["--offload_optimizer_device cpu"], ["--loss fused"]),
        (replace(ZERO_3, offloads_optimizer=True), ["more GPUs"], ["--offload_optimizer_device", "--loss fused"]),
        (replace(ZERO_3, gathers="none"), ["--loss fused"], ["--fsdp_offload_params"]),
        (sharding_of(FSDP), ["--fsdp_offload_params true", "--loss fused"], ["--offload_optimizer_device", "--optim"]),
        (sharding_of(FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}), ["more GPUs"], ["--fsdp_offload_params"]),
        (Sharding("DDP", 8, 8), ["--optim adamw_8bit", "adafactor"], ["--fsdp_offload_params"]),
    ],
)
def test_a_remedy_works_with_the_launcher(sharding, named, unnamed):
    (shortage,) = shortages(cost(sharding=sharding, loss="dense"), replace(A100, device=1.0, host=1e15))
    for words in named:
        assert words in shortage.message
    for words in unnamed:
        assert words not in shortage.message


@pytest.mark.parametrize("changes", [{"optim": "adafactor"}, {"optim": "adamw_8bit"}, {"lora_rank": 16}])
def test_another_optimizer_is_no_remedy_where_its_state_is_small(changes):
    (shortage,) = shortages(cost(**changes), replace(A100, device=10 * GIB))
    assert "--optim" not in shortage.message
    on_cpu = shortages(cost(on_cpu=True, **changes), Devices(None, None, GIB, 1e15))
    assert "--optim" not in on_cpu[0].message


def test_another_optimizer_on_the_cpu():
    """bitsandbytes requires a GPU."""
    (shortage,) = shortages(cost(on_cpu=True), Devices(None, None, 64 * GIB, 1e15))
    assert "--optim adafactor" in shortage.message
    assert "adamw_8bit" not in shortage.message


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize(
    ("changes", "is_named"),
    [
        ({}, True),
        ({"keep_adapter": True}, False),
        ({"train_embeddings_and_norms": True}, False),  # excludes it
        ({"extension": "yarn", "factor": 4.0}, False),  # its config is no part of an adapter
        ({"lora_rank": 0}, False),
    ],
)
def test_keeping_the_adapter_where_merging_holds_the_most(changes, is_named, on_cpu):
    """4 bytes for each of 6.7e9 weights; the merge holds them twice, and nothing is merged then."""
    plain = {"extension": "none", "factor": None, "extension_options": None, "lora_rank": 16}
    run = cost(on_cpu=on_cpu, sharding=Sharding(), **plain | changes)
    found = shortages(run, Devices(None, None, 20 * GIB, 1e15))
    assert ("--keep-adapter" in found[0].message) is is_named


def test_the_error_of_the_estimate_refuses_nothing():
    run = cost(lora_rank=16)
    (warning,) = check_fit(run, replace(A100, device=run.device.peak / 1.14))
    assert_facts(warning, f"{run.device.peak / GIB:,.1f}")
    with user_error("out_of_memory", "A100"):
        check_fit(run, replace(A100, device=run.device.peak / 1.16))


def test_main_memory():
    run = cost(sharding=sharding_of(FSDP))
    with user_error("out_of_memory", f"{run.host.peak / GIB:,.1f}", "100.0", "fewer processes"):
        check_fit(run, replace(A100, host=100 * GIB))
    assert check_fit(run, replace(A100, host=run.host.peak)) == []


def test_main_memory_of_a_run_on_the_cpu():
    run = cost(on_cpu=True, dtype="float32", gradient_checkpointing=False)
    machine = Devices(None, None, 64 * GIB, 2000 * GIB)
    with user_error("out_of_memory", "64.0", "--lora-rank", "--gradient-checkpointing"):
        check_fit(run, machine)
    assert check_fit(run, replace(machine, host=4000 * GIB)) == []


def test_disk():
    run = cost(sharding=sharding_of(FSDP))
    facts = (f"{run.disk.peak / GIB:,.1f}", "50.0", "--save-at", "--resume-every", f"for {run.config.output}")
    with user_error("unwritable", *facts, field="output"):
        check_fit(run, replace(A100, disk=50 * GIB))
    best = cost(sharding=sharding_of(FSDP), eval_every=10, keep_best="loss")
    with user_error("unwritable", f"{best.disk.peak / GIB:,.1f}", "--keep-best", field="output"):
        check_fit(best, replace(A100, disk=50 * GIB))


def test_what_is_present(tmp_path):
    devices = devices_present(tmp_path / "runs" / "out", on_cpu=True)
    assert devices.name is devices.device is None
    assert 0 < devices.host < 2**50
    assert devices.disk > 0
    (tmp_path / "out.partial").mkdir()
    before = devices_present(tmp_path / "out", on_cpu=True).disk
    (tmp_path / "out.partial" / "save").write_bytes(bytes(3 * 2**20))
    assert devices_present(tmp_path / "out", on_cpu=True).disk == pytest.approx(before, abs=50 * 2**20)


def test_the_limit_of_a_container(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 100\n")
    assert fit._available_memory(tmp_path) == 1000 - 700 + 100
    (tmp_path / "memory.max").write_text("max\n")
    assert fit._available_memory(tmp_path) > 2**20


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Settings of a run, on a machine without memory."""
    monkeypatch.setattr(fit, "devices_present", lambda *_: Devices(None, None, 1000.0, 1e12))
    return preset("tiny", output=str(tmp_path / "out"), steps=1, train_length=16, batch_size=1, global_batch_size=1)


def test_a_run_is_refused_before_weights_are_loaded(small, tmp_path, monkeypatch):
    monkeypatch.setattr("longshort.training.run.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    with user_error("out_of_memory", "--force"):
        train(small, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_force(small, capsys):
    assert train(small, progress=False, force=True).is_dir()
    assert "main memory" in capsys.readouterr().err


def test_a_small_run_is_not_looked_at_closer(tmp_path, monkeypatch):
    monkeypatch.setattr("longshort.training.estimate.trace", lambda *_, **__: pytest.fail("it was traced"))
    out = preset("tiny", output=str(tmp_path / "out"), steps=1, train_length=16, batch_size=1, global_batch_size=1)
    train(out, progress=False)


def test_print_config_shows_the_estimate_apart_from_the_json(small):
    result = CliRunner().invoke(app, ["train", "--print-config", "--preset", "tiny"])  # needs no output
    assert result.exit_code == 0
    assert json.loads(result.stdout)["output"] is None
    for words in ("0.8M weights", "memory of each device", "memory of the machine", "disk"):
        assert words in result.stderr
    assert "longer" not in result.stdout
    assert "main memory" in result.stderr  # what this machine lacks
    assert max(map(len, result.stderr.splitlines())) <= 80


def test_print_config_in_the_root_folder(monkeypatch):
    """Without an output the folder of the work in progress has no name there."""
    monkeypatch.chdir("/")
    result = CliRunner().invoke(app, ["train", "--print-config", "--preset", "tiny"])
    assert result.exit_code == 0, result.exception
    assert "memory of each device" in result.stderr
    assert devices_present(Path("/"), on_cpu=True).disk > 0


@pytest.mark.parametrize(
    ("arguments", "on_cpu"), [(None, False), ({"use_cpu": False}, False), ({"use_cpu": True}, True)]
)
def test_use_cpu_on_a_machine_with_a_gpu(monkeypatch, arguments, on_cpu):
    run, seen = cost(lora_rank=16), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fit, "estimate", lambda *_, **options: seen.append(options["on_cpu"]) or run)
    monkeypatch.setattr(fit, "devices_present", lambda _, on_cpu: seen.append(on_cpu) or A100)
    wanted = preset("tiny", output="x", trainer_arguments=arguments).resolved()
    fit.print_estimate(wanted)
    fit.check_devices(wanted, llama_2_7b(wanted), quantizes=False, shows_messages=False, force=True)
    assert set(seen) == {on_cpu}


def test_print_config_with_a_deepspeed_file_of_another_shape(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": null}')
    result = CliRunner().invoke(app, ["train", "--print-config", "--preset", "tiny", "--deepspeed", str(path)])
    assert result.exit_code == 0, result.exception
    assert_facts(result.stderr.strip(), "zero_optimization", "null")


def test_print_config_reads_a_config_and_nothing_else(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(TINY_MODEL.read_text())
    result = CliRunner().invoke(
        app, ["train", "--print-config", "--base", str(tmp_path / "base"), "--train-length", "64"]
    )
    assert result.exit_code == 0
    assert "memory of each device" in result.stderr


def test_print_config_without_a_config_to_read(tmp_path):
    result = CliRunner().invoke(app, ["train", "--print-config", "--base", str(tmp_path / "nowhere")])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["base"] == str(tmp_path / "nowhere")
    assert_facts(result.stderr.strip(), "nowhere", "config")


def test_a_run_needs_an_output():
    error = CliRunner().invoke(app, ["train", "--preset", "tiny"]).exception
    assert_error(error, "usage", "--output", field="output")
