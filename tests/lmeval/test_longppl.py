"""The task `longshort_longppl` against dense logits, LongPPL's package, and resampling of documents."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longshort.corpora import Document, open_corpus, select
from longshort.errors import Kind
from longshort.lmeval import longppl, longppl_task
from longshort.lmeval.evaluate import evaluate_checkpoint, problems
from longshort.lmeval.longppl_pooling import pooled_perplexity, pooled_perplexity_stderr
from longshort.lmeval.table import results_table
from longshort.results import read_results
from longshort.scoring.key_tokens import Criterion
from longshort.testing import save_checkpoint, save_corpus
from tests.errors import assert_one, contains, user_error
from tests.lmeval.conftest import LENGTHS, run, values
from tests.lmeval.reference import Reference
from tests.lmeval.test_longppl_spans import byte_level, random_spans, write

TASK = "longshort_longppl"
CLOSE = {"rel": 1e-4}


@pytest.fixture(scope="module")
def documents(corpus: Path) -> list[Document]:
    return select(open_corpus(str(corpus)), 4, LENGTHS[-1] + 1)


@pytest.fixture(scope="module")
def spans(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random spans in the first 90 characters; the third document has none."""
    generator = random.Random(0)
    of_documents = [random_spans(document.text[:90], generator) for document in documents]
    of_documents[2] = []
    return write(tmp_path_factory.mktemp("spans") / "spans.jsonl", documents, of_documents)


def metadata(corpus: Path, spans: Path | str | None, **more: Any) -> dict[str, Any]:
    given = {"corpus": str(corpus), "lengths": LENGTHS, "num_docs": 4, "train_length": 32} | more
    return given | ({} if spans is None else {"key_spans": str(spans)})


def key_tokens(reference: Reference, text: str, spans: list[tuple[int, int]], length: int) -> list[int]:
    """By the bytes that a token's name stands for."""
    offsets = byte_level(text, reference.tokenizer.convert_ids_to_tokens(reference.text_tokens(text)))[:length]
    return [
        index
        for index, (start, end) in enumerate(offsets)
        if index and any(first <= start and end <= last for first, last in spans)
    ]


def dense(
    folder: Path, documents: list[Document], spans: Path, length: int, per_length: bool = False
) -> list[tuple[float, int]]:
    """For each document the sum of the NLL of its key tokens, without BOS, and their number."""
    reference, found = Reference(folder), []
    rows = [json.loads(line) for line in spans.read_text("utf-8").splitlines()[1:]]
    for document, row in zip(documents, rows, strict=True):
        window = reference.text_tokens(document.text)[: length if per_length else LENGTHS[-1]]
        log_p = reference.log_p(window)
        indices = key_tokens(reference, document.text, row["spans"], length)
        found.append((sum(-float(log_p[index - 1, window[index]]) for index in indices), len(indices)))
    return found


@pytest.mark.parametrize("checkpoint", ["llama", "llama_bos", "gpt2"])
def test_equals_dense_logits(
    checkpoint: str, corpus: Path, documents: list[Document], spans: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(checkpoint)
    results = run(folder, [TASK], metadata(corpus, spans), log_samples=True)
    measured = values(results, TASK)
    for length in LENGTHS:
        found = dense(folder, documents, spans, length)
        total, count = (sum(column) for column in zip(*found, strict=True))
        assert count > 3
        assert measured[f"longppl@{length}"] == pytest.approx(math.exp(total / count), **CLOSE)
        assert measured[f"key_tokens@{length}"] == pytest.approx(count / 4)
        for row, (nll, number) in zip(results["samples"][TASK], found, strict=True):
            assert row[f"key_tokens@{length}"] == number
            if number:
                assert row[f"longppl@{length}"] == pytest.approx((-nll / number, number), **CLOSE)
            else:
                assert f"longppl@{length}" not in row
        numbers = [number for _, number in found]
        stderr = results["results"][TASK][f"key_tokens@{length}_stderr,none"]
        assert stderr == pytest.approx(np.std(numbers, ddof=1) / 2)
    recorded = results["configs"][TASK]["metadata"]["scored"]
    assert recorded["documents"][f"longppl@{LENGTHS[-1]}"] == 3
    assert recorded["documents"][f"key_tokens@{LENGTHS[-1]}"] == 4
    assert recorded["passes"] == "single pass"
    assert recorded["key_spans"]["evaluator"] == {"pretrained": "E"}
    assert recorded["key_spans"]["self_evaluated"] is False
    skipped = next(gap for gap in recorded["left_out"] if gap["metric"] == f"longppl@{LENGTHS[-1]}")
    assert (skipped["kind"], skipped["count"], skipped["names"]) == ("text", 1, [documents[2].name])


def test_one_pass_per_length_where_length_matters(
    tmp_path: Path, corpus: Path, documents: list[Document], spans: Path
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = save_checkpoint(tmp_path / "dynamic", max_position_embeddings=16, rope_parameters=rope)
    results = run(folder, [TASK], metadata(corpus, spans))
    assert results["configs"][TASK]["metadata"]["scored"]["passes"] == "one pass per length"
    for length in LENGTHS:
        total, count = (sum(column) for column in zip(*dense(folder, documents, spans, length, True), strict=True))
        assert values(results, TASK)[f"longppl@{length}"] == pytest.approx(math.exp(total / count), **CLOSE)
    total, count = (sum(column) for column in zip(*dense(folder, documents, spans, LENGTHS[0]), strict=True))
    assert values(results, TASK)[f"longppl@{LENGTHS[0]}"] != pytest.approx(math.exp(total / count), rel=1e-3)


def test_batches_do_not_matter_and_only_documents_with_key_tokens_are_read(
    llama: Path, corpus: Path, spans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = longppl._states
    monkeypatch.setattr(
        longppl, "_states", lambda head, tokens, length: rows.append(len(tokens)) or original(head, tokens, length)
    )
    alone = values(run(llama, [TASK], metadata(corpus, spans)), TASK)
    assert rows == [1, 1, 1]
    rows.clear()
    assert values(run(llama, [TASK], metadata(corpus, spans), batch_size=4), TASK) == pytest.approx(alone, rel=1e-5)
    assert rows == [3]


# ---- pooling

POOLED = [(-2.1, 40), (-3.0, 5), (-1.2, 77), (-2.6, 18), (-0.4, 3), (-2.2, 31), (-1.9, 52)]


def test_pools_by_numbers_of_key_tokens() -> None:
    nll = sum(-mean * count for mean, count in POOLED) / sum(count for _, count in POOLED)
    assert pooled_perplexity(POOLED) == pytest.approx(math.exp(nll))
    assert pooled_perplexity([(-2.0, 3)]) == pytest.approx(math.exp(2))


def test_standard_error_equals_resampling_of_documents() -> None:
    """A jackknife and a bootstrap over documents, for many documents of very different numbers of key tokens."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 400, 300)
    some = [(float(-generator.normal(2 + count / 400, 0.5)), int(count)) for count in counts]
    actual = pooled_perplexity_stderr(some)

    def value(indices: Any) -> float:
        nll = sum(-some[i][0] * some[i][1] for i in indices)
        return math.exp(nll / sum(some[i][1] for i in indices))

    n = len(some)
    left_out = np.array([value([i for i in range(n) if i != j]) for j in range(n)])
    jackknife = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    assert actual == pytest.approx(jackknife, rel=0.01)
    draws = [value(generator.integers(0, n, n)) for _ in range(3000)]
    assert actual == pytest.approx(np.std(draws, ddof=1), rel=0.06)  # 1.3 % from the number of draws
    token_wise = np.std([-mean for mean, count in some for _ in range(count)]) / math.sqrt(counts.sum())
    assert actual > 3 * token_wise * pooled_perplexity(some)  # tokens of a document are not independent


def test_standard_error_in_results(llama: Path, corpus: Path, documents: list[Document], spans: Path) -> None:
    results = run(llama, [TASK], metadata(corpus, spans))
    found = [(nll, n) for nll, n in dense(llama, documents, spans, LENGTHS[-1]) if n]
    total, count = (sum(column) for column in zip(*found, strict=True))
    ratio = total / count
    residuals = sum((nll - ratio * n) ** 2 for nll, n in found)
    expected = math.exp(ratio) * math.sqrt(len(found) / (len(found) - 1) * residuals) / count
    actual = results["results"][TASK][f"longppl@{LENGTHS[-1]}_stderr,none"]
    assert actual == pytest.approx(expected, rel=1e-3)
    without = run(llama, [TASK], metadata(corpus, spans), bootstrap_iters=0)
    assert without["results"][TASK][f"longppl@{LENGTHS[-1]}_stderr,none"] == "N/A"


# ---- what cannot be measured


def gaps_of(results: dict[str, Any]) -> dict[str, tuple[str, int]]:
    left_out = results["configs"][TASK]["metadata"]["scored"]["left_out"]
    return {gap["metric"]: (gap["kind"], gap["count"]) for gap in left_out}


def test_values_that_cannot_be_measured_are_skipped(
    llama: Path, gpt2: Path, tmp_path: Path, corpus: Path, documents: list[Document]
) -> None:
    longest = select(open_corpus(str(corpus)), 4, 4001)
    path = write(tmp_path / "some.jsonl", longest[1:], [[(3, len(document.text))] for document in longest[1:]])
    results = run(llama, [TASK], metadata(corpus, path, lengths=[16, 4000]))
    assert gaps_of(results) == {
        f"{metric}@{length}": kind
        for metric in ("longppl", "key_tokens")
        for length, kind in ((16, ("data", 1)), (4000, ("text", 4)))
    }
    every = [[(3, len(document.text))] for document in documents]
    path = write(tmp_path / "all.jsonl", documents, every)
    results = run(gpt2, [TASK], metadata(corpus, path, lengths=[16, 65]))  # it has 64 positions
    assert gaps_of(results) == {"longppl@65": ("length", 4), "key_tokens@65": ("length", 4)}


def test_what_the_evaluator_has_not_read_is_not_measured(
    llama: Path, tmp_path: Path, corpus: Path, documents: list[Document]
) -> None:
    path = write(tmp_path / "short.jsonl", documents, [[(3, 9)] for _ in documents])
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    reference = Reference(llama)
    for row, document in zip(lines[1:], documents, strict=True):
        names = reference.tokenizer.convert_ids_to_tokens(reference.text_tokens(document.text))
        row["characters"] = byte_level(document.text, names)[LENGTHS[0] + 4][1]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    results = run(llama, [TASK], metadata(corpus, path))
    assert gaps_of(results) == {
        f"{metric}@{length}": ("data", 4) for metric in ("longppl", "key_tokens") for length in LENGTHS[1:]
    }
    assert set(values(results, TASK)) == {"longppl@16", "key_tokens@16"}


def test_spans_without_a_whole_token_are_named(
    llama: Path, tmp_path: Path, corpus: Path, documents: list[Document]
) -> None:
    """Empty spans stand for those of a text or tokenizer that does not fit."""
    path = write(tmp_path / "none.jsonl", documents, [[(9, 9)] for _ in documents])
    results = run(llama, [TASK], metadata(corpus, path, lengths=[16]))
    assert gaps_of(results) == {"longppl@16": ("data", 4)}
    assert values(results, TASK) == {"key_tokens@16": 0}


def test_logits_that_are_not_finite(tmp_path: Path, corpus: Path, spans: Path) -> None:
    folder = save_checkpoint(tmp_path / "nan", sharpness=float("nan"))
    results = run(folder, [TASK], metadata(corpus, spans, lengths=[64]))
    assert gaps_of(results)["longppl@64"][0] in ("non_finite", "text")
    assert set(values(results, TASK)) == {"key_tokens@64"}


# ---- without key_spans


def test_a_glob_skips_it_without_key_spans(llama: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        results = run(llama, [TASK, "longshort_perplexity"], metadata(corpus, None))
    assert set(results["results"]) == {"longshort_perplexity"}
    assert values(results, "longshort_perplexity")
    assert_one(caplog.messages, TASK, "key_spans")


def test_it_is_refused_alone_without_key_spans(llama: Path, corpus: Path) -> None:
    with user_error("setting", TASK, "key_spans", field="key_spans"):
        run(llama, [TASK], metadata(corpus, None))


def test_eval_skips_it_in_a_glob_and_refuses_it_by_name(
    llama: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = metadata(corpus, None, lengths=[16], num_docs=1)
    with caplog.at_level(logging.WARNING):
        results = evaluate_checkpoint({"pretrained": str(llama)}, tasks=["longshort_[lp]*p*"], metadata=given)
    assert set(results["results"]) == {"longshort_perplexity"}
    assert_one(caplog.messages, TASK, "key_spans")
    with user_error("setting", TASK, "key_spans", field="key_spans"):
        evaluate_checkpoint({"pretrained": str(llama)}, tasks=["longshort_perplexity", TASK], metadata=given)


@pytest.mark.parametrize("kind", ["not_found", "data"])
def test_other_tasks_are_evaluated_where_key_spans_cannot_be_used(
    llama: Path, corpus: Path, tmp_path: Path, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is missing, or of another corpus: a problem of the evaluation, not its end; alone it is refused."""
    spans = tmp_path / "spans.jsonl"
    if kind == "data":
        write(spans, [Document("other", "another text")], [[(0, 7)]])
    given = metadata(corpus, spans, lengths=[16], num_docs=1)
    with caplog.at_level(logging.WARNING):
        results = evaluate_checkpoint({"pretrained": str(llama)}, tasks=["longshort_perplexity", TASK], metadata=given)
    assert set(results["results"]) == {"longshort_perplexity"}
    assert values(results, "longshort_perplexity")
    assert_one(caplog.messages, TASK, "skipped", spans)
    assert_one(problems(results), TASK)  # for which `longshort eval` ends with exit code 1
    with user_error(kind, spans, field="key_spans"):
        evaluate_checkpoint({"pretrained": str(llama)}, tasks=[TASK], metadata=given)
    with user_error(kind, spans, field="key_spans"):  # the stock command cannot end with an error after the results
        run(llama, ["longshort_perplexity", TASK], given)


def test_per_token_values_are_those_of_the_other_tasks(llama: Path, corpus: Path, spans: Path) -> None:
    """Whether it runs, runs alone, or is skipped."""
    tasks, saving = [TASK, "longshort_perplexity"], {"lengths": [16], "save_tokens": True, "num_docs": 1}
    for key_spans in (spans, None):
        results = run(llama, tasks, metadata(corpus, key_spans, **saving))
        assert results["longshort_tokens"].rows > 0
    assert "longshort_tokens" not in run(llama, [TASK], metadata(corpus, spans, **saving))


def test_other_backends_are_refused(corpus: Path, spans: Path) -> None:
    with user_error("unsupported", "DummyLM"):
        run("dummy", [TASK], metadata(corpus, spans))


# ---- by the model itself


@pytest.fixture
def short_criterion(monkeypatch: pytest.MonkeyPatch) -> Criterion:
    criterion = Criterion(short=20, stride=8, min_gain=0.2, max_loss=8.0)
    for module in (longppl, longppl_task):
        monkeypatch.setattr(module, "Criterion", lambda: criterion)
    return criterion


def dense_key_tokens(reference: Reference, ids: list[int], criterion: Criterion) -> list[int]:
    """Indices into `ids` of the key tokens of a model that reads its BOS first."""
    whole, found = reference.bos + ids, []
    long = reference.log_p(whole)
    for index in range(criterion.short, len(whole)):
        start = (index - criterion.short) // criterion.stride * criterion.stride
        short = reference.log_p(whole[start : index + 1])
        loss = -float(long[index - 1, whole[index]])
        gain = -float(short[index - 1 - start, whole[index]]) - loss
        if gain > criterion.min_gain and loss < criterion.max_loss:
            found.append(index - len(reference.bos))
    return found


@pytest.mark.parametrize("checkpoint", ["llama", "llama_bos"])
def test_self_evaluation_equals_dense_and_is_marked_everywhere(
    checkpoint: str,
    corpus: Path,
    documents: list[Document],
    short_criterion: Criterion,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = request.getfixturevalue(checkpoint)
    results = evaluate_checkpoint(
        {"pretrained": str(folder)}, tasks=[TASK], metadata=metadata(corpus, "self"), output=tmp_path
    )
    reference = Reference(folder)
    losses = []
    for document in documents:
        ids = reference.text_tokens(document.text)[: LENGTHS[-1]]
        plain, found = reference.log_p(ids), dense_key_tokens(reference, ids, short_criterion)
        offsets = byte_level(
            document.text, reference.tokenizer.convert_ids_to_tokens(reference.text_tokens(document.text))
        )
        for index, (start, end) in enumerate(offsets[: len(ids)]):
            # All tokens of a character count if one of them is a key token.
            if any(offsets[key][0] <= start and end <= offsets[key][1] for key in found):
                losses.append(-float(plain[index - 1, ids[index]]))
    measured = values(results, TASK)
    assert len(losses) > 10
    assert measured[f"key_tokens@{LENGTHS[-1]}"] * 4 == len(losses)
    assert measured[f"longppl@{LENGTHS[-1]}"] == pytest.approx(math.exp(np.mean(losses)), **CLOSE)
    recorded = results["configs"][TASK]["metadata"]
    assert recorded["key_spans"] == "self"
    assert recorded["scored"]["key_spans"]["self_evaluated"] is True
    assert recorded["scored"]["key_spans"]["evaluator"]["pretrained"] == str(folder)
    assert recorded["scored"]["key_spans"]["criterion"]["short"] == short_criterion.short
    results_table(results)
    assert "self-evaluated" in " ".join(capsys.readouterr().out.split())
    table = read_results(tmp_path)
    assert set(table["metric"]) == {"longppl_self", "key_tokens_self"}


def test_the_evaluator_is_named_above_the_table(
    llama: Path, corpus: Path, spans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results_table(run(llama, [TASK], metadata(corpus, spans, lengths=[64])))
    assert contains(" ".join(capsys.readouterr().out.split()), "key tokens by E", "longppl", "key_tokens")


# ---- LongPPL's own package


@pytest.mark.parametrize("evaluator_has_bos", [False, True])
@pytest.mark.parametrize("text", ["ascii", "other characters"])
def test_equals_the_package_for_every_document(
    evaluator_has_bos: bool, text: str, tmp_path: Path, llama: Path, llama_bos: Path
) -> None:
    """Key tokens by one model, LongPPL of another one, through their package and through ours."""
    package = pytest.importorskip("longppl.longppl", reason="no longppl: pip install --no-deps longppl==0.3.0")
    corpus = save_corpus(tmp_path / "corpus.jsonl", num_docs=3, num_bytes=400)
    if text == "ascii":
        corpus.write_text(corpus.read_text("utf-8").encode("ascii", "ignore").decode())
    evaluator = Reference(llama_bos if evaluator_has_bos else llama)
    folder = save_checkpoint(tmp_path / "evaluated", seed=5)
    evaluated = Reference(folder)
    for document in open_corpus(str(corpus)):
        length = len(evaluated.text_tokens(document.text))
        slices = tmp_path / "slice_0.txt"
        expected = package.compute_longppl(
            document.text,
            evaluated.model,
            evaluator.model,
            evaluated.tokenizer,
            evaluator.tokenizer,
            save_path=str(slices),
            trunc_len=20,
            sliding_window=8,
            alpha=0.1,
            beta=-8,
        )
        alone = tmp_path / "one.jsonl"
        alone.write_text(json.dumps({"text": document.text}) + "\n", "utf-8")
        measured = values(run(folder, [TASK], metadata(alone, slices, lengths=[length], num_docs=1)), TASK)
        assert measured[f"key_tokens@{length}"] == expected["n_key_token"]
        assert expected["n_key_token"] > 10
        assert measured[f"longppl@{length}"] == pytest.approx(float(expected["longppl"]), rel=1e-4)
