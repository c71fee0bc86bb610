"""What a model's position handling allows: how far it reaches, and whether length itself matters to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from longshort.scoring.forward import evaluating, forward, input_device
from longshort.scoring.prefix import score_prefix
from longshort.scoring.rope import DYNAMIC_ROPE_TYPES, rope_parameters

# A pass over more tokens changes the first ones' NLL by rounding alone if positions do not depend on length.
LENGTH_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # mean difference, nats
LENGTH_TOLERANCE_HALF = 2e-2


PROBE_TOKENS = 7  # few, and rarely another size of a model


@dataclass(frozen=True)
class _Table:
    """A tensor of which a forward reads consecutive rows along `dim`, beginning at `first`."""

    tensor: Tensor
    dim: int
    first: int
    gathered: bool = False  # also a copy of a table may be, as GPT-J's, repeated for each sequence of the batch

    @property
    def end(self) -> int:
        """Tokens that it has rows for."""
        return self.tensor.shape[self.dim] - self.first


class _BeyondTable(Exception):
    """A forward is about to read past the end of a table."""

    def __init__(self, table: _Table) -> None:
        super().__init__()
        self.table = table


class _PositionTables(TorchFunctionMode):
    """Watches a forward for tables of which it reads consecutive rows, the way positions are looked up.

    Reading past the end of one of them raises `_BeyondTable` instead, as on a GPU it would end the process.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.tables: list[_Table] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.embedding:
            self._note(args[1], 0, args[0])  # index [.., T], weight [rows, H]
        elif func in (torch.gather, Tensor.gather):
            self._note_gather(*args, **kwargs)
        elif func in (torch.index_select, Tensor.index_select):
            self._note_index_select(*args, **kwargs)
        elif func is Tensor.__getitem__:
            self._note_getitem(*args)
        return func(*args, **kwargs)

    def _note_gather(self, input: Tensor, dim: int, index: Tensor, **_: Any) -> None:
        if dim == 1 and index.ndim > 1:
            self._note(input, 1, index.flatten(2)[..., 0] if index.ndim > 2 else index, gathered=True)

    def _note_index_select(self, input: Tensor, dim: int, index: Tensor, **_: Any) -> None:
        self._note(input, dim, index)

    def _note_getitem(self, tensor: Tensor, key: Any) -> None:
        """Note `table[positions]`, `table[positions, :]`, `table[:T]`, `table[:, :T]` and the like."""
        for dim, part in enumerate(key if isinstance(key, tuple) else (key,)):
            if isinstance(part, slice):
                first, stop = part.start or 0, part.stop
                if type(first) is int and type(stop) is int and stop - first == self.num_tokens and first >= 0:
                    self.tables.append(_Table(tensor, dim, first))
            elif isinstance(part, Tensor) and part.dtype in (torch.int32, torch.int64):
                self._note(tensor, dim, part)
                return
            else:  # an ellipsis, a new dimension or a mask: the dimensions no longer match
                return

    def _note(self, tensor: Tensor, dim: int, index: Tensor, gathered: bool = False) -> None:
        if not index.ndim or index.shape[-1] != self.num_tokens:
            return
        steps = index.reshape(-1, index.shape[-1])[0]
        if bool((steps.diff() == 1).all()):
            table = _Table(tensor, dim, int(steps[0]), gathered)
            if table.end < self.num_tokens:
                raise _BeyondTable(table)
            self.tables.append(table)


@torch.no_grad()
def addressable_length(model: nn.Module) -> int | None:
    """The greatest number of tokens the model has positions for, or None if there is no limit.

    Found by watching one short forward: learned position embeddings (GPT-2, OPT, Whisper) and tables of sinusoids
    (GPT-J, CodeGen, CTRL) are read row by row. RoPE, most ALiBi and recurrent models have no table. Beyond its end a
    CPU raises IndexError and a GPU aborts the process, so it must be known before.
    """
    with evaluating(model):
        try:
            tables = _tables(model, PROBE_TOKENS)
        except _BeyondTable as error:
            return error.table.end
        # Not by identity: where weights are offloaded, a forward reads copies of the parameters.
        ends = [table.end for table in tables if isinstance(table.tensor, nn.Parameter) or table.gathered]
        for module in model.modules():
            for held in (module._buffers, module.__dict__):
                for name, value in list(held.items()):
                    found = [table for table in tables if table.tensor is value]
                    ends += [table.end for table in found if _is_fixed(model, module, held, name, table)]
    computed = _computed_end(getattr(model, "config", None))
    return min(ends if computed is None else [*ends, computed], default=None)


def _tables(model: nn.Module, num_tokens: int) -> list[_Table]:
    """The tables that a forward of this many tokens reads."""
    # Equal ids are never consecutive, and padding would call up a warning about masks.
    token = int(getattr(getattr(model, "config", None), "pad_token_id", None) == 0)
    tokens = torch.full((1, num_tokens), token, device=input_device(model))
    watch = _PositionTables(num_tokens)
    with torch.compiler.set_stance("force_eager"), watch:  # a compiled model does not look tables up one by one
        forward(model, tokens)
    return watch.tables


def _is_fixed(model: nn.Module, owner: nn.Module, held: dict[str, Any], name: str, table: _Table) -> bool:
    """Whether a buffer ends where it ends: a cache of sinusoids may grow with the sequence (XGLM).

    Tried with the buffer cut to the tokens of the probe, and one token more. If its module remembers the size of the
    buffer as a number, only a smaller number makes it grow; but an equal number may also be something else.

    Args:
        owner: the module that holds the buffer.
        held: where it does, its buffers or other attributes, under `name`.
    """
    attributes, buffers = dict(owner.__dict__), dict(owner._buffers)
    sizes = [key for key, value in attributes.items() if type(value) is int and value - table.end in (0, table.first)]
    for smaller in ([], sizes) if sizes else ([],):
        held[name] = table.tensor.narrow(table.dim, 0, table.first + PROBE_TOKENS)
        owner.__dict__.update(dict.fromkeys(smaller, PROBE_TOKENS))
        try:
            _tables(model, PROBE_TOKENS + 1)
            return False
        except (_BeyondTable, IndexError, RuntimeError, ValueError):
            pass
        finally:
            owner.__dict__.update(attributes)
            owner._buffers.update(buffers)
    return True


def _computed_end(config: Any) -> int | None:
    """The end of an architecture of transformers that computes it in each forward, without a table."""
    kind = getattr(config, "model_type", None)
    if kind == "mpt":  # ALiBi for so many tokens
        return int(config.max_seq_len)
    if kind == "reformer":  # pads longer sequences to whole chunks, which must have positions too
        kinds = set(config.attn_layers)
        chunks = [getattr(config, f"{name}_attn_chunk_length") for name in ("local", "lsh") if name in kinds]
        positions = config.max_position_embeddings
        if config.axial_pos_embds:
            positions = min(positions, math.prod(config.axial_pos_shape))
        multiple = math.lcm(*chunks)
        return int(max(positions // multiple * multiple, min(positions, *chunks)))
    return None


@torch.no_grad()
def depends_on_length(model: nn.Module, tokens: Tensor, lengths: Iterable[int], nll: Tensor) -> bool:
    """Whether reading more tokens changes what is said of the first ones (dynamic NTK, LongRoPE, CLEX).

    The position encodings that do so declare it or not; so, besides the config, one document is read at the
    smallest length and compared with its pass at the greatest. A dependence that is monotone in the length,
    as those of all known position encodings are, cannot hide between the two. Sparse attention that keeps a fixed
    number of keys (Doge, DeepSeek) cannot differ below that number, so the first length above it is tried too.

    Args:
        model: any `AutoModelForCausalLM`.
        tokens: one document, [1, N].
        lengths: the lengths that shall be read off one pass, in tokens, each ≤ N.
        nll: `score_prefix` of the document at the greatest of them, [1, max(lengths) - 1].
    """
    lengths = sorted(lengths)
    if len(lengths) < 2:
        return False
    if _declares_dependence(getattr(model, "config", None), lengths[-1]):
        return True
    kept = _keys_kept(getattr(model, "config", None))
    beyond = [length for length in lengths[1:-1] if kept is not None and lengths[0] <= kept < length]
    tolerance = LENGTH_TOLERANCE.get(getattr(model, "dtype", torch.float32), LENGTH_TOLERANCE_HALF)
    for length in (lengths[0], *beyond[:1]):
        short = score_prefix(model, tokens[:, :length])
        difference = (short - nll[:, : short.shape[1]].to(short.device)).abs().mean()
        if not float(difference) <= tolerance:  # also where it is NaN
            return True
    return False


def _keys_kept(config: Any) -> int | None:
    """The number of keys that sparse attention keeps for each token, or None."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(text_config, name, None) for name in ("keep_window_size", "index_topk"))
    return min((number for number in found if isinstance(number, int)), default=None)


def _declares_dependence(config: Any, longest: int) -> bool:
    """A RoPE type of transformers whose frequencies change beyond the original length."""
    return any(
        rope.get("rope_type") in DYNAMIC_ROPE_TYPES
        and longest > (rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        for rope in rope_parameters(config)
    )
