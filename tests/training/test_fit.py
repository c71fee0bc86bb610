"""Which runs are refused, for devices that need not be there."""

import json
from dataclasses import replace

import pytest
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
    facts = (f"{run.disk.peak / GIB:,.1f}", "50.0", "--save-at", "--resume-every")
    with user_error("unwritable", *facts, field="output"):
        check_fit(run, replace(A100, disk=50 * GIB))


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
