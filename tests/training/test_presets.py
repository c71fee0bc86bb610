"""Presets, and what the command line makes of them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longshort.cli import app
from longshort.training.config import TrainConfig
from longshort.training.presets import PRESETS, SOURCES, preset
from tests.errors import assert_error, user_error

RUNNER = CliRunner()
DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def printed(*arguments):
    result = RUNNER.invoke(app, ["train", "--print-config", "-o", "x", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_run(name):
    assert preset(name, output="x").output == "x"


def test_the_paper_s_run():
    config = preset("paper-clex", output="x", alpha=0.5).resolved()
    assert (config.base, config.extension, config.factor) == ("meta-llama/Llama-2-7b-hf", "clex", 16.0)
    assert (config.train_length, config.max_extra, config.global_batch_size) == (4096, 2048, 64)
    assert (config.steps, config.save_at, config.alpha) == (200, (50, 100), 0.5)
    assert (config.learning_rate, config.scheduler, config.warmup_steps) == (2e-5, "constant_with_warmup", 6)
    assert (config.betas, config.max_grad_norm, config.weight_decay) == ((0.9, 0.999), 1.0, 0.0)
    assert config.extension_options == {"activation": "tanh"}


def test_eabf_as_the_paper_s_group_trains_it():
    config = preset("paper-eabf", output="x").resolved()
    assert (config.extension_options, config.factor, config.train_length) == ({"unscaled_layers": 0}, 4.0, 8192)
    assert (config.learning_rate, config.scheduler, config.warmup_steps) == (2e-5, "linear", 20)
    assert (config.betas, config.max_grad_norm, config.weight_decay) == ((0.9, 0.95), 1.0, 0.0)


def in_table(value):
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, tuple):
        return ",".join(map(in_table, value))
    return value if isinstance(value, str) else f"{value:g}"


@pytest.mark.parametrize("name", SOURCES)
def test_the_docs_name_the_source_of_every_value_of_published_code(name):
    rows = [line.strip("| ").split(" | ") for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| ")]
    header = next(row for row in rows if row[0] == "setting")
    column = header.index(f"`{name}`")
    for field, source in SOURCES[name].items():
        if " code (" in source and field not in ("dtype", "gradient_checkpointing", "weight_decay"):
            cell = next(row[column] for row in rows if f"`{field}`" in row[0] and len(row) == len(header))
            values, _, file = cell.partition(" (")
            assert in_table(PRESETS[name][field]) in values.split(", "), (field, cell)
            assert file == source.split("/")[-1].split(" (")[0] + ")", (field, cell)


def test_every_value_of_a_paper_s_preset_has_a_source():
    assert set(SOURCES) == {name for name in PRESETS if name.startswith("paper-")}
    for name, sources in SOURCES.items():
        assert sources.keys() == PRESETS[name].keys()
        assert {"scheduler", "warmup", "betas", "learning_rate", "max_grad_norm", "extension"} <= sources.keys()
        assert all(sources.values())


def test_the_options_of_another_extension_do_not_stay():
    assert preset("paper-eabf", output="x", extension="yarn").extension_options is None
    other = preset("paper-eabf", output="x", extension="clex", extension_options={"step": 0.2})
    assert other.extension_options == {"step": 0.2}


def test_options_are_added_to_the_preset_s():
    own = preset("paper-clex", output="x", extension_options={"step": 0.2}).extension_options
    assert own == {"activation": "tanh", "step": 0.2}
    own = preset("paper-clex", output="x", extension_options={"activation": "silu"}).extension_options
    assert own == {"activation": "silu"}


def test_longqlora_s_own_settings():
    config = preset("paper-longqlora", output="x").resolved()
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (64, 16, 0.05)
    assert (config.learning_rate, config.scheduler, config.warmup_steps) == (2e-4, "constant_with_warmup", 20)
    assert (config.max_grad_norm, config.train_length) == (0.3, 8192)


def test_a_base_takes_the_place_of_the_preset_s_config():
    config = preset("tiny", output="x", base="mine")
    assert (config.base, config.model_config, config.tokenizer) == ("mine", None, None)


def test_no_such_preset():
    with user_error("setting", "'papre'", *PRESETS, field="preset"):
        preset("papre", output="x")


def test_print_config_shows_every_setting_resolved():
    shown = printed("--preset", "paper-clex")
    assert shown == json.loads(json.dumps(asdict(preset("paper-clex", output="x").resolved())))
    assert None not in (shown["max_extra"], shown["learning_rate"], shown["lora_rank"])
    assert shown["eval_lengths"] == [4096, 8192, 16384]


def test_options_override_a_preset_and_the_rest_stands():
    shown = printed("--preset", "paper-clex", "--alpha", "0", "--save-at", "10,20", "--factor", "8")
    assert (shown["alpha"], shown["save_at"], shown["factor"], shown["dtype"]) == (0.0, [10, 20], 8.0, "bfloat16")


def test_without_a_preset_the_defaults_stand():
    shown = printed("--base", "b", "--extension", "yarn", "--extension-options", '{"beta_fast": 64}')
    expected = TrainConfig(output="x", base="b", extension="yarn", extension_options={"beta_fast": 64})
    assert shown == json.loads(json.dumps(asdict(expected.resolved())))


@pytest.mark.parametrize(
    ("arguments", "field", "fact"),
    [
        (["--preset", "papre"], "preset", "papre"),
        (["--base", "b", "--extension-options", "{"], "extension_options", "JSON"),
        (["--base", "b", "--extension-options", "[]"], "extension_options", "JSON object"),
        (["--base", "b", "--extension-options", '{"x": 1}'], "extension_options", "'x'"),
        (["--base", "b", "--save-at", "5,x"], "save_at", "5,x"),
        (["--preset", "tiny", "--save-at", "200"], "save_at", "200"),
        (["--preset", "tiny", "--eval-lengths", "1"], "eval_lengths", "1"),
        (["--preset", "tiny", "--batch-size", "3"], "global_batch_size", "batch_size 3"),
        (["--preset", "tiny", "--quantization", "nf4"], "quantization", "4-bit"),
        (["--preset", "tiny", "--quantization", "nf4", "--lora-rank", "4"], "quantization", "--base"),
        (["--preset", "tiny", "--lora-dropout", "1"], "lora_dropout", "1.0"),
        (["--preset", "tiny", "--warmup", "200"], "warmup", "200.0"),
        (["--preset", "tiny", "--betas", "0.9,1"], "betas", "1.0"),
        (["--preset", "tiny", "--betas=-0.1,0.9"], "betas", "-0.1"),
        (["--preset", "tiny", "--betas", "0.9,nan"], "betas", "nan"),
        (["--preset", "tiny", "--betas", "0.9"], "betas", "0.9"),
        (["--preset", "tiny", "--betas", "0.9,0.95,0.99"], "betas", "0.99"),
        (["--preset", "tiny", "--betas", "0.9,x"], "betas", "x"),
        (["--preset", "tiny", "--betas", "0.9,0.95", "--optim", "sgd"], "betas", "sgd"),
        (["--preset", "tiny", "--train-embeddings-and-norms"], "train_embeddings_and_norms", "--lora-rank"),
        (["--preset", "tiny", "--max-grad-norm", "-1"], "max_grad_norm", "-1.0"),
        (["--preset", "tiny", "--extension", "yarn", "--factor", "1"], "factor", "1.0"),
    ],
)
def test_wrong_usage_names_the_setting_and_has_code_2(arguments, field, fact):
    error = RUNNER.invoke(app, ["train", "-o", "x", *arguments]).exception
    assert_error(error, "usage", fact, field=field)
    assert error.exit_code == 2


def test_another_extension_takes_nothing_of_the_preset_s():
    assert preset("paper-clex", output="o", extension="none").factor is None
    assert preset("paper-clex", output="o", extension="yarn").factor is None
    assert preset("paper-clex", output="o", extension="yarn", factor=4.0).factor == 4.0


def test_fewer_steps_save_what_is_left():
    assert preset("paper-clex", output="o", steps=60).save_at == (50,)
    assert preset("paper-clex", output="o", steps=50).save_at == ()


def test_without_adapters_no_base_is_in_4_bits():
    assert preset("paper-longqlora", output="o").asks_for_4_bits
    assert not preset("paper-longqlora", output="o", lora_rank=0).asks_for_4_bits
