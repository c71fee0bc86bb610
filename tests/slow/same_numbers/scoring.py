"""Scores random tokens with the two functions of `longshort.scoring`: `python scoring.py CHECKPOINTS OUTPUT`.

It runs in a process of its own, whose PYTHONPATH is the source tree to record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

from longshort.scoring import score_prefix, score_suffixes

NAMES = ("plain", "learned-positions", "dynamic-rope", "saved-bfloat16")
LENGTHS = (48, 16, 31)
NUM_TARGETS = 8


def main() -> None:
    """Write one JSON file per checkpoint, with every value that the functions return."""
    checkpoints, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True)
    for name in NAMES:
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints / name, dtype="auto")
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(3, model.config.vocab_size, (2, max(LENGTHS) + 1), generator=generator)  # [B, N]
        values = {}
        for chunk_size in (None, 5):
            scores = score_suffixes(model, tokens, LENGTHS, NUM_TARGETS, chunk_size=chunk_size)
            values[f"chunk_size={chunk_size}"] = {
                "score_prefix": score_prefix(model, tokens, chunk_size=chunk_size).tolist(),
                "nll": scores.nll.tolist(),
                "entropy": scores.entropy.tolist(),
                "cross_entropy": scores.cross_entropy.tolist(),
            }
        (output / f"{name}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main()
