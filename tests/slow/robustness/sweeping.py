"""`longshort sweep` and `longshort status`."""

from __future__ import annotations

from typing import Any

from tests.slow.robustness.case import (
    DENIED,
    IS_FOLDER,
    NO_SPACE,
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
from tests.slow.robustness.inputs import MANIFEST

HERE = "sweep manifest.yaml -o out"
SWEPT = ("out/*",)
AGAIN = "longshort sweep manifest.yaml -o out --failed"
PLAN = '{"event": "plan", "checkpoints": [["a", "a", ["b"]]]}\n'


def _field(line: str, facts: Facts) -> Case:
    """An entry of a manifest that is otherwise right, with one wrong field; refused before anything runs."""
    field = line.partition(":")[0]
    defaults = "".join(row for row in MANIFEST.splitlines(True) if f"  {field}:" not in row)
    steps = (write("manifest.yaml", f"{defaults}    {line}\n"),)
    inputs, leaves = ("model", "text.jsonl"), ("out/.lock",)
    return Case("manifests", line.split("\n")[0], HERE, facts, inputs=inputs, steps=steps, leaves=leaves)


def _manifest(name: str, content: str | bytes, facts: Facts, *steps: Step, **more: Any) -> Case:
    steps = (write("manifest.yaml", content), *steps)
    return Case("manifests", name, HERE, facts, steps=steps, **more)


def _sweep(kind: str, name: str, options: str, facts: Facts, *steps: Step, **more: Any) -> Case:
    inputs = ("model", "text.jsonl", "manifest.yaml", *more.pop("inputs", ()))
    return Case(kind, name, f"{HERE} {options}", facts, inputs=inputs, steps=steps, **more)


def _fails(kind: str, name: str, facts: str, *steps: Step, again: str = AGAIN, **more: Any) -> Case:
    """What only a worker finds: it is reported with its category, and with the command that retries only that."""
    return _sweep(kind, f"sweep: {name}", "", (*facts.split(), again), *steps, leaves=SWEPT, lines=2, **more)


def _status(name: str, facts: Facts, *steps: Step, options: str = "", **more: Any) -> Case:
    return Case("results", f"status: {name}", f"status sweep {options}", facts, steps=steps, **more)


FIELDS = [
    _field("tasks: []", ("line 10", "checkpoints[0].tasks")),
    _field("tasks: longshort_nothing", ("line 10", "checkpoints[0].tasks", "'longshort_nothing'")),
    _field("family: ''", "checkpoints[0].family"),
    _field("params: many", "checkpoints[0].params 'many' 1"),
    _field("params: 0", "checkpoints[0].params '0' 1"),
    _field("train_tokens: -1", "checkpoints[0].train_tokens '-1' 1"),
    _field("train_length: .nan", "train_length '.nan'"),
    _field("model_args: [1]", "model_args"),
    _field("model_args: {revision: x}", "model_args.revision"),
    _field("task_args: [1]", "task_args"),
    _field("task_args: {lengths: [64]}", "task_args 'lengths'"),
    _field("task_args: max_seq_lengths=64", "task_args 'max_seq_lengths=64' JSON"),
    _field("dtype: float7", "dtype 'float7' 'bfloat16'"),
    _field("trust_remote_code: perhaps", "trust_remote_code 'perhaps' true false"),
    _field("corpus: [a]", "corpus"),
    _field("lengths: [4]", "lengths '4' 8"),
    _field("lengths: {a: 1}", "lengths"),
    _field("num_docs: 1.5", "num_docs '1.5'"),
    _field("tail_tokens: 16", "tail_tokens 16"),
    _field("seed: -1", "seed '-1' 0"),
    _field("longbench_dir: 3", "longbench_dir"),
    _field("limit: 0", "limit '0' 0"),
    _field("batch_size: large", "batch_size 'large' auto"),
    _field("resources: {gpus: -1}", "resources.gpus '-1' 0"),
    _field("resources: {memory: lots}", "resources.memory 'lots' 24GB"),
    _field("resources: {tpus: 1}", "tpus gpus"),
    _field("timeout: soon", "timeout 'soon' 0"),
    _field("cpu_offload: 2", "cpu_offload '2' true false"),
    _field("gated: 2", "gated '2' true false"),
    _field("license: null", "license"),
    _field("revision: ''", "revision"),
    _field("revisions: []", "revisions"),
    _field("revisions: {template: step, values: [1]}", "revisions.template 'step' {}"),
    _field("revisions: {first: 0, last: 99999999, every: 1}", "revisions 10000 every"),
    _field("folders: models/*", ("line 9", "checkpoints[0]", "pretrained")),
    _field("lenghts: [16]", "lenghts 'lengths'"),
    _field("num_docs: 1 \n    num_docs: 2", "num_docs"),
]

MANIFESTS = [
    _manifest("empty", "", "manifest.yaml checkpoints"),
    _manifest("binary", bytes(range(256)), "manifest.yaml UTF-8 YAML"),
    _manifest("no YAML", "checkpoints: [", ("manifest.yaml", "line 2", "YAML")),
    _manifest("tabs", "checkpoints:\n\t- a", ("manifest.yaml", "line 2", "YAML")),
    _manifest("JSON Lines of something else", '{"a": 1}', "manifest.yaml a checkpoints"),
    _manifest("a list", "- a\n- b\n", ("manifest.yaml", "line 1")),
    _manifest("no checkpoints", "defaults: {seed: 1}\n", "manifest.yaml checkpoints"),
    _manifest("an empty list", "checkpoints: []\n", "manifest.yaml checkpoints pretrained"),
    _manifest("deep nesting", "[" * 9999, "manifest.yaml 50"),
    _manifest("no such folder", "checkpoints: [{folders: nowhere/*}]\n", ("line 1", "folders", "nowhere/*")),
    _manifest("one checkpoint twice", MANIFEST + "  - pretrained: ./model\n", ("manifest.yaml", "lines 9 and 10"),
              inputs=("model", "text.jsonl")),
    _manifest("a damaged longshort.json", MANIFEST, "model/longshort.json",
              write("model/longshort.json", '{"model": '), inputs=("model", "text.jsonl")),
    _manifest("longshort.json of something else", MANIFEST, "model/longshort.json",
              write("model/longshort.json", "[1]"), inputs=("model", "text.jsonl")),
    Case("manifests", "missing", "sweep nowhere.yaml -o out", "nowhere.yaml YAML"),
    Case("manifests", "a folder", "sweep a -o out", ("'a'", IS_FOLDER, "YAML"), steps=(make_folder("a"),)),
    _sweep("manifests", "locked", "", ("manifest.yaml", DENIED), mode("manifest.yaml", 0), locked=True),
]  # fmt: skip

OPTIONS = [
    _sweep("options", "--workers 0", "--workers 0", "--workers 1", code=2),
    _sweep("options", "--node-wait -1", "--node-wait -1", "--node-wait 0", code=2),
    _sweep("options", "--gpu abacus", "--gpu abacus --dry-run", "--gpu 'abacus' h100", code=2),
    _sweep("options", "--engine slurm", "--engine slurm", "--engine 'slurm' 'ray'", code=2),
    _sweep("options", "--address without Ray", "--address auto", ("--address", "--engine ray"), code=2),
    _sweep("options", "--only nothing", "--only nothing", "--only nothing manifest.yaml"),
    _sweep("options", "a Ray address that is none", "--engine ray --address nowhere", "--address nowhere HOST:PORT",
           leaves=("out/.lock", "out/.hashes.json", "out/status.jsonl")),
    Case("options", "sweep without a manifest", "sweep -o out", "MANIFEST", code=2),
]  # fmt: skip

OUTPUTS = [
    _sweep("output", "sweep: a file", "", "out -o", write("out", "mine")),
    _sweep("output", "sweep: locked", "", ("out", DENIED, "-o"), make_folder("out"), mode("out", 0o500), locked=True),
    _sweep("output", "sweep: read-only disk", "", ("out", READ_ONLY, "-o"), disk("out", "ro")),
    _sweep("output", "sweep: full disk", "", ("out", NO_SPACE), disk("out", "size=64k", full=True), leaves=SWEPT,
           lines=2),
]  # fmt: skip

FAILURES = [
    _fails("models", "cut weights", "broken model", cut("model/model.safetensors", -2000)),
    _fails("models", "no weights", "broken model.safetensors", remove("model/model.safetensors")),
    _fails("models", "unknown architecture", "nonesuch",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "nonesuch"')),
    _fails("models", "no config.json", "broken config.json", remove("model/config.json")),
    _fails("models", "NaN weights", "non_finite", replace("manifest.yaml", "./model", "./nan"), inputs=("nan",)),
    _fails("models", "an encoder", "broken encoder weights",
           replace("manifest.yaml", "./model", "./encoder"), inputs=("encoder",)),
    _fails("models", "vocabulary smaller than the tokenizer's", "262 61",
           replace("manifest.yaml", "./model", "./small-vocabulary"), inputs=("small-vocabulary",)),
    _fails("models", "neither here nor on the hub", "no/such-model",
           replace("manifest.yaml", "./model", "no/such-model")),
    _sweep("corpora", "sweep: missing", "", "corpus text.jsonl", remove("text.jsonl"), leaves=("out/.lock",)),
    _fails("corpora", "bad JSON", "text.jsonl JSON", write("text.jsonl", "{")),
    _fails("options", "unknown task of lm-eval", "no_such_task",
           replace("manifest.yaml", "./model", "./model\n    tasks: no_such_task")),
    _fails("options", "timeout of a second", "timeout",
           replace("manifest.yaml", "./model", "./model\n    timeout: 0.0003")),
]  # fmt: skip

STATUS = [
    Case("results", "status: missing", "status nowhere", ("nowhere", "longshort sweep")),
    Case("results", "status: a file", "status a", ("a", "longshort sweep"), steps=(write("a"),)),
    _status("no sweep folder", ("sweep", "status.jsonl", "longshort sweep"), write("sweep/notes.txt", "mine")),
    _status("binary", ("sweep", "status.jsonl", "longshort sweep"), write("sweep/status.jsonl", bytes(range(256)))),
    _status("foreign JSON", ("sweep", "status.jsonl", "longshort sweep"),
            write("sweep/status.jsonl", '{"event": 3}\n')),
    _status("a plan without checkpoints", "sweep/status.jsonl", write("sweep/status.jsonl", '{"event": "plan"}\n')),
    _status("a plan of numbers", "sweep/status.jsonl",
            write("sweep/status.jsonl", '{"event": "plan", "checkpoints": [1, 2]}\n')),
    _status("an event without its task", "sweep/status.jsonl",
            write("sweep/status.jsonl", PLAN + '{"event": "done", "id": "a"}\n')),
    _status("a failure without its kind", "sweep/status.jsonl",
            write("sweep/status.jsonl", PLAN + '{"event": "failed", "id": "a", "task": "b"}\n')),
    _status("locked", ("sweep/status.jsonl", DENIED), mode("sweep/status.jsonl", 0), inputs=("sweep",), locked=True),
    _status("a table of nothing", ("sweep", "longshort eval"), write("sweep/notes.txt", "mine"), options="--table"),
    _status("a table of damaged results", ("sweep/results_1.json", "longshort eval"),
            write("sweep/results_1.json", "{"), options="--table"),
    Case("output", "status: a table in a locked folder", "status results --table", ("results/results.parquet", DENIED),
         inputs=("results",), steps=(mode("results", 0o500),), locked=True),
]  # fmt: skip

CASES = [*FIELDS, *MANIFESTS, *OPTIONS, *OUTPUTS, *FAILURES, *STATUS]
