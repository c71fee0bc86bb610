"""Devices that are asked for by name."""

from __future__ import annotations

from longshort.errors import UserError


def require_device(name: str) -> None:
    """Refuse a device that is not there, which lm-eval would silently replace by another.

    Args:
        name: as torch has it: cpu, cuda, cuda:0, …

    Raises:
        UserError: torch cannot use it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise UserError(f"device '{name}' is not there. Choose another --device, for instance cpu.") from error
