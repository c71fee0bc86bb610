"""Training as one would write it down: dense float64, one sequence at a time, AdamW and clipping by hand.

Nothing of longshort is used but the sequences that a run reads. The model is transformers' Llama, with its norms and
its RoPE in float64.
"""

import math

import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, LlamaConfig

THETA = 10_000.0
BETAS, EPS = (0.9, 0.999), 1e-8


class Rope(nn.Module):
    """RoPE of given frequencies; CLEX's solve their differential equation."""

    def __init__(self, config, settings):
        super().__init__()
        self.extension, self.half = settings.get("extension", "none"), config.head_dim // 2
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
        self.exponents = exponents / config.head_dim, exponents / (config.head_dim - 2)
        theta = 500_000.0 if self.extension == "eabf" else THETA
        self.inverse = theta ** -self.exponents[0]
        self.attention_factor = 1.0
        if self.extension in ("linear", "longqlora"):
            self.inverse = self.inverse / 2
        elif self.extension == "yarn":  # transformers' own
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            self.inverse, self.attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        elif self.extension == "clex":
            self.up = nn.Parameter(torch.zeros(self.half, 2 * self.half))
            self.down = nn.Parameter(torch.zeros(2 * self.half, self.half))

    def frequencies(self, t):
        """At scale t: classical Runge-Kutta steps of 0.1 for dz/dt, z(1) = the log frequencies of plain RoPE."""
        slow, fast = self.exponents

        def slope(t, z):
            ntk = -fast * 2 * math.log(2 * t - 1) / 2 - slow * math.log(THETA)
            learned = nn.functional.silu((z + ntk) @ self.up) @ self.down
            return learned - fast * 2 / (2 * t - 1)

        z, h = -slow * math.log(THETA), 0.1
        for step in range(round((t - 1) / h)):
            at = 1 + step * h
            first = slope(at, z)
            second = slope(at + h / 2, z + h / 2 * first)
            third = slope(at + h / 2, z + h / 2 * second)
            fourth = slope(at + h, z + h * third)
            z = z + h / 6 * (first + 2 * second + 2 * third + fourth)
        return z.exp()

    def forward(self, x, position_ids):
        positions, inverse = torch.arange(x.shape[1], dtype=torch.float64), self.inverse
        if self.extension == "clex":
            positions = self.positions.double() / max(1, x.shape[1] // 16)
            inverse = self.frequencies(self.t)
        angles = torch.outer(positions, inverse.double()).repeat(1, 2)[None]  # [1, T, d]
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


def build(fields, settings):
    """The model in float64; its weights do not matter."""
    changes = {}
    if settings.get("extension") == "yarn":
        changes = {"rope_type": "yarn", "rope_theta": THETA, "factor": 2.0, "original_max_position_embeddings": 16}
        changes = {"rope_parameters": changes, "max_position_embeddings": 32}
    config = LlamaConfig(**fields | changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    model.model.rotary_emb = Rope(config, settings).double()
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = lambda x, norm=module: (
                norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
            )
    if settings.get("extension") == "eabf":  # queries times max(1, ln(i + 1) / ln L0), here in the second layer
        scale = (torch.arange(1, 65, dtype=torch.float64).log() / math.log(16)).clamp_min(1)[:, None]
        model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda m, x, y: y * scale[: y.shape[1]])
    return model.train()


def shifted_mask(length, groups):
    """Which keys a query sees, for a head that attends within groups, and for one whose groups are shifted by half."""
    size = length // groups
    index = torch.arange(length)
    causal = index[:, None] >= index
    groups_of_heads = (index // size, (index + size // 2) // size)
    seen = torch.stack([causal & (group[:, None] == group) for group in groups_of_heads])  # [2, T, T]
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)[None]


def merged(weights, settings):
    """The weights of the model itself, with the product of each pair of adapters added."""
    scale = 16 / settings.get("lora_rank", 1)
    own = {}
    for name, value in weights.items():
        short = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" not in name:
            own[short] = own.get(short, 0) + value
        elif "lora_A" in name:
            target = short.replace(".lora_A.default", "")
            own[target] = own.get(target, 0) + scale * weights[name.replace("lora_A", "lora_B")] @ value
    return own


def divergence(name, p, q):
    """Of two distributions, from the definitions.  [N, V] each → [N]"""
    log_p, log_q, m = p.log(), q.log(), (p + q) / 2
    if name == "sce":
        return -(p * log_q).sum(-1) - (q * log_p).sum(-1)
    if name == "jeffreys":
        return (p * (log_p - log_q)).sum(-1) + (q * (log_q - log_p)).sum(-1)
    if name == "js":
        return ((p * (log_p - m.log())).sum(-1) + (q * (log_q - m.log())).sum(-1)) / 2
    return (p * (log_p - log_q)).sum(-1)  # KL(p‖q), p of the long context


def step_loss(model, weights, items, settings):
    """Loss of all sequences of a step, and its parts L_train and misalignment."""
    length, windows = items[0]["windows"].shape[1], len(items[0]["windows"])
    positions = settings.get("positions", "overlap")
    cross_entropies, divergences = [], []
    for item in items:
        extra, distributions, inputs = item["extra"], [], {}
        if "clex_t" in item:
            model.model.rotary_emb.t = int(item["clex_t"])
            model.model.rotary_emb.positions = item["clex_positions"]
        if settings.get("extension") == "longqlora":
            inputs["attention_mask"] = shifted_mask(length, 4)
        for window in item["windows"]:
            logits = functional_call(model, weights, (window[None],), inputs | {"use_cache": False}).logits[0]
            assert logits.dtype == torch.float64
            distributions.append(logits.softmax(-1))  # [T, V]
            cross_entropies.append(-distributions[-1][range(length - 1), window[1:]].log())
        if windows == 2:
            first = {"overlap": 0, "in_range": math.ceil(length / 2) - 1, "last": length - extra - 1}[positions]
            p, q = distributions[0][extra + first :], distributions[1][first : length - extra]
            p = p.detach() if settings.get("detach") == "long" else p
            q = q.detach() if settings.get("detach") == "short" else q
            divergences.append(divergence(settings.get("divergence", "sce"), p, q))
    train = torch.cat(cross_entropies).mean()
    misalign = torch.cat(divergences).mean() if divergences else torch.zeros(())
    alpha = settings["alpha"]
    return (train + alpha * misalign if alpha else train), train, misalign


def clip(gradients, max_norm):
    """Scale gradients to `max_norm` if their norm is above; CLEX's frequencies apart from all others.

    Returns the gradients, and both norms before.
    """
    clipped, norms = {}, []
    for learned in (False, True):
        group = {name: value for name, value in gradients.items() if ("rotary_emb" in name) == learned}
        norms.append(math.sqrt(sum(value.pow(2).sum().item() for value in group.values())))
        clipped |= {name: value * min(1.0, max_norm / (norms[-1] + 1e-6)) for name, value in group.items()}
    return clipped, norms


def train_plainly(fields, settings, initial, sequences, rates):
    """Train from the weights `initial`; return as `tests.training.launched.record` does.

    Args:
        fields: of the Llama config.
        settings: of the run.
        initial: name → weight, adapters among them.
        sequences: items of the run's `WindowPairs`, all of them.
        rates: learning rate of each step.
    """
    model = build(fields, settings)
    is_adapted = any("lora_" in name for name in initial)
    weights = {name: value.double() for name, value in initial.items()}
    trained = [name for name in weights if not is_adapted or "lora_" in name]
    moments = {name: (torch.zeros_like(weights[name]), torch.zeros_like(weights[name])) for name in trained}
    per_step, decay = settings["global_batch_size"], settings.get("weight_decay", 0.0)
    result = {"weights": [weights], "gradients": [], "rows": []}
    for step, rate in enumerate(rates, start=1):
        leaves = {name: value.detach().requires_grad_(name in trained) for name, value in weights.items()}
        items = sequences[(step - 1) * per_step : step * per_step]
        loss, train, misalign = step_loss(model, merged(leaves, settings), items, settings)
        gradients = dict(zip(trained, torch.autograd.grad(loss, [leaves[name] for name in trained]), strict=True))
        gradients, (norm, norm_of_frequencies) = clip(gradients, settings["max_grad_norm"])
        weights = dict(weights)
        for name, gradient in gradients.items():
            is_learned = "rotary_emb" in name
            lr = rate / rates[0] * settings["extension_options"]["learning_rate"] if is_learned else rate
            first, second = moments[name]
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
            moments[name] = first, second
            step_size = (first / (1 - BETAS[0] ** step)) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPS)
            is_decayed = weights[name].ndim == 2 and not is_learned  # no norms
            weights[name] = weights[name] * (1 - lr * decay * is_decayed) - lr * step_size
        result["gradients"].append(gradients)
        result["weights"].append(weights)
        row = {"loss": loss.item(), "L_train": train.item(), "misalign": misalign.item(), "grad_norm": norm}
        result["rows"].append(row | {"grad_norm_frequencies": norm_of_frequencies})
    return result
