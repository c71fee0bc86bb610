"""The settings of a study, and of how its models are trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from longshort.synthetic.model import ENCODINGS, Size
from longshort.synthetic.tasks import TASKS

DENSE, STRIDE = 50, 25  # every length up to 50 is measured, then every 25th


@dataclass(frozen=True)
class StudyConfig:
    """What a study trains and measures. All lengths are in bits."""

    tasks: tuple[str, ...] = tuple(TASKS)
    encodings: tuple[str, ...] = ENCODINGS
    seeds: int = 5  # models per setting, with seeds `seed`, `seed` + 1, …
    seed: int = 0
    train_length: int = 10  # training lengths are uniform on 1 … this
    max_length: int = 50  # the longest test length
    steps: int = 3000  # of the optimizer
    batch_size: int = 16  # sequences per model and step; each counts at all its prefixes
    learning_rate: float = 3e-3  # of Adam, after a linear warm-up; a half cosine takes it to 0
    warmup: int = 100  # in steps
    sequences: int = 512  # test sequences per model
    pairs: int = 128  # how many of them are also read from a later start, for the misalignment; at most `sequences`
    size: Size = field(default_factory=Size)  # of each model

    @property
    def lengths(self) -> list[int]:
        """Test lengths: each up to 50, then every 25th, the training length and the longest."""
        dense, sparse = range(1, min(self.max_length, DENSE) + 1), range(DENSE + STRIDE, self.max_length + 1, STRIDE)
        return sorted({*dense, *sparse, self.train_length, self.max_length})

    def of_setting(self, task: str, encoding: str) -> dict[str, Any]:
        """What decides a setting's numbers, apart from software and machine."""
        shared = {key: value for key, value in asdict(self).items() if key not in ("tasks", "encodings")}
        return {"task": task, "encoding": encoding, **shared}

    @property
    def model_seeds(self) -> list[int]:
        """The seed of each model of a setting."""
        return list(range(self.seed, self.seed + self.seeds))
