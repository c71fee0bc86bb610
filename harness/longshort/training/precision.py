"""What stays in float32 when FSDP trains in half precision."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import FullyShardedDataParallelPlugin


def keep_float32(plugin: FullyShardedDataParallelPlugin) -> None:
    """Keep the model's outputs (FSDP 2) and its buffers (FSDP 1) in float32; accelerate rounds both to half precision.

    The outputs are the loss and its parts, of which bfloat16 keeps three digits. Of the buffers, RoPE's inverse
    frequencies are multiplied by positions: in bfloat16 a position of 8,192 is off by up to 16.

    Args:
        plugin: of an accelerator that has not prepared the model yet; its policy is replaced.
    """
    policy = plugin.mixed_precision_policy
    if policy is None:
        return
    kept = {"output_dtype": None} if plugin.fsdp_version == 2 else {"buffer_dtype": torch.float32}
    plugin.mixed_precision_policy = replace(policy, **kept)
