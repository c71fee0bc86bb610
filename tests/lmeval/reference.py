"""Every metric once more: from text to number by dense logits, one window and one position at a time."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import transformers
from torch import Tensor


class Reference:
    """A checkpoint and the slow, obvious way to measure it."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.bos = [1] if self.tokenizer.encode("a")[0] == 1 else []

    def text_tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    @torch.no_grad()
    def log_p(self, window: list[int]) -> Tensor:
        """[T, V], float64."""
        return self.model(torch.tensor([window])).logits[0].double().log_softmax(-1)

    def prefix(self, text: str, length: int) -> tuple[float, float]:
        """Mean NLL in nats and bits per byte of the first `length` tokens."""
        window = (self.bos + self.text_tokens(text))[:length]
        log_p = self.log_p(window)
        nll = [-float(log_p[t - 1, window[t]]) for t in range(1, length)]
        return sum(nll) / len(nll), sum(nll) / math.log(2) / self.count_bytes(window[1:])

    def tokens(self, text: str, longest: int) -> list[int]:
        """A document: its special tokens and its text, one token more than the longest context."""
        return (self.bos + self.text_tokens(text))[: longest + 1]

    def window(self, text: str, length: int, longest: int) -> list[int]:
        """The `length` tokens before the last one of a document, the first ones replaced by the special tokens."""
        return self.bos + self.tokens(text, longest)[:-1][-length:][len(self.bos) :]

    def tail(self, text: str, length: int, longest: int, targets: int) -> tuple[float, float]:
        """The last `targets` tokens of a document, read with a context of `length`."""
        tokens = self.tokens(text, longest)
        log_p = self.log_p(self.window(text, length, longest))
        nll = [-float(log_p[length - targets + k, tokens[longest + 1 - targets + k]]) for k in range(targets)]
        return sum(nll) / targets, sum(nll) / math.log(2) / self.count_bytes(tokens[-targets:])

    def accuracy(self, text: str, length: int, longest: int, targets: int) -> float:
        """Share of the last `targets` tokens of a document that are the most probable ones with such a context."""
        tokens, log_p = self.tokens(text, longest), self.log_p(self.window(text, length, longest))
        places = range(length - targets, length)
        return sum(int(log_p[j].argmax()) == tokens[longest + 1 - length + j] for j in places) / targets

    def between(self, text: str, first: int, second: int, longest: int, targets: int) -> tuple[float, float]:
        """SCE and Jeffreys divergence of contexts of `first` and `second` tokens, mean over the tail's targets."""
        p, q = (self.log_p(self.window(text, size, longest))[-targets:] for size in (first, second))
        sce = jeffreys = 0.0
        for k in range(targets):
            sce += float(-(p[k].exp() * q[k]).sum() - (q[k].exp() * p[k]).sum())
            jeffreys += float(((p[k].exp() - q[k].exp()) * (p[k] - q[k])).sum())
        return sce / targets, jeffreys / targets

    def pair(self, text: str, longest: int, length: int, second: int) -> dict[str, float]:
        """All misalignment metrics of contexts of `length` and `second` tokens ending where all end."""
        long, short = (self.log_p(self.window(text, size, longest)) for size in (length, second))
        by_position = []
        for j in range(len(self.bos), second):
            p, q = long[j + length - second], short[j]
            context_long, context_short = j + length - second + 1, j + 1
            h_pq, h_qp = -(p.exp() * q).sum(), -(q.exp() * p).sum()
            h_p, h_q = -(p.exp() * p).sum(), -(q.exp() * q).sum()
            m = ((p.exp() + q.exp()) / 2).log()
            by_position.append(
                {
                    "in_range": length / 2 <= context_short and context_long <= length,
                    "sce": float(h_pq + h_qp),
                    "entropy": float(h_p + h_q),
                    "jeffreys": float((h_pq - h_p) + (h_qp - h_q)),
                    "js": float(-(m.exp() * m).sum() - (h_p + h_q) / 2),
                    "agreement": float(p.argmax() == q.argmax()),
                }
            )
        in_range = [row for row in by_position if row["in_range"]]
        metrics = {
            name: sum(row[name] for row in in_range) / len(in_range)
            for name in ("sce", "entropy", "jeffreys", "js", "agreement")
        }
        metrics["sce_last"] = by_position[-1]["sce"]
        metrics["sce_overlap"] = sum(row["sce"] for row in by_position) / len(by_position)
        return metrics

    def count_bytes(self, tokens: list[int]) -> int:
        """Through the byte-level alphabet: one character of a token's name is one byte."""
        return sum(len(name) for name in self.tokenizer.convert_ids_to_tokens(tokens))
