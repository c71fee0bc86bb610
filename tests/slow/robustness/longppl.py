"""`longshort key-spans`, and the task `longshort_longppl` with its files."""

from __future__ import annotations

import signal

from tests.slow.robustness.case import (
    DENIED,
    NO_SPACE,
    Case,
    Facts,
    Interruption,
    Step,
    cut,
    disk,
    make_folder,
    mode,
    remove,
    replace,
    write,
)

CHOSEN = "--corpus text.jsonl --lengths 16,32 --num-docs 2"
EVAL = f"eval model {CHOSEN} --tasks longshort_longppl -o out --key-spans"
FIND = f"{CHOSEN} --short 8 --stride 8 --min-gain 0 --max-loss 20"
PART = "out.jsonl.part"


def _spans(name: str, facts: Facts, *steps: Step, spans: str = "spans.jsonl", **more: object) -> Case:
    inputs = ("model", "text.jsonl", "spans.jsonl")
    return Case("files", f"key spans: {name}", f"{EVAL} {spans}", facts, inputs=inputs, steps=steps, **more)  # type: ignore[arg-type]  # any field


def _find(
    kind: str, name: str, facts: Facts, *steps: Step, model: str = "model", more: str = "", **given: object
) -> Case:
    command = f"key-spans {model} {FIND} -o out.jsonl {more}"
    return Case(kind, name, command, facts, inputs=(model, "text.jsonl"), steps=steps, **given)  # type: ignore[arg-type]  # any field


SPANS = [
    _spans("missing", "nowhere.jsonl key-spans", spans="nowhere.jsonl"),
    _spans("a folder without slices", "empty slice_0.txt", make_folder("empty"), spans="empty"),
    _spans("empty", "spans.jsonl", write("spans.jsonl")),
    _spans("cut within a line", "spans.jsonl line 3", cut("spans.jsonl", -9)),
    _spans("no JSON", "spans.jsonl line 1", write("spans.jsonl", "{{")),
    _spans("deep nesting", "spans.jsonl line 1", write("spans.jsonl", "[" * 100_000)),
    _spans("a corpus instead", "spans.jsonl format", write("spans.jsonl", '{"text": "x"}\n')),
    _spans("another version", "spans.jsonl version 1 9", replace("spans.jsonl", '"version":1', '"version":9')),
    _spans("fewer documents than announced", "spans.jsonl 2 7",
           replace("spans.jsonl", '"documents":2', '"documents":7')),
    _spans("another corpus", "spans.jsonl 2 text.jsonl", write("text.jsonl", '{"text": "one"}\n{"text": "two"}\n')),
    _spans("spans beyond the text", "line 2 999999", replace("spans.jsonl", '"spans":[[', '"spans":[[1,999999],[')),
    _spans("spans that are text", "line 2 'x'", replace("spans.jsonl", '"spans":[[', '"spans":[["x",3],[')),
    _spans("locked", ("spans.jsonl", DENIED), mode("spans.jsonl", 0), locked=True),
    _spans("a slice that is cut", "slice_0.txt", write("key/slice_0.txt", "[1, 5];[7,"), spans="key"),
    _spans("a slice of another text", "slice_0.txt 99999", write("key/slice_0.txt", "[1, 99999]"), spans="key"),
    _spans("slices of other documents", "key 70 2", write("key/slice_70.txt", "[1, 5]"), spans="key"),
    Case("options", "longshort_longppl without key spans", EVAL.removesuffix(" --key-spans"), "key_spans key-spans",
         inputs=("model", "text.jsonl")),
]  # fmt: skip

FOUND = [
    _find("options", "key-spans --short 99", "99 32 --lengths --short", more="--short 99"),
    _find("options", "key-spans --short 0", "--short", more="--short 0", code=2),
    _find("options", "key-spans --stride x", "--stride", more="--stride x", code=2),
    _find("options", "key-spans --min-gain inf", "--min-gain inf", more="--min-gain inf", code=2),
    _find("options", "key-spans --num-docs 0", "num_docs 0 1", more="--num-docs 0", code=2),
    _find("options", "key-spans --batch-size 0", "--batch-size", more="--batch-size 0", code=2),
    _find("corpora", "key-spans: missing", "nowhere.txt builtin", more="--corpus nowhere.txt"),
    _find("corpora", "key-spans: empty", "text.jsonl", write("text.jsonl")),
    _find("models", "key-spans: no config.json", "'model' config.json", remove("model/config.json")),
    _find("models", "key-spans: cut weights", "'model' weights", cut("model/model.safetensors", -2000)),
    _find("models", "key-spans: NaN weights", "--dtype float32", model="nan", leaves=(PART,)),
    _find("models", "key-spans: an encoder-decoder", "t5", model="encoder-decoder"),
    _find("models", "key-spans: masked", "bert", model="masked"),
    _find("output", "key-spans: a folder", "out.jsonl -o", make_folder("out.jsonl")),
    _find("output", "key-spans: another file", "out.jsonl -o", write("out.jsonl", "mine")),
    _find("output", "key-spans: read-only disk", "deep -o", disk("deep", "ro"), more="-o deep/out.jsonl"),
    _find("output", "key-spans: full disk", ("deep", NO_SPACE), disk("deep", "size=64k", full=True),
          more="-o deep/out.jsonl", leaves=("deep/*",)),
    *(
        Case("interrupted", f"key-spans, {each.name}",
             f"key-spans model {FIND} --corpus large.jsonl --num-docs 30 -o out.jsonl",
             inputs=("model", "large.jsonl"), interruption=Interruption(each, PART, ("out.jsonl",)))
        for each in (signal.SIGINT, signal.SIGKILL)
    ),
]  # fmt: skip

CASES = [*FOUND, *SPANS]
