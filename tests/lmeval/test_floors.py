"""The numerical floor of the divergences in the results of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from longshort.lmeval import reading, requests
from longshort.scoring.offsets import FLOOR_DOCUMENTS, draw_offsets
from longshort.testing import save_checkpoint
from tests.lmeval.conftest import LENGTHS, run, values

TASK = "longshort_misalignment"
FLOORS = [f"{name}@{length}" for name in ("jeffreys_floor", "js_floor") for length in LENGTHS]
NUM_DOCS = FLOOR_DOCUMENTS + 1


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More documents than floors are measured of."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    documents = [" ".join(str(word * step % 97) for word in range(300)) for step in range(3, 3 + NUM_DOCS)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    return path


def evaluated(model: Path, texts: Path, dtype: str = "bfloat16", **metadata: Any) -> dict[str, Any]:
    settings = {"corpus": str(texts), "lengths": LENGTHS, "num_docs": NUM_DOCS} | metadata
    return run(model, [TASK], settings, model_args={"dtype": dtype}, log_samples=True)


def scored(results: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = results["configs"][TASK]["metadata"]["scored"]
    return found


def dense_floors(model: Path, texts: Path, dtype: torch.dtype, length: int, draws: int) -> list[tuple[float, float]]:
    """Jeffreys and Jensen-Shannon of two readings of each document's shorter contexts, whole logits in float64."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    special = tokenizer("")["input_ids"]
    rows = []
    for index, line in enumerate(texts.read_text().splitlines()[:FLOOR_DOCUMENTS]):
        tokens = tokenizer(json.loads(line)["text"])["input_ids"][: LENGTHS[-1] + 1]
        by_draw = []
        for offset in draw_offsets(0, index, length, draws):
            window = torch.tensor([tokens[len(tokens) - 1 - length + offset : -1]])
            window[:, : len(special)] = torch.tensor(special, dtype=torch.long)
            ids = torch.arange(length - offset)[None]
            with torch.no_grad():
                hidden = [causal_lm.model(window, position_ids=ids + shift)[0].double() for shift in (0, offset)]
            p, q = ((states @ causal_lm.lm_head.weight.double().T).log_softmax(-1) for states in hidden)
            middle = ((p.exp() + q.exp()) / 2).log()
            jeffreys = ((p.exp() - q.exp()) * (p - q)).sum(-1)
            js = (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1) / 2
            in_range = [j for j in range(length - offset) if j + 1 >= length / 2]
            by_draw.append([float(divergence[0, in_range].mean()) for divergence in (jeffreys, js)])
        rows.append(tuple(np.mean(by_draw, axis=0)))
    return rows


@pytest.mark.parametrize(("bos", "dtype", "draws"), [(False, "bfloat16", 1), (True, "float16", 3)])
def test_floors_equal_the_dense_computation(bos: bool, dtype: str, draws: int, texts: Path, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", bos=bos)
    results = evaluated(model, texts, dtype, draws=draws)
    found = values(results, TASK)
    for length in LENGTHS:
        expected = dense_floors(model, texts, getattr(torch, dtype), length, draws)
        for name, of_documents in zip(("jeffreys_floor", "js_floor"), zip(*expected, strict=True), strict=True):
            mean = float(np.mean(of_documents))
            assert mean > 0
            assert found[f"{name}@{length}"] == pytest.approx(mean, rel=0.03)
            error = float(np.std(of_documents, ddof=1)) / math.sqrt(FLOOR_DOCUMENTS)
            assert results["results"][TASK][f"{name}@{length}_stderr,none"] == pytest.approx(error, rel=0.1)
    assert {scored(results)["documents"][metric] for metric in FLOORS} == {FLOOR_DOCUMENTS}
    assert scored(results)["left_out"] == []


def test_in_float32_there_is_no_floor_and_no_note(llama: Path, texts: Path) -> None:
    results = evaluated(llama, texts, "float32")
    assert not [name for name in results["results"][TASK] if "floor" in name]
    assert scored(results)["left_out"] == []
    assert not set(FLOORS) & scored(results)["documents"].keys()


def test_other_metrics_do_not_change(llama: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_floors = values(evaluated(llama, texts), TASK)
    monkeypatch.setattr(requests, "FLOOR_DOCUMENTS", 0)
    without = values(evaluated(llama, texts), TASK)
    assert without == {name: value for name, value in with_floors.items() if name not in FLOORS}
    assert set(FLOORS) <= with_floors.keys()


def test_a_missing_floor_has_a_reason(gpt2: Path, texts: Path) -> None:
    results = evaluated(gpt2, texts)
    gaps = scored(results)["left_out"]
    assert {gap["metric"] for gap in gaps} == set(FLOORS)
    assert {(gap["kind"], gap["count"]) for gap in gaps} == {("unsupported", FLOOR_DOCUMENTS)}
    assert all("position ids" in gap["reason"] for gap in gaps)
    assert "jeffreys@16" in values(results, TASK)


def test_documents_that_are_too_short_have_no_floor(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": "1 2 3 " * size}) for size in (40, 7, 40)))
    results = evaluated(llama, path, num_docs=3)
    gaps = {(gap["metric"], gap["kind"], gap["count"]) for gap in scored(results)["left_out"]}
    assert {gap for gap in gaps if "floor" in gap[0]} == {
        (f"{name}@64", "text", 1) for name in ("jeffreys_floor", "js_floor")
    }
    assert scored(results)["documents"]["js_floor@64"] == 2


def test_batches_and_halves_of_them_have_the_same_floors(
    llama: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = values(evaluated(llama, texts), TASK)
    read_window, failed = reading.read_window, []

    def too_little_memory(lm_head: Any, tokens: torch.Tensor, *arguments: Any, **others: Any) -> torch.Tensor:
        if len(tokens) > 2:
            failed.append(len(tokens))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return read_window(lm_head, tokens, *arguments, **others)

    monkeypatch.setattr(reading, "read_window", too_little_memory)
    metadata = {"corpus": str(texts), "lengths": LENGTHS, "num_docs": NUM_DOCS}
    halved = run(llama, [TASK], metadata, model_args={"dtype": "bfloat16"}, batch_size=NUM_DOCS)
    assert failed
    for metric in FLOORS:  # rows of a batch may be rounded otherwise, which is what the floor measures
        assert values(halved, TASK)[metric] == pytest.approx(alone[metric], rel=0.3)
