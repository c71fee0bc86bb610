"""`longshort train`, `scripts/train.py`, `longshort export-clex` and `longshort import-clex`."""

from __future__ import annotations

from typing import Any

from tests.slow.robustness.case import (
    DENIED,
    READ_ONLY,
    Case,
    Facts,
    Step,
    cut,
    disk,
    make_folder,
    mode,
    remove,
    replace,
    write,
)

HERE = "train --base model --corpus text.jsonl --train-length 16 --steps 2 --global-batch-size 2 -o out"
EXPORT = "export-clex clex --t 2 -o out"
IMPORT = "import-clex official-clex -o out"


def _train(kind: str, name: str, options: str, facts: Facts, *steps: Step, **more: Any) -> Case:
    inputs = ("model", "text.jsonl", *more.pop("inputs", ()))
    return Case(kind, name, f"{HERE} {options}", facts, inputs=inputs, steps=steps, **more)


def _option(options: str, facts: Facts, code: int = 2, **more: Any) -> Case:
    return _train("options", options, options, facts, code=code, **more)


def _model(name: str, facts: Facts, *steps: Step, model: str = "model", **more: Any) -> Case:
    return _train("models", name, f"--base {model}", facts, *steps, inputs=(model,) * (model != "model"), **more)


def _corpus(name: str, file: str, content: str | bytes, facts: Facts, options: str = "") -> Case:
    return _train("corpora", name, f"--corpus {file} {options}", facts, write(file, content))


def _export(kind: str, name: str, command: str, facts: Facts, *steps: Step, **more: Any) -> Case:
    inputs = more.pop("inputs", ("clex",))
    return Case(kind, name, command, facts, inputs=inputs, steps=steps, **more)


OPTIONS = [
    _option("--steps 0", "steps 0 1"),
    _option("--steps many", "--steps"),
    _option("--alpha -1", "alpha -1 0"),
    _option("--alpha nan", "alpha nan"),
    _option("--alpha inf", "alpha inf"),
    _option("--train-length 2", "train_length 2 4"),
    _option("--train-length 999", "train_length 999 64 --extension", 1),
    _option("--batch-size 0", "batch_size 0 1"),
    _option("--batch-size 3", "batch_size 3 global_batch_size"),
    _option("--learning-rate -0.1", "learning_rate -0.1 0"),
    _option("--warmup 2", "warmup 2"),
    _option("--max-grad-norm -1", "max_grad_norm -1 0"),
    _option("--optim adam", "optim 'adam' adafactor", 1),
    _option("--optim lomo", "optim 'lomo' backward", 1),
    _option("--optim schedule_free_adamw", "optim 'schedule_free_adamw' averages", 1),
    _option("--report-to all", "report_to 'all' tensorboard wandb trackio"),
    _option("--report-to none,wandb", "report_to 'none'"),
    _option("--report-to wandb", ("report_to", "'wandb'", "pip install wandb"), 1),
    _option("--attn-implementation flash_attention_2", "attn_implementation --dtype bfloat16"),
    _option("--attn-implementation flex_attention", "'flex_attention' GPU", 1),
    _option("--lora-targets q_proj", "lora_targets --lora-rank"),
    _option("--lora-rank 2 --lora-targets query", "lora_targets 'query' v_proj", 1),
    _option("--lora-rank 2 --lora-modules-to-save head", "lora_modules_to_save 'head' lm_head", 1),
    _option("--keep-adapter", "keep_adapter --lora-rank"),
    _option("--lora-rank 2 --keep-adapter --extension linear", "'linear' --keep-adapter"),
    _option("--save-dtype int8", "--save-dtype 'int8' 'bfloat16'"),
    _option("--keep-best ppl@16", "keep_best --eval-every"),
    _option("--keep-best ppl@7 --eval-every 1", "keep_best 'ppl@7' ppl@16 jeffreys"),
    _option("--push-public", "push_public --push-to-hub"),
    _option("--push-to-hub a/b/c", "push_to_hub 'a/b/c' OWNER/NAME", 1),
    _option("--push-to-hub me/run", "push_to_hub 'me/run'", 1),
    _option("--deepspeed nowhere.json", "nowhere.json", 1),
    _option('--trainer-arguments {"max_steps":1}', "'max_steps' --steps", 1),
    _option('--trainer-arguments {"label_smoothing_factor":0.1}', "'label_smoothing_factor' cross-entropy", 1),
    _option('--trainer-arguments {"no_such_field":1}', "'no_such_field' TrainingArguments", 1),
    _option('--trainer-arguments {"ddp_timeout":"long"}', "'ddp_timeout' 'long' integer", 1),
    _train("options", "train: a DeepSpeed configuration that contradicts options", "--deepspeed ds.json",
           "ds.json train_batch_size 64 2 --global-batch-size", write("ds.json", '{"train_batch_size": 64}')),
    _train("options", "train: a DeepSpeed configuration with an optimizer", "--deepspeed ds.json",
           "ds.json 'optimizer' --optim", write("ds.json", '{"optimizer": {"type": "Adam"}}')),
    _train("options", "train: a DeepSpeed configuration without a section's values", "--deepspeed ds.json",
           "ds.json zero_optimization null", write("ds.json", '{"zero_optimization": null}')),
    _train("options", "train: ZeRO stage 3 that does not gather weights", "--deepspeed ds.json --loss dense",
           "ds.json stage3_gather_16bit_weights_on_model_save False True",
           write("ds.json", '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": false}}')),
    _train("options", "train: a DeepSpeed configuration that is no JSON", "--deepspeed ds.json",
           "ds.json JSON", write("ds.json", "{")),
    _option("--seed -1", "seed -1 0"),
    _option("--seed 99999999999999999999", "seed 2^32"),
    _option("--divergence cosine", "--divergence 'cosine' 'jeffreys'"),
    _option("--windows 3", "windows 3 2"),
    _option("--windows 1", "windows alpha 0"),
    _option("--max-extra 0", "max_extra 0 1"),
    _option("--save-at 2", "save_at 2 1"),
    _option("--save-at one", "--save-at 'one'"),
    _option("--lora-rank -1", "lora_rank -1 0"),
    _option("--lora-dropout 1", "lora_dropout 1"),
    _option("--quantization nf4", "--lora-rank"),
    _option("--betas 0.9", "betas 0.9"),
    _option("--betas 0.9,1", "betas 1.0"),
    _option("--betas 0.9,high", "--betas '0.9,high'"),
    _option("--train-embeddings-and-norms", "train_embeddings_and_norms --lora-rank"),
    _option("--factor 4", "factor extension yarn"),
    _option("--extension yarn --factor 1", "factor 1 'yarn'"),
    _option("--extension yarn --extension-options {", "--extension-options JSON"),
    _option("--extension yarn --extension-options [1]", "--extension-options '[1]' JSON"),
    _option('--extension yarn --extension-options {"beta":1}', "'yarn' 'beta' beta_fast"),
    _option('--extension longrope --train-length 80 --extension-options {"long_factor":"nowhere.json"}',
            "nowhere.json JSON", 1),
    _option("--eval-every 1", "'text.jsonl' --eval-corpus", 1),
    _option("--preset nonesuch", "'nonesuch' paper-clex"),
    _option("--config nowhere.json", "base --config"),
    _option("--tokenizer ./nowhere", "'./nowhere'", 1),
    Case("options", "train without a base", "train -o out --corpus builtin", "base --config", code=2),
    Case("options", "train without an output", "train --preset tiny", "--output", code=2),
    Case("options", "a config that is not there",
         "train --config nowhere.json --tokenizer bytes --corpus builtin -o out", "nowhere.json"),
    Case("options", "scripts/train.py --alpha -1", HERE.removeprefix("train ") + " --alpha -1", "alpha -1 0", code=2,
         program="train.py"),
    Case("corpora", "scripts/train.py --corpus nowhere.txt", HERE.removeprefix("train ") + " --corpus nowhere.txt",
         "nowhere.txt builtin", program="train.py", inputs=("model",)),
]  # fmt: skip

CORPORA = [
    _corpus("train: too short", "a.txt", "a b c", "a.txt --train-length"),
    _corpus("train: empty file", "a.txt", "", "a.txt"),
    _corpus("train: bad JSON", "a.jsonl", "{", ("a.jsonl", "line 1", "JSON")),
    _corpus("train: number of 5000 digits", "a.jsonl", '{"text": "a", "n": 1' + "0" * 5000 + "}\n",
            ("a.jsonl", "line 1", "JSON")),
    _corpus("train: wrong column", "a.jsonl", '{"body": "a"}\n', ("a.jsonl", "line 1", "text, content, document")),
    _corpus("train: Latin-1", "a.txt", "père".encode("latin-1"), "a.txt 1 UTF-8"),
    _train("corpora", "train: missing", "--corpus nowhere.txt", "nowhere.txt builtin"),
    _train("corpora", "train: held-out text too short", "--eval-every 1 --eval-corpus a.txt", "a.txt --eval-lengths",
           write("a.txt", "a b")),
]  # fmt: skip

MODELS = [
    _model("train: no config.json", "'model' config.json save_pretrained", remove("model/config.json")),
    _model("train: config.json is no JSON", "'model/config.json' JSON", write("model/config.json", "{")),
    _model("train: unknown architecture", "'model' nonesuch transformers",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "nonesuch"')),
    _model("train: weights of noise", "'model' weights", write("model/model.safetensors", b"\xff" * 999)),
    _model("train: cut weights", "'model' weights", cut("model/model.safetensors", -2000)),
    _model("train: no weights", "'model' model.safetensors", remove("model/model.safetensors")),
    _model("train: a layer too few", "'model' 9 model.layers.2.input_layernorm.weight",
           replace("model/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')),
    _model("train: no tokenizer", "'model' tokenizer",
           remove("model/tokenizer.json"), remove("model/tokenizer_config.json")),
    _model("train: vocabulary smaller than the tokenizer's", "262 61", model="small-vocabulary"),
    _model("train: NaN weights", "loss --learning-rate", model="nan"),
    _model("train: an encoder that predicts masked tokens", "'bert' is_decoder config.json", model="masked"),
    _model("train: a causal architecture that is not causal", "'llama' is_causal config.json",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "llama", "is_causal": false')),
    _model("train: an encoder", "'encoder' weights", model="encoder"),
    _train("models", "train: a base without RoPE cannot be extended", "--base short --train-length 8 --extension yarn",
           ("'yarn'", "RoPE", "'gpt2'", "--extension none"), inputs=("short",)),
    _train("models", "train: no parameter is named as an embedding",
           "--base short --train-length 8 --lora-rank 2 --train-embeddings-and-norms",
           "'gpt2' 'embed' --train-embeddings-and-norms", inputs=("short",)),
    _model("train: code of its own", "'model' trust_remote_code",
           replace("model/config.json", '"model_type": "llama"',
                   '"model_type": "nonesuch", "auto_map": {"AutoConfig": "own.Config"}'),
           write("model/own.py", "raise SystemExit('this must not run')")),
    Case("models", "train: a config of another kind", "train --config a.json --tokenizer bytes --corpus builtin -o out",
         "'a.json' model_type", steps=(write("a.json", '{"lengths": 3}'),)),
]  # fmt: skip

OUTPUTS = [
    _train("output", "train: a file", "", "out", write("out", "mine")),
    _train("output", "train: a folder of something else", "", "out", write("out/a", "mine")),
    _train("output", "train: a damaged record", "", "out", write("out/longshort.json", "{")),
    _train("output", "train: a file above", "-o out/inner", "out/inner.partial", write("out", "mine")),
    _train("output", "train: locked folder", "-o out/inner", ("out/inner.partial", DENIED), make_folder("out"),
           mode("out", 0o500), locked=True),
    _train("output", "train: read-only disk", "-o out/inner", ("out/inner.partial", READ_ONLY), disk("out", "ro")),
    _train("output", "train: disk too small", "-o out/inner", "out/inner", disk("out", "size=128k")),
    _train("output", "train: an unfinished run with other settings", "-o out/inner", "out/inner.partial",
           write("out/inner.partial/settings.json", "{}"),
           write("out/inner.partial/checkpoint-1/trainer_state.json", "{}")),
]  # fmt: skip

EXPORTS = [
    _export("options", "--t 0", "export-clex clex --t 0 -o out", "t 0 1 2"),
    _export("options", "--t 3", "export-clex clex --t 3 -o out", "t 3 1 2"),
    _export("options", "--t two", "export-clex clex --t two -o out", "--t", code=2),
    _export("options", "export-clex without an output", "export-clex clex --t 2", "--output", code=2),
    _export("models", "export-clex: missing", "export-clex nowhere --t 2 -o out", "'nowhere'"),
    _export("models", "export-clex: no CLEX", "export-clex model --t 2 -o out", "'model' CLEX", inputs=("model",)),
    _export("models", "export-clex: cut weights", EXPORT, "'clex'", cut("clex/model.safetensors", -2000)),
    _export("models", "export-clex: weights are missing", EXPORT, "'clex' model.layers.2.input_layernorm.weight",
            replace("clex/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')),
    _export("models", "export-clex: no RoPE in the config", EXPORT, "'clex' max_t",
            replace("clex/config.json", '"rope_parameters"', '"other_parameters"')),
    _export("models", "export-clex: no tokenizer", EXPORT, "'clex' tokenizer",
            remove("clex/tokenizer.json"), remove("clex/tokenizer_config.json")),
    _export("output", "export-clex: it exists", EXPORT, "out", write("out/a", "mine")),
    _export("output", "export-clex: locked folder", EXPORT + "/inner", ("out/inner", DENIED),
            make_folder("out"), mode("out", 0o500), locked=True),
    _export("output", "export-clex: full disk", EXPORT + "/inner", "out/inner", disk("out", "size=64k", full=True)),
]  # fmt: skip


def _import(kind: str, name: str, facts: Facts, *steps: Step, command: str = IMPORT, **more: Any) -> Case:
    return Case(kind, f"import-clex: {name}", command, facts, inputs=("official-clex",), steps=steps, **more)


IMPORTS = [
    _import("options", "without an output", "--output", command="import-clex official-clex", code=2),
    _import("models", "missing", "'nowhere'", command="import-clex nowhere -o out"),
    _import("models", "no CLEX", "'official-clex' rope_scaling 'clex'",
            replace("official-clex/config.json", '"type": "clex"', '"type": "linear"')),
    _import("models", "Phi-2", "'official-clex' 'phi' 'llama'",
            replace("official-clex/config.json", '"model_type": "llama"', '"model_type": "phi"')),
    _import("models", "log_scale", "'official-clex' log_scale config.json",
            replace("official-clex/config.json", '"log_scale": false', '"log_scale": true')),
    _import("models", "unknown activation", "'official-clex' act 'gelu'",
            replace("official-clex/config.json", '"act": "tanh"', '"act": "gelu"')),
    _import("models", "infinite max_factor", "'official-clex'",
            replace("official-clex/config.json", '"max_factor": 4', '"max_factor": Infinity')),
    _import("models", "theta is a text", "'official-clex'",
            replace("official-clex/config.json", '"rope_theta": 10000.0', '"rope_theta": "many"')),
    _import("models", "other shapes", "'official-clex' model.rotary_emb.down",
            replace("official-clex/config.json", '"param_factor": 1', '"param_factor": 2')),
    _import("models", "a layer too few", "'official-clex' 9 model.layers.2.input_layernorm.weight",
            replace("official-clex/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')),
    _import("models", "cut weights", "'official-clex'", cut("official-clex/model.safetensors", -2000)),
    _import("models", "no weights", "'official-clex'", remove("official-clex/model.safetensors")),
    _import("models", "config.json is no JSON", "'official-clex/config.json' JSON",
            write("official-clex/config.json", "{")),
    _import("models", "no tokenizer", "'official-clex' tokenizer", remove("official-clex/tokenizer.json"),
            remove("official-clex/tokenizer_config.json")),
    _import("output", "it exists", "out", write("out/a", "mine")),
    _import("output", "locked folder", ("out/inner", DENIED), make_folder("out"), mode("out", 0o500),
            command=IMPORT + "/inner", locked=True),
    _import("output", "full disk", "out/inner", disk("out", "size=64k", full=True), command=IMPORT + "/inner"),
]  # fmt: skip

CASES = [*OPTIONS, *CORPORA, *MODELS, *OUTPUTS, *EXPORTS, *IMPORTS]
