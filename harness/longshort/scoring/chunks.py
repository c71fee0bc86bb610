"""How many positions have their logits in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# Logits of a chunk and what is computed from them stay below this; fewer positions make the LM head slower.
CHUNK_BYTES = {"cpu": 128 * 2**20}
CHUNK_BYTES_DEVICE = 1024 * 2**20
CACHE_BYTES = {"cpu": 2 * 2**20}  # fits the cache, and is large enough that starting an operation costs little
_chunk_divisor = ContextVar("chunk_divisor", default=1)


@contextmanager
def smaller_chunks(divisor: int) -> Iterator[None]:
    """Limit logits to this fraction (1 / `divisor`) of their usual memory while the context is open."""
    token = _chunk_divisor.set(divisor)
    try:
        yield
    finally:
        _chunk_divisor.reset(token)


def chunk_positions(buffers: int, vocab_size: int, device: torch.device) -> int:
    """Positions per chunk such that `buffers` float32 rows of [V] for each of them stay within the budget."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES_DEVICE) // _chunk_divisor.get()
    return max(1, budget // (buffers * vocab_size * 4))


def cached_positions(rows: int, vocab_size: int, device: torch.device) -> int | None:
    """Positions whose `rows` float32 rows of [V] stay in a processor's cache; None where that does not help."""
    size = CACHE_BYTES.get(device.type)
    return None if size is None else max(1, size // (rows * vocab_size * 4))
