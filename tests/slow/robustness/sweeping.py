"""`longshort sweep` and `longshort status`."""

from __future__ import annotations

from typing import Any

from tests.slow.robustness.case import Case, Step, cut, disk, make_folder, mode, remove, replace, write
from tests.slow.robustness.inputs import MANIFEST

HERE = "sweep manifest.yaml -o out"
SWEPT = ("out/*",)
PLAN = '{"event": "plan", "checkpoints": [["a", "a", ["b"]]]}\n'


def _field(line: str, cause: str, remedy: str) -> Case:
    """An entry of a manifest that is otherwise right, with one wrong field; refused before anything runs."""
    field = line.partition(":")[0]
    defaults = "".join(row for row in MANIFEST.splitlines(True) if f"  {field}:" not in row)
    steps = (write("manifest.yaml", f"{defaults}    {line}\n"),)
    inputs, leaves = ("model", "text.jsonl"), ("out/.lock",)
    return Case("manifests", line.split("\n")[0], HERE, cause, remedy, inputs=inputs, steps=steps, leaves=leaves)


def _manifest(name: str, content: str | bytes, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    steps = (write("manifest.yaml", content), *steps)
    return Case("manifests", name, HERE, cause, remedy, steps=steps, **more)


def _sweep(kind: str, name: str, options: str, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    inputs = ("model", "text.jsonl", "manifest.yaml", *more.pop("inputs", ()))
    return Case(kind, name, f"{HERE} {options}", cause, remedy, inputs=inputs, steps=steps, **more)


def _fails(kind: str, name: str, cause: str, remedy: str, *steps: Step, **more: Any) -> Case:
    """What only a worker finds: it is told by kind, and with the command that tries only that again."""
    return _sweep(kind, f"sweep: {name}", "", cause, remedy, *steps, leaves=SWEPT, lines=2, **more)


def _status(name: str, cause: str, remedy: str, *steps: Step, options: str = "", **more: Any) -> Case:
    return Case("results", f"status: {name}", f"status sweep {options}", cause, remedy, steps=steps, **more)


FIELDS = [
    _field("tasks: []", "line 10, checkpoints[0].tasks", "name at least one"),
    _field("tasks: longshort_nothing", "line 10", "did you mean"),
    _field("family: ''", "checkpoints[0].family", "has to be text"),
    _field("params: many", "'many'", "whole number of at least 1"),
    _field("params: 0", "'0'", "at least 1"),
    _field("train_tokens: -1", "'-1'", "at least 1"),
    _field("train_length: .nan", "'.nan'", "whole number"),
    _field("model_args: [1]", "model_args", "mapping"),
    _field("model_args: {revision: x}", "model_args.revision", "a field of its own"),
    _field("dtype: float7", "'float7'", "bfloat16"),
    _field("trust_remote_code: perhaps", "'perhaps'", "true nor false"),
    _field("corpus: [a]", "corpus", "has to be text"),
    _field("lengths: [4]", "'4'", "at least 8"),
    _field("lengths: {a: 1}", "lengths", "has to be text"),
    _field("num_docs: 1.5", "'1.5'", "whole number"),
    _field("tail_tokens: 16", "tail_tokens=16", "below the smallest length"),
    _field("seed: -1", "'-1'", "at least 0"),
    _field("longbench_dir: 3", "longbench_dir", "correct the manifest"),
    _field("limit: 0", "'0'", "above 0"),
    _field("batch_size: large", "'large'", "whole number"),
    _field("resources: {gpus: -1}", "'-1'", "at least 0"),
    _field("resources: {memory: lots}", "'lots'", "24GB"),
    _field("resources: {tpus: 1}", "tpus", "gpus"),
    _field("timeout: soon", "'soon'", "above 0"),
    _field("cpu_offload: 2", "'2'", "true nor false"),
    _field("gated: 2", "'2'", "true nor false"),
    _field("license: null", "license", "has to be text"),
    _field("revision: ''", "revision", "has to be text"),
    _field("revisions: []", "revisions", "name at least one"),
    _field("revisions: {template: step, values: [1]}", "'step'", "one {}"),
    _field("revisions: {first: 0, last: 99999999, every: 1}", "10000 revisions", "greater 'every'"),
    _field("folders: models/*", "line 9", "either pretrained"),
    _field("lenghts: [16]", "no such field", "did you mean 'lengths'?"),
    _field("num_docs: 1 \n    num_docs: 2", "num_docs", "given twice"),
]

MANIFESTS = [
    _manifest("empty", "", "empty", "give a list of checkpoints"),
    _manifest("binary", bytes(range(256)), "not UTF-8", "name a YAML file"),
    _manifest("no YAML", "checkpoints: [", "line 2", "not valid YAML"),
    _manifest("tabs", "checkpoints:\n\t- a", "line 2", "not valid YAML"),
    _manifest("JSON Lines of something else", '{"a": 1}', "no such field", "checkpoints"),
    _manifest("a list", "- a\n- b\n", "mapping", "name: value"),
    _manifest("no checkpoints", "defaults: {seed: 1}\n", "no list of checkpoints", "add one"),
    _manifest("an empty list", "checkpoints: []\n", "the list is empty", "add '- pretrained"),
    _manifest("deep nesting", "[" * 9999, "more than 50", "correct it"),
    _manifest("no such folder", "checkpoints: [{folders: nowhere/*}]\n", "matches no folder", "correct the glob"),
    _manifest("one checkpoint twice", MANIFEST + "  - pretrained: ./model\n", "lines 9 and 10", "remove one",
              inputs=("model", "text.jsonl")),
    _manifest("a damaged longshort.json", MANIFEST, "longshort.json is damaged", "remove it",
              write("model/longshort.json", '{"model": '), inputs=("model", "text.jsonl")),
    _manifest("longshort.json of something else", MANIFEST, "longshort.json is damaged", "remove it",
              write("model/longshort.json", "[1]"), inputs=("model", "text.jsonl")),
    Case("manifests", "missing", "sweep nowhere.yaml -o out", "nowhere.yaml", "name a YAML file"),
    Case("manifests", "a folder", "sweep a -o out", "is a directory", "name a YAML file", steps=(make_folder("a"),)),
    _sweep("manifests", "locked", "", "permission denied", "name a YAML file", mode("manifest.yaml", 0), locked=True),
]  # fmt: skip

OPTIONS = [
    _sweep("options", "--workers 0", "--workers 0", "--workers", "greater than or equal to 1", code=2),
    _sweep("options", "--node-wait -1", "--node-wait -1", "--node-wait", "greater than or equal to 0", code=2),
    _sweep("options", "--gpu abacus", "--gpu abacus --dry-run", "'abacus' is none of", "h100", code=2),
    _sweep("options", "--engine slurm", "--engine slurm", "'slurm' is not one of", "ray", code=2),
    _sweep("options", "--address without Ray", "--address auto", "--address", "needs --engine ray", code=2),
    _sweep("options", "--only nothing", "--only nothing", "matches no checkpoint", "--only"),
    _sweep("options", "a Ray address that is none", "--engine ray --address nowhere", "nowhere", "HOST:PORT",
           leaves=("out/.lock", "out/.hashes.json", "out/status.jsonl")),
    Case("options", "sweep without a manifest", "sweep -o out", "missing argument", "MANIFEST", code=2),
]  # fmt: skip

OUTPUTS = [
    _sweep("output", "sweep: a file", "", "cannot be written", "choose another folder", write("out", "mine")),
    _sweep("output", "sweep: locked", "", "permission denied", "choose another folder", make_folder("out"),
           mode("out", 0o500), locked=True),
    _sweep("output", "sweep: read-only disk", "", "read-only", "choose another folder", disk("out", "ro")),
    _fails("output", "full disk", "no space left", "free some space", disk("out", "size=64k", full=True)),
]  # fmt: skip

FAILURES = [
    _fails("models", "cut weights", "broken", "to try only these again", cut("model/model.safetensors", -2000)),
    _fails("models", "no weights", "broken", "to try only these again", remove("model/model.safetensors")),
    _fails("models", "unknown architecture", "nonesuch", "to try only these again",
           replace("model/config.json", '"model_type": "llama"', '"model_type": "nonesuch"')),
    _fails("models", "no config.json", "config.json", "to try only these again", remove("model/config.json")),
    _fails("models", "NaN weights", "non_finite", "to try only these again",
           replace("manifest.yaml", "./model", "./nan"), inputs=("nan",)),
    _fails("models", "an encoder", "lacks", "to try only these again",
           replace("manifest.yaml", "./model", "./encoder"), inputs=("encoder",)),
    _fails("models", "vocabulary smaller than the tokenizer's", "vocab", "to try only these again",
           replace("manifest.yaml", "./model", "./small-vocabulary"), inputs=("small-vocabulary",)),
    _fails("models", "neither here nor on the hub", "no/such-model", "to try only these again",
           replace("manifest.yaml", "./model", "no/such-model")),
    _sweep("corpora", "sweep: missing", "", "text.jsonl", "correct the manifest", remove("text.jsonl"),
           leaves=("out/.lock",)),
    _fails("corpora", "bad JSON", "line 1", "to try only these again", write("text.jsonl", "{")),
    _fails("options", "unknown task of lm-eval", "no_such_task", "to try only these again",
           replace("manifest.yaml", "./model", "./model\n    tasks: no_such_task")),
    _fails("options", "timeout of a second", "timeout", "a longer timeout",
           replace("manifest.yaml", "./model", "./model\n    timeout: 0.0003")),
]  # fmt: skip

STATUS = [
    Case("results", "status: missing", "status nowhere", "nowhere is no folder", "longshort sweep"),
    Case("results", "status: a file", "status a", "a is no folder", "longshort sweep", steps=(write("a"),)),
    _status("no sweep folder", "no sweep folder", "run 'longshort sweep'", write("sweep/notes.txt", "mine")),
    _status("binary", "no sweep folder", "run 'longshort sweep'", write("sweep/status.jsonl", bytes(range(256)))),
    _status("foreign JSON", "no sweep folder", "run 'longshort sweep'", write("sweep/status.jsonl", '{"event": 3}\n')),
    _status("a plan without checkpoints", "status.jsonl is damaged", "remove it",
            write("sweep/status.jsonl", '{"event": "plan"}\n')),
    _status("a plan of numbers", "status.jsonl is damaged", "remove it",
            write("sweep/status.jsonl", '{"event": "plan", "checkpoints": [1, 2]}\n')),
    _status("an event without its task", "status.jsonl is damaged", "remove it",
            write("sweep/status.jsonl", PLAN + '{"event": "done", "id": "a"}\n')),
    _status("a failure without its kind", "status.jsonl is damaged", "remove it",
            write("sweep/status.jsonl", PLAN + '{"event": "failed", "id": "a", "task": "b"}\n')),
    _status("locked", "permission denied", "readable", mode("sweep/status.jsonl", 0), inputs=("sweep",), locked=True),
    _status("a table of nothing", "no result", "longshort eval", write("sweep/notes.txt", "mine"), options="--table"),
    _status("a table of damaged results", "damaged", "longshort eval",
            write("sweep/results_1.json", "{"), options="--table"),
    Case("output", "status: a table in a locked folder", "status results --table", "permission denied", "choose",
         inputs=("results",), steps=(mode("results", 0o500),), locked=True),
]  # fmt: skip

CASES = [*FIELDS, *MANIFESTS, *OPTIONS, *OUTPUTS, *FAILURES, *STATUS]
