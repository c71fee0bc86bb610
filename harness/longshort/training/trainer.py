"""The Hugging Face Trainer with the misalignment term in its loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from longshort.errors import UserError
from longshort.training.compat import float32_frequencies, own_class
from longshort.training.config import TERMS, TrainConfig
from longshort.training.extension.options import OPTIONS
from longshort.training.frequencies import clip_groups, learned_frequencies
from longshort.training.fused import FusedLoss, LossParts, add_fused_loss
from longshort.training.lora import trained_state
from longshort.training.precision import keep_float32, save_whole_weights
from longshort.training.regularizer import measure_misalignment, misalignment_loss

LOSSES = ("loss", "L_train", "misalign", "entropy", "jeffreys")  # nats; the last three with two windows
GRAD_NORMS = ("grad_norm", "grad_norm_frequencies")  # before clipping; the second with CLEX, else the first is of all
LOG_COLUMNS = ("step", *LOSSES, *GRAD_NORMS, "lr", "tokens_per_second")
MODEL_INPUTS = ("clex_t", "clex_positions")  # of a batch, besides the tokens, where the model takes them
ADAPTERS = "trained.safetensors"


class LongShortTrainer(Trainer):
    """Minimizes ``L_train + α · L_misalign`` (Du et al., ICML 2025), both windows in one forward.

    L_train is the mean next-token cross-entropy over the tokens of both windows. With α = 0 the misalignment
    is measured but gives no gradient; with one window there is none.
    """

    # No padding and one `extra` per step: all micro-batches of a step hold equally many targets and pairs, so
    # the mean over micro-batches (and over processes) is the mean over the whole batch.
    loss_is_scaled_for_ga = False

    def __init__(self, config: TrainConfig, *, model: nn.Module, **kwargs: Any) -> None:
        # Before the Trainer wraps the model: what shards or replicates it must see the loss as its output.
        probe = torch.arange(16, device=next(model.parameters()).device)[None]
        self.fused = config.is_fused and add_fused_loss(model, probe)
        super().__init__(model=model, **kwargs)
        if self.is_fsdp_enabled:
            keep_float32(self.accelerator.state.fsdp_plugin)
            save_whole_weights(self.accelerator.state.fsdp_plugin)
        self.config = config
        self._parts: list[Tensor] = []  # of the micro-batches since the last log
        self._clips_apart = bool(learned_frequencies(model)) and not self.is_deepspeed_enabled
        self._frequencies_norm: Tensor | None = None  # of the last step's gradient
        self._tokens = 0
        self._started_at = 0.0  # the step in progress
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self._bar = None if self.args.disable_tqdm else ProgressBar()
        if self._bar is not None:
            self.add_callback(self._bar)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; the bar is closed however it ends, so that what follows has its own line."""
        try:
            with float32_frequencies() if self.is_fsdp_enabled else nullcontext():
                return super().train(*args, **kwargs)
        finally:
            if self._bar is not None and self._bar.training_bar is not None:
                self._bar.training_bar.close()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """AdamW as the Trainer makes it; CLEX's learned frequencies last, with their own learning rate."""
        new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        learned = learned_frequencies(self.model)
        if new and learned:
            for group in optimizer.param_groups:
                group["params"] = [value for value in group["params"] if all(value is not one for one in learned)]
            options = OPTIONS["clex"] | (self.config.extension_options or {})
            optimizer.add_param_group({"params": learned, "lr": options["learning_rate"], "weight_decay": 0.0})
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip as the Trainer does, CLEX's learned frequencies by a norm of their own; return that of the others."""
        return (
            self._clip_groups(model, self.args.max_grad_norm) if self._clips_apart else super()._clip_grad_norm(model)
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Measure what was not clipped."""
        if grad_norm is None and self._clips_apart:
            grad_norm = self._clip_groups(model, math.inf)
        return super()._get_grad_norm(model, grad_norm)

    def _clip_groups(self, model: nn.Module, max_norm: float) -> Tensor:
        norm, self._frequencies_norm = clip_groups(self.accelerator, model, max_norm)
        return norm

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict of `LOG_COLUMNS` per optimizer step, means over micro-batches and processes."""
        logged = [entry for entry in self.state.log_history if "L_train" in entry]
        return [{column: entry.get(column) for column in LOG_COLUMNS} for entry in logged]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """What was measured on held-out text: the step, then the values of `evaluation.evaluate`."""
        rows = []
        for entry in self.state.log_history:
            values = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
            if values:
                # The state of a resumed run has its keys sorted: ppl@1024 before ppl@512.
                rows.append({"step": entry["step"]} | {name: values[name] for name in sorted(values, key=_place)})
        return rows

    @property
    def evaluated_model(self) -> nn.Module:
        """The model itself; sharded by FSDP or DeepSpeed, what gathers it."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        model: nn.Module = self.model_wrapped if sharded else self.accelerator.unwrap_model(self.model)
        return model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one micro-batch, nats.

        Args:
            model: a causal LM.
            inputs: ``input_ids`` [2·B, T], windows A then windows B, ``extra`` and ``special``; or [B, T] for one;
                for CLEX ``clex_t`` [2·B] and ``clex_positions`` [2·B, T].
            return_outputs, num_items_in_batch: as the Trainer has them; the second changes nothing here.

        Raises:
            UserError: the loss is not finite.
        """
        if not self._parts:  # not since the last log: evaluations and saves are no training
            self._started_at = time.perf_counter()
        losses = self._fused_losses if self.fused else self._dense_losses
        parts, outputs = losses(model, inputs)
        self._check_finite("loss", parts.loss.item(), self.state.global_step + 1)
        self._parts.append(torch.stack([part.detach() for part in parts if part is not None]))
        self._tokens += inputs["input_ids"].numel()
        return (parts.loss, outputs) if return_outputs else parts.loss

    def _fused_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[LossParts, Any]:
        config = self.config
        settings = FusedLoss(
            extra=inputs["extra"],
            special=inputs["special"],
            alpha=config.alpha,
            windows=config.windows,
            positions=config.positions,
            divergence=config.divergence,
            detach=config.detach,
        )
        parts = model(input_ids=inputs["input_ids"], use_cache=False, fused_loss=settings, **_model_inputs(inputs))
        return parts, None

    def _dense_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[LossParts, Any]:
        config, input_ids = self.config, inputs["input_ids"]
        outputs = model(input_ids=input_ids, use_cache=False, **_model_inputs(inputs))
        logits = outputs.logits  # [W·B, T, V]
        targets = F.pad(input_ids[:, 1:], (0, 1), value=-100)  # shifting these spares a copy of the logits
        # Sum over number, as the stock Trainer has it: without regularizer the two agree bit for bit.
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        cross_entropy = total / input_ids[:, 1:].numel()
        if config.windows == 1:
            return LossParts(cross_entropy, cross_entropy, None, None, None), outputs
        term = misalignment_loss if config.alpha > 0 else measure_misalignment
        logits_long, logits_short = logits.chunk(2)  # [B, T, V] each
        misalignment = term(
            logits_long,
            logits_short,
            inputs["extra"],
            positions=config.positions,
            divergence=config.divergence,
            detach=config.detach,
            special=inputs["special"],
        )
        loss = cross_entropy + config.alpha * misalignment.loss if config.alpha > 0 else cross_entropy
        return LossParts(loss, cross_entropy, *misalignment), outputs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss, of which `rows` are made."""
        if "loss" in logs:
            parts = self.accelerator.reduce(torch.stack(self._parts).mean(0), reduction="mean").tolist()
            if self._frequencies_norm is not None:
                logs["grad_norm_frequencies"] = self._frequencies_norm.item()
            # Steps before the last show it in the next loss; the last step's update has no such witness.
            for name in GRAD_NORMS:
                self._check_finite("gradient", logs.get(name, 0.0), self.state.global_step)
            seconds = time.perf_counter() - self._started_at
            speed = self._tokens * self.accelerator.num_processes / seconds
            self._parts, self._tokens = [], 0
            logs |= dict(zip(LOSSES, parts, strict=False))
            logs |= {"lr": logs["learning_rate"], "tokens_per_second": speed}
        super().log(logs, *args, **kwargs)

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"The {what} is not finite at step {step}; that step was not saved. "
                "Lower --learning-rate, or check the base and its dtype.",
                "non_finite",
            )

    # With adapters only what is trained is kept for resuming: PEFT's own files hold the adapters alone, not the
    # weights that are trained next to them, and a 4-bit base need not be written again.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.config.rank_of_adapters:
            with own_class(self.model) if self.is_fsdp_enabled else nullcontext():
                super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained_state(self.accelerator.unwrap_model(self.model), state_dict), folder / ADAPTERS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.config.rank_of_adapters:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        state: dict[str, Any] = load_file(Path(resume_from_checkpoint) / ADAPTERS)
        model = model or self.model
        if self.is_fsdp_enabled:
            # A build of torch may lack it.
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(model, state, options=options)  # every process takes its shards
        else:
            model.load_state_dict(state, strict=False)


def _place(name: str) -> tuple[int, int]:
    """Where a value of `evaluate` stands: perplexities by length, then the terms."""
    metric, _, length = name.partition("@")
    return (0, int(length)) if length else (1, TERMS.index(metric))


def _model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs[name] for name in MODEL_INPUTS if name in inputs}


class AfterStep(TrainerCallback):
    """Calls a function with the number of steps done, after each of them is logged (and 0 before the first).

    Nothing is saved for resuming after the last step: the finished checkpoint follows.
    """

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Call it with 0, unless the run is resumed."""
        if state.global_step == 0:
            self.function(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Drop the Trainer's own save at the end."""
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Call it with the step."""
        if "L_train" in logs:
            self.function(state.global_step)


class ProgressBar(ProgressCallback):
    """The Trainer's bar with the loss on it, without its printed dicts."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the parts of the last step's loss."""
        if self.training_bar is not None and logs and "L_train" in logs:
            shown = {key: f"{logs[key]:.3f}" for key in ("L_train", "misalign") if key in logs}
            self.training_bar.set_postfix(shown)
