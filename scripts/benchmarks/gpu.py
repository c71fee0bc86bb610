"""Benchmarks on a GPU: the shape of a model of a billion parameters, and rates relative to a matrix product."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

MATRIX_SIZE = 8192  # of the square matrices by which a card's rate is measured
ONE_BILLION = {  # the shape of Llama-3.2-1B
    "cases": "2048x16:4096,8192,16384,32768,65536",
    "intermediate": 8192,
    "heads": 32,
    "kv-heads": 8,
    "vocabulary": 128256,
    "dtype": "bfloat16",
}


def gpu_arguments(name: str, arguments: list[str]) -> list[str]:
    """Return the arguments that ``--gpu`` stands for, with the attention that is installed, then those of the user.

    Exits if no GPU is available. CUDA is not initialized here, since forked processes could then not use it.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch
    from transformers.utils import is_flash_attn_2_available

    if not torch.cuda.is_available():
        sys.exit(f"benchmark.py {name} --gpu: no GPU here. Run it on a machine with one, or without --gpu.")
    attention = "sdpa,flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    given = ONE_BILLION | {"attention": attention, "output": f"results/benchmarks/{name}_gpu.json"}
    preset = [part for option, value in given.items() for part in (f"--{option}", str(value))]
    return preset + [argument for argument in arguments if argument != "--gpu"]


def card(dtype: str, size: int = MATRIX_SIZE, repeats: int = 20) -> dict[str, Any]:
    """Name of the GPU, and FLOP/s of a product of two square matrices on it, the best of several."""
    import torch

    matrix = torch.randn(size, size, dtype=getattr(torch, dtype), device="cuda")
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"card": torch.cuda.get_device_name(), "matrix_flops_per_second": 2 * size**3 / min(seconds)}


def rates(
    flops_of: Callable[[argparse.Namespace], float], case: argparse.Namespace, run: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """The windows of a run, their tokens per second, and on a GPU their FLOP/s over those of a matrix product.

    Args:
        flops_of: a case with the tokens of one window.
        case: what was measured. A window is a forward of at least half its tokens; shorter ones are probes.
        run: with the tokens of each forward as `reads`, and what `card` returns.
        seconds: of the run.
    """
    windows = [tokens for tokens in run["reads"] if 2 * tokens >= case.tokens]
    found = {"windows": windows, "tokens/s": sum(windows) / seconds}
    if "card" not in run:
        return found
    flops = sum(flops_of(argparse.Namespace(**vars(case) | {"tokens": tokens})) for tokens in windows)
    rate = run["matrix_flops_per_second"]
    return found | {"of rate": flops / seconds / rate, "card": run["card"], "matrix_flops_per_second": rate}
