"""The tasks through lm-eval's evaluator, against the dense reference."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.metrics import mean_stderr
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from longshort.corpora import Document, fingerprint, open_corpus, select
from longshort.lmeval import reading, requests
from longshort.scoring.offsets import draw_offsets
from longshort.testing import save_checkpoint
from tests.errors import assert_one, contains, user_error
from tests.lmeval.conftest import LENGTHS, run, values
from tests.lmeval.reference import Reference

BOTH = ["longshort_perplexity", "longshort_misalignment"]
CLOSE = {"rel": 1e-4, "abs": 1e-5}


def metadata(corpus: Path, **more: Any) -> dict[str, Any]:
    return {"corpus": str(corpus), "lengths": LENGTHS, "num_docs": 4, "train_length": 32} | more


def documents(corpus: Path, count: int = 4) -> list[Document]:
    return select(open_corpus(str(corpus)), count, LENGTHS[-1] + 1)


@pytest.mark.parametrize("checkpoint", ["llama", "llama_bos"])
def test_every_metric_equals_the_dense_reference(checkpoint: str, corpus: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(checkpoint)
    results = run(folder, BOTH, metadata(corpus, tail_tokens=5, seed=3, draws=2))
    reference, texts = Reference(folder), [document.text for document in documents(corpus)]
    measured = values(results, "longshort_perplexity")
    for length in LENGTHS:
        prefix = [reference.prefix(text, length) for text in texts]
        tail = [reference.tail(text, length, LENGTHS[-1], 5) for text in texts]
        for name, pairs in (("", prefix), ("_tail", tail)):
            mean_nll = sum(nll for nll, _ in pairs) / len(texts)
            assert measured[f"ppl{name}@{length}"] == pytest.approx(math.exp(mean_nll), **CLOSE)
            assert measured[f"bpb{name}@{length}"] == pytest.approx(sum(b for _, b in pairs) / len(texts), **CLOSE)
        accuracy = sum(reference.accuracy(text, length, LENGTHS[-1], 5) for text in texts) / len(texts)
        assert measured[f"accuracy_tail@{length}"] == pytest.approx(accuracy)
    measured = values(results, "longshort_misalignment")
    for length in LENGTHS:
        rows = [
            reference.pair(text, LENGTHS[-1], length, length - offset)
            for index, text in enumerate(texts)
            for offset in draw_offsets(3, index, length, draws=2)
        ]
        for name in rows[0]:
            expected = sum(row[name] for row in rows) / len(rows)
            assert measured[f"{name}@{length}"] == pytest.approx(expected, **CLOSE), name


@pytest.mark.parametrize("checkpoint", ["llama", "llama_bos"])
def test_the_matrices_between_lengths_equal_the_dense_reference(
    checkpoint: str, corpus: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(checkpoint)
    results = run(folder, BOTH[:1], metadata(corpus, tail_tokens=5), batch_size=2)
    reference, texts = Reference(folder), [document.text for document in documents(corpus)]
    expected = {}
    for first, second in itertools.combinations_with_replacement(LENGTHS, 2):
        rows = [reference.between(text, first, second, LENGTHS[-1], 5) for text in texts]
        expected[f"sce_between@{first}-{second}"] = [sce for sce, _ in rows]
        if first < second:
            expected[f"jeffreys_between@{first}-{second}"] = [jeffreys for _, jeffreys in rows]
    measured = {name: value for name, value in values(results, BOTH[0]).items() if "between" in name}
    assert measured == pytest.approx({name: sum(rows) / len(rows) for name, rows in expected.items()}, **CLOSE)
    for name, rows in expected.items():
        assert results["results"][BOTH[0]][f"{name}_stderr,none"] == pytest.approx(mean_stderr(rows), **CLOSE)
        assert results["configs"][BOTH[0]]["metadata"]["scored"]["documents"][name] == 4
    for length in LENGTHS[1:]:
        pair = f"{LENGTHS[0]}-{length}"
        entropies = sum(measured[f"sce_between@{one}-{one}"] for one in (LENGTHS[0], length)) / 2
        assert measured[f"sce_between@{pair}"] == pytest.approx(entropies + measured[f"jeffreys_between@{pair}"])
        assert measured[f"jeffreys_between@{pair}"] > 0.01


def test_fixed_targets_that_are_most_probable(corpus: Path, tmp_path: Path) -> None:
    """A model that expects the most frequent byte, a space, everywhere: the share is that of spaces."""
    folder = save_checkpoint(tmp_path / "frequent")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.encode(document.text, add_special_tokens=False)[:65] for document in documents(corpus)]
    counts = torch.bincount(torch.tensor([row[-8:] for row in texts]).flatten())
    expected = int(counts.argmax())
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[expected] = 5.0
    lm = HFLM(model, tokenizer=tokenizer, device="cpu")
    measured = values(run(lm, BOTH[:1], metadata(corpus)), BOTH[0])
    share = float(counts.max() / counts.sum())
    assert 0 < share < 1
    assert all(measured[f"accuracy_tail@{length}"] == pytest.approx(share) for length in LENGTHS)


def test_sce_is_entropy_plus_jeffreys_and_js_is_bounded(llama: Path, corpus: Path) -> None:
    measured = values(run(llama, BOTH[1:], metadata(corpus)), BOTH[1])
    for length in LENGTHS:
        parts = measured[f"entropy@{length}"] + measured[f"jeffreys@{length}"]
        assert measured[f"sce@{length}"] == pytest.approx(parts, rel=1e-5)
        assert measured[f"jeffreys@{length}"] > 0.01
        assert 0 < measured[f"js@{length}"] < math.log(2)


def test_aggregates_and_standard_errors_follow_from_the_samples(llama: Path, corpus: Path, tmp_path: Path) -> None:
    results = run(llama, BOTH, metadata(corpus), log_samples=True)
    for task in BOTH:
        rows = json.loads(json.dumps(results["samples"][task], default=str))
        for metric, value in values(results, task).items():
            logged = [row[metric] for row in rows]
            stderr = results["results"][task][f"{metric}_stderr,none"]
            if metric.startswith("ppl"):
                assert value == pytest.approx(math.exp(-sum(logged) / len(logged)))
                resamples = itertools.product(logged, repeat=len(logged))
                exact = pstdev(math.exp(-sum(resample) / len(resample)) for resample in resamples)
                assert stderr == pytest.approx(exact, rel=0.01)
            else:
                assert value == pytest.approx(sum(logged) / len(logged))
                assert stderr == pytest.approx(mean_stderr(logged))
        assert "père" not in json.dumps(rows, ensure_ascii=False), "samples name the document, they do not repeat it"


def test_results_record_what_was_scored(llama: Path, corpus: Path) -> None:
    results = run(llama, BOTH, metadata(corpus, family="tiny"), limit=3)
    for task in BOTH:
        kept = results["configs"][task]["metadata"]
        assert kept["lengths"] == LENGTHS
        assert (kept["tail_tokens"], kept["train_length"], kept["num_docs"], kept["seed"]) == (8, 32, 4, 0)
        assert (kept["corpus"], kept["family"], kept["pretrained"]) == (str(corpus), "tiny", str(llama))
        scored = kept["scored"]
        assert scored["sha256"] == fingerprint(documents(corpus)[:3])
        assert scored["source"] == str(corpus)
        assert set(scored["documents"].values()) == {3}
        assert scored["left_out"] == []
    assert results["configs"][BOTH[0]]["metadata"]["scored"]["passes"] == "single pass"


@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_batch_size_changes_nothing(batch_size: int | str, llama: Path, corpus: Path) -> None:
    one = run(llama, BOTH, metadata(corpus))
    many = run(llama, BOTH, metadata(corpus), batch_size=batch_size)
    for task in BOTH:
        assert values(many, task) == pytest.approx(values(one, task), rel=1e-5)


def test_limit_is_the_first_documents(llama: Path, corpus: Path) -> None:
    limited = run(llama, BOTH, metadata(corpus), limit=2)
    fewer = run(llama, BOTH, metadata(corpus, num_docs=2))
    for task in BOTH:
        assert values(limited, task) == pytest.approx(values(fewer, task))


def test_dtype_and_parallelize(llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # lm-eval makes ./offload
    plain = run(llama, BOTH, metadata(corpus))
    spread = run(llama, BOTH, metadata(corpus), model_args={"parallelize": True})
    half = run(llama, BOTH, metadata(corpus), model_args={"dtype": "bfloat16"})
    for task in BOTH:
        assert values(spread, task) == pytest.approx(values(plain, task), rel=1e-5)
        for metric in ("ppl@64", "bpb_tail@32", "sce@32", "entropy@64"):
            if metric in values(plain, task):
                assert values(half, task)[metric] == pytest.approx(values(plain, task)[metric], rel=0.05)


def test_both_tasks_tokenize_each_document_once(llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = transformers.PreTrainedTokenizerFast._encode_plus

    def counting(self: Any, text: str, *args: Any, **kwargs: Any) -> Any:
        if len(text) > 100:
            calls.append(text)
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "_encode_plus", counting)
    run(llama, BOTH, metadata(corpus))
    assert len(calls) == 4


# ---- what cannot be measured


def gaps(results: dict[str, Any], task: str) -> dict[str, tuple[str, int]]:
    """Metric to the failure category and the number of documents without a value."""
    found = results["configs"][task]["metadata"]["scored"]["left_out"]
    assert all(gap["reason"] and len(gap["names"]) == gap["count"] for gap in found)
    return {gap["metric"]: (gap["kind"], gap["count"]) for gap in found}


def reasons(results: dict[str, Any], task: str) -> set[str]:
    return {gap["reason"] for gap in results["configs"][task]["metadata"]["scored"]["left_out"]}


def test_lengths_beyond_the_position_table(gpt2: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = run(gpt2, BOTH, metadata(corpus, lengths=[16, 64, 128]))
    for task in BOTH:
        assert not any(metric.endswith("@128") for metric in values(results, task))
        found = gaps(results, task)
        assert {metric.partition("@")[2] for metric in found} == {"128"}
        assert set(found.values()) == {("length", 4)}
        assert all("64 positions" in reason for reason in reasons(results, task))
    assert "sce@128" in caplog.text
    assert any(contains(message, "sce@128", "4 of 4") for message in caplog.messages)
    # The fixed-target view keeps its targets: those after the 128 tokens that this model cannot read.
    reference = Reference(gpt2)
    tails = [reference.tail(document.text, 64, 128, 8)[0] for document in select(open_corpus(str(corpus)), 4, 129)]
    expected = math.exp(sum(tails) / 4)
    assert values(results, BOTH[0])["ppl_tail@64"] == pytest.approx(expected, **CLOSE)


def test_lengths_beyond_a_table_of_sinusoids(corpus: Path, tmp_path: Path) -> None:
    shape = {"n_positions": 64, "n_embd": 16, "dff": 16, "n_layer": 1, "n_head": 2}
    folder = save_checkpoint(tmp_path / "ctrl", model_type="ctrl", **shape)
    results = run(folder, BOTH[:1], metadata(corpus, lengths=[16, 64, 65]))
    found = gaps(results, BOTH[0])
    assert {metric.partition("@")[2] for metric in found} == {"65"}
    assert set(found.values()) == {("length", 4)}
    assert all("64 positions" in reason for reason in reasons(results, BOTH[0]))
    reference = Reference(folder)
    texts = [document.text for document in select(open_corpus(str(corpus)), 4, 66)]
    expected = math.exp(sum(reference.prefix(text, 64)[0] for text in texts) / 4)
    assert values(results, BOTH[0])["ppl@64"] == pytest.approx(expected, **CLOSE)


def test_lengths_beyond_which_a_model_is_not_causal(corpus: Path, tmp_path: Path) -> None:
    shape = {
        "is_decoder": True, "max_position_embeddings": 64, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (8, 8),
        "hidden_size": 16, "attention_head_size": 8, "num_attention_heads": 2, "feed_forward_size": 16,
        "attn_layers": ["lsh"], "lsh_attn_chunk_length": 16, "num_buckets": 4,
    }  # fmt: skip
    folder = save_checkpoint(tmp_path / "reformer", model_type="reformer", **shape)
    results = run(folder, BOTH[:1], metadata(corpus, lengths=[12, 16, 48]))
    found = gaps(results, BOTH[0])
    assert {metric.partition("@")[2] for metric in found} == {"48"}
    assert set(found.values()) == {("length", 4)}
    assert all(contains(reason, 16) for reason in reasons(results, BOTH[0]))
    assert {"ppl@12", "ppl@16"} <= set(values(results, BOTH[0]))


def test_lengths_beyond_a_given_max_length(llama: Path, corpus: Path) -> None:
    results = run(llama, BOTH, metadata(corpus), model_args={"max_length": 32})
    whole = run(llama, BOTH, metadata(corpus))
    for task in BOTH:
        beyond = ("@64", "-64")
        expected = {metric: value for metric, value in values(whole, task).items() if not metric.endswith(beyond)}
        assert values(results, task) == pytest.approx(expected)
        assert set(gaps(results, task).values()) == {("length", 4)}
        assert all("max_length=32" in reason for reason in reasons(results, task))


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Documents of 20, 64, 65 and 40 bytes: one token each, but for the BOS-less byte vocabulary's merges."""
    file = tmp_path / "uneven.jsonl"
    file.write_text("\n".join(json.dumps({"text": "x" * size}) for size in (20, 64, 65, 40)))
    return file


def test_documents_too_short(llama: Path, uneven: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = run(llama, BOTH, metadata(uneven))
    scored = results["configs"][BOTH[0]]["metadata"]["scored"]["documents"]
    assert (scored["ppl@16"], scored["ppl@32"], scored["ppl@64"], scored["ppl_tail@16"]) == (4, 3, 2, 1)
    scored = results["configs"][BOTH[1]]["metadata"]["scored"]["documents"]
    assert (scored["sce@16"], scored["sce@32"], scored["sce@64"]) == (4, 3, 1)
    assert gaps(results, BOTH[0])["ppl@64"] == ("text", 2)
    assert gaps(results, BOTH[1])["sce@64"] == ("text", 3)
    assert_one(caplog.messages, "ppl@32", "bpb@32", "1 of 4", "uneven.jsonl:1")
    alone = Reference(llama).prefix("x" * 65, 64)[0], Reference(llama).prefix("x" * 64, 64)[0]
    assert values(results, BOTH[0])["ppl@64"] == pytest.approx(math.exp(sum(alone) / 2), **CLOSE)


def test_a_length_that_no_document_has_is_absent(llama: Path, uneven: Path) -> None:
    results = run(llama, BOTH, metadata(uneven, lengths=[16, 200]))
    assert "ppl@16" in values(results, BOTH[0])
    assert "sce@16" in values(results, BOTH[1])
    assert not any("@200" in key for task in BOTH for key in results["results"][task])
    assert not any("tail" in key or "between" in key for key in results["results"][BOTH[0]])


def test_nan_weights_give_no_value(corpus: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "broken")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    model.save_pretrained(folder)
    results = run(folder, BOTH, metadata(corpus))
    for task in BOTH:
        assert values(results, task) == {}
        assert set(gaps(results, task).values()) == {("non_finite", 4)}


def test_nll_too_great_for_a_perplexity(corpus: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "sharp")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight *= 1e5
    model.save_pretrained(folder)
    results = run(folder, BOTH, metadata(corpus))
    measured = values(results, BOTH[0])
    assert not any(metric.startswith("ppl") for metric in measured)
    assert measured["bpb@64"] > 1000
    assert gaps(results, BOTH[0])["ppl@64"] == ("error", 4)


def test_positions_that_depend_on_length_get_a_pass_each(corpus: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = save_checkpoint(tmp_path / "dynamic", max_position_embeddings=24, rope_parameters=rope)
    results = run(folder, BOTH[:1], metadata(corpus))
    assert results["configs"][BOTH[0]]["metadata"]["scored"]["passes"] == "one pass per length"
    for length in LENGTHS:
        # A fresh model for each document: transformers' own keeps what longer ones did to its frequencies.
        nlls = [Reference(folder).prefix(document.text, length)[0] for document in documents(corpus)]
        expected = math.exp(sum(nlls) / 4)
        assert values(results, BOTH[0])[f"ppl@{length}"] == pytest.approx(expected, **CLOSE)


def test_how_prefixes_are_read_is_tried_again_at_other_lengths(corpus: Path, tmp_path: Path) -> None:
    """One model, evaluated twice: up to its window a pass serves all lengths, beyond it none does."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = save_checkpoint(tmp_path / "dynamic", max_position_embeddings=32, rope_parameters=rope)
    fresh = values(run(folder, BOTH[:1], metadata(corpus)), BOTH[0])
    lm = HFLM(str(folder), device="cpu", dtype="float32")
    for lengths, passes in (([16, 32], "single pass"), (LENGTHS, "one pass per length")):
        results = run(lm, BOTH[:1], metadata(corpus, lengths=lengths))
        assert results["configs"][BOTH[0]]["metadata"]["scored"]["passes"] == passes
    assert values(results, BOTH[0]) == pytest.approx(fresh)


def test_lengths_between_those_that_were_tried_are_tried_too(
    llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def tries(model: Any, tokens: Any, lengths: list[int], nll: Any) -> bool:
        tried.append(list(lengths))
        return False

    monkeypatch.setattr(reading, "depends_on_length", tries)
    lm = HFLM(str(llama), device="cpu", dtype="float32")
    for lengths in ([16, 64], [16, 32, 64], [32, 64], [16, 32, 64]):
        results = run(lm, BOTH, metadata(corpus, lengths=lengths))
    assert tried == [[16, 64], [16, 32, 64]]
    assert "passes" not in results["configs"][BOTH[1]]["metadata"]["scored"]


def test_out_of_memory_halves_the_batch(
    llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = requests._measure

    def scarce(backend: Any, documents: Any) -> Any:
        if len(documents) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(backend, documents)

    expected = values(run(llama, BOTH[:1], metadata(corpus)), BOTH[0])
    monkeypatch.setattr(requests, "_measure", scarce)
    assert values(run(llama, BOTH[:1], metadata(corpus), batch_size=4), BOTH[0]) == pytest.approx(expected)
    assert "batch size 4" in caplog.text

    def none(backend: Any, documents: Any) -> Any:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(requests, "_measure", none)
    with user_error("out_of_memory", "65 tokens"):
        run(llama, BOTH[:1], metadata(corpus))


# ---- who cannot answer, and what is asked wrongly


@pytest.mark.parametrize("task", BOTH)
def test_another_backend_says_which_request_it_cannot_answer(task: str, corpus: Path) -> None:
    with user_error("unsupported", "DummyLM", task, "--model hf"):
        run("dummy", [task], metadata(corpus))


@pytest.mark.parametrize(
    ("wrong", "facts"),
    [
        ({"lengths": []}, ()),
        ({"lengths": [4, 64]}, (4, 8)),
        ({"lengths": "32,long"}, ("long",)),
        ({"lengths": [32.5]}, (32.5,)),
        ({"num_docs": 0}, (0, 1)),
        ({"tail_tokens": 16}, (16,)),
        ({"seed": -1}, (-1,)),
    ],
)
def test_wrong_settings_are_refused(
    llama: Path, corpus: Path, wrong: dict[str, Any], facts: tuple[object, ...]
) -> None:
    (name,) = wrong
    with user_error("setting", name, *facts, field=name):
        run(llama, BOTH[:1], metadata(corpus) | wrong)


def test_more_special_tokens_than_half_of_a_context_are_refused(llama_bos: Path, corpus: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_bos)
    bos = tokenizer.convert_ids_to_tokens(1)
    template = TemplateProcessing(single=" ".join([bos] * 4) + " $A", special_tokens=[(bos, 1)])
    tokenizer.backend_tokenizer.post_processor = template
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_bos)
    with user_error("unsupported", 4, "special tokens"):
        run(HFLM(model, tokenizer=tokenizer, device="cpu"), BOTH, metadata(corpus))


def test_a_corpus_that_does_not_exist_is_refused(llama: Path) -> None:
    with user_error("not_found", "'nowhere.txt'"):
        run(llama, BOTH[:1], metadata(Path("nowhere.txt")))


def test_a_misspelled_setting_is_pointed_out(llama: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(llama, BOTH[:1], metadata(corpus) | {"num_doc": 2}, limit=1)
    assert any("'num_doc'" in line and "'num_docs'" in line for line in caplog.messages)
