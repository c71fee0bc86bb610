"""`longshort train`, `scripts/train.py` and `longshort export-clex`."""

from __future__ import annotations

from typing import Any

from tests.slow.robustness.case import Case, Step, cut, disk, make_folder, mode, remove, replace, write

HERE = "train --base model --corpus text.jsonl --train-length 16 --steps 2 --global-batch-size 2 -o out"
EXPORT = "export-clex clex --t 2 -o out"


def _train(kind: str, name: str, options: str, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    inputs = ("model", "text.jsonl", *more.pop("inputs", ()))
    return Case(kind, name, f"{HERE} {options}", cause, remedy, inputs=inputs, steps=steps, **more)


def _option(options: str, cause: str, remedy: str, code: int = 2, **more: Any) -> Case:
    return _train("options", options, options, cause, remedy, code=code, **more)


def _model(name: str, cause: str, remedy: str, *steps: Step, model: str = "model", **more: Any) -> Case:
    return _train(
        "models", name, f"--base {model}", cause, remedy, *steps, inputs=(model,) * (model != "model"), **more
    )


def _corpus(name: str, file: str, content: str | bytes, cause: str, remedy: str, options: str = "") -> Case:
    return _train("corpora", name, f"--corpus {file} {options}", cause, remedy, write(file, content))


def _export(kind: str, name: str, command: str, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    inputs = more.pop("inputs", ("clex",))
    return Case(kind, name, command, cause, remedy, inputs=inputs, steps=steps, **more)


OPTIONS = [
    _option("--steps 0", "steps is 0", "at least 1"),
    _option("--steps many", "--steps", "valid integer"),
    _option("--alpha -1", "alpha is -1", "0 or more"),
    _option("--alpha nan", "alpha is nan", "0 or more"),
    _option("--alpha inf", "alpha is inf", "finite"),
    _option("--train-length 2", "train_length is 2", "at least 4"),
    _option("--train-length 999", "999 is beyond the 64 positions", "--extension", 1),
    _option("--batch-size 0", "batch_size is 0", "at least 1"),
    _option("--batch-size 3", "no multiple of batch_size 3", "global_batch_size"),
    _option("--learning-rate -0.1", "learning_rate is -0.1", "0 or more"),
    _option("--warmup 2", "warmup is 2", "must end before"),
    _option("--max-grad-norm 0", "max_grad_norm is 0", "above 0"),
    _option("--seed -1", "seed is -1", "0 or more"),
    _option("--seed 99999999999999999999", "seed", "below 2^32"),
    _option("--divergence cosine", "'cosine' is not one of", "jeffreys"),
    _option("--windows 3", "windows is 3", "must be 2"),
    _option("--windows 1", "nothing to be aligned", "set alpha to 0"),
    _option("--max-extra 0", "max_extra is 0", "must lie in 1 to"),
    _option("--save-at 2", "save_at names step 2", "1 to 1"),
    _option("--save-at one", "--save-at is 'one'", "whole numbers with commas"),
    _option("--lora-rank -1", "lora_rank is -1", "0 or more"),
    _option("--lora-dropout 1", "lora_dropout is 1", "below 1"),
    _option("--quantization nf4", "4-bit base", "--lora-rank"),
    _option("--factor 4", "does nothing without an extension", "name one"),
    _option("--extension yarn --factor 1", "factor is 1", "above 1"),
    _option("--extension yarn --extension-options {", "--extension-options is no JSON", "extension-options"),
    _option("--extension yarn --extension-options [1]", "must be a JSON object", "beta_fast"),
    _option('--extension yarn --extension-options {"beta":1}', "no option 'beta'", "beta_fast"),
    _option('--extension longrope --train-length 80 --extension-options {"long_factor":"nowhere.json"}', "nowhere.json",
            "must be a JSON file", 1),
    _option("--eval-every 1", "no validation split", "--eval-corpus", 1),
    _option("--preset nonesuch", "no preset 'nonesuch'", "paper-clex"),
    _option("--config nowhere.json", "either a base", "--config"),
    _option("--tokenizer ./nowhere", "nowhere", "name a folder", 1),
    Case("options", "train without a base", "train -o out --corpus builtin", "base", "--config", code=2),
    Case("options", "train without an output", "train --preset tiny", "Missing option", "--output", code=2),
    Case("options", "a config that is not there",
         "train --config nowhere.json --tokenizer bytes --corpus builtin -o out",
         "nowhere.json", "nothing of this name is here"),
    Case("options", "scripts/train.py --alpha -1", HERE.removeprefix("train ") + " --alpha -1", "alpha is -1",
         "0 or more", code=2, program="train.py"),
    Case("corpora", "scripts/train.py --corpus nowhere.txt", HERE.removeprefix("train ") + " --corpus nowhere.txt",
         "nowhere.txt", "builtin", program="train.py", inputs=("model",)),
]  # fmt: skip

CORPORA = [
    _corpus("train: too short", "a.txt", "a b c", "the longest of 1 has", "--train-length"),
    _corpus("train: empty file", "a.txt", "", "no tokens", "--corpus"),
    _corpus("train: bad JSON", "a.jsonl", "{", "line 1", "not valid JSON"),
    _corpus("train: number of 5000 digits", "a.jsonl", '{"text": "a", "n": 1' + "0" * 5000 + "}\n", "line 1", "JSON"),
    _corpus("train: wrong column", "a.jsonl", '{"body": "a"}\n', "no text", "text, content, document"),
    _corpus("train: Latin-1", "a.txt", "père".encode("latin-1"), "not UTF-8", "convert"),
    _train("corpora", "train: missing", "--corpus nowhere.txt", "nowhere.txt", "builtin"),
    _train("corpora", "train: held-out text too short", "--eval-every 1 --eval-corpus a.txt", "a.txt", "--eval-lengths",
           write("a.txt", "a b")),
]  # fmt: skip

MODELS = [
    _model("train: no config.json", "no config.json", "name a folder", remove("model/config.json")),
    _model("train: config.json is no JSON", "model/config.json", "not a valid JSON", write("model/config.json", "{")),
    _model("train: unknown architecture", "nonesuch", "transformers",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "nonesuch"')),
    _model("train: weights of noise", "weights are damaged", "download or save",
           write("model/model.safetensors", b"\xff" * 999)),
    _model("train: cut weights", "weights are damaged", "download or save", cut("model/model.safetensors", -2000)),
    _model("train: no weights", "cannot be loaded", "no file named model.safetensors",
           remove("model/model.safetensors")),
    _model("train: a layer too few", "lacks", "get a whole copy",
           replace("model/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')),
    _model("train: no tokenizer", "tokenizer", "cannot be loaded",
           remove("model/tokenizer.json"), remove("model/tokenizer_config.json")),
    _model("train: vocabulary smaller than the tokenizer's", "vocab_size of 61", "raise vocab_size",
           model="small-vocabulary"),
    _model("train: NaN weights", "not finite", "learning", model="nan"),
    _model("train: an encoder that predicts masked tokens", "'bert' is an encoder", "name a causal", model="masked"),
    _model("train: an encoder", "lacks", "get a whole copy", model="encoder"),
    _train("models", "train: a base without RoPE cannot be extended", "--base short --train-length 8 --extension yarn",
           "rescales rope", "--extension none", inputs=("short",)),
    _model("train: code of its own", "trust_remote_code", "cannot be loaded",
           replace("model/config.json", '"model_type": "llama"',
                   '"model_type": "nonesuch", "auto_map": {"AutoConfig": "own.Config"}'),
           write("model/own.py", "raise SystemExit('this must not run')")),
    Case("models", "train: a config of another kind", "train --config a.json --tokenizer bytes --corpus builtin -o out",
         "cannot be loaded", "model_type", steps=(write("a.json", '{"lengths": 3}'),)),
]  # fmt: skip

OUTPUTS = [
    _train("output", "train: a file", "", "out exists", "name another", write("out", "mine")),
    _train("output", "train: a folder of something else", "", "out exists", "name another", write("out/a", "mine")),
    _train("output", "train: a damaged record", "", "out exists", "name another", write("out/longshort.json", "{")),
    _train("output", "train: a file above", "-o out/inner", "cannot be written", "choose", write("out", "mine")),
    _train("output", "train: locked folder", "-o out/inner", "permission denied", "choose a folder", make_folder("out"),
           mode("out", 0o500), locked=True),
    _train("output", "train: read-only disk", "-o out/inner", "read-only", "choose a folder", disk("out", "ro")),
    _train("output", "train: disk too small", "-o out/inner", "cannot be written", "free some space",
           disk("out", "size=128k")),
    _train("output", "train: an unfinished run with other settings", "-o out/inner", "other settings", "remove it",
           write("out/inner.partial/settings.json", "{}"),
           write("out/inner.partial/checkpoint-1/trainer_state.json", "{}")),
]  # fmt: skip

EXPORTS = [
    _export("options", "--t 0", "export-clex clex --t 0 -o out", "t is 0", "from 1 to 2"),
    _export("options", "--t 3", "export-clex clex --t 3 -o out", "t is 3", "from 1 to 2"),
    _export("options", "--t two", "export-clex clex --t two -o out", "--t", "valid integer", code=2),
    _export("options", "export-clex without an output", "export-clex clex --t 2", "missing option", "--output", code=2),
    _export("models", "export-clex: missing", "export-clex nowhere --t 2 -o out", "nowhere", "must be a folder"),
    _export("models", "export-clex: no CLEX", "export-clex model --t 2 -o out", "not CLEX", "nothing to export",
            inputs=("model",)),
    _export("models", "export-clex: cut weights", EXPORT, "cannot be read", "must be a folder",
            cut("clex/model.safetensors", -2000)),
    _export("models", "export-clex: weights are missing", EXPORT, "lacks", "copy",
            replace("clex/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')),
    _export("models", "export-clex: no RoPE in the config", EXPORT, "no max_t", "whole copy",
            replace("clex/config.json", '"rope_parameters"', '"other_parameters"')),
    _export("models", "export-clex: no tokenizer", EXPORT, "cannot be read", "tokenizer",
            remove("clex/tokenizer.json"), remove("clex/tokenizer_config.json")),
    _export("output", "export-clex: it exists", EXPORT, "out exists", "name another", write("out/a", "mine")),
    _export("output", "export-clex: locked folder", EXPORT + "/inner", "permission denied", "choose",
            make_folder("out"), mode("out", 0o500), locked=True),
    _export("output", "export-clex: full disk", EXPORT + "/inner", "cannot be written", "free some space",
            disk("out", "size=64k", full=True)),
]  # fmt: skip

CASES = [*OPTIONS, *CORPORA, *MODELS, *OUTPUTS, *EXPORTS]
