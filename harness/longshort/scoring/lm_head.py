"""Hidden states from one forward, then the model's own LM head over a chunk of positions at a time.

The backbone (everything below the LM head) runs once. For each chunk the backbone is made to return that slice of its
hidden states and the model is called again, so that its own LM head and whatever follows it run: tanh soft caps, logit
scales, divisors, norms before the head. Logits [T × V] are never held.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longshort.scoring.rope import rope_parameters

logger = logging.getLogger(__name__)

PROBE_TOKENS = 16
# The LM head over a chunk and over all positions differ by the order of summation only.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
PROBE_TOLERANCE_HALF = 3e-2
PROBE_MAGNITUDES = (1.0, 200.0)  # greatest logit of the hidden states that an LM head is probed with

# Logits of a chunk and what is computed from them stay below this; fewer positions make the LM head slower.
CHUNK_BYTES = {"cpu": 128 * 2**20}
CHUNK_BYTES_DEVICE = 1024 * 2**20
CACHE_BYTES = {"cpu": 2 * 2**20}  # fits the cache, and is large enough that starting an operation costs little
_chunk_divisor = ContextVar("chunk_divisor", default=1)

LM_HEAD = "_longshort_lm_head"  # attribute of the model itself, so that both are freed together


class LMHead:
    """Computes hidden states from tokens and logits from hidden states, for one model.

    Args:
        model: a causal LM.
        tokens: a few tokens to probe it with  # [1, P]
        call: what to call instead of the model, such as its forward without the hooks around it.

    Attributes:
        vocab_size: width of the logits.
        backbone: the module whose output the LM head reads, or None: then the hidden states are full logits.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        self._call = call or model
        self.backbone: nn.Module | None = None
        self._linear: nn.Linear | None = None
        self._output: Any = None  # what the backbone returns, a template to put other hidden states into
        # transformers' dynamic RoPE keeps the frequencies of the longest sequence so far; one token resets them.
        kinds = rope_parameters(getattr(model, "config", None))
        self._remembers_lengths = any(rope.get("rope_type") == "dynamic" for rope in kinds)
        with torch.no_grad():
            expected = forward(self._call, tokens).logits  # [1, P, V]
            self.vocab_size = int(expected.shape[-1])
            self.backbone, self._output = _find_backbone(model, self._call, tokens) or (None, None)
            difference = self._probe(tokens, expected)
        tolerance = PROBE_TOLERANCE.get(expected.dtype, PROBE_TOLERANCE_HALF)
        self._linear = self._plain_linear(tolerance) if difference <= tolerance else None
        if difference > tolerance:
            self.backbone = None
            logger.warning(
                "%s: the LM head over a chunk of positions differs from the model's own logits "
                "(relative difference %.2g). Falling back to full logits, which needs more memory.",
                type(model).__name__,
                difference,
            )

    @property
    def linear(self) -> nn.Linear | None:
        """The LM head if it is one float32 matrix with nothing after it, and still the one that was probed."""
        known = self._linear
        if known is None or known.weight.dtype != torch.float32:
            return None
        return known if known is _output_embedding(self.model) else None

    @property
    def copies(self) -> int:
        """Tensors as large as a chunk's logits that the LM head holds at once: caps, scales, half precision."""
        return 1 if self.linear is not None else 2

    def hidden_states(self, tokens: Tensor, keep: int, **inputs: Any) -> Tensor:
        """Read `tokens` once and return the hidden states of the last `keep` positions.

        Args:
            tokens: token ids, [B, T].
            keep: positions to return, at most T.
            inputs: further arguments of the model's forward.

        Returns:
            Hidden states, [B, keep, H].
        """
        if self._remembers_lengths:
            forward(self._call, tokens[:, :1])
        if self.backbone is None:
            logits: Tensor = forward(self._call, tokens, **inputs).logits
            return logits[:, -keep:]
        captured: list[Tensor] = []

        def capture(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = _hidden_of(output)
            captured.append(hidden[:, -keep:].clone() if keep < hidden.shape[1] else hidden)
            return _with_hidden(output, hidden[:, -1:])  # the LM head runs on one position only

        handle = self.backbone.register_forward_hook(capture)
        try:
            forward(self._call, tokens, **inputs)
        finally:
            handle.remove()
        return captured[0]

    def logits(self, hidden_states: Tensor, buffer: Tensor | None = None) -> Tensor:
        """Run the model's own LM head and all that follows it; the caller may overwrite the result.

        Args:
            hidden_states: [B, C, H].
            buffer: float32, at least B·C·V elements. If the LM head is a plain matrix, the result is a view of it: on
                a CPU, allocating memory for every chunk costs more than a pass over it.

        Returns:
            Logits, [B, C, V], float32 whatever the model's dtype.
        """
        linear = self.linear
        if linear is None or buffer is None:
            return self.model_logits(hidden_states).to(torch.float32, copy=self.backbone is None)
        shape = (*hidden_states.shape[:2], self.vocab_size)
        out = buffer[: math.prod(shape)].view(-1, self.vocab_size)  # [B·C, V]
        return linear_into(out, hidden_states.flatten(0, 1), linear.weight, linear.bias).view(shape)

    def model_logits(self, hidden_states: Tensor) -> Tensor:
        """As `logits`, in the model's own dtype; not to be overwritten.  [B, C, H] → [B, C, V]."""
        if self.backbone is None:
            return hidden_states
        placeholder = torch.zeros(hidden_states.shape[:2], dtype=torch.long, device=input_device(self.model))
        with _backbone_returns(self.backbone, _with_hidden(self._output, hidden_states)):
            logits: Tensor = forward(self._call, placeholder).logits
        return logits

    @torch.no_grad()
    def _plain_linear(self, tolerance: float) -> nn.Linear | None:
        """The output embedding if the LM head is nothing else, for small and large hidden states.

        Caps and scales after it show at large logits if not at those of the probe.
        """
        linear = _output_embedding(self.model)
        if type(linear) is not nn.Linear or linear.weight.dtype != torch.float32:
            return None
        if linear.weight.is_meta or hasattr(linear, "_hf_hook") or linear._forward_hooks or linear._forward_pre_hooks:
            return None  # offloaded or spread over devices: its own forward moves the tensors
        weight = linear.weight
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(1, PROBE_TOKENS, weight.shape[1], generator=generator).to(weight)  # [1, P, H]
        size = functional.linear(direction, weight).abs().max().float().clamp_min(1e-30)
        for magnitude in PROBE_MAGNITUDES:
            hidden_states = direction * (magnitude / size).to(weight)
            try:
                expected = self.model_logits(hidden_states)
            except (IndexError, RuntimeError, TypeError, ValueError):
                return None
            plain = functional.linear(hidden_states, weight, linear.bias)
            if plain.shape != expected.shape or not torch.isfinite(expected).all():
                return None
            scale = expected.abs().max().float().clamp_min(1e-30)
            if float((plain - expected).abs().max().float() / scale) > tolerance:
                return None
        return linear

    def _probe(self, tokens: Tensor, expected: Tensor) -> float:
        """Largest difference from the model's own logits, relative to their size, over unequal chunks."""
        if self.backbone is None:
            return float("inf")
        try:
            hidden_states = self.hidden_states(tokens, tokens.shape[1])
            chunks = [self.logits(chunk) for chunk in hidden_states.split(PROBE_TOKENS // 2 - 1, dim=1)]
            actual = torch.cat(chunks, dim=1)
            if actual.shape != expected.shape:
                return float("inf")
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return float("inf")  # a backbone or LM head of unexpected form: full logits are always right
        finite = torch.isfinite(expected)
        if not torch.equal(finite, torch.isfinite(actual)):
            return float("inf")
        if not finite.any():  # a broken checkpoint: nothing to compare, its scores will be reported as non-finite
            return 0.0
        expected, actual = expected[finite].double(), actual[finite].double()
        return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def lm_head_of(model: nn.Module, tokens: Tensor) -> LMHead:
    """Return the model's `LMHead`, built on the first call and probed with its first tokens.  tokens: [B, T]."""
    known: LMHead | None = model.__dict__.get(LM_HEAD)
    if known is None:
        inner = without_adapter(model)
        known = LMHead(inner, tokens[:1, :PROBE_TOKENS].to(input_device(inner)))
        model.__dict__[LM_HEAD] = known
    return known


def forward(model: Callable[..., Any], tokens: Tensor, **inputs: Any) -> Any:
    """One forward of tokens [B, T], without cache and without a mask: attention takes its causal fast path."""
    return model(input_ids=tokens, use_cache=False, **inputs)


def linear_into(out: Tensor, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer that writes its result into `out`.  [N, H], [V, H], [V] → [N, V]."""
    if bias is None:
        return torch.mm(hidden_states, weight.T, out=out)
    return torch.addmm(bias, hidden_states, weight.T, out=out)


def input_device(model: nn.Module) -> torch.device:
    """The device that tokens must be on: that of the input embedding (a model may be spread over several)."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    module = embedding if isinstance(embedding, nn.Module) else model
    device = next(module.parameters()).device
    if device.type == "meta":  # offloaded weights: accelerate's hook knows where they will run
        device = torch.device(getattr(getattr(module, "_hf_hook", None), "execution_device", "cpu"))
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and training mode back on afterwards if it was on."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def smaller_chunks(divisor: int) -> Iterator[None]:
    """Limit logits to this fraction (1 / `divisor`) of their usual memory while the context is open."""
    token = _chunk_divisor.set(divisor)
    try:
        yield
    finally:
        _chunk_divisor.reset(token)


def chunk_positions(buffers: int, vocab_size: int, device: torch.device) -> int:
    """Positions per chunk such that `buffers` float32 rows of [V] for each of them stay within the budget."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES_DEVICE) // _chunk_divisor.get()
    return max(1, budget // (buffers * vocab_size * 4))


def cached_positions(rows: int, vocab_size: int, device: torch.device) -> int | None:
    """Positions whose `rows` float32 rows of [V] stay in a processor's cache; None where that does not help."""
    size = CACHE_BYTES.get(device.type)
    return None if size is None else max(1, size // (rows * vocab_size * 4))


def without_adapter(model: nn.Module) -> nn.Module:
    """The causal LM inside a PEFT model; its adapter layers are part of it."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def _output_embedding(model: nn.Module) -> Any:
    return getattr(model, "get_output_embeddings", lambda: None)()


def _find_backbone(model: nn.Module, call: Callable[..., Any], tokens: Tensor) -> tuple[nn.Module, Any] | None:
    """The backbone and its output: `base_model` if one forward calls it once, else `get_decoder()` likewise."""
    for candidate in (getattr(model, "base_model", None), getattr(model, "get_decoder", lambda: None)()):
        if not isinstance(candidate, nn.Module) or candidate is model:
            continue
        outputs: list[Any] = []
        handle = candidate.register_forward_hook(lambda module, args, out, keep=outputs: keep.append(out))
        try:
            forward(call, tokens)
        finally:
            handle.remove()
        if len(outputs) == 1 and _hidden_of(outputs[0]).shape[:2] == tokens.shape:
            return candidate, outputs[0]
    return None


def _hidden_of(output: Any) -> Tensor:
    """The hidden states in a backbone's output; an empty tensor if there are none."""
    if isinstance(output, tuple):
        output = output[0] if output else None
    hidden = getattr(output, "last_hidden_state", output)
    return hidden if isinstance(hidden, Tensor) else torch.empty(0)


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    """The same kind of output around other hidden states."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(**{**output, "last_hidden_state": hidden})


@contextmanager
def _backbone_returns(backbone: nn.Module, output: Any) -> Iterator[None]:
    """While open, calling the backbone computes nothing and returns `output`."""
    own: Callable[..., Any] | None = backbone.__dict__.get("forward")  # set by accelerate on dispatched models
    backbone.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own
