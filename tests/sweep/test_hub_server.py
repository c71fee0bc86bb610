"""The stand-in for the hub serves the unchanged huggingface_hub, transformers and datasets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from longshort.testing import save_checkpoint
from tests.hub import Hub

# One process for all calls of huggingface_hub: it reads an expression a line and answers with its value or error.
CALLS = """
import json, sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import *
for line in sys.stdin:
    try:
        answer = json.dumps({"value": eval(line)})
    except Exception as error:
        response = getattr(error, "response", None)
        answer = json.dumps({"error": type(error).__name__, "status": getattr(response, "status_code", None)})
    print(answer, flush=True)
"""

Ask = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def ask(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    environment = os.environ | hub.environment(tmp_path_factory.mktemp("cache"))
    with subprocess.Popen(
        [sys.executable, "-c", CALLS], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout

        def call(expression: str) -> dict[str, Any]:
            process.stdin.write(expression + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield call


def add(hub: Hub, folder: Path, name: str, revision: str = "main", **files: str) -> str:
    for stem, text in files.items():
        (folder / f"{stem}.txt").write_text(text)
    return hub.add_model(name, folder, revision)


def run(hub: Hub, cache: Path, code: str, *arguments: object) -> Any:
    """What a Python program prints as JSON."""
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | hub.environment(cache),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


# ---------------------------------------------------------------- huggingface_hub


def test_each_branch_and_commit_has_its_sha(hub, ask, tmp_path):
    main = add(hub, tmp_path, "owner/steps", a="end")
    step = add(hub, tmp_path, "owner/steps", "runs/step1", a="start")
    assert main != step
    assert ask("model_info('owner/steps').sha") == {"value": main}
    assert ask("model_info('owner/steps', revision='runs/step1').sha") == {"value": step}
    assert ask(f"model_info('owner/steps', revision='{step}').sha") == {"value": step}
    branches = ask("{b.name: b.target_commit for b in list_repo_refs('owner/steps').branches}")
    assert branches == {"value": {"main": main, "runs/step1": step}}
    for revision, text in (("main", "end"), ("runs/step1", "start"), (step, "start")):
        read = ask(f"Path(hf_hub_download('owner/steps', 'a.txt', revision='{revision}')).read_text()")
        assert read == {"value": text}


def test_a_moved_branch_gives_the_new_commit_and_the_old_one_stays(hub, ask, tmp_path):
    read = "(p := Path(hf_hub_download('owner/moved', 'a.txt', revision='{}'))).read_text(), p.parent.name"
    old = add(hub, tmp_path, "owner/moved", a="old")
    assert ask(read.format("main"))["value"] == ["old", old]
    new = add(hub, tmp_path, "owner/moved", a="new")
    assert ask(read.format("main"))["value"] == ["new", new]
    assert ask("model_info('owner/moved').sha") == {"value": new}
    assert ask(read.format(old))["value"] == ["old", old]
    again = add(hub, tmp_path, "owner/moved")
    assert again not in (old, new)  # the same files, another commit


def test_files_are_listed_with_their_sizes(hub, ask, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "c.txt").write_text("four")
    add(hub, tmp_path, "lister", a="12", b="")  # a name without an owner, as gpt2 had
    tree = "[(e.path, getattr(e, 'size', None)) for e in list_repo_tree('lister'{})]"
    files = [["a.txt", 2], ["b.txt", 0]]
    deep = [["deep/er", None], ["deep/er/c.txt", 4]]
    assert ask(tree.format("")) == {"value": [*files, ["deep", None]]}
    assert ask(tree.format(", 'deep', recursive=True")) == {"value": deep}
    assert ask(tree.format(", recursive=True")) == {"value": [*files, ["deep", None], *deep]}
    assert ask(tree.format(", 'none'"))["error"] == "RemoteEntryNotFoundError"
    paths = ask("[e.path for e in get_paths_info('lister', ['a.txt', 'deep', 'none'])]")
    assert paths == {"value": ["a.txt", "deep"]}
    siblings = ask("{s.rfilename: s.size for s in model_info('lister', files_metadata=True).siblings}")
    assert siblings == {"value": {"a.txt": 2, "b.txt": 0, "deep/er/c.txt": 4}}
    folder = ask("(p := Path(snapshot_download('lister')), (p / 'deep/er/c.txt').read_text())[1]")
    assert folder == {"value": "four"}


def test_what_is_missing_is_refused_by_kind(hub, ask, tmp_path):
    add(hub, tmp_path, "owner/there", a="text")
    not_there = {"error": "RepositoryNotFoundError", "status": 404}
    assert ask("model_info('owner/none').sha") == not_there
    assert ask("dataset_info('owner/there').sha") == not_there  # it is a model
    assert ask("hf_hub_download('owner/none', 'a.txt')") == not_there
    for call in ("model_info('owner/there', revision='v9')", "hf_hub_download('owner/there', 'a.txt', revision='v9')"):
        assert ask(call) == {"error": "RevisionNotFoundError", "status": 404}
    missing = {"error": "RemoteEntryNotFoundError", "status": 404}
    assert ask("hf_hub_download('owner/there', 'b.txt')") == missing
    # The absence is remembered for the commit, as of the real hub.
    assert ask("str(try_to_load_from_cache('owner/there', 'b.txt'))")["value"].startswith("<object")


def test_a_gated_repository_shows_its_commit_and_refuses_its_files(hub, ask, tmp_path):
    commit = add(hub, tmp_path, "owner/gated", a="text")
    hub.gated.add("owner/gated")
    assert ask("(i := model_info('owner/gated')).sha, i.gated")["value"] == [commit, "manual"]
    assert ask("hf_hub_download('owner/gated', 'a.txt')") == {"error": "GatedRepoError", "status": 401}
    with_token = ask("hf_hub_download('owner/gated', 'a.txt', token='hf_other')")
    assert with_token == {"error": "GatedRepoError", "status": 403}
    hub.gated.clear()
    assert "value" in ask("hf_hub_download('owner/gated', 'a.txt')")


def test_a_download_that_is_cut_off_is_resumed(hub, ask, tmp_path):
    content = bytes(range(256)) * (11 * 4096)  # 11 MiB: one chunk of the client's is kept
    (tmp_path / "big.bin").write_bytes(content)
    hub.add_model("owner/big", tmp_path)
    hub.cut["big.bin"] = len(content) - 1000
    path = ask("hf_hub_download('owner/big', 'big.bin')")["value"]
    assert Path(path).read_bytes() == content
    gets = [(method, status) for method, path, status in hub.answers if path.endswith("/big.bin")]
    assert gets == [("HEAD", 200), ("GET", 200), ("GET", 206)]
    assert hub.cut == {}


def test_parts_of_a_file_by_range(hub, ask, tmp_path):
    add(hub, tmp_path, "owner/ranges", a="0123456789")
    get = "(r := huggingface_hub.utils.get_session().get(hf_hub_url('owner/ranges', 'a.txt'), headers={{'Range': '{}'}}"
    get += "), [r.status_code, r.text, r.headers.get('Content-Range')])[1]"
    assert ask(get.format("bytes=2-4"))["value"] == [206, "234", "bytes 2-4/10"]
    assert ask(get.format("bytes=7-"))["value"] == [206, "789", "bytes 7-9/10"]
    assert ask(get.format("bytes=-2"))["value"] == [206, "89", "bytes 8-9/10"]
    assert ask(get.format("bytes=10-"))["value"][::2] == [416, "bytes */10"]


def test_a_slow_answer_is_waited_for_until_the_time_is_out(hub, ask, tmp_path):
    commit = add(hub, tmp_path, "owner/slow", a="text")
    hub.delay = 0.3
    assert ask("model_info('owner/slow').sha") == {"value": commit}
    assert ask("model_info('owner/slow', timeout=0.05).sha")["error"] == "ReadTimeout"
    hub.delay = 0
    assert hub.requests.count(("GET", "/api/models/owner/slow")) == 2


def test_a_closed_hub_answers_nobody(ask, tmp_path):
    with Hub(tmp_path) as closed:
        info = f"HfApi(endpoint='{closed.endpoint}').model_info('owner/none').sha"
        assert ask(info)["error"] == "RepositoryNotFoundError"
    assert ask(info)["error"] in ("ConnectError", "RemoteProtocolError", "ReadError")


# ---------------------------------------------------------------- transformers, datasets

LOAD = """
import json, sys
import torch, transformers
same = []
for revision, folder in (sys.argv[1:3], sys.argv[3:5]):
    models = [transformers.AutoModelForCausalLM.from_pretrained(sys.argv[5], revision=revision)]
    models.append(transformers.AutoModelForCausalLM.from_pretrained(folder))
    ours, theirs = (model.state_dict() for model in models)
    same.append(ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours))
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[5])
print(json.dumps([*same, tokenizer("the")["input_ids"]]))
"""


def test_transformers_loads_the_weights_of_each_revision(hub, tmp_path):
    first, last = (save_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    step = hub.add_model("owner/tiny", first, "step1")
    last_step = hub.add_model("owner/tiny", last)
    *same, token_ids = run(hub, tmp_path / "cache", LOAD, "step1", first, "main", last, "owner/tiny")
    assert same == [True, True]
    assert len(token_ids) == 1  # "the" is one of the tokenizer's merges
    snapshots = tmp_path / "cache" / "hub" / "models--owner--tiny" / "snapshots"
    assert {path.name for path in snapshots.iterdir()} == {step, last_step}


READ = """
import json, sys
from longshort.corpora import open_corpus
corpora = [open_corpus(spec) for spec in sys.argv[1:]]
print(json.dumps([[corpus.revision, *(document.text for document in corpus)] for corpus in corpora]))
"""


def test_a_corpus_is_read_from_the_hub_with_its_revision(hub, tmp_path):
    texts = ["one", "twø", "three"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    lines = hub.add_dataset("owner/lines", {"test.jsonl": rows, "train.jsonl": rows[:15]})
    pyarrow.parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "table")
    table = hub.add_dataset("owner/table", {"data/test-00000-of-00001.parquet": (tmp_path / "table").read_bytes()})
    corpora = run(hub, tmp_path / "cache", READ, "hf:owner/lines", "hf:owner/table:::body")
    assert corpora == [[lines, *texts], [table, *texts]]
