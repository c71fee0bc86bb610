"""How the settings of a run become the Trainer's `TrainingArguments`; what cannot work is refused before it loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import torch
from accelerate.utils import parse_flag_from_env
from pydantic import TypeAdapter, ValidationError
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import is_tensorboard_available, is_trackio_available, is_wandb_available
from transformers.training_args import OptimizerNames

from longshort.errors import UserError
from longshort.training.attention import check_attention
from longshort.training.compiling import check_compiler
from longshort.training.config import TrainConfig
from longshort.training.deepspeed import check_deepspeed, gradient_accumulation_steps

# Fields of TrainingArguments that a setting of ours decides, by its option.
OWNERS: dict[str, str] = {
    "output_dir": "--output",
    "max_steps": "--steps",
    "num_train_epochs": "--steps",
    "per_device_train_batch_size": "--batch-size",
    "auto_find_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--global-batch-size",
    "learning_rate": "--learning-rate",
    "lr_scheduler_type": "--scheduler",
    "warmup_steps": "--warmup",
    "optim": "--optim",
    "weight_decay": "--weight-decay",
    "adam_beta1": "--betas",
    "adam_beta2": "--betas",
    "max_grad_norm": "--max-grad-norm",
    "seed": "--seed",
    "data_seed": "--seed",
    "bf16": "--dtype",
    "fp16": "--dtype",
    "gradient_checkpointing": "--gradient-checkpointing",
    "gradient_checkpointing_kwargs": "--gradient-checkpointing",
    "activation_checkpointing": "--gradient-checkpointing",
    "activation_checkpointing_kwargs": "--gradient-checkpointing",
    "torch_compile": "--torch-compile",
    "torch_compile_backend": "--torch-compile",
    "torch_compile_mode": "--torch-compile",
    "report_to": "--report-to",
    "deepspeed": "--deepspeed",
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval"), "--eval-every"),
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "save_only_model"), "--resume-every"),
    **dict.fromkeys(("resume_from_checkpoint", "enable_jit_checkpoint"), "--resume-every"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "--keep-best"),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"), "--push-to-hub"),
    **dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision"), "--push-to-hub"),
}

_COLUMNS = "the loss is computed from the windows of a batch, not from columns of a data set"
_ORDER = "the windows of a step share an offset, so that their order and their number per step are fixed"
_READING = "the corpus is read by the process that trains, which records what it has read"
_EVERY_STEP = "every step is logged, and its loss is checked"
_NO_EFFECT = "it has no effect here"
# Fields that would change the loss or the record of a run, or do nothing; with the reason.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("remove_unused_columns", "label_names", "length_column_name"), _COLUMNS),
    **dict.fromkeys(("train_sampling_strategy", "dataloader_drop_last", "accelerator_config"), _ORDER),
    "ignore_data_skip": "a resumed run would read other sequences than one that was not interrupted",
    **dict.fromkeys(
        ("fsdp", "fsdp_config"), "what shards a model is checked before it: use accelerate launch --use_fsdp"
    ),
    "save_on_each_node": "one process writes for all",
    "parallelism_config": "the loss compares positions of whole windows, which may not be split over devices",
    "label_smoothing_factor": "the loss is the cross-entropy of the paper, without label smoothing",
    "neftune_noise_alpha": "noise on the embeddings would be measured as misalignment",
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "it replaces the forward that computes the loss"),
    "average_tokens_across_devices": "every device has equally many targets",
    **dict.fromkeys(
        (
            "dataloader_num_workers",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
        ),
        _READING,
    ),
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"), _EVERY_STEP),
    **dict.fromkeys(
        (
            "bf16_full_eval",
            "fp16_full_eval",
            "use_cache",
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
            "restore_callback_states_from_checkpoint",
            "do_train",
            "do_predict",
            "local_rank",
        ),
        _NO_EFFECT,
    ),
}

INSTALLED = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}
# The first two, and those by layer, update weights during the backward pass: before gradients are accumulated, clipped
# or checked. The weights of the last ones have to be averaged before they are evaluated or saved.
REFUSED_OPTIMIZERS = ("lomo", "adalomo", "schedule_free")


def training_arguments(config: TrainConfig, folder: Path, progress: bool) -> TrainingArguments:
    """Return the Trainer's arguments for a run.

    Args:
        config: resolved settings.
        folder: of the work in progress.
        progress: show a progress bar.

    Raises:
        UserError: a logger, an optimizer or DeepSpeed is not installed; `trainer_arguments` or the DeepSpeed
            configuration contradict settings; the batch cannot be divided among the devices.
    """
    _check_loggers(config)
    check_attention(config)
    if config.torch_compile:
        check_compiler()
    _check_launcher(os.environ)
    further = _further_arguments(config)
    if config.deepspeed is not None:
        further |= {
            "deepspeed": check_deepspeed(config),
            "gradient_accumulation_steps": gradient_accumulation_steps(config),
        }
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "run_name": Path(config.output).name,
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": config.scheduler,
        "optim": _optimizer(config),
        "weight_decay": config.weight_decay,
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "bf16": config.dtype == "bfloat16",
        "use_cpu": not any(device.is_available() for device in (torch.cuda, torch.backends.mps, torch.xpu)),
        "logging_steps": 1,
        "save_strategy": "steps" if config.resume_every else "no",
        "save_steps": config.resume_every or 500,
        "save_total_limit": 1,
        "report_to": list(config.loggers) or "none",
        "disable_tqdm": not progress,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Each process takes its share.
        "accelerator_config": {"dispatch_batches": False, "split_batches": False},
    }
    try:
        arguments = TrainingArguments(**ours | further)
        arguments.get_process_log_level()
        _check_scheduler(config, arguments)
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        if config.trainer_arguments is None:
            raise
        raise _wrong(f"transformers refuses {config.trainer_arguments}: {_first_line(error)}") from error
    _check_optimizer(config, arguments)
    at_once = arguments.train_batch_size * arguments.world_size
    if config.global_batch_size % at_once:
        raise UserError(
            f"global_batch_size {config.global_batch_size} is not a multiple of the {at_once} sequences that "
            f"{arguments.world_size} devices take at once. Change it, or --batch-size.",
            "setting",
            "global_batch_size",
        )
    arguments.gradient_accumulation_steps = config.global_batch_size // at_once
    return arguments


def _check_launcher(environment: Mapping[str, str]) -> None:
    """Refuse a DeepSpeed file that accelerate was given: what it lacks would have DeepSpeed's defaults."""
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and file != "none":
        raise UserError(
            f"accelerate was given the DeepSpeed configuration {file}, which is not compared with the settings there. "
            f"Give it as --deepspeed {file}, and launch without --use_deepspeed.",
            "setting",
            "deepspeed",
        )


def _check_scheduler(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Build the schedule once, without a model: it takes its further arguments as they are."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    kwargs = arguments.lr_scheduler_kwargs
    get_scheduler(config.scheduler, optimizer, config.warmup_steps, config.steps, kwargs)


def _check_loggers(config: TrainConfig) -> None:
    for name in config.loggers:
        if not INSTALLED[name]():
            raise UserError(
                f"report_to contains '{name}', which is not installed. Install it (pip install {name}), or omit it.",
                "dependency",
                "report_to",
            )


def _further_arguments(config: TrainConfig) -> dict[str, Any]:
    """`trainer_arguments`, of which each is a field that nothing else decides, and of its type."""
    names = [field.name for field in fields(TrainingArguments) if field.init]
    types = get_type_hints(TrainingArguments)
    for name, value in (config.trainer_arguments or {}).items():
        if name not in names:
            close = get_close_matches(name, names, 1)
            meant = f" Did you mean '{close[0]}'?" if close else ""
            raise _wrong(f"TrainingArguments of transformers has no field '{name}'.{meant}")
        if name in OWNERS:
            raise _wrong(f"'{name}' is decided by {OWNERS[name]}. Use that option.")
        if name in REFUSED:
            raise _wrong(f"'{name}' cannot be set: {REFUSED[name]}. Omit it.")
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise _wrong(f"'{name}' is {value!r}: {reason}.") from error
    return dict(config.trainer_arguments or {})


def _optimizer(config: TrainConfig) -> OptimizerNames:
    names = [name.value for name in OptimizerNames]
    usable = [name for name in names if not (name.startswith(REFUSED_OPTIMIZERS) or name.endswith("layerwise"))]
    if config.optim not in names:
        raise UserError(f"optim is '{config.optim}'; it must be one of {', '.join(usable)}.", "setting", "optim")
    if config.optim not in usable:
        raise UserError(
            f"optim is '{config.optim}', which updates weights during the backward pass, before gradients are "
            "accumulated and clipped, or evaluates averages of weights. Choose another one, such as adafactor.",
            "setting",
            "optim",
        )
    return OptimizerNames(config.optim)


def _check_optimizer(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Refuse an optimizer that is not installed, or that lacks an argument."""
    by_layer = config.optim.startswith(("galore", "apollo"))
    try:
        if by_layer and arguments.optim_target_modules is None:
            raise UserError(
                f"optim is '{config.optim}', which requires the modules it acts on: give --trainer-arguments "
                '\'{"optim_target_modules": "all-linear"}\'.',
                "setting",
                "optim",
            )
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError) as error:
        if by_layer and isinstance(error, ValueError):  # it is installed, and has no model yet
            return
        if arguments.optim_args and isinstance(error, ValueError):
            raise _wrong(f"'optim_args' is '{arguments.optim_args}'; optim '{config.optim}' cannot read it.") from error
        raise UserError(
            f"optim is '{config.optim}', which cannot be used here: {_first_line(error)} Choose another one.",
            "dependency",
            "optim",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _wrong(message: str) -> UserError:
    return UserError(f"trainer_arguments: {message}", "setting", "trainer_arguments")
