"""Cost estimates of a checkpoint: tokens, FLOPs, memory, hours. Tokens are counted, the others are approximate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longshort.devices import Gpu
from longshort.settings import Checkpoint
from longshort.sweep.cost.shape import (
    BYTES,
    USUAL_PARAMETERS,
    Shape,
    bytes_per_number,
    named_parameters,
    read_config,
    shape_of,
)
from longshort.sweep.cost.tokens import usable_lengths, work_of

UTILISATION = 0.4  # of the peak; what well-tuned code reaches on long passes
FLOAT32_SHARE = 1 / 16  # of the bf16 peak: 19.5 of the A100's 312 TFLOP/s, 67 of the H100's 989; TF32 is off in torch
LOAD_BYTES_PER_SECOND = 1e9  # weights from a disk or a file server into the GPU
START_UP = 30.0  # seconds: a new process, its imports, the tokenizer
STEP_SECONDS_PER_LAYER = 5e-4  # of one generated token: the launch of a layer's kernels, where that takes longest
ATTENTION_WIDTHS = 13  # hidden states' worth alive; in transformers 5 12.1 to 12.8 for Llama and GPT-NeoX
AUTO_BATCH_TOKENS = 16_384  # longshort.lmeval.backend.AUTO_BATCH_TOKENS, without its imports
HEAD_BYTES = 2**30  # float32 logits alive at once: longshort.scoring.chunks.CHUNK_BYTES_DEVICE


@dataclass(frozen=True)
class Cost:
    """The cost of some tasks of one checkpoint."""

    forward_tokens: int  # read in all forward passes
    flops: float  # of all forward passes and of the LM head
    weight_bytes: int  # of the loaded weights
    activation_bytes: int  # maximum in addition to the weights
    hours: float  # on one GPU, with start-up and loading
    assumed: tuple[str, ...]  # assumptions about what is not known, a sentence each


def cost_of(checkpoint: Checkpoint, tasks: Sequence[str], gpu: Gpu) -> Cost:
    """Estimate some of a checkpoint's tasks on one GPU.

    Tokens: those that the longshort tasks read if all documents are long enough, without the tens of tokens with which
    a loaded model is probed. FLOPs: 2 · backbone · tokens + 4 · layers · hidden · pairs + 2 · hidden · vocabulary ·
    scored positions, where a pass over T tokens attends T²/2 pairs (sliding windows are not considered).

    Activations: the longest forward pass, of T tokens in all its documents, without a cache of keys and values, and a
    chunk of the LM head after it: T · max(13 · hidden, 2 · hidden + 3 · intermediate) · bytes per number, the maximum
    of attention and MLP in one layer, since other layers keep nothing and attention never holds a T² matrix;
    and min(1 GiB, T · vocabulary · 4) · (1 + bytes / 4), the logits in float32 and in the model's own dtype.

    Hours: FLOPs at UTILISATION of the peak (for float32, of FLOAT32_SHARE of it); generation at the greater of the
    time to read all weights and to launch the layers; weights at LOAD_BYTES_PER_SECOND; START_UP. A second GPU holds
    weights but adds no speed: with lm-eval's `parallelize` they compute one after the other.

    Args:
        tasks: names; those of lm-eval count as 0, and `assumed` names them.
        gpu: from `longshort.devices.GPUS`.

    Raises:
        UserError: settings are out of range; a manifest rejects them earlier.
    """
    config = read_config(checkpoint)
    shape = shape_of(checkpoint, config)
    work, assumed = work_of(tasks, checkpoint, config)
    if not shape.known:
        assumed.insert(0, _guess(checkpoint))

    size = bytes_per_number(checkpoint, config)
    weight_bytes = int(shape.parameters * _bytes_per_weight(checkpoint, size))
    flops = (
        2.0 * shape.backbone * work.tokens
        + 4.0 * shape.layers * shape.hidden * work.pairs
        + 2.0 * shape.hidden * shape.vocabulary * work.scored
    )
    step = max(weight_bytes / gpu.bandwidth, shape.layers * STEP_SECONDS_PER_LAYER)
    given = checkpoint.batch_size if isinstance(checkpoint.batch_size, int) else None
    longest = max(usable_lengths(checkpoint, config), default=0)
    together = given or AUTO_BATCH_TOKENS // max(1, longest)
    rate = gpu.flops_per_second * UTILISATION * (FLOAT32_SHARE if size == BYTES["float32"] else 1)
    load = START_UP + weight_bytes / LOAD_BYTES_PER_SECOND
    return Cost(
        forward_tokens=work.tokens,
        flops=flops,
        weight_bytes=weight_bytes,
        activation_bytes=_activation_bytes(shape, longest * max(1, min(together, checkpoint.num_docs)), size),
        hours=(load + flops / rate + work.steps / (given or 1) * step) / 3600,
        assumed=tuple(assumed),
    )


def _guess(checkpoint: Checkpoint) -> str:
    """A sentence that many checkpoints can share."""
    source = "the number of parameters in its name"
    if checkpoint.params:
        source = "its `params`"
    elif not named_parameters(checkpoint):
        source = f"{USUAL_PARAMETERS / 1e9:g}B parameters, since no size is known"
    return f"no config.json is available: the usual shape for {source}"


def _bytes_per_weight(checkpoint: Checkpoint, size: int) -> float:
    if checkpoint.model_args.get("load_in_4bit"):
        return 0.5
    return 1 if checkpoint.model_args.get("load_in_8bit") else size


def _activation_bytes(shape: Shape, tokens: int, size: int) -> int:
    """See `cost_of`."""
    forward = tokens * max(ATTENTION_WIDTHS * shape.hidden, 2 * shape.hidden + 3 * shape.intermediate) * size
    return int(forward + min(HEAD_BYTES, tokens * shape.vocabulary * 4) * (1 + size / 4))
