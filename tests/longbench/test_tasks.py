"""LongBench-E through lm-eval: the group and its members, on the hf backend and on others."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import transformers
from lm_eval.models.dummy import DummyLM

from longshort.errors import UserError
from longshort.lmeval.evaluate import evaluate_loaded, prepare_tasks, problems
from longshort.lmeval.output import to_json
from longshort.longbench import prompts
from longshort.longbench.official import score_folder
from longshort.longbench.predictions import write_official_predictions
from longshort.longbench.prompts import _load
from longshort.longbench.scores import BUCKETS, CATEGORIES, DATASETS, bucket, score_row
from longshort.results import read_results
from longshort.testing import save_checkpoint
from tests.errors import assert_facts, assert_one, contains, user_error
from tests.lmeval.conftest import run
from tests.lmeval.test_commands import in_process, stock
from tests.longbench.rows import make_row, write_rows

GROUP = "longshort_longbench_e"
NAME = "longshort-longbench-e-{}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("longbench") / "data")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "window", max_position_embeddings=1024)


def check_group(results: dict[str, Any], count: int) -> None:
    """Every mean once more, from the logged samples."""
    by_dataset = {}
    for name in DATASETS:
        samples = results["samples"][NAME.format(name)]
        assert len(samples) == count
        by_bucket: dict[str, list[float]] = {"all": []}
        for sample in samples:
            row = make_row(name, sample["doc_id"])
            prediction = sample["filtered_resps"][0]
            value = 100 * score_row(name, prediction, row["answers"], row["all_classes"])
            by_bucket["all"].append(value)
            by_bucket.setdefault(bucket(row["length"]), []).append(value)
        by_dataset[name] = {column: sum(values) / len(values) for column, values in by_bucket.items()}
        measured = results["results"][NAME.format(name)]
        for column, value in by_dataset[name].items():
            metric = "score" if column == "all" else f"score@{column}"
            assert measured[f"{metric},none"] == pytest.approx(value)
    for column in ("all", *BUCKETS):
        metric = "score" if column == "all" else f"score@{column}"
        held = {name: columns[column] for name, columns in by_dataset.items() if column in columns}
        means = []
        for category in CATEGORIES:
            values = [value for name, value in held.items() if DATASETS[name].category == category]
            if values:
                means.append(sum(values) / len(values))
                slug = category.lower().replace(" ", "-")
                assert results["groups"][NAME.format(slug)][f"{metric},none"] == pytest.approx(means[-1])
        overall = results["groups"][GROUP]
        assert overall[f"{metric},none"] == pytest.approx(sum(means) / len(means))
        plain = metric.replace("score", "score_datasets")
        assert overall[f"{plain},none"] == pytest.approx(sum(held.values()) / len(held))


class Fluent:
    """Stands in for generation where the model's words do not matter: right for even rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

        def generate_until(lm: Any, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            self.seen += [request.args for request in requests]
            docs = [request.doc for request in requests]
            right = [make_row(doc["longbench_e"], doc["index"])["answers"][0] for doc in docs]
            return [answer if doc["index"] % 2 == 0 else "" for answer, doc in zip(right, docs, strict=True)]

        monkeypatch.setattr(DummyLM, "generate_until", generate_until)


def test_group_means_standard_errors_and_counts(
    rows: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    Fluent(monkeypatch)
    _load.cache_clear()  # of another test
    results = run("dummy", [GROUP], {"longbench_dir": str(rows), "corpus": "builtin"}, log_samples=True)
    check_group(results, 3)
    assert caplog.text.count("--model_args tokenizer=") == 1, "no tokenizer is known: reported once"
    qasper = results["results"][NAME.format("qasper")]
    assert qasper["score,none"] == pytest.approx(200 / 3)
    assert qasper["score_stderr,none"] == pytest.approx(100 / 3)
    overall = results["groups"][GROUP]
    errors = []
    for category in CATEGORIES:
        members = [NAME.format(name) for name in DATASETS if DATASETS[name].category == category]
        squares = sum(results["results"][name]["score_stderr,none"] ** 2 for name in members)
        errors.append(math.sqrt(squares) / len(members))
    assert overall["score_stderr,none"] == pytest.approx(math.hypot(*errors) / 6)
    assert overall["sample_count"]["score,none"] == 39
    assert overall["sample_count"]["score@8k+,none"] == 13
    config = results["configs"][NAME.format("trec")]["metadata"]
    assert config["corpus"] == "longbench_e"
    assert config["scored"]["documents"] == {"score": 3, "score@0-4k": 1, "score@4-8k": 1, "score@8k+": 1}
    assert config["scored"]["official_documents"] == 300
    assert "code_ratio" not in config["scored"]
    assert results["configs"][NAME.format("lcc")]["metadata"]["scored"]["code_ratio"] == "difflib"
    assert_one(caplog.messages, "qasper", "3 of the 224")
    file = tmp_path / "results_x.json"
    kept = {key: value for key, value in results.items() if key != "samples"} | {"model_name": "dummy"}
    file.write_text(json.dumps(kept, default=str))
    table = read_results(file).set_index(["task", "metric"])
    assert table.loc[(GROUP, "score@4-8k"), "n"] == 13
    assert table.loc[(NAME.format("few-shot"), "score"), "n"] == 9
    assert table.loc[(NAME.format("trec"), "score@8k+"), "n"] == 1
    assert table.loc[(GROUP, "score"), "stderr"] > 0


def test_prompts_are_truncated_then_templated(
    rows: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fluent = Fluent(monkeypatch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    monkeypatch.setattr(DummyLM, "apply_chat_template", lambda lm, chat, **_: "<user>" + chat[-1]["content"])
    monkeypatch.setattr(DummyLM, "chat_template", lambda lm, name: "template")
    monkeypatch.setattr(DummyLM, "tokenizer_name", "name")
    metadata = {"longbench_dir": str(rows), "pretrained": str(checkpoint)}
    results = run("dummy", [GROUP], metadata, apply_chat_template=True)
    assert len(fluent.seen) == 39
    by_dataset = iter(fluent.seen)
    for name, dataset in DATASETS.items():
        scored = results["configs"][NAME.format(name)]["metadata"]["scored"]
        assert scored["truncated_prompts"] == 3
        for index in range(3):
            text, settings = next(by_dataset)
            assert text.startswith("<user>") == dataset.chat, name
            whole = prompts.prompt(name, make_row(name, index))
            expected, cut = prompts.truncate_middle(whole, tokenizer, 500)
            assert cut
            assert text.removeprefix("<user>") == expected
            assert settings == {"until": [], "max_gen_toks": dataset.max_new_tokens, "do_sample": False}
    assert_one(caplog.messages, "qasper", "3 of 3", "500 tokens")


def test_all_datasets_through_the_stock_command_line(
    checkpoint: Path, rows: Path, corpus: Path, tmp_path: Path
) -> None:
    metadata = {"longbench_dir": str(rows), "corpus": str(corpus), "lengths": [16, 32], "num_docs": 2}
    done = stock(
        "hf",
        *["--model_args", f"pretrained={checkpoint},dtype=float32", "--device", "cpu", "--limit", "1"],
        *["--metadata", json.dumps(metadata), "--output_path", str(tmp_path / "out"), "--log_samples"],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Left truncation" not in done.stderr
    assert any(contains(line, "1 of 1", "500 tokens") for line in done.stderr.splitlines())
    shown = done.stdout.replace(" ", "")
    assert "|longshort_longbench_e|1|none|" in shown
    assert all(category.replace(" ", "") in shown for category in CATEGORIES)
    assert "|ppl@32|" in shown
    (file,) = (tmp_path / "out").rglob("results_*.json")
    measured = json.loads(file.read_text())["results"]
    summary = score_folder(file.parent, tmp_path / "scored")
    (incomplete,) = summary.problems  # because of the limit
    assert_facts(incomplete, "qasper has 1 of 224", "lcc has 1 of 300")
    for name in DATASETS:
        assert measured[NAME.format(name)]["score,none"] == pytest.approx(summary.datasets[name]["all"].value)
    assert measured[GROUP]["score,none"] == pytest.approx(summary.overall["all"].value)
    assert measured[GROUP]["score_datasets,none"] == pytest.approx(summary.plain["all"].value)

    # The same through the command, and as official prediction files.
    assert write_official_predictions(file.parent, tmp_path / "official") == []
    for folder in (file.parent, tmp_path / "official"):
        done = in_process("score-longbench", str(folder), "-o", str(tmp_path / folder.name))
        assert done.returncode == 1, done.stderr
        assert_one(done.stderr.splitlines(), "qasper has 1 of 224")
        official = json.loads((tmp_path / folder.name / "result.json").read_text())
        assert official == summary.official
        assert "mean of categories" in done.stdout


def test_samsum_ends_at_a_newline_token_but_not_at_the_first(
    checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    calls = []
    original = transformers.GenerationMixin.generate

    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append({key: kwargs.get(key) for key in ("eos_token_id", "min_new_tokens")})
        return original(model, *args, **kwargs)

    monkeypatch.setattr(transformers.GenerationMixin, "generate", generate)
    metadata = {"longbench_dir": str(rows)}
    names = [NAME.format("samsum"), NAME.format("lcc")]
    run(checkpoint, names, metadata, limit=1, model_args={"pretrained": str(checkpoint)})
    assert len(calls) == 2
    assert {"eos_token_id": [2, newline], "min_new_tokens": 1} in calls
    assert {"eos_token_id": None, "min_new_tokens": None} in calls


# ---- an API backend


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-style completions server on loopback; answers with the prompt's last words."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(payload)
            texts = payload["prompt"] if isinstance(payload["prompt"], list) else [payload["prompt"]]
            choices = [{"index": index, "text": "\nthe answer number 0\nmore"} for index in range(len(texts))]
            body = json.dumps({"choices": choices}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1/completions", seen
    httpd.shutdown()


def test_local_completions_backend(server: tuple[str, list[dict[str, Any]]], checkpoint: Path, rows: Path) -> None:
    url, seen = server
    arguments = {
        "model": "tiny",
        "base_url": url,
        "tokenizer": str(checkpoint),
        "max_length": 1024,
        "tokenized_requests": False,
        "num_concurrent": 1,
    }
    names = [NAME.format(name) for name in ("qasper", "triviaqa", "gov_report")]
    results = run("local-completions", names, {"longbench_dir": str(rows)}, model_args=arguments, limit=1)
    assert len(seen) == 3
    assert {payload["max_tokens"] for payload in seen} == {128, 32, 512}
    # "\nthe answer number 0\nmore": triviaqa scores the first line that is not empty, qasper the whole text.
    assert results["results"][NAME.format("triviaqa")]["score,none"] == 100
    assert 0 < results["results"][NAME.format("qasper")]["score,none"] < 100


# ---- what is wrong


def test_a_missing_dataset_is_named_and_the_others_are_measured(
    rows: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Fluent(monkeypatch)
    folder = write_rows(tmp_path / "part", words=20)
    (folder / "qasper_e.jsonl").unlink()
    lines = (folder / "trec_e.jsonl").read_text().splitlines()
    (folder / "trec_e.jsonl").write_text("\n".join([lines[0], lines[1][:30], lines[2]]))
    prepared = prepare_tasks([GROUP], {"longbench_dir": str(folder)})
    results = evaluate_loaded(DummyLM(), {}, prepared, device="cpu")
    assert any("'qasper'" in line and "qasper_e.jsonl" in line for line in caplog.messages)
    assert any(contains(message, "trec_e.jsonl", "line 2") for message in caplog.messages)
    assert NAME.format("qasper") not in results["results"]
    assert results["results"][NAME.format("trec")]["sample_len"] == 2
    (gap,) = results["configs"][NAME.format("trec")]["metadata"]["scored"]["left_out"]
    assert gap["kind"] == "data"
    assert contains(gap["reason"], "trec_e.jsonl", "line 2")
    rows, datasets = problems(results)
    assert NAME.format("trec") in rows
    assert "1 of 13" in datasets
    assert "problems" not in json.loads(to_json(results))


@pytest.mark.parametrize(
    ("metadata", "kind", "fact"),
    [({"longbench_dir": "/no/such/place"}, "not_found", "/no/such/place"), ({}, "hub", "longbench_dir")],
)
def test_no_data_at_all(metadata: dict[str, Any], kind: str, fact: str) -> None:
    for name in (GROUP, NAME.format("lcc")):
        with pytest.raises(UserError) as caught:
            run("dummy", [name], metadata)
        assert caught.value.kind == kind
        assert_facts(caught.value.message, fact)


def test_without_data_the_other_tasks_are_measured(llama: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    metadata = {"corpus": str(corpus), "lengths": [16], "num_docs": 2}
    results = run(llama, ["longshort_perplexity", GROUP], metadata)
    assert results["results"]["longshort_perplexity"]["ppl@16,none"] > 1
    assert not any("," in key for key in results["results"][GROUP])
    assert any("longshort_longbench_e" in line and "data.zip" in line for line in caplog.messages)


def test_a_window_without_room_for_the_answer(checkpoint: Path, rows: Path) -> None:
    with user_error("setting", "max_length=512", "512 tokens"):
        run(
            "dummy",
            [NAME.format("gov_report")],
            {"longbench_dir": str(rows), "pretrained": str(checkpoint), "max_length": 512},
        )
