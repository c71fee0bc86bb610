"""Hidden states from one forward, then the model's own output head over a chunk of positions at a time.

The body (everything below the head) runs once. For each chunk the body is made to return that slice of its
hidden states and the model is called again, so that its own head and whatever follows it run: tanh soft caps,
logit scales, divisors, pre-head norms. Logits [T × V] are never held.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longshort.scoring.rope import rope_parameters

logger = logging.getLogger(__name__)

PROBE_TOKENS = 16
# Head over a chunk and head over all positions differ by the order of summation only.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
PROBE_TOLERANCE_HALF = 3e-2
PROBE_MAGNITUDES = (1.0, 200.0)  # greatest logit of the states that a head is tried with

# Logits of a chunk and what is computed from them stay below this; fewer positions make the head slower.
CHUNK_BYTES = {"cpu": 128 * 2**20}
CHUNK_BYTES_DEVICE = 1024 * 2**20
CACHE_BYTES = {"cpu": 2 * 2**20}  # small enough for the cache, great enough for what an operation costs to start
_divisor = 1

READOUT = "_longshort_readout"  # kept on the model itself, so that both are freed together


class Readout:
    """Turns tokens into states and states into logits, for one model.

    Args:
        model: a causal LM.
        tokens: a few to probe it with  # [1, P]
        call: what to call in its place, such as its forward without the hooks around it.

    Attributes:
        vocab_size: width of the logits.
        body: the module whose output the head reads, or None: then states are full logits.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        self._call = call or model
        self.body: nn.Module | None = None
        self._linear: nn.Linear | None = None
        self._output: Any = None  # what the body returns, a form to put other hidden states into
        # transformers' dynamic RoPE keeps the frequencies of the longest sequence it has read; one token resets.
        kinds = rope_parameters(getattr(model, "config", None))
        self._remembers_lengths = any(rope.get("rope_type") == "dynamic" for rope in kinds)
        with torch.no_grad():
            expected = forward(self._call, tokens).logits  # [1, P, V]
            self.vocab_size = int(expected.shape[-1])
            self.body, self._output = _find_body(model, self._call, tokens) or (None, None)
            difference = self._probe(tokens, expected)
        tolerance = PROBE_TOLERANCE.get(expected.dtype, PROBE_TOLERANCE_HALF)
        self._linear = self._plain_head(tolerance) if difference <= tolerance else None
        if difference > tolerance:
            self.body = None
            logger.warning(
                "%s: the output head over a chunk of positions differs from the model's own logits "
                "(relative difference %.2g). Falling back to full logits: right, but needs more memory.",
                type(model).__name__,
                difference,
            )

    @property
    def linear(self) -> nn.Linear | None:
        """The head, where it is one float32 matrix with nothing after it, and still the one that was tried."""
        known = self._linear
        if known is None or known.weight.dtype != torch.float32:
            return None
        return known if known is _output_embedding(self.model) else None

    @property
    def copies(self) -> int:
        """Tensors of the size of a chunk's logits that the head has alive at once: caps, scales, half precision."""
        return 1 if self.linear is not None else 2

    def states(self, tokens: Tensor, keep: int, **inputs: Any) -> Tensor:
        """Read `tokens` once; return the states of the last `keep` positions.  [B, T] → [B, keep, H].

        `inputs` are further arguments of the model's forward.
        """
        if self._remembers_lengths:
            forward(self._call, tokens[:, :1])
        if self.body is None:
            logits: Tensor = forward(self._call, tokens, **inputs).logits
            return logits[:, -keep:]
        captured: list[Tensor] = []

        def capture(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = _hidden_of(output)
            captured.append(hidden[:, -keep:].clone() if keep < hidden.shape[1] else hidden)
            return _with_hidden(output, hidden[:, -1:])  # the head runs on one position only

        handle = self.body.register_forward_hook(capture)
        try:
            forward(self._call, tokens, **inputs)
        finally:
            handle.remove()
        return captured[0]

    def logits(self, states: Tensor, buffer: Tensor | None = None) -> Tensor:
        """The model's own head, with all that follows it; the caller may write into the result.

        Where the head is a plain matrix, the result lies in `buffer` (float32, at least B·C·V elements) if one is
        given: fresh memory for every chunk costs a CPU more than a pass over it.

        [B, C, H] → [B, C, V], float32 whatever the model's dtype.
        """
        linear = self.linear
        if linear is None or buffer is None:
            return self.head(states).to(torch.float32, copy=self.body is None)
        shape = (*states.shape[:2], self.vocab_size)
        out = buffer[: math.prod(shape)].view(-1, self.vocab_size)  # [B·C, V]
        return linear_into(out, states.flatten(0, 1), linear.weight, linear.bias).view(shape)

    def head(self, states: Tensor) -> Tensor:
        """The same in the model's own dtype; not to be written into.  [B, C, H] → [B, C, V]."""
        if self.body is None:
            return states
        placeholder = torch.zeros(states.shape[:2], dtype=torch.long, device=input_device(self.model))
        with _body_returns(self.body, _with_hidden(self._output, states)):
            logits: Tensor = forward(self._call, placeholder).logits
        return logits

    @torch.no_grad()
    def _plain_head(self, tolerance: float) -> nn.Linear | None:
        """The output embedding, if the model's head is that and nothing else, for states small and large.

        Caps and scales that follow it show at large logits if not at the probe's.
        """
        linear = _output_embedding(self.model)
        if type(linear) is not nn.Linear or linear.weight.dtype != torch.float32:
            return None
        if linear.weight.is_meta or hasattr(linear, "_hf_hook") or linear._forward_hooks or linear._forward_pre_hooks:
            return None  # offloaded or spread: its own forward knows how
        weight = linear.weight
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(1, PROBE_TOKENS, weight.shape[1], generator=generator).to(weight)  # [1, P, H]
        size = functional.linear(direction, weight).abs().max().float().clamp_min(1e-30)
        for magnitude in PROBE_MAGNITUDES:
            states = direction * (magnitude / size).to(weight)
            try:
                expected = self.head(states)
            except (IndexError, RuntimeError, TypeError, ValueError):
                return None
            plain = functional.linear(states, weight, linear.bias)
            if plain.shape != expected.shape or not torch.isfinite(expected).all():
                return None
            scale = expected.abs().max().float().clamp_min(1e-30)
            if float((plain - expected).abs().max().float() / scale) > tolerance:
                return None
        return linear

    def _probe(self, tokens: Tensor, expected: Tensor) -> float:
        """Largest difference from the model's own logits, relative to their size, over unequal chunks."""
        if self.body is None:
            return float("inf")
        try:
            states = self.states(tokens, tokens.shape[1])
            chunks = [self.logits(chunk) for chunk in states.split(PROBE_TOKENS // 2 - 1, dim=1)]
            actual = torch.cat(chunks, dim=1)
            if actual.shape != expected.shape:
                return float("inf")
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return float("inf")  # a body or head of unexpected form: whatever it raises, full logits are right
        finite = torch.isfinite(expected)
        if not torch.equal(finite, torch.isfinite(actual)):
            return float("inf")
        if not finite.any():  # a broken checkpoint: nothing to compare, its scores will be named non-finite
            return 0.0
        expected, actual = expected[finite].double(), actual[finite].double()
        return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def readout(model: nn.Module, tokens: Tensor) -> Readout:
    """The model's readout, probed once per model on the first tokens it is given.  tokens: [B, T]."""
    known: Readout | None = model.__dict__.get(READOUT)
    if known is None:
        inner = without_adapter(model)
        known = Readout(inner, tokens[:1, :PROBE_TOKENS].to(input_device(inner)))
        model.__dict__[READOUT] = known
    return known


def forward(model: Callable[..., Any], tokens: Tensor, **inputs: Any) -> Any:
    """One forward of tokens [B, T], without cache and without a mask: attention takes its causal fast path."""
    return model(input_ids=tokens, use_cache=False, **inputs)


def linear_into(out: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose result lies in `out`.  [N, H], [V, H], [V] → [N, V]."""
    if bias is None:
        return torch.mm(states, weight.T, out=out)
    return torch.addmm(bias, states, weight.T, out=out)


def input_device(model: nn.Module) -> torch.device:
    """Where tokens must lie: the device of the input embedding (models may be spread over several)."""
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


def use_smaller_chunks(divisor: int) -> None:
    """Let logits take only this part of their usual memory, in this process from now on."""
    global _divisor
    _divisor = divisor


def chunk_positions(buffers: int, vocab_size: int, device: torch.device) -> int:
    """Positions per chunk such that `buffers` float32 rows of [V] for each of them stay in budget."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES_DEVICE) // _divisor
    return max(1, budget // (buffers * vocab_size * 4))


def cached_positions(rows: int, vocab_size: int, device: torch.device) -> int | None:
    """Positions whose `rows` float32 rows of [V] stay in a processor's cache; None where that is of no use."""
    size = CACHE_BYTES.get(device.type)
    return None if size is None else max(1, size // (rows * vocab_size * 4))


def without_adapter(model: nn.Module) -> nn.Module:
    """The causal LM inside a PEFT model; its adapter layers are part of it."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def _output_embedding(model: nn.Module) -> Any:
    return getattr(model, "get_output_embeddings", lambda: None)()


def _find_body(model: nn.Module, call: Callable[..., Any], tokens: Tensor) -> tuple[nn.Module, Any] | None:
    """The body and an output: `base_model` if one forward calls it once, else `get_decoder()` likewise."""
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
    """The hidden states in a body's output; an empty tensor where there are none."""
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
def _body_returns(body: nn.Module, output: Any) -> Iterator[None]:
    """While open, calling the body computes nothing and returns `output`."""
    own: Callable[..., Any] | None = body.__dict__.get("forward")  # set by accelerate on dispatched models
    body.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own
