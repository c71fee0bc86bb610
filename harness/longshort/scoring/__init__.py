"""What a causal LM's next-token distributions say about a token sequence.

Torch and transformers models only: no lm-eval, no files. The names below are imported on first use, so that a module
that needs no torch, such as `longshort.scoring.rope`, can be imported without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshort.scoring.prefix import score_prefix
    from longshort.scoring.suffixes import SuffixScores, score_suffixes

__all__ = ["SuffixScores", "score_prefix", "score_suffixes"]

MODULES = {"score_prefix": "prefix", "score_suffixes": "suffixes", "SuffixScores": "suffixes"}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
