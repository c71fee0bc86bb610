"""`longshort_retrieval` through lm-eval against decoding with `generate` and dense logits, on both kinds of backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.metrics import mean_stderr
from lm_eval.models.huggingface import HFLM

from longshort.lmeval import retrieval_requests
from longshort.lmeval.evaluate import evaluate_checkpoint, problems
from longshort.lmeval.retrieval_keys import KEYS
from longshort.testing import save_checkpoint, save_letters, tiny_tokenizer
from tests.errors import user_error
from tests.lmeval.conftest import run, values
from tests.lmeval.lookup import PlainLM, lookup_model
from tests.lmeval.test_commands import in_process

TASK = "longshort_retrieval"
LENGTHS = [200, 300]  # a byte is a token: two needles and a question take some 150 tokens
SHORT = len(" office is")  # memory of an oracle that does not see the key
CLOSE = {"rel": 1e-4, "abs": 1e-6}


def metadata(corpus: Path, **more: Any) -> dict[str, Any]:
    settings = {"corpus": str(corpus), "lengths": LENGTHS, "num_docs": 2, "needles": 2, "depths": 3}
    return settings | more


@pytest.fixture(scope="module")
def ascii_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_letters(tmp_path_factory.mktemp("ascii") / "corpus.jsonl", num_docs=3, num_bytes=1000)


def loaded(model: Any, bos: bool = False) -> HFLM:
    return HFLM(model, tokenizer=tiny_tokenizer(bos), device="cpu", max_length=4096)


def oracle(memory: int = 1000, bos: bool = False) -> HFLM:
    return loaded(lookup_model(len(tiny_tokenizer()), memory), bos)


def scored(results: dict[str, Any]) -> dict[str, Any]:
    return results["configs"][TASK]["metadata"]["scored"]


def gaps(results: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Metric to the failure category and the number of documents without a value."""
    return {gap["metric"]: (gap["kind"], gap["count"]) for gap in scored(results)["left_out"]}


# ---- right


@pytest.mark.parametrize("memory", [1000, SHORT])
@pytest.mark.parametrize("bos", [False, True])
def test_recall_equals_greedy_decoding_and_dense_log_probabilities(memory: int, bos: bool, corpus: Path) -> None:
    lm = oracle(memory, bos)
    results = run(lm, [TASK], metadata(corpus), log_samples=True)
    plain = PlainLM(lm)
    run(plain, [TASK], metadata(corpus))  # shows the texts
    texts = dict(zip([(length, index) for length in LENGTHS[::-1] for index in range(6)], plain.asked, strict=True))
    for length in LENGTHS:
        recalls, nlls = [], []
        for index in range(6):
            context, value = texts[length, index]
            prompt = lm.tokenizer(context, return_tensors="pt")["input_ids"]
            assert (int(prompt[0, 0]) == 1) == bos  # <s>
            targets = lm.tokenizer(value, add_special_tokens=False, return_tensors="pt")["input_ids"]
            assert length - 4 < prompt.shape[1] + targets.shape[1] <= length  # a character may take four bytes
            decoded = lm.model.generate(prompt, max_new_tokens=targets.shape[1], do_sample=False, use_cache=False)
            recalls.append(float(lm.tokenizer.decode(decoded[0, prompt.shape[1] :]) == value))
            dense = lm.model(torch.cat([prompt, targets], 1)).logits.double().log_softmax(-1)
            each = [-float(dense[0, prompt.shape[1] - 1 + i, target]) for i, target in enumerate(targets[0])]
            nlls.append(sum(each) / len(each))
        found = results["results"][TASK]
        assert found[f"recall@{length},none"] == sum(recalls) / 6
        assert found[f"recall_nll@{length},none"] == pytest.approx(sum(nlls) / 6, **CLOSE)
        assert found[f"recall@{length}_stderr,none"] == pytest.approx(mean_stderr(recalls))
        assert found[f"recall_nll@{length}_stderr,none"] == pytest.approx(mean_stderr(nlls), **CLOSE)
        assert [row[f"recall@{length}"] for row in results["samples"][TASK]] == recalls
        if memory == SHORT:
            assert 0 < sum(recalls) < 6, "some right, some wrong, or nothing is compared"


def test_an_untrained_model_is_at_0_and_an_oracle_at_1(llama: Path, corpus: Path) -> None:
    for model, expected in ((llama, 0), (oracle(), 1), (PlainLM(oracle()), 1)):
        measured = values(run(model, [TASK], metadata(corpus)), TASK)
        assert {measured[f"recall@{length}"] for length in LENGTHS} == {expected}
        assert all(measured[f"recall_nll@{length}"] > 0 for length in LENGTHS)


@pytest.mark.parametrize("checkpoint", ["llama", "llama_bos", "gpt2"])
def test_other_backends_give_the_same_numbers(checkpoint: str, corpus: Path, tmp_path: Path) -> None:
    kind = "gpt2" if checkpoint == "gpt2" else "llama"
    folder = save_checkpoint(tmp_path / "model", bos=checkpoint == "llama_bos", model_type=kind, n_positions=300)
    lm = HFLM(str(folder), device="cpu", max_length=300)
    ours, plain = (run(model, [TASK], metadata(corpus), log_samples=True) for model in (lm, PlainLM(lm)))
    assert values(ours, TASK).keys() == values(plain, TASK).keys()
    assert values(ours, TASK) == pytest.approx(values(plain, TASK), **CLOSE)
    for one, other in zip(ours["samples"][TASK], plain["samples"][TASK], strict=True):
        assert one["recall_nll@300"] == pytest.approx(other["recall_nll@300"], **CLOSE)


def test_depths_are_the_means_of_the_samples(corpus: Path) -> None:
    results = run(oracle(memory=SHORT), [TASK], metadata(corpus, num_docs=3), log_samples=True)
    cells = {(cell["length"], cell["depth"]): cell for cell in scored(results)["depths"]}
    assert cells.keys() == {(length, depth) for length in LENGTHS for depth in (0.0, 0.5, 1.0)}
    for (length, depth), cell in cells.items():
        rows = [row for row in results["samples"][TASK] if row["doc"]["depth"] == depth]
        assert cell["n"] == len(rows) == 3
        for name in ("recall", "recall_nll"):
            assert cell[name] == pytest.approx(sum(row[f"{name}@{length}"] for row in rows) / 3)
    assert {cell["recall"] for (_, depth), cell in cells.items() if depth == 1} == {1.0}  # the latest needle
    assert {cell["recall"] for (_, depth), cell in cells.items() if depth == 0} == {0.0}
    assert set(scored(results)["documents"].values()) == {9}
    kept = results["configs"][TASK]["metadata"]
    assert (kept["needles"], kept["depths"]) == (2, 3)
    assert scored(results)["names"] == [f"{corpus.name}:{line}" for line in (3, 4, 5)]
    assert json.loads(json.dumps(scored(results))) == scored(results)


def test_samples_name_the_question_and_not_the_text(corpus: Path) -> None:
    rows = run(oracle(), [TASK], metadata(corpus), log_samples=True)["samples"][TASK]
    assert all(row["doc"]["value"] == row["target"] and row["doc"]["key"] in KEYS for row in rows)
    assert len({row["target"] for row in rows}) == 6
    assert "père" not in json.dumps(rows, default=str, ensure_ascii=False)


@pytest.mark.parametrize("batch_size", [4, "auto"])
def test_batch_size_changes_nothing(batch_size: int | str, llama: Path, ascii_corpus: Path) -> None:
    one = run(llama, [TASK], metadata(ascii_corpus), batch_size=1)
    many = run(llama, [TASK], metadata(ascii_corpus), batch_size=batch_size)
    assert values(many, TASK) == pytest.approx(values(one, TASK), rel=1e-5)
    assert scored(one)["batch_sizes"] == [1]
    assert scored(many)["batch_sizes"] == ([4] if batch_size == 4 else [6])


def test_out_of_memory_halves_the_batch(llama: Path, ascii_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, sizes = retrieval_requests._score_batch, []

    def scarce(model: Any, prompts: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(model, prompts)

    expected = values(run(llama, [TASK], metadata(ascii_corpus)), TASK)
    monkeypatch.setattr(retrieval_requests, "_score_batch", scarce)
    assert values(run(llama, [TASK], metadata(ascii_corpus), batch_size=6), TASK) == pytest.approx(expected, rel=1e-5)
    assert sizes == [6, 3, 1, 2, 3, 1, 2] * 2

    def none(model: Any, prompts: Any) -> Any:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(retrieval_requests, "_score_batch", none)
    with user_error("out_of_memory", "300 tokens"):
        run(llama, [TASK], metadata(ascii_corpus))


def test_limit_is_the_first_probes_with_every_depth(llama: Path, corpus: Path) -> None:
    limited = run(llama, [TASK], metadata(corpus), limit=3)
    assert values(limited, TASK) == pytest.approx(values(run(llama, [TASK], metadata(corpus), limit=3), TASK))
    assert {cell["n"] for cell in scored(limited)["depths"]} == {1}
    assert len(scored(limited)["depths"]) == 6


def test_longshort_eval_draws_a_heat_map_next_to_the_results(llama: Path, ascii_corpus: Path, tmp_path: Path) -> None:
    done = in_process(
        *[
            "eval",
            str(llama),
            "--tasks",
            TASK,
            "--corpus",
            str(ascii_corpus),
            "--lengths",
            "200,300",
            "--num-docs",
            "2",
        ],
        *["--needles", "2", "--depths", "3", "--device", "cpu", "-o", str(tmp_path)],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "recall_nll" in done.stdout
    (results,) = tmp_path.rglob("results_*.json")
    assert scored(json.loads(results.read_text()))["documents"]["recall@300"] == 6
    drawn = list(results.parent.glob("retrieval_*.svg"))
    assert [file.stem.removeprefix("retrieval_") for file in drawn] == [results.stem.removeprefix("results_")]
    assert "0.00" in drawn[0].read_text()


# ---- what cannot be measured


def test_lengths_beyond_the_model_are_skipped_and_named(corpus: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", model_type="gpt2", n_positions=250)
    results = run(folder, [TASK], metadata(corpus))
    assert set(values(results, TASK)) == {"recall@200", "recall_nll@200"}
    assert gaps(results) == {"recall@300": ("length", 2), "recall_nll@300": ("length", 2)}
    assert "250" in scored(results)["left_out"][0]["reason"]
    limited = PlainLM(HFLM(str(folder), device="cpu"))
    limited.max_length = 250
    assert gaps(run(limited, [TASK], metadata(corpus))) == gaps(results)


def test_needles_that_do_not_fit_a_length(llama: Path, corpus: Path) -> None:
    results = run(llama, [TASK], metadata(corpus, lengths=[64, 300]))
    assert gaps(results) == {"recall@64": ("setting", 2), "recall_nll@64": ("setting", 2)}
    assert "2 needles" in scored(results)["left_out"][0]["reason"]
    assert set(values(results, TASK)) == {"recall@300", "recall_nll@300"}


def test_documents_too_short_are_skipped_and_counted(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    texts = ["a word " * 200, "a word " * 20, ""]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    results = run(llama, [TASK], metadata(file, lengths=[200, 900], num_docs=3))
    assert gaps(results) == {"recall@900": ("text", 1), "recall_nll@900": ("text", 1)}
    assert scored(results)["documents"] == {"recall@200": 6, "recall@900": 3, "recall_nll@200": 6, "recall_nll@900": 3}


def test_a_corpus_too_short_for_the_needles_is_reported(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("A few words.")
    results = evaluate_checkpoint({"pretrained": str(llama)}, tasks=[TASK], metadata=metadata(file), device="cpu")
    assert gaps(results)["recall@300"] == ("text", 1)
    (problem,) = problems(results)
    assert TASK in problem


def test_a_document_that_already_has_the_questions(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text(" ".join(f"The access code of the {key} office is 7." for key in KEYS[:-1]) * 2)
    results = run(llama, [TASK], metadata(file, num_docs=1))
    assert gaps(results)["recall@200"] == ("text", 1)
    one = run(llama, [TASK], metadata(file, num_docs=1, needles=1), log_samples=True)
    assert {row["doc"]["key"] for row in one["samples"][TASK]} == {KEYS[-1]}


def test_non_finite_logits_are_no_recall(corpus: Path) -> None:
    lm = oracle()
    lm.model.sharpness = float("nan")
    results = run(lm, [TASK], metadata(corpus))
    assert values(results, TASK) == {}
    assert set(gaps(results).values()) == {("non_finite", 2)}


# ---- who cannot answer, and what is asked wrongly


def test_a_backend_without_token_ids_or_log_likelihoods(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with user_error("unsupported", "DummyLM", TASK, "--model hf"):
        run("dummy", [TASK], metadata(corpus))
    plain = PlainLM(oracle())
    monkeypatch.setattr(plain, "loglikelihood", plain.generate_until)
    with user_error("unsupported", "PlainLM", TASK):
        run(plain, [TASK], metadata(corpus))


def test_a_tokenizer_that_does_not_distinguish_digits(corpus: Path) -> None:
    tokenizer = tiny_tokenizer()
    plain = PlainLM(loaded(lookup_model(len(tokenizer), SHORT)))
    plain.tok_encode = lambda text: tokenizer.encode(text.replace("9", "8"))
    with user_error("unsupported", "8", "9"):
        run(plain, [TASK], metadata(corpus))
    plain.tok_encode = lambda text: tokenizer.encode(text.replace("Lisbon", "Lima"))
    with user_error("unsupported", "Lisbon", "Lima"):
        run(plain, [TASK], metadata(corpus))


def test_a_tokenizer_that_adds_tokens_after_a_text(corpus: Path) -> None:
    lm = oracle()
    plain = PlainLM(lm)
    plain.tok_encode = lambda text: [*lm.tokenizer.encode(text), 2]  # </s>
    assert set(gaps(run(plain, [TASK], metadata(corpus))).values()) == {("unsupported", 2)}


def test_more_needles_than_keys(llama: Path, corpus: Path) -> None:
    with user_error("setting", len(KEYS), len(KEYS) + 1, field="needles"):
        run(llama, [TASK], metadata(corpus, needles=len(KEYS) + 1))


def test_save_tokens_has_no_effect_but_a_warning(llama: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = run(llama, [TASK], metadata(corpus, save_tokens=True))
    assert "longshort_tokens" not in results
    assert any(TASK in record.message and "save_tokens" in record.message for record in caplog.records)
