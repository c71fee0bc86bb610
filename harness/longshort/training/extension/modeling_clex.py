"""CLEX: continuous length extrapolation (Chen et al., ICLR 2024) for Llama, Mistral, Qwen2 and Qwen3.

A checkpoint carries this file, so that ``from_pretrained(DIR, trust_remote_code=True)`` opens it; it needs torch
and transformers only.

RoPE's d/2 log inverse frequencies z follow a neural ODE in the scale t = length / L0, L0 the length of the base:

    dz/dt = act((z + n(t)) W_up) W_down + dn/dt,   z(1) = n(1),
    n_i(t) = -(2i/d) ln θ - (2i/(d-2)) ln(2t - 1)    (NTK-aware RoPE of factor 2 at length t · L0)

With W_down = 0, where training starts, z = n exactly. So only the learned part u = z - n is integrated. Two keys of
``config.rope_parameters`` are for checkpoints of the official code: ``inv_freq``, frequencies in place of those of θ
at t = 1, and ``network_theta``, a θ of the n(t) that is added to z in act(...), which is 10,000 there for every base.

**Which t.** All positions of a forward use one t = ⌈length / L0⌉, at least 1 and at most max_t, from the tokens
read, padding included: score without padding. Keys in a cache are rotated already, so a cache keeps the t it was
filled with; `generate` takes t from the greatest length it may reach, max_length or prompt + max_new_tokens.
``config.rope_parameters["fixed_t"]`` sets one t for every length. ``model(..., clex_t=t)`` sets it for one call.

**In training** every row has its own t and positions stretched over t times their range: ``clex_t`` [B] and
``clex_positions`` [B, T], both integers, which mixed precision does not round. The model divides the positions by
max(1, T // L0), in float32; the causal mask does not see them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def base_frequencies(config: Any, device: Any = None, *_: Any, **__: Any) -> tuple[Tensor, float]:
    """Frequencies at t = 1, [d/2] in float32, and a factor of attention, which is 1.

    Raises:
        KeyError: the config is not one of CLEX; a stock model would be read as plain RoPE.
    """
    if not hasattr(config, "_validate_clex_rope_parameters"):  # by name: a checkpoint carries a copy of this module
        raise KeyError("clex")
    if given := config.rope_parameters.get("inv_freq"):
        return torch.tensor(given, dtype=torch.float32, device=device), 1.0
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return powers(config.rope_parameters["rope_theta"], dim, device), 1.0


def powers(theta: float, dim: int, device: Any = None) -> Tensor:
    """θ^(-2i/d), i = 0 .. d/2 - 1, [d/2] in float32."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / theta**exponents


# The stock models look up a RoPE type while they are built, before theirs is replaced. The entry is made on import,
# since a checkpoint carries this file alone.
ROPE_INIT_FUNCTIONS.setdefault("clex", base_frequencies)


class ClexRotaryEmbedding(nn.Module):
    """RoPE with the frequencies of a scale t; `set_scale` before each forward."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        half = len(base_frequencies(config)[0])
        hidden = int(config.rope_parameters["hidden_multiplier"] * 2 * half)
        self.up = nn.Parameter(torch.empty(half, hidden, dtype=torch.float32))  # [d/2, λd]
        self.down = nn.Parameter(torch.empty(hidden, half, dtype=torch.float32))  # [λd, d/2]
        self.activation: Callable[[Tensor], Tensor] = ACT2FN[config.rope_parameters["activation"]]
        self.t: float | Tensor = 1.0
        self.positions: Tensor | None = None
        self._solved: tuple[Tensor, Tensor, dict[float, Tensor]] | None = None

    def reset_parameters(self) -> None:
        """Start as NTK-aware RoPE."""
        nn.init.kaiming_uniform_(self.up, a=math.sqrt(5))
        nn.init.zeros_(self.down)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClexRotaryEmbedding:
        """Follow a model to another device, not to another dtype: log frequencies need float32."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch's has no types
        return self

    def scale(self, length: int) -> float:
        """The t for `length` tokens."""
        rope = self.config.rope_parameters
        if rope.get("fixed_t"):
            return float(rope["fixed_t"])
        return float(min(max(1, math.ceil(length / rope["original_max_position_embeddings"])), rope["max_t"]))

    def set_scale(self, t: float | Tensor, positions: Tensor | None) -> None:
        """Choose the t of the next forward, one or one per row [B], and its positions if not the tokens' indices.

        Args:
            t: a number, or integers from 1 on  # [B]
            positions: integers, to be divided by max(1, T // L0)  # [1 or B, T]

        Raises:
            TypeError: a tensor is not of an integer type.
        """
        for name, value in (("clex_t", t), ("clex_positions", positions)):
            if isinstance(value, Tensor) and value.dtype not in (torch.int32, torch.int64):
                raise TypeError(
                    f"{name} is a tensor of {value.dtype}; it must be of int64 or int32: mixed precision rounds "
                    "floating-point inputs, in bfloat16 to three digits. Pass integers; the model divides positions."
                )
        self.t = t if isinstance(t, Tensor) else float(t)
        self.positions = positions

    def frequencies(self, t: float) -> Tensor:
        """Inverse frequencies at scale t, [d/2] float32; solved once per t where no gradient is wanted."""
        if torch.is_grad_enabled():
            return self._solve(t)[0]
        known = self._solved
        # Compared by value: optimizers that write through .data leave no other trace.
        if known is None or not (torch.equal(known[0], self.up) and torch.equal(known[1], self.down)):
            known = self._solved = (self.up.detach().clone(), self.down.detach().clone(), {})
        if t not in known[2]:
            known[2][t] = self._solve(t)[0]
        return known[2][t]

    def frequencies_of_rows(self, t: Tensor) -> Tensor:
        """Inverse frequencies at the scales t [B], integers from 1 on: [B, d/2] float32.

        One solution up to the greatest t serves all rows. It stops at every integer, whichever scales the batch has:
        how a batch is split changes nothing.
        """
        low, high = (int(bound) for bound in t.aminmax())
        if low < 1:
            raise ValueError(f"clex_t contains {low}; a scale must be at least 1.")
        return self._solve(*range(1, high + 1))[t.to(self.up.device) - 1]

    def _solve(self, *stops: float) -> Tensor:
        """Inverse frequencies at ascending scales, [number of stops, d/2].

        u is integrated by the classical Runge-Kutta method from 1 to the first, and from each to the next, in equal
        steps of at most `step`.
        """
        up, down = self.up.float(), self.down.float()
        base, _ = base_frequencies(self.config, up.device)
        dim = 2 * len(base)
        exponents = torch.arange(0, dim, 2, device=up.device) / (dim - 2)

        def slope(place: Tensor, learned: Tensor) -> Tensor:
            return self.activation((place + learned) @ up) @ down

        solved = []
        learned = torch.zeros_like(base)
        with torch.autocast(up.device.type, enabled=False):
            for start, stop in pairwise((1.0, *stops)):
                # One step at least, of length 0 at t = 1: DistributedDataParallel wants every parameter in every graph.
                steps = max(1, math.ceil((stop - start) / self.config.rope_parameters["step"] - 1e-9))
                h = (stop - start) / steps
                times = torch.linspace(start, stop, 2 * steps + 1, dtype=torch.float64).to(up)  # with the middles
                inputs = 2 * (base.log() - exponents * (2 * times[:, None] - 1).log())  # [2 · steps + 1, d/2]
                if network_theta := self.config.rope_parameters.get("network_theta"):
                    inputs = inputs + (powers(network_theta, dim, up.device).log() - base.log())
                for index in range(0, 2 * steps, 2):
                    first = slope(inputs[index], learned)
                    second = slope(inputs[index + 1], learned + h / 2 * first)
                    third = slope(inputs[index + 1], learned + h / 2 * second)
                    fourth = slope(inputs[index + 2], learned + h * third)
                    learned = learned + h / 6 * (first + 2 * (second + third) + fourth)
                solved.append(base * (learned - exponents * math.log(2 * stop - 1)).exp())
        return torch.stack(solved)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of every position's angles in the dtype of x, each [B or 1, T, d]."""
        if isinstance(self.t, Tensor):
            frequencies = self.frequencies_of_rows(self.t)[:, None]  # [B, 1, d/2]
        else:
            frequencies = self.frequencies(self.t)  # [d/2]
        positions = position_ids.to(x.device).float()
        if self.positions is not None:
            original = self.config.rope_parameters["original_max_position_embeddings"]
            positions = self.positions.to(x.device).float() / max(1, self.positions.shape[-1] // original)
        angles = positions[..., None] * frequencies.to(x.device)  # [B, T, d/2]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class ClexConfig:
    """What the configs share: their RoPE type is known to them."""

    _auto_class = "AutoConfig"

    def _validate_clex_rope_parameters(self, rope_parameters: dict[str, Any], ignore_keys: Any = None) -> None:
        missing = {"original_max_position_embeddings", "max_t", "hidden_multiplier", "activation", "step"}
        if missing := missing - set(rope_parameters):
            raise KeyError(f"rope_parameters of rope_type 'clex' lack {', '.join(sorted(missing))}")


class ClexWeights:
    """What all the models share: how the ODE's weights start and that they stay in float32."""

    _keep_in_fp32_modules_strict = {"rotary_emb"}  # noqa: RUF012 - transformers' own name and form

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ClexRotaryEmbedding):
            module.reset_parameters()
        else:
            super()._init_weights(module)  # type: ignore[misc]  # a mixin: the stock class comes next


class ClexModel(ClexWeights):
    """What the backbones share: one t per forward."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # a mixin: the stock class comes next
        self.rotary_emb = ClexRotaryEmbedding(config)
        self.post_init()  # type: ignore[attr-defined]  # a mixin: the stock class comes next

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        clex_t: float | Tensor | None = None,
        clex_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The architecture's own forward of tokens [B, T] at one t, or one per row; see the top of this file."""
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        read: Any = input_ids if input_ids is not None else inputs_embeds
        t = self.rotary_emb.scale(past + read.shape[1]) if clex_t is None else clex_t
        if past:
            t = getattr(past_key_values, "clex_t", t)
        self.rotary_emb.set_scale(t, clex_positions)
        outputs = super().forward(  # type: ignore[misc]  # a mixin: the stock class comes next
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if getattr(outputs, "past_key_values", None) is not None:
            outputs.past_key_values.clex_t = t
        return outputs


class ClexForCausalLM(ClexWeights):
    """What the causal LMs share: the backbone, and one t per generation."""

    _auto_class = "AutoModelForCausalLM"
    backbone_class: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self.backbone_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]  # a mixin: the stock class comes next

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: Any, *args: Any, **kw: Any) -> None:
        """The one place where `generate` knows its greatest length and what each forward is called with."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kw)  # type: ignore[misc]  # a mixin: the stock class comes next
        model_kwargs["clex_t"] = self.model.rotary_emb.scale(generation_config.max_length)


def _build_classes(architecture: str) -> Any:
    """Build the CLEX classes of one architecture from the stock ones, and return the causal LM.

    Each class becomes a name of this module, ``Clex`` and the stock name: `auto_map` of a checkpoint refers to it.
    """

    def subclass(mixin: type, kind: str, **attributes: Any) -> Any:
        name = f"Clex{architecture}{kind}"
        stock = getattr(transformers, f"{architecture}{kind}")
        globals()[name] = built = type(name, (mixin, stock), attributes)
        return built

    config_class = subclass(ClexConfig, "Config", model_type=f"longshort_clex_{architecture.lower()}")
    backbone_class = subclass(ClexModel, "Model", config_class=config_class)
    return subclass(ClexForCausalLM, "ForCausalLM", config_class=config_class, backbone_class=backbone_class)


CAUSAL_LMS: dict[str, Any] = {name.lower(): _build_classes(name) for name in ("Llama", "Mistral", "Qwen2", "Qwen3")}
