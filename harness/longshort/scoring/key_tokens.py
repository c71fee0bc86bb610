"""Key tokens of LongPPL: those that a model predicts well, and much better with a long context than with a short one.

Source: Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?", ICLR 2025, and their package
`longppl`, which holds dense logits [N × V]; here only the positions that are needed go through the LM head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from longshort.errors import UserError
from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.lm_head import LMHead, lm_head_of
from longshort.scoring.prefix import nll_of_states


@dataclass(frozen=True)
class Criterion:
    """When a token is a key token; the defaults are those of LongPPL."""

    short: int = 4096  # K: least length of the short context, in tokens; the first K tokens are never key tokens
    stride: int = 1024  # d: tokens that share a window, so that short contexts have K to K + d - 1 tokens
    min_gain: float = 2.0  # α: a key token's NLL with the short context exceeds that with the long one by more, nats
    max_loss: float = 2.0  # -β: its NLL with the long context is less, nats


@torch.no_grad()
def find_key_tokens(
    model: nn.Module,
    tokens: Tensor,
    criterion: Criterion,
    *,
    batch_size: int = 1,
    report: Callable[[int], object] | None = None,
) -> list[int]:
    """Find a document's key tokens.

    The document is read once as a whole, the long context of every token. Windows of K + d tokens that begin at token
    0, d, 2d, … give the short context of their last d tokens; the last window ends with the document. Windows without
    a token below `max_loss` are not read.

    Args:
        model: the evaluator, any `AutoModelForCausalLM`.
        tokens: token ids of a document with the special tokens before it, [1, N].
        criterion: K, d and the thresholds.
        batch_size: windows per forward pass.
        report: called with the number of tokens of each forward pass, for a progress bar.

    Returns:
        Indices of the key tokens, ascending, from K on.
    """
    num_tokens, first = tokens.shape[1], criterion.short
    if num_tokens <= first:
        return []
    lm_head, report = lm_head_of(model), report or (lambda _: None)
    tokens = tokens.to(input_device(model))
    found: list[Tensor] = []
    with evaluating(model):
        states = lm_head.hidden_states(tokens, keep=num_tokens - first + 1)[:, :-1]  # [1, N - K, H]
        long = nll_of_states(lm_head, states, tokens[:, first:])[0].cpu()  # [N - K]
        del states
        _require_numbers(long)
        report(num_tokens)
        candidates = (long < criterion.max_loss).nonzero()[:, 0]  # tokens after the first K
        for windows in _batches(_windows(num_tokens, criterion), candidates, batch_size):
            batch = torch.cat([tokens[:, start : start + size] for start, size in windows])  # [B, T]
            inside = [
                candidates[(candidates >= start) & (candidates < start + size - first)] for start, size in windows
            ]
            positions = [of_window - start for of_window, (start, _) in zip(inside, windows, strict=True)]
            states = lm_head.hidden_states(batch, keep=batch.shape[1] - first + 1)[:, :-1]  # [B, T - K, H]
            short = torch.cat(nll_at(lm_head, states, batch[:, first:], positions)).cpu()
            _require_numbers(short)
            of_batch = torch.cat(inside)
            found.append(of_batch[short - long[of_batch] > criterion.min_gain])
            report(batch.numel())
    return sorted(first + int(index) for indices in found for index in indices)


def nll_at(lm_head: LMHead, states: Tensor, targets: Tensor, positions: Sequence[Tensor]) -> list[Tensor]:
    """Negative log-likelihood of the tokens that follow some positions only, which alone go through the LM head.

    Args:
        lm_head: of a model in evaluation mode.
        states: hidden states, [B, K, H].
        targets: the tokens that follow them, [B, K].
        positions: for each of the B rows, indices into K, [n] each.

    Returns:
        nll in nats, float32, [n] for each row.
    """
    sizes = [len(of_row) for of_row in positions]
    if not any(sizes):
        return [torch.empty(0) for _ in positions]
    rows = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    places = torch.cat([torch.as_tensor(of_row, dtype=torch.long) for of_row in positions])
    states = states[rows.to(states.device), places.to(states.device)]  # [n, H]
    targets = targets[rows.to(targets.device), places.to(targets.device)]  # [n]
    return list(nll_of_states(lm_head, states[None], targets[None])[0].split(sizes))


def _windows(num_tokens: int, criterion: Criterion) -> list[tuple[int, int]]:
    """First token and size of each window; the size of all but the last one is K + d."""
    size = criterion.short + criterion.stride
    starts = range(0, num_tokens - criterion.short, criterion.stride)
    return [(start, min(size, num_tokens - start)) for start in starts]


def _batches(
    windows: Sequence[tuple[int, int]], candidates: Tensor, batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Windows that score a candidate, in batches of windows of one size."""
    stride = windows[1][0] if len(windows) > 1 else windows[0][1]
    needed = set((candidates // stride).tolist())
    kept = [window for index, window in enumerate(windows) if index in needed]
    for _, of_size in groupby(kept, key=lambda window: window[1]):
        same = list(of_size)
        yield from (same[start : start + batch_size] for start in range(0, len(same), batch_size))


def _require_numbers(nll: Tensor) -> None:
    if bool(nll.isnan().any()):
        raise UserError(
            "the evaluator's logits are not finite, so that key tokens cannot be found. Load it with --dtype float32, "
            "or use another evaluator.",
            "non_finite",
        )
