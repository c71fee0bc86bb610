"""The estimate of misalignment against the full sum over all pairs of context lengths in range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from longshort.lmeval.documents import EncodedDocument
from longshort.lmeval.reading import Wanted, measure_documents
from longshort.scoring.offsets import draw_offsets
from longshort.settings import settings_from
from tests.models import random_tokens, tiny_model

L = 16
HALF = L // 2
POPULATION = 400  # documents
Values = NDArray[np.float64]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def documents() -> Tensor:
    """Documents that differ: the first tokens of each are drawn from a part of the vocabulary."""
    tokens = random_tokens(POPULATION, L + 1, seed=3)
    return torch.where(torch.arange(POPULATION)[:, None] % 3 == 0, tokens % 7, tokens)


@pytest.fixture(scope="module")
def by_context(model: nn.Module, documents: Tensor) -> dict[tuple[int, int], Tensor]:
    """Log-probabilities [documents, V] in float64 after the context from `start` to `end`, dense."""
    found = {}
    with torch.no_grad():
        for start in range(HALF + 1):
            log_p = model(documents[:, start:L]).logits.double().log_softmax(-1)
            found |= {(start, start + position): log_p[:, position] for position in range(L - start)}
    return found


def pair_values(by_context: dict[tuple[int, int], Tensor]) -> dict[int, dict[str, Values]]:
    """Offset to the values of its pairs, [pairs, documents]: both contexts have 8 to 16 tokens and the same end."""
    found: dict[int, dict[str, list[Tensor]]] = {}
    for offset in range(1, HALF + 1):
        rows = found.setdefault(offset, {"sce": [], "jeffreys": []})
        for end in range(L):
            if end - offset + 1 >= L / 2:
                p, q = by_context[0, end], by_context[offset, end]
                rows["sce"].append(-(p.exp() * q + q.exp() * p).sum(-1))
                rows["jeffreys"].append(((p.exp() - q.exp()) * (p - q)).sum(-1))
    return {e: {name: torch.stack(rows).numpy() for name, rows in of.items()} for e, of in found.items()}


@pytest.fixture(scope="module")
def pairs(by_context: dict[tuple[int, int], Tensor]) -> dict[int, dict[str, Values]]:
    return pair_values(by_context)


@pytest.fixture(scope="module", params=["sce", "jeffreys"])
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def full_sum(pairs: dict[int, dict[str, Values]], metric: str) -> Values:
    """[documents], the mean over all pairs of two context lengths."""
    return np.concatenate([of[metric] for of in pairs.values()]).mean(axis=0)  # type: ignore[no-any-return]  # as NumPy types concatenate of Any


def estimates(pairs: dict[int, dict[str, Values]], metric: str, chosen: Values, seed: int, draws: int) -> Values:
    """[documents chosen], as one run estimates them."""
    means = {offset: of[metric].mean(axis=0) for offset, of in pairs.items()}
    return np.array(
        [
            np.mean([means[e][document] for e in draw_offsets(seed, index, L, draws)])
            for index, document in enumerate(chosen)
        ]
    )


def test_there_are_as_many_pairs_as_the_definition_has(pairs: dict[int, dict[str, Values]]) -> None:
    assert {offset: len(of["sce"]) for offset, of in pairs.items()} == {e: HALF - e + 1 for e in range(1, HALF + 1)}


def test_a_document_is_measured_as_the_mean_over_its_offsets(
    model: nn.Module, documents: Tensor, pairs: dict[int, dict[str, Values]], metric: str
) -> None:
    for document, offsets in ((0, [1]), (1, [5]), (2, [2, 2, 7])):
        seconds = [L - offset for offset in offsets]
        encoded = EncodedDocument("document", documents[document], np.arange(1.0, L + 2))
        settings = settings_from({"lengths": [L]})
        wanted = Wanted(settings, [L], perplexity=False, seconds=[{L: seconds}])
        (measured,) = measure_documents(model, [encoded], [], wanted)
        expected = np.mean([pairs[offset][metric][:, document].mean() for offset in offsets])
        assert measured.values[f"{metric}@{L}"] == pytest.approx(expected, rel=1e-4)
        assert measured.second_lengths == {L: seconds}


@pytest.mark.parametrize("draws", [1, 3])
def test_the_expectation_is_the_mean_over_all_pairs(
    pairs: dict[int, dict[str, Values]], metric: str, draws: int
) -> None:
    chosen = np.arange(12)
    runs = np.array([estimates(pairs, metric, chosen, seed, draws).mean() for seed in range(400)])
    expected = full_sum(pairs, metric)[chosen].mean()
    assert abs(runs.mean() - expected) < 4 * runs.std() / len(runs) ** 0.5
    uniform = np.mean([of[metric][:, chosen].mean() for of in pairs.values()])  # of a uniform offset
    assert abs(runs.mean() - expected) < abs(uniform - expected) / 4


@pytest.mark.parametrize("draws", [1, 2])
def test_the_standard_error_covers_the_value_of_all_documents(
    pairs: dict[int, dict[str, Values]], metric: str, draws: int
) -> None:
    """Runs on documents drawn at random: a 95 % interval from the standard error over documents holds the truth."""
    truth = full_sum(pairs, metric).mean()
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        run = estimates(pairs, metric, generator.choice(POPULATION, 24, replace=False), seed, draws)
        half_width = stats.t.ppf(0.975, len(run) - 1) * run.std(ddof=1) / len(run) ** 0.5
        covered += abs(run.mean() - truth) <= half_width
    assert 0.92 <= covered / 400 <= 0.985
