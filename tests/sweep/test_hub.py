"""Sweeps of checkpoints and a corpus on the hub: pinned to commits, gated, missing, cut off, moved, out of reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors import safe_open

from longshort.testing import save_checkpoint, save_corpus
from tests.errors import contains
from tests.hub import Hub
from tests.sweep.conftest import events, sweep

TASK = "longshort_perplexity"
CUT = "model-00001-of-00001.safetensors"  # no other model has a file of this name
MANIFEST = f"""
defaults:
  tasks: [{TASK}]
  corpus: hf:owner/texts
  lengths: [16, 32]
  num_docs: 3
  dtype: float32
  resources: {{cpus: 1}}
checkpoints:
  - pretrained: owner/steps
    revisions: [main, step10, step99]
  - pretrained: owner/large
  - pretrained: owner/gated
  - pretrained: owner/none
  - pretrained: owner/code
  - pretrained: owner/trusted
    trust_remote_code: true
"""
KINDS = {
    "owner/steps@step99": "not_found",
    "owner/gated": "gated",
    "owner/none": "not_found",
    "owner/code": "no_trust_remote_code",
}
STEPS = ("--only", "owner/steps", "--only", "owner/steps@step10")
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({flag!r}).touch()


class Own(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = Own
"""


@dataclass(frozen=True)
class Swept:
    """A hub, the commits on it, and a sweep of them in `folder`/out, with the requests that it made.

    Code of the checkpoint owner/NAME leaves `folder`/ran-NAME when it runs.
    """

    hub: Hub
    folder: Path
    commits: dict[str, str]
    done: subprocess.CompletedProcess[str]
    requests: tuple[tuple[str, str], ...]

    def again(self, out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Sweep once more, in a folder `out` that is made a copy of the first one."""
        shutil.copytree(self.folder / "out", out)
        variables = self.hub.environment(self.folder / "cache") | environment
        return sweep(self.folder, "hub.yaml", "-o", str(out), *arguments, seconds=120, **variables)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    folder = tmp_path_factory.mktemp("hub-sweep")
    with Hub(folder / "hub") as hub:
        commits = add_all(hub, folder)
        hub.gated.add("owner/gated")
        hub.cut[CUT] = os.path.getsize(folder / "large" / CUT) - 1000
        (folder / "hub.yaml").write_text(MANIFEST)
        done = sweep(folder, "hub.yaml", "-o", "out", seconds=240, **hub.environment(folder / "cache"))
        yield Swept(hub, folder, commits, done, tuple(hub.requests))


def add_all(hub: Hub, folder: Path) -> dict[str, str]:
    """Fill the hub; return the commits, by the names that a sweep has for checkpoints, and of the corpus."""
    first, last = (save_checkpoint(folder / name, seed=seed) for seed, name in enumerate(("first", "last")))
    commits = {"owner/steps@step10": hub.add_model("owner/steps", first, "step10")}
    for name in ("steps", "gated"):
        commits[f"owner/{name}"] = hub.add_model(f"owner/{name}", last)
    large = save_checkpoint(folder / "large", intermediate_size=15_000)  # more than the client's chunk of 10 MiB
    (large / "model.safetensors").rename(large / CUT)
    with safe_open(large / CUT, "pt") as weights:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights.keys(), CUT)}
    (large / "model.safetensors.index.json").write_text(json.dumps(index))
    commits["owner/large"] = hub.add_model("owner/large", large)
    config = json.loads((first / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    for name in ("code", "trusted"):
        coded = shutil.copytree(first, folder / name)
        (coded / "config.json").write_text(json.dumps(config))
        (coded / "own.py").write_text(CODE.format(flag=str(folder / f"ran-{name}")))
        commits[f"owner/{name}"] = hub.add_model(f"owner/{name}", coded)
    texts = save_corpus(folder / "texts.jsonl", num_docs=4, num_bytes=700).read_bytes()
    commits["owner/texts"] = hub.add_dataset("owner/texts", {"test.jsonl": texts})
    return commits


def saved(out: Path) -> dict[str, dict[str, Any]]:
    """Contents of the results in force, by checkpoint and, unless it is main, revision."""
    found = {}
    for file in (out / "results").rglob("results_*.json"):
        data = json.loads(file.read_text())
        arguments = data["config"]["model_args"]
        revision = "" if arguments["revision"] == "main" else f"@{arguments['revision']}"
        found[arguments["pretrained"] + revision] = data
    return found


def test_those_that_cannot_be_had_are_named_by_kind_and_the_rest_completes(swept: Swept) -> None:
    failed = {event["checkpoint"]: event["kind"] for event in events(swept.folder / "out", "failed")}
    assert failed == KINDS
    assert set(saved(swept.folder / "out")) == {"owner/steps", "owner/steps@step10", "owner/large", "owner/trusted"}
    assert swept.done.returncode == 1
    assert "Traceback" not in swept.done.stderr
    *lines, last = swept.done.stderr.strip().splitlines()
    assert last.startswith("longshort: 4 results")
    assert last.endswith(": longshort sweep hub.yaml -o out --failed")
    for name, kind in KINDS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} (")]
        headings = [heading for heading in lines[: lines.index(line)] if not heading.startswith("  ")]
        assert headings[-1].startswith(f"{kind}: ")
    # What is known not to be there costs no process.
    logs = {file.name.rsplit("-", 1)[0] for file in (swept.folder / "out" / "logs").iterdir()}
    assert not logs & {"owner_none", "owner_steps_step99"}


def test_results_tell_the_commit_and_the_name_of_the_revision(swept: Swept) -> None:
    for name, data in saved(swept.folder / "out").items():
        inputs = data["longshort_sweep"]["inputs"]
        assert data["config"]["model_sha"] == inputs["identity"] == swept.commits[name]
        assert inputs["corpus_identity"] == swept.commits["owner/texts"]
        assert data["configs"][TASK]["metadata"]["scored"]["revision"] == swept.commits["owner/texts"]
    table = pd.read_parquet(swept.folder / "out" / "results.parquet")
    steps = table[(table["checkpoint"] == "owner/steps") & (table["metric"] == "ppl") & (table["length"] == 32)]
    values = steps.set_index("revision")["value"]
    assert set(values.index) == {"main", "step10"}
    assert values["main"] != values["step10"]
    assert set(table.loc[table["checkpoint"] != "owner/steps", "revision"]) == {"main"}


def test_a_branch_is_looked_up_once_so_that_it_cannot_move_in_between(swept: Swept) -> None:
    asked = Counter(path for _, path in swept.requests if path.startswith(("/api/models/", "/owner/")))
    branches = {"main", "step10", "step99"}
    by_branch = {path: count for path, count in asked.items() if branches & set(path.split("/"))}
    names = ["steps/revision/step10", "steps/revision/step99"]
    names += [f"{name}/revision/main" for name in ("steps", "large", "gated", "none", "code", "trusted")]
    assert by_branch == {f"/api/models/owner/{name}": 1 for name in names}


def test_a_download_that_is_cut_off_is_resumed(swept: Swept) -> None:
    gets = [status for method, path, status in swept.hub.answers if method == "GET" and path.endswith(CUT)]
    assert gets == [200, 206]
    assert not events(swept.folder / "out", "retry")


def test_code_of_a_checkpoint_runs_only_where_it_is_trusted(swept: Swept) -> None:
    assert (swept.folder / "ran-trusted").exists()
    assert not (swept.folder / "ran-code").exists()


def test_a_rerun_asks_for_the_commits_and_does_nothing(swept: Swept, tmp_path: Path) -> None:
    before = len(swept.hub.requests)
    done = swept.again(tmp_path / "out", *STEPS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 new results, 2 existing, 0 failed" in done.stdout
    assert {path for _, path in swept.hub.requests[before:]} == {
        "/api/models/owner/steps/revision/main",
        "/api/models/owner/steps/revision/step10",
        "/api/datasets/owner/texts",
    }


@pytest.mark.parametrize("variable", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_what_is_done_is_recognized_where_the_hub_cannot_be_asked(
    variable: dict[str, str], swept: Swept, tmp_path: Path
) -> None:
    before = len(swept.hub.requests)
    done = swept.again(tmp_path / "out", *STEPS, **variable)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 new results, 2 existing, 0 failed" in done.stdout
    assert len(swept.hub.requests) == before


def test_an_older_commit_in_the_cache_does_not_pass_for_a_change(swept: Swept, tmp_path: Path) -> None:
    """Another program got main into the cache before it moved; the sweep measured the newer commit."""
    branch = tmp_path / "cache" / "models--owner--steps" / "refs" / "main"
    branch.parent.mkdir(parents=True)
    branch.write_text(swept.commits["owner/steps@step10"])
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = swept.again(tmp_path / "out", "--dry-run", *STEPS, **offline)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 results exist, 0 to do" in done.stdout


def test_a_checkpoint_that_moved_is_measured_again_and_a_slow_hub_is_waited_for(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = swept.hub.repositories["models", "owner/steps"].branches
    old = swept.commits["owner/steps"]
    monkeypatch.setitem(branches, "main", old)  # where it is moved back to
    new = swept.hub.add_model("owner/steps", swept.folder / "first")
    monkeypatch.setattr(swept.hub, "delay", 0.2)
    done = swept.again(tmp_path / "out", *STEPS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 new results, 1 existing, 0 failed" in done.stdout
    assert any(contains(line, "owner/steps", TASK, old[:20], new[:20]) for line in done.stdout.splitlines())
    results = saved(tmp_path / "out")
    assert results["owner/steps"]["config"]["model_sha"] == new
    assert results["owner/steps"]["results"] == results["owner/steps@step10"]["results"]  # the same files
    assert len(list((tmp_path / "out").rglob("outdated_*.json"))) == 1


def test_the_command_that_a_sweep_ends_with_measures_what_is_granted_since(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swept.hub, "gated", set())
    command = swept.done.stderr.strip().partition(": longshort sweep hub.yaml -o out ")[2]
    done = swept.again(tmp_path / "out", *command.split(), "--only", "owner/steps*", "--only", "owner/gated")
    assert done.returncode == 1  # step99 is still missing
    assert "1 new results, 0 existing, 1 failed" in done.stdout
    assert saved(tmp_path / "out")["owner/gated"]["config"]["model_sha"] == swept.commits["owner/gated"]
