"""`longshort eval`, and the same tasks under the stock `lm_eval run`."""

from __future__ import annotations

import json
from typing import Any

from tests.slow.robustness.case import Case, Step, cut, disk, make_folder, mode, remove, replace, write

HERE = "eval model --corpus text.jsonl --lengths 16,32 --train-length 32 --num-docs 2 -o out"
LM_EVAL = (
    "run", "--model", "hf", "--model_args", "pretrained=./model", "--include_path", "TASKS", "--output_path", "out",
    "--tasks", "longshort_perplexity",
)  # fmt: skip
GOOD = {"corpus": "text.jsonl", "lengths": [16, 32], "train_length": 32, "num_docs": 2}
HUGE = "1" + "0" * 5000


def _eval(kind: str, name: str, options: str, cause: str, remedy: str, **more: Any) -> Case:
    inputs = ("model", "text.jsonl", *more.pop("inputs", ()))
    return Case(kind, name, f"{HERE} {options}", cause, remedy, inputs=inputs, **more)


def _option(options: str, cause: str, remedy: str, code: int = 2, **more: Any) -> Case:
    return _eval("options", options, options, cause, remedy, code=code, **more)


def _corpus(name: str, file: str, content: str | bytes, cause: str, remedy: str, *steps: Step) -> Case:
    return _eval("corpora", name, f"--corpus {file}", cause, remedy, steps=(write(file, content), *steps))


def _model(name: str, cause: str, remedy: str, *steps: Step, model: str = "model", **more: Any) -> Case:
    command = HERE.replace("eval model", f"eval {model}")
    return Case("models", name, command, cause, remedy, inputs=(model, "text.jsonl"), steps=steps, **more)


def _lm_eval(name: str, cause: str, remedy: str, *steps: Step, inputs: tuple[str, ...] = (), **metadata: Any) -> Case:
    command = (*LM_EVAL, "--metadata", json.dumps(GOOD | metadata))
    inputs = ("model", "text.jsonl", *inputs)
    return Case(
        "lm_eval", name, command, cause, remedy, inputs=inputs, steps=steps, program="lm_eval", leaves=("out/*",)
    )


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


OPTIONS = [
    _option("--num-docs 0", "num_docs: 0", "at least 1"),
    _option("--num-docs -3", "num_docs: -3", "at least 1"),
    _option("--num-docs many", "--num-docs", "valid integer"),
    _option("--lengths 0", "lengths: '0'", "at least 8"),
    _option("--lengths 16,abc", "lengths: 'abc'", "whole number of at least 8"),
    _option("--lengths 16.5", "lengths: '16.5'", "whole number"),
    _option("--lengths ,", "lengths is empty", "give at least one"),
    _option("--lengths 1e400", "lengths: '1e400'", "whole number"),
    _option("--train-length 0", "train_length: 0", "at least 1"),
    _option("--tail-tokens 0", "tail_tokens: 0", "at least 1"),
    _option("--tail-tokens 16", "tail_tokens=16", "must be below the smallest length, 16"),
    _option("--seed -1", "seed: -1", "at least 0"),
    _option("--seed one", "--seed", "valid integer"),
    _option("--batch-size 0", "'0' is neither", "whole number"),
    _option("--batch-size big", "'big' is neither", "whole number"),
    _option("--batch-size auto:x", "'auto:x'", "whole number"),
    _option("--limit 0", "--limit", "above 0"),
    _option("--limit -1", "--limit", "above 0"),
    _option("--limit nan", "--limit", "above 0"),
    _option("--dtype float7", "float7", "bfloat16"),
    _option("--device nonsense", "device 'nonsense'", "cpu", 1),
    _option("--device cuda:7", "device 'cuda:7'", "cpu", 1),
    _option("--tasks longshort_nothing", "'longshort_nothing' is not known", "longshort_perplexity", 1),
    _option("--tasks ,", "it names no task", "leave it out"),
    _option("--model-args foo", "foo", "KEY=VALUE"),
    _option("--model-args no_such_argument=1", "unexpected keyword argument", "no_such_argument", 1),
    _option("--model-args max_length=-4", "nothing could be measured", "warnings above say why", 1, leaves=("out/*",)),
    _option("--model-args peft=nowhere/at/all", "nowhere/at/all", "name a folder", 1),
    _option("--model-args tokenizer=./nowhere", "nowhere", "name a folder", 1),
    _option("--no-such-option", "No such option", "--no-such-option"),
    _option("another", "unexpected extra argument", "another"),
    _option("--corpus hf:", "hf:", "expected hf:OWNER/NAME", 1),
    _option("--corpus hf:no/such-set", "no/such-set", "what works offline", 1),
    _option("--corpus pg19", "pg19", "what works offline", 1),
    _option("--corpus nothing-*.txt", "nothing-*.txt", "builtin", 1),
    Case("options", "eval without a checkpoint", "eval --corpus builtin", "Missing argument", "PRETRAINED", code=2),
    Case("options", "unknown command", "evaluate model", "No such command", "evaluate", code=2),
]

CORPORA = [
    _corpus("empty file", "a.jsonl", "", "no document with text", "a.jsonl"),
    _corpus("empty documents", "a.jsonl", '{"text": ""}\n' * 3, "no document with text", "a.jsonl"),
    _corpus("binary text", "a.txt", bytes(range(256)) * 9, "not UTF-8", "convert"),
    _corpus("Latin-1", "a.txt", "père ".encode("latin-1") * 99, "byte 1", "convert it to UTF-8"),
    _corpus("JSONL in Latin-1", "a.jsonl", '{"text": "père"}\n'.encode("latin-1"), "line 1", "convert"),
    _corpus("bad JSON in line 2", "a.jsonl", '{"text": "a b"}\n{"text": "a', "line 2", "not valid JSON"),
    _corpus("number of 5000 digits", "a.jsonl", f'{{"text": "a", "n": {HUGE}}}\n', "line 1", "4300 digits"),
    _corpus("deep nesting", "a.jsonl", "[" * 100_000 + "\n", "line 1", "recursion"),
    _eval("corpora", "half a surrogate pair alone", "--corpus a.jsonl", "nothing could be", "say why",
          steps=(write("a.jsonl", '{"text": "\\ud800"}\n' * 3),), leaves=("out/*",)),
    _eval("corpora", "names that are no UTF-8", "--corpus *.txt", "", "", code=0, leaves=("out/*",),
          steps=(write(b"\xff.txt".decode("utf-8", "surrogateescape"), "the text of a file " * 99),)),
    _corpus("a list per line", "a.jsonl", "[1, 2]\n", "line 1: no text", "text, content, document"),
    _corpus("wrong column", "a.jsonl", '{"body": "a b c"}\n', "no text", "text, content, document"),
    _corpus("column of another type", "a.jsonl", '{"text": 3}\n', "no text", "expected an object"),
    _corpus("no zstd", "a.jsonl.zst", "this is none", "damaged zstd", "copy it again"),
    _corpus("cut zstd", "a.jsonl.zst", "", "incomplete zstd", "copy it again", _zstd("a.jsonl.zst", 100)),
    _corpus("no Parquet", "a.parquet", "this is none", "not a readable Parquet", "a.parquet"),
    _corpus("cut Parquet", "a.parquet", "", "not a readable Parquet", "a.parquet",
            _parquet("a.parquet", {"text": ["a b c"] * 99}), cut("a.parquet", 200)),
    _corpus("Parquet without text", "a.parquet", "", "no text column", "text, content, document",
            _parquet("a.parquet", {"body": ["a"]})),
    _corpus("Parquet of numbers", "a.parquet", "", "int64, not text", "a.parquet",
            _parquet("a.parquet", {"text": [1]})),
    _corpus("unknown suffix", "a.csv", "text\na\n", "a.csv is none of", ".jsonl"),
    _eval("corpora", "locked", "--corpus a.txt", "permission denied", "a.txt", locked=True,
          steps=(write("a.txt", "a b c"), mode("a.txt", 0))),
    _eval("corpora", "missing", "--corpus nowhere.txt", "nowhere.txt", "neither a file"),
    _eval("corpora", "folder without text", "--corpus empty", "holds no .txt", "empty", steps=(make_folder("empty"),)),
    _eval("corpora", "too short", "--corpus a.txt", "nothing could be measured", "warnings above say why",
          steps=(write("a.txt", "a b"),), leaves=("out/*",)),
]  # fmt: skip

MODELS = [
    Case("models", "missing folder", HERE.replace("model", "./nowhere", 1), "no such folder", "name a folder",
         inputs=("text.jsonl",)),
    Case("models", "neither here nor on the hub", HERE.replace("model", "nowhere", 1),
         "nothing of this name is here", "name a folder, or a hub model",
         inputs=("text.jsonl",)),
    Case("models", "a file", HERE.replace("model", "./text.jsonl", 1), "no such folder", "name a folder",
         inputs=("text.jsonl",)),
    _model("empty folder", "no config.json", "name a folder", remove("model"), make_folder("model")),
    _model("no config.json", "no config.json", "name a folder", remove("model/config.json")),
    _model("config.json is no JSON", "config.json", "cannot be loaded", write("model/config.json", "{")),
    _model("config.json is empty", "config.json", "cannot be loaded", write("model/config.json", "")),
    _model("config.json is a list", "cannot be loaded", "config.json", write("model/config.json", "[]")),
    _model("no model type", "model_type", "cannot be loaded", write("model/config.json", "{}")),
    _model("unknown architecture", "nonesuch", "cannot be loaded",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "nonesuch"')),
    _model("layers as text", "num_hidden_layers", "cannot be loaded",
           replace("model/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": "two"')),
    _model("no weights", "cannot be loaded", "model.safetensors", remove("model/model.safetensors")),
    _model("weights of noise", "weights are damaged", "download or save",
           write("model/model.safetensors", b"\xff" * 999)),
    _model("cut weights", "weights are damaged", "download or save", cut("model/model.safetensors", -2000)),
    _model("empty weights", "weights are damaged", "download or save", write("model/model.safetensors")),
    _model("weights of another shape", "other shapes", "download or save",
           replace("model/config.json", '"intermediate_size": 48', '"intermediate_size": 40')),
    _model("a layer too few", "lacks", "download or save it again",
           replace("model/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')),
    _model("locked weights", "permission denied", "make it readable", mode("model/model.safetensors", 0), locked=True),
    _model("no tokenizer", "tokenizer", "cannot be loaded",
           remove("model/tokenizer.json"), remove("model/tokenizer_config.json")),
    _model("tokenizer is no JSON", "tokenizer", "download or save", write("model/tokenizer.json", "{{")),
    _model("vocabulary smaller than the tokenizer's", "vocabulary of 61", "tokenizer=", model="small-vocabulary"),
    _model("NaN weights", "nothing could be measured", "warnings above say why", model="nan", leaves=("out/*",)),
    _model("lengths beyond its positions", "nothing could be measured", "warnings above say why", model="short",
           leaves=("out/*",)),
    _model("an encoder", "lacks", "download or save", model="encoder"),
    _model("an encoder that predicts masked tokens", "'bert' is an encoder", "name a causal model", model="masked"),
    _model("an encoder-decoder", "'t5' is no decoder", "name a causal model", model="encoder-decoder"),
    _model("code of its own", "trust_remote_code", "cannot be loaded",
           replace("model/config.json", '"model_type": "llama"',
                   '"model_type": "nonesuch", "auto_map": {"AutoConfig": "own.Config"}'),
           write("model/own.py", "raise SystemExit('this must not run')")),
]  # fmt: skip

OUTPUTS = [
    _eval("output", "a file", "", "out", "choose another", steps=(write("out", "mine"),)),
    _eval("output", "a file above", "-o out/inner", "out/inner", "choose another", steps=(write("out", "mine"),)),
    _eval("output", "locked", "", "not writable", "choose another", steps=(make_folder("out"), mode("out", 0o500)),
          locked=True),
    _eval("output", "read-only disk", "", "out", "choose", steps=(disk("out", "ro"),)),
    _eval("output", "disk too small for the samples", "--corpus large.jsonl --num-docs 60 --log-samples", "no space",
          "free some space", inputs=("large.jsonl",), steps=(disk("out", "size=72k"),), leaves=("out/*",)),
    _eval("output", "full disk", "", "no space", "free some space", steps=(disk("out", "size=64k", full=True),)),
]  # fmt: skip

LONGBENCH = [
    _eval("files", f"LongBench-E: {name}", f"--tasks {task} --longbench-dir {path}", cause, remedy,
          inputs=("longbench", "longbench.zip"), steps=steps, **more)
    for name, task, path, cause, remedy, steps, more in [
        ("missing", "longshort_longbench_e", "nowhere", "nowhere does not exist", "name a folder or zip", (), {}),
        ("no zip", "longshort_longbench_e", "bad.zip", "bad.zip is damaged", "download", (write("bad.zip", "x"),), {}),
        ("cut zip", "longshort_longbench_e", "longbench.zip", "damaged", "download", (cut("longbench.zip", -300),), {}),
        ("no such dataset", "longshort-longbench-e-qasper", "longbench", "no qasper_e.jsonl", "put the official file",
         (remove("longbench/qasper_e.jsonl"),), {}),
        ("no JSON", "longshort-longbench-e-qasper", "longbench", "no valid row", "line 1",
         (write("longbench/qasper_e.jsonl", "{"),), {}),
        ("deep nesting", "longshort-longbench-e-qasper", "longbench", "no valid row", "line 1",
         (write("longbench/qasper_e.jsonl", "[" * 100_000),), {}),
        ("empty", "longshort-longbench-e-qasper", "longbench", "no valid row", "empty",
         (write("longbench/qasper_e.jsonl"),), {}),
        ("locked", "longshort-longbench-e-qasper", "longbench", "permission denied", "readable",
         (mode("longbench/qasper_e.jsonl", 0),), {"locked": True}),
    ]
]  # fmt: skip

STOCK = [
    _lm_eval("unknown corpus", "nowhere.txt", "builtin", corpus="nowhere.txt"),
    _lm_eval("lengths as text", "lengths: 'long'", "whole number", lengths="long"),
    _lm_eval("no documents", "num_docs: 0", "at least 1", num_docs=0),
    _lm_eval("tail beyond the length", "tail_tokens=99", "must be below", tail_tokens=99),
    _lm_eval("empty corpus", "no document with text", "a.jsonl", write("a.jsonl"), corpus="a.jsonl"),
    _lm_eval("lengths that are a mapping", "lengths", "whole number", lengths={"a": 1}),
]

PIPES = [
    Case("terminal", "eval, 20 columns", HERE, code=0, inputs=("model", "text.jsonl"), columns=20, leaves=("out/*",)),
    Case("terminal", "eval into a pipe that is closed", HERE, inputs=("model", "text.jsonl"), pipe=True,
         leaves=("out/*",)),
]  # fmt: skip

CASES = [*OPTIONS, *CORPORA, *MODELS, *OUTPUTS, *LONGBENCH, *STOCK, *PIPES]
