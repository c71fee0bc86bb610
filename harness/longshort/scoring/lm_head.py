"""Hidden states from one forward, then the model's own LM head over a chunk of positions at a time.

The backbone (everything below the LM head) runs once. For each chunk the backbone is made to return that slice of its
hidden states and the model is called again, so that its own LM head and whatever follows it run: tanh soft caps, logit
scales, divisors, norms before the head. Logits [T × V] are never held. Those of half-precision models are float32,
from the product with the LM head's matrix on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from longshort.errors import first_line
from longshort.scoring.backbone import (
    backbone_returns,
    backbones,
    hidden_of,
    intercepting,
    output_embedding,
    with_hidden,
)
from longshort.scoring.forward import evaluating, forward, input_device, without_wrappers
from longshort.scoring.half_precision import HALF, Float32Logits, half_linear_into
from longshort.scoring.probe import model_state, probe_tokens
from longshort.scoring.rope import rope_parameters

logger = logging.getLogger(__name__)

PROBE_TOKENS = 16
# The LM head over a chunk and over all positions differ by the order of summation only.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
PROBE_TOLERANCE_HALF = 3e-2
PROBE_MAGNITUDES = (1.0, 200.0)  # greatest logit of the hidden states that an LM head is probed with

LM_HEAD = "_longshort_lm_head"  # attribute of the model itself, so that both are freed together

NO_BACKBONE = "none of its modules returns hidden states of shape [batch, tokens, width]"
FULL_LOGITS = (
    "%s: logits cannot be computed for a few positions at a time, because %s. Falling back to full logits: the scores "
    "are the same, but every token of a window needs another %.1f MiB of memory. If memory runs out, use shorter "
    "lengths, or remove hooks and changes from the model's forward."
)
ROUNDED_LOGITS = (
    "%s: its logits are rounded to half precision, because its LM head is not an ordinary matrix (it may be quantized, "
    "distributed or compiled), cannot be run apart from its backbone, or rounds them itself. Divergences between "
    "similar predictions contain this rounding. With --dtype float32 they do not."
)


class LMHead:
    """Computes hidden states from tokens and logits from hidden states, for one model.

    Args:
        model: a causal LM in evaluation mode.
        call: what to call instead of the model, such as its forward without the hooks around it.
    """

    vocab_size: int  # width of the logits
    backbone: nn.Module | None  # the module whose output the LM head reads, or None: the hidden states are full logits
    problem: str | None = None  # why there is no backbone
    rounds: bool = False  # whether the logits of a half-precision model are not float32 throughout

    def __init__(self, model: nn.Module, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        compiled = model.__dict__.get("_compiled_call_impl") is not None
        # A graph that `model.compile()` recorded would neither see hooks nor another forward of the backbone.
        self._call = call or (model._call_impl if compiled else model)
        self._linear: nn.Linear | None = None
        self._in_float32 = False  # whether the model's own LM head runs with float32 products of half-precision weights
        self._output: Any = None  # what the backbone returns, a template to put other hidden states into
        # transformers' dynamic RoPE keeps the frequencies of the longest sequence so far; one token resets them.
        kinds = rope_parameters(getattr(model, "config", None))
        self._remembers_lengths = any(rope.get("rope_type") == "dynamic" for rope in kinds)
        tokens = probe_tokens(model, PROBE_TOKENS).to(input_device(model))  # [1, P]
        with torch.no_grad():
            expected = forward(self._call, tokens).logits  # [1, P, V]
            self.vocab_size = int(expected.shape[-1])
            dtypes = (expected.dtype, *(parameter.dtype for parameter in model.parameters()))
            self._half = next((dtype for dtype in dtypes if dtype in HALF), None)  # Mamba's logits alone do not show it
            tolerance = PROBE_TOLERANCE.get(expected.dtype, PROBE_TOLERANCE_HALF)
            problems: list[str] = []
            for backbone, output in backbones(model, self._call, tokens):
                self.backbone, self._output = backbone, output
                problem = self._probe_in_float32(tokens, expected, tolerance)
                if problem is None:
                    self._linear = self._plain_linear(tolerance)
                    self.rounds &= self._linear is None
                    break
                problems.append(problem)
            else:
                self.backbone = None
                self.rounds = self._half is not None
                self.problem = problems[0] if problems else NO_BACKBONE  # the first module is the likeliest backbone
                if self.problem != getattr(model.__dict__.get(LM_HEAD), "problem", None):  # not for every document
                    logger.warning(FULL_LOGITS, type(model).__name__, self.problem, self.vocab_size * 4 / 2**20)
        self._state = model_state(model, self.backbone)

    def is_current(self) -> bool:
        """Whether the model is still as it was probed: hooks, modules, dtypes, devices and settings."""
        return model_state(self.model, self.backbone) == self._state

    @property
    def linear(self) -> nn.Linear | None:
        """The LM head if it is one matrix with nothing after it, and still the one that was probed.

        Its weights are float32, bfloat16 or float16; `linear_into` takes them all.
        """
        known = self._linear
        if known is None or known.weight.dtype not in (torch.float32, *HALF):
            return None
        return known if known is output_embedding(self.model) else None

    @property
    def copies(self) -> int:
        """Tensors as large as a chunk's logits that the LM head holds at once: caps, scales, rounded logits."""
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

        def capture(output: Any) -> Any:
            hidden = hidden_of(output)
            captured.append(hidden[:, -keep:].clone() if keep < hidden.shape[1] else hidden)
            return with_hidden(output, hidden[:, -1:])  # the LM head runs on one position only

        with intercepting(self.backbone, capture):
            forward(self._call, tokens, **inputs)
        return captured[0]

    def logits(self, hidden_states: Tensor, buffer: Tensor | None = None) -> Tensor:
        """Run the model's own LM head and all that follows it; the caller may overwrite the result.

        Args:
            hidden_states: [B, C, H].
            buffer: float32, at least B·C·V elements. If the LM head is a plain matrix, the result is a view of it: on
                a CPU, allocating memory for every chunk costs more than a pass over it.

        Returns:
            Logits, [B, C, V], float32 whatever the model's dtype. Those of a half-precision model have not been
            rounded to it, unless `rounds` is true.
        """
        linear = self.linear
        if linear is None or (buffer is None and linear.weight.dtype not in HALF):
            return self._logits_of_head(hidden_states).to(torch.float32, copy=self.backbone is None)
        shape = (*hidden_states.shape[:2], self.vocab_size)
        if buffer is None:
            buffer = torch.empty(math.prod(shape), device=hidden_states.device)
        out = buffer[: math.prod(shape)].view(-1, self.vocab_size)  # [B·C, V]
        rows = hidden_states.flatten(0, 1).to(linear.weight.dtype)  # some backbones end in float32: Mamba's
        return linear_into(out, rows, linear.weight, linear.bias).view(shape)

    def model_logits(self, hidden_states: Tensor) -> Tensor:
        """As `logits`, in the model's own dtype; not to be overwritten.  [B, C, H] → [B, C, V]."""
        if self.backbone is None:
            return hidden_states
        placeholder = torch.zeros(hidden_states.shape[:2], dtype=torch.long, device=input_device(self.model))
        with backbone_returns(self.backbone, with_hidden(self._output, hidden_states)):
            logits: Tensor = forward(self._call, placeholder).logits
        return logits

    def _logits_of_head(self, hidden_states: Tensor) -> Tensor:
        """As `model_logits`, with float32 products where the weights are in half precision and allow it."""
        with Float32Logits(self.vocab_size) if self._in_float32 else nullcontext():
            return self.model_logits(hidden_states)

    @torch.no_grad()
    def _plain_linear(self, tolerance: float) -> nn.Linear | None:
        """The output embedding if the LM head is nothing else, for small and large hidden states.

        Caps and scales after it show at large logits if not at those of the probe.
        """
        linear = output_embedding(self.model)
        if not is_plain_linear(linear) or linear.weight.dtype not in (torch.float32, *HALF):
            return None
        if linear.weight.is_meta or hasattr(linear, "_hf_hook") or linear._forward_hooks or linear._forward_pre_hooks:
            return None  # offloaded or spread over devices: its own forward moves the tensors
        weight = linear.weight
        product: Callable[..., Tensor] = functional.linear
        if weight.dtype in HALF:  # both sides are float32 here, and differ by the order of summation only
            product, tolerance = _float32_product, PROBE_TOLERANCE[torch.float32]
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(1, PROBE_TOKENS, weight.shape[1], generator=generator).to(weight)  # [1, P, H]
        size = product(direction, weight, None).abs().max().float().clamp_min(1e-30)
        for magnitude in PROBE_MAGNITUDES:
            hidden_states = direction * (magnitude / size).to(weight)
            try:
                expected = self._logits_of_head(hidden_states)
            except (IndexError, RuntimeError, TypeError, ValueError):
                return None
            plain = product(hidden_states, weight, linear.bias)
            if plain.shape != expected.shape or not torch.isfinite(expected).all():
                return None
            scale = expected.abs().max().float().clamp_min(1e-30)
            if float((plain - expected).abs().max().float() / scale) > tolerance:
                return None
        return linear

    def _probe_in_float32(self, tokens: Tensor, expected: Tensor, tolerance: float) -> str | None:
        """As `_probe`, for half precision with float32 products first and without them where those fail."""
        if self._half is not None:
            self._in_float32 = True
            if self._probe(tokens, expected, PROBE_TOLERANCE_HALF) is None:  # the model's own logits are rounded
                return None
            self._in_float32 = False
        return self._probe(tokens, expected, tolerance)

    def _probe(self, tokens: Tensor, expected: Tensor, tolerance: float) -> str | None:
        """What is wrong with logits in unequal chunks, compared with the model's own; None if nothing is."""
        chunk = max(1, tokens.shape[1] // 2 - 1)
        try:
            hidden_states = self.hidden_states(tokens, tokens.shape[1])
            actual = torch.cat([self.logits(part) for part in hidden_states.split(chunk, dim=1)], dim=1)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # A backbone or LM head of unexpected form: full logits are always right.
            return f"its LM head cannot be run on a few positions alone ({first_line(error)})"
        finite, known = torch.isfinite(expected), torch.isfinite(actual)
        if self._in_float32 and actual.shape == expected.shape:
            known &= finite  # float32 holds logits that are infinite in float16
        if actual.shape != expected.shape or not torch.equal(finite, known):
            return "its LM head on a few positions returns logits of another shape, or infinite ones"
        if self._half is not None:
            rounded = actual.to(self._half).float()
            self.rounds = torch.equal(actual.nan_to_num(), rounded.nan_to_num())
        if not finite.any():  # a broken checkpoint: nothing to compare, its scores will be reported as non-finite
            return None
        expected, actual = expected[finite].double(), actual[finite].double()
        difference = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if difference <= tolerance:
            return None
        return f"its LM head on a few positions returns other logits (relative difference {difference:.2g})"


def lm_head_of(model: nn.Module) -> LMHead:
    """Return the model's `LMHead`, probed on the first call and again whenever the model has changed."""
    inner = without_wrappers(model)
    known: LMHead | None = inner.__dict__.get(LM_HEAD)
    if known is None or known.model is not inner or not known.is_current():
        already_said = known is not None and known.rounds
        with evaluating(inner):
            known = LMHead(inner)
        if known.rounds and not already_said:
            logger.warning(ROUNDED_LOGITS, type(inner).__name__)
        inner.__dict__[LM_HEAD] = known
    return known


def is_plain_linear(module: Any) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's own linear layer with ordinary tensors, and not a quantized or distributed one."""
    return type(module) is nn.Linear and all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided for tensor in module.parameters()
    )


def linear_into(out: Tensor, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer that writes its result into `out`.  [N, H], [V, H], [V] → [N, V].

    `out` has the dtype of the weights, but float32 where they are bfloat16 or float16: nothing is rounded to these.
    """
    if weight.dtype in HALF:
        return half_linear_into(out, hidden_states, weight, bias)
    if bias is None:
        return torch.mm(hidden_states, weight.T, out=out)
    return torch.addmm(bias, hidden_states, weight.T, out=out)


def _float32_product(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The float32 product of half-precision operands.  [1, N, H], [V, H], [V] → [1, N, V]."""
    out = torch.empty(hidden_states.shape[1], len(weight), device=weight.device)
    return half_linear_into(out, hidden_states[0], weight, bias)[None]
