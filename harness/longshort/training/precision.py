"""What training asks of those that shard a model: float32 where FSDP would round, whole weights of ZeRO."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import FullyShardedDataParallelPlugin
from transformers import TrainingArguments

from longshort.errors import UserError
from longshort.training.config import TrainConfig


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


def save_whole_weights(plugin: FullyShardedDataParallelPlugin) -> None:
    """Make FSDP gather what is saved, as FULL_STATE_DICT does; accelerate's default for FSDP 2 is shards.

    Of shards the Trainer writes neither weights that `from_pretrained` reads nor, to resume, our adapters.

    Args:
        plugin: of an accelerator; its type of state dict is replaced.
    """
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # those of the type before
    plugin.set_state_dict_type("FULL_STATE_DICT")


def check_loss(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Refuse what DeepSpeed would compute or save otherwise than the settings say.

    Raises:
        UserError: ZeRO stage 3 gathers a weight only while its own module runs, which the fused loss does not wait for,
            and saves none that it has not been told to gather; in bfloat16 DeepSpeed saves its rounded weights.
    """
    plugin = arguments.deepspeed_plugin
    if plugin is None:
        return
    if config.is_fused and plugin.zero_stage == 3:
        raise UserError(
            "ZeRO stage 3 gathers weights where the fused loss does not expect it. Use --loss dense, or stage 2.",
            "setting",
            "loss",
        )
    if plugin.zero_stage == 3 and not plugin.zero3_save_16bit_model:
        raise UserError(
            "ZeRO stage 3 would not gather the weights of the checkpoint. Launch with --zero3_save_16bit_model true; "
            "in a file of accelerate's, set zero_optimization.stage3_gather_16bit_weights_on_model_save to true.",
            "setting",
            "deepspeed",
        )
    merges = config.rank_of_adapters and not config.keep_adapter  # into a base that DeepSpeed has not rounded
    if config.dtype == "bfloat16" and config.save_dtype != "bfloat16" and not merges:
        raise UserError(
            f"save_dtype is {config.save_dtype}, and DeepSpeed saves the bfloat16 weights it computes with. Add "
            "--save-dtype bfloat16, or use DDP or FSDP 2 (accelerate launch --use_fsdp --fsdp_version 2).",
            "setting",
            "save_dtype",
        )
