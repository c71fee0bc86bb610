"""Every patch of another library that training needs; those of an evaluation are in `longshort.lmeval.compat`.

`longshort.training.extension.modeling_clex` also registers its RoPE type with transformers when it is imported: it is
copied into checkpoints, where it has to work without longshort.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import masking_utils
from transformers.utils import logging

from longshort.training.extension.options import LEARNED_FREQUENCIES


@contextmanager
def no_loading_report() -> Iterator[None]:
    """Load weights without the table that transformers logs of missing and mismatched ones.

    Versions: transformers 5.23.
    Why: the same weights are reported on one line, as a `UserError`.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def weights_in_every_process() -> Iterator[None]:
    """Let `from_pretrained` read the weights in every process, whatever FSDP is configured to do.

    Versions: transformers 5.23.
    Why: with FSDP_CPU_RAM_EFFICIENT_LOADING, which accelerate launch sets by default, only the first process of a
    machine has the weights until the model is sharded. What is found out about the model before, such as where its
    LM head begins, would differ between the processes.
    """
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Give a model that FSDP 2 has sharded its own class back, while the context is open.

    Versions: torch 2.13, transformers 5.23.
    Why: `fully_shard` makes it an instance of a new class of torch's, so that `save_pretrained` copies torch's code
    into the checkpoint in place of that of CLEX and EABF.
    """
    from torch.distributed import fsdp  # a build of torch may lack it

    sharded: Any = type(model)
    own: Any = next(base for base in sharded.__mro__ if not issubclass(base, fsdp.FSDPModule))
    model.__class__ = own
    try:
        yield
    finally:
        model.__class__ = sharded


@contextmanager
def float32_frequencies() -> Iterator[None]:
    """Let FSDP 2 shard CLEX's learned frequencies as a unit of their own that it does not round to half precision.

    Versions: accelerate 1.15.
    Why: accelerate gives all units one policy. Log frequencies in bfloat16 have errors that positions multiply by
    tens of thousands, and a step of the optimizer is lost in their rounding.
    """
    from torch.distributed import fsdp  # a build of torch may lack it

    own = fsdp.fully_shard

    @functools.wraps(own)
    def fully_shard(module: Any, **options: Any) -> Any:
        for part in [module] if isinstance(module, nn.Module) else module:
            for name, inner in part.named_modules():
                has_weights = next(inner.parameters(recurse=False), None) is not None
                if LEARNED_FREQUENCIES in name and has_weights and not isinstance(inner, fsdp.FSDPModule):
                    own(inner, **options | {"mp_policy": fsdp.MixedPrecisionPolicy(cast_forward_inputs=False)})
        return own(module, **options)

    fsdp.fully_shard = fully_shard
    try:
        yield
    finally:
        fsdp.fully_shard = own


@contextmanager
def no_packed_sequences() -> Iterator[None]:
    """Make the attention masks of fake tensors as those of whole sequences, which need none.

    Versions: transformers 5.23.
    Why: it reads the positions to see whether several sequences follow each other in a row. Fake tensors cannot be
        read, so it made a mask [B, 1, T, T], which a real forward does not have.
    """
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original
