"""The tasks: mean and length of a sequence of random bits, and OutRep, which predicts a function of the length.

A target is in the task's own units (a mean; a length in tokens) or, where a network is trained on it, in the units
of its output: f(length) under OutRep. Errors are always compared in the task's own units, after inverting f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Where 1/√x has no inverse (an output of 0 or less) the length is taken for this: twice the longest test length.
LARGEST_LENGTH = 1000.0

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class OutRep:
    """An invertible function of the length, and where its inverse is defined."""

    label: str  # how f is written in tables and figures
    forward: Map  # f, from lengths to outputs
    inverse: Map  # f^-1, for outputs of at least `smallest`
    smallest: float  # outputs below this are raised to it before inverting

    def invert(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs [...] to lengths [...], bits, float64; one that has no inverse gives the nearest that does."""
        return self.inverse(outputs.double().clamp(min=self.smallest))

    def undefined(self, outputs: torch.Tensor) -> torch.Tensor:
        """Which outputs [...] `invert` has to clamp."""
        return outputs < self.smallest


@dataclass(frozen=True)
class Task:
    """What is to be predicted from a sequence of bits."""

    name: str  # as in files and options
    label: str  # as in tables and figures
    of_mean: bool  # the mean of the bits; else their number
    out_rep: OutRep  # what the network predicts, the identity unless the task is an OutRep one

    def truth(self, bits: torch.Tensor) -> torch.Tensor:
        """The answer for every prefix of each sequence, in the task's units: bits [..., T] → [..., T]."""
        lengths = torch.arange(1, bits.shape[-1] + 1, device=bits.device, dtype=bits.dtype)  # [T]
        return bits.cumsum(-1) / lengths if self.of_mean else lengths.expand_as(bits)

    def targets(self, bits: torch.Tensor) -> torch.Tensor:
        """The same in the units of the network's output: bits [..., T] → [..., T]."""
        return self.out_rep.forward(self.truth(bits))


IDENTITY = OutRep("x", lambda x: x, lambda y: y, -float("inf"))
TASKS = {
    task.name: task
    for task in (
        Task("mean", "mean", True, IDENTITY),
        Task("length", "length", False, IDENTITY),
        Task("length-sqrt", "length as √x", False, OutRep("√x", torch.sqrt, torch.square, 0.0)),
        Task("length-log", "length as log x", False, OutRep("log x", torch.log, torch.exp, -float("inf"))),
        Task(
            "length-invsqrt",
            "length as 1/√x",
            False,
            OutRep("1/√x", torch.rsqrt, lambda y: y**-2, LARGEST_LENGTH**-0.5),
        ),
    )
}


def draw_bits(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Independent bits, 0 or 1 with probability ½, as float32 on the CPU: [*shape]."""
    return torch.randint(0, 2, shape, generator=generator).float()


def constant_half_error(length: int) -> float:
    """Expected squared error of the constant ½ on the mean of `length` bits: their mean's variance, 0.25/length."""
    return 0.25 / length


def suffixes(bits: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Move each sequence's suffix to the front, the rest filled with zeros.

    Args:
        bits: [..., T]
        starts: where each suffix starts, [...]

    Returns:
        [..., T]; the suffix of T − start bits, then start bits of padding.
    """
    places = torch.arange(bits.shape[-1], device=bits.device) + starts[..., None]  # [..., T]
    inside = places < bits.shape[-1]
    return bits.gather(-1, places.clamp(max=bits.shape[-1] - 1)) * inside
