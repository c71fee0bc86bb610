"""Whole runs on tiny models: updates, records, mistakes, two processes."""

import csv
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils.data import IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from typer.testing import CliRunner

from longshort.cli import app
from longshort.corpora import fingerprint, open_corpus
from longshort.training import TrainConfig, train
from longshort.training.arguments import training_arguments
from longshort.training.base import load_base, load_model
from longshort.training.byte_tokenizer import byte_tokenizer
from longshort.training.presets import preset
from longshort.training.regularizer import misalignment_loss
from longshort.training.trainer import LongShortTrainer
from longshort.training.windows import WindowPairs, collate
from tests.errors import assert_facts, user_error

ROOT = Path(__file__).parents[2]
LLAMA = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a model config, and a base checkpoint made from it."""
    folder = tmp_path_factory.mktemp("train")
    texts = [" ".join(str(n * step) for n in range(300)) for step in (1, 7, 13)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "wide.json").write_text(json.dumps(LLAMA | {"vocab_size": 100}))
    torch.manual_seed(0)
    train(scratch(folder, "base", alpha=0.0, steps=2), progress=False)
    return folder


def scratch(folder, output, **changes):
    settings = {
        "model_config": str(folder / "config.json"),
        "tokenizer": "bytes",
        "corpus": str(folder / "corpus.jsonl"),
        "train_length": 16,
        "steps": 3,
        "batch_size": 4,
        "global_batch_size": 4,
        "learning_rate": 1e-2,
        "alpha": 0.5,
    }
    return TrainConfig(output=str(folder / output), **(settings | changes))


def weights(path):
    return AutoModelForCausalLM.from_pretrained(path).state_dict()


def distance(first, second):
    a, b = weights(first), weights(second)
    return max((a[name] - b[name]).abs().max().item() for name in a)


def logged(path):
    return list(csv.DictReader((path / "training_log.csv").open()))


ADAMW = functools.partial(torch.optim.AdamW, weight_decay=0.0)


def by_hand(folder, config, model=None, optimizer_class=None, max_norm=1.0):
    """The same run as a plain PyTorch loop."""
    model = model or AutoModelForCausalLM.from_pretrained(folder / "base")
    optimizer_class = optimizer_class or functools.partial(ADAMW, betas=config.betas)
    optimizer = optimizer_class([value for value in model.parameters() if value.requires_grad], lr=config.learning_rate)
    data = list(
        WindowPairs(
            open_corpus(config.corpus),
            byte_tokenizer(),
            train_length=16,
            max_extra=8,
            windows=config.windows,
            steps=config.steps,
            sequences_per_step=config.batch_size,
            seed=config.seed,
            bos_token_id=None,
        )
    )
    losses = []
    for step in range(config.steps):
        batch = collate([data[step * config.batch_size + i] for i in range(config.batch_size)])
        ids = batch["input_ids"]
        logits = model(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        if config.alpha:
            loss = loss + config.alpha * misalignment_loss(*logits.chunk(2), batch["extra"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    return model.state_dict(), losses


@pytest.mark.parametrize(
    "changes", [{"alpha": 0.5}, {"alpha": 0.0}, {"alpha": 0.0, "windows": 1}, {"betas": (0.5, 0.7)}]
)
def test_a_run_equals_a_plain_loop(folder, tmp_path, changes):
    config = scratch(
        folder,
        tmp_path / "run",
        model_config=None,
        base=str(folder / "base"),
        scheduler="constant",
        warmup=0.0,
        seed=3,
        **changes,
    )
    state, losses = by_hand(folder, config)
    result = weights(train(config, progress=False))
    for name, expected in state.items():
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-5)
    rows = list(csv.DictReader((tmp_path / "run" / "training_log.csv").open()))
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    assert json.loads((tmp_path / "run" / "longshort.json").read_text())["config"]["betas"] == list(config.betas)


def test_embeddings_and_norms_train_beside_adapters_as_in_a_plain_loop(folder, tmp_path):
    """LongLoRA's own lines: PEFT's adapters, and every parameter with "embed" or "norm" in its name."""
    changes = {"train_embeddings_and_norms": True, "lora_rank": 2, "lora_dropout": 0.0, "alpha": 0.0, "windows": 1}
    changes |= {"scheduler": "constant", "warmup": 0.0, "model_config": None, "base": str(folder / "base")}
    config = scratch(folder, tmp_path / "run", **changes)
    result = weights(train(config, progress=False))

    torch.manual_seed(config.seed)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "embed" in name or "norm" in name:
            parameter.requires_grad_(True)
    state, _ = by_hand(folder, config, adapted)
    expected = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    for name, value in before.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.base_layer.weight" in expected:
            a, b = (expected[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            value = value + 16 / 2 * b @ a
        elif name != "lm_head.weight":
            assert (expected[name] - value).abs().max() > 1e-3  # it was trained
            value = expected[name]
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "run" / "longshort.json").read_text())["config"]["train_embeddings_and_norms"] is True


def test_gradient_accumulation_gives_the_full_batch_update(folder, tmp_path):
    full = train(scratch(folder, tmp_path / "full"), progress=False)
    split = train(scratch(folder, tmp_path / "split", batch_size=1), progress=False)
    assert distance(full, split) < 1e-5
    for one, other in zip(logged(full), logged(split), strict=True):
        for name in ("loss", "L_train", "misalign", "entropy", "jeffreys"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5)


def test_the_trainer_is_told_every_setting(folder, tmp_path):
    changes = {"steps": 9, "weight_decay": 0.3, "max_grad_norm": 0.7, "scheduler": "linear", "warmup": 0.3, "seed": 5}
    changes |= {"optim": "adafactor", "trainer_arguments": {"adam_epsilon": 1e-6, "ddp_bucket_cap_mb": 7}}
    config = scratch(folder, "run", batch_size=2, global_batch_size=8, dtype="bfloat16", **changes).resolved()
    told = training_arguments(config, tmp_path, progress=False)
    assert (told.max_steps, told.warmup_steps, told.lr_scheduler_type) == (9, 3, "linear")
    assert (told.learning_rate, told.weight_decay, told.max_grad_norm) == (1e-2, 0.3, 0.7)
    assert (told.per_device_train_batch_size, told.gradient_accumulation_steps) == (2, 4)
    assert (told.seed, told.bf16, told.optim) == (5, True, "adafactor")
    assert (told.adam_epsilon, told.ddp_bucket_cap_mb, told.run_name) == (1e-6, 7, "run")


def test_the_seed_decides_the_weights(folder, tmp_path):
    first = train(scratch(folder, tmp_path / "first"), progress=False)
    again = train(scratch(folder, tmp_path / "again"), progress=False)
    other = train(scratch(folder, tmp_path / "other", seed=1), progress=False)
    assert distance(first, again) == 0
    assert distance(first, other) > 1e-3


def test_the_folder_is_a_stock_checkpoint_with_its_record(folder, tmp_path):
    config = scratch(folder, tmp_path / "run", extension="linear", factor=4.0, steps=12)
    output = train(config, progress=False)
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.config.rope_parameters["factor"] == 4.0
    assert model.config.max_position_embeddings == 64
    assert model.config.eos_token_id == 256
    assert AutoTokenizer.from_pretrained(output)("é")["input_ids"] == [195, 169]
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "longshort.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.png",
        "training_log.csv",
    ]

    record = json.loads((output / "longshort.json").read_text())
    assert record["config"]["alpha"] == 0.5
    assert record["config"]["train_length"] == 16
    assert record["model"]["rope_parameters"]["rope_type"] == "linear"
    assert record["corpus"]["spec"] == config.corpus
    documents = list(open_corpus(config.corpus))[: record["corpus"]["documents"]]
    assert record["corpus"]["sha256"] == fingerprint(documents)
    assert record["tokens_seen"] == 12 * 4 * 2 * 16
    assert {"torch", "transformers", "python", "longshort"} <= set(record["versions"])

    rows = list(csv.DictReader((output / "training_log.csv").open()))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 13)]
    for row in rows:
        parts = {name: float(value) for name, value in row.items() if value}
        assert parts["misalign"] == pytest.approx(parts["entropy"] + parts["jeffreys"], rel=1e-5)
        assert parts["loss"] == pytest.approx(parts["L_train"] + 0.5 * parts["misalign"], rel=1e-5)
        assert parts["tokens_per_second"] > 0
    last = [float(row["loss"]) for row in rows[-10:]]
    assert record["final"]["loss"] == pytest.approx(sum(last) / 10)
    assert float(rows[-1]["L_train"]) < float(rows[0]["L_train"])


def test_bfloat16_keeps_float32_weights(folder, tmp_path):
    output = train(scratch(folder, tmp_path / "run", dtype="bfloat16"), progress=False)
    assert {value.dtype for value in weights(output).values()} == {torch.float32}


def test_a_finished_run_is_not_repeated(folder, capsys):
    record = folder / "base" / "longshort.json"
    before = record.stat().st_mtime_ns
    train(scratch(folder, "base", alpha=0.0, steps=2), progress=False)
    assert record.stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().err


def test_a_stopped_run_leaves_nothing(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model.model.embed_tokens.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    byte_tokenizer().save_pretrained(tmp_path / "broken")
    config = scratch(folder, tmp_path / "run", model_config=None, base=str(tmp_path / "broken"))
    with user_error("non_finite", "step 1", "--learning-rate"):
        train(config, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_the_record_names_the_commit_of_a_hub_base(folder, tmp_path, monkeypatch):
    repository = tmp_path / "cache" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    shutil.copytree(folder / "base", repository / "snapshots" / "0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = scratch(folder, tmp_path / "run", model_config=None, tokenizer=None, base="owner/name", steps=1)
    output = train(config, progress=False)
    assert json.loads((output / "longshort.json").read_text())["model"]["commit"] == "0123abc"


def test_learned_frequencies_have_their_own_learning_rate(folder, tmp_path, monkeypatch):
    """The first step of Adam moves a weight by its learning rate, or less where the gradient is next to nothing."""
    made, own = [], LongShortTrainer.create_optimizer

    def create_optimizer(self, *args, **kwargs):
        made.append(own(self, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(LongShortTrainer, "create_optimizer", create_optimizer)
    options = {"learning_rate": 3e-4}
    config = scratch(
        folder,
        tmp_path / "run",
        extension="clex",
        factor=4.0,
        extension_options=options,
        steps=1,
        warmup=0.0,
        weight_decay=0.5,
        seed=1,  # whose first t are not all 1, where the frequencies have no gradient
    )
    output = train(config, progress=False)
    model = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
    assert model.model.rotary_emb.down.abs().max().item() == pytest.approx(3e-4, rel=0.01)
    groups = made[-1].param_groups
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups] == [(1e-2, 0.5), (1e-2, 0.0), (3e-4, 0.0)]
    assert len(groups[-1]["params"]) == 2
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(trained) == len(set(trained)) == len(list(model.parameters()))
    assert "learning_rate" not in model.config.rope_parameters


def changed_base(folder, path, change):
    """The base with other weights: `change` gets them by name."""
    shutil.copytree(folder / "base", path)
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", {"format": "pt"})
    return {"model_config": None, "base": str(path)}


WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(("extension", "factor"), [("none", None), ("clex", 4.0)])
@pytest.mark.parametrize(
    "change",
    [lambda state: state.pop(WEIGHT), lambda state: state.update({WEIGHT: state[WEIGHT][:20].contiguous()})],
    ids=["missing", "of another shape"],
)
def test_a_base_without_all_its_weights_is_refused(folder, tmp_path, change, extension, factor):
    base = changed_base(folder, tmp_path / "cut", change)
    with user_error("broken", str(tmp_path / "cut"), 1, WEIGHT, field="base"):
        train(scratch(folder, tmp_path / "run", extension=extension, factor=factor, **base), progress=False)


def test_weights_that_the_model_does_not_have_are_told(folder, tmp_path, caplog):
    base = changed_base(folder, tmp_path / "more", lambda state: state.update({"more.weight": torch.ones(2)}))
    train(scratch(folder, tmp_path / "run", steps=1, **base), progress=False)
    (warning,) = [text for text in caplog.messages if "more.weight" in text]
    assert_facts(warning, str(tmp_path / "more"), 1)


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.safetensors", b"no weights" * 20), ("config.json", b"[]"), ("tokenizer.json", b"{}")],
)
def test_a_damaged_base_is_one_line(folder, tmp_path, file, content):
    shutil.copytree(folder / "base", tmp_path / "damaged")
    (tmp_path / "damaged" / file).write_bytes(content)
    changes = {"model_config": None, "base": str(tmp_path / "damaged"), "tokenizer": None}
    with user_error("broken", f"'{tmp_path / 'damaged'}'"):
        train(scratch(folder, tmp_path / "run", **changes), progress=False)


@pytest.mark.parametrize(
    ("changes", "kind", "field", "facts"),
    [
        ({"alpha": -0.1}, "setting", "alpha", (-0.1, 0)),
        ({"alpha": float("nan")}, "setting", "alpha", ("nan", 0)),
        ({"max_extra": 15}, "setting", "max_extra", (15, "train_length 16", 1, 14)),
        ({"max_extra": 0}, "setting", "max_extra", (0, "train_length 16", 1, 14)),
        ({"max_extra": 9, "positions": "in_range"}, "setting", "max_extra", (9, "'in_range'", 1, 8)),
        ({"windows": 1}, "setting", "alpha", ("windows", 2)),
        ({"windows": 3}, "setting", "windows", (3, 2)),
        ({"steps": 0}, "setting", "steps", (0, 1)),
        ({"seed": 2**32}, "setting", "seed", (2**32, "2^32")),
        ({"train_length": 3}, "setting", "train_length", (3, 4)),
        ({"warmup": 3.0}, "setting", "warmup", (3.0, "3 steps")),
        ({"global_batch_size": 6}, "setting", "global_batch_size", (6, "batch_size 4")),
        ({"extension": "yarn", "factor": 1.0}, "setting", "factor", (1.0, "'yarn'")),
        ({"factor": 2.0}, "setting", "factor", ("extension", "linear", "longqlora")),
        ({"base": "x"}, "setting", "base", ("--base", "--config")),
        ({"tokenizer": None}, "setting", "tokenizer", ("--tokenizer", "'bytes'")),
        ({"output": "base"}, "conflict", "output", ("base",)),
        ({"model_config": None, "base": "nowhere"}, "hub", None, ("model config 'nowhere'",)),
        (
            {"model_config": None, "base": "nowhere", "tokenizer": None},
            "hub",
            None,
            ("tokenizer 'nowhere'",),
        ),
        ({"model_config": "wide.json"}, "setting", "tokenizer", (257, "vocab_size", 100)),
        ({"train_length": 32}, "setting", "train_length", (32, 16, "--extension", "--factor 2")),
        ({"corpus": "absent.txt"}, "not_found", None, ("'absent.txt'", "builtin", "pg19")),
        (
            {"train_length": 1200, "extension": "linear", "factor": 99.0},
            "text",
            "corpus",
            ("corpus.jsonl", 1800, 3, 1413, "--train-length"),
        ),
    ],
)
def test_each_mistake_has_its_line(folder, tmp_path, monkeypatch, changes, kind, field, facts):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if changes.get("model_config"):
        changes = changes | {"model_config": str(folder / changes["model_config"])}
    with user_error(kind, *facts, field=field):
        train(scratch(folder, changes.pop("output", tmp_path / "run"), **changes), progress=False)
    assert not list(tmp_path.iterdir())


def script(arguments, launcher=()):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "harness"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "train.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [(["--base", "x", "--alpha", "-1", "-o", "y"], 2, ("alpha", -1.0)), (["--help"], 0, ())],
)
def test_exit_codes_without_loading_torch(arguments, code, facts):
    result = script(arguments, ["-X", "importtime"])
    assert result.returncode == code
    lines = [text for text in result.stderr.splitlines() if not text.startswith("import time:")]
    assert len(lines) == (1 if facts else 0)
    for line in lines:
        assert line.startswith("longshort: ")
        assert_facts(line, *facts)
    assert " torch\n" not in result.stderr


def test_two_processes_equal_one(folder, tmp_path):
    one = train(scratch(folder, tmp_path / "one"), progress=False)
    arguments = ["--config", folder / "config.json", "--tokenizer", "bytes", "--corpus", folder / "corpus.jsonl"]
    arguments += ["--train-length", 16, "--steps", 3, "--batch-size", 1, "--global-batch-size", 4]
    arguments += ["--learning-rate", 1e-2, "--alpha", 0.5, "--output", tmp_path / "two"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = script([str(argument) for argument in arguments], launcher)
    assert result.returncode == 0, result.stderr
    assert distance(one, tmp_path / "two") < 1e-5
    rows = [list(csv.DictReader((tmp_path / name / "training_log.csv").open())) for name in ("one", "two")]
    for first, second in zip(*rows, strict=True):
        assert float(first["misalign"]) == pytest.approx(float(second["misalign"]), rel=1e-5)


class Rows(IterableDataset):
    """The windows of a run as rows of their own, in the order in which the run reads them."""

    def __init__(self, config):
        corpus = open_corpus(config.corpus, "train")
        size = config.batch_size
        pairs = list(
            WindowPairs(
                corpus,
                byte_tokenizer(),
                train_length=config.train_length,
                max_extra=config.largest_extra,
                windows=2,
                steps=config.steps,
                sequences_per_step=size,
                seed=config.seed,
                bos_token_id=None,
            )
        )
        batches = [collate(pairs[start : start + size])["input_ids"] for start in range(0, len(pairs), size)]
        self.rows = torch.cat(batches)

    def __iter__(self):
        return ({"input_ids": row, "labels": row} for row in self.rows)


def test_without_regularizer_it_is_the_stock_trainer_bit_for_bit(tmp_path):
    sizes = {"global_batch_size": 4, "batch_size": 4}
    config = preset("tiny", output=str(tmp_path / "run"), alpha=0.0, steps=4, resume_every=0, **sizes)
    ours = weights(train(config, progress=False))
    base = load_base(config)
    arguments = training_arguments(config, tmp_path / "stock", progress=False)
    arguments.per_device_train_batch_size *= 2
    stock = Trainer(load_model(config, base), arguments, train_dataset=Rows(config))
    stock.train()
    for name, expected in stock.model.state_dict().items():
        assert torch.equal(ours[name], expected), name
    rows = list(csv.DictReader((tmp_path / "run" / "training_log.csv").open()))
    assert all(float(row["misalign"]) > 0 for row in rows)  # it was computed


def test_fused_and_dense_losses_train_alike(folder, tmp_path):
    fused = train(scratch(folder, tmp_path / "fused", loss="fused"), progress=False)
    dense = train(scratch(folder, tmp_path / "dense", loss="dense"), progress=False)
    assert distance(fused, dense) < 1e-5


@pytest.mark.parametrize("extension", ["clex", "eabf", "longqlora"])
def test_extended_checkpoints_train_and_open_as_they_say(folder, tmp_path, extension):
    factor = None if extension == "longqlora" else 4.0
    config = scratch(folder, tmp_path / "run", extension=extension, factor=factor, steps=6, train_length=32)
    output = train(config, progress=False)
    record = json.loads((output / "longshort.json").read_text())
    assert record["needs_remote_code"] == (extension != "longqlora")
    if record["needs_remote_code"]:
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModelForCausalLM.from_pretrained(output)
    model = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
    assert model.config.max_position_embeddings == (32 if extension == "longqlora" else 64)
    assert model.num_parameters() == record["model"]["num_parameters"]
    if extension == "clex":
        assert model.model.rotary_emb.frequencies(2.0).isfinite().all()
        assert any(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if "down" in name)
    if extension == "longqlora":
        assert (type(model).__name__, model.config.rope_parameters["rope_type"]) == ("LlamaForCausalLM", "linear")


@pytest.mark.parametrize(
    ("extension", "options", "engines"),
    [
        ("linear", None, ()),
        ("yarn", {"truncate": None}, ()),
        ("yarn", {"truncate": False}, ("llama.cpp",)),
        ("dynamic", None, ("vLLM", "llama.cpp")),
        ("clex", None, ("vLLM", "llama.cpp", "export-clex")),
    ],
)
def test_engines_that_misread_a_checkpoint_are_named(extension, options, engines, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("longshort.training.run.train", lambda config, **_: Path(config.output))
    arguments = ["--base", str(folder / "base"), "--extension", extension, "-o", str(tmp_path / "out")]
    if options:
        arguments += ["--extension-options", json.dumps(options)]
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 0, result.output
    assert bool(engines) == ("docs/loaders.md" in result.output)
    if engines:
        assert_facts(result.output.splitlines()[-1], *engines)


def test_export_clex_from_the_command_line(folder, tmp_path):
    config = scratch(folder, tmp_path / "run", extension="clex", factor=4.0, steps=2)
    output = train(config, progress=False)
    result = CliRunner().invoke(app, ["export-clex", str(output), "--t", "2", "-o", str(tmp_path / "stock")])
    assert result.exit_code == 0, result.output
    tokens = torch.arange(30)[None]  # within 2 * 16
    own = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
    with torch.no_grad():
        expected = own(tokens).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "stock")(tokens).logits, expected)

    result = CliRunner().invoke(app, ["export-clex", str(folder / "base"), "--t", "2", "-o", str(tmp_path / "no")])
    error = result.exception
    assert (error.exit_code, error.kind, error.field) == (1, "unsupported", "checkpoint")
    assert str(folder / "base") in str(error)
