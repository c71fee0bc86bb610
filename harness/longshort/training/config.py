"""Every setting of a training run, checked before anything heavy is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
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
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
SavedPrecision = Literal["float32", "bfloat16", "float16"]

LOGGERS = ("tensorboard", "wandb", "trackio")
TERMS = ("sce", "entropy", "jeffreys")  # of an evaluation on held-out text, next to perplexities

BETAS = (0.9, 0.999)
NOT_NEGATIVE = (
    *("alpha", "learning_rate", "weight_decay", "max_grad_norm", "seed", "warmup", "lora_rank", "resume_every"),
    "eval_every",
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; the command line is made from these fields and their descriptions.

    Defaults follow the paper's setup where it is known: windows of 4096, 200 steps of 64.

    Raises:
        UserError: a value is out of its range, or settings contradict each other; `field` names the setting.
    """

    output: Annotated[str, "Folder for the finished checkpoint; not needed with --print-config."]
    base: Annotated[str | None, "Checkpoint to start from: folder or hub name."] = None
    revision: Annotated[str | None, "Branch, tag or commit of a hub base."] = None
    model_config: Annotated[str | None, "A config.json to initialize at random, in place of --base."] = None
    tokenizer: Annotated[
        str | None, "Tokenizer: folder, hub name or 'bytes' (one token per byte). Default: the base's own."
    ] = None
    corpus: Annotated[
        str,
        "Training corpus: pg19, builtin, hf:OWNER/NAME (training split), or PATH[:COLUMN] of .txt, .json, .jsonl "
        "(also .gz, .zst) or .parquet files.",
    ] = "pg19"
    cross_documents: Annotated[bool, "Join documents with EOS, so that a sequence may contain several."] = False

    train_length: Annotated[int, "Training context length: tokens of a window."] = 4096
    alpha: Annotated[float, "Weight of the misalignment in the loss; 0 is the token-matched baseline."] = 0.1
    divergence: Annotated[Divergence, "Divergence that measures misalignment; sce is the paper's."] = "sce"
    positions: Annotated[
        Positions,
        "Positions in the loss: all shared ones, those where both contexts hold at least half a window, or the last.",
    ] = "overlap"
    detach: Annotated[Detach, "Which context to detach from the gradient."] = "none"
    max_extra: Annotated[int | None, "Largest offset between the windows. Default: half of --train-length."] = None
    windows: Annotated[
        int, "Windows per sequence; 1 is plain training, the step-matched baseline (with --alpha 0)."
    ] = 2
    loss: Annotated[
        Loss,
        "How to compute the loss: dense holds the logits of a window, fused does not; auto is fused if alpha > 0.",
    ] = "auto"

    extension: Annotated[Extension, "Method of context extension."] = "none"
    factor: Annotated[
        float | None,
        "Extended length divided by the base's own (CLEX: the largest t). Default: from --train-length; CLEX: 16.",
    ] = None
    extension_options: Annotated[
        dict[str, Any] | None, "Options of the extension as JSON, such as '{\"beta_fast\": 32}'."
    ] = None
    lora_rank: Annotated[
        int | None, "Rank of LoRA adapters, merged on saving; 0 trains all weights. Default: 0, for longqlora 64."
    ] = None
    lora_alpha: Annotated[float, "LoRA's alpha: adapters are scaled by alpha / rank."] = 16.0
    lora_dropout: Annotated[float, "Dropout of LoRA's inputs."] = 0.05
    train_embeddings_and_norms: Annotated[
        bool, "Train embeddings and norms in full next to LoRA adapters, as LongLoRA does."
    ] = False
    lora_targets: Annotated[
        tuple[str, ...],
        "Modules that get LoRA adapters, by the ends of their names, such as q_proj,v_proj. Default: all linear layers "
        "but the LM head.",
    ] = ()
    lora_modules_to_save: Annotated[
        tuple[str, ...], "Modules that are trained in full next to LoRA adapters, such as embed_tokens,norm."
    ] = ()
    keep_adapter: Annotated[bool, "Save the LoRA adapter as a PEFT folder instead of merging it into the base."] = False
    quantization: Annotated[
        Quantization,
        "Quantization of the base under LoRA: nf4 needs a GPU; auto is nf4 for longqlora if a GPU is available.",
    ] = "auto"

    steps: Annotated[int, "Number of optimizer steps."] = 200
    global_batch_size: Annotated[int, "Sequences per step, over all devices and micro-batches."] = 64
    batch_size: Annotated[int, "Sequences per device and forward pass; gradients of the rest are accumulated."] = 1
    learning_rate: Annotated[float | None, "Peak learning rate. Default: 2e-5, with LoRA 2e-4."] = None
    warmup: Annotated[float, "Warmup steps of the learning rate; a value below 1 is a fraction of all steps."] = 0.03
    scheduler: Annotated[Scheduler, "Learning rate schedule."] = "cosine"
    optim: Annotated[str, "Optimizer, by transformers' name, such as adafactor or adamw_8bit."] = "adamw_torch_fused"
    weight_decay: Annotated[float, "Weight decay of the optimizer."] = 0.0
    betas: Annotated[
        tuple[float, float], "Decay rates of AdamW's averages of the gradient and of its square, such as 0.9,0.95."
    ] = BETAS
    max_grad_norm: Annotated[float, "Norm to which gradients are clipped; 0 disables clipping."] = 1.0
    seed: Annotated[int, "Seed for initialization, the order of sequences and offsets."] = 0
    dtype: Annotated[Precision, "Precision of forward and backward; weights stay in float32."] = "float32"
    gradient_checkpointing: Annotated[
        bool, "Recompute activations in the backward pass: less memory, about a third more time."
    ] = False
    attn_implementation: Annotated[Attention | None, "Implementation of attention. Default: transformers' own."] = None
    torch_compile: Annotated[bool, "Compile the layers of the model with torch.compile."] = False
    deepspeed: Annotated[str | None, "DeepSpeed configuration file (JSON)."] = None
    trainer_arguments: Annotated[
        dict[str, Any] | None,
        "Further fields of transformers' TrainingArguments as JSON, such as '{\"adam_epsilon\": 1e-6}'.",
    ] = None

    save_at: Annotated[tuple[int, ...], "Steps after which the checkpoint OUTPUT-stepN is saved, such as 50,100."] = ()
    resume_every: Annotated[int, "Steps between saves from which a killed run resumes; 0 disables them."] = 50
    eval_every: Annotated[int, "Steps between evaluations on held-out text; 0 disables them."] = 0
    eval_lengths: Annotated[
        tuple[int, ...], "Context lengths for perplexity on held-out text. Default: 1, 2 and 4 times --train-length."
    ] = ()
    eval_docs: Annotated[int, "Number of held-out documents."] = 8
    eval_corpus: Annotated[
        str | None, "Corpus of held-out text. Default: the validation split of --corpus (files have none)."
    ] = None
    keep_best: Annotated[
        str | None,
        "Save the evaluated step with the lowest value of this evaluation (such as ppl@4096; loss is that at "
        "--train-length) instead of the last step.",
    ] = None
    save_dtype: Annotated[SavedPrecision, "Dtype of the saved weights; CLEX's frequencies stay in float32."] = "float32"
    report_to: Annotated[
        tuple[str, ...], f"Loggers of losses and evaluations: some of {', '.join(LOGGERS)}, or none."
    ] = ("none",)
    push_to_hub: Annotated[str | None, "Repository on the Hugging Face Hub to upload the finished checkpoint to."] = (
        None
    )
    push_public: Annotated[bool, "Make a new repository of --push-to-hub public instead of private."] = False
    trust_remote_code: Annotated[bool, "Run the code that a base brings with it."] = False

    def __post_init__(self) -> None:
        if (self.base is None) == (self.model_config is None):
            raise _wrong("base", "Training starts from either a base or a config. Give one of --base and --config.")
        if self.model_config is not None and self.tokenizer is None:
            raise _wrong("tokenizer", "A config has no tokenizer: give --tokenizer (a folder, a hub name or 'bytes').")
        for name in ("steps", "batch_size", "global_batch_size", "eval_docs"):
            self._check(name, lambda value: value >= 1, "at least 1")
        self._check("train_length", lambda value: value >= 4, "at least 4, the fewest tokens for two windows")
        for name in NOT_NEGATIVE:
            self._check(name, lambda value: value is None or 0 <= value < math.inf, "0 or more, and finite")
        self._check("seed", lambda value: value < 2**32, "below 2^32, which NumPy's generators require")
        self._check("lora_alpha", lambda value: 0 < value < math.inf, "above 0, and finite")
        self._check("lora_dropout", lambda value: 0 <= value < 1, "0 or more, and below 1")
        are_betas = "two numbers, each 0 or more and below 1"
        self._check("betas", lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas), are_betas)
        if self.betas != BETAS and not any(name in self.optim for name in ("adamw", "ademamix", "lion")):
            raise _wrong("betas", f"betas have no effect with optim '{self.optim}'. Leave them at 0.9,0.999.")
        self._check_steps()
        self._check_windows()
        self._check_attention()
        self._check_adapters()
        self._check_reports()
        check_extension(self.extension, self.factor, self.extension_options)
        if self.train_embeddings_and_norms and not self.rank_of_adapters:
            raise _wrong(
                "train_embeddings_and_norms",
                "train_embeddings_and_norms adds to what LoRA trains; without adapters all weights are trained. "
                "Give --lora-rank, or omit --train-embeddings-and-norms.",
            )
        if self.quantization == "nf4" and not self.rank_of_adapters:
            raise _wrong(
                "quantization", "A 4-bit base cannot be trained itself: give --lora-rank, or --quantization none."
            )
        if self.quantization == "nf4" and self.base is None:
            raise _wrong("quantization", "A model that is initialized at random has no 4-bit base: give --base.")

    def _check_attention(self) -> None:
        name = self.attn_implementation
        if name is not None and self.extension == "longqlora":
            raise _wrong("attn_implementation", "Extension 'longqlora' trains with its own attention. Omit it.")
        if name is not None and name.startswith("flash") and self.dtype != "bfloat16":
            raise _wrong(
                "attn_implementation", f"attn_implementation '{name}' requires half precision. Set --dtype bfloat16."
            )

    def _check_adapters(self) -> None:
        for name in ("lora_targets", "lora_modules_to_save", "keep_adapter"):
            if getattr(self, name) and not self.rank_of_adapters:
                raise _wrong(name, f"{name} has no effect without LoRA. Give --lora-rank, or omit it.")
        if both := sorted({*self.lora_targets} & {*self.lora_modules_to_save}):
            raise _wrong("lora_targets", f"'{both[0]}' is in lora_targets and in lora_modules_to_save. Omit it in one.")
        for name in ("lora_modules_to_save", "keep_adapter"):
            if self.train_embeddings_and_norms and getattr(self, name):
                raise _wrong(
                    name,
                    f"{name} and train_embeddings_and_norms exclude each other: what the latter trains is no part of "
                    "the adapter. Omit one of them.",
                )
        if not self.keep_adapter:
            return
        if self.base is None:
            raise _wrong("keep_adapter", "An adapter is loaded onto its base: keep_adapter requires --base.")
        if self.extension != "none":
            raise _wrong(
                "keep_adapter",
                f"Extension '{self.extension}' changes the model's config, which an adapter does not contain: loaded "
                "onto the base, the adapter would give wrong numbers. Omit --keep-adapter.",
            )

    def _check_reports(self) -> None:
        for name in self.report_to:
            if name not in (*LOGGERS, "none") or (name == "none" and len(self.report_to) > 1):
                raise _wrong(
                    "report_to",
                    f"report_to contains '{name}'; it must be none, or some of {', '.join(LOGGERS)}.",
                )
        if self.push_public and self.push_to_hub is None:
            raise _wrong(
                "push_public",
                "push_public has no effect without a repository. Give --push-to-hub, or omit --push-public.",
            )
        if self.keep_best is None:
            return
        if not self.eval_every:
            raise _wrong("keep_best", "keep_best compares evaluations: give --eval-every.")
        names = (*(f"ppl@{length}" for length in self.evaluated_lengths), *TERMS)
        if self.best_value not in names:
            raise _wrong(
                "keep_best",
                f"keep_best is '{self.keep_best}'; evaluations measure {', '.join(names)}. "
                "Choose one of them, or change --eval-lengths.",
            )

    def _check(self, name: str, is_right: Callable[[Any], bool], must_be: str) -> None:
        value = getattr(self, name)
        if not is_right(value):
            raise _wrong(name, f"{name} is {value}; it must be {must_be}.")

    def _check_steps(self) -> None:
        self._check("warmup", lambda warmup: warmup < self.steps, f"below the {self.steps} steps of the run")
        if self.global_batch_size % self.batch_size:
            raise _wrong(
                "global_batch_size",
                f"global_batch_size {self.global_batch_size} is not a multiple of batch_size {self.batch_size}. "
                "Change one of them.",
            )
        if wrong := [step for step in self.save_at if not 0 < step < self.steps]:
            raise _wrong("save_at", f"save_at contains step {wrong[0]}; a step must lie in 1 to {self.steps - 1}.")
        if wrong := [length for length in self.eval_lengths if length < 2]:
            raise _wrong("eval_lengths", f"eval_lengths contains {wrong[0]}; a length must be at least 2 tokens.")

    def _check_windows(self) -> None:
        self._check("windows", lambda windows: windows in (1, 2), "2, or 1 for the one-window baseline")
        if self.windows == 1 and self.alpha > 0:
            raise _wrong("alpha", "One window has nothing to be aligned with: set alpha to 0, or windows to 2.")
        # Two shared tokens at least: the first may be a BOS, which is not compared.
        limit = self.train_length // 2 if self.positions == "in_range" else self.train_length - 2
        if not 1 <= self.largest_extra <= limit:
            raise _wrong(
                "max_extra",
                f"max_extra is {self.max_extra}; with train_length {self.train_length} and positions "
                f"'{self.positions}' it must lie in 1 to {limit}.",
            )

    @property
    def largest_extra(self) -> int:
        """`max_extra` with its default filled in."""
        return self.train_length // 2 if self.max_extra is None else self.max_extra

    @property
    def evaluated_lengths(self) -> tuple[int, ...]:
        """`eval_lengths` with its default filled in."""
        return self.eval_lengths or tuple(self.train_length * times for times in (1, 2, 4))

    @property
    def rank_of_adapters(self) -> int:
        """`lora_rank` with its default filled in; 0 without LoRA."""
        if self.lora_rank is None:
            return 64 if self.extension == "longqlora" else 0
        return self.lora_rank

    @property
    def best_value(self) -> str | None:
        """Name of the evaluation by which the best step is kept; ``loss`` orders steps as its perplexity does."""
        return f"ppl@{self.train_length}" if self.keep_best == "loss" else self.keep_best

    @property
    def loggers(self) -> tuple[str, ...]:
        """`report_to` without "none"."""
        return tuple(name for name in self.report_to if name != "none")

    @property
    def asks_for_4_bits(self) -> bool:
        """Whether the base is to be held in 4 bits, where that is possible."""
        asked = self.quantization == "nf4" or (self.quantization == "auto" and self.extension == "longqlora")
        return asked and self.rank_of_adapters > 0

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
            eval_lengths=self.evaluated_lengths,
        )


def _wrong(field: str, message: str) -> UserError:
    return UserError(message, "setting", field)
