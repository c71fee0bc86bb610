"""One architecture, scored, and by the obvious dense computation in float64.

The reference has the same weights in double precision, reads each context alone, and takes the log-softmax of its
full logits. Nothing of it is computed with longshort. Two architectures do not run in double precision: for those the
full logits are in float32, and the log-softmax and what follows in float64.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from longshort.errors import UserError
from longshort.scoring import SuffixScores, score_prefix, score_suffixes
from longshort.scoring.causality import causal_length, require_causal
from longshort.scoring.lm_head import lm_head_of
from longshort.scoring.positions import addressable_length, depends_on_length
from tests.slow.architectures.cases import Case
from tests.slow.architectures.tiny import POSITIONS, VOCABULARY, tiny_model

TOKENS = 41
LENGTHS = (20, 40)
NUM_TARGETS = 8
TOLERANCE = 1e-4  # relative, of values of at least `SMALLEST`
SMALLEST = 0.1  # nats
LEAK = 1e-6
COLUMNS = [
    *("case", "model", "outcome", "reason", "positions", "LM head", "passes", "reference"),
    *("nll", "misalignment", "faults"),
]


def tokens_of(seed: int, length: int = TOKENS) -> Tensor:
    """Tokens without a role, [1, length]."""
    return torch.randint(4, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    """[1, T] → [T, V], float64."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits[0].double().log_softmax(-1)


def score(case: Case) -> dict[str, Any]:
    """A row of the table: what came out, and what is wrong with it."""
    start = time.monotonic()
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"case": case.name}
    try:
        reference = tiny_model(case.architecture, torch.float64, **case.changes)
        model = tiny_model(case.architecture, **case.changes)
        model.load_state_dict(reference.state_dict())
    except Exception as error:
        return row | {"outcome": "not built", "reason": _first_line(error), "seconds": _since(start)}
    row["model"] = type(model).__name__
    faults: list[str] = []
    try:
        faults += _outcome(row, model, reference)
    except Exception as error:
        faults.append(f"{type(error).__name__}: {_first_line(error)}")
    return row | {"faults": "; ".join(faults), "seconds": _since(start)}


def _outcome(row: dict[str, Any], model: nn.Module, reference: nn.Module) -> list[str]:
    """Fill the row; return its faults."""
    try:
        require_causal(model)
    except UserError as error:
        row |= {"outcome": "refused", "reason": str(error).split(". ")[0]}
        return [] if _unreadable(model) or _leak(model) > LEAK else ["refused, although it is causal"]
    row["outcome"] = "scored"
    lengths = LENGTHS
    causal = causal_length(model)
    if causal is not None:
        row["reason"] = f"up to {causal} tokens: beyond, its predictions depend on later tokens"
        lengths = (causal // 2, causal - 1)
    tokens = tokens_of(0, lengths[-1] + 1)
    faults = [] if _leak(model, tokens.shape[1]) <= LEAK else ["scored, although it is not causal"]
    row["positions"] = addressable_length(model) or "no end"
    faults += _wrong_end(model, row["positions"])
    nll = score_prefix(model, tokens)
    head = lm_head_of(model)
    row["LM head"] = "full logits" if head.backbone is None else "the model's own" if head.linear is None else "matrix"
    if not _runs(reference, TOKENS):
        reference = model
    row["reference"] = "float64" if reference is not model else "float32"
    expected = -log_probabilities(reference, tokens)[:-1].gather(-1, tokens[0, 1:, None]).squeeze(-1)
    errors = {"nll": error_of(nll[0], expected)}
    dependent = depends_on_length(model, tokens, lengths, nll[:, : lengths[-1] - 1])
    row["passes"] = "one per length" if dependent else "one"
    scores = score_suffixes(model, tokens, lengths, NUM_TARGETS, pairs=[(0, 1)])
    errors["misalignment"] = max(
        error_of(getattr(scores, name)[0], value) for name, value in _dense(reference, tokens, lengths).items()
    )
    row |= {name: f"{error:.0e}" for name, error in errors.items()}
    return faults + [f"{name} is off by {error:.1e}" for name, error in errors.items() if not error <= TOLERANCE]


def error_of(actual: Tensor, expected: Tensor) -> float:
    """Largest relative error, of values of at least `SMALLEST`."""
    if actual.shape != expected.shape:
        return float("inf")
    return float(((actual.double() - expected).abs() / expected.abs().clamp_min(SMALLEST)).max())


def _dense(reference: nn.Module, tokens: Tensor, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """The fields of `SuffixScores`, without its batch dimension."""
    end = tokens.shape[1] - 1
    windows = [tokens[:, end - length : end] for length in lengths]
    log_p = torch.stack([log_probabilities(reference, window)[-NUM_TARGETS:] for window in windows])
    p, targets = log_p.exp(), tokens[0, -NUM_TARGETS:]  # [M, K, V], [K]
    cross_entropy = -(p[:, None] * log_p[None]).sum(-1)  # [M, M, K]
    middle = (p[0] + p[1]) / 2
    kl = [(q * (log_q - middle.log())).sum(-1) for q, log_q in zip(p, log_p, strict=True)]
    fields = {
        "nll": -log_p[:, torch.arange(NUM_TARGETS), targets],
        "entropy": -(p * log_p).sum(-1),
        "cross_entropy": cross_entropy,
        "jeffreys": ((p[0] - p[1]) * (log_p[0] - log_p[1])).sum(-1)[None],
        "js": (kl[0] + kl[1])[None] / 2,
        "agreement": (log_p[0].argmax(-1) == log_p[1].argmax(-1)).double()[None],
    }
    assert set(fields) == set(SuffixScores.__dataclass_fields__)
    return fields


@torch.no_grad()
def _leak(model: nn.Module, length: int = TOKENS) -> float:
    """How much other tokens in the second half of a sequence change the logits in its first half, relative to them."""
    tokens = tokens_of(1, length)
    half = length // 2
    changed = torch.cat([tokens[:, :half], tokens_of(2, length)[:, half:]], dim=1)
    logits, others = (model(input_ids=ids, use_cache=False).logits[0, :half].double() for ids in (tokens, changed))
    return float((logits - others).abs().max() / logits.abs().max())


def _unreadable(model: nn.Module) -> bool:
    return not _runs(model, TOKENS)


def _runs(model: nn.Module, length: int) -> bool:
    try:
        log_probabilities(model, tokens_of(3, length))
    except Exception:
        return False
    return True


def _wrong_end(model: nn.Module, end: int | str) -> list[str]:
    if isinstance(end, int):
        right = _runs(model, end) and not _runs(model, end + 1)
    else:
        right = all(_runs(model, length) for length in (POSITIONS, POSITIONS + 1, 2 * POSITIONS + 2))
    return [] if right else ["positions have another end"]


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _since(start: float) -> float:
    return round(time.monotonic() - start, 1)
