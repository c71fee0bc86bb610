"""`longshort eval`, and the same tasks under the stock `lm_eval run`."""

from __future__ import annotations

import gzip
import json
from typing import Any

from tests.slow.robustness.case import (
    DENIED,
    NO_SPACE,
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

HERE = "eval model --corpus text.jsonl --lengths 16,32 --train-length 32 --num-docs 2 -o out"
LM_EVAL = (
    "run", "--model", "hf", "--model_args", "pretrained=./model", "--include_path", "TASKS", "--output_path", "out",
    "--tasks", "longshort_perplexity",
)  # fmt: skip
GOOD = {"corpus": "text.jsonl", "lengths": [16, 32], "train_length": 32, "num_docs": 2}
HUGE = "1" + "0" * 5000


def _eval(kind: str, name: str, options: str, facts: Facts, **more: Any) -> Case:
    inputs = ("model", "text.jsonl", *more.pop("inputs", ()))
    return Case(kind, name, f"{HERE} {options}", facts, inputs=inputs, **more)


def _option(options: str, facts: Facts, code: int = 2, **more: Any) -> Case:
    return _eval("options", options, options, facts, code=code, **more)


def _corpus(name: str, file: str, content: str | bytes, facts: Facts, *steps: Step) -> Case:
    return _eval("corpora", name, f"--corpus {file}", facts, steps=(write(file, content), *steps))


def _model(name: str, facts: Facts, *steps: Step, model: str = "model", **more: Any) -> Case:
    command = HERE.replace("eval model", f"eval {model}")
    return Case("models", name, command, facts, inputs=(model, "text.jsonl"), steps=steps, **more)


def _lm_eval(name: str, facts: Facts, *steps: Step, inputs: tuple[str, ...] = (), **metadata: Any) -> Case:
    command = (*LM_EVAL, "--metadata", json.dumps(GOOD | metadata))
    inputs = ("model", "text.jsonl", *inputs)
    return Case("lm_eval", name, command, facts, inputs=inputs, steps=steps, program="lm_eval", leaves=("out/*",))


def _parquet(name: str, columns: dict[str, list[Any]]) -> Step:
    def step(folder: Any) -> None:
        import pandas as pd

        pd.DataFrame(columns).to_parquet(folder / name)

    return step


def _zstd(name: str, cut_off: int | None = None) -> Step:
    def step(folder: Any) -> None:
        import zstandard

        packed = zstandard.ZstdCompressor().compress((folder / "text.jsonl").read_bytes())
        (folder / name).write_bytes(packed[:cut_off])

    return step


def _gzip(name: str, cut_off: int) -> Step:
    return lambda folder: (folder / name).write_bytes(gzip.compress((folder / "text.jsonl").read_bytes())[:cut_off])


OPTIONS = [
    _option("--num-docs 0", "num_docs 0 1"),
    _option("--num-docs -3", "num_docs -3 1"),
    _option("--needles 0", "needles 0 1"),
    _option("--depths -1", "depths -1 1"),
    _option("--tasks longshort_retrieval --needles 101", "needles 101 100", 1),
    _option("--tasks longshort_retrieval", "longshort_retrieval", 1, leaves=("out/*",)),  # 32 tokens for 8 needles
    _option("--num-docs many", "--num-docs"),
    _option("--lengths 0", "lengths '0' 8"),
    _option("--lengths 16,abc", "lengths 'abc' 8"),
    _option("--lengths 16.5", "lengths '16.5'"),
    _option("--lengths ,", "lengths [2048,4096]"),
    _option("--lengths 1e400", "lengths '1e400'"),
    _option("--train-length 0", "train_length 0 1"),
    _option("--tail-tokens 0", "tail_tokens 0 1"),
    _option("--tail-tokens 16", "tail_tokens 16"),
    _option("--seed -1", "seed -1 0"),
    _option("--seed one", "--seed"),
    _option("--batch-size 0", "batch_size '0' auto"),
    _option("--batch-size big", "batch_size 'big' auto"),
    _option("--batch-size auto:x", "batch_size 'auto:x' auto"),
    _option('--task-args {"lengths":[64]}', "'lengths' task_args"),
    _option('--task-args {"version":2}', "'version' task_args"),
    _option("--task-args [64]", "task_args '[64]' JSON"),
    _option("--task-args max_seq_lengths=64", "task_args 'max_seq_lengths=64' JSON"),
    _option('--task-args {"a":NaN}', "task_args JSON"),
    _option("--limit 0", "limit 0.0 0"),
    _option("--limit -1", "limit -1.0 0"),
    _option("--limit nan", "limit nan 0"),
    _option("--dtype float7", "--dtype 'float7' 'bfloat16'"),
    _option("--device nonsense", "--device 'nonsense' cpu", 1),
    _option("--device cuda:7", "--device 'cuda:7' cpu", 1),
    _option("--tasks longshort_nothing", "'longshort_nothing' longshort_perplexity", 1),
    _option("--tasks ,", "tasks ','"),
    _option("--model-args foo", "--model-args 'foo' KEY=VALUE"),
    _option("--model-args no_such_argument=1", "'model' no_such_argument", 1),
    _option("--model-args max_length=-4", "longshort_perplexity longshort_misalignment", 1, leaves=("out/*",)),
    _option("--model-args peft=nowhere/at/all", "peft 'nowhere/at/all'", 1),
    _option("--model-args tokenizer=./nowhere", "tokenizer './nowhere'", 1),
    _option("--no-such-option", "--no-such-option"),
    _option("another", "another"),
    _option("--corpus hf:", "hf: hf:OWNER/NAME", 1),
    _option("--corpus hf:no/such-set", "no/such-set 'builtin' HF_HUB_OFFLINE=1", 1),
    _option("--corpus pg19", "pg19 'builtin' HF_HUB_OFFLINE=1", 1),
    _option("--corpus nothing-*.txt", "nothing-*.txt builtin", 1),
    Case("options", "eval without a checkpoint", "eval --corpus builtin", "PRETRAINED", code=2),
    Case("options", "unknown command", "evaluate model", "'evaluate' 'eval'", code=2),
]

CORPORA = [
    _eval("corpora", "too short for the needles", "--tasks longshort_retrieval --lengths 900 --corpus a.txt",
          "longshort_retrieval", steps=(write("a.txt", "a few words"),), leaves=("out/*",)),
    _corpus("empty file", "a.jsonl", "", "a.jsonl"),
    _corpus("empty documents", "a.jsonl", '{"text": ""}\n' * 3, "a.jsonl"),
    _corpus("binary text", "a.txt", bytes(range(256)) * 9, "a.txt 128 UTF-8"),
    _corpus("Latin-1", "a.txt", "père ".encode("latin-1") * 99, "a.txt 1 UTF-8"),
    _corpus("JSONL in Latin-1", "a.jsonl", '{"text": "père"}\n'.encode("latin-1"), ("a.jsonl", "line 1", "UTF-8")),
    _corpus("bad JSON in line 2", "a.jsonl", '{"text": "a b"}\n{"text": "a', ("a.jsonl", "line 2", "JSON")),
    _corpus("number of 5000 digits", "a.jsonl", f'{{"text": "a", "n": {HUGE}}}\n', ("a.jsonl", "line 1", "4300")),
    _corpus("deep nesting", "a.jsonl", "[" * 100_000 + "\n", ("a.jsonl", "line 1", "JSON")),
    _eval("corpora", "half a surrogate pair alone", "--corpus a.jsonl", "longshort_perplexity",
          steps=(write("a.jsonl", '{"text": "\\ud800"}\n' * 3),), leaves=("out/*",)),
    _eval("corpora", "names that are no UTF-8", "--corpus *.txt", "", code=0, leaves=("out/*",),
          steps=(write(b"\xff.txt".decode("utf-8", "surrogateescape"), "the text of a file " * 99),)),
    _corpus("a list per line", "a.jsonl", "[1, 2]\n", ("a.jsonl", "line 1", "text, content, document")),
    _corpus("wrong column", "a.jsonl", '{"body": "a b c"}\n', ("a.jsonl", "line 1", "text, content, document")),
    _corpus("column of another type", "a.jsonl", '{"text": 3}\n', ("a.jsonl", "line 1", "text, content, document")),
    _corpus("no zstd", "a.jsonl.zst", "this is none", "a.jsonl.zst zstd"),
    _corpus("cut zstd", "a.jsonl.zst", "", "a.jsonl.zst zstd", _zstd("a.jsonl.zst", 100)),
    _corpus("no gzip", "a.jsonl.gz", "this is none", "a.jsonl.gz gzip"),
    _corpus("cut gzip", "a.json.gz", "", "a.json.gz gzip", _gzip("a.json.gz", 100)),
    _corpus("bad JSON in an array", "a.json", '[{"text": "a b"},\n{"text": "a', ("a.json", "line 2", "JSON")),
    _corpus("array of texts", "a.json", '["a b"]', ("a.json", "item 1", "text, content, document")),
    _corpus("null texts", "a.jsonl", '{"text": null}\n' * 3, "a.jsonl"),
    _eval("corpora", "unknown column", "--corpus a.jsonl:body", ("a.jsonl", "line 1", "body", "text"),
          steps=(write("a.jsonl", '{"text": "a b c"}\n'),)),
    _eval("corpora", "column of a text file", "--corpus a.txt:body", "a.txt 'body'", steps=(write("a.txt", "a b c"),)),
    _eval("corpora", "hidden files only", "--corpus hidden", "'hidden' .txt .jsonl",
          steps=(write("hidden/._a.txt", b"\xff"), write("hidden/.ipynb_checkpoints/a.txt", "a b c"))),
    _corpus("no Parquet", "a.parquet", "this is none", "a.parquet Parquet"),
    _corpus("cut Parquet", "a.parquet", "", "a.parquet Parquet",
            _parquet("a.parquet", {"text": ["a b c"] * 99}), cut("a.parquet", 200)),
    _corpus("Parquet without text", "a.parquet", "", ("a.parquet", "text, content, document", "body"),
            _parquet("a.parquet", {"body": ["a"]})),
    _corpus("Parquet of numbers", "a.parquet", "", "a.parquet 'text' int64", _parquet("a.parquet", {"text": [1]})),
    _corpus("unknown suffix", "a.csv", "text\na\n", "a.csv .txt .jsonl .jsonl.zst .parquet"),
    _eval("corpora", "locked", "--corpus a.txt", ("a.txt", DENIED), locked=True,
          steps=(write("a.txt", "a b c"), mode("a.txt", 0))),
    _eval("corpora", "missing", "--corpus nowhere.txt", "nowhere.txt builtin"),
    _eval("corpora", "folder without text", "--corpus empty", "'empty' .txt .jsonl", steps=(make_folder("empty"),)),
    _eval("corpora", "too short", "--corpus a.txt", "longshort_perplexity longshort_misalignment",
          steps=(write("a.txt", "a b"),), leaves=("out/*",)),
]  # fmt: skip

MODELS = [
    Case("models", "missing folder", HERE.replace("model", "./nowhere", 1), "'./nowhere'", inputs=("text.jsonl",)),
    Case("models", "neither here nor on the hub", HERE.replace("model", "nowhere", 1), "'nowhere'",
         inputs=("text.jsonl",)),
    Case("models", "a file", HERE.replace("model", "./text.jsonl", 1), "'./text.jsonl'", inputs=("text.jsonl",)),
    _model("empty folder", "'model' config.json save_pretrained", remove("model"), make_folder("model")),
    _model("no config.json", "'model' config.json save_pretrained", remove("model/config.json")),
    _model("config.json is no JSON", "'model/config.json'", write("model/config.json", "{")),
    _model("config.json is empty", "'model/config.json'", write("model/config.json", "")),
    _model("config.json is a list", "'model' config.json", write("model/config.json", "[]")),
    _model("no model type", "'model' model_type config.json", write("model/config.json", "{}")),
    _model("unknown architecture", "'model' nonesuch",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "nonesuch"')),
    _model("layers as text", "'model' 'num_hidden_layers' 'two'",
           replace("model/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": "two"')),
    _model("no weights", "'model' model.safetensors", remove("model/model.safetensors")),
    _model("weights of noise", "'model' weights", write("model/model.safetensors", b"\xff" * 999)),
    _model("cut weights", "'model' weights", cut("model/model.safetensors", -2000)),
    _model("empty weights", "'model' weights", write("model/model.safetensors")),
    _model("weights of another shape", "'model' weights config.json",
           replace("model/config.json", '"intermediate_size": 48', '"intermediate_size": 40')),
    _model("a layer too few", "'model' 9 model.layers.2.input_layernorm.weight",
           replace("model/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')),
    _model("locked weights", ("model/model.safetensors", DENIED), mode("model/model.safetensors", 0), locked=True),
    _model("no tokenizer", "'model' tokenizer", remove("model/tokenizer.json"), remove("model/tokenizer_config.json")),
    _model("tokenizer is no JSON", ("'model'", "JSON", "tokenizer", "line 1"), write("model/tokenizer.json", "{{")),
    _model("vocabulary smaller than the tokenizer's", "262 61 tokenizer=", model="small-vocabulary"),
    _model("NaN weights", "longshort_perplexity longshort_misalignment", model="nan", leaves=("out/*",)),
    _model("lengths beyond its positions", "longshort_perplexity longshort_misalignment", model="short",
           leaves=("out/*",)),
    _model("an encoder", "'encoder' weights", model="encoder"),
    _model("an encoder that predicts masked tokens", "'bert' is_decoder config.json", model="masked"),
    _model("an XLNet, which sees later tokens", "'xlnet' config.json", model="xlnet"),
    _model("a causal architecture that is not causal", "'llama' is_causal config.json",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "llama", "is_causal": false')),
    _model("lengths beyond the sinusoids of a CTRL", "longshort_perplexity longshort_misalignment", model="ctrl",
           leaves=("out/*",)),
    _model("an encoder-decoder", "'t5'", model="encoder-decoder"),
    _model("code of its own", "'model' trust_remote_code",
           replace("model/config.json", '"model_type": "llama"',
                   '"model_type": "nonesuch", "auto_map": {"AutoConfig": "own.Config"}'),
           write("model/own.py", "raise SystemExit('this must not run')")),
    *(
        _model(f"RoPE type {rope_type}", f"'model' '{rope_type}' rope_parameters {remedy}",
               replace("model/config.json", '"rope_type": "default"', f'"rope_type": "{rope_type}"'))
        for rope_type, remedy in (("su", "longrope"), ("mrope", "default"), ("clex", "trust_remote_code"))
    ),
    _model("SentencePiece without its library", "'model' tokenizer.model sentencepiece",
           remove("model/tokenizer.json"), write("model/tokenizer.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"),
           write("model/tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}')),
    _model("an adapter", "'adapter' PEFT peft=", model="adapter"),
    _eval("models", "adapter of another checkpoint", "--model-args peft=adapter", "'adapter' 'model' trained",
          inputs=("adapter",), steps=(replace("adapter/adapter_config.json", '"r": 2', '"r": 3'),)),
    _eval("models", "weights next to an adapter", "--model-args peft=adapter", "'adapter' 'embedding.pt' merge",
          inputs=("adapter",), steps=(write("adapter/embedding.pt", "x"),)),
    _eval("models", "a damaged trainable_params.bin", "--model-args peft=adapter", "'adapter' 'trainable_params.bin'",
          inputs=("adapter",), steps=(write("adapter/trainable_params.bin", "x"),)),
    _eval("models", "virtual tokens", "--model-args peft=virtual-tokens", "PREFIX_TUNING LoRA",
          inputs=("virtual-tokens",)),
    _eval("models", "delta of another checkpoint", "--model-args delta=small-vocabulary",
          "'small-vocabulary' 'model' lm_head.weight 263 61", inputs=("small-vocabulary",)),
    _eval("models", "adapter and delta", "--model-args peft=adapter --model-args delta=model", "peft delta",
          inputs=("adapter",)),
    _eval("models", "a BOS that there is not", "--model-args add_bos_token=True", "add_bos_token tokenizer=",
          steps=(replace("model/tokenizer_config.json", '"bos_token": "<s>"', '"bos_token": null'),)),
]  # fmt: skip

OUTPUTS = [
    _eval("output", "a file", "", "out -o", steps=(write("out", "mine"),)),
    _eval("output", "a file above", "-o out/inner", "out/inner -o", steps=(write("out", "mine"),)),
    _eval("output", "locked", "", "out -o", steps=(make_folder("out"), mode("out", 0o500)), locked=True),
    _eval("output", "read-only disk", "", "out -o", steps=(disk("out", "ro"),)),
    _eval("output", "disk too small for the samples", "--corpus large.jsonl --num-docs 60 --log-samples",
          ("out", NO_SPACE), inputs=("large.jsonl",), steps=(disk("out", "size=72k"),), leaves=("out/*",)),
    _eval("output", "full disk", "", ("out", NO_SPACE), steps=(disk("out", "size=64k", full=True),)),
    _eval("output", "disk too small for the token values", "--corpus large.jsonl --num-docs 60 --save-tokens",
          ("out/model", NO_SPACE), inputs=("large.jsonl",), steps=(disk("out", "size=72k"),), leaves=("out/*",)),
    _eval("output", "token values, locked", "--save-tokens", "out -o", steps=(make_folder("out"), mode("out", 0o500)),
          locked=True),
    _eval("output", "token values, read-only disk", "--save-tokens", "out -o", steps=(disk("out", "ro"),)),
]  # fmt: skip

QASPER = "longshort-longbench-e-qasper"
LONGBENCH = [
    _eval("files", f"LongBench-E: {name}", f"--tasks {task} --longbench-dir {path}", facts,
          inputs=("longbench", "longbench.zip"), steps=steps, **more)
    for name, task, path, facts, steps, more in [
        ("missing", "longshort_longbench_e", "nowhere", "longbench_dir nowhere zip", (), {}),
        ("no zip", "longshort_longbench_e", "bad.zip", "bad.zip", (write("bad.zip", "x"),), {}),
        ("cut zip", "longshort_longbench_e", "longbench.zip", "longbench.zip", (cut("longbench.zip", -300),), {}),
        ("no such dataset", QASPER, "longbench", "'qasper' qasper_e.jsonl longbench",
         (remove("longbench/qasper_e.jsonl"),), {}),
        ("no JSON", QASPER, "longbench", ("longbench/qasper_e.jsonl", "line 1"),
         (write("longbench/qasper_e.jsonl", "{"),), {}),
        ("deep nesting", QASPER, "longbench", ("longbench/qasper_e.jsonl", "line 1"),
         (write("longbench/qasper_e.jsonl", "[" * 100_000),), {}),
        ("empty", QASPER, "longbench", "longbench/qasper_e.jsonl", (write("longbench/qasper_e.jsonl"),), {}),
        ("locked", QASPER, "longbench", ("longbench/qasper_e.jsonl", DENIED),
         (mode("longbench/qasper_e.jsonl", 0),), {"locked": True}),
    ]
]  # fmt: skip

STOCK = [
    _lm_eval("unknown corpus", "nowhere.txt builtin", corpus="nowhere.txt"),
    _lm_eval("lengths as text", "lengths 'long' 8", lengths="long"),
    _lm_eval("no documents", "num_docs 0 1", num_docs=0),
    _lm_eval("tail beyond the length", "tail_tokens 99 16", tail_tokens=99),
    _lm_eval("empty corpus", "a.jsonl", write("a.jsonl"), corpus="a.jsonl"),
    _lm_eval("lengths that are a mapping", ("lengths", "{'a': 1}"), lengths={"a": 1}),
    _lm_eval("save_tokens as text", "save_tokens 'yes'", save_tokens="yes"),
]

PIPES = [
    Case("terminal", "eval, 20 columns", HERE, code=0, inputs=("model", "text.jsonl"), columns=20, leaves=("out/*",)),
    Case("terminal", "eval into a pipe that is closed", HERE, inputs=("model", "text.jsonl"), pipe=True,
         leaves=("out/*",)),
]  # fmt: skip

CASES = [*OPTIONS, *CORPORA, *MODELS, *OUTPUTS, *LONGBENCH, *STOCK, *PIPES]
