"""Trains the models of one setting as one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from longshort.synthetic.config import StudyConfig
from longshort.synthetic.model import Transformers
from longshort.synthetic.tasks import Task, draw_bits

TRAINING_SEED = 2_000_000  # added to a model's seed for its training data, so that they are not its initial weights
PROGRESS_EVERY = 50


def train(
    config: StudyConfig, task: Task, encoding: str, device: str, advance: Callable[[int], object] = lambda steps: None
) -> tuple[Transformers, torch.Tensor]:
    """Train the models of one setting together.

    Each step draws sequences of `train_length` bits and takes the squared error at every prefix: lengths uniform
    on 1 … `train_length`, as if each prefix were a sequence of its own, since a causal model's output after a
    prefix is that of the prefix alone. Model r draws from a generator of its own seed. `advance` is called with a
    number of steps, now and then, when they are done.

    Returns:
        The models, and the mean training loss of each over the last tenth of the steps, [R].
    """
    seeds = config.model_seeds
    models = Transformers(encoding, seeds, config.max_length, config.size).to(device)
    generators = [torch.Generator().manual_seed(TRAINING_SEED + seed) for seed in seeds]
    optimizer = torch.optim.Adam(models.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / config.warmup) * (1 + math.cos(math.pi * step / config.steps)) / 2,
    )
    last = max(config.steps // 10, 1)
    total = torch.zeros(len(seeds), device=device)
    for step in range(config.steps):
        bits = torch.stack([draw_bits(g, config.batch_size, config.train_length) for g in generators]).to(device)
        losses = (models(bits) - task.targets(bits)).square().mean((1, 2))  # [R]
        optimizer.zero_grad()
        losses.sum().backward()  # a sum, not a mean: each model's gradient is that of its own loss
        optimizer.step()
        schedule.step()
        if step >= config.steps - last:
            total += losses.detach()
        if (step + 1) % PROGRESS_EVERY == 0:
            advance(PROGRESS_EVERY)
    advance(config.steps % PROGRESS_EVERY)
    return models, total / last
