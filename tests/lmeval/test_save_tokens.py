"""`save_tokens` from evaluation to file: reading it reproduces every aggregate of the results."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from longshort.lmeval.evaluate import evaluate_checkpoint
from longshort.results.tokens import RECORD, Tokens, aggregates, read_tokens, token_file_of
from longshort.testing import save_checkpoint, save_corpus
from tests.errors import user_error
from tests.lmeval.conftest import run, values
from tests.lmeval.test_commands import in_process, only_result

BOTH = ["longshort_perplexity", "longshort_misalignment"]
LENGTHS = [16, 32, 64]


def metadata(corpus: Path, **more: Any) -> dict[str, Any]:
    settings = {"corpus": str(corpus), "lengths": LENGTHS, "num_docs": 4, "train_length": 32, "save_tokens": True}
    return settings | more


def read(results: dict[str, Any], folder: Path) -> Tokens:
    file = folder / "tokens.parquet"
    file.write_bytes(results[RECORD].content)
    return read_tokens(file)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 300, 66, 65, 64, 40 and 17 characters, about as many tokens."""
    file = tmp_path_factory.mktemp("uneven") / "corpus.jsonl"
    texts = ["".join(chr(97 + (i * i * step) % 25) for i in range(300)) for step in range(3, 9)]
    sizes = [300, 66, 65, 64, 40, 17]
    file.write_text("\n".join(json.dumps({"text": text[:size]}) for text, size in zip(texts, sizes, strict=True)))
    return file


DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "max_position_embeddings": 20,
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of the checkpoint, settings
    "plain": ({}, {}),
    "BOS": ({"bos": True}, {}),
    "fixed targets": ({}, {"tail_tokens": 5}),
    "more targets than any shorter context shares": ({"bos": True}, {"tail_tokens": 15}),
    "several draws": ({"bos": True}, {"draws": 5, "seed": 3}),
    "one length": ({}, {"lengths": [32]}),
    "many lengths": ({"bos": True}, {"lengths": [8, 16, 24, 40, 64], "draws": 2}),
    "neighbouring lengths": ({}, {"lengths": [16, 17, 39, 40, 64]}),
    "neighbouring lengths, BOS": ({"bos": True}, {"lengths": [16, 17, 64, 65], "draws": 2}),
    "one pass per length, neighbouring lengths": (DYNAMIC, {"lengths": [16, 17, 39, 40, 64]}),
    "one pass per length": (DYNAMIC, {}),
    "one pass per length, BOS": (DYNAMIC | {"bos": True}, {"draws": 3}),
    "learned positions, of which there are too few": ({"model_type": "gpt2", "n_positions": 40}, {}),
}


PAIRS = [(name, "uneven") for name in CASES] + [("plain", "long"), ("one pass per length, BOS", "long")]


@pytest.mark.parametrize(("name", "texts"), PAIRS)
def test_reading_reproduces_every_aggregate(name: str, texts: str, corpus: Path, uneven: Path, tmp_path: Path) -> None:
    checkpoint, settings = CASES[name]
    folder = save_checkpoint(tmp_path / "model", **checkpoint)
    given = metadata(corpus if texts == "long" else uneven, **{"num_docs": 6 if texts == "uneven" else 3} | settings)
    results = run(folder, BOTH, given, batch_size=2, bootstrap_iters=0)
    found = aggregates(read(results, tmp_path))
    for task in BOTH:
        assert values(results, task)
        assert found[task] == pytest.approx(values(results, task), rel=1e-5)
    passes = results["configs"][BOTH[0]]["metadata"]["scored"]["passes"]
    assert passes.startswith("one pass per length" if name.startswith("one pass") else "single pass")


@pytest.mark.parametrize("task", BOTH)
@pytest.mark.parametrize("checkpoint", ["llama", "llama_bos"])
def test_a_task_alone(task: str, checkpoint: str, uneven: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    results = run(request.getfixturevalue(checkpoint), [task], metadata(uneven, num_docs=6, draws=2), bootstrap_iters=0)
    found = aggregates(read(results, tmp_path))
    assert found == {task: pytest.approx(values(results, task), rel=1e-5)}


def test_other_values_stay_and_nothing_is_recorded_without_the_setting(llama_bos: Path, uneven: Path) -> None:
    given = metadata(uneven, num_docs=6, draws=2)
    with_tokens = run(llama_bos, BOTH, given, bootstrap_iters=0)
    del given["save_tokens"]
    without = run(llama_bos, BOTH, given, bootstrap_iters=0)
    assert RECORD not in without
    for task in BOTH:
        assert values(with_tokens, task) == pytest.approx(values(without, task), rel=1e-6)
        kept, same = (results["configs"][task]["metadata"] for results in (with_tokens, without))
        assert kept.pop("save_tokens") is True
        assert kept == same


def test_rows_say_what_the_model_read(llama_bos: Path, corpus: Path, tmp_path: Path) -> None:
    tokens = read(run(llama_bos, BOTH, metadata(corpus), bootstrap_iters=0), tmp_path)
    texts = [json.loads(line)["text"] for line in corpus.read_text("utf-8").splitlines()]
    prefix = tokens.frame[(tokens.frame["window_start"] == 0) & (tokens.frame["draw"] == 0)]
    for document, rows in prefix.groupby("document"):
        assert rows["position"].tolist() == list(range(1, 65))
        assert texts[document].startswith(rows["text"].str.cat())
        assert set(rows["name"]) == {rows["name"].iloc[0]}
    assert set(prefix["length"]) == {64}
    assert tokens.metadata["model"] == {"pretrained": str(llama_bos)}
    assert tokens.metadata["passes"] == "single pass"
    assert tokens.metadata["corpus"]["source"] == str(corpus)
    assert not tokens.frame[["nll", "entropy", "num_bytes"]].isna().any(axis=None)


def test_limit_and_documents_that_are_too_short_for_everything(llama: Path, uneven: Path, tmp_path: Path) -> None:
    results = run(llama, BOTH, metadata(uneven, num_docs=6), limit=2, bootstrap_iters=0)
    assert sorted(read(results, tmp_path).frame["document"].unique()) == [0, 1]
    file = uneven.with_name("short.txt")
    file.write_text("too short")
    results = run(llama, BOTH, metadata(file, num_docs=1), bootstrap_iters=0)
    tokens = read(results, tmp_path)
    assert len(tokens.frame) == results[RECORD].rows == 0
    assert aggregates(tokens) == {BOTH[0]: {}, BOTH[1]: {}}


def test_tasks_with_different_settings_do_not_share_a_file(llama: Path, corpus: Path, tmp_path: Path) -> None:
    """Own YAML files may name another corpus or other lengths for each task."""
    other = save_corpus(tmp_path / "other.jsonl", num_docs=4)
    task = "task: mine_{}\nclass: !function longshort.lmeval.tasks.PerplexityTask\nmetadata: {}\n"
    for name, settings in (
        ("one", metadata(corpus)),
        ("two", metadata(other)),
        ("three", metadata(other, save_tokens=False)),
    ):
        (tmp_path / f"{name}.yaml").write_text(task.format(name, json.dumps(settings)))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    arguments: dict[str, Any] = {"model": "hf", "model_args": {"pretrained": str(llama)}, "device": "cpu"}
    with user_error("setting", "corpus", str(corpus), str(other), field="save_tokens"):
        simple_evaluate(tasks=["mine_one", "mine_two"], task_manager=manager, **arguments)
    found = simple_evaluate(tasks=["mine_one", "mine_three"], task_manager=manager, bootstrap_iters=0, **arguments)
    of_file = aggregates(read(found, tmp_path))[BOTH[0]]
    assert of_file == pytest.approx(values(found, "mine_one"), rel=1e-5)


# ---- commands


def arguments(checkpoint: Path, corpus: Path, output: Path, *more: str) -> list[str]:
    settings = ["--corpus", str(corpus), "--lengths", "16,32", "--num-docs", "3", "--train-length", "32"]
    return ["eval", str(checkpoint), *settings, "--device", "cpu", "-o", str(output), *more]


def reproduces(folder: Path) -> Path:
    """The token file of the only results in a folder, which has all their values."""
    (results,) = folder.rglob("results_*.json")
    file = token_file_of(results)
    assert file.parent == results.parent
    found = aggregates(read_tokens(file, results))
    for task in BOTH:
        assert found[task] == pytest.approx(values(json.loads(results.read_text()), task), rel=1e-5)
    return file


def test_eval_writes_the_file_next_to_the_results(llama: Path, corpus: Path, tmp_path: Path) -> None:
    done = in_process(*arguments(llama, corpus, tmp_path, "--save-tokens", "--log-samples"))
    assert done.returncode == 0, done.stderr
    file = reproduces(tmp_path)
    (results,) = tmp_path.rglob("results_*.json")
    assert file.name == results.name.replace("results_", "tokens_").replace(".json", ".parquet")
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_the_results_are_kept(llama: Path, corpus: Path, small_disk: Path) -> None:
    settings = ["--lengths", "64,256,512", "--draws", "16", "--num-docs", "5", "--model-args", "max_length=600"]
    done = in_process(*arguments(llama, corpus, small_disk, *settings, "--save-tokens"))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("longshort: ")]
    assert "No space left on device" in line
    assert "tokens_" in line
    assert RECORD not in only_result(small_disk)
    assert values(only_result(small_disk), BOTH[0])
    assert not list(small_disk.rglob("*.parquet"))
    assert not list(small_disk.rglob(".*.tmp"))


def test_a_read_only_folder_of_the_model_is_refused_before_any_work(
    llama: Path, corpus: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_disk / str(llama).replace("/", "__")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)
    try:
        monkeypatch.setattr("longshort.lmeval.evaluate.load_checkpoint", None)
        with user_error("unwritable", folder):
            evaluate_checkpoint({"pretrained": str(llama)}, metadata=metadata(corpus), output=small_disk)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_two_files_are_not_mixed_up(llama: Path, corpus: Path, tmp_path: Path) -> None:
    texts = save_corpus(tmp_path / "other.jsonl", num_docs=3, num_bytes=900)
    for source in (corpus, texts):
        evaluate_checkpoint({"pretrained": str(llama)}, metadata=metadata(source, num_docs=2), output=tmp_path / "out")
    results = sorted((tmp_path / "out").rglob("results_*.json"))
    first, second = (token_file_of(file) for file in results)
    first.write_bytes(second.read_bytes())
    with user_error("conflict", first, results[0].name):
        read_tokens(first)
    assert len(read_tokens(second).frame)
