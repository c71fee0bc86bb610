"""The training loss of two windows from hidden states, chunk by chunk: no logits of a whole window are held.

The backbone runs once. Then, for a chunk of positions at a time, the LM head computes logits, and value and gradient
of the loss are computed together, in closed form; only the gradients with respect to the hidden states and the LM
head's parameters are kept until the backward pass, which scales them. The results equal cross-entropy and
``misalignment_loss`` on the model's full logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longshort.scoring.chunks import chunk_positions
from longshort.scoring.forward import evaluating, input_device, without_wrappers
from longshort.scoring.lm_head import PROBE_TOKENS, PROBE_TOLERANCE, PROBE_TOLERANCE_HALF, LMHead, is_plain_linear
from longshort.training.closed_form import NUM_BUFFERS, cross_entropy_block, pair_block
from longshort.training.config import Detach, Divergence, Positions
from longshort.training.regularizer import shared_positions

FUSED = "_longshort_fused"  # kept on the model itself, so that both are freed together
# The statistics of a chunk pass over it some ten times: in blocks that stay in a CPU's cache.
BLOCK_BYTES = 2**22
LARGE_LOGIT = 1000.0  # shows soft caps in a probe


@dataclass(frozen=True)
class FusedLoss:
    """Which loss a forward returns, with windows A, then windows B, on the batch axis; see `TrainConfig`."""

    extra: int  # how many tokens later window B starts
    special: int  # tokens at each window's start that the tokenizer put there, as BOS
    alpha: float  # weight of the misalignment; with 0 it is measured, but gives no gradient
    windows: int = 2
    positions: Positions = "overlap"
    divergence: Divergence = "sce"
    detach: Detach = "none"


class LossParts(NamedTuple):
    """Scalars in nats; only ``loss`` carries a gradient. One window has no misalignment: then those are None."""

    loss: Tensor  # cross_entropy + α · misalignment
    cross_entropy: Tensor  # mean over all next-token targets of all windows
    misalignment: Tensor | None  # mean over pairs of positions, as the next two
    entropy: Tensor | None  # H(p) + H(q)
    jeffreys: Tensor | None  # KL(p‖q) + KL(q‖p)


def add_fused_loss(model: nn.Module, tokens: Tensor) -> bool:
    """Let ``model(input_ids=…, fused_loss=FusedLoss(…), …)`` return `LossParts` instead of logits.

    Calls without ``fused_loss`` go to the model's own forward. The loss is computed inside the forward, so that
    one call through whatever wraps the model later (DDP, FSDP, autocast, PEFT) does everything.

    Args:
        model: a causal LM, before it is wrapped; a PEFT model's causal LM gets the new forward.
        tokens: to probe the model with  # [B, T]

    Returns:
        Whether the model now computes the loss; False, with a warning, if its LM head cannot be run apart from the
        backbone.
    """
    model = without_wrappers(model)
    if FUSED in model.__dict__:
        return True
    probe = tokens[:1, :PROBE_TOKENS].to(input_device(model))
    with evaluating(model):
        lm_head = LMHead(model, call=model.forward)
        if lm_head.backbone is None:
            return False
        parameters, is_linear = _lm_head_parameters(model, lm_head, probe)
    model.__dict__[FUSED] = _Fused(model.forward, lm_head, parameters, is_linear)

    @functools.wraps(type(model).forward)  # generation reads the signature
    def forward(self: nn.Module, *args: Any, fused_loss: FusedLoss | None = None, **inputs: Any) -> Any:
        fused: _Fused = self.__dict__[FUSED]
        if fused_loss is None:
            return fused.original(*args, **inputs)
        return _loss(fused, fused_loss, *args, **inputs)

    model.forward = MethodType(forward, model)  # a method, so that a deep copy calls the copy's own weights
    return True


@dataclass
class _Fused:
    """State of a model that can compute the loss."""

    original: Callable[..., Any]
    lm_head: LMHead
    parameters: list[tuple[nn.Module, str]]  # by name: FSDP puts other tensors there during a forward
    is_linear: bool  # logits are `F.linear(hidden_states, *parameters)`, nothing more


def _lm_head_parameters(model: nn.Module, lm_head: LMHead, tokens: Tensor) -> tuple[list[tuple[nn.Module, str]], bool]:
    """The parameters between hidden states and logits, and whether they are those of one plain linear map."""
    with torch.no_grad():
        hidden_states = lm_head.hidden_states(tokens, tokens.shape[1])
        hidden_states = hidden_states * (LARGE_LOGIT / lm_head.model_logits(hidden_states).abs().max())
    named = {
        parameter: (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point()
    }
    frozen = [parameter for parameter in named if not parameter.requires_grad]
    for parameter in frozen:  # training may unfreeze them later
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = lm_head.model_logits(hidden_states)
            gradients = torch.autograd.grad(logits.sum(), list(named), allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    reached = [parameter for parameter, gradient in zip(named, gradients, strict=True) if gradient is not None]
    linear = getattr(model, "get_output_embeddings", lambda: None)()
    if is_plain_linear(linear) and {*reached} == {*linear.parameters()}:  # no quantized or adapted one
        with torch.no_grad():
            difference = (F.linear(hidden_states, linear.weight, linear.bias) - logits).abs().max()
            relative = difference / logits.abs().max()
        if relative <= PROBE_TOLERANCE.get(logits.dtype, PROBE_TOLERANCE_HALF):
            return [(linear, name) for name, _ in linear.named_parameters()], True
    return [named[parameter] for parameter in reached], False


def _loss(fused: _Fused, request: FusedLoss, input_ids: Tensor, **inputs: Any) -> LossParts:
    """Run the backbone on `input_ids` [W·B, T], then the LM head and the loss in chunks."""
    inputs.pop("use_cache", None)  # the backbone is called without one
    hidden_states = fused.lm_head.hidden_states(input_ids, input_ids.shape[1], **inputs)
    parameters = [getattr(module, name) for module, name in fused.parameters]
    wants_gradient = torch.is_grad_enabled()
    loss, parts = _LossOfHiddenStates.apply(  # type: ignore[no-untyped-call]  # torch's has no types
        fused, request, wants_gradient, input_ids, hidden_states, *parameters
    )
    cross_entropy, *misalignment = parts.unbind()
    return LossParts(loss, cross_entropy, *(misalignment if request.windows == 2 else [None] * 3))


class _LossOfHiddenStates(torch.autograd.Function):
    """(hidden states [W·B, T, H], the LM head's parameters) → loss, and the four parts of it that are logged [4]."""

    @staticmethod
    def forward(
        ctx: Any,
        fused: _Fused,
        request: FusedLoss,
        wants_gradient: bool,
        tokens: Tensor,
        hidden_states: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        pairs, rest = _positions(request, len(tokens), tokens.shape[1], hidden_states.device)
        targets, weights = _targets(tokens, torch.promote_types(hidden_states.dtype, torch.float32))
        vocab_size = fused.lm_head.vocab_size
        size, block = chunk_sizes(vocab_size, hidden_states.device, pairs.shape[1] + rest.shape[1])
        trainable = [wants_gradient and needed for needed in ctx.needs_input_grad[5:]]
        head = (_LinearHead if fused.is_linear else _AnyHead)(fused, parameters, trainable, 2 * size)
        flat = hidden_states.flatten(0, 1)  # [W·B·T, H]
        chunks = _Chunks(
            head,
            flat,
            torch.empty_like(flat) if wants_gradient else None,
            targets,
            weights,
            weights.new_empty(NUM_BUFFERS, block, vocab_size),
        )
        scale = request.alpha / max(1, pairs.shape[1])
        loss_of_pairs = functools.partial(pair_block, divergence=request.divergence, detach=request.detach, scale=scale)
        losses: list[tuple[Tensor, Tensor]] = []
        for pair_chunk in pairs.split(size, 1):  # [2, C]
            losses += chunks.losses(pair_chunk, loss_of_pairs)
        for chunk in rest.split(2 * size, 1):  # [1, C]
            losses += chunks.losses(chunk, cross_entropy_block)
        cross_entropy = torch.stack([loss for loss, _ in losses]).sum()
        parts = torch.cat([values for _, values in losses], 1).mean(1)  # [3]
        grad_flat = chunks.grad_hidden_states
        grad_hidden_states = None if grad_flat is None else grad_flat.view_as(hidden_states)
        ctx.save_for_backward(grad_hidden_states, *head.gradients)
        loss = cross_entropy + request.alpha * parts[0] if request.alpha else cross_entropy.clone()
        parts = torch.cat([cross_entropy[None], parts])
        ctx.mark_non_differentiable(parts)
        return loss, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if gradient is None else gradient * grad_loss for gradient in ctx.saved_tensors]
        return (None, None, None, None, *gradients)


@dataclass(frozen=True)
class _Chunks:
    """Computes the loss of some positions at a time, and its gradient with respect to their hidden states."""

    head: _LinearHead | _AnyHead
    hidden_states: Tensor  # [W·B·T, H]
    grad_hidden_states: Tensor | None  # where the gradient is written to, if it is wanted  # [W·B·T, H]
    targets: Tensor  # [W·B·T]
    weights: Tensor  # [W·B·T]
    scratch: Tensor  # the buffers of a block  # [7, block, V]

    def losses(
        self, positions: Tensor, block_loss: Callable[..., tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Run the LM head once on all positions [S, C], one or two sides of them, and `block_loss` on each block."""
        if positions.numel() == 0:
            return []
        rows = positions.flatten()  # [S·C]
        logits, gradient = self.head.logits(self.hidden_states[rows])  # [S·C, V] each
        logits_of_sides = logits.unflatten(0, positions.shape)  # [S, C, V]
        gradient_of_sides = gradient.unflatten(0, positions.shape)  # [S, C, V]
        losses = []
        size = self.scratch.shape[1]
        for start in range(0, positions.shape[1], size):
            columns = slice(start, start + size)
            block_positions = positions[:, columns]  # [S, block]
            losses.append(
                block_loss(
                    logits_of_sides[:, columns],
                    self.targets[block_positions],
                    self.weights[block_positions],
                    self.scratch[:, : block_positions.shape[1]],
                    None if self.grad_hidden_states is None else gradient_of_sides[:, columns],
                )
            )
        if self.grad_hidden_states is not None:
            self.grad_hidden_states[rows] = self.head.backward(gradient).to(self.grad_hidden_states.dtype)
        return losses


class _LinearHead:
    """A plain linear map: all products go into buffers that exist already."""

    def __init__(self, fused: _Fused, parameters: tuple[Tensor, ...], trainable: list[bool], rows: int) -> None:
        device = parameters[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameters[0].dtype
        self.weight = parameters[0].to(dtype)  # [V, H]
        self.bias = parameters[1].to(dtype) if len(parameters) > 1 else None  # [V]
        self.buffer = self.weight.new_empty(rows, len(self.weight))
        self.gradients = _zeros(parameters, trainable)

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[R, H] → logits, and where their gradient goes: into the same buffer  # [R, V] both"""
        self.hidden = hidden.to(self.weight.dtype)
        logits = self.buffer[: len(hidden)]
        if self.bias is None:
            torch.mm(self.hidden, self.weight.t(), out=logits)
        else:
            torch.addmm(self.bias, self.hidden, self.weight.t(), out=logits)
        return logits, logits

    def backward(self, gradient: Tensor) -> Tensor:
        """[R, V] → [R, H]; adds up the parameters' gradients."""
        grad_weight, grad_bias = (*self.gradients, None)[:2]
        if grad_weight is not None:
            if grad_weight.dtype == gradient.dtype:
                grad_weight.addmm_(gradient.t(), self.hidden)
            else:
                grad_weight.add_(gradient.t() @ self.hidden)
        if grad_bias is not None:
            grad_bias.add_(gradient.sum(0))
        return gradient @ self.weight


class _AnyHead:
    """The model's own LM head with all that is applied around it, and autograd through it."""

    def __init__(self, fused: _Fused, parameters: tuple[Tensor, ...], trainable: list[bool], rows: int) -> None:
        self.lm_head = fused.lm_head
        self.parameters = [parameter for parameter, wanted in zip(parameters, trainable, strict=True) if wanted]
        self.gradients = _zeros(parameters, trainable)

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[R, H] → logits, and where their gradient goes  # [R, V] both"""
        with torch.enable_grad():
            self.hidden = hidden.requires_grad_()
            self.output = self.lm_head.model_logits(self.hidden[None])[0]
        logits = self.output.detach()  # not to be written into: the head's own backward may need them
        return logits, torch.empty_like(logits)

    def backward(self, gradient: Tensor) -> Tensor:
        """[R, V] → [R, H]; adds up the parameters' gradients."""
        grad_hidden, *gradients = torch.autograd.grad(self.output, [self.hidden, *self.parameters], gradient)
        for total, part in zip((total for total in self.gradients if total is not None), gradients, strict=True):
            total.add_(part)
        return grad_hidden


def _zeros(parameters: tuple[Tensor, ...], trainable: list[bool]) -> list[Tensor | None]:
    """Sums of gradients over chunks; float32 for half precision, which would lose the small ones."""
    dtypes = [torch.promote_types(parameter.dtype, torch.float32) for parameter in parameters]
    return [
        torch.zeros_like(parameter, dtype=dtype) if wanted else None
        for parameter, dtype, wanted in zip(parameters, dtypes, trainable, strict=True)
    ]


def _positions(request: FusedLoss, rows: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices into the flat batch: positions compared with each other [2, P], and all others [1, R]."""
    index = torch.arange(rows * length, device=device).view(request.windows, -1, length)  # [W, B, T]
    if request.windows == 1:
        return index.new_empty(2, 0), index.view(1, -1)
    shared = shared_positions(length, request.extra, request.positions, request.special)
    pairs, rest = [], []
    for side, offset in zip(index, (request.extra, 0), strict=True):  # [B, T]
        before, paired, after = side.tensor_split([offset + shared.start, offset + shared.stop], dim=1)
        pairs.append(paired.flatten())
        rest += [before.flatten(), after.flatten()]
    return torch.stack(pairs), torch.cat(rest)[None]


def _targets(tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The next token of every position, and its weight in the mean; a window's last has none.  [W·B·T] both."""
    rows, length = tokens.shape
    weights = torch.full(tokens.shape, 1 / (rows * (length - 1)), dtype=dtype, device=tokens.device)
    weights[:, -1] = 0
    return F.pad(tokens[:, 1:], (0, 1)).flatten(), weights.flatten()


def chunk_sizes(vocab_size: int, device: torch.device, positions: int) -> tuple[int, int]:
    """Pairs per chunk, for which the LM head runs at once, and per block, for which the statistics are computed."""
    if device.type != "cpu":
        size = min(positions, chunk_positions(NUM_BUFFERS + 4, vocab_size, device))
        return size, size
    size = min(positions, chunk_positions(2, vocab_size, device))
    return size, min(size, max(1, BLOCK_BYTES // (4 * vocab_size)))
