"""What a training run is: every setting, checked before anything heavy is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from longshort.errors import UserError
from longshort.training.extension.options import Extension, check_extension

Divergence = Literal["sce", "jeffreys", "js", "kl"]
Positions = Literal["overlap", "in_range", "last"]
Detach = Literal["none", "long", "short"]
Loss = Literal["auto", "fused", "dense"]
Quantization = Literal["auto", "none", "nf4"]
Precision = Literal["float32", "bfloat16"]
Scheduler = Literal["cosine", "linear", "constant", "constant_with_warmup"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; the command line is made from these fields and their descriptions.

    Defaults follow the paper's set-up where it is known: windows of 4096, 200 steps of 64.

    Raises:
        UserError: a value out of its range, or settings that contradict each other.
    """

    output: Annotated[str, "Folder for the finished checkpoint."]
    base: Annotated[str | None, "Checkpoint to start from: folder or hub name."] = None
    revision: Annotated[str | None, "Branch, tag or commit of a hub base."] = None
    model_config: Annotated[str | None, "Instead of --base: a config.json to initialize at random."] = None
    tokenizer: Annotated[
        str | None, "Folder, hub name or 'bytes' (one token per byte); the base's where none is given."
    ] = None
    corpus: Annotated[
        str, "pg19, builtin, hf:OWNER/NAME, or .txt, .jsonl, .jsonl.zst, .parquet files; its training split."
    ] = "pg19"
    cross_documents: Annotated[bool, "Join documents with EOS, so that sequences may cross them."] = False

    train_length: Annotated[int, "Tokens of a window."] = 4096
    alpha: Annotated[float, "Weight of the misalignment; 0 is the token-matched baseline."] = 0.1
    divergence: Annotated[Divergence, "What misalignment is; sce is the paper's."] = "sce"
    positions: Annotated[
        Positions, "Pairs that count: all, those with both contexts over half a window, or the last."
    ] = "overlap"
    detach: Annotated[Detach, "The context that only teaches: it gets no gradient."] = "none"
    max_extra: Annotated[
        int | None, "Greatest shift between the windows; half of --train-length where none is given."
    ] = None
    windows: Annotated[int, "1: plain training, the step-matched baseline (with --alpha 0)."] = 2
    loss: Annotated[
        Loss, "fused never holds the logits of a window; dense does. auto: fused where alpha is above 0."
    ] = "auto"

    extension: Annotated[Extension, "How to extend the context."] = "none"
    factor: Annotated[
        float | None,
        "Extended length over the base's own (CLEX: its greatest t); train length over it, CLEX 16, by default.",
    ] = None
    extension_options: Annotated[
        dict[str, Any] | None, "Options of the extension as JSON, such as '{\"beta_fast\": 32}'."
    ] = None
    lora_rank: Annotated[int | None, "Train LoRA adapters, merged on saving; 0: all weights. longqlora: 64."] = None
    lora_alpha: Annotated[float, "LoRA's scale, times 1 / rank."] = 16.0
    lora_dropout: Annotated[float, "LoRA's dropout."] = 0.05
    quantization: Annotated[
        Quantization, "nf4: a 4-bit base under LoRA, on a GPU. auto: for longqlora where there is one."
    ] = "auto"

    steps: Annotated[int, "Optimizer steps."] = 200
    global_batch_size: Annotated[int, "Sequences per step, over all devices and micro-batches."] = 64
    batch_size: Annotated[int, "Sequences per device at once; the rest is accumulated."] = 1
    learning_rate: Annotated[float | None, "Its peak; 2e-5, with LoRA 2e-4, where none is given."] = None
    warmup: Annotated[float, "Steps in which the learning rate rises, or below 1 their share of all steps."] = 0.03
    scheduler: Annotated[Scheduler, "How the learning rate falls."] = "cosine"
    weight_decay: Annotated[float, "AdamW's."] = 0.0
    max_grad_norm: Annotated[float, "Gradients are clipped to this norm."] = 1.0
    seed: Annotated[int, "Of initialization, order of sequences and shifts."] = 0
    dtype: Annotated[Precision, "Of forward and backward; weights stay in float32."] = "float32"
    gradient_checkpointing: Annotated[bool, "Less memory for a third more time."] = False

    save_at: Annotated[tuple[int, ...], "Steps at which OUTPUT-stepN is saved too, such as 50,100."] = ()
    resume_every: Annotated[int, "Steps between saves from which a killed run goes on; 0: none."] = 50
    eval_every: Annotated[int, "Steps between evaluations on held-out text; 0: none."] = 0
    eval_lengths: Annotated[
        tuple[int, ...], "Lengths for perplexity there; 1, 2 and 4 times --train-length by default."
    ] = ()
    eval_docs: Annotated[int, "Documents for it."] = 8
    eval_corpus: Annotated[
        str | None, "Held-out text; the validation split of --corpus where none is given (files have none)."
    ] = None
    trust_remote_code: Annotated[bool, "Run code that comes with a base."] = False

    def __post_init__(self) -> None:
        if (self.base is None) == (self.model_config is None):
            raise UserError("Give either a base checkpoint (--base) or a config to initialize (--config).")
        if self.model_config is not None and self.tokenizer is None:
            raise UserError("A config has no tokenizer: give --tokenizer (a folder, a hub name or 'bytes').")
        for name in ("steps", "batch_size", "global_batch_size", "eval_docs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.train_length < 4:
            raise UserError(f"train_length is {self.train_length}; two windows need at least 4 tokens.")
        for name in (
            "alpha", "learning_rate", "weight_decay", "seed", "warmup", "lora_rank", "resume_every", "eval_every",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be 0 or more, and finite.")
        if self.seed >= 2**32:
            raise UserError(f"seed is {self.seed}; it must be below 2^32, which NumPy's generators need.")
        for name in ("lora_alpha", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0, and finite.")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout is {self.lora_dropout}; it must be 0 or more, and below 1.")
        self._check_steps()
        self._check_windows()
        check_extension(self.extension, self.factor, self.extension_options)
        if self.quantization == "nf4" and not self.rank_of_adapters:
            raise UserError("A 4-bit base cannot be trained itself: give --lora-rank, or --quantization none.")

    def _check_steps(self) -> None:
        if self.warmup >= self.steps:
            raise UserError(f"warmup is {self.warmup} of {self.steps} steps; it must end before the run does.")
        if self.global_batch_size % self.batch_size:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is no multiple of batch_size {self.batch_size}."
            )
        if wrong := [step for step in self.save_at if not 0 < step < self.steps]:
            raise UserError(f"save_at names step {wrong[0]}; it must lie in 1 to {self.steps - 1}.")
        if wrong := [length for length in self.eval_lengths if length < 2]:
            raise UserError(f"eval_lengths names {wrong[0]}; a length must be at least 2 tokens.")

    def _check_windows(self) -> None:
        if self.windows not in (1, 2):
            raise UserError(f"windows is {self.windows}; it must be 2, or 1 for the one-window baseline.")
        if self.windows == 1 and self.alpha > 0:
            raise UserError("One window has nothing to be aligned with: set alpha to 0, or windows to 2.")
        # Two shared tokens at least: the first may be a BOS, which is not compared.
        limit = self.train_length // 2 if self.positions == "in_range" else self.train_length - 2
        if not 1 <= self.largest_extra <= limit:
            raise UserError(
                f"max_extra is {self.max_extra}; with train_length {self.train_length} and positions "
                f"'{self.positions}' it must lie in 1 to {limit}."
            )

    @property
    def largest_extra(self) -> int:
        """`max_extra` with its default filled in."""
        return self.train_length // 2 if self.max_extra is None else self.max_extra

    @property
    def rank_of_adapters(self) -> int:
        """`lora_rank` with its default filled in; 0 without LoRA."""
        if self.lora_rank is None:
            return 64 if self.extension == "longqlora" else 0
        return self.lora_rank

    @property
    def is_fused(self) -> bool:
        """Whether the loss is computed without holding the logits of a window."""
        return self.loss == "fused" or (self.loss == "auto" and self.alpha > 0)

    @property
    def warmup_steps(self) -> int:
        """`warmup` in steps."""
        return math.ceil(self.steps * self.warmup) if self.warmup < 1 else int(self.warmup)

    def resolved(self) -> TrainConfig:
        """Return the same settings with the defaults that follow from others written out."""
        learning_rate = 2e-4 if self.rank_of_adapters else 2e-5
        return replace(
            self,
            max_extra=self.largest_extra,
            lora_rank=self.rank_of_adapters,
            learning_rate=learning_rate if self.learning_rate is None else self.learning_rate,
            eval_lengths=self.eval_lengths or tuple(self.train_length * times for times in (1, 2, 4)),
        )
