"""Devices: the GPUs that costs are estimated for, the available cores, and the check that a device can be used."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longshort.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A card."""

    flops_per_second: float  # dense bf16 FLOP/s at the peak
    memory: int  # bytes
    bandwidth: float  # bytes per second from memory


# A name that contains another's comes before it, since cards are found by what their full name contains.
GPUS: dict[str, Gpu] = {
    "h200": Gpu(989e12, 141 * 10**9, 4.8e12),  # NVIDIA H200 data sheet, SXM; half of "1,979 with sparsity"
    "h100": Gpu(989e12, 80 * 10**9, 3.35e12),  # NVIDIA H100 data sheet, SXM; half of "1,979 with sparsity"
    "b200": Gpu(2250e12, 180 * 10**9, 8e12),  # NVIDIA DGX B200 data sheet: 8 cards, "1,440 GB, 64 TB/s", 18 PFLOP/s
    "a100": Gpu(312e12, 80 * 10**9, 2.039e12),  # NVIDIA A100 data sheet, 80GB SXM; "312 | 624 with sparsity"
    "l40s": Gpu(362.05e12, 48 * 10**9, 0.864e12),  # NVIDIA L40S data sheet; "362.05 | 733 with sparsity"
    "l40": Gpu(181.05e12, 48 * 10**9, 0.864e12),  # NVIDIA L40 data sheet; "181.05 | 362.1 with sparsity"
    "a10g": Gpu(70e12, 24 * 10**9, 0.6e12),  # NVIDIA A10G data sheet of AWS; "70 | 140 with sparsity" (the A10: 125)
    "rtx4090": Gpu(165.2e12, 24 * 10**9, 1.008e12),  # NVIDIA Ada white paper; "165.2 | 330.4", float32 sums
    "t4": Gpu(65e12, 16 * 10**9, 0.3e12),  # NVIDIA T4 data sheet, float16: it has no bf16
}


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_device(name: str) -> None:
    """Refuse a device (cpu, cuda, cuda:0, …) that is not available, which lm-eval would silently replace by another.

    Raises:
        UserError: torch cannot use it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise UserError(
            f"Device '{name}' is not available. Choose another --device, for instance cpu.", "device", "device"
        ) from error
