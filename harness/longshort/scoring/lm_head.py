"""Hidden states from one forward, then the model's own LM head over a chunk of positions at a time.

The backbone (everything below the LM head) runs once. For each chunk the backbone is made to return that slice of its
hidden states and the model is called again, so that its own LM head and whatever follows it run: tanh soft caps, logit
scales, divisors, norms before the head. Logits [T × V] are never held.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from longshort.scoring.probe import model_state, probe_tokens
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

COMPILED = "_orig_mod"  # what `torch.compile` calls the module that it wraps
LM_HEAD = "_longshort_lm_head"  # attribute of the model itself, so that both are freed together


class LMHead:
    """Computes hidden states from tokens and logits from hidden states, for one model.

    Args:
        model: a causal LM in evaluation mode.
        call: what to call instead of the model, such as its forward without the hooks around it.

    Attributes:
        vocab_size: width of the logits.
        backbone: the module whose output the LM head reads, or None: then the hidden states are full logits.
        problem: why there is no backbone, or None.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        compiled = model.__dict__.get("_compiled_call_impl") is not None
        # A graph that `model.compile()` recorded would neither see hooks nor another forward of the backbone.
        self._call = call or (model._call_impl if compiled else model)
        self.backbone: nn.Module | None = None
        self.problem: str | None = "none of its modules returns hidden states of shape [batch, tokens, width]"
        self._linear: nn.Linear | None = None
        self._output: Any = None  # what the backbone returns, a template to put other hidden states into
        # transformers' dynamic RoPE keeps the frequencies of the longest sequence so far; one token resets them.
        kinds = rope_parameters(getattr(model, "config", None))
        self._remembers_lengths = any(rope.get("rope_type") == "dynamic" for rope in kinds)
        tokens = probe_tokens(model, PROBE_TOKENS).to(input_device(model))  # [1, P]
        with torch.no_grad():
            expected = forward(self._call, tokens).logits  # [1, P, V]
            self.vocab_size = int(expected.shape[-1])
            tolerance = PROBE_TOLERANCE.get(expected.dtype, PROBE_TOLERANCE_HALF)
            problems: list[str | None] = []
            for backbone, output in _backbones(model, self._call, tokens):
                self.backbone, self._output = backbone, output
                problems.append(self._probe(tokens, expected, tolerance))
                if problems[-1] is None:
                    break
            if problems and problems[-1] is None:
                self.problem = None
                self._linear = self._plain_linear(tolerance)
        if self.problem is not None:
            self.problem = (problems and problems[0]) or self.problem  # the first module is the likeliest backbone
            self.backbone = None
            if self.problem != getattr(model.__dict__.get(LM_HEAD), "problem", None):  # not again for every document
                _warn(model, self.problem, self.vocab_size)
        self._state = model_state(model, self.backbone)

    def is_current(self) -> bool:
        """Whether the model is still as it was probed: hooks, modules, dtypes, devices and settings."""
        return model_state(self.model, self.backbone) == self._state

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

        def capture(output: Any) -> Any:
            hidden = _hidden_of(output)
            captured.append(hidden[:, -keep:].clone() if keep < hidden.shape[1] else hidden)
            return _with_hidden(output, hidden[:, -1:])  # the LM head runs on one position only

        with _intercepting(self.backbone, capture):
            forward(self._call, tokens, **inputs)
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
        if not is_plain_linear(linear) or linear.weight.dtype != torch.float32:
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

    def _probe(self, tokens: Tensor, expected: Tensor, tolerance: float) -> str | None:
        """What is wrong with logits in unequal chunks, compared with the model's own; None if nothing is."""
        chunk = max(1, tokens.shape[1] // 2 - 1)
        try:
            hidden_states = self.hidden_states(tokens, tokens.shape[1])
            actual = torch.cat([self.logits(part) for part in hidden_states.split(chunk, dim=1)], dim=1)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # A backbone or LM head of unexpected form: full logits are always right.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"its LM head cannot be run on a few positions alone ({reason})"
        finite = torch.isfinite(expected)
        if actual.shape != expected.shape or not torch.equal(finite, torch.isfinite(actual)):
            return "its LM head on a few positions returns logits of another shape, or infinite ones"
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
        with evaluating(inner):
            known = LMHead(inner)
        inner.__dict__[LM_HEAD] = known
    return known


def is_plain_linear(module: Any) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's own linear layer with ordinary tensors, and not a quantized or distributed one."""
    return type(module) is nn.Linear and all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided for tensor in module.parameters()
    )


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
    device = next(chain(module.parameters(), module.buffers(), model.parameters())).device  # quantized: only buffers
    if device.type == "meta":  # offloaded weights: accelerate's hook knows where they will run
        device = torch.device(getattr(getattr(module, "_hf_hook", None), "execution_device", "cpu"))
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and training mode back on afterwards in the modules in which it was on."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


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


def without_wrappers(model: nn.Module) -> nn.Module:
    """The causal LM inside a PEFT model, whose adapter layers are part of it, or inside `torch.compile`'s wrapper.

    A compiled model is run uncompiled: its graph cannot be stopped below the LM head. A backbone that is compiled
    alone stays so.
    """
    inner = model._modules.get(COMPILED)
    if inner is None:
        get_base_model = getattr(model, "get_base_model", None)
        inner = get_base_model() if callable(get_base_model) else model
    return model if inner is model else without_wrappers(inner)


def _output_embedding(model: nn.Module) -> Any:
    return getattr(model, "get_output_embeddings", lambda: None)()


def _warn(model: nn.Module, problem: str, vocab_size: int) -> None:
    logger.warning(
        "%s: logits cannot be computed for a few positions at a time, because %s. Falling back to full logits: the "
        "scores are the same, but every token of a window needs another %.1f MiB of memory. If memory runs out, use "
        "shorter lengths, or remove hooks and changes from the model's forward.",
        type(model).__name__,
        problem,
        vocab_size * 4 / 2**20,
    )


def _backbones(model: nn.Module, call: Callable[..., Any], tokens: Tensor) -> Iterator[tuple[nn.Module, Any]]:
    """Modules that may be the backbone, with what they return: those that one forward calls once for all tokens.

    First `base_model` and `get_decoder()`. Some models (Llama 4, Mllama) name neither: then the modules in the upper
    two levels that hold a list of layers, those with most parameters first.
    """
    named = (getattr(model, "base_model", None), getattr(model, "get_decoder", lambda: None)())
    levels = [*model.children(), *chain.from_iterable(child.children() for child in model.children())]
    levels = [module for module in levels if any(isinstance(part, nn.ModuleList) for part in module.modules())]
    levels.sort(key=lambda module: -sum(parameter.numel() for parameter in module.parameters()))
    head = _output_embedding(model)
    candidates = {
        module: list[Any]()
        for module in (*named, *levels)
        if isinstance(module, nn.Module) and module is not model and module is not head
    }
    with ExitStack() as stack:
        for module, outputs in candidates.items():
            stack.enter_context(_intercepting(module, outputs.append))
        forward(call, tokens)
    for module, outputs in candidates.items():
        if len(outputs) == 1 and _hidden_of(outputs[0]).shape[:2] == tokens.shape:
            yield module, outputs[0]


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
def _intercepting(module: nn.Module, intercept: Callable[[Any], Any]) -> Iterator[None]:
    """While open, `intercept` gets what the module returns; if it returns something itself, that takes its place."""
    compiled: Callable[..., Any] | None = module.__dict__.get("_compiled_call_impl")
    if compiled is None:
        handle = module.register_forward_hook(lambda module, args, output: intercept(output))
        try:
            yield
        finally:
            handle.remove()
        return

    def call(*args: Any, **kwargs: Any) -> Any:  # the graph of `module.compile()` does not see new hooks
        output = compiled(*args, **kwargs)
        replaced = intercept(output)
        return output if replaced is None else replaced

    with _replacing(module, "_compiled_call_impl", call):
        yield


@contextmanager
def _backbone_returns(backbone: nn.Module, output: Any) -> Iterator[None]:
    """While open, calling the backbone computes nothing and returns `output`."""
    compiled = backbone.__dict__.get("_compiled_call_impl") is not None
    with _replacing(backbone, "_compiled_call_impl" if compiled else "forward", lambda *args, **kwargs: output):
        yield


@contextmanager
def _replacing(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While open, the module's attribute is `function`."""
    own: Callable[..., Any] | None = module.__dict__.get(name)  # a forward is set by accelerate on dispatched models
    setattr(module, name, function)
    try:
        yield
    finally:
        if own is None:
            delattr(module, name)
        else:
            setattr(module, name, own)
